"""Steady traffic between two workloads, with an account of every request.

The programs are ordinary ones (``programs/``): the server ends when it is told to, without a hook and without waiting
for anybody to have heard of it. What has to hold requests back until they find somebody is the mesh.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.harness.cluster import Cluster
from e2e.harness.pods import RESTRICTED
from e2e.harness.programs import until

_PROGRAMS = Path(__file__).parent / "programs"
PORT = 8080
#: How many requests are under way at once: two callers of each of three kinds.
CALLERS = 6
#: Requests that have to be answered before, and again after, what is done to the pods.
_PROOF = 40


@dataclass(frozen=True, slots=True)
class Count:
    """What a caller has counted since it began.

    :param again: answered at the second try, because the server had ended a kept connection
    :param failures: the first and the last of them, with what was tried, when and why it failed
    :param by: answers by the pod that gave them
    """

    sent: int
    answered: int
    again: int
    failed: int
    failures: tuple[dict[str, Any], ...]
    by: Mapping[str, int]

    def since(self, before: Count) -> list[dict[str, Any]]:
        """The failures that came after an earlier count; of very many the last ones."""
        lost = self.failed - before.failed
        return list(self.failures[-lost:]) if lost else []

    @classmethod
    def read(cls, line: str) -> Count:
        told = json.loads(line)
        told["failures"] = tuple(told["failures"])
        return cls(**told)


def server(image: str, *, replicas: int = 1, name: str = "server") -> list[dict[str, Any]]:
    """A Deployment that answers, with its Service."""
    container = _container(name, image, "server.py")
    container["ports"] = [{"name": "http", "containerPort": PORT}]
    container["readinessProbe"] = {"tcpSocket": {"port": PORT}, "periodSeconds": 1, "failureThreshold": 60}
    ports = [{"name": "http", "port": 80, "targetPort": PORT, "appProtocol": "http"}]
    service = {"selector": {"app": name}, "ports": ports}
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": service},
        _deployment(name, container, replicas),
    ]


def caller(image: str, *, of: str = "server", name: str = "caller") -> dict[str, Any]:
    """A Deployment of one that calls ``of`` without end."""
    container = _container(name, image, "caller.py")
    container["env"] = [{"name": "SERVER", "value": f"{of}:80"}]
    return _deployment(name, container, 1)


def _container(name: str, image: str, program: str) -> dict[str, Any]:
    return {
        "name": name,
        "image": image,
        "command": ["python", "-c", (_PROGRAMS / program).read_text()],
        "securityContext": {**RESTRICTED, "runAsUser": 10001, "runAsGroup": 10001},
        "resources": {"requests": {"cpu": "50m", "memory": "48Mi"}},
    }


def _deployment(name: str, container: Mapping[str, Any], replicas: int) -> dict[str, Any]:
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"terminationGracePeriodSeconds": 30, "containers": [dict(container)]},
            },
        },
    }


def pods(cluster: Cluster, namespace: str, name: str) -> list[dict[str, Any]]:
    """The pods of a Deployment of this module's."""
    return list(cluster.request("GET", f"/api/v1/namespaces/{namespace}/pods?labelSelector=app%3D{name}")["items"])


def rolled(cluster: Cluster, namespace: str, name: str) -> None:
    """Wait until a Deployment is as it should be, and the pods that it was are gone."""
    command = ["-n", namespace, "rollout", "status", f"deployment/{name}", "--timeout=200s"]
    cluster.kubectl(*command, seconds=210)
    wanted = cluster.request("GET", f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}")["spec"]["replicas"]
    what = f"{wanted} pods of {name}, and none that ends"
    until(lambda: len(pods(cluster, namespace, name)) == wanted, what)


class Traffic:
    """What one caller says of its requests."""

    def __init__(self, cluster: Cluster, namespace: str, name: str = "caller") -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._name = name

    def count(self) -> Count:
        """What it has counted by now; nothing before it has begun."""
        command = ["-n", self._namespace, "logs", f"deployment/{self._name}", "-c", self._name, "--tail=1"]
        said = self._cluster.kubectl(*command).strip()
        return Count.read(said) if said else Count(0, 0, 0, 0, (), {})

    def answered(self, more: int = _PROOF, *, seconds: float = 240) -> None:
        """Wait until so many more requests were answered."""
        goal = self.count().answered + more
        until(lambda: self.count().answered >= goal, f"{more} more answers", seconds=seconds)

    @contextlib.contextmanager
    def without_failure(self) -> Iterator[Count]:
        """Requests are answered before, after, and all of them between.

        :returns: the count at the beginning
        """
        self.answered()
        before = self.count()
        yield before
        self.answered()
        after = self.count()
        lost = after.failed - before.failed
        told = json.dumps(after.since(before), indent=1)
        assert not lost, f"{lost} of {after.sent - before.sent} requests failed:\n{told}"
        # whatever is under way now is answered soon, or would have been among the failures
        waiting = after.sent - after.answered - after.failed
        assert waiting <= CALLERS, f"{waiting} requests are under way, by {CALLERS} callers"
