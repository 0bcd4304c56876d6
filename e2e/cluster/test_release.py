"""Hedgerow is upgraded, rolled back and taken away under traffic. The last module: there is no Hedgerow after it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.cluster import traffic
from e2e.cluster.installed import INJECTION, SYSTEM, Hedgerow
from e2e.cluster.restarts import Restarts
from e2e.cluster.traffic import Traffic
from e2e.harness.cluster import Cluster
from e2e.harness.pods import IDLE, apply, get, python_pod, wait_ready
from e2e.harness.programs import until

pytestmark = pytest.mark.timeout(600)

PLACE = "steady"
EDGE = f"{PLACE}/caller->{PLACE}/server:{traffic.PORT}/TCP"
#: What the controller may hold on a cluster of this size, MiB: half as much again as the documentation measured.
CONTROLLER_MEMORY = 330
#: Labels of what Helm and the controller make, as kubectl prints them.
_MARKS = ("hedgerow.dev/", "app.kubernetes.io/part-of:hedgerow", "app.kubernetes.io/managed-by:hedgerow")
#: Records of what happened, which nobody owns and which end by themselves.
_RECORDS = ("events", "events.events.k8s.io")


@pytest.fixture(scope="module")
def calls(cluster: Cluster, installed: Hedgerow) -> Iterator[Traffic]:
    """A caller and its server, and somebody who may not call it."""
    cluster.create_namespace({INJECTION: "enabled"}, name=PLACE)
    image = cluster.controller_image
    apply(cluster, PLACE, *traffic.server(image, replicas=2), python_pod("stranger", IDLE, image))
    traffic.rolled(cluster, PLACE, "server")
    apply(cluster, PLACE, traffic.caller(image))
    traffic.rolled(cluster, PLACE, "caller")
    wait_ready(cluster, PLACE, "stranger")
    made = Traffic(cluster, PLACE)
    made.answered()
    installed.until_edges({EDGE}, "active")
    installed.segmentation(PLACE, ingress="enforce", egress="enforce", inboundTLS="strict", networkPolicy="report")
    yield made
    cluster.delete_namespace(PLACE)


def stranger_is_refused(cluster: Cluster) -> bool:
    return get(cluster, PLACE, "stranger", "http://server/", seconds=10).startswith("failed:")


def sidecars(cluster: Cluster) -> set[str]:
    """The images of the server's sidecars, but for those of pods that end."""
    path = f"/api/v1/namespaces/{PLACE}/pods?labelSelector=app%3Dserver"
    pods = [pod for pod in cluster.request("GET", path)["items"] if "deletionTimestamp" not in pod["metadata"]]
    containers = [each for pod in pods for each in pod["spec"]["initContainers"]]
    return {each["image"] for each in containers if each["name"] == "hedgerow-sidecar"}


def test_the_controller_has_not_grown(cluster: Cluster, installed: Hedgerow, calls: Traffic) -> None:
    read = ["python", "-c", "print(open('/proc/1/status').read())"]
    status = cluster.kubectl("-n", SYSTEM, "exec", "deployment/hedgerow-controller", "--", *read)
    [resident] = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")]
    assert int(resident) / 1024 < CONTROLLER_MEMORY


def test_no_request_fails_while_hedgerow_is_upgraded_and_rolled_back(
    cluster: Cluster, installed: Hedgerow, calls: Traffic
) -> None:
    assert stranger_is_refused(cluster)
    assert sidecars(cluster) == {cluster.sidecar_image}
    values = installed.values()
    values["controller"] |= {"logLevel": "debug", "svidLifetime": 1800}
    values["sidecar"] |= {"settings": {"log_level": "debug"}}
    newer = cluster.sidecar_image
    if cluster.ours:  # nobody's cluster but ours takes an image by another name
        newer = cluster.tag(cluster.sidecar_image, "newer")
        values["sidecar"]["image"] |= {"tag": "newer"}
        cluster.tag(cluster.controller_image, "newer")
        values["controller"]["image"] |= {"tag": "newer"}
    with calls.without_failure():
        installed.upgrade(values)
        assert sidecars(cluster) == {cluster.sidecar_image}, "pods that run are left alone"
        cluster.kubectl("-n", PLACE, "rollout", "restart", "deployment/server")
        traffic.rolled(cluster, PLACE, "server")
        assert sidecars(cluster) == {newer}
    installed.connect()
    assert installed.edges()[EDGE]["state"] == "active", "what was learned is there"
    assert stranger_is_refused(cluster)

    with calls.without_failure():
        installed.roll_back(1)
        cluster.kubectl("-n", PLACE, "rollout", "restart", "deployment/server")
        traffic.rolled(cluster, PLACE, "server")
        assert sidecars(cluster) == {cluster.sidecar_image}
    installed.connect()
    assert installed.edges()[EDGE]["state"] == "active"
    assert stranger_is_refused(cluster)


def left_behind(cluster: Cluster) -> list[str]:
    """Every object of the cluster that has our name or our labels, but for our namespace, which a person deletes."""
    kinds = cluster.kubectl("api-resources", "--verbs=list", "-o", "name").split()
    listed = ",".join(each for each in kinds if each not in _RECORDS)
    columns = "KIND:.kind,NAMESPACE:.metadata.namespace,NAME:.metadata.name,LABELS:.metadata.labels"
    said = cluster.kubectl("get", listed, "--all-namespaces", "--no-headers", "-o", f"custom-columns={columns}")
    found = []
    for line in said.splitlines():
        kind, namespace, name, labels = line.split(maxsplit=3)
        labels = labels.replace(f"{INJECTION}:", "")  # a namespace keeps the label that a person gave it
        ours = "hedgerow" in name or any(mark in labels for mark in _MARKS)
        if ours and (kind, name) not in (("Namespace", SYSTEM), ("PersistentVolume", "hedgerow-state")):
            found.append(f"{kind} {namespace}/{name}")
    return found


def test_no_request_fails_when_hedgerow_is_taken_away_and_nothing_of_it_is_left(
    cluster: Cluster, installed: Hedgerow, calls: Traffic
) -> None:
    assert any(each.startswith(f"ConfigMap {PLACE}/") for each in left_behind(cluster)), "the look sees what is there"
    with calls.without_failure():
        installed.uninstall()
        left: list[str] = []

        def none_left() -> bool:
            nonlocal left
            left = left_behind(cluster)
            return not left

        try:
            until(none_left, "everything of ours gone")
        except Exception as error:
            raise AssertionError(f"{error}: {json.dumps(left, indent=1)}") from None
    assert stranger_is_refused(cluster), "pods keep their last policy"


def test_a_sidecar_that_is_started_again_without_hedgerow_goes_on_by_its_last_policy(
    cluster: Cluster, installed: Hedgerow, calls: Traffic, restarts: Restarts
) -> None:
    """Neither controller nor ConfigMap is there, and no Service by which they could be found."""
    if not cluster.ours:
        pytest.skip("a process of a pod can not be killed from outside on a cluster of somebody else")
    if cluster.kubectl("-n", SYSTEM, "get", "deployments", "-o", "name"):
        installed.uninstall()
    victim = traffic.pods(cluster, PLACE, "server")[0]["metadata"]["name"]
    restarts.meant.add(f"{PLACE}/{victim}/hedgerow-sidecar")

    def sidecar() -> dict[str, Any]:
        [pod] = [each for each in traffic.pods(cluster, PLACE, "server") if each["metadata"]["name"] == victim]
        statuses = pod["status"]["initContainerStatuses"]
        return next(dict(each) for each in statuses if each["name"] == "hedgerow-sidecar")

    before = sidecar()
    assert before["ready"]
    cluster.kill(before["containerID"])

    def again() -> bool:
        now = sidecar()
        return bool(now["restartCount"] > before["restartCount"] and now["ready"])

    until(again, f"the sidecar of {victim} to be ready again", seconds=180)
    answers = calls.count().by[victim]
    until(lambda: calls.count().by[victim] > answers, f"{victim} answering again", seconds=180)
    with calls.without_failure():
        assert stranger_is_refused(cluster)
    said = cluster.kubectl("-n", PLACE, "logs", victim, "-c", "hedgerow-sidecar")
    assert "stored certificate for spiffe://" in said
