"""The mesh in real pods: installed with Helm, injected, learned, enforced by the sidecars and by the cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from e2e.cluster import attempts, shop, strangers
from e2e.cluster.installed import INJECTION, SYSTEM, Hedgerow
from e2e.harness.cluster import Cluster
from e2e.harness.programs import until

pytestmark = pytest.mark.timeout(600)

EXPECTED = {str(edge) for edge in shop.EXPECTED}


@pytest.fixture(scope="module")
def mesh(cluster: Cluster, installed: Hedgerow) -> Iterator[Hedgerow]:
    """Hedgerow, and the shop in labelled namespaces."""
    for name in shop.NAMESPACES:
        cluster.create_namespace({INJECTION: "enabled"}, name=name)
    listed = {"apiVersion": "v1", "kind": "List", "items": shop.manifests(cluster.controller_image)}
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(listed))
    try:
        for name in shop.NAMESPACES:
            for kind in ("deployment", "statefulset"):
                cluster.kubectl("-n", name, "rollout", "status", kind, "--timeout=240s", seconds=250)
        yield installed
    except Exception as error:
        raise AssertionError(f"{error}\n{installed.state()}") from error
    finally:
        for name in shop.NAMESPACES:
            cluster.delete_namespace(name)


def pods(cluster: Cluster, namespace: str) -> list[dict[str, Any]]:
    return list(cluster.request("GET", f"/api/v1/namespaces/{namespace}/pods")["items"])


def test_every_pod_has_a_sidecar_and_is_ready(cluster: Cluster, mesh: Hedgerow) -> None:
    found = [pod for name in shop.NAMESPACES for pod in pods(cluster, name)]
    assert len(found) == sum(spec.replicas for spec in shop.WORKLOADS)
    for pod in found:
        containers = [each["name"] for each in pod["spec"]["initContainers"]]
        assert containers == ["hedgerow-capture", "hedgerow-validation", "hedgerow-sidecar"]
        ready = {each["type"]: each["status"] for each in pod["status"]["conditions"]}["Ready"]
        assert ready == "True", pod["metadata"]["name"]


def test_the_graph_is_complete_and_all_of_it_is_mutual_tls(mesh: Hedgerow) -> None:
    mesh.until_edges(EXPECTED, "active")
    edges = mesh.edges()
    for name in EXPECTED:
        edge = edges[name]
        # One that failed was proved if it came as far as the other sidecar, which had no application to give it to yet.
        worked = edge["connections"] - edge["failed"]
        assert 0 < worked <= edge["verified"] <= edge["connections"], json.dumps(edge, indent=1)
        assert edge["denied"] == 0, edge
        assert edge["source_identities"], edge


def test_hedgerow_check_finds_nothing_wrong(cluster: Cluster, mesh: Hedgerow) -> None:
    said = cluster.helm("test", "hedgerow", "-n", SYSTEM, "--timeout", "150s", seconds=170)
    assert "Succeeded" in said


def shopping(cluster: Cluster) -> dict[str, int]:
    """What the shopper has counted so far."""
    said = cluster.kubectl("-n", "shop", "logs", "deployment/shopper", "-c", "shopper", "--tail=1")
    return dict(json.loads(said.splitlines()[-1]))


def policies(cluster: Cluster) -> list[dict[str, Any]]:
    """Every NetworkPolicy of the shop's namespaces."""
    path = "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies"
    return [each for name in shop.NAMESPACES for each in cluster.request("GET", path.format(name))["items"]]


def agree(cluster: Cluster, how: str) -> None:
    """Every pair of workloads is tried with real connections: what was learned works, and nothing else."""
    wrong: set[str] = set()

    def agrees() -> bool:
        nonlocal wrong
        wrong = attempts.matrix(cluster) ^ EXPECTED
        return not wrong

    try:
        until(agrees, f"connections to agree with what was learned, enforced {how}", seconds=240)
    except Exception as error:
        raise AssertionError(f"{error}: {sorted(wrong)}") from None


def test_what_was_learned_is_enforced_by_the_sidecars_alone(cluster: Cluster, mesh: Hedgerow) -> None:
    for namespace in shop.NAMESPACES:
        mesh.segmentation(namespace, ingress="enforce", egress="enforce", inboundTLS="strict", networkPolicy="off")
    agree(cluster, "by the sidecars")


@pytest.fixture(scope="module")
def strangers_there(cluster: Cluster, mesh: Hedgerow) -> Iterator[None]:
    """An intruder, a compromised pod, and two under a stolen ServiceAccount, one of them with a sidecar."""
    with strangers.strangers(cluster):
        yield


@pytest.mark.usefixtures("strangers_there")
def test_the_shop_goes_on_and_strangers_get_nowhere(cluster: Cluster, mesh: Hedgerow) -> None:
    before = shopping(cluster)
    assert strangers.reached(cluster) == {}
    after = shopping(cluster)
    assert after["requests"] > before["requests"], (before, after)
    assert after["failed"] == before["failed"], (before, after)


@pytest.mark.usefixtures("strangers_there")
def test_a_stolen_service_account_buys_no_certificate_of_its_workload(cluster: Cluster) -> None:
    refused = strangers.certificates(cluster)
    assert set(refused.values()) == {"PERMISSION_DENIED"}, refused
    assert strangers.identity(cluster, "thief").endswith("/ns/shop/sa/front/wl/thief")


def test_an_override_opens_and_its_end_closes(cluster: Cluster, mesh: Hedgerow) -> None:
    [database] = [each for each in attempts.targets() if each.workload == "data/database"]

    def tried() -> str:
        return attempts.reached(cluster, "shop", "deployment/front", "front", [database])["data/database"]

    assert tried(), "front has never needed the database"
    body = {
        "apiVersion": "hedgerow.dev/v1alpha1",
        "kind": "AccessOverride",
        "metadata": {"name": "look-into-it", "namespace": "data"},
        "spec": {
            "effect": "allow",
            "from": {"namespace": "shop", "workload": "front"},
            "to": {"workload": "database"},
            "port": 5432,
            "ttl": "1h",
            "owner": "suite",
            "reason": "an incident",
        },
    }
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(body))
    until(lambda: not tried(), "the override to open")
    # It ends by the clock, a little later than now: a busy machine may take its time to find it open.
    path = "/apis/hedgerow.dev/v1alpha1/namespaces/data/accessoverrides/look-into-it"
    made = datetime.fromisoformat(cluster.request("GET", path)["metadata"]["creationTimestamp"])
    seconds = int((datetime.now(UTC) - made).total_seconds()) + 10
    ends = {"spec": {"ttl": f"{seconds}s"}}
    cluster.request("PATCH", path, ends, content_type="application/merge-patch+json")
    until(tried, "its end to close")
    status = cluster.request("GET", path)["status"]
    assert status["state"] == "Expired", status
    cluster.kubectl("-n", "data", "delete", "accessoverride", "look-into-it")


@pytest.mark.usefixtures("strangers_there")
def test_the_cluster_enforces_the_same_by_itself(cluster: Cluster, mesh: Hedgerow) -> None:
    """NetworkPolicy alone: sidecars allow everything, and the cluster's enforcer refuses what was not learned."""
    for namespace in shop.NAMESPACES:
        mesh.segmentation(namespace, ingress="enforce", egress="enforce", inboundTLS="strict", networkPolicy="apply")

    until(lambda: len(policies(cluster)) >= len(shop.WORKLOADS), "NetworkPolicies to be applied")
    agree(cluster, "by both")
    copies = [
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {
                "name": f"copy-of-{each['metadata']['name']}"[:63],
                "namespace": each["metadata"]["namespace"],
            },
            "spec": each["spec"],
        }
        for each in policies(cluster)
    ]
    # The copies come first and go last: what gets through while nobody refuses it would be learned.
    listed = {"apiVersion": "v1", "kind": "List", "items": copies}
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(listed))
    for namespace in shop.NAMESPACES:  # sidecars that only watch, and none of our own policies
        mesh.segmentation(namespace, ingress="audit", egress="audit", inboundTLS="strict", networkPolicy="report")
    until(lambda: len(policies(cluster)) == len(copies), "ours to be taken back")
    agree(cluster, "by NetworkPolicies alone")
    assert strangers.reached(cluster) == {}
    for namespace in shop.NAMESPACES:
        mesh.segmentation(namespace, ingress="enforce", egress="enforce", inboundTLS="strict", networkPolicy="report")
    agree(cluster, "by the sidecars again, and by the copies")
    cluster.kubectl("delete", "-f", "-", stdin=json.dumps(listed))
    agree(cluster, "by the sidecars again")


def test_a_controller_that_is_killed_changes_nothing(cluster: Cluster, mesh: Hedgerow) -> None:
    before = shopping(cluster)
    [pod] = [each["metadata"]["name"] for each in pods(cluster, SYSTEM) if "controller" in each["metadata"]["name"]]
    cluster.kubectl("-n", SYSTEM, "delete", "pod", pod, "--grace-period=0", "--force")
    agree(cluster, "while no controller is there")
    cluster.kubectl("-n", SYSTEM, "rollout", "status", "deployment/hedgerow-controller", "--timeout=120s", seconds=130)
    mesh.connect()
    agree(cluster, "with the next controller")
    after = shopping(cluster)
    assert after["failed"] == before["failed"], (before, after)
    assert {name for name in EXPECTED if mesh.edges()[name]["state"] == "active"} == EXPECTED
