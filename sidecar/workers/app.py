"""One run of a worker: the only place that makes its parts and joins them, as the supervisor says.

A worker carries connections and judges them by its own copy of the policy, which it verifies itself. Everything that
is known of the controller, the disk, DNS and people is the supervisor's; without the supervisor a worker ends at once,
because nobody could tell it of a new deny. It imports no gRPC, which would take as much memory as all the rest.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

from google.protobuf.message import DecodeError as ProtobufDecodeError

from certs.errors import CertError
from graph.errors import DecodeError
from graph.model import Snapshot
from graph.wire import hedgerow_pb2 as pb
from graph.wire.taps import shown_to_message, start_from_message
from sidecar import logs
from sidecar.access_log import AccessLog, LogWriter, Mode
from sidecar.authority import PolicyAuthority
from sidecar.credentials import CredentialStore
from sidecar.dataplane.proxy import DataPlane
from sidecar.dataplane.sockets import Address, Inherited
from sidecar.errors import SidecarError, SnapshotRejected
from sidecar.flows import FlowTracker
from sidecar.inspect.hub import Inspection
from sidecar.inspect.taps import Ended, Taps, TooManyTapsError
from sidecar.metrics.fanout import Fanout
from sidecar.metrics.istio import IstioMetrics
from sidecar.snapshots import read_snapshot
from sidecar.workers import values
from sidecar.workers.frames import TO_WORKER, Broken, Frame, Kind, number, one_blob, words
from sidecar.workers.link import Link
from sidecar.workers.memory import SharedGauge
from sidecar.workers.messages import proof_head, read_proof, read_svid
from sidecar.workers.remote import RemoteDirectory, RemoteNames
from sidecar.workers.reports import Reports
from sidecar.workers.settings import WorkerSettings

log = logging.getLogger(__name__)

#: Seconds that the supervisor has to take the last flows.
LAST_SECONDS: Final = 5.0
#: Entries of one page for people.
_MOST_SHOWN: Final = 1000

type Listeners = list[tuple[Address, socket.socket]]


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
            self._link.send(Kind.READY)

    async def _end(self) -> None:
        try:
            if self._carrier is not None and not await self._carrier.last():
                log.warning("the supervisor did not take the last flows")
        finally:
            self._finish(0)


class Carrier:
    """What a worker does once it has a certificate."""

    def __init__(
        self,
        link: Link,
        settings: WorkerSettings,
        credentials: CredentialStore,
        authority: PolicyAuthority,
        directory: RemoteDirectory,
        data_plane: DataPlane,
        inspection: Inspection,
        taps: Taps,
        istio: IstioMetrics,
        access_log: AccessLog,
        reports: Reports,
    ) -> None:
        self._link = link
        self._settings = settings
        self._credentials = credentials
        self._authority = authority
        self._directory = directory
        self._data_plane = data_plane
        self._inspection = inspection
        self._taps = taps
        self._istio = istio
        self.access_log = access_log
        self._reports = reports
        self._prepared: tuple[int, Snapshot] | None = None
        self._listening = False
        self._adopted: dict[int, list[Callable[[], None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._handlers: dict[Kind, Callable[[Frame], None]] = {
            Kind.SVID: self._renew,
            Kind.HOLD: self._hold,
            Kind.PREPARE: self._prepare,
            Kind.COMMIT: self._commit,
            Kind.RELEASE: self._release,
            Kind.ANSWER: directory.answered,
            Kind.CHANGED: directory.changed,
            Kind.FORGET: directory.forgotten,
            Kind.TAKEN: self._taken,
            Kind.PROVED: lambda frame: data_plane.proved_elsewhere(read_proof(frame)),
            Kind.DRAIN: self._drain,
            Kind.SHOW: self._show,
            Kind.TAP: self._tap,
        }

    def obey(self, frame: Frame) -> None:
        """Do what the supervisor says.

        :raises Broken: when it may not be said now
        """
        handler = self._handlers.get(frame.kind)
        if handler is None:
            raise Broken(f"{frame.kind.name} may not be said now")
        handler(frame)

    def listen(self, frame: Frame, listeners: Listeners) -> None:
        """Take connections from sockets: from our own for the first time, or from another worker's too."""
        of = number(frame, "of", 1024)
        if of != self._settings.index:
            take = self._data_plane.adopt
            self._adopted.setdefault(of, []).extend(take(address, sock) for address, sock in listeners)
            return
        if self._listening:
            raise Broken("LISTEN comes twice")
        self._listening = True
        inherited = Inherited(listeners)
        self._data_plane.listen(inherited)
        inherited.close()
        self._begin(self._serve())

    async def last(self) -> bool:
        """End everything and tell what is left; whether the supervisor has it."""
        self._data_plane.stop()
        return await self._reports.last(LAST_SECONDS)

    async def stop(self) -> None:
        """End everything now."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._data_plane.stop()
        self._authority.close()
        self.access_log.stop()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            log.error("a fault of ours in a worker; please report it", exc_info=fault)

    async def _serve(self) -> None:
        await self._data_plane.start()
        self._begin(self._reports.report_always())
        self._begin(self._show_taps())
        if self._settings.telemetry:
            self._begin(self._reports.harvest_always())
        self._link.send(Kind.LISTENING)

    # policy and certificate

    def _renew(self, frame: Frame) -> None:
        svid = read_svid(frame, self._settings.trust_domain, time.time())
        try:
            self._credentials.replace(svid)
        except CertError as error:
            raise Broken(f"SVID: {error}") from None

    def _read(self, frame: Frame) -> Snapshot:
        """:raises SnapshotRejected: when it may not be put in force"""
        try:
            signed = pb.SignedSnapshot.FromString(one_blob(frame))
        except ProtobufDecodeError as error:
            raise SnapshotRejected(f"no snapshot: {error}") from None
        return read_snapshot(signed, self._credentials, self._authority.snapshot, time.time())

    def _hold(self, frame: Frame) -> None:
        error = ""
        try:
            self._authority.apply(self._read(frame))
        except SnapshotRejected as rejected:
            error = str(rejected)[:500]
        self._in_force(number(frame, "number"), error)

    def _prepare(self, frame: Frame) -> None:
        error = ""
        try:
            self._prepared = (number(frame, "number"), self._read(frame))
        except SnapshotRejected as rejected:
            self._prepared = None
            error = str(rejected)[:500]
        self._link.send(Kind.PREPARED, {"number": number(frame, "number"), "error": error})

    def _commit(self, frame: Frame) -> None:
        prepared, self._prepared = self._prepared, None
        if prepared is None or prepared[0] != number(frame, "number"):
            raise Broken("COMMIT of what was not prepared")
        self._authority.apply(prepared[1])
        self._in_force(prepared[0])

    def _in_force(self, asked: int, error: str = "") -> None:
        self._link.send(Kind.IN_FORCE, {"number": asked, "version": self._authority.version, "error": error})

    # life

    def _release(self, frame: Frame) -> None:
        for close in self._adopted.pop(number(frame, "of", 1024), ()):
            close()

    def _taken(self, frame: Frame) -> None:
        if not self._reports.taken(number(frame, "number")):
            raise Broken("TAKEN of flows that were not sent")

    def _drain(self, frame: Frame) -> None:
        seconds = frame.head.get("seconds")
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= 86_400:
            raise Broken("DRAIN: seconds are none")
        self._begin(self._drained(float(seconds), replaced=frame.head.get("replaced") is True))

    async def _drained(self, seconds: float, *, replaced: bool) -> None:
        self._inspection.drain()
        await self._data_plane.drain(seconds, replaced=replaced)
        self._link.send(Kind.DRAINED)

    # for people

    def _show(self, frame: Frame) -> None:
        from sidecar.admin import views

        what = words(frame, "what", 32)
        outbound, inbound = self._data_plane.outbound_tunnels, self._data_plane.inbound_tunnels
        pages: dict[str, Callable[[], object]] = {
            "tunnels": lambda: views.tunnels(outbound[:_MOST_SHOWN], inbound[:_MOST_SHOWN]),
            "connections": lambda: views.connections(self._istio.live(), time.time()),
            "memory": views.memory,
        }
        if what not in pages:
            raise Broken(f"SHOW of {what!r}")
        self._link.send(Kind.SHOWN, {"id": number(frame, "id"), "what": pages[what]()})

    def _tap(self, frame: Frame) -> None:
        try:
            command = pb.TapCommand.FromString(one_blob(frame))
            if command.WhichOneof("kind") == "start":
                self._taps.start(start_from_message(command.start))
            elif command.WhichOneof("kind") == "stop":
                self._taps.stop(command.stop.id)
        except (ProtobufDecodeError, DecodeError) as error:
            raise Broken(f"TAP: {error}") from None
        except TooManyTapsError as error:  # the supervisor counts them too
            log.warning("a tap is not started: %s", error)

    async def _show_taps(self) -> None:
        while True:
            event = await self._taps.next()
            if not isinstance(event, Ended):  # the supervisor ends them by itself
                told = pb.TapEvent(exchange=shown_to_message(event))
                self._link.send(Kind.SHOWING, {}, (told.SerializeToString(),))


def _make(settings: WorkerSettings, credentials: CredentialStore, link: Link) -> Carrier:
    """The parts of a worker."""
    loop = asyncio.get_running_loop()
    authority = PolicyAuthority(credentials.identity, settings.unsynced, settings.addresses, time.time, loop.call_later)
    names = RemoteNames(link.send)
    directory = RemoteDirectory(link.send, names)
    tracker = FlowTracker(settings.instance)
    istio = IstioMetrics(limit=settings.series)
    sinks = Fanout(tracker, istio) if settings.telemetry else Fanout()

    def switched(on: bool) -> None:
        sinks.add(access_log) if on else sinks.remove(access_log)

    access_log = AccessLog(LogWriter(), listen=switched)
    taps = Taps(loop)
    inspection = Inspection(settings.inspect, taps)
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
