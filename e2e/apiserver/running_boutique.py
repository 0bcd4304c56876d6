"""Online Boutique in a namespace of an API server: its pods as they are there, what its sidecars would have seen, and
what NetworkPolicies let it do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from certs.keys import make_csr, new_key
from controller.kube.client import Client
from controller.kube.kinds import SERVICES
from e2e.apiserver.meshes import eventually
from e2e.apiserver.online_boutique import CALLS, COMPONENTS, OUTSIDE, connections
from e2e.harness.apiserver import ApiServer
from graph.flow import Flow
from graph.model import Direction, Instance, Protocol, Verdict, WorkloadRef
from graph.wire import hedgerow_pb2 as pb
from graph.wire import hedgerow_pb2_grpc as rpc
from graph.wire.codec import flow_to_message
from tests.controller.running import Identity, Running
from tests.networkpolicy.evaluator import Cluster

NAMES = tuple(each.name for each in COMPONENTS)
#: Where people's requests come from, in front of ``frontend-external``.
BALANCER = "203.0.113.10"
CONTROLLER = "hedgerow-system/hedgerow-controller-0"
#: It only has to be where the evaluator looks; everything else is read from the API server.
BESIDE: list[dict[str, Any]] = [
    {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-system"}},
    {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "hedgerow-system"}},
    {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "hedgerow-controller-0",
            "namespace": "hedgerow-system",
            "labels": {"app.kubernetes.io/name": "hedgerow-controller"},
        },
        "spec": {"containers": [{"name": "a", "image": "a"}]},
        "status": {"podIP": "10.9.1.2", "podIPs": [{"ip": "10.9.1.2"}], "phase": "Running"},
    },
]


@dataclass
class Boutique:
    """What runs in the namespace, and the controller that follows it.

    :param pods: by component, as the API server has them; ``dns`` and ``intruder`` too
    """

    server: ApiServer
    client: Client
    run: Running
    namespace: str
    pods: dict[str, dict[str, Any]] = field(default_factory=dict)

    def ref(self, name: str) -> WorkloadRef:
        return WorkloadRef(self.namespace, name)

    def pod_name(self, name: str) -> str:
        metadata = self.pods[name]["metadata"]
        return f"{metadata['namespace']}/{metadata['name']}"

    def instance(self, name: str) -> Instance | None:
        return self.run.controller.engine.view.inventory.instances.get(self.pod_name(name))

    @property
    def edges(self) -> set[str]:
        """What is to be learned, as people read it."""
        return {f"{self.ref(caller)}->{self.ref(callee)}:{port}/TCP" for caller, callee, port in connections()}

    @property
    def from_outside(self) -> str:
        return f"-/{BALANCER}->{self.ref('frontend')}:8080/TCP"

    def judge(self, policies: Iterable[dict[str, Any]]) -> Cluster:
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}}
        pods = [{**each, "apiVersion": "v1", "kind": "Pod"} for each in self.pods.values()]
        policies = [{**each, "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy"} for each in policies]
        return Cluster([*BESIDE, namespace, *pods, *policies])


async def report_calls(boutique: Boutique) -> None:
    """Report every documented call by the sidecars of both its ends, and that somebody came from outside."""
    seen = await _calls(boutique)
    assert set(seen) == connections()
    bought = await asyncio.gather(*(_identity(boutique, each.name, each.account) for each in COMPONENTS))
    identities = dict(zip(NAMES, bought, strict=True))
    reports: dict[str, list[Flow]] = {name: [] for name in NAMES}
    for caller, callee, port in seen:
        reports[caller].append(_flow(boutique, caller, callee, port, Direction.OUTBOUND))
        reports[callee].append(_flow(boutique, caller, callee, port, Direction.INBOUND))
    reports["frontend"].append(_flow(boutique, "", "frontend", 8080, Direction.INBOUND))
    await asyncio.gather(*(_report(boutique, identities[name], flows) for name, flows in reports.items()))


async def _calls(boutique: Boutique) -> list[tuple[str, str, int]]:
    """Who really answers when each component calls the addresses that it was given."""
    services = {each["metadata"]["name"]: each for each in await boutique.client.every(SERVICES, boutique.namespace)}
    assert set(services) == {each.name for each in COMPONENTS if each.port} | {OUTSIDE}
    return [
        (caller, *await _answering(boutique, services[called.partition(":")[0]], int(called.partition(":")[2])))
        for caller, addresses in CALLS.items()
        for called in addresses
    ]


async def _answering(boutique: Boutique, service: dict[str, Any], port: int) -> tuple[str, int]:
    """Which component answers at a port of a Service, and at which port of its pod, as a sidecar is told."""
    engine, address = boutique.run.controller.engine, service["spec"]["clusterIP"]
    await eventually(lambda: engine.view.inventory.resolve(address, port).endpoints)
    answer = engine.view.inventory.resolve(address, port)
    assert answer.meshed
    (endpoint,) = answer.endpoints
    callee = answer.workload_of(endpoint)
    assert callee is not None
    assert callee.namespace == boutique.namespace
    return callee.name, endpoint.port


async def _identity(boutique: Boutique, name: str, account: str) -> Identity:
    """Bought with the pod's own token."""
    pod = boutique.pods[name]["metadata"]["name"]
    token = await asyncio.to_thread(boutique.server.token, boutique.namespace, account, "hedgerow-controller", pod=pod)
    key = new_key()
    request = pb.SignRequest(csr_der=make_csr(key), service_account_token=token, instance=pod)
    answer = await rpc.IssuerStub(boutique.run.attesting()).Sign(request, timeout=60)
    assert answer.workload == str(boutique.ref(name))
    return Identity(key, tuple(answer.chain_der))


def _flow(boutique: Boutique, caller: str, callee: str, port: int, direction: Direction) -> Flow:
    """:param caller: empty: somebody outside"""
    inventory, now = boutique.run.controller.engine.view.inventory, time.time()
    source = boutique.ref(caller) if caller else WorkloadRef.external(BALANCER)
    return Flow(
        source=source,
        destination=boutique.ref(callee),
        port=port,
        protocol=Protocol.TCP,
        direction=direction,
        reporter="",
        verified=bool(caller),
        verdict=Verdict.ALLOW,
        pending=Verdict.DENY,
        reason="learning",
        source_identity=inventory.identity_of(source) if caller else "",
        destination_identity=inventory.identity_of(boutique.ref(callee)),
        connections=5,
        first_seen=now,
        last_seen=now,
    )


async def _report(boutique: Boutique, identity: Identity, flows: list[Flow]) -> None:
    call = rpc.TelemetryStub(boutique.run.mutual(identity)).ReportFlows()
    messages = []
    for each in flows:
        message = flow_to_message(each)
        message.reporter = "whoever the certificate says"
        messages.append(message)
    async with asyncio.timeout(60):
        await call.write(pb.FlowBatch(boot_id="boot-1", sequence=1, flows=messages))
        assert (await call.read()).sequence == 1
    call.cancel()
