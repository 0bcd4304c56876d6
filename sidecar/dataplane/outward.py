"""Connections out of the mesh that are read: what is asked of a host is judged before a byte of it leaves.

Rules:

1. Read is what the snapshot names (a host and a port that this workload inspects), and what rules by operation speak
   of. Nothing else outside the mesh is.
2. HTTP without TLS is read as it comes. TLS is ended here only for an inspected host, and only for a client that names
   it in the clear: it is shown a certificate of ours (:mod:`sidecar.inspect.certificates`). The host itself is called
   first, proves its name, and agrees on a protocol; the client is offered that one and no other.
3. Where TLS should be ended and can not be (nothing was signed yet, the client offers only protocols that nobody reads
   here), the connection is refused. A client that does not name the host is not inspected: like every byte that is no
   operation it is judged as the empty one.
4. A host that wants a certificate of the client is refused by itself: we have none that it could want, and whoever is
   passed through unread could ask for anything. A client that refuses our certificate likewise. Both are counted, with
   the remedy.

What is said on the connection is for :mod:`sidecar.inspect.lane`.
"""

from __future__ import annotations

import logging
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable

from graph.directory import Endpoint
from graph.model import Direction
from graph.policy import Reason
from sidecar import heap
from sidecar.dataplane import sockets
from sidecar.dataplane.clienthello import ClientHello
from sidecar.dataplane.contracts import Record
from sidecar.dataplane.detect import Kind
from sidecar.dataplane.dial import DialFailed, handshake
from sidecar.dataplane.fabric import Fabric
from sidecar.dataplane.lane_context import LaneContext
from sidecar.dataplane.lanes import is_http
from sidecar.dataplane.legs import NOBODY, Leg
from sidecar.dataplane.live import Connection, refusal
from sidecar.dataplane.relay import Relay
from sidecar.dataplane.socket_leg import SocketLeg
from sidecar.dataplane.sockets import Address
from sidecar.dataplane.tls import HandshakeFailed
from sidecar.dataplane.tls_leg import TlsLeg

_log = logging.getLogger(__name__)

#: The protocols that can be inspected.
_READ = ("h2", "http/1.1")
_UNTRUSTED = "have SSL_CERT_FILE (or REQUESTS_CA_BUNDLE, NODE_EXTRA_CA_CERTS) of the application name our roots"
_STOP = "or take {host}:{port} out of `inspects` if the application pins the host's certificate"


def is_read(fabric: Fabric, record: Record) -> bool:
    """Whether what is said on an allowed connection is to be read here."""
    peer, port = record.destination, record.port
    if record.direction is not Direction.OUTBOUND or peer.workload is not None:
        return False
    authority = fabric.authority
    return (bool(peer.host) and authority.inspects(peer.host, port)) or authority.by_operation(
        peer, port, outbound=True
    )


class Outward:
    """Carries one such connection.

    :param take_client: hands the client's socket over; None when it was refused meanwhile
    :param connect: makes a plain connection to the endpoint
    :param begin: called once it is carried
    """

    def __init__(
        self,
        fabric: Fabric,
        connection: Connection,
        endpoint: Endpoint,
        take_client: Callable[[], socket.socket | None],
        connect: Callable[[Endpoint], Awaitable[socket.socket]],
        begin: Callable[[], None],
    ) -> None:
        self._fabric = fabric
        self._connection = connection
        self._endpoint = endpoint
        self._take_client = take_client
        self._connect = connect
        self._begin = begin
        self._host = connection.record.destination.host
        self._port = endpoint.port

    async def carry(self, kind: Kind, hello: ClientHello | None) -> None:
        """Carry it, whose first bytes are these.

        :raises DialFailed: when the host can not be reached, or does not prove its name
        """
        record, authority = self._connection.record, self._fabric.authority
        inspected = bool(self._host) and authority.inspects(self._host, self._port)
        self._connection.by_operation = True  # until it turns out to be none
        if inspected and hello is not None and hello.server_name == self._host:
            await self._end_tls(hello)
        elif is_http(kind):
            server = await self._connect(self._endpoint)
            client = self._take_client()
            if client is None:
                server.close()
                return
            reactor, budget = self._fabric.reactor, self._fabric.budget
            there = SocketLeg(reactor, server, budget, NOBODY)
            self._enter(kind, SocketLeg(reactor, client, budget, NOBODY), there, tls=False)
        else:
            self._connection.by_operation = False
            record.protocol = kind.value
            await self._pass(inspected=inspected)

    # --- what is not read

    async def _pass(self, *, inspected: bool) -> None:
        """Carry bytes that are no operation, where that is allowed."""
        fabric, connection = self._fabric, self._connection
        record, authority = connection.record, fabric.authority
        peer = record.destination
        if inspected:
            self._count("unread", "")
        if authority.by_operation(peer, self._port, outbound=True):
            decision = authority.operation(peer, self._port, "", outbound=True)
            if not decision.allowed:
                connection.refuse(decision)
                self._refuse_client()
                return
            record.decision = decision
        server = await self._connect(self._endpoint)
        client = self._take_client()
        if client is None:
            server.close()
            return
        self._begin()
        Relay(fabric.reactor, client, server, connection)
        connection.announce()

    # --- TLS

    async def _end_tls(self, hello: ClientHello) -> None:
        from sidecar.inspect.hub import Inspection

        inspection = Inspection.of(self._fabric)
        certificates = inspection.certificates
        offered = tuple(name for name in _READ if name.encode() in hello.alpn)
        if hello.alpn and not offered:
            self._refuse("protocol", "the client offers no protocol that can be inspected")
            return
        why = "nobody here makes certificates" if certificates is None else ""
        if certificates is None or (why := certificates.why_not(self._host)):
            self._refuse("unsigned", why)
            return
        server, agreed = await self._call_host(certificates.upstream(offered))
        try:
            shown = certificates.shown(self._host, agreed)
            client = self._take_client()
            if client is None:
                server.reset()
                return
            channel = await handshake(self._fabric, client, shown, server_side=True)
        except BaseException:
            server.reset()
            raise
        if isinstance(channel, HandshakeFailed):
            server.reset()
            self._count("client", f"{channel}; {_UNTRUSTED}, {_STOP.format(host=self._host, port=self._port)}")
            self._connection.finish(failed=True)
            return
        if self._connection.record.closed:  # refused at the same moment
            self._fabric.reactor.close(client)
            server.reset()
            return
        leg = TlsLeg(self._fabric.reactor, client, channel, None, self._fabric.budget, NOBODY, _nothing_to_say)
        self._enter(Kind.HTTP2 if agreed == "h2" else Kind.HTTP1, leg, server, tls=True)

    async def _call_host(self, context: ssl.SSLContext) -> tuple[Leg, str]:
        """A connection to the host, paused, and the protocol that was agreed on.

        :raises DialFailed: when it can not be reached, or does not prove its name
        """
        sock = await self._connect(self._endpoint)
        result = await handshake(self._fabric, sock, context, host=self._host)
        if isinstance(result, HandshakeFailed):
            self._count("untrusted" if result.untrusted else "handshake", f"its TLS: {result}")
            place = f"{self._host} at {self._endpoint.address}"
            raise DialFailed(f"no TLS with {place}: {result}", untrusted=result.untrusted)

        def complain(why: str) -> None:
            if _wants_ours(why):
                self._count("client-certificate", f"it wants a certificate of the client; {_STOP_MUTUAL}")

        fabric = self._fabric
        leg = TlsLeg(fabric.reactor, sock, result, None, fabric.budget, NOBODY, complain, reached=False)
        leg.pause()
        return leg, result.session.selected_alpn_protocol() or ""

    # --- the lane

    def _enter(self, kind: Kind, client: Leg, server: Leg, *, tls: bool) -> None:
        # imported on first use: few pods inspect anything
        first = "sidecar.inspect.lane" not in sys.modules
        from sidecar.inspect.lane import InspectLane

        if first:
            heap.settle()
        server.pause()
        connection = self._connection
        connection.record.protocol = kind.value
        place = Address(self._endpoint.address, self._port)
        context = LaneContext(self._fabric, connection, self._port, place, _nothing, server, tls)
        self._begin()
        lane = client.lane = InspectLane(context, client, kind)
        connection.announce()
        lane.begin()

    # --- refusals

    def _refuse(self, kind: str, why: str) -> None:
        self._count(kind, why)
        self._connection.refuse(refusal(Reason.UNINSPECTED))
        self._refuse_client()

    def _refuse_client(self) -> None:
        client = self._take_client()
        if client is not None:
            sockets.reset(client)
            self._fabric.reactor.close(client)

    def _count(self, kind: str, why: str) -> None:
        from sidecar.inspect.hub import Inspection

        Inspection.of(self._fabric).outward[kind] += 1
        if why:
            text = "a connection to %s, which is inspected, came to nothing: %s"
            self._fabric.complaints.say(logging.WARNING, text, f"{self._host}:{self._port}", why)


_STOP_MUTUAL = "take the host out of `inspects`, which its rules by operation do not survive"


def _wants_ours(why: str) -> bool:
    """Whether a server's alert says that it wanted a certificate (RFC 8446 section 6.2)."""
    return "certificate required" in why


def _nothing() -> None:
    """The client knows already that its connection was taken."""


def _nothing_to_say(why: str) -> None:
    """How our own application ends its connections is its own business."""
