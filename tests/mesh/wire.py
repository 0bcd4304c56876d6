"""What a listener on the wire sees: frames of every cable and of the switch, and TCP connections read from them.

Nothing here knows the mesh: it reads Ethernet, IPv4, TCP and TLS (RFC 8446) for itself.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Self

# <linux/if_packet.h>, <linux/if_ether.h>, <asm/socket.h>
_SOL_PACKET = 263
_PACKET_ADD_MEMBERSHIP = 1
_PACKET_STATISTICS = 6
_PACKET_MR_PROMISC = 1
_ETH_P_ALL = 0x0003
_SO_RCVBUFFORCE = 33

#: What one interface may have seen since we looked last, bytes.
_BUFFER = 128 << 20
#: The longest frame: 64 KiB that the card would cut up, if there were one.
_LONGEST = 1 << 17

PIECE = 8


class Listener:
    """Keeps every frame that crosses one interface, in either direction, from its creation on."""

    def __init__(self, interface: str) -> None:
        self.interface = interface
        self.frames: list[bytes] = []
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        self._socket.setblocking(False)
        self._socket.bind((interface, _ETH_P_ALL))
        # A bridge shows what it only passes on to those alone who ask for everything.
        request = struct.pack("IHH8s", socket.if_nametoindex(interface), _PACKET_MR_PROMISC, 0, b"")
        self._socket.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, request)

    def look(self) -> None:
        """Take what has come; it was all queued when it crossed.

        :raises AssertionError: when the kernel had to drop a frame, which could have been the one
        """
        try:
            while True:
                self.frames.append(self._socket.recv(_LONGEST))
        except BlockingIOError:
            pass
        statistics = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        dropped = struct.unpack("II", statistics)[1]
        assert dropped == 0, f"{dropped} frames were missed on {self.interface}"

    def close(self) -> None:
        self._socket.close()


class Pieces:
    """Every piece of :data:`PIECE` bytes of some texts, to be looked for in what was seen."""

    def __init__(self, texts: Iterable[bytes]) -> None:
        self._pieces: set[int] = set()
        for text in texts:
            assert len(text) >= PIECE
            self._pieces.update(number for part in _every_alignment(text) for number in part)

    def in_any(self, frames: Iterable[bytes]) -> bool:
        """Whether any piece is in any frame."""
        return any(not self._pieces.isdisjoint(part) for part in _every_alignment(b"".join(frames)))


def _every_alignment(data: bytes) -> Iterator[memoryview]:
    view = memoryview(data)
    for start in range(min(PIECE, len(data) - PIECE + 1)):
        yield view[start : start + (len(data) - start) // PIECE * PIECE].cast("Q")


# --- IPv4 and TCP


@dataclass(frozen=True, slots=True)
class End:
    """An address and a port."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Segment:
    """One TCP segment over IPv4."""

    source: End
    destination: End
    sequence: int
    opens: bool
    data: bytes

    @classmethod
    def read(cls, frame: bytes) -> Self | None:
        """None for what is not TCP over IPv4 (RFC 791, RFC 9293)."""
        if frame[12:14] != b"\x08\x00" or frame[23] != socket.IPPROTO_TCP:
            return None
        packet = frame[14 : 14 + int.from_bytes(frame[16:18])]
        segment = packet[(packet[0] & 0x0F) * 4 :]
        source, destination, sequence = struct.unpack(">HHI", segment[:8])
        flags = segment[13]
        return cls(
            End(socket.inet_ntoa(packet[12:16]), source),
            End(socket.inet_ntoa(packet[16:20]), destination),
            sequence,
            bool(flags & 0x02) and not flags & 0x10,  # SYN without ACK
            segment[(segment[12] >> 4) * 4 :],
        )


@dataclass(slots=True)
class Stream:
    """The bytes of one direction, put together by their sequence numbers."""

    begins: int | None = None
    data: bytearray = field(default_factory=bytearray)
    _early: dict[int, bytes] = field(default_factory=dict)

    def add(self, sequence: int, data: bytes) -> None:
        assert self.begins is not None, "data of a connection whose beginning nobody saw"
        self._early[(sequence - self.begins) % (1 << 32)] = data
        while ready := [at for at in self._early if at <= len(self.data)]:
            for at in ready:
                self.data += self._early.pop(at)[len(self.data) - at :]

    def whole(self) -> bool:
        return not self._early


@dataclass(slots=True)
class Connection:
    """Both directions of a TCP connection."""

    client: End
    server: End
    sent: Stream = field(default_factory=Stream)
    received: Stream = field(default_factory=Stream)


def connections(frames: Iterable[bytes], hosts: frozenset[str]) -> list[Connection]:
    """The TCP connections between ``hosts``.

    :raises AssertionError: when a connection's beginning was not seen, or a part is missing
    """
    found: list[Connection] = []
    alive: dict[tuple[End, End], Connection] = {}
    for frame in frames:
        segment = Segment.read(frame)
        if segment is None or not {segment.source.host, segment.destination.host} <= hosts:
            continue
        pair = (segment.source, segment.destination)
        if segment.opens:
            known = alive.get(pair)
            if known is None or known.sent.begins != segment.sequence + 1:
                alive[pair] = Connection(*pair, sent=Stream(segment.sequence + 1))
                found.append(alive[pair])
            continue
        if pair in alive:
            stream = alive[pair].sent
        else:
            assert pair[::-1] in alive, f"{pair} was open before anybody listened"
            stream = alive[pair[::-1]].received
            if stream.begins is None:  # the answer to the SYN
                stream.begins = segment.sequence + 1
                continue
        if segment.data:
            stream.add(segment.sequence, segment.data)
    assert all(each.sent.whole() and each.received.whole() for each in found)
    return found


# --- TLS


def records(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The TLS records of one direction as (type, content), the last one as far as it has come.

    :raises AssertionError: when the bytes are anything but TLS records
    """
    at = 0
    while at + 5 <= len(data):
        kind, version, size = struct.unpack(">BHH", data[at : at + 5])
        assert kind in (20, 21, 22, 23), f"no TLS record: {data[at : at + 16]!r}"
        assert version in (0x0301, 0x0303)
        assert size <= 16_384 + 256
        yield kind, bytes(data[at + 5 : at + 5 + size])
        at += 5 + size


def client_hello(data: bytes) -> dict[int, bytes]:
    """The extensions, by number, of the ClientHello with which a connection begins (RFC 8446, section 4.1.2).

    :raises AssertionError: when it begins with anything else
    """
    kind, content = next(records(data))
    assert (kind, content[0]) == (22, 1), "no ClientHello"
    body = content[4 : 4 + int.from_bytes(content[1:4])]
    assert body[:2] == b"\x03\x03"
    at = 34
    for width in (1, 2, 1):  # session, cipher suites, compression methods
        at += width + int.from_bytes(body[at : at + width])
    extensions, end = {}, at + 2 + int.from_bytes(body[at : at + 2])
    assert end == len(body)
    at += 2
    while at < end:
        number, size = struct.unpack(">HH", body[at : at + 4])
        extensions[number] = body[at + 4 : at + 4 + size]
        at += 4 + size
    return extensions
