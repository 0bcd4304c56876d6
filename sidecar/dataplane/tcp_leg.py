"""What every leg that is a TCP socket does, whether its bytes are plain or TLS: be ready, hold, end, and be lost.

The socket is edge-triggered and registered once. Rules are those of :mod:`sidecar.dataplane.legs`. How bytes are read
and written is for :mod:`sidecar.dataplane.socket_leg` and :mod:`sidecar.dataplane.tls_leg`. They inherit, so that an
event, a read or a write costs no call more than in a class that has all of it.
"""

from __future__ import annotations

import socket
from collections import deque
from typing import Final, Protocol

from sidecar.dataplane import sockets
from sidecar.dataplane.carrier import Budget
from sidecar.dataplane.legs import NOBODY, Lane
from sidecar.dataplane.portion import SHORT, adapted
from sidecar.dataplane.reactor import EDGE, ERROR, GONE, HUP, IN, NOT_OUT, OUT, RDHUP, Reactor

#: What the socket of a leg is registered for.
EVENTS: Final = IN | OUT | RDHUP | EDGE


class _Timer(Protocol):
    """Will call the leg, for whatever reason, if it is still there."""

    def cancel(self) -> None: ...


class TcpLeg:
    """Owns ``sock``, which its class registers with the reactor.

    :param lane: is told of what happens
    :param portion: bytes of one read, until it is known what a read costs
    """

    __slots__ = (
        "_budget",
        "_connecting",
        "_deaf",
        "_ended",
        "_eof",
        "_held",
        "_hup",
        "_paused",
        "_portion",
        "_reactor",
        "_readable",
        "_shut",
        "_slow",
        "_sock",
        "_timer",
        "gone",
        "lane",
        "queued",
        "reached",
        "unsent",
    )

    def __init__(self, reactor: Reactor, sock: socket.socket, budget: Budget, lane: Lane, portion: int) -> None:
        self._reactor = reactor
        self._sock: socket.socket | None = sock
        self._budget = budget
        self.lane = lane
        self.reached = True
        self._connecting = False  # the connect is under way: nothing is read or sent
        self._timer: _Timer | None = None
        self._held: deque[memoryview] = deque()  # not taken by the kernel
        self.unsent = 0
        self._readable = False
        self._hup = False  # a short read does not mean that the socket is empty: the end is behind it
        self.gone = False
        self._paused = False
        self._portion = portion
        self._slow = True  # what the last read brought took long, or nobody knows yet: others go first
        self._eof = False  # the other end will send no more
        self._ended = False  # we will send no more after what is held
        self._shut = False  # the kernel knows
        self._deaf = ""  # why nothing more can be sent, not even the end
        self.queued = False

    # the lane's side

    @property
    def closed(self) -> bool:
        return self._sock is None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        raise NotImplementedError

    def end(self) -> None:
        raise NotImplementedError

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            if self._readable and not self.queued:
                self._go_on()

    def give_way(self) -> None:
        if self._sock is not None:
            self._reactor.give_way(self._sock)

    def give_way_no_more(self) -> None:
        if self._sock is not None:
            self._reactor.give_way_no_more(self._sock)

    def reset(self) -> None:
        if self._sock is not None:
            sockets.reset(self._sock)
            self._close()

    # the socket's side

    def on_event(self, events: int) -> None:
        sock = self._sock
        if sock is None:
            return
        if self._connecting and not self._is_connected(sock):
            return
        if events & OUT and self._held:
            self._drain()
        if events & NOT_OUT and self._sock is not None:
            if not self._eof:
                self._readable = True
                if events & GONE:
                    self._hup = True
                    self.gone = self.gone or events & ERROR != 0 or (events & HUP != 0 and not self._shut)
                if not self.queued:
                    if self._slow:
                        self._reactor.pump_behind(self)
                    else:
                        self.pump()
            elif events & (HUP | ERROR) and not self._shut:
                self._fail("the other end reset the connection")

    def pump(self) -> None:
        """Read once: the others want their turn too."""
        raise NotImplementedError

    def _took(self, seconds: float, most: int) -> None:
        """What the last read brought took so long."""
        self._slow = seconds > SHORT
        self._portion = adapted(self._portion, seconds, most)

    def _go_on(self) -> None:
        """Read once more when it is our turn."""
        if self._slow:
            self._reactor.pump_behind(self)
        else:
            self._reactor.pump_again(self)

    def _is_connected(self, sock: socket.socket) -> bool:
        """Whether the connect that was under way has succeeded by now. A socket that came connected had none."""
        return True

    def _tell_end(self) -> None:
        """The other end will send no more."""
        self._readable = False
        self._eof = True
        self.lane.ended(self)
        if self._shut:
            self._close()

    # sending

    def _hold(self, data: bytes) -> bool:
        """Keep what the kernel did not take. False: it is too much, and the connection has to end."""
        if not self._budget.hold(self, len(data)):
            return False
        self.unsent += len(data)
        self._held.append(memoryview(data))
        return True

    def _drain(self) -> None:
        """Give the kernel what it did not take before."""
        sock, held = self._sock, self._held
        assert sock is not None
        waited = bool(held)
        try:
            while held:
                data = held[0]
                taken = sock.send(data)
                self._budget.release(self, taken)
                self.unsent -= taken
                if taken < len(data):
                    held[0] = data[taken:]
                    return
                held.popleft()
        except BlockingIOError:
            return
        except OSError as error:
            self._break_off(error.strerror or str(error))
            return
        if waited:
            self.lane.drained(self)
        if self._ended:
            self._shutdown()

    def _shutdown(self) -> None:
        """Everything is sent."""
        sock = self._sock
        if sock is None or self._shut:
            return
        self._shut = True
        if self._eof:
            self._close()
            return
        try:
            sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._break_off(error.strerror or str(error))

    # ending

    def abort(self, why: str) -> None:
        self._fail(why)

    def _break_off(self, why: str) -> None:
        """The other end has reset the connection: it takes nothing, but what it said before is told first. Nothing is
        told within the call of the lane that noticed it."""
        self.gone = True
        if self._eof:
            self._fail_soon(why)
            return
        awaited = bool(self._held)
        self._send_nothing(why)
        if awaited:  # the lane may have paused us until what it wrote is taken, and then nobody would read on
            self._reactor.loop.call_soon(self._tell_drained)
        self._readable = self._hup = True
        if not self.queued and not self._paused:
            self._reactor.pump_again(self)

    def _tell_drained(self) -> None:
        if self._sock is not None:
            self.lane.drained(self)

    def _fail_soon(self, why: str) -> None:
        """Fail outside the call of the lane that noticed it."""
        self._send_nothing(why)
        self._reactor.loop.call_soon(self._fail, why)

    def _send_nothing(self, why: str) -> None:
        """What was not taken is lost, so that an end behind the rest would be taken for the end of all."""
        self._deaf = why
        self._ended = self._shut = True
        self._budget.drop(self)
        self.unsent = 0
        self._held.clear()

    def _fail(self, why: str) -> None:
        sock = self._sock
        if sock is not None:
            lane = self.lane
            sockets.reset(sock)
            self._close()
            lane.lost(self, why)

    def _close(self) -> None:
        sock, self._sock = self._sock, None
        if sock is None:
            return
        self._readable = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._budget.drop(self)
        self.unsent = 0
        self._held.clear()
        self.lane = NOBODY
        self._reactor.close(sock)
