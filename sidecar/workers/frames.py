"""What supervisor and workers say to each other, as bytes. Pure.

A frame is its length (32 bits, of all that follows), a kind (8 bits), the number of descriptors that came beside its
first byte (8 bits), the length of its head (32 bits), the head, and blobs, each with its length (32 bits). The head is
a JSON object of a few fields; blobs are what has a form of its own: protobuf messages, PEM. All numbers are big-endian.

The governing rules:

1. Who reads knows the kinds that it may be sent and how long each may be; anything else ends the conversation.
2. A frame is read as a whole or not at all: a wrong length, a rest, a head that is no object are refused.
3. The order of frames is the order of events. Everything that depends on an order depends on this one alone.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

_LENGTH: Final = struct.Struct(">I")
_START: Final = struct.Struct(">IBBI")
#: Blobs of one frame.
MAX_BLOBS: Final = 8
#: Descriptors beside one frame; the kernel takes 253.
MAX_DESCRIPTORS: Final = 128

_KIB: Final = 1 << 10
_MIB: Final = 1 << 20


class Broken(Exception):
    """What came is no frame, or none that may be said here; nothing after it can be understood."""


class Kind(IntEnum):
    """What a frame means. The head's fields stand behind each."""

    # the supervisor says
    START = 1
    """settings; the first frame"""
    SVID = 2
    """blobs: private key in PEM, ``SignResponse``. The first, or a renewed certificate and trust bundle"""
    HOLD = 3
    """number; blob: ``SignedSnapshot``. Verify it, put it in force, and answer IN_FORCE"""
    PREPARE = 4
    """number; blob: ``SignedSnapshot``. Verify it, and answer PREPARED"""
    COMMIT = 5
    """number. Put in force what was prepared under that number, and answer IN_FORCE"""
    LISTEN = 6
    """of, listeners; descriptors: the sockets. Take connections from them"""
    RELEASE = 7
    """of. Take no more from the sockets that were worker ``of``'s"""
    ANSWER = 8
    """id, error, names, keep; blob: ``Destination``, unless there is an error"""
    CHANGED = 9
    """blob: ``Destination``, of which something else was said before"""
    FORGET = 10
    """address, port. It is not watched any more"""
    TAKEN = 11
    """number. The flows of that harvest, and of all before, are the supervisor's"""
    PROVED = 12
    """proof. Another worker has seen a handshake"""
    DRAIN = 13
    """seconds, replaced"""
    STOP = 14
    """End everything, report what is left, and leave"""
    LOG = 15
    """level, logger: how much is logged; mode: what the access log tells"""
    SHOW = 16
    """id, what. For people"""
    TAP = 17
    """blob: ``TapCommand``"""
    INSPECT = 18
    """hosts; blobs: private key in PEM, signing certificate, its root. What stands in for them; none: nothing does"""
    WARM = 19
    """keys: addresses and ports of destinations to dial before they are wanted, those used last first"""
    # a worker says
    READY = 64
    """It could carry connections, were there any"""
    PREPARED = 65
    """number, error"""
    IN_FORCE = 66
    """number, version, error. The version that is in force"""
    LISTENING = 67
    """It takes connections"""
    RESOLVE = 68
    """id, address, port"""
    USED = 69
    """keys: addresses and ports that are in use"""
    NAME = 70
    """address, host, uses: +1 when a connection to that name begins, -1 when it ends"""
    FLOWS = 71
    """number, shed, live, records; blob: ``FlowBatch``"""
    REPORT = 72
    """stats, sums"""
    PROOF = 73
    """proof: a handshake that was completed here"""
    DRAINED = 74
    """Nothing runs any more"""
    SHOWN = 75
    """id, what"""
    SHOWING = 76
    """blob: ``TapEvent``"""


#: What a worker may be told, and how long it may be, bytes.
TO_WORKER: Final[Mapping[Kind, int]] = {
    Kind.START: _MIB,
    Kind.SVID: _MIB,
    Kind.HOLD: 8 * _MIB,
    Kind.PREPARE: 8 * _MIB,
    Kind.COMMIT: _KIB,
    Kind.LISTEN: 64 * _KIB,
    Kind.RELEASE: _KIB,
    Kind.ANSWER: 16 * _MIB,
    Kind.CHANGED: 16 * _MIB,
    Kind.FORGET: _KIB,
    Kind.TAKEN: _KIB,
    Kind.PROVED: 64 * _KIB,
    Kind.DRAIN: _KIB,
    Kind.STOP: _KIB,
    Kind.LOG: _KIB,
    Kind.SHOW: _KIB,
    Kind.TAP: _MIB,
    Kind.INSPECT: 64 * _KIB,
    Kind.WARM: 512 * _KIB,
}
#: What a worker may say. It reads what peers write, so it is not believed more than it has to be.
FROM_WORKER: Final[Mapping[Kind, int]] = {
    Kind.READY: _KIB,
    Kind.PREPARED: 8 * _KIB,
    Kind.IN_FORCE: 8 * _KIB,
    Kind.LISTENING: _KIB,
    Kind.RESOLVE: _KIB,
    Kind.USED: 512 * _KIB,
    Kind.NAME: _KIB,
    Kind.FLOWS: 8 * _MIB,
    Kind.REPORT: 4 * _MIB,
    Kind.PROOF: 64 * _KIB,
    Kind.DRAINED: _KIB,
    Kind.SHOWN: 4 * _MIB,
    Kind.SHOWING: _MIB,
}


@dataclass(frozen=True, slots=True, repr=False)
class Frame:
    """One message.

    :param descriptors: how many came beside it
    """

    kind: Kind
    head: Mapping[str, object] = field(default_factory=dict)
    blobs: tuple[bytes, ...] = ()
    descriptors: int = 0

    def __repr__(self) -> str:  # never what it holds: that may be a key
        return f"Frame({self.kind.name})"


def encode(
    kind: Kind, head: Mapping[str, object] | None = None, blobs: Sequence[bytes] = (), descriptors: int = 0
) -> bytes:
    """The bytes of a frame.

    :param head: what JSON knows
    """
    written = json.dumps(head or {}, separators=(",", ":")).encode()
    parts = [written]
    for blob in blobs:
        parts += (_LENGTH.pack(len(blob)), blob)
    length = _START.size - _LENGTH.size + sum(map(len, parts))
    return b"".join((_START.pack(length, kind, descriptors, len(written)), *parts))


class Reader:
    """Makes frames of bytes that come in any pieces.

    :param allowed: the kinds that may come, and how long each may be
    """

    __slots__ = ("_allowed", "_buffer")

    def __init__(self, allowed: Mapping[Kind, int]) -> None:
        self._allowed = allowed
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are complete with ``data``.

        :raises Broken: when what came can be no frame, or is not allowed
        """
        self._buffer += data
        while len(self._buffer) >= _START.size:
            length, number, descriptors, head = _START.unpack_from(self._buffer)
            try:
                kind = Kind(number)
            except ValueError:
                raise Broken(f"a frame of the unknown kind {number}") from None
            if length > self._allowed.get(kind, -1):
                raise Broken(f"a frame {kind.name} of {length} bytes")
            if descriptors > MAX_DESCRIPTORS:
                raise Broken(f"a frame {kind.name} with {descriptors} descriptors")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                return
            whole = bytes(self._buffer[_START.size : end])
            del self._buffer[:end]
            yield _read(kind, whole, head, descriptors)


def _read(kind: Kind, whole: bytes, head: int, descriptors: int) -> Frame:
    if head > len(whole):
        raise Broken(f"a frame {kind.name} that is shorter than its head")
    try:
        fields = json.loads(whole[:head])
    except (ValueError, RecursionError):
        raise Broken(f"a frame {kind.name} with a head that is not JSON") from None
    if not isinstance(fields, dict):
        raise Broken(f"a frame {kind.name} with a head that is no object")
    blobs: list[bytes] = []
    at = head
    while at < len(whole):
        begin = at + _LENGTH.size
        if begin > len(whole) or len(blobs) >= MAX_BLOBS:
            raise Broken(f"a frame {kind.name} with a rest that is no blob")
        at = begin + _LENGTH.unpack_from(whole, at)[0]
        if at > len(whole):
            raise Broken(f"a frame {kind.name} that ends within a blob")
        blobs.append(whole[begin:at])
    return Frame(kind, fields, tuple(blobs), descriptors)


def number(frame: Frame, name: str, most: int = 2**53) -> int:
    """A field that is a count.

    :raises Broken: when it is none, or negative, or above ``most``
    """
    value = frame.head.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise Broken(f"{frame.kind.name}: {name} is no such number")
    return value


def words(frame: Frame, name: str, most: int = 65_536) -> str:
    """A field that is a text.

    :raises Broken: when it is none, or longer than ``most``
    """
    value = frame.head.get(name)
    if not isinstance(value, str) or len(value) > most:
        raise Broken(f"{frame.kind.name}: {name} is no such text")
    return value


def place(frame: Frame) -> tuple[str, int]:
    """``address`` and ``port``.

    :raises Broken: when they are none
    """
    return words(frame, "address", 64), number(frame, "port", 65_535)


def places(frame: Frame) -> list[tuple[str, int]]:
    """``keys``: addresses and ports.

    :raises Broken: when they are none
    """
    keys = frame.head.get("keys")
    if not isinstance(keys, list):
        raise Broken(f"{frame.kind.name}: keys are no list")
    found = []
    for key in keys:
        match key:
            case [str(address), int(port)]:
                found.append((address, port))
            case _:
                raise Broken(f"{frame.kind.name}: no address")
    return found


def one_blob(frame: Frame) -> bytes:
    """The only blob.

    :raises Broken: when there is none, or more
    """
    if len(frame.blobs) != 1:
        raise Broken(f"{frame.kind.name}: {len(frame.blobs)} blobs")
    return frame.blobs[0]
