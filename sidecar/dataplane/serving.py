"""Carries allowed connections to our application: at once where they are opaque, else when their first bytes came.

Whatever brings a client's bytes, the lane (:mod:`sidecar.dataplane.lanes`) is chosen by the first of them, and gets all
of them. A client that says nothing for ``first_byte_wait`` (:mod:`sidecar.dataplane.lanes`) may wait for a server that
speaks first (:mod:`sidecar.dataplane.server_first`).

Over 400 lines: a stream of a tunnel, a socket and any other leg are told apart by the same rules, side by side.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

from sidecar.dataplane import sockets
from sidecar.dataplane.chores import Alarm
from sidecar.dataplane.detect import LONGEST_LINE, Kind, detect, unfinished
from sidecar.dataplane.fabric import Fabric
from sidecar.dataplane.first_line import is_open
from sidecar.dataplane.frames import WINDOW, WINDOW_LIMIT, FrameError
from sidecar.dataplane.lane_context import LaneContext, connect
from sidecar.dataplane.lanes import enter_lane, first_byte_wait, is_http, is_opaque, opaque_allowed
from sidecar.dataplane.late_request import LateRequest
from sidecar.dataplane.leg_relay import LegRelay
from sidecar.dataplane.legs import NOBODY, Leg
from sidecar.dataplane.live import Connection
from sidecar.dataplane.relay import Relay
from sidecar.dataplane.server_first import ServerFirst
from sidecar.dataplane.socket_leg import SocketLeg
from sidecar.dataplane.sockets import Address
from sidecar.dataplane.stream import Stream
from sidecar.dataplane.tunnel import Tunnel
from sidecar.dataplane.tunnel_leg import TunnelLeg

_log = logging.getLogger(__name__)


# A client behind a tunnel ---------------------------------------------------------------------------------------------


def serve_stream(
    fabric: Fabric, tunnel: Tunnel, stream_id: int, connection: Connection, port: int, application: Address
) -> None:
    """Carry the peer's stream, which was allowed to open."""
    if is_opaque(fabric, connection.record.source, port):
        carry_stream(fabric, tunnel, stream_id, connection, application)
        return
    _Undecided(fabric, tunnel, stream_id, connection, port, application)


def carry_stream(
    fabric: Fabric, tunnel: Tunnel, stream_id: int, connection: Connection, application: Address
) -> Stream | None:
    """Carry it without looking at its bytes; None when the application could not be called."""
    server = connect(fabric, application)
    if server is None:
        tunnel.refuse(stream_id, unreached=True)
        connection.finish(failed=True)
        return None
    connecting = 0.0 if sockets.is_connected(server) else fabric.settings.connect_timeout
    stream = Stream(fabric.reactor, tunnel, stream_id, server, connection, opened_here=False, connecting=connecting)
    connection.announce()
    return stream


class _Undecided:
    """A stream of which the first bytes are awaited. Nothing is granted to the peer, so at most a window is held, and
    whoever takes the stream over starts from the windows of a new one."""

    __slots__ = (
        "_application",
        "_connection",
        "_expected",
        "_fabric",
        "_fin",
        "_granted",
        "_held",
        "_id",
        "_port",
        "_said",
        "_successor",
        "_timer",
        "_tunnel",
        "queued",
    )

    def __init__(
        self,
        fabric: Fabric,
        tunnel: Tunnel,
        stream_id: int,
        connection: Connection,
        port: int,
        application: Address,
    ) -> None:
        self._fabric = fabric
        self._tunnel = tunnel
        self._id = stream_id
        self._connection = connection
        self._port = port
        self._application = application
        self._held = bytearray()
        self._expected = 0
        self._granted = 0
        self._fin = False
        self._said = False
        self._successor: Stream | TunnelLeg | None = None
        self.queued = False
        connection.by_operation = True  # until its first bytes say what it is
        connection.owned_by(self._reset)
        tunnel.attach(stream_id, self)
        wait = first_byte_wait(fabric, connection.record.source, port)
        self._timer: Alarm | None = fabric.reactor.call_later(wait, self._silent)

    # the tunnel's side

    def expect(self, length: int) -> None:
        """:raises FrameError: when the peer may not send so much"""
        if self._fin:
            raise FrameError("data after the end of a stream")
        self._expected += length
        if self._expected > WINDOW:
            raise FrameError(f"{self._expected} bytes of data in a window of {WINDOW}")

    def deliver(self, payload: memoryview, size: int) -> None:
        if self._successor is not None:  # the rest of a frame that began before
            self._successor.deliver(payload, size)
        elif self._timer is not None:
            self._held += payload
            self._look()

    def granted(self, length: int) -> None:
        """:raises FrameError: when the window passes 2^32 - 1"""
        self._granted += length
        if self._granted + WINDOW > WINDOW_LIMIT:
            raise FrameError(f"a window of {self._granted + WINDOW} bytes")

    def accepted(self) -> None:
        """:raises FrameError: always; only the end that dialled is told so"""
        raise FrameError("a stream acknowledged out of turn")

    def finish(self) -> None:
        """:raises FrameError: when the peer said so before"""
        if self._successor is not None:
            self._successor.finish()
            return
        if self._fin:
            raise FrameError("a stream ended twice")
        self._fin = True
        if self._timer is not None:
            self._look()

    def deliver_last(self, payload: memoryview, size: int) -> None:
        """:raises FrameError: when the peer ended it before"""
        self.deliver(payload, size)
        self.finish()

    def reset_by_peer(self) -> None:
        self._give_up(tell=False)

    def unreached(self) -> None:
        self._give_up(tell=False)

    def pump(self) -> None:
        """There is nothing to send."""

    def abort(self, why: str) -> None:
        self._give_up(tell=True)

    # deciding

    def _look(self) -> None:
        kind = detect(bytes(self._held))
        if kind is Kind.MORE and self._fin:
            kind = Kind.OTHER
        if kind is not Kind.MORE:
            self._become(kind)
        elif not self._said:  # the first bytes, be they half a frame: the rest, in pieces, has the time of a handshake
            self._said = True
            self._restart(self._fabric.settings.handshake_timeout, self._unclear)

    def _restart(self, delay: float, call: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._fabric.reactor.call_later(delay, call)

    def _silent(self) -> None:
        """The client waits for the server, or wants us to think so."""
        self._fabric.detection.timed_out()
        timer, self._timer = self._timer, None
        if timer is None:
            return
        fabric, connection = self._fabric, self._connection
        if not opaque_allowed(fabric, connection, self._port, Kind.OTHER):
            self._tunnel.refuse(self._id)
            self._tunnel.detach(self._id)
            return
        leg = self._successor = TunnelLeg(fabric.reactor, self._tunnel, self._id, NOBODY)
        context = self._context(leg)
        _wait_for_either(context, leg)
        if self._granted:
            leg.granted(self._granted)

    def _unclear(self) -> None:
        self._become(unfinished(bytes(self._held)))

    def _context(self, leg: TunnelLeg) -> LaneContext:
        return LaneContext(
            self._fabric, self._connection, self._port, self._application, leg.accept, unreached=leg.unreached
        )

    def _become(self, kind: Kind) -> None:
        timer, self._timer = self._timer, None
        if timer is None:
            return
        timer.cancel()
        fabric, tunnel, connection = self._fabric, self._tunnel, self._connection
        successor: Stream | TunnelLeg | None
        if is_http(kind):
            leg = successor = TunnelLeg(fabric.reactor, tunnel, self._id, NOBODY)
            context = self._context(leg)
            enter_lane(context, kind, leg)
        elif not opaque_allowed(fabric, connection, self._port, kind):
            tunnel.refuse(self._id)
            successor = None
        elif is_open(bytes(self._held)):
            leg = successor = TunnelLeg(fabric.reactor, tunnel, self._id, NOBODY)
            _read_on(self._context(leg), leg)
        else:
            successor = carry_stream(fabric, tunnel, self._id, connection, self._application)
        if successor is None:
            tunnel.detach(self._id)
            return
        self._successor = successor
        if self._granted:
            successor.granted(self._granted)
        successor.expect(self._expected)
        if self._held:
            held = bytes(self._held)
            successor.deliver(memoryview(held), len(held))
        if self._fin:
            successor.finish()

    # ending

    def _reset(self) -> None:
        """The policy ended it."""
        self._give_up(tell=True)

    def _give_up(self, *, tell: bool) -> None:
        timer, self._timer = self._timer, None
        if timer is None:
            return
        timer.cancel()
        if tell:
            self._tunnel.refuse(self._id)
        self._connection.finish(failed=True)
        self._tunnel.detach(self._id)


# A client on a socket -------------------------------------------------------------------------------------------------


def serve_socket(
    fabric: Fabric, sock: socket.socket, connection: Connection, port: int, application: Address, kind: Kind
) -> None:
    """Carry a client without TLS, which was allowed to open. Its first bytes were seen and not taken.

    :param sock: registered with the reactor; from here on it is ours
    :param kind: what they are; ``MORE`` when there are none, in all the time that the client had
    """
    if kind is Kind.MORE and opaque_allowed(fabric, connection, port, kind):
        leg = SocketLeg(fabric.reactor, sock, fabric.budget, NOBODY, registered=True)
        _wait_for_either(LaneContext(fabric, connection, port, application, _nothing), leg)
        return
    if is_http(kind):
        leg = SocketLeg(fabric.reactor, sock, fabric.budget, NOBODY, registered=True)
        enter_lane(LaneContext(fabric, connection, port, application, _nothing), kind, leg)
        return
    allowed = opaque_allowed(fabric, connection, port, kind)
    opaque = is_opaque(fabric, connection.record.source, port, silent=False)
    if allowed and kind is Kind.OTHER and not opaque and _is_open(sock):
        leg = SocketLeg(fabric.reactor, sock, fabric.budget, NOBODY, registered=True)
        _read_on(LaneContext(fabric, connection, port, application, _nothing), leg)
        return
    server = connect(fabric, application) if allowed else None
    if server is None:
        sockets.reset(sock)
        fabric.reactor.close(sock)
        connection.finish(failed=True)
        return
    connecting = fabric.settings.connect_timeout
    Relay(fabric.reactor, sock, server, connection, connecting=connecting, registered=True)
    connection.announce()


def _is_open(sock: socket.socket) -> bool:
    """Whether what the client has said so far may still turn out to be a request."""
    try:
        return is_open(sock.recv(LONGEST_LINE, socket.MSG_PEEK))
    except OSError:
        return False  # it said nothing, or is gone


# A client on any other leg --------------------------------------------------------------------------------------------


def serve_leg(fabric: Fabric, leg: Leg, connection: Connection, port: int, application: Address) -> None:
    """Carry a client that was allowed to open, whatever brings its bytes. The leg is ours from here on."""
    context = LaneContext(fabric, connection, port, application, _nothing)
    if is_opaque(fabric, connection.record.source, port):
        _relay(context, leg, Kind.OTHER)
    else:
        _Waiting(context, leg)


def _relay(context: LaneContext, client: Leg, kind: Kind, held: bytes = b"") -> None:
    """:param held: what the client has said, which is given to its lane then"""
    connection = context.connection
    if not opaque_allowed(context.fabric, connection, context.port, kind):
        client.reset()
        connection.finish(failed=True)
    elif is_open(held):
        _read_on(context, client)
    else:
        _relay_to(context, client, lambda server: LegRelay(connection, client, server))


def _read_on(context: LaneContext, client: Leg) -> None:
    """Carry a client whose first line has not ended, and may be that of a request."""
    _relay_to(context, client, lambda server: LateRequest(context, client, server))


def _relay_to(context: LaneContext, client: Leg, make: Callable[[Leg], object]) -> None:
    server = context.dial(NOBODY)
    if server is None:
        client.reset()
        context.connection.finish(failed=True)
        return
    make(server)
    context.connection.announce()


def _wait_for_either(context: LaneContext, client: Leg) -> None:
    """Carry a client that has said nothing, and look at who speaks first."""
    _relay_to(context, client, lambda server: ServerFirst(context, client, server))


class _Waiting:
    """The lane of a client whose first bytes are awaited."""

    __slots__ = ("_client", "_context", "_held", "_timer")

    def __init__(self, context: LaneContext, client: Leg) -> None:
        self._context = context
        self._client = client
        self._held = bytearray()
        client.lane = self
        context.connection.by_operation = True  # until its first bytes say what it is
        context.connection.owned_by(self._reset)
        fabric = context.fabric
        wait = first_byte_wait(fabric, context.connection.record.source, context.port)
        self._timer = fabric.reactor.call_later(wait, self._silent)

    def received(self, leg: Leg, data: memoryview) -> None:
        first = not self._held
        self._held += data
        kind = detect(bytes(self._held))
        if kind is not Kind.MORE:
            self._become(kind)
        elif first:
            self._timer.cancel()
            fabric = self._context.fabric
            timeout = fabric.settings.handshake_timeout
            self._timer = fabric.reactor.call_later(timeout, self._unclear)

    def ended(self, leg: Leg) -> None:
        self._become(Kind.OTHER)
        leg.lane.ended(leg)

    def drained(self, leg: Leg) -> None:
        """Nothing was written."""

    def lost(self, leg: Leg, why: str) -> None:
        self._timer.cancel()
        self._context.connection.finish(failed=True)

    def _unclear(self) -> None:
        self._become(unfinished(bytes(self._held)))

    def _silent(self) -> None:
        context, client = self._context, self._client
        context.fabric.detection.timed_out()
        client.lane = NOBODY
        if opaque_allowed(context.fabric, context.connection, context.port, Kind.OTHER):
            _wait_for_either(context, client)
        else:
            client.reset()
            context.connection.finish(failed=True)

    def _become(self, kind: Kind) -> None:
        self._timer.cancel()
        client = self._client
        client.lane = NOBODY
        if is_http(kind):
            enter_lane(self._context, kind, client)
        else:
            _relay(self._context, client, kind, bytes(self._held))
        if self._held:
            client.lane.received(client, memoryview(bytes(self._held)))

    def _reset(self) -> None:
        self._timer.cancel()
        self._client.reset()
        self._context.connection.finish(failed=True)


def _nothing() -> None:
    """A client that is not behind a tunnel has nobody to tell that the application was reached."""
