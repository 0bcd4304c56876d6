"""What a worker does once it has a certificate: carries, judges, and obeys.

The governing rules:

1. A frame that may not be said, or not now, ends the worker: what it would do after that, nobody could say.
2. A policy is verified here, whoever passed it on, and applied when the supervisor says that all have verified it.
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
from certs.inspection import HostSigner
from graph.errors import DecodeError
from graph.model import Snapshot
from graph.wire import hedgerow_pb2 as pb
from graph.wire.taps import shown_to_message, start_from_message
from sidecar.access_log import AccessLog
from sidecar.authority import PolicyAuthority
from sidecar.credentials import CredentialStore
from sidecar.dataplane.proxy import DataPlane
from sidecar.dataplane.sockets import Address, Inherited
from sidecar.errors import SnapshotRejected
from sidecar.inspect.certificates import Certificates
from sidecar.inspect.hub import Inspection
from sidecar.inspect.taps import Ended, Taps, TooManyTapsError
from sidecar.metrics.istio import IstioMetrics
from sidecar.snapshots import read_snapshot
from sidecar.workers.frames import Broken, Frame, Kind, number, one_blob, places, words
from sidecar.workers.link import Link
from sidecar.workers.messages import read_proof, read_signer, read_svid
from sidecar.workers.remote import RemoteDirectory
from sidecar.workers.reports import Reports
from sidecar.workers.settings import WorkerSettings

log = logging.getLogger(__name__)

#: Seconds that the supervisor has to take the last flows.
LAST_SECONDS: Final = 5.0
#: Entries of one page for people.
_MOST_SHOWN: Final = 1000

type Listeners = list[tuple[Address, socket.socket]]


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
        self._signer: HostSigner | None = None
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
            Kind.INSPECT: self._inspect,
            Kind.WARM: lambda frame: data_plane.warm_ahead([Address(*key) for key in places(frame)]),
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

    def _inspect(self, frame: Frame) -> None:
        certificates = self._inspection.certificates
        assert certificates is not None
        self._signer = signer = read_signer(frame, time.time())
        if signer is None:
            certificates.drop()
        else:
            self._begin(self._stand_in(certificates, signer))

    async def _stand_in(self, certificates: Certificates, signer: HostSigner) -> None:
        try:
            await asyncio.to_thread(certificates.prepare)
        except OSError as error:
            log.error("inspect.egress can not be used: %s", error.strerror or error)
            return
        if signer is self._signer:
            certificates.hold(signer)

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
