"""One run of a worker: the only place that makes its parts and joins them, as the supervisor says.

A worker carries connections and judges them by its own copy of the policy, which it verifies itself. Everything that
is known of the controller, the disk, DNS and people is the supervisor's; without the supervisor a worker ends at once,
because nobody could tell it of a new deny. It imports no gRPC, for its memory and its threads.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time

from certs.errors import CertError
from sidecar import heap, logs
from sidecar.access_log import AccessLog, LogWriter, Mode
from sidecar.authority import PolicyAuthority
from sidecar.credentials import CredentialStore
from sidecar.dataplane.proxy import DataPlane
from sidecar.dataplane.sockets import Address
from sidecar.errors import SidecarError
from sidecar.flows import FlowTracker
from sidecar.inspect.certificates import Certificates
from sidecar.inspect.hub import Inspection
from sidecar.inspect.taps import Taps
from sidecar.metrics.fanout import Fanout
from sidecar.metrics.istio import IstioMetrics
from sidecar.workers import values
from sidecar.workers.carrier import Carrier, Listeners
from sidecar.workers.frames import TO_WORKER, Broken, Frame, Kind, words
from sidecar.workers.link import Link
from sidecar.workers.memory import SharedGauge
from sidecar.workers.messages import proof_head, read_svid
from sidecar.workers.remote import SPARE_SECONDS, RemoteDirectory, RemoteNames
from sidecar.workers.reports import Reports
from sidecar.workers.settings import WorkerSettings

log = logging.getLogger(__name__)


class Worker:
    """One run, from the first frame to the end.

    :param sock: our end of the socket pair
    """

    def __init__(self, sock: socket.socket) -> None:
        self._link = Link(sock, TO_WORKER, self._take, self._lost)
        self._settings: WorkerSettings | None = None
        self._carrier: Carrier | None = None
        self._code: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._ending: asyncio.Task[None] | None = None

    async def run(self) -> int:
        """Serve until the supervisor says otherwise or is gone; the exit code."""
        self._link.start()
        try:
            return await self._code
        finally:
            if self._carrier is not None:
                await self._carrier.stop()
            self._link.close()

    def _lost(self, why: str) -> None:
        log.error("the supervisor is gone, and this worker with it: %s", why)
        self._finish(1)

    def _finish(self, code: int) -> None:
        if not self._code.done():
            self._code.set_result(code)

    def _take(self, frame: Frame, descriptors: list[int]) -> None:
        sockets = [socket.socket(fileno=one) for one in descriptors]
        try:
            self._obey(frame, sockets)
        except Broken:
            for sock in sockets:
                sock.close()
            raise

    def _obey(self, frame: Frame, sockets: list[socket.socket]) -> None:
        if sockets and frame.kind is not Kind.LISTEN:
            raise Broken(f"{frame.kind.name} with descriptors")
        if frame.kind is Kind.START:
            self._start(frame)
        elif frame.kind is Kind.LOG:
            _log(frame, self._carrier)
        elif frame.kind is Kind.SVID and self._carrier is None:
            self._carry(frame)
        elif frame.kind is Kind.STOP:
            self._ending = self._ending or asyncio.ensure_future(self._end())
        elif self._carrier is None:
            raise Broken(f"{frame.kind.name} comes too early")
        elif frame.kind is Kind.LISTEN:
            self._carrier.listen(frame, _listeners(frame, sockets))
        else:
            self._carrier.obey(frame)

    def _start(self, frame: Frame) -> None:
        if self._settings is not None:
            raise Broken("START comes twice")
        try:
            self._settings = values.decode(WorkerSettings, frame.head.get("settings"))
        except (values.Misfit, SidecarError) as error:
            raise Broken(f"START: {error}") from None

    def _carry(self, frame: Frame) -> None:
        settings = self._settings
        if settings is None:
            raise Broken("SVID comes too early")
        svid = read_svid(frame, settings.trust_domain, time.time())
        try:
            credentials = CredentialStore(svid, time.time)
        except CertError as error:
            raise Broken(f"SVID: {error}") from None
        try:
            self._carrier = _make(settings, credentials, self._link)
        except SidecarError as error:  # a person can mend it
            log.error("this worker can not begin: %s", error)
            self._finish(1)
        else:
            heap.settle()
            self._link.send(Kind.READY)

    async def _end(self) -> None:
        try:
            if self._carrier is not None and not await self._carrier.last():
                log.warning("the supervisor did not take the last flows")
        finally:
            self._finish(0)


def _make(settings: WorkerSettings, credentials: CredentialStore, link: Link) -> Carrier:
    """The parts of a worker."""
    loop = asyncio.get_running_loop()
    hosts, addresses = settings.inspect.egress.hosts, settings.addresses
    authority = PolicyAuthority(credentials.identity, settings.unsynced, addresses, time.time, loop.call_later, hosts)
    names = RemoteNames(link.send)
    known = settings.directory
    directory = RemoteDirectory(
        link.send, names, settings.data_plane.resolve_timeout + SPARE_SECONDS, known.addresses, known.waiting
    )
    tracker = FlowTracker(settings.instance, settings.report_flows)
    istio = IstioMetrics(limit=settings.series)
    sinks = Fanout(tracker, istio) if settings.telemetry else Fanout()

    def switched(on: bool) -> None:
        sinks.add(access_log) if on else sinks.remove(access_log)

    access_log = AccessLog(LogWriter(), listen=switched)
    taps = Taps(loop)
    inspection = Inspection(settings.inspect, taps)
    inspection.certificates = Certificates(settings.inspect.egress.roots, time.time)
    if settings.inspect.addons:
        _ = inspection.addons  # a fault of theirs is to be known now, and not at the first request
    data_plane = DataPlane(
        settings.data_plane,
        authority,
        directory,
        credentials,
        sinks,
        inspection,
        names=names if settings.names else None,
        gauge=SharedGauge(settings.memory_limit, settings.count),
        proved=lambda proof: link.send(Kind.PROOF, proof_head(proof)),
    )
    reports = Reports(link.send, tracker, istio, sinks, access_log, data_plane, directory, settings.report_interval / 2)
    return Carrier(
        link,
        settings,
        credentials,
        authority,
        directory,
        data_plane,
        inspection,
        taps,
        istio,
        access_log,
        reports,
    )


def _listeners(frame: Frame, sockets: list[socket.socket]) -> Listeners:
    named = frame.head.get("listeners")
    if not isinstance(named, list) or len(named) != len(sockets):
        raise Broken("LISTEN names other sockets than came with it")
    listeners: Listeners = []
    for name, sock in zip(named, sockets, strict=True):
        match name:
            case [str(host), int(port)]:
                sock.setblocking(False)
                listeners.append((Address(host, port), sock))
            case _:
                raise Broken("LISTEN names no address")
    return listeners


def _log(frame: Frame, carrier: Carrier | None) -> None:
    if "level" in frame.head:
        level, logger = words(frame, "level", 16), words(frame, "logger", 200)
        if level not in logs.LEVELS:
            raise Broken("LOG: no level")
        if logger and logger != "root":
            logging.getLogger(logger)  # the supervisor has one of that name
        logs.set_level(level, logger)
    if "mode" in frame.head and carrier is not None:
        try:
            carrier.access_log.mode = Mode(words(frame, "mode", 16))
        except ValueError:
            raise Broken("LOG: no mode") from None
