"""yamux frames: what goes over a tunnel, read strictly and without I/O.

A frame is a header of 12 bytes (version, type, flags, stream id, length; big-endian) and, for data, ``length`` bytes.
Source: the yamux specification (hashicorp/yamux, ``spec.md``). Stricter than it:

1. Only the combinations of type and flags in :data:`VALID` exist. Anything else ends the tunnel.
2. Data and window updates belong to a stream, pings and GoAway to the session (stream 0).
3. Nothing is ever collected: a frame that arrives in pieces is passed on in pieces.
4. A call reads a bounded number of frames. What each of them costs others is little, but a read holds twenty thousand.
"""

from __future__ import annotations

import struct
from typing import Final, Protocol

from sidecar.errors import SidecarError

HEADER: Final = struct.Struct("!III")  # version, type and flags as one word
HEADER_SIZE: Final = HEADER.size
#: Payload of a full frame: header and payload together fill four TLS records of 16,384 bytes.
PAYLOAD: Final = 65_536 - HEADER_SIZE
#: Bytes that may be in flight in a new stream, per direction. Fixed by the specification.
WINDOW: Final = 262_144
#: The largest window that a peer may grant.
WINDOW_LIMIT: Final = (1 << 32) - 1

DATA: Final = 0 << 16
WINDOW_UPDATE: Final = 1 << 16
PING: Final = 2 << 16
GO_AWAY: Final = 3 << 16

SYN: Final = 1
ACK: Final = 2
FIN: Final = 4
RST: Final = 8
FLAGS: Final = 0xFFFF
#: A reset that says more, in a form that yamux has and nobody else uses: nothing of the stream has reached the
#: application, which could not be called. Its bytes may be sent elsewhere. Whoever knows nothing of this sees a reset.
UNREACHED: Final = DATA | RST

#: Reasons of a GoAway.
NORMAL: Final = 0
PROTOCOL_ERROR: Final = 1
INTERNAL_ERROR: Final = 2

_STREAM_FLAGS: Final = (0, SYN, ACK, FIN, RST, SYN | FIN, ACK | FIN)
#: Every first word that a frame may begin with. The version is 0.
VALID: Final = frozenset(
    [kind | flags for kind in (DATA, WINDOW_UPDATE) for flags in _STREAM_FLAGS] + [PING | SYN, PING | ACK, GO_AWAY]
)


#: Frames that one call reads, where the opening of a stream counts as :data:`_OPEN` and data, each of which may be a
#: call of the system, as :data:`_DATA`: some milliseconds of work at most.
FRAMES: Final = 512
_OPEN: Final = 8
_DATA: Final = 4


class FrameError(SidecarError):
    """The peer broke the protocol; its tunnel is ended with GoAway(protocol error)."""


class Receiver(Protocol):
    """Takes the payload of one stream."""

    def deliver(self, payload: memoryview, size: int) -> None:
        """Take ``size`` bytes, valid during the call only."""

    def finish(self) -> None:
        """The peer will send no more."""

    def deliver_last(self, payload: memoryview, size: int) -> None:
        """Both at once: ``size`` bytes, and then no more."""


class FrameSink(Protocol):
    """Is told of every frame."""

    def on_data(self, stream_id: int, flags: int, length: int) -> Receiver | None:
        """A data frame begins; its payload goes to the answer, or nowhere. The sink has checked the window.

        ``flags`` may hold SYN, ACK or RST, which the sink acts on. FIN is reported by ``finish`` after the payload.
        """

    def on_control(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        """A frame without payload: WINDOW_UPDATE, PING or GO_AWAY with its flags and its number."""

    def fault(self, stream_id: int) -> None:
        """Whoever took a frame for this stream raised what is no :class:`FrameError`: it is ours to end the stream, and
        no reason to end the others. Called while the exception is handled."""


class FrameReader:
    """Cuts a byte stream into frames and hands them to ``sink``."""

    __slots__ = ("_fin", "_receiver", "_remaining", "_sink", "_stream_id", "closed", "held")

    def __init__(self, sink: FrameSink) -> None:
        self._sink = sink
        self._remaining = 0  # payload bytes of the present data frame still to come
        self._receiver: Receiver | None = None
        self._stream_id = 0
        self._fin = False
        #: Bytes of an unfinished header, or of more when there were too many frames for one call. The caller puts them
        #: in front of what comes next, which is nothing as long as they hold a whole header.
        self.held = b""
        #: Set by the sink's owner to drop the rest of what is being read; feed it no more then.
        self.closed = False

    def feed(self, buffer: bytearray, view: memoryview, end: int) -> None:
        """Read ``buffer[:end]``, which begins with ``held``. ``view`` is a view of ``buffer``.

        :raises FrameError: when the peer broke the protocol; the reader must not be used again
        """
        self.held = b""
        position = 0
        left = FRAMES
        sink = self._sink
        if self._remaining:
            size = self._remaining if self._remaining < end else end
            receiver = self._receiver
            self._remaining -= size
            position = size
            if not self._remaining:
                self._receiver = None
            if receiver is not None:
                try:
                    if self._fin and not self._remaining:
                        receiver.deliver_last(view[:size], size)
                    else:
                        receiver.deliver(view[:size], size)
                except FrameError:
                    raise
                except Exception:
                    self._receiver = None
                    sink.fault(self._stream_id)
        while end - position >= HEADER_SIZE and left > 0:
            word, stream_id, length = HEADER.unpack_from(buffer, position)
            position += HEADER_SIZE
            if word not in VALID:
                raise FrameError(f"frame header {word:#010x} is no frame of yamux version 0")
            try:
                if word <= FLAGS:
                    if word & RST and length:
                        raise FrameError("a reset that carries data")
                    if stream_id == 0:
                        raise FrameError("data for stream 0")
                    start, size = position, length
                    if size > end - start:
                        size = end - start
                        self._remaining = length - size
                        self._stream_id = stream_id
                        self._fin = bool(word & FIN)
                    position = start + size
                    receiver = sink.on_data(stream_id, word, length)
                    if receiver is not None:
                        if size < length:
                            self._receiver = receiver
                            if size:
                                receiver.deliver(view[start:position], size)
                        elif not word & FIN:
                            if size:
                                receiver.deliver(view[start:position], size)
                        elif size:
                            receiver.deliver_last(view[start:position], size)
                        else:
                            receiver.finish()
                else:
                    kind = word & ~FLAGS
                    if (kind == WINDOW_UPDATE) != (stream_id != 0):
                        raise FrameError(f"a frame of type {kind >> 16} for stream {stream_id}")
                    if word & RST and length:
                        raise FrameError("a reset that grants a window")
                    sink.on_control(kind, word & FLAGS, stream_id, length)
            except FrameError:
                raise
            except Exception:
                if not stream_id:
                    raise
                self._receiver = None  # of this frame, if there is one: no frame is begun before another has ended
                sink.fault(stream_id)
            if self.closed:
                return
            left -= _OPEN if word & SYN else _DATA if word <= FLAGS else 1
        if position < end:
            self.held = bytes(view[position:end])


class Rate:
    """A token bucket: ``per_second`` in the long run, twice as many at once."""

    __slots__ = ("_at", "_left", "_per_second")

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._left = 2 * per_second
        self._at = 0.0

    def take(self, now: float) -> bool:
        """Whether one more is within the rate at ``now`` (seconds, any origin, never going back)."""
        left = min(2 * self._per_second, self._left + (now - self._at) * self._per_second) if self._at else self._left
        self._at = now
        if left < 1:
            self._left = left
            return False
        self._left = left - 1
        return True
