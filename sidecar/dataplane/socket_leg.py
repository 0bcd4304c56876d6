"""A plain socket as a leg of a lane: a client that speaks without TLS, or the application.

Rules are those of :mod:`sidecar.dataplane.legs`. What the other end said before it reset the connection is told before
the reset is: a server that refuses an upload answers first.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from time import monotonic
from typing import Final

from sidecar.dataplane import sockets
from sidecar.dataplane.carrier import Budget
from sidecar.dataplane.legs import TOO_MUCH_HELD, Lane
from sidecar.dataplane.portion import LEAST
from sidecar.dataplane.reactor import Reactor
from sidecar.dataplane.tcp_leg import EVENTS, TcpLeg

_READ: Final = 65_536


class SocketLeg(TcpLeg):
    """Bytes to and from ``sock``.

    :param lane: is told of what happens
    :param connecting: seconds within which ``sock``, whose connect is under way, must be connected; 0: it is
    :param registered: the socket is registered with the reactor already
    :param connected: called once when a connect that was under way has succeeded
    :param unreached: called instead when it has failed, before the lane is told
    """

    __slots__ = ("_connected", "_unreached")

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
        super().__init__(reactor, sock, budget, lane, LEAST)
        if connecting:
            self._connecting, self.reached = True, False
        self._connected = connected
        self._unreached = unreached
        if registered:
            reactor.hand_over(sock, EVENTS, self)
        else:
            reactor.register(sock, EVENTS, self)
        if connecting:
            self._timer = reactor.call_later(connecting, self._unanswered, connecting)

    # the lane's side

    def write(self, data: bytes | bytearray | memoryview) -> None:
        sock = self._sock
        if sock is None or self._ended:
            return
        if self._held or self._connecting:
            self._keep(bytes(data))
            return
        try:
            taken = sock.send(data)
        except BlockingIOError:
            taken = 0
        except OSError as error:
            self._break_off(error.strerror or str(error))
            return
        if taken < len(data):
            self._keep(bytes(memoryview(data)[taken:]))

    def end(self) -> None:
        if self._ended or self._sock is None:
            return
        self._ended = True
        if not self._held and not self._connecting:
            self._shutdown()

    def _keep(self, data: bytes) -> None:
        if not self._hold(data):
            self._fail_soon(TOO_MUCH_HELD)

    # the socket's side

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
            if self._deaf:
                self._fail(self._deaf)
            return
        except OSError as error:
            self._fail(error.strerror or str(error))
            return
        if size == 0:
            if self._deaf:
                self._fail(self._deaf)
            else:
                self._tell_end()
            return
        if size < portion and not self._hup:
            self._readable = False  # a short read: empty; an edge will follow
        began = monotonic()
        self.lane.received(self, view[:size])
        self._took(monotonic() - began, _READ)
        if self._readable and not self._paused and not self.queued and self._sock is not None:
            self._go_on()

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
        self._connecting, self.reached = False, True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._connected is not None:
            self._connected()
        self._connected = self._unreached = None

    # ending

    def _unanswered(self, seconds: float) -> None:
        self._fail(f"no connection within {seconds:g} s")

    def _fail(self, why: str) -> None:
        if self._connecting and self._unreached is not None:
            self._unreached()
        super()._fail(why)

    def _close(self) -> None:
        self._connected = self._unreached = None
        super()._close()
