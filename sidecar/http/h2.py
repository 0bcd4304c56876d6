"""HTTP/2 and gRPC, observed: bytes are passed on as they are, and read beside that.

Rules:

1. No verdict depends on what is read here. Where operations have to be judged, another lane takes the connection; when
   such rules come into force later, this connection is judged as one whose operations are not known.
2. What can not be read, or passes a bound, ends the observation of its connection, is counted, and costs no byte.
3. For the same reason nothing is stripped or set: an application must not believe ``x-forwarded-client-cert`` of HTTP/2
   connections unless their operations are judged.
"""

from __future__ import annotations

import re
from typing import Final

from sidecar.dataplane.contracts import Request
from sidecar.dataplane.leg_relay import LegRelay
from sidecar.dataplane.legs import Leg
from sidecar.dataplane.serving import NOBODY, LaneContext
from sidecar.http.errors import Malformed
from sidecar.http.frames import FrameReader
from sidecar.http.hpack import Header
from sidecar.http.operation import LONGEST, operation_of
from sidecar.http.site import HttpSite

_METHOD: Final = re.compile(r"[A-Z][A-Z0-9_-]{0,31}")
#: gRPC's ``/package.Service/Method`` is never a template.
_CALL: Final = re.compile(rb"/[A-Za-z0-9_.]+/[A-Za-z0-9_]+")
#: Calls whose names one connection keeps.
_KNOWN_NAMES: Final = 64
#: Characters of what is only reported.
_LONGEST_TEXT: Final = 256


def grpc_operation(path: bytes) -> str:
    """The operation of a gRPC call, ``POST /package.Service/Method`` as it is; other paths as everywhere."""
    if _CALL.fullmatch(path) is not None and len(path) < LONGEST - 5:
        return "POST " + path.decode("ascii")
    return operation_of("POST", path)


class _Call:
    """One request on its stream."""

    __slots__ = (
        "agent",
        "began",
        "grpc",
        "grpc_status",
        "host",
        "method",
        "name",
        "path",
        "received",
        "request_id",
        "sent",
        "status",
    )

    def __init__(self, began: float) -> None:
        self.began = began
        self.name = self.method = self.path = ""
        self.host = self.agent = self.request_id = ""
        self.grpc = False
        self.status = 0
        self.grpc_status = -1
        self.sent = 0
        self.received = 0


class H2Lane(LegRelay):
    """The lane of ``client`` and of one connection of the application."""

    __slots__ = ("_calls", "_from_client", "_from_server", "_last", "_names", "_port", "_site", "_under")

    def __init__(self, context: LaneContext, client: Leg, site: HttpSite | None = None) -> None:
        self._site = site = site if site is not None else HttpSite.of(context.fabric)
        self._under = context.connection
        self._port = context.port
        self._calls: dict[int, _Call] = {}
        self._last = 0
        self._names: dict[bytes, str] = {}
        settings = site.settings
        self._from_client: FrameReader | None = FrameReader(
            settings, self._asked, self._request_data, self._given_up, preface=True
        )
        self._from_server: FrameReader | None = FrameReader(
            settings, self._answered, self._response_data, self._given_up, preface=False
        )
        context.connection.record.protocol = "http2"
        server = context.dial(NOBODY)
        if server is None:
            client.reset()
            context.connection.finish(failed=True)
            return
        super().__init__(context.connection, client, server)
        site.watch(self)

    def received(self, leg: Leg, data: memoryview) -> None:
        super().received(leg, data)
        reader = self._from_client if leg is self._client else self._from_server
        if reader is not None:
            try:
                reader.feed(data)
            except Malformed as error:
                self._stop(error.reason)

    def lost(self, leg: Leg, why: str) -> None:
        super().lost(leg, why)
        self._farewell()

    def reset(self) -> None:
        super().reset()
        self._farewell()

    def sweep(self, now: float) -> None:
        """Only to be forgotten when it is over."""
        if self._under.record.closed:
            self._farewell()

    def judge_again(self) -> None:
        verdicts = self._site.verdicts(self._under.record.source, self._port)
        if verdicts.by_operation and not verdicts.of("").allowed:
            self.reset()

    # what is seen

    def _asked(self, stream: int, headers: tuple[Header, ...], end: bool) -> None:
        """A request's head, or its trailers."""
        if stream <= self._last:
            return
        self._last = stream
        if len(self._calls) >= self._site.settings.h2_streams:
            raise Malformed("h2-streams")
        call = self._calls[stream] = _Call(self._site.clock())
        path = b""
        for name, value in headers:
            if name == b":method":
                call.method = _text(value)
            elif name == b":path":
                path = value
            elif name == b":authority":
                call.host = _text(value)
            elif name == b"user-agent":
                call.agent = _text(value)
            elif name == b"x-request-id":
                call.request_id = _text(value)
            elif name == b"content-type" and value.startswith(b"application/grpc"):
                call.grpc = True
                self._under.record.protocol = "grpc"
        if not _METHOD.fullmatch(call.method):
            raise Malformed("h2-method")
        call.path = _text(path.partition(b"?")[0])
        call.name = self._name(call, path)

    def _answered(self, stream: int, headers: tuple[Header, ...], end: bool) -> None:
        """A response's head, or its trailers."""
        call = self._calls.get(stream)
        if call is None:
            return
        for name, value in headers:
            if name == b":status":
                if len(value) == 3 and value.isdigit():
                    call.status = int(value)
            elif name == b"grpc-status" and len(value) <= 3 and value.isdigit():
                call.grpc_status = int(value)
        if end:
            self._report(stream, call)

    def _request_data(self, stream: int, size: int, end: bool) -> None:
        call = self._calls.get(stream)
        if call is not None:
            call.sent += size

    def _response_data(self, stream: int, size: int, end: bool) -> None:
        call = self._calls.get(stream)
        if call is not None:
            call.received += size
            if end:
                self._report(stream, call)

    def _given_up(self, stream: int) -> None:
        """One of the two ends has reset the stream."""
        call = self._calls.get(stream)
        if call is not None:
            self._report(stream, call)

    def _stop(self, reason: str) -> None:
        """Look no more."""
        self._from_client = self._from_server = None
        self._calls.clear()
        self._site.unobserved[reason] += 1

    def _farewell(self) -> None:
        """The connection is over, and what was under way on it."""
        self._site.forget(self)
        self._from_client = self._from_server = None
        for stream, call in list(self._calls.items()):
            self._report(stream, call)

    def _report(self, stream: int, call: _Call) -> None:
        del self._calls[stream]
        record = self._under.record
        self._site.fabric.connections.flows.request(
            Request(
                record,
                self._site.name(self._port, call.name),
                record.decision,
                "grpc" if call.grpc else "http2",
                call.status,
                self._site.clock() - call.began,
                call.sent,
                call.received,
                call.grpc_status,
                call.method,
                call.path,
                call.host,
                call.agent,
                call.request_id,
            )
        )

    def _name(self, call: _Call, path: bytes) -> str:
        """The operation; kept for the few calls that a connection repeats."""
        if not call.grpc:
            return operation_of(call.method, path)
        name = self._names.get(path)
        if name is None:
            name = grpc_operation(path)
            if len(path) <= _LONGEST_TEXT:
                if len(self._names) >= _KNOWN_NAMES:
                    self._names.clear()
                self._names[path] = name
        return name


def _text(value: bytes) -> str:
    """What is only reported, without anything that a terminal or a log would act on."""
    text = value[:_LONGEST_TEXT].decode("latin-1")
    return text if text.isprintable() else ascii(text)[1:-1]
