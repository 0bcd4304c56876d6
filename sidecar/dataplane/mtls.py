"""Other meshes' proxies: SPIFFE mutual TLS, one TLS connection for each connection, in both directions.

Rules:

1. A TLS client of our application is another mesh's proxy when it offers a protocol of Istio's in ALPN, or comes to a
   port that the settings name (``mtls_ports``). Every other one is the application's own: its bytes are passed on as
   they are, from an unknown source. A client that is taken for a proxy and proves no identity is refused, so nobody
   gains by being taken for one.
2. A server name never makes a client a proxy. Istio's proxies that send theirs (``outbound_.80_._.cart.shop.svc…``)
   offer Istio's ALPN beside it; Linkerd's (``….serviceaccount.identity.…``) want a DNS name in our certificate, which
   an SVID must not have; and an application may well serve TLS of its own under a name of the cluster.
3. ALPN is answered only with what the bytes behind it will be. ``istio-peer-exchange`` never is: its client would send
   Istio's own metadata before the application's bytes.
4. The identity is verified as in a tunnel. One that stops at ``/sa/…`` counts as that account and as no workload.
5. A connection lives no longer than the two certificates of its handshake (:mod:`sidecar.dataplane.tls_leg`).
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from graph.directory import Endpoint
from graph.model import Direction
from sidecar.dataplane import sockets, tls
from sidecar.dataplane.clienthello import ClientHello
from sidecar.dataplane.dial import DialFailed, accounted, shake_hands
from sidecar.dataplane.fabric import Fabric, peer_of
from sidecar.dataplane.lease import Lease, Proof
from sidecar.dataplane.leg_relay import LegRelay
from sidecar.dataplane.legs import NOBODY
from sidecar.dataplane.live import Connection, new_record
from sidecar.dataplane.serving import serve_leg
from sidecar.dataplane.settings import DataPlaneSettings
from sidecar.dataplane.socket_leg import SocketLeg
from sidecar.dataplane.sockets import Address
from sidecar.dataplane.tls import Channel, PeerRefused
from sidecar.dataplane.tls_leg import TlsLeg

_log = logging.getLogger(__name__)

#: What Istio's proxies offer in ALPN, and nobody else does.
MESH_PROTOCOLS: Final = frozenset({b"istio", b"istio-peer-exchange", b"istio-http/1.0", b"istio-http/1.1", b"istio-h2"})

#: Names of the same protocols, the plain one before the mesh's: Istio's own servers answer with the plain one.
_HTTP2: Final = ("h2", "istio-h2")
_HTTP1: Final = ("http/1.1", "istio-http/1.1", "http/1.0", "istio-http/1.0")
_ANY: Final = ("istio",)

#: ``appProtocol`` values of an application that speaks HTTP/2 without TLS.
_SPEAKS_HTTP2: Final = frozenset({"http2", "h2c", "grpc", "kubernetes.io/h2c"})


def is_proxy(hello: ClientHello, port: int, settings: DataPlaneSettings) -> bool:
    """Whether a client of our application's ``port`` is another mesh's proxy (rules 1 and 2)."""
    return port in settings.mtls_ports or not MESH_PROTOCOLS.isdisjoint(hello.alpn)


def answer(offered: Sequence[bytes], app_protocol: str) -> str:
    """Which of the protocols in a client's ALPN to agree to; empty: none (rule 3).

    A client that offers HTTP/1 and HTTP/2 gets the one that our application is known to speak, HTTP/1 if in doubt.

    :param app_protocol: of the port, as the inventory names it
    """
    names = _HTTP2 + _HTTP1 if app_protocol in _SPEAKS_HTTP2 else _HTTP1 + _HTTP2
    return next((name for name in names + _ANY if name.encode() in offered), "")


# A proxy calls our application ----------------------------------------------------------------------------------------


def serve_proxy(
    fabric: Fabric, sock: socket.socket, channel: Channel, source: str, port: int, application: Address
) -> None:
    """A handshake is complete: see who it is, and carry the connection if the policy allows it.

    :param sock: registered with the reactor; from here on it is ours
    :raises PeerRefused: when the peer proves no identity; the socket is closed
    """
    agreed = (channel.session.selected_alpn_protocol(),)  # our own context chose it
    try:
        proof = tls.identify(channel, fabric.credentials, source, agreed=agreed)
    except PeerRefused:
        fabric.reactor.close(sock)
        raise
    identity = proof.peer.spiffe_id
    peer = peer_of(identity, source, True)
    record = new_record(Direction.INBOUND, peer, fabric.ourselves.peer(verified=True), port)
    record.source_identity = str(identity)
    record.source_certificate = proof.peer.certificate
    record.destination_identity = str(fabric.credentials.identity)

    def end(connection: Connection) -> None:
        sockets.reset(sock)
        fabric.reactor.close(sock)
        connection.finish()

    connection = fabric.connections.judge(record, end)
    if not connection.allowed or fabric.full:
        sockets.reset(sock)
        fabric.reactor.close(sock)
        connection.finish(failed=True)
        return
    complain = _complaints(fabric, f"{identity} at {source}, a client of port {port}")
    leg = TlsLeg(fabric.reactor, sock, channel, Lease.of(proof), fabric.budget, NOBODY, complain)
    fabric.foreign.add(leg)
    serve_leg(fabric, leg, connection, port, application)


# Our application calls another mesh's ---------------------------------------------------------------------------------


async def dial(fabric: Fabric, endpoint: Endpoint) -> tuple[socket.socket, Channel, Proof]:
    """A connection to ``endpoint`` that has proved to be who the directory says.

    :returns: the socket, registered with the reactor, the session and what it proved
    :raises DialFailed: saying why; the failure is counted
    """
    if not endpoint.identity:
        place = Address(endpoint.address, endpoint.port)
        raise DialFailed(f"{place} is meshed, but the directory names no identity for it")
    return await accounted(fabric, endpoint, "mutual TLS with", shake_hands(fabric, endpoint))


def carry(
    fabric: Fabric,
    client: socket.socket,
    connection: Connection,
    endpoint: Endpoint,
    dialled: tuple[socket.socket, Channel, Proof],
) -> None:
    """Relay an allowed connection of our application's over what :func:`dial` gave."""
    sock, channel, proof = dialled
    record = connection.record
    shown = proof.peer.spiffe_id
    record.destination_identity = str(shown)
    # whoever proves an account only is not proved to be the workload that the directory names
    record.destination = replace(record.destination, verified=bool(shown.workload))
    complain = _complaints(fabric, f"{shown} at {Address(endpoint.address, endpoint.port)}")
    reactor, budget = fabric.reactor, fabric.budget
    server = TlsLeg(reactor, sock, channel, Lease.of(proof), budget, NOBODY, complain, reached=False)
    fabric.foreign.add(server)
    LegRelay(connection, SocketLeg(reactor, client, budget, NOBODY), server)
    connection.announce()


def _complaints(fabric: Fabric, who: str) -> Callable[[str], None]:
    def complain(why: str) -> None:
        fabric.complaints.say(logging.WARNING, "the connection with %s was lost: %s", who, why)

    return complain
