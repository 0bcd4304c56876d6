"""The readiness port: ``GET /healthz/ready`` for kubelets and people, ``GET /stats`` for people on this pod.

A minimal HTTP/1.1 server, one request a connection, no request body: what it does not know it refuses. Ready means that
a workload behind this sidecar would be served: a certificate, a policy, listeners. What is missing is said as text.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from http import HTTPStatus

from sidecar.errors import ConfigError
from sidecar.settings import Address

log = logging.getLogger(__name__)

MAX_HEAD = 8192
#: Seconds for a whole request to arrive, and for its answer to leave.
DEADLINE = 5.0
MAX_CONNECTIONS = 64

_REQUEST = re.compile(rb"([A-Z]{1,16}) (/[!-~]{0,2047}) HTTP/1\.[01]")
_FIELD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}:[\t -~\x80-\xff]*")

type Answer = tuple[HTTPStatus, str, str]
"""Status, content type and body."""


class ReadinessServer:
    """Serves the readiness port.

    :param missing: what is not there yet, one short sentence each; empty when ready
    :param stats: what ``/stats`` shows; only numbers, texts, and mappings and lists of them
    """

    def __init__(
        self, listen: Address, missing: Callable[[], list[str]], stats: Callable[[], Mapping[str, object]]
    ) -> None:
        self._listen = listen
        self._missing = missing
        self._stats = stats
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.WriteTransport] = {}  # the oldest first

    @property
    def port(self) -> int:
        """The port that is served, also when the settings said 0."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def start(self) -> None:
        """:raises ConfigError: when the port can not be had"""
        try:
            self._server = await asyncio.start_server(
                self._accept, self._listen.host, self._listen.port, limit=MAX_HEAD, backlog=MAX_CONNECTIONS
            )
        except OSError as error:
            problem = os.strerror(error.errno) if error.errno else str(error)
            raise ConfigError(
                f"ready_listen: cannot listen on {self._listen}: {problem}; stop the program that holds the port, or "
                "choose another address of this machine"
            ) from None

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for task in tuple(self._connections):
                task.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)
            await self._server.wait_closed()

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
                    head = await reader.readuntil(b"\r\n\r\n")
                except asyncio.LimitOverrunError:
                    head = None
                peer = writer.get_extra_info("peername")
                writer.write(self.respond(head, peer[0] if peer else ""))
                await writer.drain()
                writer.write_eof()
                while await reader.read(MAX_HEAD):  # closing with unread bytes would reset the answer away
                    pass
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    def respond(self, head: bytes | None, peer: str) -> bytes:
        """The whole response to a request head, None for one that is too long.

        :param peer: the IP address that it came from
        """
        method, (status, kind, body) = self._answer(head, peer)
        data = body.encode()
        lines = [
            f"HTTP/1.1 {status.value} {status.phrase}",
            f"Content-Type: {kind}; charset=utf-8",
            f"Content-Length: {len(data)}",
            "Cache-Control: no-store",
            "X-Content-Type-Options: nosniff",
            "Connection: close",
        ]
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            lines.append("Allow: GET, HEAD")
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + (b"" if method == b"HEAD" else data)

    def _answer(self, head: bytes | None, peer: str) -> tuple[bytes, Answer]:
        if head is None:
            return b"", _text(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"more than {MAX_HEAD} bytes")
        first, *fields = head[:-4].split(b"\r\n")
        request = _REQUEST.fullmatch(first)
        if request is None or not all(map(_FIELD.fullmatch, fields)):
            return b"", _text(HTTPStatus.BAD_REQUEST, "not an HTTP/1.1 request")
        method, target = request.groups()
        if method not in (b"GET", b"HEAD"):
            return method, _text(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD")
        if any(re.match(rb"(content-length:[ \t]*0*[1-9]|transfer-encoding:)", f, re.IGNORECASE) for f in fields):
            return method, _text(HTTPStatus.BAD_REQUEST, "no request body is taken")
        return method, self._page(target, peer)

    def _page(self, target: bytes, peer: str) -> Answer:
        match target:
            case b"/healthz/ready":
                missing = self._missing()
                if missing:
                    return _text(HTTPStatus.SERVICE_UNAVAILABLE, "\n".join(missing))
                return _text(HTTPStatus.OK, "ready")
            case b"/stats" if not _is_loopback(peer):
                return _text(HTTPStatus.FORBIDDEN, "only from this pod's loopback")
            case b"/stats":
                body = json.dumps(self._stats(), indent=2, sort_keys=True) + "\n"
                return HTTPStatus.OK, "application/json", body
        return _text(HTTPStatus.NOT_FOUND, "try /healthz/ready or /stats")


def _text(status: HTTPStatus, body: str) -> Answer:
    return status, "text/plain", body + "\n"


def _is_loopback(peer: str) -> bool:
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
