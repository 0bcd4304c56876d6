"""The state of one HTTP/2 connection as h2 keeps it, with bounds, and for receivers that change their minds.

What mitmproxy sets otherwise is undone; what h2 takes for the end of everything, although RFC 9113 does not, is mended:
windows that a receiver takes back, frames that it wants smaller, what was on its way to a stream that was reset, and a
client that begins more requests than it may before it could know how many it may (RFC 9113 section 5.1.2).
"""

from __future__ import annotations

import collections
from typing import Any, Final

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.stream
import hpack
from h2.stream import StreamClosedBy
from hyperframe.frame import DataFrame, Frame, HeadersFrame, RstStreamFrame, SettingsFrame
from mitmproxy.proxy.layers.http._http_h2 import BufferedH2Connection, SendH2Data

from sidecar.inspect import fields
from sidecar.inspect.frame_guard import FRAME_BYTES
from sidecar.inspect.settings import Limits

#: The most that our encoder's table may hold, bytes: the protocol's default.
_TABLE_BYTES: Final = 4096
#: A connection's window before anything was granted (RFC 9113 section 6.9.2).
_FIRST_WINDOW: Final = 65_535
#: States of streams on which we may go on to send.
_WRITABLE: Final = (h2.stream.StreamState.OPEN, h2.stream.StreamState.HALF_CLOSED_REMOTE)

fields.install()


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
        value = min(value, _TABLE_BYTES)
        if value != self.header_table_size:  # hpack forgets to tell of a change when the same is set once more
            hpack.Encoder.header_table_size.fset(self, value)  # type: ignore[attr-defined]  # a property's


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

    :ivar resets: streams that we have reset, without those that were refused
    :ivar refused: streams that were refused because too many are alive; nobody has heard of them, and each may be
        tried again
    :ivar untold: of those the ones whose client had not acknowledged how many it may have
    :ivar code: of the reset that is being passed on
    """

    code: int | None = None
    refused = 0
    untold = 0
    _told = False  # the peer has acknowledged our settings

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

    def end_stream(self, stream_id: int) -> None:
        held = self.stream_buffers.get(stream_id)
        if not (held and held[-1].end_stream):  # an early answer is ended once more when its request is
            super().end_stream(stream_id)

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
        super().reset_stream(stream_id, error_code if self.code is None else self.code)

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
        try:
            return super()._receive_headers_frame(frame)
        except h2.exceptions.TooManyStreamsError:  # raised before anything was done with the frame
            if self.config.client_side or frame.stream_id <= self.highest_inbound_stream_id or not frame.stream_id % 2:
                raise
            return self._refuse(frame)

    def _refuse(self, frame: HeadersFrame) -> tuple[list[Frame], list[h2.events.Event]]:
        """The stream was never there, for all but its client and the table of headers."""
        self.state_machine.process_input(h2.connection.ConnectionInputs.RECV_HEADERS)
        h2.connection._decode_headers(self.decoder, frame.data)
        self.highest_inbound_stream_id = frame.stream_id
        self._closed_streams[frame.stream_id] = StreamClosedBy.SEND_RST_STREAM
        self.refused += 1
        if not self._told:
            self.untold += 1
        self.resets -= 1  # counted when it is sent, but this is our wish
        return [RstStreamFrame(frame.stream_id, h2.errors.ErrorCodes.REFUSED_STREAM)], []

    def _receive_settings_frame(self, frame: SettingsFrame) -> tuple[list[Frame], list[h2.events.Event]]:
        if "ACK" in frame.flags:
            self._told = True
        return super()._receive_settings_frame(frame)

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
