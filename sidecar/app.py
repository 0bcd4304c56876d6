"""One run of the sidecar: the only place that makes its parts and joins them.

The order at the start: state directory, readiness port, certificate, last snapshot, listeners, then the controller. At
the end: not ready, drain, last report, everything closed. Where a sidecar runs already with the same state directory,
this one takes over from it (:mod:`sidecar.takeover`) as soon as it could carry connections. How what was made here runs
is in :mod:`sidecar.mesh`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from random import Random

from graph.model import Mode
from graph.version import VERSION
from sidecar import heap
from sidecar.authority import PolicyAuthority
from sidecar.capture_settings import Capture
from sidecar.certificate_agent import CertificateAgent
from sidecar.channel import ControllerLink
from sidecar.credentials import CredentialStore
from sidecar.data_path import DataPath, InProcess
from sidecar.dataplane.contracts import Names
from sidecar.dataplane.proxy import DataPlane
from sidecar.dataplane.sockets import Address
from sidecar.directory import DirectoryClient
from sidecar.dns.service import DnsService
from sidecar.errors import ConfigError, StateBusy
from sidecar.flows import FlowSource, FlowTracker
from sidecar.inspect.certificates import Certificates
from sidecar.inspect.hub import Inspection
from sidecar.inspect.tap_client import TapClient
from sidecar.inspect.taps import Taps
from sidecar.inspection_agent import InspectionAgent
from sidecar.life import Life
from sidecar.mesh import Mesh, Parts
from sidecar.observer import Inside, Observer
from sidecar.path_settings import data_plane_settings, socket_address
from sidecar.policy_client import Followers, PolicyClient
from sidecar.readiness import ReadinessServer
from sidecar.settings import Settings, Unsynced
from sidecar.state import SNAPSHOT, StateDirectory
from sidecar.takeover import Offer, Takeover, take_over
from sidecar.telemetry import TelemetryClient

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Carried:
    """What carries connections, and what comes with it."""

    path: DataPath
    flows: FlowSource
    taps: Taps
    followers: Followers | None
    inspection: InspectionAgent | None = None


class Sidecar:
    """One run, from settings to an orderly end."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._random = Random()  # noqa: S311  # jitter
        self._clock = time.time
        self._boot_id = secrets.token_hex(16)
        self._life = Life()
        self._agent: CertificateAgent | None = None
        self._mesh: Mesh | None = None
        self.readiness = ReadinessServer(settings.ready_listen, self._missing, self._stats)
        self.observer = Observer(settings, self._missing, self._stats, self.stop, software())

    def stop(self) -> None:
        """Begin the orderly end; the second call ends at once what is left."""
        self._life.end()

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
            ready = before.inherited.take(socket_address(settings.ready_listen)) if before is not None else None
            if ready is None:
                await self.readiness.start()
            if before is None:
                await self.observer.start()
            self._agent = CertificateAgent(settings, state, self._random, self._clock)
            credentials = await self._unless_stopped(self._agent.obtain())
            if credentials is not None:
                self._mesh = self._join(state, self._agent, credentials)
                await self._mesh.listen(before.inherited if before is not None else None)
                try:
                    if before is not None:
                        await before.confirm()
                    await self._mesh.start()
                    heap.settle()
                    if ready is not None:
                        await self.readiness.start(ready)
                    if before is not None:
                        inherited = before.inherited
                        await self.observer.start(lambda address: inherited.take(socket_address(address)))
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

    def _join(self, state: StateDirectory, agent: CertificateAgent, credentials: CredentialStore) -> Mesh:
        """Make what needs a certificate."""
        if state.stamp(SNAPSHOT) is not None and self._settings.unsynced is not Unsynced.DENY:
            # a policy was received before, whether or not it can be used now
            self._settings = replace(self._settings, unsynced=Unsynced.DENY)
        settings, clock = self._settings, self._clock
        call_later = asyncio.get_running_loop().call_later
        inspecting = settings.inspect.egress.hosts
        authority = PolicyAuthority(
            credentials.identity, settings.unsynced, settings.addresses, clock, call_later, inspecting
        )
        directory = DirectoryClient(
            authority.workload,
            settings.instance,
            settings.addresses,
            state,
            time.monotonic,
            settings.directory,
            data_plane_settings(settings).resolve_timeout,
        )

        def may_ask() -> bool:
            """Whether DNS may be asked: not in quarantine, because questions can carry data out."""
            return authority.snapshot.outbound_mode is not Mode.QUARANTINE

        dns = None
        if settings.dns_proxy:
            dns = DnsService(settings.dns, settings.addresses, settings.mark or 0, state, may_ask, clock)
        if not settings.telemetry:
            log.warning("telemetry is off: the controller sees no connection of ours and learns nothing from them")
        names = dns.names if dns is not None else None
        carry = self._carry if settings.workers == 1 else self._have_carried
        carried = carry(credentials, authority, directory, names)
        return Mesh(
            Parts(
                settings=settings,
                agent=agent,
                credentials=credentials,
                authority=authority,
                link=ControllerLink(settings.controller, credentials, self._random),
                policy=PolicyClient(authority, credentials, state, self._boot_id, software(), clock, carried.followers),
                directory=directory,
                flows=carried.flows,
                telemetry=TelemetryClient(carried.flows, authority, self._boot_id, settings.report_interval, clock),
                tap=TapClient(carried.taps, self._boot_id),
                inspection=carried.inspection,
                dns=dns,
                path=carried.path,
                random=self._random,
            )
        )

    def _carry(
        self, credentials: CredentialStore, authority: PolicyAuthority, directory: DirectoryClient, names: Names | None
    ) -> _Carried:
        """Make what carries connections in this process."""
        settings, observer = self._settings, self.observer
        tracker = FlowTracker(settings.instance, settings.report_flows)
        if settings.telemetry:
            observer.also_tell(tracker)
        taps = Taps(asyncio.get_running_loop())
        inspection = Inspection(settings.inspect, taps)
        if settings.inspect.addons:
            _ = inspection.addons  # a fault of theirs is to be known now, and not at the first request
        data_plane = DataPlane(
            data_plane_settings(settings),
            authority,
            directory,
            credentials,
            observer.flows,
            inspection,
            names=names,
        )
        observer.inside = Inside(credentials, authority, data_plane)
        egress = settings.inspect.egress
        inspection.certificates = Certificates(egress.roots, self._clock)
        agent = InspectionAgent(authority, inspection.certificates, egress, self._random, self._clock)
        return _Carried(InProcess(data_plane, inspection), tracker, taps, None, agent)

    def _have_carried(
        self, credentials: CredentialStore, authority: PolicyAuthority, directory: DirectoryClient, names: Names | None
    ) -> _Carried:
        """Make what has connections carried by processes of their own."""
        from sidecar.workers.figures import Figures
        from sidecar.workers.harvests import Harvests
        from sidecar.workers.questions import Questions
        from sidecar.workers.relayed_taps import RelayedTaps
        from sidecar.workers.supervisor import Workers

        settings, observer = self._settings, self.observer
        questions = Questions(directory, names, frozenset(settings.addresses), settings.directory.waiting)
        directory.subscribe(questions.changed)
        harvests = Harvests(settings.report_flows * settings.workers)
        figures = Figures(observer.metrics, observer.access_log_mode)
        taps = RelayedTaps(asyncio.get_running_loop())
        workers = Workers(settings, credentials, questions, harvests, figures, taps, self._random)
        observer.inside = Inside(credentials, authority, None, workers)
        egress = settings.inspect.egress
        certificates = Certificates(egress.roots, self._clock)
        workers.stand_in(certificates)
        agent = InspectionAgent(authority, certificates, egress, self._random, self._clock)
        return _Carried(workers, harvests, taps, workers, agent)

    def _listeners(self) -> list[tuple[Address, socket.socket]]:
        listeners = self._mesh.listeners if self._mesh is not None else []
        if (ready := self.readiness.listener) is not None:
            listeners.append((socket_address(self._settings.ready_listen), ready))
        return listeners + [(socket_address(address), sock) for address, sock in self.observer.listeners]

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


def software() -> str:
    """Our name and version, for people."""
    return f"hedgerow/{VERSION}"


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
