"""A plain TCP connection passed on as it is: backpressure, half-close, resets and counters.

What one side does not take is not read from the other: at most one read per direction is held. What a side said before
it reset its connection is passed on before the reset is: a server that refuses an upload answers first.
"""

from __future__ import annotations

import errno
import socket
from typing import Final

from sidecar.dataplane import sockets
from sidecar.dataplane.chores import Alarm
from sidecar.dataplane.live import Connection
from sidecar.dataplane.reactor import EDGE, ERROR, GONE, HUP, IN, NOT_OUT, OUT, RDHUP, Reactor

_READ: Final = 131_072
_NOTHING: Final = memoryview(b"")


class Relay:
    """Relays between the client's and the server's socket.

    :param server: connected, or with its connect under way
    :param connecting: seconds within which ``server`` must be connected; 0: it is
    :param registered: the client's socket is registered with the reactor already
    """

    __slots__ = ("_client", "_connection", "_reactor", "_server", "_timer", "budget", "connecting")

    def __init__(
        self,
        reactor: Reactor,
        client: socket.socket,
        server: socket.socket,
        connection: Connection,
        *,
        connecting: float = 0.0,
        registered: bool = False,
    ) -> None:
        self._reactor = reactor
        self._connection = connection
        self.budget = connection.budget
        self.connecting = connecting > 0
        self._timer: Alarm | None = None
        self._client = _End(self, client, is_client=True)
        self._server = _End(self, server, is_client=False)
        self._client.other, self._server.other = self._server, self._client
        connection.owned_by(self.reset)
        events = IN | OUT | RDHUP | EDGE
        if registered:
            reactor.hand_over(client, events, self._client)
        else:
            reactor.register(client, events, self._client)
        reactor.register(server, events, self._server)
        if connecting:
            self._timer = reactor.call_later(connecting, self.reset)

    def connected(self, sock: socket.socket) -> bool:
        """Whether the server has answered by now; resets the relay when it refused."""
        if number := sockets.connect_error(sock):
            if number in sockets.RESET:
                self.connecting = False
                self._stop_timer()
                self._server.break_off()
            else:
                self.reset()
            return False
        try:
            sock.getpeername()
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                self.reset()
            return False
        self.connecting = False
        self._stop_timer()
        return True

    def count(self, from_client: bool, size: int) -> None:
        record = self._connection.record
        if from_client:
            record.bytes_sent += size
        else:
            record.bytes_received += size

    def again(self, end: _End) -> None:
        self._reactor.pump_again(end)

    def half_closed(self) -> None:
        self._connection.half_closed(self._reactor.loop)

    @property
    def scratch(self) -> tuple[bytearray, memoryview]:
        return self._reactor.received, self._reactor.received_view

    def reset(self) -> None:
        """End both connections with a reset."""
        for end in (self._client, self._server):
            if end.sock is not None:
                sockets.reset(end.sock)
        self.close(failed=self.connecting)

    def close(self, *, failed: bool = False) -> None:
        """Both directions have ended."""
        self._stop_timer()
        for end in (self._client, self._server):
            if end.sock is not None:
                self._reactor.close(end.sock)
                end.sock = None
                end.pending = None
                self.budget.drop(end)
                end.other = _NOWHERE
        self._client = self._server = _NOWHERE  # no cycle is left for the collector
        self._connection.finish(failed=failed)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _End:
    """One of the two sockets, as the reactor's source. ``pending`` waits to be written to it."""

    __slots__ = (
        "_broken",
        "_eof",
        "_hup",
        "_is_client",
        "_readable",
        "_relay",
        "_shut",
        "other",
        "pending",
        "queued",
        "sock",
    )

    other: _End
    _relay: Relay

    def __init__(self, relay: Relay | None, sock: socket.socket | None, *, is_client: bool) -> None:
        if relay is not None:
            self._relay = relay
        self.sock = sock
        self._is_client = is_client
        self._readable = False
        self._hup = False
        self._eof = False  # it will send no more
        self._shut = False  # we told it that we send no more
        self._broken = False  # it takes nothing any more
        self.pending: memoryview | None = None
        self.queued = False

    def on_event(self, events: int) -> None:
        if self.sock is None:
            return
        if not self._is_client and self._relay.connecting:
            if not self._relay.connected(self.sock):
                return
            self.other.pump()
        if events & OUT and self.pending is not None:
            self._drain()
        if events & NOT_OUT and self.sock is not None:
            if not self._eof:
                self._readable = True
                if events & GONE:
                    self._hup = True
                if not self.queued:
                    self.pump()
            elif events & (HUP | ERROR) and not self._shut:
                self._relay.reset()

    def abort(self, why: str) -> None:
        self._relay.reset()

    def pump(self) -> None:
        """Read once and write to the other side."""
        relay, other = self._relay, self.other
        sock = self.sock
        if not self._readable or self._eof or sock is None or other.sock is None:
            return
        if other.pending is not None or (relay.connecting and self._is_client):
            return
        buffer, view = relay.scratch
        try:
            size = sock.recv_into(buffer, _READ)
        except BlockingIOError:
            self._readable = False
            if self._broken:
                relay.reset()
            return
        except OSError:
            relay.reset()
            return
        if size == 0:
            if self._broken:
                relay.reset()
                return
            self._eof = True
            self._readable = False
            other.end_of_input()
            return
        try:
            taken = other.sock.send(view[:size])
        except BlockingIOError:
            taken = 0
        except OSError:
            other.break_off()
            return
        relay.count(self._is_client, taken)
        if taken < size:
            other.hold(bytes(view[taken:size]))
        elif size == _READ or self._hup:
            relay.again(self)
        else:
            self._readable = False  # a short read: empty; an edge will follow
            return

    def hold(self, data: bytes) -> None:
        """Keep what this end did not take; the other is not read meanwhile."""
        if self._relay.budget.hold(self, len(data)):
            self.pending = memoryview(data)
        else:
            self._relay.reset()

    def break_off(self) -> None:
        """Its other end has reset the connection: it takes nothing, but what it said before is passed on first."""
        relay = self._relay
        if self._eof or self.other._broken:
            relay.reset()
        elif not self._broken:
            self._broken = True
            relay.budget.drop(self)
            self.pending = _NOTHING  # so that the other is not read
            self._readable = self._hup = True
            if not self.queued:
                relay.again(self)

    def end_of_input(self) -> None:
        """The other side has ended and everything it sent is written: end this direction."""
        assert self.sock is not None
        if self._eof:
            self._relay.close()
            return
        self._shut = True
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.break_off()
        else:
            self._relay.half_closed()

    def _drain(self) -> None:
        assert self.sock is not None
        assert self.pending is not None
        if self._broken:
            return
        try:
            taken = self.sock.send(self.pending)
        except BlockingIOError:
            return
        except OSError:
            self.break_off()
            return
        self._relay.count(not self._is_client, taken)
        self._relay.budget.release(self, taken)
        self.pending = self.pending[taken:] if taken < len(self.pending) else None
        if self.pending is None and not self.other.queued:
            self.other.pump()


#: The other end of one that is closed: there is nothing there, and so nobody asks it for its relay.
_NOWHERE: Final = _End(None, None, is_client=False)
