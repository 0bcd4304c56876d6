"""By which name a connection leaves the mesh: what DNS has bound to its address, chosen among by what the client says.

Rules:

1. A name counts only when DNS has bound it to the address that the client connects to. What a client merely claims (the
   server name of its TLS hello, the ``Host`` of its first request) chooses among those names and adds none.
2. A claim that is not bound, or can not be read without doubt, leaves no name at all: rules by address alone speak of
   such a connection. Otherwise one could reach, behind an address that many share, whom no rule allows.
3. A client that claims nothing (another protocol, one whose server speaks first, a port whose bytes are not looked at)
   has the name that was answered last: choosing among bound names is in the client's hands anyway.
4. Bytes are only looked at, for a bounded time, and stay where they are. Nothing is resolved here.

The first claim is the one that counts: what a client asks for later on the same connection, within TLS, or as the
target behind a forward proxy (``CONNECT``), is for lanes that read it (:mod:`sidecar.dataplane.outward`).
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import socket
from enum import Enum
from typing import Final

from sidecar.dataplane import clienthello
from sidecar.dataplane.clienthello import ClientHello, Reading
from sidecar.dataplane.detect import Kind, detect, unfinished
from sidecar.dataplane.fabric import Fabric
from sidecar.dataplane.first_line import is_open
from sidecar.dataplane.reactor import EDGE, GONE, IN, RDHUP
from sidecar.dataplane.sockets import Address

#: A request head that is longer is not waited for, bytes. A TLS hello has its own limit, which is higher.
MAX_HEAD: Final = 16_384
_PEEK: Final = max(MAX_HEAD, clienthello.LIMIT)

_REQUEST: Final = re.compile(rb"([A-Z][A-Z_-]{0,23}) ([!-~]+) HTTP/1\.[01]")
_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\0\r\n]*?)[ \t]*")
_ABSOLUTE: Final = re.compile(rb"https?://([^/?#@]*)(?:[/?#].*)?", re.IGNORECASE)
_HOST_AND_PORT: Final = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{0,5})?")


class Claim(Enum):
    """What a client says of its destination, when that is no name."""

    MORE = "it has not said everything"
    NOTHING = "nothing"
    DOUBTFUL = "what can not be read without doubt"


def claim_of(data: bytes, address: str) -> str | Claim:
    """What the first bytes of a connection to ``address`` claim: a host in lower case, or why there is none."""
    match detect(data):
        case Kind.MORE:
            return Claim.MORE
        case Kind.TLS:
            claim = _of_hello(data)
        case Kind.HTTP1:
            claim = _of_request(data)
        case Kind.HTTP2:
            return Claim.NOTHING
        case _:  # no request line, but perhaps one to a server that reads more kindly than we do
            if b" HTTP/1." in data:
                return Claim.DOUBTFUL
            return Claim.MORE if is_open(data) else Claim.NOTHING
    if isinstance(claim, str):
        try:
            literal = ipaddress.ip_address(claim.strip("[]"))
        except ValueError:
            return claim
        return Claim.NOTHING if str(literal) == address else Claim.DOUBTFUL
    return claim


def _of_hello(data: bytes) -> str | Claim:
    reading = clienthello.read(data)
    if reading is Reading.MORE:
        return Claim.MORE
    if not isinstance(reading, ClientHello):
        return Claim.DOUBTFUL
    if reading.named:
        return reading.server_name or Claim.DOUBTFUL
    return Claim.NOTHING


def _of_request(data: bytes) -> str | Claim:
    """``Host`` of a request head (RFC 9112 sections 3.2 and 5), which must be one that nobody can read otherwise."""
    head, ended, _ = data[:MAX_HEAD].partition(b"\r\n\r\n")
    if not ended:
        return Claim.MORE if len(data) < MAX_HEAD and b"\n\n" not in data else Claim.DOUBTFUL
    first, *lines = head.split(b"\r\n")
    request = _REQUEST.fullmatch(first)
    if request is None:
        return Claim.DOUBTFUL
    if request[1] == b"CONNECT":
        return Claim.NOTHING  # what a proxy is asked for; the connection itself is to the proxy
    hosts = []
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            return Claim.DOUBTFUL
        if field[1].lower() == b"host":
            hosts.append(field[2])
    if len(hosts) > 1 or (not hosts and request[0].endswith(b"1")):
        return Claim.DOUBTFUL
    target = _ABSOLUTE.fullmatch(request[2])
    if target is None and request[2][:1] not in (b"/", b"*"):
        return Claim.DOUBTFUL
    if target is not None:
        if hosts and hosts[0].lower() != target[1].lower():
            return Claim.DOUBTFUL
        hosts = [target[1]]
    if not hosts or not hosts[0]:
        return Claim.NOTHING
    found = _HOST_AND_PORT.fullmatch(hosts[0].decode("latin-1").lower())
    return found[1].removesuffix(".") or Claim.DOUBTFUL if found is not None else Claim.DOUBTFUL


class Egress:
    """Names the destinations of connections that leave the mesh.

    :ivar unbound: connections whose claim was not bound, or doubtful, since the start
    """

    __slots__ = ("_fabric", "unbound")

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self.unbound = 0

    async def host(self, sock: socket.socket, target: Address) -> str:
        """The name by which a connection to ``target`` is judged; empty: by its address alone.

        :param sock: the client's, not registered with the reactor; nothing is taken from it
        """
        fabric = self._fabric
        names = fabric.names.bound(target.host)
        if not names:
            return ""
        claim: str | Claim = Claim.NOTHING
        inspects, port = fabric.authority.inspects, target.port
        if port not in fabric.settings.opaque_ports or any(inspects(name, port) for name in names):
            claim = await _Look(fabric, sock, target.host).result()
        names = fabric.names.bound(target.host)  # as they are now
        if not names:
            return ""
        if claim is Claim.NOTHING:
            return names[0]
        if claim in names:
            return str(claim)
        self.unbound += 1
        said = repr(claim[:100]) if isinstance(claim, str) else claim.value
        text = "a connection to %s claims %s, which DNS has not bound to it (but %s); it is judged by its address alone"
        fabric.complaints.say(logging.WARNING, text, target, said, ", ".join(names[:3]))
        return ""

    async def opening(self, sock: socket.socket, target: Address) -> tuple[Kind, ClientHello | None]:
        """What a client's first bytes are, and its hello where it speaks TLS and that can be read.

        :param sock: as for :meth:`host`
        """
        await _Look(self._fabric, sock, target.host).result()
        try:
            data = sock.recv(_PEEK, socket.MSG_PEEK)
        except OSError:  # it waits for the server, or is gone
            return Kind.OTHER, None
        kind = detect(data)
        if kind is Kind.TLS:
            reading = clienthello.read(data)
            return kind, reading if isinstance(reading, ClientHello) else None
        return unfinished(data) if kind is Kind.MORE else kind, None


class _Look:
    """Waits for a client's first bytes without taking them."""

    __slots__ = ("_address", "_claim", "_fabric", "_said", "_sock", "_timer")

    def __init__(self, fabric: Fabric, sock: socket.socket, address: str) -> None:
        reactor = fabric.reactor
        self._fabric = fabric
        self._sock = sock
        self._address = address
        self._said = False
        self._claim: asyncio.Future[str | Claim] = reactor.loop.create_future()
        self._timer = reactor.call_later(fabric.settings.sniff_wait, self._over)

    async def result(self) -> str | Claim:
        reactor = self._fabric.reactor
        reactor.register(self._sock, IN | RDHUP | EDGE, self)
        try:
            self.on_event(IN)
            return await self._claim
        finally:
            self._timer.cancel()
            if self._sock.fileno() >= 0:  # else it was refused meanwhile
                reactor.forget(self._sock)

    def on_event(self, events: int) -> None:
        if self._claim.done():
            return
        try:
            data = self._sock.recv(_PEEK, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            self._decide(Claim.DOUBTFUL)  # the client is gone; whoever carries it on will see
            return
        claim = claim_of(data, self._address) if data else Claim.NOTHING
        if claim is not Claim.MORE:
            self._decide(claim)
        elif events & GONE or len(data) >= _PEEK:
            self._decide(Claim.DOUBTFUL)
        elif not self._said:  # what comes in pieces has the time of one handshake, however many there are
            self._said = True
            self._timer.cancel()
            fabric = self._fabric
            self._timer = fabric.reactor.call_later(fabric.settings.handshake_timeout, self._over)

    def abort(self, why: str) -> None:
        self._decide(Claim.DOUBTFUL)

    def _over(self) -> None:
        self._decide(Claim.DOUBTFUL if self._said else Claim.NOTHING)

    def _decide(self, claim: str | Claim) -> None:
        if not self._claim.done():
            self._claim.set_result(claim)
