"""Applied NetworkPolicies: what they allow by the independent evaluator, what is said of them, and their steps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import yaml

from controller.compiler import inventory_files
from controller.kube.client import Client
from controller.kube.kinds import NETWORK_POLICIES
from controller.kube.network_policy_plan import DEFAULT_DENY
from controller.kube.settings import KubernetesSettings
from e2e.apiserver.custom_resources import access_override, put, segmentation_mode
from e2e.apiserver.meshes import WORKLOADS, Mesh, eventually_async, inventory
from e2e.harness.apiserver import ApiServer
from tests.networkpolicy.evaluator import Cluster

OURS = {"hedgerow-front", "hedgerow-cart", "hedgerow-redis", DEFAULT_DENY}
#: Pods that the inventory does not list: what everybody needs, and somebody whom nobody knows.
BESIDE = """
- {apiVersion: v1, kind: Namespace, metadata: {name: kube-system}}
- {apiVersion: v1, kind: Namespace, metadata: {name: hedgerow-system}}
- apiVersion: v1
  kind: Pod
  metadata: {name: dns, namespace: kube-system, labels: {k8s-app: kube-dns}}
  spec: {containers: [{name: a, image: a}]}
  status: {podIP: 10.9.1.1, podIPs: [{ip: 10.9.1.1}], phase: Running}
- apiVersion: v1
  kind: Pod
  metadata: {name: controller, namespace: hedgerow-system, labels: {app.kubernetes.io/name: hedgerow-controller}}
  spec: {containers: [{name: a, image: a}]}
  status: {podIP: 10.9.1.2, podIPs: [{ip: 10.9.1.2}], phase: Running}
"""


def judged(namespace: str, policies: list[dict[str, Any]]) -> Cluster:
    """What these policies allow, with the inventory's pods, the cluster's own and an intruder."""
    known = inventory(namespace)
    files = inventory_files(known.workloads.values(), known.instances.values())
    manifests = [each for text in files.values() for each in yaml.safe_load_all(text)] + yaml.safe_load(BESIDE)
    intruder = {"metadata": {"name": "intruder", "namespace": namespace, "labels": {"app": "unknown"}}}
    manifests.append(
        {"apiVersion": "v1", "kind": "Pod", **intruder, "spec": {"containers": [{"name": "a", "image": "a"}]}}
        | {"status": {"podIP": "10.9.1.3", "podIPs": [{"ip": "10.9.1.3"}], "phase": "Running"}}
    )
    policies = [{**each, "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy"} for each in policies]
    return Cluster([*manifests, *policies])


def check_needs(namespace: str, policies: list[dict[str, Any]]) -> None:
    """Names, the control plane and probes work for every workload, whatever else is closed."""
    cluster = judged(namespace, policies)
    for name in WORKLOADS:
        pod = f"{namespace}/{name}-0"
        assert cluster.pod_to_pod(pod, "kube-system/dns", 53, "UDP"), name
        assert cluster.pod_to_pod(pod, "kube-system/dns", 53), name
        assert cluster.pod_to_pod(pod, "hedgerow-system/controller", 15012), name
        assert cluster.address_to_pod("192.0.2.1", pod, 15020), name


async def close(mesh: Mesh, **spec: Any) -> None:
    """Ask for a closed namespace in which front may call cart."""
    front = {"from": {"workload": "front"}, "to": {"workload": "cart"}}
    await asyncio.to_thread(put, mesh.server, access_override(mesh.namespace, "front-cart", **front))
    given = {"ingress": "enforce", "egress": "enforce", "networkPolicy": "apply"} | spec
    await asyncio.to_thread(put, mesh.server, segmentation_mode(mesh.namespace, **given))


async def kubectl(mesh: Mesh, *arguments: str) -> str:
    return await asyncio.to_thread(mesh.server.kubectl, *arguments, "-n", mesh.namespace)


async def policies(mesh: Mesh) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in await mesh.client.every(NETWORK_POLICIES, mesh.namespace)}


async def applied(mesh: Mesh, names: set[str] | None = None) -> dict[str, dict[str, Any]]:
    """Wait until exactly these are there, and the status says so."""
    wanted = OURS if names is None else names

    async def there() -> dict[str, dict[str, Any]]:
        found = await policies(mesh)
        return found if set(found) == wanted else {}

    found = await eventually_async(there)
    await said(mesh, "Applied")
    return dict(found)


async def said(mesh: Mesh, reason: str, name: str = "default") -> dict[str, Any]:
    """Wait until the SegmentationMode's status gives this reason; gives the status."""

    async def status() -> dict[str, Any]:
        document = await asyncio.to_thread(mesh.found, "SegmentationMode", name)
        found = document.get("status") or {}
        conditions = {each["type"]: each for each in found.get("conditions") or ()}
        return found if conditions.get("NetworkPolicies", {}).get("reason") == reason else {}

    return dict(await eventually_async(status))


def message(status: dict[str, Any]) -> str:
    return str(next(each["message"] for each in status["conditions"] if each["type"] == "NetworkPolicies"))


class Witness:
    """Sees every change of the NetworkPolicies of a namespace, in order."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, str]] = []
        self.states: list[list[dict[str, Any]]] = []

    async def watch(self, server: ApiServer, namespace: str, watching: asyncio.Event) -> None:
        held: dict[str, dict[str, Any]] = {}
        async with Client(KubernetesSettings(kubeconfig=server.kubeconfig)) as client:
            version = ""
            async for page in client.pages(NETWORK_POLICIES, namespace):
                held |= {each["metadata"]["name"]: each for each in page.items}
                version = page.resource_version
            async for group in client.watch(NETWORK_POLICIES, version, namespace):
                watching.set()
                for event in group:
                    if event.kind == "BOOKMARK":
                        continue
                    name = event.object["metadata"]["name"]
                    if event.kind == "DELETED":
                        del held[name]
                    else:
                        held[name] = event.object
                    self.steps.append((event.kind, name))
                    self.states.append(list(held.values()))


@asynccontextmanager
async def witnessed(server: ApiServer, namespace: str) -> AsyncIterator[Witness]:
    witness, watching = Witness(), asyncio.Event()
    task = asyncio.create_task(witness.watch(server, namespace, watching))
    try:
        await asyncio.wait(
            [task, asyncio.ensure_future(watching.wait())], return_when=asyncio.FIRST_COMPLETED, timeout=60
        )
        if task.done():
            task.result()
        assert watching.is_set(), "nobody sees what happens"
        yield witness
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
