"""mitmproxy's HTTP/2 connections with bounded buffers.

mitmproxy grants every sender 2 GiB at once and keeps what the other side does not take. Here a byte is granted again
only when the other side's connection no longer holds more than a stream's window of that stream, so that a connection
holds at most ``connection_window`` bytes in each direction. Beside that:

1. The table that our encoder keeps is ours to bound; the peer's SETTINGS_HEADER_TABLE_SIZE can only shrink it.
2. Streams that we reset are counted, for the guard (CVE-2025-8671).
3. Interim responses pass, and resets with their codes. GOAWAY never comes here (:mod:`sidecar.inspect.frame_guard`).
4. A connection that only holds on costs little: what h2 and hpack keep in queues with room for 64 entries each, and
   what mitmproxy makes only for us to make anew, would be two thirds of it.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import h2.errors
import h2.events
import h2.exceptions
from mitmproxy import http
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers.http import SendHttp
from mitmproxy.proxy.layers.http._base import HttpConnection, HttpEvent, ReceiveHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestData,
    RequestHeaders,
    RequestProtocolError,
    ResponseHeaders,
    ResponseProtocolError,
)
from mitmproxy.proxy.layers.http._http2 import Http2Client, Http2Connection, Http2Server, StreamState

from sidecar.inspect.h2_state import BoundedH2
from sidecar.inspect.http1 import Interim
from sidecar.inspect.messages import request_of_fields, response_of_fields
from sidecar.inspect.settings import Limits

#: Codes with which an application resets streams for its own reasons, and not for something that the client did.
_OWN_WISH: Final = (h2.errors.ErrorCodes.NO_ERROR, h2.errors.ErrorCodes.REFUSED_STREAM)


@dataclass
class Enough(HttpEvent):
    """The request was answered, and the rest of it is not wanted (RFC 9113 section 8.1)."""


class ResetByClient(RequestProtocolError):
    """``error`` is HTTP/2's code; it means something to whom it is for, such as that a request may be tried again."""

    def __init__(self, stream_id: int, error: int) -> None:
        super().__init__(stream_id, f"the client reset the stream with code {error}", ErrorCode.CANCEL)
        self.error = error


class ResetByApplication(ResponseProtocolError):
    """The same of the application."""

    def __init__(self, stream_id: int, error: int) -> None:
        super().__init__(stream_id, f"the application reset the stream with code {error}", ErrorCode.CANCEL)
        self.error = error


class _Numbers(dict[int, int]):
    """How the client names the application's streams; those that are over are nobody's."""

    def __missing__(self, stream_id: int) -> int:
        return 0


class _Streams(dict[int, StreamState]):
    """mitmproxy's note of what runs. What is over is taken out at once, also while mitmproxy goes through it."""

    def __iter__(self) -> Iterator[int]:
        return iter(list(self.keys()))

    # without the forms of a dict's own that raise, because mitmproxy takes out once more what is out already
    def pop(self, stream_id: int, default: StreamState | None = None) -> StreamState | None:  # type: ignore[override]
        return super().pop(stream_id, default)


class BoundedHalf(Http2Connection):
    """What both halves share.

    :ivar other: the half that takes what comes here; None before there is one
    """

    h2_conn: BoundedH2
    other: BoundedHalf | None = None

    def __init__(self, context: Context, limits: Limits) -> None:
        from_client = isinstance(self, Http2Server)
        # what Http2Connection does besides is make a connection of its own
        HttpConnection.__init__(self, context, context.client if from_client else context.server)
        self.h2_conf.validate_inbound_headers = context.options.validate_inbound_headers
        self.h2_conn = BoundedH2(self.h2_conf, limits)
        if not from_client:
            self.h2_conn.local_settings.enable_push = 0
            self.h2_conn.local_settings.acknowledge()
        self.streams = _Streams()
        self._granted_above = limits.stream_window
        self._owed: dict[int, int] = {}

    @property
    def holds(self) -> int:
        """Bytes kept because a window is full."""
        return sum(len(one.data) for held in self.h2_conn.stream_buffers.values() for one in held)

    def backlog_of(self, client_stream: int) -> int:
        """Bytes kept of a stream, named as the client names it."""
        raise NotImplementedError

    def client_stream(self, stream_id: int) -> int:
        """How the client names one of our streams."""
        raise NotImplementedError

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        self.h2_conn.code = event.error if isinstance(event, ResetByClient | ResetByApplication) else None
        yield from super()._handle_event(event)
        if isinstance(event, events.DataReceived) and self.other is not None:
            yield from self.other.grant()  # its sender may go on: our receiver took something
            yield from self.grant()

    def handle_h2_event(self, event: h2.events.Event) -> CommandGenerator[bool]:
        if isinstance(event, h2.events.DataReceived):
            stream_id = event.stream_id
            state = self.streams.get(stream_id)
            if state is StreamState.EXPECTING_HEADERS:
                return (yield from super().handle_h2_event(event))
            if state is StreamState.HEADERS_RECEIVED and event.data:
                yield ReceiveHttp(self.ReceiveData(stream_id, event.data))
            self._owed[stream_id] = self._owed.get(stream_id, 0) + event.flow_controlled_length
            if self.other is None:
                yield from self.grant()
            return False
        if isinstance(event, h2.events.StreamReset):
            self.h2_conn.forget(event.stream_id)
            if self.streams.pop(event.stream_id, None) is not None:
                reset = ResetByClient if isinstance(self, Http2Server) else ResetByApplication
                yield ReceiveHttp(reset(event.stream_id, int(event.error_code or 0)))
            return False
        if isinstance(event, h2.exceptions.ProtocolError):
            # it is kept where it was caught, and refers to that: nobody would be free of either but by the collector
            event.__traceback__ = event.__context__ = event.__cause__ = None
        return (yield from super().handle_h2_event(event))

    def grant(self) -> CommandGenerator[None]:
        """Let senders go on whose bytes were taken."""
        if not self._owed:
            return
        other = self.other
        for stream_id, size in list(self._owed.items()):
            if other is None or other.backlog_of(self.client_stream(stream_id)) <= self._granted_above:
                del self._owed[stream_id]
                if size:
                    self.h2_conn.acknowledge_received_data(size, stream_id)
        data = self.h2_conn.data_to_send()
        if data:
            yield commands.SendData(self.conn, data)


class BoundedServer(BoundedHalf, Http2Server):
    """The half that speaks with the client.

    :ivar answered: requests whose answer has begun
    """

    answered = 0

    def backlog_of(self, client_stream: int) -> int:
        return self.h2_conn.backlog(client_stream)

    def client_stream(self, stream_id: int) -> int:
        return stream_id

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        if isinstance(event, Interim):
            if self.is_open_for_us(event.stream_id):
                fields = [(b":status", b"%d" % event.status), *event.headers.fields]
                self.h2_conn.send_headers(event.stream_id, fields)
                yield commands.SendData(self.conn, self.h2_conn.data_to_send())
        elif isinstance(event, Enough):
            if not self.is_closed(event.stream_id):
                self.h2_conn.reset_stream(event.stream_id, h2.errors.ErrorCodes.NO_ERROR)
                self.h2_conn.resets -= 1  # our wish, not something that the client made us do
                self.streams.pop(event.stream_id, None)
                yield commands.SendData(self.conn, self.h2_conn.data_to_send())
        elif isinstance(event, ResetByApplication) and event.error in _OWN_WISH:
            if event.error or not self.h2_conn.backlog(event.stream_id):  # else it is behind an answer that is whole
                before = self.h2_conn.resets
                yield from super()._handle_event(event)
                self.h2_conn.resets = before
        else:
            if isinstance(event, ResponseHeaders):
                self.answered += 1
            yield from super()._handle_event(event)

    def handle_h2_event(self, event: h2.events.Event) -> CommandGenerator[bool]:
        if type(event) is h2.events.RequestReceived:  # mitmproxy's own way is longer: see sidecar.inspect.messages
            stream_id = event.stream_id
            try:
                request = request_of_fields(event.headers)
            except ValueError as error:
                yield from self.protocol_error(f"Invalid HTTP/2 request headers: {error}")
                return True
            self.streams[stream_id] = StreamState.HEADERS_RECEIVED
            yield ReceiveHttp(RequestHeaders(stream_id, request, end_stream=event.stream_ended is not None))
            return False
        return (yield from super().handle_h2_event(event))


class BoundedClient(BoundedHalf, Http2Client):
    """The half that speaks with the application."""

    def __init__(self, context: Context, limits: Limits) -> None:
        super().__init__(context, limits)
        self.our_stream_id = {}
        self.their_stream_id = _Numbers()
        self.stream_queue = collections.defaultdict(list)

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        if (
            isinstance(event, HttpEvent)
            and event.stream_id not in self.our_stream_id
            and not isinstance(event, RequestHeaders)
        ):
            waiting = self.stream_queue.get(event.stream_id)
            if waiting:  # its head waits for the application to allow one more stream
                if isinstance(event, RequestProtocolError):
                    del self.stream_queue[event.stream_id]
                else:
                    waiting.append(event)
            return
        yield from super()._handle_event(event)

    def backlog_of(self, client_stream: int) -> int:
        ours = self.our_stream_id.get(client_stream)
        waiting = self.stream_queue.get(client_stream)
        queued = sum(len(one.data) for one in waiting if isinstance(one, RequestData)) if waiting else 0
        return queued + (self.h2_conn.backlog(ours) if ours is not None else 0)

    def client_stream(self, stream_id: int) -> int:
        return self.their_stream_id[stream_id]

    def handle_h2_event(self, event: h2.events.Event) -> CommandGenerator[bool]:
        if type(event) is h2.events.InformationalResponseReceived:
            status = int(dict(event.headers)[b":status"])
            fields = [(name, value) for name, value in event.headers if not name.startswith(b":")]
            interim: HttpEvent = Interim(self.client_stream(event.stream_id), status, http.Headers(fields))
            yield SendHttp(interim, self.context.client)
            return False
        if (
            type(event) is h2.events.ResponseReceived
            and self.streams.get(event.stream_id) is StreamState.EXPECTING_HEADERS
        ):
            stream_id = event.stream_id
            try:
                response = response_of_fields(event.headers)
            except ValueError as error:
                yield from self.protocol_error(f"Invalid HTTP/2 response headers: {error}")
                return True
            self.streams[stream_id] = StreamState.HEADERS_RECEIVED
            yield ReceiveHttp(ResponseHeaders(stream_id, response, end_stream=event.stream_ended is not None))
            return False
        return (yield from super().handle_h2_event(event))

    def withdraw(self, client_stream: int) -> None:
        """If the application has not heard of it yet, because it allows no more streams, it never will."""
        self.stream_queue.pop(client_stream, None)

    def forget(self, client_stream: int) -> None:
        """A stream is over: nothing asks for its number any more."""
        self.withdraw(client_stream)
        ours = self.our_stream_id.pop(client_stream, None)
        if ours is not None:
            self.their_stream_id.pop(ours, None)
            self.streams.pop(ours, None)
