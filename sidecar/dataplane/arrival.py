"""The first bytes of a connection to our application, and what they make of it.

Rules:

1. A ClientHello that offers our ALPN gets a tunnel, if a certificate proves who the peer is; one of another mesh's
   proxy (:mod:`sidecar.dataplane.mtls`) a connection, on the same terms. Everything else is plaintext of an unknown
   source, and judged as that.
2. A server that speaks first needs a client that waits: without a byte in time it is opaque plaintext.
3. Bytes are looked at where they are: nothing is taken from the socket before somebody owns the connection.
"""

from __future__ import annotations

import logging
import socket
from typing import Protocol

from graph.model import Direction, Peer
from sidecar.dataplane import clienthello, mtls, sockets
from sidecar.dataplane.chores import Alarm
from sidecar.dataplane.clienthello import ClientHello, Reading
from sidecar.dataplane.detect import Kind, detect, unfinished
from sidecar.dataplane.fabric import Fabric
from sidecar.dataplane.lanes import first_byte_wait, is_opaque
from sidecar.dataplane.live import Connection, new_record
from sidecar.dataplane.reactor import EDGE, IN, RDHUP
from sidecar.dataplane.serving import serve_socket
from sidecar.dataplane.settings import ALPN
from sidecar.dataplane.sockets import Address
from sidecar.dataplane.tls import Channel, Handshake, HandshakeFailed, PeerRefused

_INFO, _WARNING = logging.INFO, logging.WARNING
_ALPN = ALPN.encode()


class Arrivals(Protocol):
    """Is told what becomes of arrivals."""

    def arrived(self, arrival: Arrival) -> None:
        """It is no longer sniffed or in a handshake."""

    def run_tunnel(self, sock: socket.socket, channel: Channel, source: str, port: int, application: Address) -> None:
        """A handshake with our ALPN is complete."""

    def refuse_untrusted(self, source: str, port: int, why: str) -> None:
        """A peer did not prove who it is; its connection is closed already."""


class Arrival:
    """A connection whose first bytes decide what it is."""

    __slots__ = (
        "_application",
        "_fabric",
        "_half_hello",
        "_handshake",
        "_inbound",
        "_port",
        "_said",
        "_sock",
        "_source",
        "_timer",
    )

    def __init__(
        self, inbound: Arrivals, fabric: Fabric, sock: socket.socket, source: str, port: int, application: Address
    ) -> None:
        self._inbound = inbound
        self._fabric = fabric
        self._sock: socket.socket | None = sock
        self._source = source
        self._port = port
        self._application = application
        self._said = False  # something came
        self._half_hello = False
        self._timer: Alarm | None = None
        self._handshake: Handshake | None = None

    def begin(self) -> None:
        fabric = self._fabric
        assert self._sock is not None
        source = Peer(address=self._source)
        wait = first_byte_wait(fabric, source, self._port)
        if not fabric.authority.inbound(source, self._port).allowed:
            # without a certificate it is refused in any case, so that a busy machine's hello can be waited for
            wait = max(wait, fabric.settings.handshake_timeout)
        self._timer = fabric.reactor.call_later(wait, self._silent)
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
            self._plaintext(Kind.OTHER)  # a client that only ends its direction is still one
            return
        reading = clienthello.read(data)
        if reading is Reading.MORE and not events & RDHUP:
            self._half_hello = True
            self._wait_for_more()
        elif reading is Reading.MORE:
            self.abort("half a client hello, and no more to come")
        elif isinstance(reading, ClientHello) and _ALPN in reading.alpn:
            self._shake_hands(None)
        elif isinstance(reading, ClientHello) and mtls.is_proxy(reading, self._port, self._fabric.settings):
            self._shake_hands(reading)
        elif isinstance(reading, ClientHello):
            self._plaintext(Kind.TLS)
        elif is_opaque(self._fabric, Peer(address=self._source), self._port, silent=False):
            self._plaintext(Kind.OTHER)
        elif (kind := detect(data)) is not Kind.MORE:
            self._plaintext(kind)
        elif events & RDHUP:
            self._plaintext(unfinished(data))
        else:
            self._wait_for_more()

    def abort(self, why: str) -> None:
        if self._handshake is not None:
            self._handshake.abort(why)
            return
        sock = self._leave()
        if sock is not None:
            sockets.reset(sock)
            self._fabric.reactor.close(sock)

    def _wait_for_more(self) -> None:
        """First bytes in pieces have the time of one handshake, however many pieces there are."""
        if self._said:
            return
        self._said = True
        assert self._timer is not None
        self._timer.cancel()
        self._timer = self._fabric.reactor.call_later(self._fabric.settings.handshake_timeout, self._unclear)

    def _leave(self) -> socket.socket | None:
        """Be done with the socket, which somebody else takes or closes."""
        sock, self._sock = self._sock, None
        if sock is not None:
            assert self._timer is not None
            self._timer.cancel()
            self._inbound.arrived(self)
        return sock

    def _shake_hands(self, proxy: ClientHello | None) -> None:
        """Find out who the client is.

        :param proxy: what another mesh's proxy said; None: it wants a tunnel
        """
        fabric = self._fabric
        sock = self._sock
        assert sock is not None
        assert self._timer is not None
        context = None
        if proxy is None:
            sockets.tune_tunnel(sock)
        else:
            protocol = mtls.answer(proxy.alpn, fabric.authority.protocol(self._port))
            try:
                context = fabric.credentials.mesh_context(server_side=True, alpn=(protocol,) if protocol else ())
            except OSError as error:  # the first one needs a descriptor for a moment
                fabric.complaints.say(_WARNING, "refused %s: no TLS context: %s", self._source, error.strerror)
                self.abort("no TLS context")
                return
        self._timer.cancel()
        self._sock = None  # still arriving, until the handshake is done

        def done(result: Channel | HandshakeFailed) -> None:
            self._inbound.arrived(self)
            if isinstance(result, Channel) and proxy is not None:
                self._serve_proxy(sock, result)
            elif isinstance(result, Channel):
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
            context=context,
        )

    def _serve_proxy(self, sock: socket.socket, channel: Channel) -> None:
        try:
            mtls.serve_proxy(self._fabric, sock, channel, self._source, self._port, self._application)
        except PeerRefused as error:
            self._inbound.refuse_untrusted(self._source, self._port, str(error))

    def _silent(self) -> None:
        """The client waits for a server that speaks first, or wants us to think so."""
        self.on_event(IN)  # we may be late: what it said then waits to be looked at
        if self._sock is None or self._said:
            return
        opaque = is_opaque(self._fabric, Peer(address=self._source), self._port)
        self._plaintext(Kind.OTHER if opaque else Kind.MORE)

    def _unclear(self) -> None:
        """What came in time is half of something."""
        if self._half_hello:
            self.abort("half a client hello")
            return
        try:
            held = self._sock.recv(clienthello.LIMIT, socket.MSG_PEEK) if self._sock is not None else b""
        except OSError:
            self.abort("the client is gone")
            return
        self._plaintext(unfinished(held))

    def _plaintext(self, kind: Kind) -> None:
        sock = self._leave()
        if sock is None:
            return
        fabric = self._fabric
        source = Peer(address=self._source)
        record = new_record(Direction.INBOUND, source, fabric.ourselves.peer(verified=False), self._port)

        def end(connection: Connection) -> None:
            sockets.reset(sock)
            fabric.reactor.close(sock)
            connection.finish()

        connection = fabric.connections.judge(record, end)
        if connection.allowed:
            if kind is Kind.MORE:
                fabric.detection.timed_out()
            serve_socket(fabric, sock, connection, self._port, self._application, kind)
            return
        sockets.reset(sock)
        fabric.reactor.close(sock)
        connection.finish(failed=True)
