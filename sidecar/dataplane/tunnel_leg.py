"""A stream of a tunnel as a leg of a lane: the peer's side of a connection whose bytes are looked at here.

Windows are those of :mod:`sidecar.dataplane.stream`: what the lane was told of is granted again, and nothing is while
the lane has paused us, so that a slow application slows its client. Only the end that was dialled looks at bytes.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from sidecar.dataplane import frames
from sidecar.dataplane.carrier import Carrier
from sidecar.dataplane.frames import FrameError
from sidecar.dataplane.legs import NOBODY, TOO_MUCH_HELD, Lane
from sidecar.dataplane.reactor import Reactor
from sidecar.dataplane.sending import SEND_BUFFER
from sidecar.dataplane.stream import MAX_WINDOW

_HEADER_SIZE: Final = frames.HEADER_SIZE
_PAYLOAD: Final = frames.PAYLOAD
_ROOM: Final = SEND_BUFFER - frames.HEADER_SIZE
_LEAST_ROOM: Final = 4096
_FIN: Final = frames.WINDOW_UPDATE | frames.FIN
_RST: Final = frames.WINDOW_UPDATE | frames.RST
_ACK: Final = frames.WINDOW_UPDATE | frames.ACK
_pack_into = frames.HEADER.pack_into


class TunnelLeg:
    """The peer's stream ``stream_id``, which nothing has been read of or granted to yet.

    Frames that came before it was made are given to it as a tunnel gives them: ``expect``, ``deliver``, ``finish``.
    """

    __slots__ = (
        "_acked",
        "_carrier",
        "_closed",
        "_ended",
        "_eof",
        "_fin_sent",
        "_flushing",
        "_held",
        "_id",
        "_paused",
        "_reactor",
        "_receive_left",
        "_receive_window",
        "_send_window",
        "_sender",
        "_taken",
        "_unread",
        "_vain",
        "lane",
        "queued",
        "unsent",
    )

    def __init__(self, reactor: Reactor, carrier: Carrier, stream_id: int, lane: Lane) -> None:
        self._reactor = reactor
        self._carrier = carrier
        self._sender = carrier.sender
        self._id = stream_id
        self.lane = lane
        self._acked = False
        self._send_window = frames.WINDOW
        self._receive_window = frames.WINDOW
        self._receive_left = frames.WINDOW
        self._taken = 0  # told to the lane, not granted again yet
        self._unread: deque[bytes] = deque()  # came while paused; bounded by the window
        self._held: deque[memoryview] = deque()  # written, and there was no room or no window for it
        self.unsent = 0
        self._paused = False
        self._eof = False  # the peer will send no more
        self._ended = False  # we will send no more after what is held
        self._fin_sent = False
        self._closed = False
        self._vain = False  # the application was called, and did not answer the call
        self._flushing = False  # within a call of the lane, perhaps
        self.queued = False
        carrier.attach(stream_id, self)

    # the lane's side

    @property
    def reached(self) -> bool:
        return True

    @property
    def gone(self) -> bool:
        return self._closed  # it is lost at once

    @property
    def closed(self) -> bool:
        return self._closed

    def accept(self) -> None:
        """Tell the peer that its connection has reached the application; the first byte written says so too."""
        if not self._acked and not self._closed:
            self._acked = True
            self._sender.control(_ACK, self._id, 0)

    def unreached(self) -> None:
        """Our application could not be called: a reset, where it comes to that, tells the peer so."""
        self._vain = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closed or self._ended:
            return
        if not self._acked:
            self.accept()
        size = len(data)
        if self._held:
            self._hold(memoryview(bytes(data)), size)
            return
        view = memoryview(data)
        done = self._put(view, size)
        if done < size and not self._closed:
            self._hold(memoryview(bytes(view[done:])), size - done)

    def end(self) -> None:
        if self._ended or self._closed:
            return
        self._ended = True
        if not self._held:
            self._send_fin()

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            if self._unread and not self.queued:
                self._reactor.pump_again(self)
            else:
                self._grant()

    def give_way(self) -> None:
        """What a tunnel brings is everybody's."""

    def give_way_no_more(self) -> None:
        """It never did."""

    def reset(self) -> None:
        if not self._closed:
            # one that was accepted has reached the application, whatever became of a later call
            word = frames.UNREACHED if self._vain and not self._acked else _RST
            self._sender.control(word, self._id, 0)
            self._close()

    # the tunnel's side

    def expect(self, length: int) -> None:
        """``length`` bytes of data are announced.

        :raises FrameError: when the peer may not send them
        """
        if self._eof:
            raise FrameError("data after the end of a stream")
        if length > self._receive_left:
            raise FrameError(f"{length} bytes of data in a window of {self._receive_left}")
        self._receive_left -= length

    def deliver(self, payload: memoryview, size: int) -> None:
        if self._closed:
            return
        if self._paused or self._unread:
            if self._carrier.budget.left < size:
                self._carrier.budget.counters.buffers_exhausted += 1
                self._fail(TOO_MUCH_HELD)
                return
            self._carrier.budget.left -= size
            self._unread.append(bytes(payload))
            return
        self._taken += size
        self.lane.received(self, payload)
        self._grant()

    def granted(self, length: int) -> None:
        """The peer takes ``length`` bytes more.

        :raises FrameError: when the window passes 2^32 - 1
        """
        self._send_window += length
        if self._send_window > frames.WINDOW_LIMIT:
            raise FrameError(f"a window of {self._send_window} bytes")
        if self._held and not self.queued:
            self._drain()

    def accepted(self) -> None:
        """:raises FrameError: always; only the end that dialled is told so"""
        raise FrameError("a stream acknowledged out of turn")

    def finish(self) -> None:
        """The peer will send no more.

        :raises FrameError: when it said so before
        """
        if self._eof:
            raise FrameError("a stream ended twice")
        self._eof = True
        if not self._unread:
            self._tell_end()

    def deliver_last(self, payload: memoryview, size: int) -> None:
        """:raises FrameError: when the peer ended it before"""
        self.deliver(payload, size)
        self.finish()

    def reset_by_peer(self) -> None:
        if not self._closed:
            lane = self.lane
            self._close()
            lane.lost(self, "the client reset the connection")

    def pump(self) -> None:
        """There is room to send again, or the lane has resumed."""
        if self._held:
            self._drain()
        unread = self._unread
        while unread and not self._paused and not self._closed:
            data = unread.popleft()
            self._carrier.budget.left += len(data)
            self._taken += len(data)
            self.lane.received(self, memoryview(data))
            if not unread:
                if self._eof:
                    self._tell_end()
                else:
                    self._grant()

    def abort(self, why: str) -> None:
        self._fail(why)

    def _tell_end(self) -> None:
        self.lane.ended(self)
        if self._fin_sent:
            self._close()

    def _grant(self) -> None:
        taken = self._taken
        if taken < self._receive_window >> 1 or self._paused or self._eof or self._closed:
            return
        if self._receive_window < MAX_WINDOW:  # the lane takes all it gets: widen
            taken += self._receive_window
            self._receive_window += self._receive_window
        self._taken = 0
        self._receive_left += taken
        self._sender.control(frames.WINDOW_UPDATE, self._id, taken)

    # sending

    def _put(self, view: memoryview, size: int) -> int:
        """Frame as much of ``view`` as there is window and room for; how much that was."""
        sender = self._sender
        done = 0
        while done < size and self._send_window > 0:
            position = sender.position
            room = _ROOM - position
            if room < _LEAST_ROOM:
                self._flushing = True
                sender.flush()
                self._flushing = False
                if sender.closed:
                    return done
                if sender.blocked:
                    if not self.queued:
                        sender.wait(self)
                    return done
                position = sender.position
                room = _PAYLOAD
            length = min(room, _PAYLOAD, self._send_window, size - done)
            if sender.buffer is None:
                sender.borrow()
            assert sender.buffer is not None
            assert sender.view is not None
            start = position + _HEADER_SIZE
            sender.view[start : start + length] = view[done : done + length]
            _pack_into(sender.buffer, position, 0, self._id, length)
            sender.position = start + length
            self._send_window -= length
            done += length
            sender.mark()
        return done

    def _hold(self, data: memoryview, size: int) -> None:
        if not self._carrier.budget.hold(self, size):
            self._ended = True
            self._let_go()  # an end behind the rest would be taken for the end of all
            self._reactor.loop.call_soon(self._fail, TOO_MUCH_HELD)
            return
        self.unsent += size
        self._held.append(data)

    def _drain(self) -> None:
        held = self._held
        while held:
            data = held[0]
            size = len(data)
            done = self._put(data, size)
            if self._closed:
                return
            self.unsent -= done
            self._carrier.budget.release(self, done)
            if done < size:
                held[0] = data[done:]
                return
            held.popleft()
        self.lane.drained(self)
        if self._ended:
            self._send_fin()

    def _send_fin(self) -> None:
        if self._fin_sent or self._closed:
            return
        self.accept()
        self._fin_sent = True
        self._sender.control(_FIN, self._id, 0)
        if self._eof and not self._unread:
            self._close()

    # ending

    def _fail(self, why: str) -> None:
        if not self._closed:
            lane = self.lane
            self._sender.control(_RST, self._id, 0)
            self._close()
            if self._flushing:
                self._reactor.loop.call_soon(lane.lost, self, why)
            else:
                lane.lost(self, why)

    def _close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._let_go()
        self._carrier.budget.left += sum(map(len, self._unread))
        self._unread.clear()
        self.lane = NOBODY
        self._carrier.detach(self._id)

    def _let_go(self) -> None:
        """What was not sent is lost."""
        self._carrier.budget.drop(self)
        self.unsent = 0
        self._held.clear()
