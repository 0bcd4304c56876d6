"""HTTP/2 and gRPC, observed: bytes are passed on as they are, after they were read.

Rules:

1. What the client sends is read before it is passed on, and a head of which the last byte was not passed on is none to
   the application. So no request reaches it with a header that only we may set (``x-forwarded-client-cert``,
   ``x-hedgerow-*``), nor with a field that could smuggle one into HTTP/1: its connection ends, which is counted and
   said, to the client too: by a GOAWAY that names the reason, where one can be sent. Nothing can be taken out of a head
   here, because every later head builds on its bytes; connections in the ``inspect`` lane have such headers stripped.
2. The same becomes of a client whose bytes can not be read, whose heads pass a bound, or who leaves a head, or anything
   else but a body, half sent for ``head_timeout``: what is not read can not be vouched for, and what is half sent holds
   memory here and at the application.
3. What the application sends is only observed. What can not be read of it, or is too much to be kept in mind, ends the
   observation, is counted, and costs no byte.
4. No other verdict depends on what is read. Where operations have to be judged, another lane takes the connection; when
   such rules come into force later, this connection is judged as one whose operation is not known.
5. While we drain, the client is asked to go elsewhere (RFC 9113 section 6.8) at the next place between two frames; the
   connection ends when its last request does.
6. The application is called when the client has sent a whole head, or has sent its preface with the first frame, whole,
   and nothing half behind it. The latter is all that a client has to say before it may wait for the application's
   SETTINGS (RFC 9113 section 3.4), which nobody but the application can send: it would wait for ever. Half a preface,
   or half a head that came with it, calls nobody, and nor does a client that ends before. What came until then is held
   here, no more than goes into one head and what may stand before it.
"""

from __future__ import annotations

import logging
import re
from typing import Final

from sidecar.dataplane.contracts import Request
from sidecar.dataplane.lane_context import LaneContext
from sidecar.dataplane.leg_relay import LegRelay
from sidecar.dataplane.legs import Leg
from sidecar.http.errors import Malformed
from sidecar.http.frames import ANY_STREAM, ENHANCE_YOUR_CALM, NO_SETTINGS, PROTOCOL_ERROR, FrameReader, goaway
from sidecar.http.grpc_messages import Messages, is_grpc
from sidecar.http.h2_call import Call
from sidecar.http.h2_fields import check_fields
from sidecar.http.hpack import Header
from sidecar.http.operation import operation_of
from sidecar.http.site import HttpSite
from sidecar.http.uncalled import Uncalled

_METHOD: Final = re.compile(r"[A-Z][A-Z0-9_-]{0,31}")
#: Stands for a method that is none; rules can not name it, and HTTP/2 has another way to say that a head is wrong.
_NO_METHOD: Final = "UNCLEAR"
#: When somebody is asked to go who is not asked yet.
_NOT_YET: Final = float("inf")
#: Characters of what is only reported.
_LONGEST_TEXT: Final = 256


class H2Lane(LegRelay):
    """The lane of ``client`` and of one connection of the application."""

    __slots__ = (
        "_asked_to_go",
        "_calls",
        "_context",
        "_drop_left",
        "_from_client",
        "_from_server",
        "_half_since",
        "_last",
        "_parting",
        "_port",
        "_site",
        "_uncalled",
        "_under",
    )

    def __init__(self, context: LaneContext, client: Leg, site: HttpSite | None = None) -> None:
        self._site = site = site if site is not None else HttpSite.of(context.fabric)
        self._context = context
        self._under = context.connection
        self._port = context.port
        self._calls: dict[int, Call] | None = {}  # None: it is not known what runs
        self._last = 0
        self._asked_to_go: float | None = None  # since when the client is; infinite: not yet, but it is to be
        self._half_since: float | None = None  # since when the client leaves something half sent
        self._parting: float | None = None  # until when the client, who was refused, may take our last word
        self._drop_left = 0  # bytes that it may send meanwhile
        settings = site.settings
        self._from_client: FrameReader | None = FrameReader(
            settings,
            self._asked,
            self._request_data,
            self._given_up,
            self._request_messages,
            preface=True,
            check=check_fields,
        )
        self._from_server: FrameReader | None = FrameReader(
            settings, self._answered, self._response_data, self._given_up, self._response_messages, preface=False
        )
        context.connection.record.protocol = "http2"
        context.connection.by_operation = False
        self._uncalled: Uncalled | None = (uncalled := Uncalled())  # None: the application is called
        super().__init__(context.connection, client, uncalled)
        site.watch(self, context.port)

    def received(self, leg: Leg, data: memoryview) -> None:
        if self._parting is not None:
            self._drop(leg, len(data))
            return
        if leg is not self._client:
            self._from_application(data)
            return
        reader = self._from_client
        if reader is None:
            return  # it is over
        try:
            reader.feed(data)
        except Malformed as error:
            self._refuse(error.reason, PROTOCOL_ERROR)
            return
        if not reader.half:
            self._half_since = None
        elif self._half_since is None or reader.boundary >= 0:
            self._half_since = self._site.clock()
        super().received(leg, data)
        if self._uncalled is not None:
            if self._last or not reader.half:
                self._call_application(self._uncalled)
            elif self._uncalled.held > self._site.settings.h2_block_bytes + self._site.settings.h2_early_bytes:
                self._refuse("h2-before-a-head", ENHANCE_YOUR_CALM)

    def _call_application(self, uncalled: Uncalled) -> None:
        server = self._context.dial(self)
        if server is None:
            self._client.reset()
            self._over = True
            self._under.finish(failed=True)
            self._farewell()
            return
        self._server, self._uncalled = server, None
        uncalled.give_to(server)
        if server.unsent:
            self._client.pause()

    def _from_application(self, data: memoryview) -> None:
        reader = self._from_server
        if reader is not None:
            try:
                reader.feed(data)
            except Malformed as error:
                self._stop_observing(error.reason)
            else:
                if self._asked_to_go == _NOT_YET:
                    data = self._ask_within(data, reader.boundary)
        if data:
            super().received(self._server, data)

    def drained(self, leg: Leg) -> None:
        if self._parting is None:
            super().drained(leg)
        else:
            self._part_when_sent()

    def ended(self, leg: Leg) -> None:
        if self._parting is None and self._uncalled is None:
            super().ended(leg)
        else:
            if self._uncalled is not None:
                self._client.end()  # nothing that it has begun can become whole
            self._client_ended = True
            self._part_when_sent()

    def lost(self, leg: Leg, why: str) -> None:
        super().lost(leg, why)
        self._farewell()

    def reset(self) -> None:
        super().reset()
        self._farewell()

    # clients that are refused

    def _refuse(self, reason: str, code: int) -> None:
        """The client sent what must not reach the application, or takes too long to send it."""
        site, record = self._site, self._under.record
        site.malformed[reason] += 1
        site.fabric.guards.counters.requests_malformed += 1
        text = "ended an HTTP/2 connection of %s to port %d: %s"
        who = record.source_identity or record.source.address
        site.fabric.complaints.say(logging.WARNING, text, who, self._port, reason)
        reader = self._from_server
        if reader is None or not reader.between_frames:
            self.reset()
            return
        # No stream counts as one that was not served: whoever asked for this would only ask again.
        last_word = goaway(ANY_STREAM, code, reason.encode())
        self._client.write(last_word if record.bytes_received else NO_SETTINGS + last_word)
        self._client.end()
        self._client.resume()
        self._server.reset()
        self._parting = site.clock() + site.settings.linger
        self._drop_left = site.settings.linger_bytes
        self._tell_all()
        self._part_when_sent()

    def _drop(self, leg: Leg, size: int) -> None:
        """A client that was refused goes on."""
        if leg is self._client:
            self._drop_left -= size
            if self._drop_left < 0:
                self.reset()

    def _part_when_sent(self) -> None:
        """It is over when the client has our last word and has said its own. Until then it counts as a connection."""
        if not self._over and self._client_ended and not self._client.unsent:
            self._over = True
            self._connection.finish(failed=not self._server.reached)
            self._farewell()

    # draining

    def sweep(self, now: float) -> None:
        """Forget what is over, end what takes too long; ask the client to go when we drain, and let it go when it has
        nothing more to do."""
        if self._under.record.closed:
            self._farewell()
            return
        if self._parting is not None:
            if now >= self._parting:
                self.reset()
            return
        if self._half_since is not None:
            if self._server.unsent:
                self._half_since = now  # it is not read meanwhile, and may have sent the rest
            elif now >= self._half_since + self._site.settings.head_timeout:
                self._refuse("head-timeout", ENHANCE_YOUR_CALM)
                return
        if self._asked_to_go is None:
            reader = self._from_server
            if self._site.unwelcome(self._port) and reader is not None:
                self._asked_to_go = _NOT_YET
                if reader.between_frames and self._under.record.bytes_received:  # its SETTINGS come first
                    self._ask_to_go()
        elif now >= self._asked_to_go + self._site.settings.sweep and self._calls is not None and not self._calls:
            self._client.end()
            self._server.end()

    def _ask_within(self, data: memoryview, boundary: int) -> memoryview:
        """Ask the client at that place in what the application sends, if it is one; answers with what is behind it."""
        if boundary < 0 or not boundary + self._under.record.bytes_received:
            return data
        if boundary:
            super().received(self._server, data[:boundary])
        self._ask_to_go()
        return data[boundary:]

    def _ask_to_go(self) -> None:
        self._asked_to_go = self._site.clock()
        self._client.write(goaway(ANY_STREAM))

    def judge_again(self) -> None:
        """Not here: the register of connections judges it as one whose operation is not known."""

    # what is seen

    def _asked(self, stream: int, headers: tuple[Header, ...], end: bool) -> None:
        """A request's head, or its trailers."""
        if stream <= self._last:
            return
        self._last = stream
        if self._calls is None:
            return
        if len(self._calls) >= self._site.settings.h2_streams:
            self._stop_observing("h2-streams")
            return
        call = self._calls[stream] = Call(self._site.clock())
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
            elif name == b"content-type" and is_grpc(value):
                call.grpc = True
                call.questions = Messages()
                self._under.record.protocol = "grpc"
        if not _METHOD.fullmatch(call.method):
            call.method = _NO_METHOD
        call.path = _text(path.partition(b"?")[0])
        call.name = operation_of(call.method, path)

    def _answered(self, stream: int, headers: tuple[Header, ...], end: bool) -> None:
        """A response's head, or its trailers."""
        call = self._call(stream)
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
        elif call.grpc and call.status == 200:
            for name, value in headers:
                if name == b"content-type":
                    call.answers = Messages() if is_grpc(value) else None
                    break

    def _request_data(self, stream: int, size: int, end: bool) -> Messages | None:
        call = self._call(stream)
        if call is None:
            return None
        call.sent += size
        return call.questions

    def _response_data(self, stream: int, size: int, end: bool) -> Messages | None:
        call = self._call(stream)
        if call is None:
            return None
        call.received += size
        if end:
            self._report(stream, call)
        return call.answers

    def _request_messages(self, count: int) -> None:
        self._under.record.request_messages += count

    def _response_messages(self, count: int) -> None:
        self._under.record.response_messages += count

    def _given_up(self, stream: int) -> None:
        """One of the two ends has reset the stream."""
        call = self._call(stream)
        if call is not None:
            self._report(stream, call)

    def _call(self, stream: int) -> Call | None:
        return self._calls.get(stream) if self._calls is not None else None

    def _stop_observing(self, reason: str) -> None:
        """Keep nothing in mind any more; what the client sends is still read."""
        self._from_server = None
        self._calls = None
        self._site.unobserved[reason] += 1

    def _farewell(self) -> None:
        """The connection is over, and what was under way on it. Its readers tell us, and would keep us alive."""
        self._from_client = None
        self._site.forget(self)
        self._tell_all()

    def _tell_all(self) -> None:
        """Tell of what is under way and will not be finished; nothing more is observed."""
        self._from_server = None
        for stream, call in list(self._calls.items()) if self._calls else ():
            self._report(stream, call)

    def _report(self, stream: int, call: Call) -> None:
        assert self._calls is not None
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


def _text(value: bytes) -> str:
    """What is only reported, without anything that a terminal or a log would act on."""
    text = value[:_LONGEST_TEXT].decode("latin-1")
    return text if text.isprintable() else ascii(text)[1:-1]
