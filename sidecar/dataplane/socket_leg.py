"""A plain socket as a leg of a lane: a client that speaks without TLS, or the application.

The socket is edge-triggered and registered once. Rules are those of :mod:`sidecar.dataplane.legs`. What the other end
said before it reset the connection is told before the reset is: a server that refuses an upload answers first.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Final

from sidecar.dataplane import sockets
from sidecar.dataplane.carrier import Budget
from sidecar.dataplane.legs import NOBODY, Lane
from sidecar.dataplane.portion import adapted
from sidecar.dataplane.reactor import EDGE, ERROR, GONE, HUP, IN, NOT_OUT, OUT, RDHUP, Reactor

_READ: Final = 65_536


class SocketLeg:
    """Bytes to and from ``sock``.

    :param lane: is told of what happens
    :param connecting: seconds within which ``sock``, whose connect is under way, must be connected; 0: it is
    :param registered: the socket is registered with the reactor already
    :param connected: called once when a connect that was under way has succeeded
    :param unreached: called instead when it has failed, before the lane is told
    """

    __slots__ = (
        "_broken",
        "_budget",
        "_connected",
        "_connecting",
        "_ended",
        "_eof",
        "_held",
        "_hup",
        "_paused",
        "_portion",
        "_reactor",
        "_readable",
        "_shut",
        "_sock",
        "_timer",
        "_unreached",
        "lane",
        "queued",
        "unsent",
    )

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        budget: Budget,
        lane: Lane,
        *,
        connecting: float = 0.0,
        registered: bool = False,
        connected: Callable[[], None] | None = None,
        unreached: Callable[[], None] | None = None,
    ) -> None:
        self._reactor = reactor
        self._sock: socket.socket | None = sock
        self._budget = budget
        self.lane = lane
        self._connecting = connecting > 0
        self._connected = connected
        self._unreached = unreached
        self._timer: asyncio.TimerHandle | None = None
        self._held: deque[bytes | memoryview] = deque()  # not taken by the kernel
        self.unsent = 0
        self._readable = False
        self._hup = False  # a short read does not mean that the socket is empty: the end is behind it
        self._paused = False
        self._portion = _READ >> 2  # until it is known what a read costs
        self._eof = False  # the other end will send no more
        self._ended = False  # we will send no more after what is held
        self._shut = False  # the kernel knows
        self._broken = ""  # why nothing more can be sent, not even the end
        self.queued = False
        events = IN | OUT | RDHUP | EDGE
        if registered:
            reactor.hand_over(sock, events, self)
        else:
            reactor.register(sock, events, self)
        if connecting:
            self._timer = reactor.loop.call_later(connecting, self._fail, f"no connection within {connecting:g} s")

    # the lane's side

    @property
    def reached(self) -> bool:
        return not self._connecting

    @property
    def closed(self) -> bool:
        return self._sock is None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        sock = self._sock
        if sock is None or self._ended:
            return
        if self._held or self._connecting:
            self._hold(bytes(data))
            return
        try:
            taken = sock.send(data)
        except BlockingIOError:
            taken = 0
        except OSError as error:
            self._break_off(error.strerror or str(error))
            return
        if taken < len(data):
            self._hold(bytes(memoryview(data)[taken:]))

    def end(self) -> None:
        if self._ended or self._sock is None:
            return
        self._ended = True
        if not self._held and not self._connecting:
            self._shutdown()

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            if self._readable and not self.queued and not self._connecting:
                self._reactor.pump_again(self)

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
                if not self.queued:
                    self.pump()
            elif events & (HUP | ERROR) and not self._shut:
                self._fail("the other end reset the connection")

    def pump(self) -> None:
        """Read once: the others want their turn too."""
        sock = self._sock
        if sock is None or self._paused or not self._readable or self._connecting:
            return
        view, portion = self._reactor.received_view, self._portion
        try:
            size = sock.recv_into(view, portion)
        except BlockingIOError:
            self._readable = False
            if self._broken:
                self._fail(self._broken)
            return
        except OSError as error:
            self._fail(error.strerror or str(error))
            return
        if size == 0:
            if self._broken:
                self._fail(self._broken)
                return
            self._readable = False
            self._eof = True
            self.lane.ended(self)
            if self._shut:
                self._close()
            return
        if size < portion and not self._hup:
            self._readable = False  # a short read: empty; an edge will follow
        began = monotonic()
        self.lane.received(self, view[:size])
        self._portion = adapted(portion, monotonic() - began, _READ)
        if self._readable and not self._paused and not self.queued and self._sock is not None:
            self._reactor.pump_again(self)

    def abort(self, why: str) -> None:
        self._fail(why)

    def _is_connected(self, sock: socket.socket) -> bool:
        if number := sockets.connect_error(sock):
            why = errno.errorcode.get(number, str(number))
            if number in sockets.RESET:
                self._is_reached()
                self._break_off(why)
            else:
                self._fail(why)
            return False
        try:
            sock.getpeername()
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                self._fail(error.strerror or str(error))
            return False
        self._is_reached()
        if self._held or self._ended:
            self._drain()
        return self._sock is not None

    def _is_reached(self) -> None:
        self._connecting = False
        self._stop_timer()
        if self._connected is not None:
            self._connected()
        self._connected = self._unreached = None

    def _hold(self, data: bytes) -> None:
        if not self._budget.hold(self, len(data)):
            self._fail_soon("too much is held for receivers that do not read")
            return
        self.unsent += len(data)
        self._held.append(data)

    def _drain(self) -> None:
        """Give the kernel what it did not take before."""
        sock, held = self._sock, self._held
        assert sock is not None
        if self._broken:
            return
        waited = bool(held)
        try:
            while held:
                data = held[0]
                taken = sock.send(data)
                self._budget.release(self, taken)
                self.unsent -= taken
                if taken < len(data):
                    held[0] = memoryview(data)[taken:]
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

    def _break_off(self, why: str) -> None:
        """The other end has reset the connection: it takes nothing, but what it said before is told first. Nothing is
        told within the call of the lane that noticed it."""
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
        self._broken = why
        self._ended = self._shut = True
        self._budget.drop(self)
        self.unsent = 0
        self._held.clear()

    def _fail(self, why: str) -> None:
        if self._sock is not None:
            lane, unreached = self.lane, self._unreached
            sockets.reset(self._sock)
            self._close()
            if self._connecting and unreached is not None:
                unreached()
            lane.lost(self, why)

    def _close(self) -> None:
        sock, self._sock = self._sock, None
        if sock is None:
            return
        self._readable = False
        self._stop_timer()
        self._connected = self._unreached = None
        self._budget.drop(self)
        self.unsent = 0
        self._held.clear()
        self.lane = NOBODY
        self._reactor.close(sock)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
