"""Pods that nobody runs: made at the real API server, with the status that a kubelet would write."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from controller.inventory import Inventory
from controller.kube.client import Client
from controller.kube.errors import Conflicting, KubernetesError, NoSuchObject
from controller.kube.inventory.following import Following
from controller.kube.kinds import DEPLOYMENTS, ENDPOINT_SLICES, NAMESPACES, NODES, PODS, SERVICES
from controller.kube.settings import KubernetesSettings
from controller.kube.supervision import Supervision

TRUST_DOMAIN = "hedgerow.test"
#: How long anything may take on a machine that does ten other things, seconds.
PATIENCE = 120.0
#: The node that all of them are on. Endpoints of pods on no node are not published.
NODE = "simulated"
#: Numbers of addresses, each given once in a session: two pods with one address have none.
_GIVEN = itertools.count()


def settings(kubeconfig: Path, **changes: Any) -> KubernetesSettings:
    return KubernetesSettings(kubeconfig=kubeconfig, **{"coalesce": 0.02, "request_timeout": 10.0, **changes})


def pod_spec(*, sidecar: bool = True, port: int = 8080, account: str = "default", **spec: Any) -> dict[str, Any]:
    app = {"name": "app", "image": "app", "ports": [{"name": "http", "containerPort": port}]}
    containers = [app, *([{"name": "hedgerow-sidecar", "image": "sidecar"}] if sidecar else [])]
    given = {"serviceAccountName": account, "automountServiceAccountToken": False, "nodeName": NODE}
    return {"containers": containers, **given, **spec}


def deployment(name: str, replicas: int = 1, *, labels: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    mine = {"app": name} if labels is None else labels
    template = {"metadata": {"labels": mine}, "spec": pod_spec(**spec)}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": mine}, "template": template},
    }


def service(name: str, selector: dict[str, str] | None, port: int = 80, target: int | str = "http", **spec: Any) -> Any:
    ports = [{"name": "web", "port": port, "targetPort": target, "appProtocol": "http"}]
    given = {"selector": selector} if selector else {}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"ports": ports, **given, **spec},
    }


def endpoint_slice(name: str, of: str, port: int, *addresses: str, app_protocol: str = "") -> dict[str, Any]:
    """One that somebody wrote by hand, for a service without a selector."""
    ports = [{"name": "web", "port": port} | ({"appProtocol": app_protocol} if app_protocol else {})]
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": of}},
        "addressType": "IPv4",
        "ports": ports,
        "endpoints": [{"addresses": [address]} for address in addresses],
    }


class Kubelet:
    """Writes what a kubelet would write of pods. Addresses are given once, and never again."""

    def __init__(self, client: Client, network: str = "10.244") -> None:
        self.client = client
        self._network = network

    async def heartbeat(self) -> None:
        """Let the node be there and well. Pods of a node that was silent for some 40 s are taken to be ill."""
        with contextlib.suppress(Conflicting):
            node = {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": NODE},
                "spec": {"podCIDR": "10.244.0.0/16"},
            }
            await self.client.create(NODES, node)
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        well = {"type": "Ready", "status": "True", "reason": "Simulated", "lastHeartbeatTime": now}
        status = {"conditions": [well], "addresses": [{"type": "InternalIP", "address": "192.168.77.1"}]}
        await self.client.patch(NODES, NODE, {"status": status}, subresource="status")

    @contextlib.asynccontextmanager
    async def alive(self) -> AsyncIterator[None]:
        """Let the node be well for as long as this takes."""

        async def beat() -> None:
            while True:
                with contextlib.suppress(KubernetesError):
                    await self.heartbeat()
                await asyncio.sleep(10)

        await self.heartbeat()
        task = asyncio.create_task(beat())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def address(self) -> str:
        number = next(_GIVEN)
        return f"{self._network}.{number // 250}.{number % 250 + 1}"

    async def run(
        self, namespace: str, name: str, *, ready: bool = True, address: str = "", also: tuple[str, ...] = ()
    ) -> str:
        """Let a pod run. :param also: its address of the other IP family :returns: its address"""
        at = address or self.address()
        condition = {
            "type": "Ready",
            "status": "True" if ready else "False",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        status = {"phase": "Running", "podIP": at, "podIPs": [{"ip": each} for each in (at, *also)]}
        status["conditions"] = [condition]
        await self.client.patch(PODS, name, {"status": status}, namespace, subresource="status")
        return at

    async def run_all(self, namespace: str, labels: str, count: int) -> dict[str, str]:
        """Wait until so many pods are there, and let all of them run. :returns: addresses by name"""
        pods = await self.wait_for(namespace, labels, count)
        return {name: await self.run(namespace, name) for name in pods}

    async def end_all(self, namespace: str, labels: str) -> None:
        """Be there for the end of pods that somebody has taken away: end all that are told to, until there is none.

        Whoever ends them before they are told to has their ReplicaSet make others, which nobody would ever end.
        """
        async with asyncio.timeout(PATIENCE):
            while found := await self.client.every(PODS, namespace, labels=labels):
                for each in found:
                    if "deletionTimestamp" not in each["metadata"]:
                        continue
                    with contextlib.suppress(NoSuchObject):
                        await self.client.delete(PODS, each["metadata"]["name"], namespace, grace=0)
                await asyncio.sleep(0.1)

    async def wait_for(self, namespace: str, labels: str, count: int) -> list[str]:
        async with asyncio.timeout(PATIENCE):
            while True:
                found = await self.client.every(PODS, namespace, labels=labels)
                if len(found) == count:
                    return sorted(each["metadata"]["name"] for each in found)
                await asyncio.sleep(0.1)


async def label_namespace(client: Client, namespace: str) -> None:
    await client.patch(NAMESPACES, namespace, {"metadata": {"labels": {"hedgerow.dev/injection": "enabled"}}})


async def deploy(client: Client, namespace: str, *objects: dict[str, Any]) -> None:
    """Create Deployments, Services and EndpointSlices."""
    kinds = {"Deployment": DEPLOYMENTS, "Service": SERVICES, "EndpointSlice": ENDPOINT_SLICES, "Pod": PODS}
    for each in objects:
        await client.create(kinds[each["kind"]], each, namespace)


class Watcher:
    """Follows the cluster as the controller does, and keeps every inventory's successor."""

    def __init__(self, kubeconfig: Path, **changes: Any) -> None:
        self.inventory = Inventory(TRUST_DOMAIN)
        self.taken = 0
        self.client = Client(settings(kubeconfig, **changes))
        self.following = Following(self.client, settings(kubeconfig, **changes), TRUST_DOMAIN, self._take)
        self.supervision = Supervision(self.following.parts, time.monotonic)
        self._next = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def resume(self) -> None:
        """Begin, or go on after :meth:`pause` from what is held."""
        self._task = asyncio.create_task(self.supervision.run())

    async def pause(self) -> None:
        """Watch no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _take(self, inventory: Inventory) -> None:
        self.inventory, self.taken = inventory, self.taken + 1
        event, self._next = self._next, asyncio.Event()
        event.set()

    async def until_true(self, condition: Callable[[], object]) -> None:
        """Wait for what nobody announces, such as a lost connection."""
        async with asyncio.timeout(PATIENCE):
            while not condition():  # noqa: ASYNC110  # nobody announces it
                await asyncio.sleep(0.05)

    async def until(self, condition: Callable[[Inventory], object], what: str = "") -> Inventory:
        """Wait for an inventory that fulfils ``condition``."""
        try:
            async with asyncio.timeout(PATIENCE):
                while not condition(self.inventory):
                    await self._next.wait()
        except TimeoutError:
            waiting = self.supervision.waiting()
            raise AssertionError(f"{what or 'it'} did not come; waiting for {waiting}: {self.inventory}") from None
        return self.inventory


@contextlib.asynccontextmanager
async def watching(kubeconfig: Path, **changes: Any) -> AsyncIterator[Watcher]:
    watcher = Watcher(kubeconfig, **changes)
    watcher.resume()
    try:
        yield watcher
    finally:
        await watcher.pause()
        await watcher.client.close()
