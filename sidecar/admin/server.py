"""The HTTP server of everything that a sidecar shows: readiness, metrics, probes, administration.

A minimal HTTP/1.1 server: one request a connection, no request body, and what it does not know it refuses. Rules:

1. Strict before lenient: a head that is not exactly HTTP/1.1 as RFC 9112 writes it gets 400, a long one 431.
2. Whoever holds connections open keeps nobody out: of too many the longest waiting one goes.
3. A page is written in pieces to a client that reads it; who does not read is cut off.

Who may see what is the pages' business, except what is here: :func:`from_this_pod` tells a program of this pod from a
web page that a browser of this pod was lured to.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import re
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

from sidecar.admin.indented import indented
from sidecar.errors import ConfigError
from sidecar.settings import Address

log = logging.getLogger(__name__)

MAX_HEAD: Final = 8192
#: Seconds for a whole request head to arrive, and for each piece of its answer to be taken.
DEADLINE: Final = 5.0
MAX_CONNECTIONS: Final = 64
#: Bytes written at once, so that a client that does not read holds no more of a page than this and a socket's buffer.
_PIECE: Final = 65_536

_REQUEST = re.compile(rb"([A-Z]{1,16}) (/[!-~]{0,2047}) HTTP/1\.[01]")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}):([\t -~\x80-\xff]*)")
_PARAMETER = re.compile(r"([a-z_]{1,32})=([A-Za-z0-9._*-]{0,128})")

TEXT: Final = "text/plain; charset=utf-8"
JSON: Final = "application/json; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Request:
    """One request, checked.

    :param target: as it was written, path and query
    :param peer: the IP address that it came from; empty when that is not known any more
    :param fields: by lower-case name; where one is there twice, the values are joined by ``", "``
    """

    method: str
    target: str
    peer: str
    fields: Mapping[str, str] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    def parameters(self, *known: str) -> dict[str, str]:
        """The query, of which every parameter must be known and there once.

        :raises Refused: naming what is wrong
        """
        _, mark, query = self.target.partition("?")
        found: dict[str, str] = {}
        for part in query.split("&") if mark else ():
            match = _PARAMETER.fullmatch(part)
            if match is None or match[1] not in known or match[1] in found:
                names = ", ".join(f"{name}=…" for name in known) or "nothing"
                raise Refused(HTTPStatus.BAD_REQUEST, f"after the question mark stands {names}, each once at most")
            found[match[1]] = match[2]
        return found


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered.

    :param kind: content type
    :param body: the pieces of it, each of which is sent as it is
    """

    status: HTTPStatus | int
    kind: str
    body: tuple[bytes, ...]


class Refused(Exception):
    """The request can not be answered as it is; the message says what would be."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


def text(status: HTTPStatus | int, body: str) -> Answer:
    """One or more lines for people."""
    return Answer(status, TEXT, (f"{body}\n".encode("utf-8", "replace"),))


def document(content: object) -> Answer:
    """A JSON document of numbers, texts, and mappings and lists of them."""
    return Answer(HTTPStatus.OK, JSON, (f"{indented(content)}\n".encode("utf-8", "replace"),))


def is_loopback(peer: str) -> bool:
    """Whether an address is of the loopback network, also as an IPv4-mapped one."""
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def from_this_pod(request: Request) -> bool:
    """Whether a program of this pod asks, by its own will.

    The address alone does not say that: a web page can have a browser send requests to loopback (cross-site request
    forgery), and read the answers when a name of its own leads there (DNS rebinding). Such requests carry the page's
    name as ``Host`` (RFC 9110 section 7.2), or an ``Origin`` or ``Sec-Fetch-Site`` that programs do not send.
    """
    host = request.fields.get("host", "")
    name, _, port = host.rpartition(":")
    if not port.isdecimal():
        name = host
    bare = name[1:-1] if name.startswith("[") and name.endswith("]") else name
    if not is_loopback(request.peer) or not (bare.lower() == "localhost" or is_loopback(bare)):
        return False
    return "origin" not in request.fields and request.fields.get("sec-fetch-site", "none") == "none"


type Handler = Callable[[Request], Answer | Awaitable[Answer]]


def open_listener(address: Address) -> socket.socket:
    """Listen on ``address``; on an unspecified one for IPv4 and IPv6 alike, where the kernel has both.

    :raises OSError: when the port can not be had
    """
    host, port = address.host, address.port
    unspecified = ipaddress.ip_address(host).is_unspecified
    if unspecified and socket.has_dualstack_ipv6():
        everywhere = ("::", port)
        return socket.create_server(everywhere, family=socket.AF_INET6, backlog=MAX_CONNECTIONS, dualstack_ipv6=True)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=MAX_CONNECTIONS)


class HttpServer:
    """Serves one port.

    :param listen: its address, ``0.0.0.0`` or ``::`` for every one of this pod, of both IP versions; port 0 is any
        free one
    :param setting: the setting that names the address, for messages
    :param handler: answers every request; raises :class:`Refused` for those that it does not take
    :param methods: that any page takes
    """

    def __init__(
        self, listen: Address, setting: str, handler: Handler, methods: tuple[str, ...] = ("GET", "HEAD")
    ) -> None:
        self._listen = listen
        self._setting = setting
        self._handler = handler
        self._methods = methods
        self._server: asyncio.Server | None = None
        self._listener: socket.socket | None = None
        self._connections: dict[asyncio.Task[None], asyncio.WriteTransport] = {}  # the oldest first

    @property
    def connections(self) -> int:
        """How many there are now."""
        return len(self._connections)

    @property
    def listener(self) -> socket.socket | None:
        """The socket that is listened on, to be handed to a process that goes on; None when there is none."""
        return self._listener

    @property
    def port(self) -> int:
        """The port that is served, also when the settings said 0."""
        assert self._listener is not None
        port: int = self._listener.getsockname()[1]
        return port

    async def start(self, inherited: socket.socket | None = None) -> None:
        """Serve.

        :param inherited: a socket that listens already, from the process before us
        :raises ConfigError: when the port can not be had
        """
        sock = inherited if inherited is not None else self._listen_there()
        sock.setblocking(False)
        self._listener = sock
        self._server = await asyncio.start_server(self._accept, sock=sock, limit=MAX_HEAD, backlog=MAX_CONNECTIONS)

    def release(self) -> None:
        """Accept no more: another process does. Whoever is connected gets an answer."""
        server, self._server = self._server, None
        self._listener = None
        if server is not None:
            server.close()

    def _listen_there(self) -> socket.socket:
        try:
            return open_listener(self._listen)
        except OSError as error:
            problem = os.strerror(error.errno) if error.errno else str(error)
            raise ConfigError(
                f"{self._setting}: cannot listen on {self._listen}: {problem}; stop the program that holds the port, "
                "or choose another address of this machine"
            ) from None

    async def stop(self) -> None:
        """Serve no more. Calling it again changes nothing."""
        self.release()
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            # the longest waiting one has to go: whoever holds connections open must not keep the kubelet out
            oldest = next(iter(self._connections))
            self._connections.pop(oldest).abort()
            oldest.cancel()
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._connections[task] = writer.transport
        task.add_done_callback(lambda done: self._connections.pop(done, None))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(DEADLINE):
                try:
                    head: bytes | None = await reader.readuntil(b"\r\n\r\n")
                except asyncio.LimitOverrunError:
                    head = None
            peer = writer.get_extra_info("peername")
            for piece in await self.respond(head, peer[0] if peer else ""):
                for start in range(0, len(piece), _PIECE):
                    writer.write(piece[start : start + _PIECE])
                    async with asyncio.timeout(DEADLINE):
                        await writer.drain()
            async with asyncio.timeout(DEADLINE):
                writer.write_eof()
                while await reader.read(MAX_HEAD):  # closing with unread bytes would reset the answer away
                    pass
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    async def respond(self, head: bytes | None, peer: str) -> tuple[bytes, ...]:
        """The whole response to a request head, None for one that is too long.

        :param peer: the IP address that it came from
        """
        method = ""
        try:
            request = self._read(head, peer)
            method = request.method
            if method not in self._methods:
                raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, f"only {' and '.join(self._methods)}")
            answer = self._handler(request)
            if not isinstance(answer, Answer):
                answer = await answer
        except Refused as refused:
            answer = text(refused.status, str(refused))
        except Exception:
            log.exception("a fault of ours in a page; please report it")
            answer = text(HTTPStatus.INTERNAL_SERVER_ERROR, "a fault of ours; the log has it")
        status = HTTPStatus(answer.status)
        lines = [
            f"HTTP/1.1 {status.value} {status.phrase}",
            f"Content-Type: {answer.kind}",
            f"Content-Length: {sum(map(len, answer.body))}",
            "Cache-Control: no-store",
            "X-Content-Type-Options: nosniff",
            "Connection: close",
        ]
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            lines.append(f"Allow: {', '.join(self._methods)}")
        start = "\r\n".join(lines).encode() + b"\r\n\r\n"
        return (start,) if method == "HEAD" else (start, *answer.body)

    def _read(self, head: bytes | None, peer: str) -> Request:
        if head is None:
            raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"more than {MAX_HEAD} bytes")
        first, *lines = head[:-4].split(b"\r\n")
        request = _REQUEST.fullmatch(first)
        matches = [_FIELD.fullmatch(line) for line in lines]
        if request is None or not all(matches):
            raise Refused(HTTPStatus.BAD_REQUEST, "not an HTTP/1.1 request")
        fields: dict[str, str] = {}
        for match in matches:
            assert match is not None
            name, value = match[1].decode().lower(), match[2].decode("latin-1").strip(" \t")
            fields[name] = f"{fields[name]}, {value}" if name in fields else value
        if "transfer-encoding" in fields or fields.get("content-length", "0").strip("0"):
            raise Refused(HTTPStatus.BAD_REQUEST, "no request body is taken")
        return Request(request[1].decode(), request[2].decode(), peer, fields)
