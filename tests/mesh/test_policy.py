"""What was learned, as NetworkPolicies and as real connections; and what people change about it, while it is used."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

import kubernetes_validate
import pytest
import pytest_asyncio
import yaml

from graph.flow import EdgeKey
from hedgerow.local.description import WorkloadSpec
from hedgerow.local.mesh import LocalMesh
from tests.mesh.running import close, refusals
from tests.mesh.traffic import REFUSED, Held, reach, reaches, web
from tests.networkpolicy.evaluator import Cluster

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: Everybody listens on all of them, so that nothing but the policy keeps anybody out.
PORTS = (8080, 9090, 5432)

EDGES = tuple(
    EdgeKey.parse(text)
    for text in (
        "shop/front->shop/api:8080/TCP",
        "shop/front->shop/canary:9090/TCP",
        "shop/api->shop/api:9090/TCP",
        "shop/api->data/db:5432/TCP",
        "shop/canary->data/api:8080/TCP",
        "data/api->data/db:5432/TCP",
    )
)


def workloads() -> list[WorkloadSpec]:
    return [
        web("shop/front", *PORTS),
        web("shop/api", *PORTS, replicas=2, labels={"app": "api"}),
        web("shop/canary", *PORTS, labels={"app": "api", "track": "canary"}),  # has all labels of shop/api
        web("data/api", *PORTS, labels={"app": "api"}),  # and so has this one, elsewhere
        web("data/db", *PORTS),
    ]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def closed(mesh: LocalMesh) -> LocalMesh:
    """The mesh, learned and enforced."""
    for edge in EDGES:
        source, *_ = mesh.pods_of(edge.source)
        *_, target = mesh.pods_of(edge.destination)
        assert await reaches(mesh, source.name, f"{target.address}:{edge.port}")
    await close(mesh, EDGES)
    return mesh


# --- NetworkPolicies


async def exported(mesh: LocalMesh) -> list[dict[str, Any]]:
    text = await mesh.api.get_text("/policy/export")
    policies: list[dict[str, Any]] = list(yaml.safe_load_all(text))
    assert (await mesh.api.get("/policy/export", {"format": "json"}))["policies"] == policies
    return policies


async def cluster(mesh: LocalMesh) -> Cluster:
    """What a Kubernetes cluster would make of the exported policies, with the pods that the inventory names."""
    known = await mesh.api.get("/inventory")
    of = {f"{workload['namespace']}/{workload['name']}": workload for workload in known["workloads"]}
    manifests = [_namespace(each["name"], each["labels"]) for each in known["namespaces"]]
    manifests += [
        _pod(of[each["workload"]]["namespace"], each["name"], each["address"], of[each["workload"]])
        for each in known["instances"]
    ]
    dns = {"labels": {"k8s-app": "kube-dns"}, "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]}
    manifests += [_namespace("kube-system", {}), _pod("kube-system", "coredns-0", "10.96.0.10", dns)]
    return Cluster([*manifests, *await exported(mesh)])


def _namespace(name: str, labels: dict[str, str]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def _pod(namespace: str, name: str, address: str, workload: dict[str, Any]) -> dict[str, Any]:
    ports = [
        {"name": port["name"], "containerPort": port["port"], "protocol": port["protocol"]}
        for port in workload["ports"]
    ]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": workload["labels"]},
        "spec": {"containers": [{"name": "one", "ports": ports}]},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
    }


def pairs(mesh: LocalMesh, edge: EdgeKey) -> Iterator[tuple[str, str, int, str]]:
    """An edge between every two different pods of its ends."""
    for source in mesh.pods_of(edge.source):
        for target in mesh.pods_of(edge.destination):
            if source is not target:
                yield source.name, target.name, edge.port, str(edge.protocol)


async def test_every_document_is_what_kubernetes_takes(closed: LocalMesh) -> None:
    policies = await exported(closed)
    assert {policy["metadata"]["annotations"]["hedgerow.dev/workload"] for policy in policies} == {
        str(spec.ref) for spec in workloads()
    }
    for version in ("1.29", kubernetes_validate.latest_version()):
        for policy in policies:
            assert policy["kind"] == "NetworkPolicy"
            kubernetes_validate.validate(policy, version, strict=True)


async def test_policies_allow_what_was_learned_and_names_and_the_controller_and_nothing_else(closed: LocalMesh) -> None:
    seen = await cluster(closed)
    pods = set(closed.pods)
    controller, dns = "hedgerow-system/hedgerow-controller-0", "kube-system/coredns-0"
    expected = {pair for edge in EDGES for pair in pairs(closed, edge)}
    expected |= {(pod, controller, port, "TCP") for pod in pods for port in (15012, 15013)}
    expected |= {(pod, dns, 53, protocol) for pod in pods for protocol in ("TCP", "UDP")}
    # 15020 and 15021 are the sidecars' own ports, for kubelets, who are no pods.
    asked = {(port, protocol) for port, protocol in seen.atoms() if not 15020 <= port <= 15021}
    assert asked > {(port, protocol) for port in (*PORTS, 53, 15012, 15013) for protocol in ("TCP", "UDP")}
    allowed = {each for each in seen.allowed(asked) if {each[0], each[1]} & pods}
    assert allowed == expected
    for pod in pods:
        assert seen.isolated(pod, "Ingress")
        assert seen.isolated(pod, "Egress")
        assert seen.address_to_pod("192.0.2.1", pod, 15021)
        assert not any(seen.address_to_pod("192.0.2.1", pod, port) for port in PORTS)
        assert not any(seen.pod_to_address(pod, "192.0.2.1", port) for port in (*PORTS, 53, 443))


async def check_agreement(mesh: LocalMesh) -> int:
    """Every connection between two pods is really what the policies say; how many were open."""
    seen, opened = await cluster(mesh), 0
    for source in mesh.pods.values():
        targets = {f"{pod.address}:{port}": (pod, port) for pod in mesh.pods.values() for port in PORTS}
        for address, answer in (await reach(mesh, source.name, *targets)).items():
            pod, port = targets[address]
            allowed = seen.pod_to_pod(source.name, pod.name, port)
            opened += allowed
            assert answer == (pod.address if allowed else REFUSED), f"{source.name} -> {pod.name}:{port}"
    return opened


async def test_real_connections_agree_with_the_policies(closed: LocalMesh) -> None:
    between_pods = sum(len(list(pairs(closed, edge))) for edge in EDGES)
    within_pods = len(closed.pods) * len(PORTS)
    assert await check_agreement(closed) == between_pods + within_pods


# --- what people change


async def override(
    mesh: LocalMesh, effect: str, source: str, destination: str, port: int | None, expires_in: float | None = None
) -> dict[str, Any]:
    """Make an override; every sidecar has it when this returns."""
    made = await mesh.api.post(
        "/overrides",
        {
            "effect": effect, "from": source, "to": destination, "port": port,
            "owner": "tests", "reason": "a test of what it does", "expires_in": expires_in,
        },
    )  # fmt: skip
    assert made["pushed"]
    return made["override"]


async def revoke(mesh: LocalMesh, made: dict[str, Any]) -> None:
    done = await mesh.api.delete(f"/overrides/{made['id']}", {"owner": "tests", "reason": "the test is over"})
    assert done["pushed"]
    assert done["override"]["state"] == "revoked"


async def was_cut_by(held: Iterable[Held], changed_at: float) -> None:
    """These connections have ended, and nothing was answered any more that was asked after ``changed_at``."""
    for one in held:
        await one.cut()
        assert one.answers()[-1] < changed_at


async def is_alive(mesh: LocalMesh, held: Held) -> None:
    since = time.time()

    async def answered() -> bool:
        assert not held.is_cut
        return held.answers()[-1] > since

    await mesh.wait_for(answered, "a connection to go on that nobody meant")


async def reasons(mesh: LocalMesh, edge: EdgeKey, direction: str) -> set[tuple[str, str]]:
    """Who refused connections of an edge, and why, once any is reported."""

    async def reported() -> list[dict[str, Any]]:
        return await refusals(mesh, edge, direction)

    flows = await mesh.wait_for(reported, f"a report of who refused {edge}")
    return {(flow["reporter"], flow["reason"]) for flow in flows}


async def test_a_new_deny_ends_live_connections_at_once_and_refuses_new_ones(closed: LocalMesh) -> None:
    mesh = closed
    edge = EdgeKey.parse("shop/front->shop/api:8080/TCP")
    addresses = [f"{pod.address}:8080" for pod in mesh.pods_of(edge.destination)]
    async with (
        Held(mesh, "shop/front-0", addresses[0]) as first,
        Held(mesh, "shop/front-0", addresses[1]) as second,
        Held(mesh, "shop/front-0", "${service:canary}:9090") as other,
    ):
        made = await override(mesh, "deny", "shop/front", "shop/api", 8080)
        try:
            await was_cut_by((first, second), time.time())
            for address in (*addresses, "${service:api}:8080"):
                assert not await reaches(mesh, "shop/front-0", address)
            await is_alive(mesh, other)
            await check_agreement(mesh)
            assert ("front-0", "deny-override") in await reasons(mesh, edge, "outbound")
        finally:
            await revoke(mesh, made)
    assert await reaches(mesh, "shop/front-0", "${service:api}:8080")


async def test_an_allow_opens_one_connection_and_its_expiry_closes_it(closed: LocalMesh) -> None:
    mesh = closed
    target = "${service:front.shop}:8080"
    assert not await reaches(mesh, "data/db-0", target)
    made = await override(mesh, "allow", "data/db", "shop/front", 8080, expires_in=8)
    async with Held(mesh, "data/db-0", target) as held:
        assert await held.cut() >= made["expires_at"]
    assert not await reaches(mesh, "data/db-0", target)
    overrides = (await mesh.api.get("/overrides"))["overrides"]
    assert next(each["state"] for each in overrides if each["id"] == made["id"]) == "expired"
    await check_agreement(mesh)


async def test_revoking_an_allow_closes_what_it_had_opened(closed: LocalMesh) -> None:
    mesh = closed
    target = "${service:front.shop}:9090"
    made = await override(mesh, "allow", "data/db", "shop/front", None)
    async with Held(mesh, "data/db-0", target) as held:
        await check_agreement(mesh)
        await revoke(mesh, made)
        await was_cut_by((held,), time.time())
    assert not await reaches(mesh, "data/db-0", target)


async def test_quarantine_cuts_a_workload_off_and_keeps_it_in_touch(closed: LocalMesh) -> None:
    mesh = closed
    db = "${service:db.data}:5432"
    async with (
        Held(mesh, "shop/front-0", "${service:api}:8080") as into,
        Held(mesh, "shop/api-1", db) as out_of,
        Held(mesh, "data/api-0", "${service:db}:5432") as other,
    ):
        await mode(mesh, "shop/api", "quarantine")
        try:
            await was_cut_by((into, out_of), time.time())
            for pod in ("shop/api-0", "shop/api-1"):
                assert not await reaches(mesh, pod, db)
            assert not await reaches(mesh, "shop/front-0", "${service:api}:8080")
            await is_alive(mesh, other)
            await check_agreement(mesh)
            # It hears of policy, and is heard.
            sidecars = (await mesh.api.get("/status"))["sidecars"]
            held = [one for one in sidecars if one["workload"] == "shop/api"]
            assert len(held) == 2
            assert all(one["connected"] and one["held_version"] == one["pushed_version"] > 0 for one in held)
            # Its peers do not even let their connections out: that holds were its own sidecar broken into.
            peers = await reasons(mesh, EdgeKey.parse("shop/front->shop/api:8080/TCP"), "outbound")
            assert ("front-0", "no-rule") in peers
            outbound = await reasons(mesh, EdgeKey.parse("shop/api->data/db:5432/TCP"), "outbound")
            assert {("api-0", "quarantine"), ("api-1", "quarantine")} <= outbound
            seen = await cluster(mesh)
            for pod in ("shop/api-0", "shop/api-1"):
                assert {each[1:] for each in seen.allowed() if each[0] == pod} == {
                    ("hedgerow-system/hedgerow-controller-0", port, "TCP") for port in (15012, 15013)
                }
                assert not {each for each in seen.allowed() if each[1] == pod}
        finally:
            await mode(mesh, "shop/api", "enforce")
    assert await reaches(mesh, "shop/front-0", "${service:api}:8080")
    assert await reaches(mesh, "shop/api-1", db)


async def mode(mesh: LocalMesh, workload: str, wanted: str) -> None:
    asked = {"workload": workload, "direction": "both", "mode": wanted}
    done = await mesh.api.post("/modes", {**asked, "owner": "tests", "reason": "a test of what it does"})
    assert done["pushed"]
    assert done["workloads"] == [workload]
