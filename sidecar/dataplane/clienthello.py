"""Reading a TLS ClientHello from the first bytes of a connection, without I/O and without believing any length.

Used to tell our own tunnels from everything else, so it answers as soon as it can: bytes that can not become a
ClientHello are ``OTHER`` at once. Sources: RFC 8446 section 4.1.2 (ClientHello) and 5.1 (records; a message may be cut
over several), RFC 7301 section 3.1 (ALPN), RFC 6066 section 3 (server name).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum

#: A ClientHello that is cut over more records than this is not one of ours; reading stays cheap.
RECORDS = 8
#: A ClientHello with its record headers is never longer than this, bytes.
LIMIT = 16_384 + 5 * RECORDS

_HANDSHAKE = 22
_CLIENT_HELLO = 1
_SERVER_NAME = 0
_ALPN = 16
_HOST_NAME = 0
_MAX_RECORD = 16_384

#: Names of DNS in ASCII, and what meshes put beside them (``outbound_.80_._.cart.shop.svc.cluster.local``); no address
#: ends in a label that begins with a letter.
_NAME = re.compile(rb"([A-Za-z0-9_-]{1,63}\.)*[A-Za-z_][A-Za-z0-9_-]{0,62}")


class Reading(Enum):
    """What the bytes are when they are no complete ClientHello."""

    MORE = "a ClientHello so far"
    OTHER = "something else"


@dataclass(frozen=True, slots=True)
class ClientHello:
    """A well-formed ClientHello.

    :param alpn: the protocols offered, in the client's order
    :param server_name: the host that the client means, in lower case; empty when it says none, or one that is no name
        (an address, a name with a dot at its end)
    :param named: it says a host, whether that is a name or not
    """

    alpn: tuple[bytes, ...]
    server_name: str = ""
    named: bool = field(default=False, compare=False)


class _Malformed(Exception):
    """The bytes contradict the format."""


class _Fields:
    """Takes fields off the front of a byte string."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise _Malformed
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def vector(self, length_size: int, least: int, most: int) -> bytes:
        """A vector of between ``least`` and ``most`` bytes behind its length."""
        size = self.number(length_size)
        if not least <= size <= most:
            raise _Malformed
        return self.take(size)


def read(data: bytes) -> ClientHello | Reading:
    """Judge the first bytes of a connection."""
    message = bytearray()
    at = 0
    for _ in range(RECORDS):
        header = data[at : at + 5]
        if not _may_be_record(header):
            return Reading.OTHER
        size = int.from_bytes(header[3:5]) if len(header) == 5 else 0
        if len(header) == 5 and not 1 <= size <= _MAX_RECORD:
            return Reading.OTHER
        message += data[at + 5 : at + 5 + size]
        if message[:1] and message[0] != _CLIENT_HELLO:
            return Reading.OTHER
        if len(message) >= 4:
            expected = 4 + int.from_bytes(message[1:4])
            to_come = max(0, at + 5 + size - len(data))  # of this record: all of it belongs to the message
            if expected > LIMIT or len(message) + to_come > expected:
                return Reading.OTHER  # nothing may follow a ClientHello before the server answers
            if len(message) == expected:
                break
        at += 5 + size
        if len(header) < 5 or at > len(data):
            return Reading.MORE if len(data) < LIMIT else Reading.OTHER
    else:
        return Reading.OTHER
    try:
        return _parse(_Fields(bytes(message[4:])))
    except _Malformed:
        return Reading.OTHER


def _may_be_record(header: bytes) -> bool:
    """Whether these bytes, five or fewer, can begin a handshake record."""
    return all(
        (
            not header[:1] or header[0] == _HANDSHAKE,
            not header[1:2] or header[1] == 3,
            not header[2:3] or header[2] <= 3,
            not header[3:4] or header[3] <= _MAX_RECORD >> 8,
        )
    )


def _parse(body: _Fields) -> ClientHello:
    if body.number(2) != 0x0303:
        raise _Malformed
    body.take(32)
    body.vector(1, 0, 32)
    if len(body.vector(2, 2, 0xFFFE)) % 2:
        raise _Malformed
    body.vector(1, 1, 255)
    if not body.left:
        return ClientHello(())  # TLS 1.2 without extensions
    extensions = _Fields(body.vector(2, 0, 0xFFFF))
    if body.left:
        raise _Malformed
    seen: set[int] = set()
    alpn: tuple[bytes, ...] = ()
    server_name = ""
    while extensions.left:
        kind = extensions.number(2)
        content = extensions.vector(2, 0, 0xFFFF)
        if kind in seen:
            raise _Malformed
        seen.add(kind)
        if kind == _ALPN:
            alpn = _protocols(_Fields(content))
        elif kind == _SERVER_NAME:
            server_name = _host(_Fields(content))
    return ClientHello(alpn, server_name, _SERVER_NAME in seen)


def _protocols(content: _Fields) -> tuple[bytes, ...]:
    names = _Fields(content.vector(2, 2, 0xFFFF))
    if content.left:
        raise _Malformed
    found = []
    while names.left:
        found.append(names.vector(1, 1, 255))
    return tuple(found)


def _host(content: _Fields) -> str:
    """The one host name; a second entry, of whatever type, could mean another host to another reader."""
    names = _Fields(content.vector(2, 1, 0xFFFF))
    if content.left or names.number(1) != _HOST_NAME:
        raise _Malformed
    name = names.vector(2, 1, 0xFFFF)
    if names.left:
        raise _Malformed
    return name.decode("ascii").lower() if len(name) <= 255 and _NAME.fullmatch(name) else ""
