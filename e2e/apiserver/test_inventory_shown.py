"""What people and machines are shown of how a controller follows its cluster: the command, the web API, the metrics."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from controller.kube.client import Client
from controller.kube.kinds import DEPLOYMENTS, PODS
from e2e.apiserver.custom_resources import install_crds
from e2e.apiserver.measured import Measured, controller
from e2e.apiserver.meshes import away
from e2e.apiserver.simulated import Kubelet, deploy, deployment, pod_spec, settings
from e2e.harness.apiserver import ApiServer

ORPHAN = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {
        "name": "orphan",
        "ownerReferences": [
            {"apiVersion": "apps/v1", "kind": "Foreign", "name": "x", "uid": "1", "controller": False},
            {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "claimed", "uid": "none", "controller": True},
        ],
    },
}


def watch_of(status: dict[str, Any], resource: str) -> dict[str, Any]:
    (found,) = [each for each in status["cluster"]["watches"] if each["resource"] == resource]
    return dict(found)


async def test_a_pod_that_is_nobodys_and_an_api_server_that_is_away(
    apiserver: ApiServer, namespace: str, tmp_path: Path
) -> None:
    await asyncio.to_thread(install_crds, apiserver)
    async with Client(settings(apiserver.kubeconfig)) as client:
        kubelet = Kubelet(client)
        await kubelet.heartbeat()
        await deploy(client, namespace, deployment("cart", 2))
        await kubelet.run_all(namespace, "app=cart", 2)
        await deploy(client, "kube-system", deployment("metrics-server", 1))
        await kubelet.run_all("kube-system", "app=metrics-server", 1)
        # the garbage collector removes pods of an owner that is not there, unless somebody keeps them
        orphan = {**ORPHAN, "metadata": {**ORPHAN["metadata"], "finalizers": ["example.com/kept"]}, "spec": pod_spec()}
        await client.create(PODS, orphan, namespace)
        await kubelet.run(namespace, "orphan")
        with controller(apiserver.kubeconfig, tmp_path) as measured:
            await measured.until(lambda: measured.get("/status")["cluster"]["ready"])
            name = f"pod {namespace}/orphan: its owner, ReplicaSet claimed, is not there"
            await measured.until(lambda: name in measured.get("/status")["cluster"]["problems"])
            status = measured.get("/status")
            assert status["cluster"]["troubles"]["pod"] >= 1
            assert watch_of(status, "pods")["objects"] >= 3
            assert watch_of(status, "pods")["lists"] == 1
            said = await asyncio.to_thread(measured.command, "status")
            assert name in " ".join(said.split())
            assert f"{watch_of(status, 'pods')['objects']} pods" in said
            policies = measured.get("/policy/export?format=json")["policies"]
            assert "kube-system/metrics-server" in {each["workload"] for each in status["workloads"]}
            spaces = {each["metadata"]["namespace"] for each in policies}
            assert namespace in spaces
            assert "kube-system" not in spaces, "whoever applies what is exported must not close the cluster's own"
            found = measured.metrics()
            assert found['hedgerow_controller_cluster_problems{about="pod"}'] == status["cluster"]["troubles"]["pod"]
            assert found['hedgerow_controller_cluster_objects{resource="deployments.apps"}'] >= 1
            await away_and_back(apiserver, measured)
            await measured.until(lambda: watch_of(measured.get("/status"), "pods")["watching"] is not None)
            assert watch_of(measured.get("/status"), "pods")["watches"] > watch_of(status, "pods")["watches"]
        await client.patch(PODS, "orphan", {"metadata": {"finalizers": None}}, namespace)
        await client.delete(DEPLOYMENTS, "metrics-server", "kube-system")


async def away_and_back(apiserver: ApiServer, measured: Measured) -> None:
    """Take the API server away until the controller says so, and give it back."""
    async with away(apiserver):
        await measured.until(lambda: "does not answer" in measured.command("status"))
        status = measured.get("/status")
        assert watch_of(status, "pods")["watching"] is None
        assert status["cluster"]["ready"], "what it knew stays in force"
        part = next(each for each in status["cluster"]["parts"] if each["name"] == "watch pods")
        assert part["failures"] >= 1
        assert "the API server" in part["problem"]
        assert part["failed"] is not None
        assert measured.metrics()['hedgerow_controller_cluster_watch_quiet_seconds{resource="pods"}'] > 0
