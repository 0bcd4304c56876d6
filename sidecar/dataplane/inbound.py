"""Connections to our application: told apart by their first bytes, judged, and passed on.

Rules:

1. A connection that was captured on the way to anything but an application port of ours is refused.
2. A ClientHello that offers our ALPN gets a tunnel, if a certificate proves who the peer is; every stream of it is
   judged on its own. Everything else is plaintext of an unknown source, and judged as that.
3. A server that speaks first needs a client that waits: without a byte within ``sniff_wait`` it is plaintext.
4. Nobody is kept out by those who only begin: of too many connections that are not yet anybody's the longest waiting
   one is dropped, and one address may hold only so many tunnels.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import Counter

from graph.model import Direction, Peer
from graph.policy import Reason
from sidecar.dataplane import clienthello, sockets, tls
from sidecar.dataplane.clienthello import ClientHello, Reading
from sidecar.dataplane.fabric import Acceptor, Fabric, peer_of
from sidecar.dataplane.lease import Lease, Leases
from sidecar.dataplane.live import Connection, new_record, refusal, report_refused
from sidecar.dataplane.reactor import EDGE, IN, RDHUP
from sidecar.dataplane.relay import Relay
from sidecar.dataplane.settings import ALPN
from sidecar.dataplane.sockets import Address
from sidecar.dataplane.stream import Stream
from sidecar.dataplane.tls import Channel, Handshake, HandshakeFailed, PeerRefused
from sidecar.dataplane.tunnel import Tunnel

_log = logging.getLogger(__name__)

_INFO, _WARNING = logging.INFO, logging.WARNING
_ALPN = ALPN.encode()


class Inbound:
    """Takes connections of others from its listeners."""

    __slots__ = ("_acceptors", "_arriving", "_draining", "_fabric", "_leases", "_tunnels", "_tunnels_from")

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._acceptors: list[Acceptor] = []
        self._arriving: dict[_Arrival, None] = {}  # sniffed, or in a handshake; the longest waiting first
        self._tunnels: set[_Accepted] = set()
        self._tunnels_from: Counter[str] = Counter()  # by the peer's address
        self._leases = Leases()
        self._draining = False
        fabric.credentials.subscribe(self._renewed)

    def listen(self, listener: socket.socket, declared: tuple[int, Address] | None = None) -> None:
        """Take connections from ``listener``.

        :param declared: the port that policy speaks of, and the application behind it; None: capture knows both
        """

        def accepted(sock: socket.socket) -> None:
            self._accepted(sock, declared)

        self._acceptors.append(Acceptor(self._fabric, listener, accepted))

    @property
    def tunnels(self) -> list[Tunnel]:
        return [owner.tunnel for owner in self._tunnels if owner.tunnel is not None]

    def drain(self) -> None:
        """Take no more connections, and ask the peers to open their next streams elsewhere."""
        self._draining = True
        for acceptor in self._acceptors:
            acceptor.close()
        self._acceptors.clear()
        for tunnel in self.tunnels:
            tunnel.leave()

    def stop(self) -> None:
        """End everything."""
        self.drain()
        for tunnel in self.tunnels:
            tunnel.abort("the data path stops")

    def _renewed(self) -> None:
        """Tunnels under the old certificate are to be replaced, not all at the same moment."""
        fabric = self._fabric
        for owner in list(self._tunnels):
            fabric.reactor.loop.call_later(fabric.random.uniform(0, fabric.settings.renewal_spread), owner.leave)

    def _accepted(self, sock: socket.socket, declared: tuple[int, Address] | None) -> None:
        fabric = self._fabric
        load = fabric.connections.count + len(self._tunnels) + len(self._arriving)
        if load >= fabric.settings.connections:
            text = "refused a connection: too many at once (%d, %d of them new)"
            fabric.complaints.say(_WARNING, text, load, len(self._arriving))
            sockets.refuse(sock)
            return
        if declared is not None:
            port, application = declared
        else:
            captured = self._captured(sock)
            if captured is None:
                sockets.refuse(sock)
                return
            port, application = captured.port, captured
        try:
            source = sock.getpeername()[0]
        except OSError:
            sock.close()  # the client is gone
            return
        if len(self._arriving) >= fabric.settings.handshakes:
            next(iter(self._arriving)).abort("too many begin at once")
        arrival = _Arrival(self, fabric, sock, source, port, application)
        self._arriving[arrival] = None
        arrival.begin()

    def _captured(self, sock: socket.socket) -> Address | None:
        """Where a captured connection was to go; None when that is no application port of ours."""
        target = sockets.original_destination(sock)
        if target is None or target.host not in self._fabric.settings.addresses:
            text = "refused a connection to %s, which is not our address"
            self._fabric.complaints.say(_INFO, text, target or "the capture port")
            return None
        if target.port in self._fabric.settings.sidecar_ports:
            self._fabric.complaints.say(_INFO, "refused a connection to port %d of our own", target.port)
            return None
        return target

    def arrived(self, arrival: _Arrival) -> None:
        """A connection is no longer sniffed or in a handshake."""
        self._arriving.pop(arrival, None)

    def run_tunnel(self, sock: socket.socket, channel: Channel, source: str, port: int, application: Address) -> None:
        """A handshake is complete: see who it is."""
        fabric = self._fabric
        try:
            proof = tls.identify(channel, fabric.credentials, source)
        except PeerRefused as error:
            fabric.reactor.close(sock)
            self.refuse_untrusted(source, port, str(error))
            return
        if self._tunnels_from[source] >= fabric.settings.tunnels_per_source:
            fabric.complaints.say(_WARNING, "refused a tunnel of %s: %s has too many", proof.peer.spiffe_id, source)
            fabric.reactor.close(sock)
            return
        identity = proof.peer.spiffe_id
        owner = _Accepted(self, fabric, port, application, peer_of(identity, source, True), str(identity))
        self._tunnels.add(owner)
        self._tunnels_from[source] += 1
        owner.tunnel = Tunnel(
            fabric.reactor,
            sock,
            channel,
            Lease.of(proof),
            fabric.settings,
            owner,
            fabric.budget,
            dialled=False,
        )
        self._leases.enter(owner.tunnel, time.time())
        owner.tunnel.start()
        if self._draining:
            owner.tunnel.leave()

    def refuse_untrusted(self, source: str, port: int, why: str) -> None:
        """Report a peer that did not prove who it is; its connection is closed already."""
        self._fabric.complaints.say(_WARNING, "refused a tunnel from %s to port %d: %s", source, port, why)
        decision = refusal(Reason.UNTRUSTED_PEER)
        destination = destination_peer(self._fabric, verified=False)
        record = new_record(Direction.INBOUND, Peer(address=source), destination, port, decision)
        report_refused(self._fabric.connections.flows, record)

    def forget(self, owner: _Accepted, tunnel: Tunnel) -> None:
        self._leases.leave(tunnel)
        if owner in self._tunnels:
            self._tunnels.remove(owner)
            self._tunnels_from[owner.address] -= 1
            if not self._tunnels_from[owner.address]:
                del self._tunnels_from[owner.address]


class _Arrival:
    """A connection whose first bytes decide what it is."""

    __slots__ = ("_application", "_fabric", "_handshake", "_inbound", "_port", "_said", "_sock", "_source", "_timer")

    def __init__(
        self, inbound: Inbound, fabric: Fabric, sock: socket.socket, source: str, port: int, application: Address
    ) -> None:
        self._inbound = inbound
        self._fabric = fabric
        self._sock: socket.socket | None = sock
        self._source = source
        self._port = port
        self._application = application
        self._said = False  # part of a client hello came
        self._timer: asyncio.TimerHandle | None = None
        self._handshake: Handshake | None = None

    def begin(self) -> None:
        fabric = self._fabric
        assert self._sock is not None
        self._timer = fabric.reactor.loop.call_later(fabric.settings.sniff_wait, self._plaintext)
        fabric.reactor.register(self._sock, IN | RDHUP | EDGE, self)
        self.on_event(IN)

    def on_event(self, events: int) -> None:
        if self._sock is None:
            return
        try:
            data = self._sock.recv(clienthello.LIMIT, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            self.abort("the client is gone")
            return
        if not data:
            self._plaintext()  # a client that only ends its direction is still one
            return
        reading = clienthello.read(data)
        if reading is Reading.MORE and not events & RDHUP:
            self._wait_for_hello()
        elif reading is Reading.MORE:
            self.abort("half a client hello, and no more to come")
        elif isinstance(reading, ClientHello) and _ALPN in reading.alpn:
            self._tunnel()
        else:
            self._plaintext()

    def abort(self, why: str) -> None:
        if self._handshake is not None:
            self._handshake.abort(why)
            return
        sock = self._leave()
        if sock is not None:
            sockets.reset(sock)
            self._fabric.reactor.close(sock)

    def _wait_for_hello(self) -> None:
        """A hello in pieces has the time of one handshake, however many pieces there are."""
        if self._said:
            return
        self._said = True
        assert self._timer is not None
        self._timer.cancel()
        loop, settings = self._fabric.reactor.loop, self._fabric.settings
        self._timer = loop.call_later(settings.handshake_timeout, self.abort, "half a client hello")

    def _leave(self) -> socket.socket | None:
        """Be done with the socket, which somebody else takes or closes."""
        sock, self._sock = self._sock, None
        if sock is not None:
            assert self._timer is not None
            self._timer.cancel()
            self._inbound.arrived(self)
        return sock

    def _tunnel(self) -> None:
        fabric = self._fabric
        sock = self._sock
        assert sock is not None
        assert self._timer is not None
        self._timer.cancel()
        self._sock = None  # still arriving, until the handshake is done
        sockets.tune_tunnel(sock)

        def done(result: Channel | HandshakeFailed) -> None:
            self._inbound.arrived(self)
            if isinstance(result, Channel):
                self._inbound.run_tunnel(sock, result, self._source, self._port, self._application)
            elif result.untrusted:
                self._inbound.refuse_untrusted(self._source, self._port, str(result))
            else:
                text = "handshake with %s for port %d failed: %s"
                fabric.complaints.say(_INFO, text, self._source, self._port, result)

        self._handshake = Handshake(
            fabric.reactor,
            sock,
            fabric.credentials,
            server_side=True,
            registered=True,
            timeout=fabric.settings.handshake_timeout,
            done=done,
        )

    def _plaintext(self) -> None:
        sock = self._leave()
        if sock is None:
            return
        fabric = self._fabric
        source = Peer(address=self._source)
        record = new_record(Direction.INBOUND, source, destination_peer(fabric, verified=False), self._port)

        def end(connection: Connection) -> None:
            sockets.reset(sock)
            fabric.reactor.close(sock)
            connection.finish()

        connection = fabric.connections.judge(record, end)
        server = connect(fabric, self._application) if connection.allowed else None
        if server is None:
            sockets.reset(sock)
            fabric.reactor.close(sock)
            connection.finish(failed=True)
            return
        connecting = fabric.settings.connect_timeout
        Relay(fabric.reactor, sock, server, connection, connecting=connecting, registered=True)
        connection.announce()


class _Accepted:
    """The owner of one tunnel that a peer dialled."""

    __slots__ = ("_application", "_fabric", "_identity", "_inbound", "_port", "_source", "tunnel")

    def __init__(
        self, inbound: Inbound, fabric: Fabric, port: int, application: Address, source: Peer, identity: str
    ) -> None:
        self._inbound = inbound
        self._fabric = fabric
        self._port = port
        self._application = application
        self._source = source
        self._identity = identity
        self.tunnel: Tunnel | None = None

    @property
    def address(self) -> str:
        """Where the peer is."""
        return self._source.address

    def leave(self) -> None:
        if self.tunnel is not None and not self.tunnel.leaving:
            self.tunnel.leave()

    def tunnel_ready(self, tunnel: Tunnel) -> None:
        """Tunnels of peers are ready from the start."""

    def tunnel_stream(self, tunnel: Tunnel, stream_id: int) -> None:
        fabric = self._fabric
        record = new_record(Direction.INBOUND, self._source, destination_peer(fabric, verified=True), self._port)
        record.source_identity = self._identity
        record.destination_identity = str(fabric.credentials.identity)

        def end(connection: Connection) -> None:
            connection.finish()

        connection = fabric.connections.judge(record, end)
        if not connection.allowed or fabric.connections.count > fabric.settings.connections:
            tunnel.refuse(stream_id)
            connection.finish(failed=True)
            return
        server = connect(fabric, self._application)
        if server is None:
            tunnel.refuse(stream_id)
            connection.finish(failed=True)
            return
        connecting = fabric.settings.connect_timeout
        Stream(fabric.reactor, tunnel, stream_id, server, connection, opened_here=False, connecting=connecting)
        connection.announce()

    def tunnel_leaving(self, tunnel: Tunnel) -> None:
        """The peer opens no more streams here; it closes the tunnel when the last one ends."""

    def tunnel_empty(self, tunnel: Tunnel) -> None:
        """The peer decides how long it keeps a tunnel."""

    def tunnel_complaint(self, tunnel: Tunnel, about: str) -> None:
        text = "the peer %s at %s, a client of port %d, %s"
        self._fabric.complaints.say(_WARNING, text, self._identity, self._source.address, self._port, about)

    def tunnel_closed(self, tunnel: Tunnel, why: str) -> None:
        _log.debug("tunnel of %s to port %d ended: %s", self._identity, self._port, why)
        self._inbound.forget(self, tunnel)


def connect(fabric: Fabric, application: Address) -> socket.socket | None:
    """Begin to connect to our application; None when that failed at once."""
    try:
        sock = sockets.outgoing(application.family, fabric.settings.mark)
    except OSError as error:
        _log.error("cannot open a socket to the application: %s", error.strerror)
        return None
    if sock.connect_ex(application) not in sockets.CONNECTING:
        sock.close()
        return None
    return sock


def destination_peer(fabric: Fabric, *, verified: bool) -> Peer:
    """Ourselves, as the destination."""
    return peer_of(fabric.credentials.identity, fabric.own_address, verified)
