"""One stream of a tunnel and the local connection behind it.

The local socket is edge-triggered and registered once. Windows start at 256 KiB and double to 1 MiB while the local
side keeps up; bytes are granted only after the kernel took them, so that a slow reader slows the sender and nobody
else, and never holds more than its window. What the local side said before it reset its connection is passed on before
the reset is: a server that refuses an upload answers first.

It is one class in one file of over 400 lines: both directions and the end work on the same few fields, for every frame.
"""

from __future__ import annotations

import errno
import socket
from collections import deque
from collections.abc import Callable
from typing import Final

from sidecar.dataplane import frames, sockets
from sidecar.dataplane.carrier import Carrier
from sidecar.dataplane.chores import Alarm
from sidecar.dataplane.elsewhere import Early, Elsewhere, replayed
from sidecar.dataplane.frames import FrameError
from sidecar.dataplane.live import Connection
from sidecar.dataplane.reactor import EDGE, ERROR, GONE, HUP, IN, NOT_OUT, OUT, RDHUP, Reactor
from sidecar.dataplane.sending import SEND_BUFFER

#: What a window grows to while the receiver keeps up, bytes.
MAX_WINDOW: Final = 1_048_576
#: A read is not begun with less room than this in the send buffer.
_LEAST_ROOM: Final = 4096
_HEADER_SIZE: Final = frames.HEADER_SIZE
_PAYLOAD: Final = frames.PAYLOAD
_ROOM: Final = SEND_BUFFER - frames.HEADER_SIZE
_FIN: Final = frames.WINDOW_UPDATE | frames.FIN
_RST: Final = frames.WINDOW_UPDATE | frames.RST
_ACK: Final = frames.WINDOW_UPDATE | frames.ACK
_LAST: Final = frames.DATA | frames.FIN
_MORE: Final = socket.MSG_MORE
_pack_into = frames.HEADER.pack_into


class Stream:
    """A connection between the local ``sock`` and the peer's stream ``stream_id``.

    :param opened_here: the local side is the client; else it is our application
    :param connecting: seconds within which ``sock``, whose connect is under way, must be connected; 0: it is
    :param elsewhere: where a client goes that did not reach the peer's application; None: it sees a reset
    :param early: what a client has said before
    """

    __slots__ = (
        "_acked",
        "_broken",
        "_carrier",
        "_connecting",
        "_connection",
        "_early",
        "_elsewhere",
        "_eof",
        "_fin",
        "_hup",
        "_id",
        "_opened_here",
        "_queue",
        "_reactor",
        "_readable",
        "_receive_left",
        "_receive_window",
        "_recv_into",
        "_send",
        "_send_window",
        "_sender",
        "_sock",
        "_taken",
        "_timer",
        "queued",
    )

    def __init__(
        self,
        reactor: Reactor,
        carrier: Carrier,
        stream_id: int,
        sock: socket.socket,
        connection: Connection,
        *,
        opened_here: bool,
        connecting: float = 0.0,
        elsewhere: Elsewhere | None = None,
        early: bytes = b"",
    ) -> None:
        self._reactor = reactor
        self._carrier = carrier
        self._sender = carrier.sender
        self._id = stream_id
        self._sock: socket.socket | None = sock
        self._recv_into: Callable[[memoryview], int] = replayed(early, sock.recv_into) if early else sock.recv_into
        self._send: Callable[[bytes | memoryview, int], int] = sock.send
        self._connection = connection
        self._opened_here = opened_here
        self._acked = False  # the peer has reached its application
        self._elsewhere = elsewhere  # hears whether it reaches an application
        self._early = Early(elsewhere, carrier.budget) if elsewhere is not None else None  # None: it stays here
        self._connecting = connecting > 0
        self._timer: Alarm | None = None
        self._send_window = frames.WINDOW
        self._receive_window = frames.WINDOW
        self._receive_left = frames.WINDOW  # what the peer may still send
        self._taken = 0  # taken by the kernel, not granted again yet
        self._queue: deque[bytes | memoryview] = deque()  # not taken by the kernel; bounded by the window
        self._readable = False
        self._hup = False  # a short read does not mean that the socket is empty: the end is behind it
        self._eof = False  # the local side will send no more; FIN is sent
        self._fin = False  # the peer will send no more
        self._broken = False  # the local side takes nothing any more
        self.queued = False  # somebody will pump us
        connection.owned_by(self.reset)
        carrier.attach(stream_id, self)
        reactor.register(sock, IN | OUT | RDHUP | EDGE, self)
        if connecting:
            self._timer = reactor.call_later(connecting, self.reset)
        elif not opened_here:
            self._sender.control(_ACK, stream_id, 0)

    # the local side

    def on_event(self, events: int) -> None:
        if self._connecting and not self._connected():
            return
        if events & OUT and self._queue:
            self._drain()
        if events & NOT_OUT and self._sock is not None:
            if not self._eof:
                self._readable = True
                if events & GONE:
                    self._hup = True
                if not self.queued:
                    self.pump()
                if events & ERROR and self._opened_here and self._send_window <= 0 and self._sock is not None:
                    self.reset()  # a read would say so, but there is nowhere to read to; and the peer may wait for us
            elif events & (HUP | ERROR) and not self._fin:
                self.reset()

    def _connected(self) -> bool:
        """Whether the application has accepted us."""
        assert self._sock is not None
        if number := sockets.connect_error(self._sock):
            if number in sockets.RESET:
                self._reached()
                self._break_off()
            else:
                self.reset()
            return False
        try:
            self._sock.getpeername()
        except OSError as error:
            if error.errno == errno.ENOTCONN:
                return False
            self.reset()
            return False
        self._reached()
        if self._queue or self._fin:
            self._drain()
        return self._sock is not None

    def _reached(self) -> None:
        self._connecting = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._sender.control(_ACK, self._id, 0)

    def begin(self) -> None:
        """Try to read at once: a client that speaks first has mostly spoken already."""
        self._readable = True
        self.pump()

    def pump(self) -> None:
        """Read the local socket straight into the tunnel's send buffer, one frame at most: the others want room too."""
        if not self._readable or self._sock is None:
            return
        sender = self._sender
        begin = end = size = -1  # of the frame that was made before, in this call
        while self._send_window > 0:
            position = sender.position
            room = _ROOM - position
            if room < _PAYLOAD:
                if room < _LEAST_ROOM:
                    sender.flush()
                    if sender.closed:
                        return
                    if sender.blocked:
                        sender.wait(self)
                        return
                    position = sender.position
                    room = _PAYLOAD
            else:
                room = _PAYLOAD
            if room > self._send_window:
                room = self._send_window
            if sender.buffer is None:
                sender.borrow()
            view = sender.view
            assert view is not None
            assert sender.buffer is not None
            start = position + _HEADER_SIZE
            before = size
            try:
                size = self._recv_into(view[start : start + room])
            except BlockingIOError:
                self._readable = False
                if not position:
                    sender.give_back()
                if self._broken:
                    self.reset()
                return
            except OSError:
                self.reset()
                return
            if size == 0:
                if position == end and not self._broken:  # it waits to be sent yet, and nothing is behind it
                    _pack_into(sender.buffer, begin, _LAST, self._id, before)
                self._local_end(told=position == end)
                return
            _pack_into(sender.buffer, position, 0, self._id, size)
            begin = position
            sender.position = end = start + size
            self._send_window -= size
            if self._early is not None and not self._early.add(view[start : start + size]):
                self._early = None
            if self._opened_here:
                self._connection.record.bytes_sent += size
            else:
                self._connection.record.bytes_received += size
            sender.mark()
            if size == room:
                if self._send_window:
                    sender.again(self)
                return
            if not self._hup:
                self._readable = False  # a short read: the socket is empty, an edge will follow
                return

    def _local_end(self, *, told: bool) -> None:
        """:param told: the last frame of data says so"""
        if self._broken:
            self.reset()
            return
        self._readable = False
        self._eof = True
        if not told:
            self._sender.control(_FIN, self._id, 0)
        if self._fin and not self._queue:
            self._close()
        else:
            self._connection.half_closed(self._reactor.loop)

    # the tunnel's side

    def expect(self, length: int) -> None:
        """``length`` bytes of data are announced.

        :raises FrameError: when the peer may not send them
        """
        if self._fin:
            raise FrameError("data after the end of a stream")
        if length > self._receive_left:
            raise FrameError(f"{length} bytes of data in a window of {self._receive_left}")
        self._receive_left -= length

    def deliver(self, payload: memoryview, size: int, flags: int = 0) -> None:
        if self._sock is None:
            return
        if self._queue or self._connecting:
            self._hold(bytes(payload))
            return
        try:
            taken = self._send(payload, flags)
        except BlockingIOError:
            taken = 0
        except OSError:
            self._break_off()
            return
        self._count(taken)
        if taken < size:
            self._hold(bytes(payload[taken:]))
        elif self._taken >= self._receive_window >> 1:
            self._grant()

    def granted(self, length: int) -> None:
        """The peer takes ``length`` bytes more.

        :raises FrameError: when the window passes 2^32 - 1
        """
        window = self._send_window
        self._send_window = window + length
        if self._send_window > frames.WINDOW_LIMIT:
            raise FrameError(f"a window of {self._send_window} bytes")
        if not window and self._readable and not self.queued:
            self.pump()

    def accepted(self) -> None:
        """The peer has reached its application.

        :raises FrameError: when it said so before, or was not asked
        """
        if self._acked or not self._opened_here:
            raise FrameError("a stream acknowledged out of turn")
        self._acked = True
        self._connection.announce()
        if self._elsewhere is not None:
            self._elsewhere.reached()
            self._stay()

    def finish(self) -> None:
        """The peer will send no more.

        :raises FrameError: when it said so before
        """
        if self._fin:
            raise FrameError("a stream ended twice")
        self._fin = True
        if not self._queue and not self._connecting:
            self._shut()

    def deliver_last(self, payload: memoryview, size: int) -> None:
        """What :meth:`deliver` and :meth:`finish` do, with the end in the segment of the last bytes: the kernel waits
        for more of them no longer than until the end is told, which is at once if it took them.

        :raises FrameError: when the peer ended it before
        """
        self.deliver(payload, size, _MORE)
        self.finish()

    def reset_by_peer(self) -> None:
        """The peer gave the stream up: refused it, or lost its end."""
        self._give_up(tell=False)

    def unreached(self) -> None:
        """The peer could not call its application. What says so after an answer is not believed."""
        sock, early = self._sock, self._early
        if sock is None or early is None or self._connection.record.bytes_received or self._queue or self._fin:
            self._give_up(tell=False)
            return
        self._go_elsewhere(sock, early)

    def _go_elsewhere(self, sock: socket.socket, early: Early) -> None:
        """Leave the client to who tries it elsewhere, who will report it: it is one connection, however often tried."""
        self._reactor.forget(sock)
        said = early.drop()
        self._sock = None
        self._connection.withdraw()
        self._close_down(failed=True)
        early.elsewhere.begin_again(sock, said)

    def _stay(self) -> None:
        """The connection goes nowhere else any more."""
        early, self._early = self._early, None
        if early is not None:
            early.drop()

    def _hold(self, data: bytes) -> None:
        if not self._carrier.budget.hold(self, len(data)):
            self.reset()
            return
        self._queue.append(data)

    def _drain(self) -> None:
        """Give the kernel what it did not take before."""
        queue = self._queue
        budget = self._carrier.budget
        try:
            while queue:
                data = queue[0]
                taken = self._send(data, 0)
                budget.release(self, taken)
                self._count(taken)
                if taken < len(data):
                    queue[0] = memoryview(data)[taken:]
                    break
                queue.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self._break_off()
            return
        if self._taken >= self._receive_window >> 1:
            self._grant()
        if self._fin and not queue:
            self._shut()

    def _count(self, taken: int) -> None:
        self._taken += taken
        if self._opened_here:
            self._connection.record.bytes_received += taken
        else:
            self._connection.record.bytes_sent += taken

    def _grant(self) -> None:
        if self._fin:
            return
        number = self._taken
        if self._receive_window < MAX_WINDOW and not self._queue:  # the local side takes all it gets: widen
            number += self._receive_window
            self._receive_window += self._receive_window
        self._taken = 0
        self._receive_left += number
        self._sender.control(frames.WINDOW_UPDATE, self._id, number)

    # ending

    def _shut(self) -> None:
        """Everything the peer sent is delivered, and there will be no more."""
        if self._eof:
            self._close()
            return
        assert self._sock is not None
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._break_off()
        else:
            self._connection.half_closed(self._reactor.loop)

    def _break_off(self) -> None:
        """The local side has reset its connection: it takes nothing, but what it said before is passed on first."""
        if self._eof or self._opened_here:  # a client that takes no answer need not be served
            self.reset()
        elif not self._broken:
            self._broken = True
            self._carrier.budget.drop(self)
            self._queue.clear()
            self._send = _over
            self._readable = self._hup = True
            if not self.queued:
                self.pump()

    def reset(self) -> None:
        """End the stream at both ends at once."""
        self._give_up(tell=True)

    def abort(self, why: str) -> None:
        """The tunnel is gone; the local side sees a reset, unless it is a client that nobody can have heard yet."""
        sock, early, record = self._sock, self._early, self._connection.record
        if sock is not None and early is not None and not (self._eof or record.bytes_sent or record.bytes_received):
            self._sender.control(_RST, self._id, 0)  # it may be a fault of ours, and the tunnel well
            self._go_elsewhere(sock, early)
        else:
            self._give_up(tell=True)

    def _give_up(self, *, tell: bool) -> None:
        if self._sock is None:
            return
        if tell:
            self._sender.control(frames.UNREACHED if self._connecting else _RST, self._id, 0)
        sockets.reset(self._sock)
        self._close(failed=self._connecting or (self._opened_here and not self._acked))

    def _close(self, *, failed: bool = False) -> None:
        sock = self._sock
        if sock is None:
            return
        self._sock = None
        self._close_down(failed=failed)
        self._reactor.close(sock)

    def _close_down(self, *, failed: bool) -> None:
        """Everything but the socket."""
        self._readable = False
        self._eof = True
        if self._early is not None:
            self._stay()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._queue:
            self._carrier.budget.drop(self)
            self._queue.clear()
        self._recv_into = self._send = _over  # bound methods would keep a cycle with the socket
        self._connection.finish(failed=failed)
        self._carrier.detach(self._id)


def _over(data: bytes | memoryview, flags: int = 0) -> int:
    """Stands for the calls of a socket that is closed."""
    raise OSError(errno.EBADF, "the stream is over")
