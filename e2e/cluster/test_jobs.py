"""Pods that are to end: Jobs with a sidecar complete, and a CronJob is one workload, whatever pods it had."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from e2e.cluster import traffic
from e2e.cluster.installed import INJECTION, Hedgerow
from e2e.harness.cluster import Cluster
from e2e.harness.errors import HarnessError
from e2e.harness.pods import RESTRICTED, apply
from e2e.harness.programs import until

pytestmark = pytest.mark.timeout(600)

#: What a Job does: three calls, each of which has to be answered.
_WORK = """
import urllib.request
for _ in range(3):
    print(urllib.request.urlopen("http://server/", timeout=30).status, flush=True)
"""
#: With a plain sidecar a Job says when it is done, as the documentation has it.
_QUIT = 'urllib.request.urlopen("http://127.0.0.1:15000/quitquitquit", data=b"", timeout=30)\n'


@pytest.fixture(scope="module")
def place(cluster: Cluster, installed: Hedgerow) -> Iterator[str]:
    """A labelled namespace with a server."""
    name = cluster.create_namespace({INJECTION: "enabled"}, name="batch")
    apply(cluster, name, *traffic.server(cluster.controller_image))
    cluster.kubectl("-n", name, "rollout", "status", "deployment/server", "--timeout=200s", seconds=210)
    yield name
    cluster.delete_namespace(name)


def template(cluster: Cluster, program: str, annotations: dict[str, str]) -> dict[str, Any]:
    container = {
        "name": "work",
        "image": cluster.controller_image,
        "command": ["python", "-c", program],
        "securityContext": {**RESTRICTED, "runAsUser": 10001, "runAsGroup": 10001},
    }
    spec = {"restartPolicy": "Never", "containers": [container]}
    return {"backoffLimit": 0, "template": {"metadata": {"annotations": annotations}, "spec": spec}}


def completed(cluster: Cluster, namespace: str, name: str) -> dict[str, Any]:
    """Wait until a Job is complete; its pod."""
    path = f"/apis/batch/v1/namespaces/{namespace}/jobs/{name}"

    def over() -> bool:
        conditions = cluster.request("GET", path)["status"].get("conditions", ())
        return any(each["type"] in ("Complete", "Failed") and each["status"] == "True" for each in conditions)

    pods = f"/api/v1/namespaces/{namespace}/pods?labelSelector=job-name%3D{name}"
    try:
        until(over, f"job {name} at its end", seconds=150)
    except HarnessError as error:
        statuses = [each["status"] for each in cluster.request("GET", pods)["items"]]
        raise AssertionError(f"{error}\n{statuses}") from None
    assert cluster.request("GET", path)["status"].get("succeeded") == 1
    [pod] = cluster.request("GET", pods)["items"]
    return dict(pod)


@pytest.mark.parametrize(
    ("name", "program", "annotations", "kind"),
    [
        ("native", _WORK, {}, "initContainers"),
        ("plain", _WORK + _QUIT, {"hedgerow.dev/native-sidecar": "false"}, "containers"),
    ],
)
def test_a_job_with_a_sidecar_completes(
    cluster: Cluster,
    installed: Hedgerow,
    place: str,
    name: str,
    program: str,
    annotations: dict[str, str],
    kind: str,
) -> None:
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": template(cluster, program, annotations),
    }
    apply(cluster, place, job)
    pod = completed(cluster, place, name)
    assert "hedgerow-sidecar" in [each["name"] for each in pod["spec"][kind]]
    statuses = [*pod["status"]["initContainerStatuses"], *pod["status"]["containerStatuses"]]
    ended = {each["name"]: each["state"]["terminated"]["exitCode"] for each in statuses}
    assert set(ended.values()) == {0}, ended
    assert cluster.kubectl("-n", place, "logs", f"job/{name}", "-c", "work").split() == ["200"] * 3
    # it is a workload as long as it is there: its edges go with it, what was counted stays
    told = f"/flows?workload={place}/{name}"
    for reporter in (pod["metadata"]["name"], "server-"):
        until(
            lambda who=reporter: proved(installed.call("GET", told)["flows"], who) == 3, f"the calls told by {reporter}"
        )


def proved(flows: list[dict[str, Any]], reporter: str) -> int:
    """Connections in flows that a pod has reported, whose ends had shown who they are."""
    return sum(each["connections"] for each in flows if each["reporter"].startswith(reporter) and each["verified"])


def test_what_a_cron_job_does_is_learned_as_one_workload(cluster: Cluster, installed: Hedgerow, place: str) -> None:
    job = {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": "tick"},
        "spec": {"schedule": "* * * * *", "jobTemplate": {"spec": template(cluster, _WORK, {})}},
    }
    apply(cluster, place, job)
    edge = f"{place}/tick->{place}/server:{traffic.PORT}/TCP"
    installed.until_edges({edge}, "active", seconds=200)
    assert installed.edges()[edge]["source_identities"]
    owners = f"/apis/batch/v1/namespaces/{place}/jobs"
    made = [each for each in cluster.request("GET", owners)["items"] if each["metadata"].get("ownerReferences")]
    assert made, "made by the schedule"
    sources = {each.partition("->")[0] for each in installed.edges()}
    assert {each for each in sources if each.startswith(f"{place}/tick")} == {f"{place}/tick"}, "not one a run"
