"""Pods out of ``hedgerow inject``, where no webhook is: what becomes of one whose capture somebody has taken out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from e2e.harness.cluster import Cluster
from e2e.harness.pods import IDLE, apply, logs, python_pod
from e2e.harness.programs import run, until


def injected(cluster: Cluster, folder: Path, pod: dict[str, Any]) -> dict[str, Any]:
    """What the command makes of a pod for this cluster."""
    config = folder / "injector.yaml"
    injection = {"image": cluster.sidecar_image, "image_pull_policy": "IfNotPresent"}
    config.write_text(json.dumps({"certificate": "x", "key": "y", "injection": injection}))
    command = [sys.executable, "-m", "hedgerow", "inject", "-f", "-", "--config", config]
    made: dict[str, Any] = yaml.safe_load(run(command, stdin=json.dumps(pod)))
    return made


def test_a_pod_whose_connections_are_not_captured_never_starts_its_application(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    """Validation has no rights, asks nobody, and fails the pod before anything of the application runs."""
    pod = injected(cluster, tmp_path, python_pod("loose", IDLE, cluster.controller_image, restartPolicy="Never"))
    capture, *others = pod["spec"]["initContainers"]
    assert [each["name"] for each in (capture, *others)] == [
        "hedgerow-capture",
        "hedgerow-validation",
        "hedgerow-sidecar",
    ]
    pod["spec"]["initContainers"] = others
    trust = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "hedgerow-trust"}}
    apply(cluster, namespace, trust | {"data": {"trust-bundle.pem": "none"}}, pod)
    path = f"/api/v1/namespaces/{namespace}/pods/loose"

    until(lambda: cluster.request("GET", path)["status"]["phase"] == "Failed", "the pod failed")

    status = cluster.request("GET", path)["status"]
    validation, sidecar = status["initContainerStatuses"]
    assert validation["name"] == "hedgerow-validation"
    assert validation["state"]["terminated"]["exitCode"] != 0
    assert "was not redirected" in logs(cluster, namespace, "loose", container="hedgerow-validation")
    for never in (sidecar, *status["containerStatuses"]):
        assert not never.get("started"), never["name"]
        assert not never.get("containerID"), never["name"]
