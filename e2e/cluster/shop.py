"""The demo's shop as ordinary manifests: what a team would have written that has never heard of a mesh."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from e2e.harness.pods import RESTRICTED
from hedgerow.local.description import WorkloadSpec
from hedgerow.local.shop.layout import EXPECTED, REPORT, SHOP, SHOPPER

__all__ = ["EXPECTED", "NAMESPACES", "manifests"]

NAMESPACES = ("data", "shop")
WORKLOADS = (*SHOP, REPORT, SHOPPER)

_SERVICE = re.compile(r"\$\{service:([a-z0-9.-]+)\}")


def manifests(image: str, rate: int = 6) -> list[dict[str, Any]]:
    """Everything, in an order in which it can be applied. The namespaces have to be there.

    :param image: holds the shop's programs
    :param rate: requests a second that the shopper makes
    """
    return [each for spec in WORKLOADS for each in _of(spec, image, rate)]


def _of(spec: WorkloadSpec, image: str, rate: int) -> Iterator[dict[str, Any]]:
    name, namespace = spec.ref.name, spec.ref.namespace
    metadata = {"name": name, "namespace": namespace, "labels": dict(spec.labels)}
    yield {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}}
    for served in spec.services:
        ports = [
            {"name": spec.ports[0].name, "port": port, "targetPort": target, "appProtocol": spec.ports[0].app_protocol}
            for port, target in served.ports
        ]
        yield {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {**metadata, "name": served.name},
            "spec": {"selector": dict(spec.labels), "ports": ports},
        }
    template = {"metadata": {"labels": dict(spec.labels)}, "spec": _pod(spec, image, rate)}
    kind = "StatefulSet" if spec.kind == "StatefulSet" else "Deployment"
    body: dict[str, Any] = {
        "replicas": spec.replicas,
        "selector": {"matchLabels": dict(spec.labels)},
        "template": template,
    }
    if kind == "StatefulSet":
        body["serviceName"] = name
    yield {"apiVersion": "apps/v1", "kind": kind, "metadata": metadata, "spec": body}


def _pod(spec: WorkloadSpec, image: str, rate: int) -> dict[str, Any]:
    assert spec.program is not None
    program = spec.program
    env = {
        key: _SERVICE.sub(lambda found: found[1], value).replace("${listen}", "0.0.0.0")
        for key, value in program.env.items()
    }
    if spec is SHOPPER:
        env["RATE"] = str(rate)
    container: dict[str, Any] = {
        "name": spec.ref.name,
        "image": image,
        "command": ["python", *program.argv[1:]],
        "env": [{"name": key, "value": value} for key, value in env.items()],
        "securityContext": {**RESTRICTED, "runAsUser": 10001, "runAsGroup": 10001},
        "resources": {"requests": {"cpu": "10m", "memory": "48Mi"}},
    }
    if spec.ports:
        port = spec.ports[0].number
        container["ports"] = [{"name": spec.ports[0].name, "containerPort": port}]
        container["readinessProbe"] = {"tcpSocket": {"port": port}, "periodSeconds": 2, "failureThreshold": 30}
    return {
        "serviceAccountName": spec.service_account,
        "terminationGracePeriodSeconds": 10,
        "containers": [container],
    }
