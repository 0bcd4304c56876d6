"""Connections to our application: accepted here, told apart by their first bytes (:mod:`sidecar.dataplane.arrival`),
judged, and handed to the lane that carries them (:mod:`sidecar.dataplane.serving`).

Rules:

1. A connection that was captured on the way to anything but an application port of ours is refused.
2. Every stream of a tunnel is judged on its own. What is no tunnel is plaintext of an unknown source.
3. Nobody is kept out by those who only begin: of too many connections that are not yet anybody's the longest waiting
   one is dropped, and one address may hold only so many tunnels.
"""

from __future__ import annotations

import logging
import socket
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

from graph.model import Direction, Peer
from graph.policy import Reason
from sidecar.dataplane import sockets, tls
from sidecar.dataplane.arrival import Arrival
from sidecar.dataplane.contracts import Record
from sidecar.dataplane.fabric import Acceptor, Fabric, peer_of
from sidecar.dataplane.lease import Lease, Leases, Proof
from sidecar.dataplane.live import UNDECIDED, Connection, new_record, refusal, report_refused
from sidecar.dataplane.serving import serve_stream
from sidecar.dataplane.sockets import Address
from sidecar.dataplane.tls import Channel, PeerRefused
from sidecar.dataplane.tunnel import Tunnel

_log = logging.getLogger(__name__)

_INFO, _WARNING = logging.INFO, logging.WARNING


class Inbound:
    """Takes connections of others from its listeners."""

    __slots__ = ("_acceptors", "_arriving", "_draining", "_fabric", "_leases", "_proved", "_tunnels", "_tunnels_from")

    def __init__(self, fabric: Fabric, proved: Callable[[Proof], None] | None = None) -> None:
        self._fabric = fabric
        self._proved = proved
        self._acceptors: list[Acceptor] = []
        self._arriving: dict[Arrival, None] = {}  # sniffed, or in a handshake; the longest waiting first
        self._tunnels: set[_Accepted] = set()
        self._tunnels_from: Counter[str] = Counter()  # by the peer's address
        self._leases = Leases()
        self._draining = False
        fabric.credentials.subscribe(self._renewed)

    def listen(self, listener: socket.socket, declared: tuple[int, Address] | None = None) -> Acceptor:
        """Take connections from ``listener``.

        :param declared: the port that policy speaks of, and the application behind it; None: capture knows both
        """

        acceptor = Acceptor(self._fabric, listener, partial(self._accepted, declared, listener.family))
        self._acceptors.append(acceptor)
        return acceptor

    @property
    def tunnels(self) -> list[Tunnel]:
        return [owner.tunnel for owner in self._tunnels if owner.tunnel is not None]

    @property
    def busy(self) -> bool:
        """Whether there are tunnels, or connections that are not yet anybody's."""
        return bool(self._tunnels or self._arriving)

    def drain(self) -> None:
        """Take no more connections, and ask the peers to open their next streams elsewhere."""
        self._draining = True
        for acceptor in self._acceptors:
            acceptor.finish()
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

    def _accepted(self, declared: tuple[int, Address] | None, family: int, sock: socket.socket) -> None:
        fabric = self._fabric
        load = fabric.connections.count + len(self._tunnels) + len(self._arriving)
        if load >= fabric.settings.connections:
            text = "refused a connection: too many at once (%d, %d of them new)"
            fabric.complaints.say(_WARNING, text, load, len(self._arriving))
            fabric.guards.counters.connections_refused += 1
            sockets.refuse(sock)
            return
        if declared is not None:
            port, application = declared
        else:
            captured = self._captured(sock, family)
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
            fabric.guards.counters.handshakes_dropped += 1
        arrival = Arrival(self, fabric, sock, source, port, application)
        self._arriving[arrival] = None
        arrival.begin()

    def _captured(self, sock: socket.socket, family: int) -> Address | None:
        """Where a captured connection was to go; None when that is no application port of ours."""
        target = sockets.original_destination(sock, family)
        if target is None or target.host not in self._fabric.settings.addresses:
            text = "refused a connection to %s, which is not our address"
            self._fabric.complaints.say(_INFO, text, target or "the capture port")
            return None
        if target.port in self._fabric.settings.sidecar_ports:
            self._fabric.complaints.say(_INFO, "refused a connection to port %d of our own", target.port)
            return None
        return target

    def arrived(self, arrival: Arrival) -> None:
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
            fabric.guards.counters.tunnels_refused += 1
            fabric.reactor.close(sock)
            return
        owner = _Accepted(self, fabric, port, application, proof)
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
        if self._proved is not None:
            self._proved(proof)
        owner.tunnel.start()
        if self._draining:
            owner.tunnel.leave()

    def proved_elsewhere(self, proof: Proof) -> None:
        """A peer has made a handshake with another process of ours."""
        self._leases.heard(proof, time.time())

    def refuse_untrusted(self, source: str, port: int, why: str) -> None:
        """Report a peer that did not prove who it is; its connection is closed already."""
        self._fabric.complaints.say(_WARNING, "refused %s, a client of port %d: %s", source, port, why)
        decision = refusal(Reason.UNTRUSTED_PEER)
        destination = self._fabric.ourselves.peer(verified=False)
        record = new_record(Direction.INBOUND, Peer(address=source), destination, port, decision)
        report_refused(self._fabric.connections.flows, record)

    def forget(self, owner: _Accepted, tunnel: Tunnel) -> None:
        self._leases.leave(tunnel)
        if owner in self._tunnels:
            self._tunnels.remove(owner)
            self._tunnels_from[owner.address] -= 1
            if not self._tunnels_from[owner.address]:
                del self._tunnels_from[owner.address]


class _Accepted:
    """The owner of one tunnel that a peer dialled."""

    __slots__ = ("_application", "_certificate", "_fabric", "_identity", "_inbound", "_port", "_source", "tunnel")

    def __init__(self, inbound: Inbound, fabric: Fabric, port: int, application: Address, proof: Proof) -> None:
        self._inbound = inbound
        self._fabric = fabric
        self._port = port
        self._application = application
        self._source = peer_of(proof.peer.spiffe_id, proof.place, True)
        self._identity = str(proof.peer.spiffe_id)
        self._certificate = proof.peer.certificate
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
        ourselves, identity = fabric.ourselves.proved()
        record = Record(
            Direction.INBOUND,
            self._source,
            ourselves,
            self._port,
            UNDECIDED,
            time.time(),
            self._identity,
            identity,
            source_certificate=self._certificate,
        )
        connection = fabric.connections.judge(record, Connection.finish)
        if record.closed:  # refused
            tunnel.refuse(stream_id)
            return
        if fabric.full:
            tunnel.refuse(stream_id, unreached=True)
            connection.finish(failed=True)
            return
        serve_stream(fabric, tunnel, stream_id, connection, self._port, self._application)

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
