"""Pods come, go, are replaced and break under steady traffic, each request of which is accounted for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from e2e.cluster import traffic
from e2e.cluster.installed import INJECTION, Hedgerow
from e2e.cluster.restarts import Restarts
from e2e.cluster.traffic import Traffic
from e2e.harness.cluster import Cluster
from e2e.harness.pods import apply
from e2e.harness.programs import until

pytestmark = pytest.mark.timeout(600)

PLACE = "moving"
#: Seconds that the caller's sidecar may take to hear, on a machine that does ten other things, that a tunnel was cut.
NOTICED = 30.0
EDGE = f"{PLACE}/caller->{PLACE}/server:{traffic.PORT}/TCP"


@pytest.fixture(scope="module")
def calls(cluster: Cluster, installed: Hedgerow) -> Iterator[Traffic]:
    """A caller and its server in a namespace that lets nothing else through."""
    cluster.create_namespace({INJECTION: "enabled"}, name=PLACE)
    image = cluster.controller_image
    apply(cluster, PLACE, *traffic.server(image))
    rolled(cluster, "server")
    apply(cluster, PLACE, traffic.caller(image))
    rolled(cluster, "caller")
    made = Traffic(cluster, PLACE)
    try:
        made.answered()
        installed.until_edges({EDGE}, "active")
        installed.segmentation(PLACE, ingress="enforce", egress="enforce", inboundTLS="strict", networkPolicy="apply")
        yield made
    except Exception as error:
        raise AssertionError(f"{error}\n{installed.state()}") from error
    finally:
        cluster.delete_namespace(PLACE)


def pods(cluster: Cluster, name: str) -> list[dict[str, Any]]:
    return traffic.pods(cluster, PLACE, name)


def rolled(cluster: Cluster, name: str) -> None:
    traffic.rolled(cluster, PLACE, name)


def names(cluster: Cluster, name: str) -> set[str]:
    return {each["metadata"]["name"] for each in pods(cluster, name)}


def test_no_request_fails_while_pods_are_replaced(cluster: Cluster, calls: Traffic) -> None:
    before = names(cluster, "server")
    with calls.without_failure():
        cluster.kubectl("-n", PLACE, "rollout", "restart", "deployment/server")
        rolled(cluster, "server")
    after = names(cluster, "server")
    assert not before & after
    assert set(calls.count().by) >= before | after


def test_no_request_fails_while_one_becomes_ten_and_one_again(cluster: Cluster, calls: Traffic) -> None:
    with calls.without_failure():
        cluster.kubectl("-n", PLACE, "scale", "deployment/server", "--replicas=10")
        rolled(cluster, "server")
        ten = names(cluster, "server")
        until(lambda: ten <= set(calls.count().by), "all ten answering")
        cluster.kubectl("-n", PLACE, "scale", "deployment/server", "--replicas=1")
        rolled(cluster, "server")
    assert len(ten) == 10


def container(pod: dict[str, Any], name: str) -> dict[str, Any]:
    status = pod["status"]
    found = [*status.get("initContainerStatuses", ()), *status["containerStatuses"]]
    return next(dict(each) for each in found if each["name"] == name)


def is_ready(pod: dict[str, Any]) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"]["conditions"])


@pytest.mark.parametrize("which", ["server", "hedgerow-sidecar"])
def test_a_container_that_is_killed_loses_what_was_under_way_in_it_and_nothing_else(
    cluster: Cluster, calls: Traffic, restarts: Restarts, which: str
) -> None:
    """As when memory is short. Of what has begun afterwards nothing fails: the other pod is there."""
    if not cluster.ours:
        pytest.skip("a process of a pod can not be killed from outside on a cluster of somebody else")
    cluster.kubectl("-n", PLACE, "scale", "deployment/server", "--replicas=2")
    rolled(cluster, "server")
    until(lambda: names(cluster, "server") <= set(calls.count().by), "both answering")
    before = calls.count()
    victim = pods(cluster, "server")[0]
    name = victim["metadata"]["name"]
    ran = {each: container(victim, each)["restartCount"] for each in ("server", "hedgerow-sidecar")}
    restarts.meant.add(f"{PLACE}/{name}/{which}")
    gone_at = cluster.kill(container(victim, which)["containerID"])

    def again() -> bool:
        [now] = [each for each in pods(cluster, "server") if each["metadata"]["name"] == name]
        return container(now, which)["restartCount"] > ran[which] and is_ready(now)

    until(again, f"{name} to be ready again")
    answers = calls.count().by[name]
    until(lambda: calls.count().by[name] > answers, f"{name} answering again")
    after = calls.count()
    [now] = [each for each in pods(cluster, "server") if each["metadata"]["name"] == name]
    assert container(now, which)["lastState"]["terminated"]["exitCode"] == 137
    restarted = {each: container(now, each)["restartCount"] - times for each, times in ran.items()}
    assert restarted == {each: int(each == which) for each in ran}
    lost = after.since(before)
    assert len(lost) <= traffic.CALLERS, lost  # each has one request under way at a time
    assert [each for each in lost if each["at"] > gone_at + NOTICED] == []
