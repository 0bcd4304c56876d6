"""The access log, on demand: one line of JSON for every request, and for every connection whose requests we do not see.

Fields have the names of Istio's default JSON log (https://istio.io/latest/docs/tasks/observability/logs/access-log/)
where it has them, with the same meaning; ``direction``, ``source``, ``destination``, the principals, ``operation``,
``verdict``, ``pending``, ``reason``, ``rule`` and ``grpc_status`` are ours. Rules:

1. Off costs nothing: then nobody tells us of anything.
2. Nothing waits for who reads the log. Lines go to a thread through a bounded queue; what does not fit is counted.
3. No query strings, no header but ``Host``, ``User-Agent`` and ``x-request-id``, no bodies.
4. Lines are ASCII; everything else that a peer wrote is escaped as JSON does, so that nobody forges a line.
"""

from __future__ import annotations

import logging
import os
import queue
import select
import threading
import time
from collections.abc import Callable
from enum import StrEnum
from json.encoder import encode_basestring_ascii
from typing import Final

from graph.model import Direction, Peer, Verdict
from graph.policy import Reason
from sidecar.dataplane.contracts import Record, Request

log = logging.getLogger(__name__)

#: Bytes that wait to be written, at most.
MAX_WAITING: Final = 4 << 20
#: Characters of a path, a host and the like that are logged.
MAX_FIELD: Final = 1024
#: Bytes of one write.
_CHUNK: Final = 64 << 10
#: Seconds that the end of the sidecar waits for the last lines.
_LAST: Final = 1.0

_PROTOCOLS: Final = {"http": "HTTP/1.1", "http2": "HTTP/2", "grpc": "HTTP/2"}


class Mode(StrEnum):
    """What is logged."""

    OFF = "off"
    ERRORS = "errors"
    """What was refused, failed, or was answered with a status of 400 or more, or with a gRPC error."""
    ALL = "all"


class LogWriter:
    """Writes lines to a descriptor from a thread of its own, which begins with the first line.

    :param descriptor: of a file, a pipe or a terminal; it stays open
    :param limit: bytes that may wait
    """

    def __init__(self, descriptor: int = 1, limit: int = MAX_WAITING) -> None:
        self._descriptor = descriptor
        self._limit = limit
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._put = 0  # bytes; written by the caller's thread alone, as _taken is by ours
        self._taken = 0
        self._thread: threading.Thread | None = None
        self._broken = False
        #: Lines that were not written, because the reader is slow or gone.
        self.shed = 0

    @property
    def waiting(self) -> int:
        """Bytes that wait to be written."""
        return self._put - self._taken

    def write(self, line: bytes) -> None:
        """Have a line written, with its end; or shed it. Never blocks."""
        if self._broken or self._put - self._taken + len(line) > self._limit:
            self.shed += 1
            return
        self._put += len(line)
        self._lines.put(line)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
            self._thread.start()

    def stop(self, deadline: float = _LAST) -> None:
        """Write what waits, for a while; then end.

        :param deadline: seconds
        """
        if self._thread is not None:
            self._lines.put(None)
            self._thread.join(deadline)
            self._thread = None

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            chunk = bytearray(line)
            last = False
            while len(chunk) < _CHUNK and not last:
                try:
                    more = self._lines.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    last = True
                else:
                    chunk += more
            self._write(chunk)
            self._taken += len(chunk)
            if last:
                return

    def _write(self, chunk: bytearray) -> None:
        if self._broken:
            return
        view = memoryview(chunk)
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:  # somebody else made the descriptor so; wait for the reader as a thread may
                writable = select.poll()
                writable.register(self._descriptor, select.POLLOUT)
                writable.poll()
            except OSError as error:
                self._broken = True
                log.error("the access log can not be written and ends: %s", error.strerror)
                return


class AccessLog:
    """Implements :class:`sidecar.dataplane.contracts.FlowSink`.

    :param writer: takes the lines
    :param clock: seconds since the epoch
    :param listen: called with True when the log goes on and with False when it goes off
    """

    def __init__(
        self,
        writer: LogWriter,
        clock: Callable[[], float] = time.time,
        listen: Callable[[bool], None] = lambda on: None,
    ) -> None:
        self._writer = writer
        self._clock = clock
        self._listen = listen
        self._mode = Mode.OFF
        self._with_requests: set[int] = set()  # ids of live records whose requests are logged
        self.lines = 0

    @property
    def mode(self) -> Mode:
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        was, self._mode = self._mode, mode
        if mode is Mode.OFF:
            self._with_requests.clear()
        if (was is Mode.OFF) is not (mode is Mode.OFF):
            self._listen(mode is not Mode.OFF)

    @property
    def shed(self) -> int:
        """Lines that were not written."""
        return self._writer.shed

    def stop(self) -> None:
        """Write what waits, for a moment."""
        self._writer.stop()

    def opened(self, record: Record) -> None:
        self._with_requests.discard(id(record))  # somebody else had this id before
        if record.closed:
            self._connection(record)

    def closed(self, record: Record) -> None:
        known = id(record) in self._with_requests
        self._with_requests.discard(id(record))
        if not known or record.failed:
            self._connection(record)

    def request(self, request: Request) -> None:
        record = request.record
        if not record.closed:
            self._with_requests.add(id(record))
        decision = request.decision
        refused = decision.verdict is Verdict.DENY
        bad = refused or not 0 < request.status < 400 or request.grpc_status > 0
        if self._mode is Mode.ALL or (bad and self._mode is Mode.ERRORS):
            self._log(
                record,
                self._clock() - request.seconds,
                [
                    ("method", _text(request.method)),
                    ("path", _text(request.path.partition("?")[0].partition("#")[0])),
                    ("protocol", _text(_PROTOCOLS.get(request.protocol, request.protocol))),
                    ("response_code", str(request.status)),
                    ("response_flags", '"UF"' if record.failed and not refused else '"-"'),
                    ("response_code_details", _text(_details(request))),
                    ("bytes_received", str(request.request_bytes)),
                    ("bytes_sent", str(request.response_bytes)),
                    ("duration", str(round(request.seconds * 1000))),
                    ("authority", _text(request.host)),
                    ("user_agent", _text(request.user_agent)),
                    ("request_id", _text(request.request_id)),
                    ("operation", _text(request.operation)),
                    ("grpc_status", str(request.grpc_status) if request.grpc_status >= 0 else "null"),
                    ("verdict", _text(decision.verdict)),
                    ("pending", _text(decision.pending)),
                    ("reason", _text(decision.reason)),
                    ("rule", _text(decision.rule_id)),
                ],
            )

    def _connection(self, record: Record) -> None:
        decision = record.decision
        refused = not decision.allowed
        if self._mode is Mode.ALL or ((refused or record.failed) and self._mode is Mode.ERRORS):
            self._log(
                record,
                record.opened_at,
                [
                    ("protocol", "null"),
                    ("response_code", "0"),
                    ("response_flags", _text(connection_flags(record))),
                    ("connection_termination_details", _text(f"hedgerow_denied_{decision.reason}" if refused else "")),
                    ("bytes_received", str(record.bytes_sent)),  # as the client's side sees them, like Envoy
                    ("bytes_sent", str(record.bytes_received)),
                    ("duration", str(max(0, round((self._clock() - record.opened_at) * 1000)))),
                    ("verdict", _text(decision.verdict)),
                    ("pending", _text(decision.pending)),
                    ("reason", _text(decision.reason)),
                    ("rule", _text(decision.rule_id)),
                ],
            )

    def _log(self, record: Record, began: float, own: list[tuple[str, str]]) -> None:
        inbound = record.direction is Direction.INBOUND
        destination = record.destination
        host = f"[{destination.address}]" if ":" in destination.address else destination.address
        service = record.service.rpartition("/")[2] or (destination.workload.name if destination.workload else "")
        cluster = f"inbound|{record.port}||" if inbound else f"outbound|{record.port}||{service}"
        fields = [
            ("start_time", f'"{_moment(began)}"'),
            *own,
            ("upstream_host", _text(f"{host}:{record.port}" if host else "")),
            ("upstream_cluster", _text(cluster)),
            ("downstream_remote_address", _text(record.source.address)),
            ("requested_server_name", _text(destination.host)),
            ("direction", _text(record.direction)),
            ("source", _text(_name(record.source))),
            ("destination", _text(_name(destination))),
            ("source_principal", _text(record.source_identity)),
            ("destination_principal", _text(record.destination_identity)),
        ]
        line = "{" + ",".join(f'"{name}":{value}' for name, value in fields) + "}\n"
        self.lines += 1
        self._writer.write(line.encode())


def _details(request: Request) -> str:
    """Why we answered in place of the application; empty: we did not."""
    if request.decision.verdict is Verdict.DENY:
        return f"hedgerow_denied_{request.detail or request.decision.reason}"
    return f"hedgerow_{request.detail}" if request.detail else ""


def connection_flags(record: Record) -> str:
    """Envoy's letters for what became of a connection; ``DENY`` as Istio's ztunnel has it.

    ``NR``: nobody knew the destination. ``UF``: the application, or the peer before it, was not reached.
    """
    if record.decision.allowed:
        return "UF" if record.failed else "-"
    if record.decision.reason is Reason.UNRESOLVED:
        return "NR"
    unproved = record.decision.reason is Reason.UNTRUSTED_PEER and record.direction is Direction.OUTBOUND
    return "UF" if unproved else "DENY"


def _text(value: str) -> str:
    """A JSON string, null for nothing."""
    return encode_basestring_ascii(value[:MAX_FIELD]).replace("\x7f", "\\u007f") if value else "null"


def _name(peer: Peer) -> str:
    if peer.workload is not None:
        return str(peer.workload)
    return peer.host or peer.address


def _moment(seconds: float) -> str:
    """ISO 8601 in UTC with milliseconds."""
    whole, part = divmod(max(0, round(seconds * 1000)), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{part:03d}Z"
