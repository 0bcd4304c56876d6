"""One run of the controller: the only place that makes its parts and joins them.

The order at the start: the database (which also keeps a second controller out), tokens, keys, inventory, engine, and
only then the doors. At the end: no new calls, live streams ended, what waits is stored, the database closed.

A changed inventory file is read again by itself, or on SIGHUP. One that is wrong is refused as a whole with a message,
and the one before stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from controller import memory
from controller.anew import Anew
from controller.cluster_state import ClusterState
from controller.engine import Engine, EngineSettings
from controller.errors import ConfigError, ControllerError, InventoryError, NotReady
from controller.inspection import InspectionIssuer
from controller.inventory import Inventory, load_inventory
from controller.issuer import Issuer
from controller.keyring import Keyring
from controller.monitoring.server import MonitoringServer
from controller.rpc.directory import DirectoryService
from controller.rpc.gate import Gate
from controller.rpc.policy import PolicyService, SnapshotSigner
from controller.rpc.server import Server
from controller.rpc.services import AttestingIssuer, InspectionService, RenewingIssuer, TelemetryService
from controller.rpc.tap import TapDesk, TapService
from controller.settings import Address, InheritedSocket, Settings
from controller.store import SqliteStore
from controller.web.access import Tokens
from controller.web.live import Live
from controller.web.server import WebServer, application, hosts_of
from graph.version import VERSION
from graph.wire import hedgerow_pb2_grpc as rpc

if TYPE_CHECKING:
    from controller.kube.cluster import Cluster

log = logging.getLogger("hedgerow.controller")

DATABASE = "controller.db"

#: Seconds that single gRPC calls have when the controller stops. Streams do not end by themselves and are cut then.
GRACE_SECONDS = 0.5

#: In the audit log: changes that came with the inventory file.
FILE_ACTOR = "inventory-file"


class Controller:
    """One run, from settings to an orderly end.

    :param clock: seconds since the epoch
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._clock = clock
        self._stopping = asyncio.Event()
        self._anew: Anew | None = None
        #: Whether the run has ended so that the program begins anew (:mod:`controller.anew`).
        self.to_begin_anew = False
        self._reloading = asyncio.Event()
        self._reload_lock = asyncio.Lock()
        prepare_state_dir(settings.state_dir)
        store = SqliteStore(settings.state_dir / DATABASE)
        try:
            self._tokens = Tokens.open(settings.state_dir)
            self._keyring = Keyring.open(settings.state_dir, settings.trust_domain, settings.svid_lifetime, clock)
            self._inventory: _InventoryFile | None = None
            self._first_inventory: Inventory | None = None
            if settings.inventory is not None:
                self._inventory = _InventoryFile(settings.inventory, settings.trust_domain)
                self._first_inventory = self._inventory.read()
            self.engine = Engine(store, settings.trust_domain, EngineSettings(gate=settings.learning), clock)
            self._make_servers()
        except BaseException:
            store.close()
            raise

    def _make_servers(self) -> None:
        settings, engine, keyring, clock = self._settings, self.engine, self._keyring, self._clock

        self._gate = Gate(lambda: engine.view, lambda: keyring.bundle, clock, settings.streams_per_second)
        self.cluster: Cluster | None = None
        if settings.kubernetes is not None:
            from controller.kube.cluster import Cluster  # without one nobody needs it

            # a socket that somebody else opened ends with its number
            worth = 0 if isinstance(settings.web_listen, InheritedSocket) else settings.kubernetes.reclaim
            self._anew = Anew(worth, self.begin_anew, clock)
            self.cluster = Cluster(
                settings.kubernetes,
                engine,
                keyring,
                settings.trust_domain,
                self._gate.recheck,
                clock,
                self._anew.shrunk,
            )
        attestor = self.cluster.attestor if self.cluster is not None else None
        issuer = Issuer(keyring, engine, settings.svid_lifetime, clock, attestor=attestor)
        self.issuer_server = Server("issuer_listen", settings.issuer_listen, lambda: keyring.material, mutual=False)
        rpc.add_IssuerServicer_to_server(AttestingIssuer(issuer), self.issuer_server.grpc)
        self.grpc_server = Server("grpc_listen", settings.grpc_listen, lambda: keyring.material, mutual=True)
        mutual = self.grpc_server.grpc
        self.signed = signer = SnapshotSigner(lambda: keyring.signer)
        rpc.add_IssuerServicer_to_server(RenewingIssuer(issuer, self._gate), mutual)
        inspection = InspectionIssuer(settings.state_dir, settings.trust_domain, engine, clock)
        rpc.add_InspectionServicer_to_server(InspectionService(inspection, self._gate), mutual)
        rpc.add_TelemetryServicer_to_server(TelemetryService(engine, self._gate), mutual)
        rpc.add_PolicyServicer_to_server(PolicyService(engine, self._gate, signer), mutual)
        rpc.add_DirectoryServicer_to_server(DirectoryService(engine, self._gate), mutual)
        taps = TapDesk()
        rpc.add_TapServicer_to_server(TapService(taps, self._gate), mutual)
        live = Live(engine, clock, settings.sse_clients)
        app = application(
            engine,
            settings.learning,
            live,
            lambda: self._tokens,
            hosts_of(settings),
            clock,
            VERSION,
            taps,
            author=self.cluster.author if self.cluster is not None else None,
            network_policies=self.cluster.network_policies if self.cluster is not None else None,
            cluster=self._cluster_state,
        )
        self.web_server = WebServer(app, settings)
        self.monitoring_server: MonitoringServer | None = None
        if settings.monitoring_listen is not None:
            self.monitoring_server = self._monitoring(settings.monitoring_listen)

    def _monitoring(self, listen: Address) -> MonitoringServer:
        return MonitoringServer(
            listen,
            VERSION,
            lambda: self.engine.view,
            self._cluster_state,
        )

    def _cluster_state(self) -> ClusterState | None:
        return self.cluster.state() if self.cluster is not None else None

    # --- life

    def stop(self) -> None:
        """Begin the orderly end."""
        self.to_begin_anew = False
        self._stopping.set()

    def begin_anew(self) -> None:
        """Begin the orderly end, after which the program is to begin anew; unless it ends already."""
        if not self._stopping.is_set():
            self.to_begin_anew = True
            self._stopping.set()

    def reload(self) -> None:
        """Read inventory and tokens again, soon."""
        self._reloading.set()

    async def run(self, started: Callable[[], None] = lambda: None) -> None:
        """Serve until :meth:`stop`.

        :param started: called when everything serves
        :raises ControllerError: when the controller can not begin, or not go on; the message names the remedy
        """
        engine = asyncio.create_task(self.engine.run())
        background: list[asyncio.Task[None]] = []
        try:
            await self._open(engine)
            background = [asyncio.create_task(self._keyring.run()), asyncio.create_task(self._follow_files())]
            if self._anew is not None:
                self._anew.empty()
            if self.cluster is not None:
                background.append(asyncio.create_task(self.cluster.run()))
            started()
            stopping = asyncio.create_task(self._stopping.wait())
            await asyncio.wait([engine, stopping, *background], return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            for task in (engine, *background):
                if task.done():
                    task.result()
            if engine.done():
                raise NotReady("the engine has stopped by itself", remedy="see the log, and start the controller again")
            log.info("stopping")
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await self._close(engine)

    async def _open(self, engine: asyncio.Task[None]) -> None:
        try:
            await self.engine.started()
        except NotReady:
            await engine  # tells why
            raise
        if self.cluster is not None:
            await self.cluster.open()  # until it has caught up, the stored inventory is in force
        if self._first_inventory is not None:
            await self.engine.set_inventory(self._first_inventory, FILE_ACTOR)
        issuer = await self.issuer_server.start()
        grpc_address = await self.grpc_server.start()
        url = await self.web_server.start()
        if self.monitoring_server is not None:
            await self.monitoring_server.start()
        log.info("serving: gRPC on %s, issuer on %s, web on %s", grpc_address, issuer, url)

    async def _close(self, engine: asyncio.Task[None]) -> None:
        await self.web_server.stop()
        if self.monitoring_server is not None:
            await self.monitoring_server.stop()
        await asyncio.gather(self.issuer_server.stop(GRACE_SECONDS), self.grpc_server.stop(GRACE_SECONDS))
        if self.cluster is not None:
            await self.cluster.close()
        if not engine.done():
            await self.engine.stop()
        await asyncio.gather(engine, return_exceptions=True)

    # --- what changes while it runs

    async def _follow_files(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.inventory_interval):
                    await self._reloading.wait()
            asked = self._reloading.is_set()
            self._reloading.clear()
            if asked:
                self._reload_tokens()
            if self._inventory is not None:
                await self._reload_inventory(self._inventory, asked=asked)

    def _reload_tokens(self) -> None:
        try:
            self._tokens = Tokens.open(self._settings.state_dir)
        except ConfigError as error:
            log.error("the tokens were not read again, the old ones stay: %s", error)

    async def _reload_inventory(self, file: _InventoryFile, *, asked: bool) -> None:
        try:
            inventory = await asyncio.to_thread(file.read_if_changed, asked=asked)
            if inventory is None:
                return
            generation = await self.engine.set_inventory(inventory, FILE_ACTOR)
        except ControllerError as error:
            log.error("the inventory was not taken, the old one stays: %s", error)
            return
        self._gate.recheck()
        log.info("inventory taken: %d workloads, generation %d", len(inventory.workloads), generation)


class _InventoryFile:
    """The inventory file, and whether it has changed since it was read."""

    def __init__(self, path: Path, trust_domain: str) -> None:
        self._path = path
        self._trust_domain = trust_domain
        self._seen: tuple[int, ...] = ()

    def read(self) -> Inventory:
        """:raises InventoryError: naming the file, the field and the remedy"""
        self._seen = self._look()
        try:
            return load_inventory(self._path, self._trust_domain)
        except InventoryError as error:
            if not error.field:  # it is about the file as a whole, and names it
                raise
            where = f"{self._path}: {error.field}"
            problem = error.problem.removesuffix(f" in {self._path}")
            raise InventoryError(problem, field=where, remedy=error.remedy, code=error.code) from None

    def read_if_changed(self, *, asked: bool) -> Inventory | None:
        """None when it is as it was when it was last read, well or not."""
        return self.read() if asked or self._look() != self._seen else None

    def _look(self) -> tuple[int, ...]:
        try:
            found = self._path.stat()
        except OSError:
            return ()
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def prepare_state_dir(path: Path) -> None:
    """Make the state directory, for us alone, or check the one that is there.

    :raises ConfigError: when it can not be made, or others could put files into it
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
    except OSError as error:
        problem = "is no directory" if isinstance(error, FileExistsError) else f"can not be made: {error.strerror}"
        raise ConfigError(f"{path} {problem}", field="state_dir", remedy="name a directory of your own") from None
    if stat.S_IMODE(found.st_mode) & stat.S_IWOTH:
        raise ConfigError(f"{path} can be written by everybody", field="state_dir", remedy=f"chmod 700 {path}")
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise ConfigError(f"{path} is not ours to write", field="state_dir", remedy="name a directory of your own")


async def run(settings: Settings) -> bool:
    """Run a controller until SIGTERM or SIGINT; SIGHUP reads inventory and tokens again.

    :returns: whether the program is to begin anew
    :raises ControllerError: see :meth:`Controller.run`
    """
    controller = Controller(settings)
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, controller.stop)
    loop.add_signal_handler(signal.SIGHUP, controller.reload)
    await controller.run(memory.settle)
    return controller.to_begin_anew
