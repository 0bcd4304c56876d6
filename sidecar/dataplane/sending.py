"""The sending half of a tunnel: one buffer of frames, encrypted and sent once per batch.

Rules:

1. Streams read their local sockets straight into the buffer, behind a header that they reserve; it is encrypted and
   sent at the end of the batch (:mod:`sidecar.dataplane.reactor`).
2. When the kernel takes no more, streams wait in a queue, one frame each.
3. Control frames never wait for room, because what they say must not be lost. A peer that asks for many and does not
   read is bounded by ``control_bytes``.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import Final

from sidecar.dataplane import frames
from sidecar.dataplane.reactor import IN, OUT, Pump, Reactor
from sidecar.dataplane.tls import Channel

#: Frames that wait for the end of the batch; reading of applications stops when it is full.
SEND_BUFFER: Final = 4 * (frames.HEADER_SIZE + frames.PAYLOAD)
#: Room for control frames behind it.
SLACK: Final = 4096


class Sender:
    """Sends the frames of one tunnel.

    :param control_bytes: control frames queued beyond the buffer before the tunnel fails
    :param failed: called with the reason when nothing can be sent any more; must call :meth:`close`
    """

    # buffer, view and position are the streams' too: they read straight into the buffer.
    __slots__ = (
        "_channel",
        "_control_limit",
        "_dirty",
        "_failed",
        "_pending",
        "_reactor",
        "_sent",
        "_sock",
        "_waiting",
        "blocked",
        "buffer",
        "closed",
        "position",
        "view",
    )

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        channel: Channel,
        control_bytes: int,
        failed: Callable[[str], None],
    ) -> None:
        self._reactor = reactor
        self._sock = sock
        self._channel = channel
        self._control_limit = SEND_BUFFER + SLACK + control_bytes
        self._failed = failed
        self.buffer: bytearray | None = None
        self.view: memoryview | None = None
        self.position = 0
        self._pending: memoryview | None = None  # encrypted bytes that the kernel did not take
        self._dirty = False
        self._waiting: list[Pump] = []  # streams that have more to send than fits now
        self._sent: Callable[[], None] | None = None
        #: The kernel takes no more for now.
        self.blocked = False
        self.closed = False

    # the streams' side

    def borrow(self) -> None:
        """Take a buffer; it goes back when it is sent."""
        buffers = self._reactor.buffers
        self.buffer = buffers.pop() if buffers else bytearray(SEND_BUFFER + SLACK)
        self.view = memoryview(self.buffer)

    def give_back(self) -> None:
        """Give an empty buffer back."""
        buffer, self.buffer, self.view = self.buffer, None, None
        if buffer is not None and len(buffer) == SEND_BUFFER + SLACK and len(self._reactor.buffers) < 16:
            self._reactor.buffers.append(buffer)

    def mark(self) -> None:
        """Have the buffer sent at the end of the batch."""
        if not self._dirty:
            self._dirty = True
            self._reactor.mark_dirty(self)

    def wait(self, stream: Pump) -> None:
        """Have ``stream`` pumped when there is room again."""
        stream.queued = True
        self._waiting.append(stream)

    def again(self, stream: Pump) -> None:
        """Have ``stream`` pumped after everybody else."""
        self._reactor.pump_again(stream)

    def control(self, word: int, stream_id: int, number: int) -> None:
        """Queue a frame without payload."""
        if self.closed:
            return
        if self.buffer is None:
            self.borrow()
        assert self.buffer is not None
        position = self.position
        if position + frames.HEADER_SIZE > len(self.buffer):
            if len(self.buffer) >= self._control_limit:
                self._reactor.loop.call_soon(self._failed, "the peer does not read")
                return
            self.view = None
            self.buffer = self.buffer + bytearray(min(len(self.buffer), self._control_limit))
            self.view = memoryview(self.buffer)
        frames.HEADER.pack_into(self.buffer, position, word, stream_id, number)
        self.position = position + frames.HEADER_SIZE
        if not self._dirty:
            self._dirty = True
            self._reactor.mark_dirty(self)

    # the socket's side

    def flush(self) -> None:
        """Encrypt what is in the buffer and give it to the kernel."""
        self._dirty = False
        if self.blocked or self.closed:
            return
        size = self.position
        if size:
            view = self.view
            assert view is not None
            write = self._channel.write
            try:
                done = write(view[:size])
                while done < size:
                    done += write(view[done:size])
            except ssl.SSLError as error:
                self._failed(str(error))
                return
            self.position = 0
            self.give_back()
        data = self._channel.outgoing.read()
        if not data:
            if self._sent is not None:
                self._sent()
            return
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._failed(str(error))
            return
        if sent < len(data):
            self._pending = memoryview(data)[sent:]
            self.blocked = True
            self._reactor.modify(self._sock, IN | OUT)
        elif self._sent is not None:
            self._sent()

    def writable(self) -> None:
        """The kernel takes bytes again."""
        pending = self._pending
        assert pending is not None
        try:
            sent = self._sock.send(pending)
        except BlockingIOError:
            return
        except OSError as error:
            self._failed(str(error))
            return
        if sent < len(pending):
            self._pending = pending[sent:]
            return
        self._pending = None
        self.blocked = False
        self._reactor.modify(self._sock, IN)
        self.flush()
        waiting, self._waiting = self._waiting, []
        for stream in waiting:
            stream.queued = False
            stream.pump()

    # ending

    def finish(self, sent: Callable[[], None]) -> None:
        """Have ``sent`` called when everything has left. It may be called again for what is queued later."""
        self._sent = sent
        self.mark()

    def close(self) -> None:
        """Send nothing more."""
        self.closed = True
        self._waiting.clear()
        self._pending = None
        self._sent = None
        self.give_back()

    def abort(self, why: str) -> None:
        """A fault of ours: the tunnel has failed."""
        self._failed(why)
