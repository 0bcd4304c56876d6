"""A small HTTP/1.1 client for requests to our own application: probes, and its metrics.

It believes nothing and holds little: a head of at most 64 KiB, a body of at most what the caller takes, one deadline
over everything, one request a connection.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

from sidecar.errors import SidecarError

MAX_HEAD: Final = 65_536

_STATUS = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: [\t -~\x80-\xff]*)?")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}):[ \t]*([\t -~\x80-\xff]*?)[ \t]*")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[\t -~\x80-\xff]*)?")


class FetchFailed(SidecarError):
    """There was no usable answer; the message says why."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """What was answered.

    :param fields: by lower-case name, the first of each
    :param whole: the body ended before its limit
    """

    status: int
    fields: dict[str, str]
    body: bytes
    whole: bool


@cache
def _unverified() -> ssl.SSLContext:
    """As the kubelet probes: whatever the certificate, https://kubernetes.io/docs/concepts/workloads/pods/probes/."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def fetch(
    address: str,
    port: int,
    target: str,
    headers: Sequence[tuple[str, str]],
    *,
    tls: bool = False,
    limit: int,
) -> Fetched:
    """GET one page. The caller sets the deadline.

    :param headers: all of them, ``Host`` included; ``Connection: close`` is added
    :param tls: speak TLS, without looking at the certificate
    :param limit: bytes of the body that are read
    :raises FetchFailed: when there is no usable answer
    """
    lines = [f"GET {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers), "Connection: close", "", ""]
    request = "\r\n".join(lines).encode("latin-1")
    try:
        reader, writer = await asyncio.open_connection(
            address, port, ssl=_unverified() if tls else None, limit=MAX_HEAD
        )
    except OSError as error:
        raise FetchFailed(f"no connection to port {port}: {error.strerror or error}") from None
    try:
        writer.write(request)
        status, fields = await _head(reader)
        body, whole = await _body(reader, fields, limit) if status >= 200 and status not in (204, 304) else (b"", True)
    except (OSError, EOFError) as error:
        raise FetchFailed(f"the answer broke off: {error}") from None
    finally:
        writer.transport.abort()
    return Fetched(status, fields, body, whole)


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """The final head; interim ones (RFC 9110 section 15.2) are passed over."""
    for _ in range(8):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            raise FetchFailed(f"a head of more than {MAX_HEAD} bytes") from None
        first, *lines = head[:-4].split(b"\r\n")
        status = _STATUS.fullmatch(first)
        if status is None:
            raise FetchFailed("not an HTTP/1.1 answer")
        code = int(status[1])
        if 100 <= code < 200 and code != 101:
            continue
        fields: dict[str, str] = {}
        for line in lines:
            match = _FIELD.fullmatch(line)
            if match is None:
                raise FetchFailed("not an HTTP/1.1 answer: a broken header line")
            fields.setdefault(match[1].decode().lower(), match[2].decode("latin-1"))
        return code, fields
    raise FetchFailed("too many interim answers")


async def _body(reader: asyncio.StreamReader, fields: dict[str, str], limit: int) -> tuple[bytes, bool]:
    """At most ``limit`` bytes of the body, and whether that is all of it."""
    if "chunked" in fields.get("transfer-encoding", "").lower():
        return await _chunks(reader, limit)
    length = fields.get("content-length")
    if length is not None:
        if not (length.isascii() and length.isdigit() and len(length) < 16):
            raise FetchFailed("not an HTTP/1.1 answer: a broken Content-Length")
        wanted = min(int(length), limit)
        return await reader.readexactly(wanted), int(length) <= limit
    body = bytearray()
    while len(body) <= limit and (data := await reader.read(65_536)):
        body += data
    return bytes(body[:limit]), len(body) <= limit


async def _chunks(reader: asyncio.StreamReader, limit: int) -> tuple[bytes, bool]:
    body = bytearray()
    while True:
        try:
            line = await reader.readuntil(b"\r\n")
        except asyncio.LimitOverrunError:
            raise FetchFailed("not an HTTP/1.1 answer: a broken chunk") from None
        size = _CHUNK.fullmatch(line[:-2])
        if size is None:
            raise FetchFailed("not an HTTP/1.1 answer: a broken chunk")
        length = int(size[1], 16)
        if not length:
            return bytes(body), True
        room = limit - len(body)
        body += await reader.readexactly(min(length, room))
        if length > room:
            return bytes(body), False
        if await reader.readexactly(2) != b"\r\n":
            raise FetchFailed("not an HTTP/1.1 answer: a broken chunk")
