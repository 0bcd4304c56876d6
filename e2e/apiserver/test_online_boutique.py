"""Google's Online Boutique in a labelled namespace: injected, its documented calls reported, learned, closed by
NetworkPolicies, and these judged by the independent evaluator for every pair and port.

The API server, its controllers, the webhook, a whole controller, tokens, certificates and the telemetry are real. No
kubelet runs: pods get their status here. What sidecars would have seen is reported over the certificates that each pod
buys with its own token.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from controller.kube.client import Client
from controller.kube.kinds import DEPLOYMENTS, PODS
from controller.kube.settings import KubernetesSettings
from e2e.apiserver.custom_resources import install_crds, path_of, put, segmentation_mode
from e2e.apiserver.injector import ENABLED, RunningInjector, is_injected, pod
from e2e.apiserver.meshes import eventually, eventually_async
from e2e.apiserver.online_boutique import COMPONENTS, connections, manifests
from e2e.apiserver.running_boutique import BALANCER, CONTROLLER, NAMES, Boutique, report_calls
from e2e.apiserver.simulated import NODE, Kubelet, deploy, deployment
from e2e.harness.apiserver import ApiServer
from tests.controller.running import running

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: The kubelet and Prometheus, for example, whose addresses no policy knows.
ELSEWHERE = "192.0.2.1"
#: Where sidecars answer probes and tell metrics.
PROBES = (15020, 15021)


@pytest.fixture(scope="module")
def meshed(apiserver: ApiServer, injector: RunningInjector) -> Iterator[str]:
    install_crds(apiserver)
    name = apiserver.create_namespace(ENABLED)
    injector.until_asked(name)
    everything = {"apiVersion": "v1", "kind": "List", "items": manifests(NODE)}
    apiserver.kubectl("apply", "-n", name, "-f", "-", stdin=json.dumps(everything))
    yield name
    apiserver.delete_namespace(name)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def boutique(
    apiserver: ApiServer, meshed: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Boutique]:
    """Every pod runs and is known to the controller."""
    kubernetes = KubernetesSettings(kubeconfig=apiserver.kubeconfig, injector_certificate="external", coalesce=0.02)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(Client(kubernetes))
        kubelet = Kubelet(client)
        await stack.enter_async_context(kubelet.alive())
        folder = tmp_path_factory.mktemp("controller")
        run = await stack.enter_async_context(running(folder, inventory=None, kubernetes=kubernetes))
        made = Boutique(apiserver, client, run, meshed)
        stack.push_async_callback(_take_away_names, client, kubelet)
        await deploy(client, "kube-system", deployment("names", labels={"k8s-app": "kube-dns"}, sidecar=False, port=53))
        off = {"hedgerow.dev/injection": "disabled"}
        await deploy(client, meshed, pod("intruder", annotations=off, nodeName=NODE))
        wanted = [(meshed, f"app={name}", name) for name in (*NAMES, "intruder")]
        for namespace, labels, name in (*wanted, ("kube-system", "k8s-app=kube-dns", "dns")):
            (found,) = await kubelet.run_all(namespace, labels, 1)
            made.pods[name] = await client.get(PODS, found, namespace)
        await eventually(lambda: all(made.instance(name) for name in made.pods))
        yield made


async def _take_away_names(client: Client, kubelet: Kubelet) -> None:
    """Nobody but a kubelet would end a pod of ``kube-system`` when its Deployment goes."""
    await client.delete(DEPLOYMENTS, "names", "kube-system")
    await kubelet.end_all("kube-system", "k8s-app=kube-dns")


async def test_every_pod_is_injected_and_belongs_to_its_deployment(boutique: Boutique) -> None:
    inventory = boutique.run.controller.engine.view.inventory
    for each in COMPONENTS:
        made = boutique.pods[each.name]
        assert is_injected(made), each.name
        (app,) = made["spec"]["containers"]
        for kind, path in (("readinessProbe", "readyz"), ("livenessProbe", "livez")) if each.probe else ():
            asked = {"path": f"/app-health/server/{path}", "port": 15020, "scheme": "HTTP"}
            assert app[kind]["httpGet"] == asked, each.name
        instance = boutique.instance(each.name)
        assert instance is not None
        assert instance.workload == boutique.ref(each.name)
        assert inventory.workloads[instance.workload].meshed
        path = f"ns/{boutique.namespace}/sa/{each.account}/wl/{each.name}"
        assert inventory.identity_of_instance(instance) == f"spiffe://{inventory.trust_domain}/{path}"
    assert names_of_init(boutique.pods["loadgenerator"])[-1] == "frontend-check", "it waits for others: ours is first"
    intruder = boutique.instance("intruder")
    assert intruder is not None
    assert not inventory.workloads[intruder.workload].meshed


def names_of_init(made: dict[str, Any]) -> list[str]:
    return [each["name"] for each in made["spec"]["initContainers"]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def learned(boutique: Boutique) -> Boutique:
    """Every call was seen by the sidecars of both its ends; people came from outside and were let in by a person."""
    await report_calls(boutique)

    async def active() -> bool:
        edges = (await boutique.run.get("/graph"))["edges"]
        return {each["id"] for each in edges if each["state"] == "active"} == boutique.edges

    await eventually_async(active)
    return boutique


async def test_the_documented_calls_are_learned_and_who_comes_from_outside_waits(learned: Boutique) -> None:
    edges = {each["id"]: each for each in (await learned.run.get("/graph"))["edges"]}
    assert set(edges) == learned.edges | {learned.from_outside}
    assert edges[learned.from_outside]["state"] == "proposed", "nobody proved who that was: a person decides"


async def test_what_was_learned_is_told_in_the_cluster(learned: Boutique) -> None:
    async def told() -> bool:
        path = path_of("LearnedPolicy", learned.namespace)
        found = set()
        for each in (await asyncio.to_thread(learned.server.request, "GET", path))["items"]:
            for one in each.get("status", {}).get("connections", ()):
                if (one["direction"], one["state"]) == ("ingress", "active"):
                    found.add((one["peer"], f"{learned.namespace}/{each['metadata']['name']}", one["port"]))
        return found == {
            (str(learned.ref(caller)), str(learned.ref(callee)), port) for caller, callee, port in connections()
        }

    await eventually_async(told)


@dataclass(frozen=True)
class Closed:
    """The namespace with everything enforced and applied.

    :param generated: what the controller would export; ``applied``: what the API server has
    """

    boutique: Boutique
    generated: list[dict[str, Any]]
    applied: list[dict[str, Any]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def closed(learned: Boutique) -> Closed:
    """A person lets people in from outside; then everything is closed."""
    vouched = {"edges": [learned.from_outside], "owner": "anna", "reason": "the shop is open to people"}
    assert (await learned.run.post("/policy/approve", vouched))["approved"] == [learned.from_outside]
    mode = segmentation_mode(learned.namespace, ingress="enforce", egress="enforce", networkPolicy="report")
    await asyncio.to_thread(put, learned.server, mode)

    async def applies(reason: str) -> bool:
        path = path_of("SegmentationMode", learned.namespace, "default")
        status = (await asyncio.to_thread(learned.server.request, "GET", path)).get("status") or {}
        conditions = {each["type"]: each["reason"] for each in status.get("conditions") or ()}
        return conditions.get("NetworkPolicies") == reason

    await eventually_async(lambda: applies("Reported"))
    exported = (await learned.run.get("/policy/export", format="json"))["policies"]
    mode["spec"]["networkPolicy"] = "apply"
    await asyncio.to_thread(put, learned.server, mode)
    await eventually_async(lambda: applies("Applied"))
    listed = await asyncio.to_thread(learned.server.request, "GET", path_of("NetworkPolicy", learned.namespace))
    generated = [each for each in exported if each["metadata"]["namespace"] == learned.namespace]
    return Closed(learned, generated, listed["items"])


async def test_every_generated_policy_is_taken_by_the_api_server_as_it_is(closed: Closed) -> None:
    generated = {each["metadata"]["name"]: each for each in closed.generated}
    assert {f"hedgerow-{name}" for name in NAMES} <= set(generated)
    for name, each in generated.items():
        beside = {**each, "metadata": {**each["metadata"], "name": f"{name}-beside"}}
        taken = await asyncio.to_thread(put, closed.boutique.server, beside, dryRun="All")  # unknown fields are refused
        assert _without_defaults(taken["spec"]) == _without_defaults(each["spec"]), name
    kept = {each["metadata"]["name"]: each["spec"] for each in closed.applied}
    assert {name: _without_defaults(kept[name]) for name in generated} == {
        name: _without_defaults(each["spec"]) for name, each in generated.items()
    }


def _without_defaults(spec: dict[str, Any]) -> Any:
    """The specification without what the API server may leave out or fill in: empty lists, and TCP."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            found = {key: plain(each) for key, each in value.items() if each != []}
            return found | {"protocol": found.get("protocol", "TCP")} if "port" in found else found
        return [plain(each) for each in value] if isinstance(value, list) else value

    return plain(spec)


async def test_only_the_documented_calls_and_what_everybody_needs_are_open(closed: Closed) -> None:
    """Every pair of pods, every port that any policy or pod tells apart, every protocol."""
    for policies in (closed.generated, closed.applied):
        cluster = closed.boutique.judge(policies)
        assert cluster.allowed() == _expected(closed.boutique, cluster.atoms())


async def test_from_outside_there_are_people_for_the_frontend_and_probes_and_nothing_leads_out(closed: Closed) -> None:
    boutique, cluster = closed.boutique, closed.boutique.judge(closed.applied)
    for name in NAMES:
        target = boutique.pod_name(name)
        for port, protocol in cluster.atoms():
            probe = protocol == "TCP" and port in PROBES
            people = protocol == "TCP" and (name, port) == ("frontend", 8080)
            assert cluster.address_to_pod(ELSEWHERE, target, port, protocol) is probe, (name, port, protocol)
            assert cluster.address_to_pod(BALANCER, target, port, protocol) is (probe or people), (name, port, protocol)
            for address in (ELSEWHERE, BALANCER):
                assert not cluster.pod_to_address(target, address, port, protocol), (name, address, port, protocol)
        for container in boutique.pods[name]["spec"]["containers"]:
            for kind in ("readinessProbe", "livenessProbe", "startupProbe"):
                for asked in (each for each in container.get(kind, {}).values() if isinstance(each, dict)):
                    assert cluster.address_to_pod(ELSEWHERE, target, asked["port"]), (name, kind)


async def test_each_policy_is_needed(closed: Closed) -> None:
    """Judging notices when one is missing or opens a port more, whichever it is: so it would notice a wrong one."""
    boutique = closed.boutique
    ours = [each for each in closed.applied if each["metadata"]["name"] in {f"hedgerow-{name}" for name in NAMES}]
    assert len(ours) == len(NAMES)
    asked = sorted({(each.port, "TCP") for each in COMPONENTS if each.port})
    for each in ours:
        name = each["metadata"]["name"]
        others = [other for other in closed.applied if other is not each]
        assert boutique.judge(others).allowed(asked) != _expected(boutique, asked), name
        opened = copy.deepcopy(each)
        opened["spec"].setdefault("ingress", []).append({"ports": [{"port": 2222, "protocol": "TCP"}]})
        more = boutique.judge([*others, opened]).allowed([(2222, "TCP")])
        assert more != _expected(boutique, [(2222, "TCP")]), name


def _expected(boutique: Boutique, atoms: Iterable[tuple[int, str]]) -> frozenset[tuple[str, str, int, str]]:
    """Which pod may connect to which, said without the compiler."""
    names = {boutique.pod_name(name): name for name in boutique.pods} | {CONTROLLER: "controller"}
    open_to_all = {"dns", "controller"}
    calls = connections()

    def may(source: str, destination: str, port: int, protocol: str) -> bool:
        if source in open_to_all:  # nothing says where these may go; what is meshed takes probes alone from them
            probe = destination != "intruder" and protocol == "TCP" and port in PROBES
            return destination in open_to_all or probe
        if destination == "dns":
            return port == 53 and protocol in ("UDP", "TCP")
        if destination == "controller":
            return source != "intruder" and port in (15012, 15013) and protocol == "TCP"
        return protocol == "TCP" and (source, destination, port) in calls

    return frozenset(
        (source, destination, port, protocol)
        for source, destination in itertools.permutations(names, 2)
        for port, protocol in atoms
        if may(names[source], names[destination], port, protocol)
    )
