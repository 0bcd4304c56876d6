"""One run of the sidecar: the only place that makes its parts and joins them.

The order at the start: state directory, readiness port, certificate, last snapshot, listeners, then the controller. At
the end: not ready, drain, last report, everything closed. Where a sidecar runs already with the same state directory,
this one takes over from it (:mod:`sidecar.takeover`) as soon as it could carry connections. A fault in a part that only
talks to the controller is logged and that part begins again: it must not cost the workload its traffic.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import signal
import socket
import time
import uuid
from collections.abc import Awaitable, Callable
from importlib import metadata
from random import Random

from graph.model import Mode
from sidecar.authority import PolicyAuthority
from sidecar.backoff import Backoff
from sidecar.certificate_agent import CertificateAgent
from sidecar.channel import ControllerLink
from sidecar.credentials import CredentialStore
from sidecar.dataplane.proxy import DataPlane
from sidecar.dataplane.settings import DataPlaneSettings, ExplicitInbound, ExplicitOutbound
from sidecar.dataplane.sockets import Address as SocketAddress
from sidecar.dataplane.sockets import Inherited
from sidecar.directory import DirectoryClient
from sidecar.dns.service import DnsService
from sidecar.errors import CannotListen, ConfigError, StateBusy
from sidecar.flows import FlowTracker
from sidecar.observer import Inside, Observer
from sidecar.policy_client import PolicyClient
from sidecar.readiness import ReadinessServer
from sidecar.settings import Address, Capture, Settings
from sidecar.state import StateDirectory
from sidecar.takeover import Offer, Takeover, take_over
from sidecar.telemetry import TelemetryClient

log = logging.getLogger(__name__)

#: Istio's ports, which are ours whether we listen there or not.
SIDECAR_PORTS = frozenset({15000, 15001, 15006, 15020, 15021, 15053})

#: Seconds that the last report may take.
FLUSH_SECONDS = 3.0


class Life:
    """How far the end has come."""

    def __init__(self) -> None:
        self.told = asyncio.Event()
        #: We are to end in good order.
        self.ending = asyncio.Event()
        #: We are to end now, whatever runs.
        self.at_once = asyncio.Event()
        #: We end because another process has taken over.
        self.replaced = False


class Sidecar:
    """One run, from settings to an orderly end."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._random = Random()  # noqa: S311  # jitter
        self._clock = time.time
        self._boot_id = str(uuid.uuid4())
        self._life = Life()
        self._agent: CertificateAgent | None = None
        self._mesh: _Mesh | None = None
        self.readiness = ReadinessServer(settings.ready_listen, self._missing, self._stats)
        self.observer = Observer(settings, self._missing, self._stats, self.stop, software())

    def stop(self) -> None:
        """Begin the orderly end; the second call ends at once what is left."""
        if self._life.told.is_set():
            self._life.at_once.set()
        self._life.told.set()
        self._life.ending.set()

    async def run(self) -> None:
        """Serve until :meth:`stop`.

        :raises SidecarError: when the sidecar can not begin to work; the message names the remedy
        """
        settings = self._settings
        _check_user(settings)
        state, before = await _open_state(settings)
        offer = Offer(state, settings.instance, self._listeners, self._prepare, self._replaced)
        try:
            # until we can be ready, the one before us answers those who ask
            ready = before.inherited.take(_address(settings.ready_listen)) if before is not None else None
            if ready is None:
                await self.readiness.start()
            if before is None:
                await self.observer.start()
            self._agent = CertificateAgent(settings, state, self._random, self._clock)
            credentials = await self._unless_stopped(self._agent.obtain())
            if credentials is not None:
                self._mesh = _Mesh(
                    settings, state, self._agent, credentials, self._boot_id, self._random, self.observer
                )
                self._mesh.listen(before.inherited if before is not None else None)
                try:
                    if before is not None:
                        await before.confirm()
                    await self._mesh.start()
                    if ready is not None:
                        await self.readiness.start(ready)
                    if before is not None:
                        inherited = before.inherited
                        await self.observer.start(lambda address: inherited.take(_address(address)))
                    offer.start()
                    await self._life.ending.wait()
                    await offer.stop()
                    await self._mesh.drain(self._life)
                finally:
                    await self._mesh.stop()
        finally:
            await offer.stop()
            await self.readiness.stop()
            await self.observer.stop()
            if before is not None:
                before.close()
            state.close()

    def _listeners(self) -> list[tuple[SocketAddress, socket.socket]]:
        listeners = self._mesh.listeners if self._mesh is not None else []
        if (ready := self.readiness.listener) is not None:
            listeners.append((_address(self._settings.ready_listen), ready))
        return listeners + [(_address(address), sock) for address, sock in self.observer.listeners]

    async def _prepare(self) -> None:
        if self._mesh is not None:
            await self._mesh.persist()

    def _replaced(self) -> None:
        """Another process accepts from here on."""
        self.readiness.release()
        self.observer.release()
        self._life.replaced = True
        self._life.ending.set()

    async def _unless_stopped[T](self, work: Awaitable[T]) -> T | None:
        """The result of ``work``, or None when the end came first."""
        task = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._life.ending.wait())
        try:
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            for one in (task, stopping):
                one.cancel()
            await asyncio.gather(task, stopping, return_exceptions=True)

    def _missing(self) -> list[str]:
        if self._life.ending.is_set():
            return ["draining: the sidecar was told to end"]
        if self._mesh is None:
            problem = self._agent.problem if self._agent is not None else ""
            return [problem or "no certificate yet"]
        return self._mesh.missing()

    def _stats(self) -> dict[str, object]:
        stats: dict[str, object] = {"instance": self._settings.instance, "boot_id": self._boot_id}
        if self._mesh is not None:
            stats |= self._mesh.stats()
        return stats


class _Mesh:
    """Everything that needs a certificate."""

    def __init__(
        self,
        settings: Settings,
        state: StateDirectory,
        agent: CertificateAgent,
        credentials: CredentialStore,
        boot_id: str,
        random: Random,
        observer: Observer,
    ) -> None:
        clock = time.time
        self._settings = settings
        self._agent = agent
        self._credentials = credentials
        self._random = random
        self._clock = clock
        call_later = asyncio.get_running_loop().call_later
        self._authority = PolicyAuthority(
            credentials.identity, settings.unsynced, settings.addresses, clock, call_later
        )
        self._link = ControllerLink(settings.controller, credentials, random)
        self._policy = PolicyClient(self._authority, credentials, state, boot_id, software(), clock)
        self._directory = DirectoryClient(
            self._authority.workload, settings.instance, settings.addresses, state, time.monotonic
        )
        self._tracker = FlowTracker(settings.instance)
        self._telemetry = TelemetryClient(self._tracker, self._authority, boot_id, settings.report_interval, clock)
        self._dns = (
            DnsService(settings.dns, settings.addresses, settings.mark or 0, state, self._may_ask, clock)
            if settings.dns_proxy
            else None
        )
        if settings.telemetry:
            observer.also_tell(self._tracker)
        else:
            log.warning("telemetry is off: the controller sees no connection of ours and learns nothing from them")
        self._data_plane = DataPlane(
            data_plane_settings(settings),
            self._authority,
            self._directory,
            credentials,
            observer.flows,
            names=self._dns.names if self._dns is not None else None,
        )
        observer.inside = Inside(credentials, self._authority, self._data_plane)
        self._listening = False

        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def listeners(self) -> list[tuple[SocketAddress, socket.socket]]:
        return self._data_plane.listeners

    async def persist(self) -> None:
        """Write what the next process wants to find."""
        await self._directory.persist()
        if self._dns is not None:
            await self._dns.persist()

    def _may_ask(self) -> bool:
        """Whether DNS may be asked: not in quarantine, because questions can carry data out."""
        return self._authority.snapshot.outbound_mode is not Mode.QUARANTINE

    def listen(self, inherited: Inherited | None) -> None:
        """Have everything that connections need, and the sockets, without taking any.

        :raises ConfigError: when an address can not be listened on
        """
        self._policy.restore()
        self._directory.restore()
        try:
            self._data_plane.listen(inherited)
            if self._dns is not None:
                self._dns.listen()
        except CannotListen as error:
            self._authority.close()
            at = (error.host, error.port)
            fields = [name for name, address in self._settings.listeners() if (address.host, address.port) == at]
            raise ConfigError(": ".join([*fields[:1], str(error)])) from None
        except BaseException:
            self._authority.close()
            raise

    async def start(self) -> None:
        """Take connections."""
        if self._dns is not None:
            await self._dns.start()
            self._begin("names", self._dns.upkeep)
        await self._data_plane.start()
        self._listening = True
        log.info("listening for %s", self._credentials.identity)
        self._begin("certificates", lambda: self._agent.run(self._credentials))
        self._begin("policy", lambda: self._link.keep("policy", self._policy.session))
        self._begin("directory", lambda: self._link.keep("directory", self._directory.session, self._directory.lost))
        if self._settings.telemetry:
            self._begin("telemetry", lambda: self._link.keep("telemetry", self._telemetry.session))
            self._begin("reports", self._telemetry.run)
        self._begin("upkeep", self._directory.upkeep)

    async def drain(self, life: Life) -> None:
        """Carry on until what runs has ended, or may no longer go on, and report it."""
        log.info("draining for at most %g s", self._settings.drain_seconds)
        if life.replaced:
            if self._dns is not None:
                await self._dns.stop()  # our successor is to learn every name from here on
            # the controller hears of our successor alone, and we of its policy through the state directory
            await self._end("policy")
            self._begin("policy", self._policy.follow)
        draining = asyncio.ensure_future(self._data_plane.drain(self._settings.drain_seconds, replaced=life.replaced))
        at_once = asyncio.ensure_future(life.at_once.wait())
        try:
            await asyncio.wait({draining, at_once}, return_when=asyncio.FIRST_COMPLETED)
            if draining.done():
                draining.result()
        finally:
            for task in (draining, at_once):
                task.cancel()
            await asyncio.gather(draining, at_once, return_exceptions=True)
        self._data_plane.stop()  # the last bytes of what was cut off belong into the last report
        self._link.hurry()
        if not await self._telemetry.flush(0.0 if life.at_once.is_set() else FLUSH_SECONDS):
            log.warning("the last report was not acknowledged; %d flows were not sent", self._waiting())
        await self.persist()

    async def stop(self) -> None:
        """End everything. Calling it again changes nothing."""
        for name in list(self._tasks):
            await self._end(name)
        if self._dns is not None:
            await self._dns.stop()
        self._data_plane.stop()
        self._authority.close()
        await self._link.close()

    def _begin(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        self._tasks[name] = asyncio.ensure_future(self._begin_again(name, work))

    async def _end(self, name: str) -> None:
        task = self._tasks.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def _waiting(self) -> int:
        return self._telemetry.outbox.waiting_flows

    async def _begin_again(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        backoff = Backoff(self._random)
        while True:
            try:
                await work()
            except Exception:
                log.exception("a fault of ours in %s; it begins again", name)
            await asyncio.sleep(backoff.failed())

    def missing(self) -> list[str]:
        """What is not there, for people; empty when a workload behind us would be served."""
        missing = []
        if self._credentials.not_after <= self._clock():
            missing.append(self._agent.problem or "the certificate has expired")
        if not self._authority.version:
            missing.append("no policy snapshot yet: none is stored and the controller has not sent one")
        if not self._listening:
            missing.append("not listening yet")
        return missing

    def stats(self) -> dict[str, object]:
        """What ``/stats`` shows."""
        return {
            "workload": str(self._authority.workload),
            "identity": str(self._credentials.identity),
            "certificate": {"not_after": self._credentials.not_after, "renewals": self._credentials.renewals},
            "tunnels": {
                "outbound": len(self._data_plane.outbound_tunnels),
                "inbound": len(self._data_plane.inbound_tunnels),
            },
            "connections": self._data_plane.live_connections,
            "detection": {"timeouts": self._data_plane.detection.timeouts},
            "limits": {"shedding": self._data_plane.shedding, **dataclasses.asdict(self._data_plane.counters)},
            "policy": {
                "version": self._authority.version,
                "connected": self._policy.connected,
                "rejected": self._policy.last_rejection,
            },
            "dns": self._dns.stats() if self._dns is not None else None,
            "unbound_claims": self._data_plane.unbound_claims,
            "directory": {"addresses": self._directory.entries, "connected": self._directory.connected},
            "flows": self._flow_stats() if self._settings.telemetry else None,
        }

    def _flow_stats(self) -> dict[str, object]:
        return {
            "connected": self._telemetry.connected,
            "live": self._tracker.live,
            "records": self._tracker.total_records,
            "shed": self._tracker.total_shed + self._telemetry.outbox.total_shed,
            "waiting": self._waiting(),
            "acknowledged": self._telemetry.outbox.acknowledged,
        }


def data_plane_settings(settings: Settings) -> DataPlaneSettings:
    """What the data path needs to know of the settings."""
    redirect = settings.capture is Capture.REDIRECT
    own = {settings.outbound_listen.port, settings.inbound_listen.port, settings.ready_listen.port} - {0}
    own |= {one.port for one in (settings.admin_listen, settings.stats_listen) if one is not None and one.port}
    return DataPlaneSettings(
        addresses=frozenset(settings.addresses),
        outbound_listen=_both(settings.outbound_listen, settings.addresses) if redirect else (),
        inbound_listen=_both(settings.inbound_listen, settings.addresses) if redirect else (),
        explicit_outbound=tuple(
            ExplicitOutbound(_address(one.listen), _address(one.destination)) for one in settings.explicit.outbound
        ),
        explicit_inbound=tuple(
            ExplicitInbound(_address(one.listen), _address(one.application)) for one in settings.explicit.inbound
        ),
        sidecar_ports=frozenset(SIDECAR_PORTS | own) if redirect else frozenset(own),
        mark=settings.mark or 0,
        opaque_ports=settings.opaque_ports,
        mtls_ports=settings.mtls_ports,
        mtls_alpn=settings.mtls_alpn,
        http=settings.http,
        **settings.limits,  # type: ignore[arg-type]  # read_limits has checked names and values
    )


#: What stands for an IPv4 address in IPv6.
_SIBLINGS = {"127.0.0.1": "::1", "0.0.0.0": "::"}


def _both(address: Address, own: tuple[str, ...]) -> tuple[SocketAddress, ...]:
    """Where captured connections arrive: they stay in their address family, so a pod with IPv6 has both."""
    sibling = _SIBLINGS.get(address.host) if any(":" in each for each in own) and address.port else None
    return (_address(address), *([SocketAddress(sibling, address.port)] if sibling is not None else ()))


def _address(address: Address) -> SocketAddress:
    return SocketAddress(address.host, address.port)


def software() -> str:
    """Our name and version, for people."""
    try:
        return f"hedgerow/{metadata.version('hedgerow')}"
    except metadata.PackageNotFoundError:  # run from a bare checkout
        return "hedgerow/unknown"


async def _open_state(settings: Settings) -> tuple[StateDirectory, Takeover | None]:
    """The state directory, and what the sidecar that ran with it gives us; None when there was none.

    :raises StateError: when it does not hand over, or the directory can not be used
    """
    try:
        return StateDirectory(settings.state_dir), None
    except StateBusy as busy:
        before = await take_over(settings.state_dir, settings.instance)
        if before is None:
            raise busy from None
    log.info("taking over from the sidecar that runs")
    try:
        return StateDirectory(settings.state_dir, before.lock), before
    except BaseException:
        before.close()
        os.close(before.lock)
        raise


def _check_user(settings: Settings) -> None:
    """Capture tells our connections from the application's by our user; as another one we would capture ourselves."""
    if settings.capture is Capture.REDIRECT and settings.mark is None and os.geteuid() != settings.uid:
        raise ConfigError(
            f"uid: connections of user {settings.uid} are exempt from capture and this is user {os.geteuid()}; "
            f"run the sidecar as user {settings.uid} (setpriv --reuid={settings.uid} --clear-groups …)"
        )


async def run(settings: Settings) -> None:
    """Run a sidecar until SIGTERM or SIGINT.

    :raises SidecarError: when it can not begin to work
    """
    sidecar = Sidecar(settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, sidecar.stop)
    await sidecar.run()
