"""How a connection of our application leaves, whether it had to wait or not: as whom it is judged, and on what stream.

Rules:

1. Whom the policy is asked about is whom the directory expects at an endpoint. That is proved by the endpoint's
   certificate and by nothing else, and only then said to be.
2. What is carried counts as load of its endpoint until it ends.
"""

from __future__ import annotations

import socket
from dataclasses import replace
from functools import lru_cache

from certs.errors import InvalidSpiffeId
from certs.spiffe import SpiffeId
from graph.directory import Destination, Endpoint
from graph.model import Peer
from sidecar.dataplane.elsewhere import Elsewhere
from sidecar.dataplane.fabric import Fabric, peer_of
from sidecar.dataplane.live import Connection, Connections
from sidecar.dataplane.sockets import Address
from sidecar.dataplane.stream import Stream
from sidecar.dataplane.tunnel import Tunnel


def carry(
    fabric: Fabric,
    sock: socket.socket,
    connection: Connection,
    endpoint: Endpoint,
    proved: Peer,
    tunnel: Tunnel,
    elsewhere: Elsewhere,
    early: bytes = b"",
) -> None:
    """Open a stream for an allowed connection.

    :param proved: who answers there, whose certificate the tunnel has seen
    :param early: what the client has said before, to somebody who did not take it
    """
    record = connection.record
    record.destination = proved
    record.destination_identity = endpoint.identity
    count_load(fabric, connection, endpoint)
    stream = Stream(
        fabric.reactor,
        tunnel,
        tunnel.open_id(),
        sock,
        connection,
        opened_here=True,
        elsewhere=elsewhere,
        early=early,
    )
    stream.begin()  # announced when the peer has reached its application, or at its end


def destination_peer(destination: Destination, endpoint: Endpoint | None, target: Address, host: str = "") -> Peer:
    """Whom the policy is asked about: whoever answers at this endpoint. The identity is expected, not proved yet.

    :param host: the name of a destination outside the inventory, bound to its address by DNS
    """
    address = endpoint.address if endpoint is not None else target.host
    workload = destination.workload_of(endpoint)
    if endpoint is not None and endpoint.identity and workload is not None:
        peer = _expected_peer(endpoint.identity, address, False)
        if peer is not None and peer.workload in (None, workload):
            return peer if peer.workload else replace(peer, workload=workload)
    return Peer(workload, workload.namespace if workload is not None else "", address=address, host=host)


def judge_known(connections: Connections, address: str, port: int, destination: Destination | None) -> None:
    """Judge connections again that were made before the directory knew who is there.

    :param destination: what it says now; None: nothing
    """
    if destination is None or destination.outside or not connections.strange((address, port)):
        return
    target = Address(address, port)
    ends = {(each.address, each.port): destination_peer(destination, each, target) for each in destination.endpoints}
    connections.known((address, port), ends or {(address, port): destination_peer(destination, None, target)})


@lru_cache(maxsize=4096)
def _expected_peer(identity: str, address: str, verified: bool) -> Peer | None:
    try:
        return peer_of(SpiffeId.parse(identity), address, verified)
    except InvalidSpiffeId:
        return None  # no certificate can carry it either


def proved_peer(peer: Peer, endpoint: Endpoint) -> Peer:
    """``peer``, after its certificate was seen. Mostly the one that was made for the connection before this."""
    known = _expected_peer(endpoint.identity, peer.address, True)
    if known is not None and known.workload == peer.workload and not peer.host:
        return known
    return replace(peer, verified=True)


def count_load(fabric: Fabric, connection: Connection, endpoint: Endpoint) -> None:
    """Count ``connection`` as load of ``endpoint``, and its name as in use, until it ends; then how it went."""
    balancer, names = fabric.balancer, fabric.names
    balancer.began(endpoint)
    host = connection.record.destination.host
    if host:
        names.began(endpoint.address, host)

    def over(failed: bool) -> None:
        balancer.ended(endpoint)
        if host:
            names.ended(endpoint.address, host)
        if failed:
            balancer.failed(endpoint, fabric.reactor.loop.time())
        else:
            balancer.succeeded(endpoint)

    connection.after(over)
