"""mitmproxy's HTTP/2 connections with bounded buffers.

mitmproxy grants every sender 2 GiB at once and keeps what the other side does not take. Here a byte is granted again
only when the other side's connection no longer holds more than a stream's window of that stream, so that a connection
holds at most ``connection_window`` bytes in each direction. Beside that:

1. The table that our encoder keeps is ours to bound; the peer's SETTINGS_HEADER_TABLE_SIZE can only shrink it.
2. Streams that we reset are counted, for the guard (CVE-2025-8671).
3. Interim responses pass. GOAWAY never comes here (:mod:`sidecar.inspect.frame_guard`).
4. A connection that only holds on costs little: what h2 and hpack keep in queues with room for 64 entries each, and
   what mitmproxy makes only for us to make anew, would be two thirds of it.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.stream
import hpack
from h2.stream import StreamClosedBy
from hyperframe.frame import DataFrame, Frame, HeadersFrame, RstStreamFrame
from mitmproxy import http
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers.http import SendHttp
from mitmproxy.proxy.layers.http._base import HttpConnection, HttpEvent, ReceiveHttp
from mitmproxy.proxy.layers.http._events import RequestData, RequestHeaders, RequestProtocolError, ResponseHeaders
from mitmproxy.proxy.layers.http._http2 import Http2Client, Http2Connection, Http2Server, StreamState
from mitmproxy.proxy.layers.http._http_h2 import BufferedH2Connection, SendH2Data

from sidecar.inspect import fields
from sidecar.inspect.frame_guard import FRAME_BYTES
from sidecar.inspect.http1 import Interim
from sidecar.inspect.settings import Limits

#: The most that our encoder's table may hold, bytes: the protocol's default.
_TABLE_BYTES: Final = 4096
#: A connection's window before anything was granted (RFC 9113 section 6.9.2).
_FIRST_WINDOW: Final = 65_535
#: States of streams on which we may go on to send.
_WRITABLE: Final = (h2.stream.StreamState.OPEN, h2.stream.StreamState.HALF_CLOSED_REMOTE)

fields.install()


@dataclass
class Enough(HttpEvent):
    """The request was answered, and the rest of it is not wanted (RFC 9113 section 8.1)."""


class _Encoder(hpack.Encoder):
    """Packs no text: hpack's code for that takes a time that grows with the square of the length, so that a head of
    64 KiB, which may come as often as it likes, would stop everybody for a tenth of a second."""

    def encode(self, headers: Any, huffman: bool = True) -> bytes:
        return super().encode(headers, huffman=False)

    @property
    def header_table_size(self) -> int:
        return int(self.header_table.maxsize)

    @header_table_size.setter
    def header_table_size(self, value: int) -> None:
        hpack.Encoder.header_table_size.fset(self, min(value, _TABLE_BYTES))  # type: ignore[attr-defined]  # a property's


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


class _Values(list[Any]):
    """Of one setting the value in force, and those that the peer has not acknowledged."""

    def popleft(self) -> Any:
        return self.pop(0)


class _Entries(list[tuple[bytes, bytes]]):
    """Of a header table, which holds a hundred at most; the newest first."""

    def appendleft(self, entry: tuple[bytes, bytes]) -> None:
        self.insert(0, entry)


class BoundedH2(BufferedH2Connection):
    """The parser's state, with windows of our size.

    :ivar resets: streams that we have reset
    """

    def __init__(self, config: h2.config.H2Configuration, limits: Limits) -> None:
        h2.connection.H2Connection.__init__(self, config)  # mitmproxy's sets only what is set otherwise here
        self.stream_buffers = collections.defaultdict(collections.deque)
        self.stream_trailers = {}
        settings = self.local_settings
        for each in (settings, self.remote_settings):
            values: Any = {name: _Values(held) for name, held in each._settings.items()}
            each._settings = values
        settings.initial_window_size = limits.stream_window
        settings.max_frame_size = FRAME_BYTES
        settings.max_header_list_size = limits.head_bytes
        if not config.client_side:
            settings.max_concurrent_streams = limits.streams
        settings.acknowledge()
        self.decoder.max_header_list_size = limits.head_bytes
        self.max_inbound_frame_size = FRAME_BYTES
        self.encoder = _Encoder()
        for table in (self.encoder.header_table, self.decoder.header_table):
            entries: Any = _Entries()
            table.dynamic_entries = entries
        self.resets = 0
        self._window = limits.connection_window

    def initiate_connection(self) -> None:
        h2.connection.H2Connection.initiate_connection(self)
        if self._window > _FIRST_WINDOW:
            self.increment_flow_control_window(self._window - _FIRST_WINDOW)

    def backlog(self, stream_id: int) -> int:
        """Bytes of a stream that its receiver has given no window for."""
        held = self.stream_buffers.get(stream_id)
        return sum(len(one.data) for one in held) if held else 0

    def send_data(  # type: ignore[override]  # mitmproxy's takes no more than this either
        self, stream_id: int, data: bytes, end_stream: bool = False, pad_length: None = None
    ) -> None:
        fits = len(data) <= self.max_outbound_frame_size  # else it comes again, in pieces
        if fits and not self.stream_buffers.get(stream_id) and self.local_flow_control_window(stream_id) < 0:
            # the receiver took back what it had given (RFC 9113 section 6.9.2); not even an end may be sent by h2
            self.stream_buffers[stream_id].append(SendH2Data(data, end_stream))
        else:
            super().send_data(stream_id, data, end_stream, pad_length)

    def stream_window_updated(self, stream_id: int) -> bool:
        """Send what was held of a stream: as far as there is room, in frames as large as they may be by now."""
        stream = self.streams.get(stream_id)
        if stream is None or stream.state_machine.state not in _WRITABLE:
            self.forget(stream_id)
            return False
        held, sent = self.stream_buffers.get(stream_id), False
        while held:
            room = min(self.local_flow_control_window(stream_id), self.max_outbound_frame_size)
            if room <= 0:
                return sent
            chunk = held.popleft()
            rest = chunk.data[room:]
            if rest:
                held.appendleft(SendH2Data(rest, chunk.end_stream))
            end = chunk.end_stream and not rest
            h2.connection.H2Connection.send_data(self, stream_id, chunk.data[:room], end_stream=end)
            sent = True
        self.stream_buffers.pop(stream_id, None)
        trailers = self.stream_trailers.pop(stream_id, None)
        if trailers is not None:
            self.send_headers(stream_id, trailers, end_stream=True)
        return sent

    def reset_stream(self, stream_id: int, error_code: int = 0) -> None:
        self.forget(stream_id)
        super().reset_stream(stream_id, error_code)

    def forget(self, stream_id: int) -> None:
        """What is held of a stream is for nobody any more."""
        self.stream_buffers.pop(stream_id, None)
        self.stream_trailers.pop(stream_id, None)

    # h2 answers what was on its way to a stream that we reset with one more reset each, and takes an interim response
    # for the end of everything; RFC 9113 section 5.4.2: it is to be ignored

    def _late(self, stream_id: int) -> bool:
        return self._stream_closed_by(stream_id) is StreamClosedBy.SEND_RST_STREAM

    def _receive_headers_frame(self, frame: HeadersFrame) -> tuple[list[Frame], list[h2.events.Event]]:
        if self._late(frame.stream_id):
            h2.connection._decode_headers(self.decoder, frame.data)  # both ends' tables stay the same
            return [], []
        return super()._receive_headers_frame(frame)

    def _handle_data_on_closed_stream(
        self, events: list[h2.events.Event], exc: h2.exceptions.StreamClosedError, frame: DataFrame
    ) -> tuple[list[Frame], list[h2.events.Event]]:
        frames, events = super()._handle_data_on_closed_stream(events, exc, frame)
        if self._late(frame.stream_id):
            frames = [one for one in frames if not isinstance(one, RstStreamFrame)]
        return frames, events

    def _prepare_for_sending(self, frames: list[Frame]) -> None:
        for frame in frames:
            if type(frame) is RstStreamFrame:
                self.resets += 1
        super()._prepare_for_sending(frames)


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
        else:
            if isinstance(event, ResponseHeaders):
                self.answered += 1
            yield from super()._handle_event(event)


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
