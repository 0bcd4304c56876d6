"""An engine that goes by a real API server's resources, with a written inventory: what two suites share."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from controller.authoring import ModeRequest
from controller.engine import Engine, EngineSettings
from controller.errors import NotReady
from controller.inventory import Inventory, read_inventory
from controller.kube.client import Client
from controller.kube.network_policies import NetworkPolicyKeeper
from controller.kube.resources.author import ResourceAuthor
from controller.kube.resources.departed import GONE
from controller.kube.resources.learned import LearnedPolicyWriter
from controller.kube.resources.sync import ResourceSync
from controller.kube.settings import KubernetesSettings
from controller.kube.supervision import Part, Supervision
from controller.overrides import OverrideRequest
from controller.store import SqliteStore
from controller.view import Override, OverrideState
from e2e.apiserver.custom_resources import path_of
from e2e.harness.apiserver import ApiServer
from e2e.harness.errors import ApiError
from graph.model import Mode, Protocol, Verdict, WorkloadRef

TRUST_DOMAIN = "hedgerow.test"
WORKLOADS = ("front", "cart", "redis")


def inventory(namespace: str, workloads: tuple[str, ...] = WORKLOADS, also: str = "") -> Inventory:
    """Meshed workloads of one namespace, and of ``web``.

    :param also: another namespace with the same ones
    """
    named = [(each, name) for each in (namespace, also) if each for name in workloads] + [("web", "front")]
    lines = ["apiVersion: hedgerow.dev/v1alpha1", "kind: Inventory", "workloads:"]
    lines += [f"- {{namespace: {space}, name: {name}, labels: {{app: {name}}}}}" for space, name in named]
    lines += ["instances:"]
    lines += [
        f"- {{name: {name}-0, workload: {space}/{name}, address: 10.9.0.{index}}}"
        for index, (space, name) in enumerate(named, 1)
    ]
    return read_inventory("\n".join(lines).encode(), TRUST_DOMAIN)


class Mesh:
    """An engine on a database, and the parts that join it to the API server."""

    def __init__(
        self,
        apiserver: ApiServer,
        namespace: str,
        path: Path,
        settings: EngineSettings,
        *,
        fencing: bool = False,
        gone: float = GONE,
    ) -> None:
        self.server = apiserver
        self.namespace = namespace
        self.engine = Engine(SqliteStore(path / "controller.db"), TRUST_DOMAIN, settings)
        self.client = Client(KubernetesSettings(kubeconfig=apiserver.kubeconfig, request_timeout=5.0))
        self.sync = ResourceSync(self.client, self.engine, time.time, gone=gone)
        self.author = ResourceAuthor(self.client, self.engine, self.sync, time.time, settings)
        self.keeper = NetworkPolicyKeeper(
            self.client, self.engine, self.sync, "hedgerow-system", time.time, lambda: True, gone=2.0
        )
        self.learned = LearnedPolicyWriter(self.client, self.engine, lambda: True, pause=0.2)
        parts: list[Part] = [self.sync, self.keeper, self.learned] if fencing else [self.sync]
        self.supervision = Supervision(parts, time.monotonic, random.Random(1))

    def ref(self, name: str) -> WorkloadRef:
        return WorkloadRef(self.namespace, name)

    def asked(self, source: str = "front", destination: str = "cart", **changes: Any) -> OverrideRequest:
        given: dict[str, Any] = {
            "effect": Verdict.ALLOW,
            "source": self.ref(source),
            "destination": self.ref(destination),
            "port": 8080,
            "protocol": Protocol.TCP,
            "owner": "anna",
            "reason": "release 7",
            "expires_in": None,
        }
        return OverrideRequest(**(given | changes))

    def mode(self, target: WorkloadRef | str, mode: Mode | None = None, **changes: Any) -> ModeRequest:
        given: dict[str, Any] = {
            "target": target,
            "direction": None,
            "mode": mode,
            "inbound_tls": None,
            "network_policy": None,
            "owner": "anna",
            "reason": "closing it",
        }
        return ModeRequest(**(given | changes))

    def found(self, kind: str, name: str) -> dict[str, Any]:
        return self.server.request("GET", path_of(kind, self.namespace, name))

    def listed(self, kind: str) -> list[dict[str, Any]]:
        return list(self.server.request("GET", path_of(kind, self.namespace))["items"])

    async def deleted(self, kind: str, name: str) -> None:
        """Delete an object, if it is there."""
        try:
            await asyncio.to_thread(self.server.request, "DELETE", path_of(kind, self.namespace, name))
        except ApiError as error:
            if error.status != 404:
                raise

    def active(self) -> list[Override]:
        now = time.time()
        here = [each for each in self.engine.view.overrides.values() if each.destination.namespace == self.namespace]
        return [each for each in here if each.state(now) is OverrideState.ACTIVE]

    async def told(self, kind: str, name: str, state: str) -> dict[str, Any]:
        """Wait until a resource's status says this."""

        async def status() -> dict[str, Any]:
            document = await asyncio.to_thread(self.found, kind, name)
            found = document.get("status") or {}
            return found if found.get("state") == state else {}

        return await eventually_async(status)


async def eventually(met: Callable[[], Any], seconds: float = 120.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := met()):
        assert time.monotonic() < deadline, "the condition was not met in time"
        await asyncio.sleep(0.05)
    return found


async def eventually_async(met: Callable[[], Awaitable[Any]], seconds: float = 120.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := await met()):
        assert time.monotonic() < deadline, "the condition was not met in time"
        await asyncio.sleep(0.05)
    return found


@asynccontextmanager
async def running(
    apiserver: ApiServer,
    namespace: str,
    path: Path,
    *,
    known: Inventory | None = None,
    fencing: bool = False,
    gone: float = GONE,
    **settings: Any,
) -> AsyncIterator[Mesh]:
    """:param known: the inventory; None: what the store kept
    :param fencing: also keep NetworkPolicies
    :param gone: seconds for which what went with a definition stays after that was made anew
    """
    mesh = Mesh(apiserver, namespace, path, EngineSettings(**settings), fencing=fencing, gone=gone)
    serving = asyncio.create_task(mesh.engine.run())
    try:
        await mesh.engine.started()
    except NotReady:
        await serving  # says why
        raise
    if known is not None:
        await mesh.engine.set_inventory(known, "test")
    following = asyncio.create_task(mesh.supervision.run())
    try:
        yield mesh
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await mesh.client.close()
        await mesh.engine.stop()
        await serving


@asynccontextmanager
async def away(apiserver: ApiServer) -> AsyncIterator[None]:
    """No API server, until the block ends. Not in another thread: what a thread starts ends with it."""
    apiserver.stop()
    try:
        yield
    finally:
        apiserver.start()
