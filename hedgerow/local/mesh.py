"""A whole mesh on this machine, as the demo and the tests use it: declare workloads, start, ask, break things, stop.

    async with LocalMesh(workloads) as mesh:          # controller, applications and sidecars run and are ready
        done = await mesh.pod("shop/front-0").exec(["curl", "-s", "http://cart:8000/"])
        status = await mesh.api.get("/status")
        await mesh.kill_controller()

Whatever runs is a real program at the other side of a process boundary: the controller and the sidecars are started
by their commands with configuration files, and everything else goes through the web API. Every wait has an end; every
process is stopped by its own id.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import yaml

from graph.model import WorkloadRef
from hedgerow.client import Access, Client
from hedgerow.local.description import PlacedPod, PlacedService, WorkloadSpec
from hedgerow.local.errors import LocalMeshError, NotReady
from hedgerow.local.loopback import LoopbackSite
from hedgerow.local.network import NamespaceSite
from hedgerow.local.placement import Placement
from hedgerow.local.pod import POLL, Pod
from hedgerow.local.processes import Process, python
from hedgerow.local.sandbox import is_sandboxed
from hedgerow.local.site import Role, Site

#: Programs that start at the same moment. More would only take turns on few processors.
_AT_ONCE = 4


class LocalMesh:
    """One controller and any number of pods.

    :param workloads: what runs; more can be added later
    :param site: where; namespaces when this process is in a sandbox, loopback addresses otherwise
    :param controller_settings: of ``controller.yaml``, beside what the mesh decides itself
    :param sidecar_settings: likewise for every ``sidecar.yaml``
    :param web: the listening socket of the web API; None opens one on 127.0.0.1 in this process' network
    :param connector: makes the API client's sockets, when ``web`` is in another network
    """

    def __init__(
        self,
        workloads: Iterable[WorkloadSpec] = (),
        *,
        site: Site | None = None,
        controller_settings: Mapping[str, Any] | None = None,
        sidecar_settings: Mapping[str, Any] | None = None,
        web: socket.socket | None = None,
        connector: Callable[[], aiohttp.BaseConnector] | None = None,
    ) -> None:
        self._declared = list(workloads)
        self._site: Site = site or (NamespaceSite() if is_sandboxed() else LoopbackSite())
        self._controller_settings = dict(controller_settings or {})
        self._sidecar_settings = dict(sidecar_settings or {})
        self._web = web
        self._connector = connector
        self._placement = Placement(self._site)
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._clean_up = AsyncExitStack()
        self._api: Client | None = None
        self.controller = Process("the controller", self.root / "controller.log")

    # --- what there is

    @property
    def captures(self) -> bool:
        """Whether applications are kept from going around their sidecars."""
        return self._site.captures

    @property
    def root(self) -> Path:
        """Where state and logs are; gone when the mesh has stopped."""
        return self._site.root

    @property
    def controller_state(self) -> Path:
        return self.root / "controller"

    @property
    def controller_address(self) -> str:
        return self._site.controller_address

    @property
    def pods(self) -> Mapping[str, Pod]:
        """By name, ``namespace/name``."""
        return self._placement.pods

    def pod(self, name: str) -> Pod:
        """:raises LocalMeshError: when there is none of that name"""
        return self._placement.pod(name)

    def pods_of(self, workload: WorkloadRef) -> list[Pod]:
        return self._placement.pods_of(workload)

    def placed_pods(self) -> list[PlacedPod]:
        return [pod.placed for pod in self._placement.pods.values()]

    @property
    def services(self) -> Sequence[PlacedService]:
        return tuple(self._placement.services)

    @property
    def server(self) -> str:
        """The address of the web API."""
        assert self._web is not None, "the mesh was not started"
        host, port = self._web.getsockname()
        return f"http://{host}:{port}"

    @property
    def token(self) -> str:
        """The operator's token."""
        return (self.controller_state / "operator.token").read_text().strip()

    @property
    def api(self) -> Client:
        """A client with the operator's token."""
        assert self._api is not None, "the mesh was not started"
        return self._api

    # --- life

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start everything that was declared, and wait until it is ready.

        :raises NotReady: naming what did not come up, with its last words
        :raises CommandFailed: when a program that prepares something failed
        """
        self._clean_up.push_async_callback(self._site.close)
        await self._site.open()
        await self._site.add_controller()
        if self._web is None:
            self._web = socket.create_server(("127.0.0.1", 0))
        self._clean_up.callback(self._web.close)
        self._site.private_directory(self.controller_state, Role.CONTROLLER)
        self._placement.place(self._declared)
        self._placement.write_inventory()
        await self.start_controller()
        await self._bring_up(list(self._placement.pods.values()))

    async def stop(self) -> None:
        """Stop everything and remove every trace. May be called at any moment, and twice."""
        if self._api is not None:
            await self._api.__aexit__(None, None, None)
            self._api = None
        await asyncio.gather(*(pod.stop() for pod in self._placement.pods.values()), self.controller.stop())
        await self._clean_up.aclose()

    # --- the controller

    async def start_controller(self, deadline: float = 60.0) -> None:
        """Start the controller, or start it again, and wait until it serves.

        :raises NotReady: with its last words
        """
        assert self._web is not None
        settings = {
            "state_dir": str(self.controller_state),
            "inventory": str(self._placement.inventory),
            "grpc_listen": f"{self._site.controller_address}:15012",
            "issuer_listen": f"{self._site.controller_address}:15013",
            "web_listen": f"fd:{self._web.fileno()}",
            "inventory_interval": 0.2,
            **self._controller_settings,
        }
        config = self.root / "controller.yaml"
        config.write_text(yaml.safe_dump(settings, sort_keys=False))
        config.chmod(0o644)
        argv = [*python(), "-m", "controller", "--config", str(config)]
        await self._site.start(self.controller, None, Role.CONTROLLER, argv, pass_fds=[self._web.fileno()])
        await self._wait_for_controller(deadline)
        bundle = self.root / "trust-bundle.pem"
        bundle.write_bytes((self.controller_state / "trust-bundle.pem").read_bytes())
        bundle.chmod(0o644)
        if self._api is None:
            self._api = await Client(Access(self.server, self.token), connector=self._connector).__aenter__()

    async def _wait_for_controller(self, deadline: float) -> None:
        said = "nothing"
        connector = self._connector() if self._connector is not None else None
        timeout = aiohttp.ClientTimeout(total=2.0)  # the socket is open before anybody accepts from it
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            try:
                async with asyncio.timeout(deadline):
                    while True:
                        if not self.controller.running:
                            raise self._controller_failed(f"ended with {self.controller.returncode}")
                        try:
                            async with session.get(f"{self.server}/readyz") as response:
                                said = f"{response.status} {(await response.text())[:300]}"
                                if response.status == 200:
                                    return
                        except (aiohttp.ClientError, OSError, TimeoutError) as error:
                            said = f"{type(error).__name__}: {error}"
                        await asyncio.sleep(POLL)
            except TimeoutError:
                raise self._controller_failed(f"is not ready after {deadline:g} s: {said}") from None

    def _controller_failed(self, complaint: str) -> NotReady:
        return NotReady(f"the controller {complaint}\nits last words:\n{self.controller.tail() or '(none)'}")

    async def kill_controller(self) -> None:
        """``kill -9`` the controller; :meth:`start_controller` starts it again on the same state."""
        await self.controller.kill()

    # --- pods

    async def add(self, spec: WorkloadSpec) -> list[Pod]:
        """Add a workload and start its pods; returns when they are ready."""
        pods = self._placement.place([spec])
        await self._publish(pods)
        await self._bring_up(pods)
        return pods

    async def scale(self, workload: WorkloadRef, replicas: int) -> None:
        """Start further pods of a workload, or remove its newest, until it has so many.

        A new pod is connected to once it listens, and one that goes no more from the moment that it is told to end.

        :raises NotReady: when one did not come up; what came up stays
        """
        pods = self.pods_of(workload)
        if replicas <= len(pods):
            await self.remove(*(pod.name for pod in pods[replicas:]))
            return
        added = self._placement.place_more(workload, replicas - len(pods))
        self._placement.unready.update(pod.name for pod in added)
        await self._publish(added)
        await self._bring_up(added)
        self._placement.unready.difference_update(pod.name for pod in added)
        await self._publish(added)

    async def remove(self, *names: str) -> None:
        """Stop pods, take them out of the inventory and remove their places."""
        pods = [self.pod(name) for name in names]
        self._placement.unready.update(names)
        self._placement.write_inventory()
        await asyncio.gather(*(pod.stop() for pod in pods))
        self._placement.forget(names)  # only now: until its end a sidecar has something to report
        self._placement.write_inventory()
        for pod in pods:
            await self._site.remove(pod.placed)

    async def kill_sidecar(self, name: str) -> None:
        """``kill -9`` a pod's sidecar; :meth:`start_sidecar` starts it again on the same state."""
        await self.pod(name).sidecar.kill()

    async def start_sidecar(self, name: str, *, wait: bool = True) -> None:
        """Start a pod's sidecar, with a new join token when the controller answers; it may be away."""
        pod = self.pod(name)
        if self.controller.running:
            await self._give_token(pod)
        await pod.start_sidecar()
        if wait:
            await pod.wait_ready()

    async def wait_for[T](self, condition: Callable[[], Awaitable[T]], what: str, deadline: float = 30.0) -> T:
        """Look at an asynchronous condition until it holds.

        :param condition: called without arguments, awaited; its first true answer is returned
        :param what: what is waited for, for the error
        :raises NotReady: when it did not come to hold in ``deadline`` seconds
        """
        try:
            async with asyncio.timeout(deadline):
                while True:
                    if answer := await condition():
                        return answer
                    await asyncio.sleep(POLL)
        except TimeoutError:
            raise NotReady(f"waited {deadline:g} s in vain for {what}") from None

    # --- inside

    async def _publish(self, pods: Sequence[Pod]) -> None:
        """Have the controller know what there is to know of these pods."""
        self._placement.write_inventory()
        if listed := [pod for pod in pods if pod.placed.spec.listed]:
            await self.wait_for(lambda: self._is_known(listed), "the controller to take the new inventory")

    async def _is_known(self, pods: Sequence[Pod]) -> bool:
        known = (await self.api.get("/inventory"))["instances"]
        ready = {(instance["workload"], instance["name"]): instance["ready"] for instance in known}
        return all(
            ready.get((str(pod.placed.spec.ref), pod.placed.name)) is (pod.name not in self._placement.unready)
            for pod in pods
        )

    async def _bring_up(self, pods: Sequence[Pod]) -> None:
        await self._site.add([pod.placed for pod in pods], self._placement.services)
        try:
            async with asyncio.TaskGroup() as group:
                for pod in pods:
                    group.create_task(self._start_pod(pod))
        except ExceptionGroup as failures:
            first = failures.exceptions[0]  # the others were cancelled because of it, or fail likewise
            if not isinstance(first, LocalMeshError):
                raise first from None
            raise NotReady(f"{first}\nthe controller's last words:\n{self.controller.tail(10)}") from None

    async def _start_pod(self, pod: Pod) -> None:
        """Capture, sidecar, application: it can neither go around its sidecar nor call before there is one."""
        async with self._turns:
            if pod.meshed:
                pod.prepare_sidecar(self._sidecar_base())
                await pod.install_capture()
                await self._give_token(pod)
                await pod.start_sidecar()
                await pod.wait_ready()
            await pod.start_application()
            await pod.wait_listening()

    def _sidecar_base(self) -> dict[str, Any]:
        address = self._site.controller_address
        return {
            "controller": f"{address}:15012",
            "issuer": f"{address}:15013",
            "trust_domain": self._controller_settings.get("trust_domain", "hedgerow.local"),
            "trust_bundle": str(self.root / "trust-bundle.pem"),
            **self._sidecar_settings,
        }

    async def _give_token(self, pod: Pod) -> None:
        workload, instance = str(pod.placed.spec.ref), pod.placed.name
        made = await self.api.post("/join-tokens", {"workload": workload, "instance": instance, "expires_in": 300})
        pod.give_token(made["token"])
