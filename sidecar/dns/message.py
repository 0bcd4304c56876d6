"""Reading DNS messages, without I/O and without believing any count or length in them.

Only what the proxy decides by is read: header, question, CNAME, A and AAAA records of the answer, the presence of OPT.
Everything else is walked over, so that a message that contradicts its own format is never taken for one. Messages are
passed on as they came; the only ones made here are refusals.

Rules:

1. A compression pointer points before the name that it stands in, so that following pointers ends (RFC 1035 section
   4.1.4).
2. Names, jumps, records and the length of the CNAME chain are bounded. So is what a message has us read in all: 512
   records may each point to the same name of 127 labels, which is read once.
3. Nothing may follow the last record.

Sources: RFC 1035 section 4 (messages), RFC 3596 (AAAA), RFC 6891 (OPT), RFC 8914 (extended errors), RFC 2181 section 8
(time to live).

Over 400 lines: every reader of a part stands beside the bounds that it shares with the others.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from graph.model import is_host

#: The longest query, bytes: one question and its options.
MAX_QUERY: Final = 4096
#: Records of one message, at most: what a name server puts into 64 KiB in earnest is far fewer.
MAX_RECORDS: Final = 512
#: Labels that are read of one message, at most: seven for each of so many names. Each name is read once.
MAX_LABELS: Final = 4096
#: CNAME records from the name that was asked for to the one that has the addresses, at most.
MAX_CHAIN: Final = 16

_HEADER: Final = struct.Struct("!6H")
_RECORD: Final = struct.Struct("!HHIH")
_MAX_NAME: Final = 255
_MAX_JUMPS: Final = 32

_QR: Final = 0x8000
_OPCODE: Final = 0x7800
_TC: Final = 0x0200
_RD: Final = 0x0100
_RA: Final = 0x0080
_RCODE: Final = 0x000F

A: Final = 1
CNAME: Final = 5
AAAA: Final = 28
OPT: Final = 41
_IXFR: Final = 251
_AXFR: Final = 252
_IN: Final = 1
#: What our refusals say that we can take over UDP, bytes (DNS flag day 2020).
_PAYLOAD: Final = 1232
_EXTENDED_ERROR: Final = 15

type Name = tuple[bytes, ...]
"""A name's labels in lower case; the root is empty."""


class Rcode(IntEnum):
    """Response codes (RFC 1035 section 4.1.1)."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5


class ErrorInfo(IntEnum):
    """Codes of extended errors (RFC 8914 section 4)."""

    OTHER = 0
    PROHIBITED = 18
    NETWORK = 23


class Malformed(Exception):
    """The bytes contradict the format; there is nothing in them to answer to."""


class Unanswerable(Exception):
    """A query that is not passed on.

    :param query: what there is to answer to
    """

    def __init__(self, query: Query, rcode: Rcode, why: str) -> None:
        super().__init__(why)
        self.query = query
        self.rcode = rcode
        self.why = why


@dataclass(frozen=True, slots=True)
class Query:
    """A question that can be passed on.

    :param flags: the second word of the header
    :param question: the whole question section as it was sent; empty when there was no readable one
    :param extended: it has an OPT record, so that an answer must have one (RFC 6891 section 6.1.1)
    """

    id: int
    flags: int
    name: Name = ()
    type: int = 0
    klass: int = 0
    question: bytes = b""
    extended: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """A response, every record of which could be walked over.

    :param name: what was asked, with ``type`` and ``klass``; None when the server did not repeat the question
    :param truncated: the rest has to be asked for over TCP
    :param addresses: (IP address, seconds to live) at the end of the chain that begins at ``name``
    """

    id: int
    opcode: int
    rcode: int
    truncated: bool
    name: Name | None
    type: int = 0
    klass: int = 0
    addresses: tuple[tuple[str, int], ...] = ()

    def answers(self, query: Query, wire_id: int) -> bool:
        """Whether this is a response to ``query``, which was sent under ``wire_id``."""
        if self.id != wire_id or self.opcode != query.flags & _OPCODE:
            return False
        if self.name is None:  # some servers repeat nothing of what they did not understand
            return self.rcode not in (Rcode.NOERROR, Rcode.NXDOMAIN) and not self.addresses
        return (self.name, self.type, self.klass) == (query.name, query.type, query.klass)

    @property
    def host(self) -> str:
        """The name as policy writes it; empty when policy can not."""
        return host_of(self.name) if self.name else ""


def host_of(name: Name) -> str:
    """``name`` as policy writes it; empty when it is none that policy can name."""
    text = b".".join(name).decode("latin-1")
    return text if is_host(text) and text.count(".") == len(name) - 1 else ""


def read_query(data: bytes) -> Query:
    """Read what an application sent.

    :raises Malformed: when not even a refusal can be sent
    :raises Unanswerable: when it is refused
    """
    if len(data) < _HEADER.size:
        raise Malformed("shorter than a header")
    number, flags, questions, answers, authorities, additional = _HEADER.unpack_from(data)
    bare = Query(number, flags)
    if flags & _QR:
        raise Malformed("a response")
    if len(data) > MAX_QUERY:
        raise Unanswerable(bare, Rcode.FORMERR, f"a query of more than {MAX_QUERY} bytes")
    if flags & _OPCODE:
        raise Unanswerable(bare, Rcode.NOTIMP, "an operation other than a query")
    if questions != 1 or answers or authorities or additional > 2:
        raise Unanswerable(bare, Rcode.FORMERR, "not one question and nothing else")
    try:
        name, end = _Names(data).read(_HEADER.size)
        kind, klass = _two(data, end)
        section = data[_HEADER.size : end + 4]
        query = Query(number, flags, name, kind, klass, section)
        kinds, at = [], end + 4
        for _ in range(additional):
            at, record = _record(data, at)
            kinds.append(record.type)
    except Malformed as error:
        raise Unanswerable(bare, Rcode.FORMERR, str(error)) from None
    if at != len(data) or kinds.count(OPT) > 1:
        raise Unanswerable(query, Rcode.FORMERR, "bytes after the last record, or two OPT records")
    query = Query(number, flags, name, kind, klass, section, OPT in kinds)
    if kind in (_AXFR, _IXFR):
        raise Unanswerable(query, Rcode.REFUSED, "a zone transfer")
    return query


def with_id(data: bytes, number: int) -> bytes:
    """The same message under another id."""
    return number.to_bytes(2) + data[2:]


def refusal(query: Query, rcode: Rcode, info: ErrorInfo = ErrorInfo.OTHER, why: str = "") -> bytes:
    """An answer of our own, which says only that there is none.

    :param why: for people, in an extended error where the query allows one
    """
    flags = _QR | query.flags & (_OPCODE | _RD) | _RA | rcode
    header = _HEADER.pack(query.id, flags, bool(query.question), 0, 0, query.extended)
    if not query.extended:
        return header + query.question
    option = struct.pack("!H", info) + why.encode("ascii", "replace")[:120]
    data = struct.pack("!HH", _EXTENDED_ERROR, len(option)) + option
    return header + query.question + b"\0" + _RECORD.pack(OPT, _PAYLOAD, 0, len(data)) + data


def read_answer(data: bytes) -> Answer:
    """Read what a name server sent.

    :raises Malformed: when any part contradicts the format, or is more than our bounds
    """
    if len(data) < _HEADER.size:
        raise Malformed("shorter than a header")
    number, flags, questions, answers, authorities, additional = _HEADER.unpack_from(data)
    if not flags & _QR:
        raise Malformed("a query")
    if questions > 1 or answers + authorities + additional > MAX_RECORDS:
        raise Malformed("too many questions or records")
    asked: Name | None = None
    kind = klass = 0
    at = _HEADER.size
    names = _Names(data)
    if questions:
        asked, at = names.read(at)
        kind, klass = _two(data, at)
        at += 4
    chain: dict[Name, tuple[Name, int]] = {}
    found: list[tuple[Name, str, int]] = []
    for index in range(answers + authorities + additional):
        start = at
        at, record = _record(data, start)
        if index < answers and record.klass == _IN and record.type in (A, AAAA, CNAME):
            _take(names, start, record, chain, found)
    if at != len(data):
        raise Malformed("bytes after the last record")
    addresses = _at_the_end(asked, chain, found) if asked is not None and klass == _IN else ()
    rcode, truncated = flags & _RCODE, bool(flags & _TC)
    return Answer(number, flags & _OPCODE, rcode, truncated, asked, kind, klass, addresses)


# parts


@dataclass(frozen=True, slots=True)
class _Record:
    type: int
    klass: int
    ttl: int
    start: int  # of its data
    end: int


def _record(data: bytes, at: int) -> tuple[int, _Record]:
    """Walk over a record; its end, and what its header says."""
    at = _skip(data, at)
    if at + _RECORD.size > len(data):
        raise Malformed("a record is cut off")
    kind, klass, ttl, length = _RECORD.unpack_from(data, at)
    at += _RECORD.size
    if at + length > len(data):
        raise Malformed("a record's data is cut off")
    # RFC 2181 section 8: a number with its first bit set is to be taken for 0
    return at + length, _Record(kind, klass, ttl if ttl < 1 << 31 else 0, at, at + length)


def _take(
    names: _Names,
    start: int,
    record: _Record,
    chain: dict[Name, tuple[Name, int]],
    found: list[tuple[Name, str, int]],
) -> None:
    """Note an alias or an address."""
    owner, _ = names.read(start)
    if record.type == CNAME:
        target, end = names.read(record.start)
        if end != record.end:
            raise Malformed("an alias that is not one name")
        if chain.setdefault(owner, (target, record.ttl))[0] != target:
            chain[owner] = (owner, 0)  # two aliases: a circle, at whose end there is nothing
        return
    packed = names.data[record.start : record.end]
    if len(packed) != (4 if record.type == A else 16):
        raise Malformed("an address of the wrong length")
    found.append((owner, str(ipaddress.ip_address(packed)), record.ttl))


def _at_the_end(
    asked: Name, chain: dict[Name, tuple[Name, int]], found: list[tuple[Name, str, int]]
) -> tuple[tuple[str, int], ...]:
    """The addresses of the name that ``asked`` is an alias of; they live no longer than any alias on the way."""
    name, longest = asked, (1 << 31) - 1
    for _ in range(MAX_CHAIN):
        if name not in chain:
            return tuple((address, min(ttl, longest)) for owner, address, ttl in found if owner == name)
        name, ttl = chain[name]
        longest = min(longest, ttl)
    return ()  # too long, or a circle


def _two(data: bytes, at: int) -> tuple[int, int]:
    if at + 4 > len(data):
        raise Malformed("a question is cut off")
    kind, klass = struct.unpack_from("!HH", data, at)
    return kind, klass


def _skip(data: bytes, at: int) -> int:
    """The end of the name that begins at ``at``, without following a pointer."""
    begin = at
    while True:
        if at >= len(data) or at - begin > _MAX_NAME:
            raise Malformed("a name is cut off or too long")
        size = data[at]
        if size >= 0xC0:
            if at + 2 > len(data):
                raise Malformed("a pointer is cut off")
            return at + 2
        if size > 63:
            raise Malformed("a label of a kind that there is not")
        at += 1 + size
        if not size:
            return at


@dataclass(frozen=True, slots=True)
class _Read:
    """A name, or the end of one.

    :param length: bytes that it would have without compression, its root's among them
    :param jumps: pointers on the way
    """

    labels: Name
    length: int
    jumps: int


_ROOT: Final = _Read((), 1, 0)


class _Names:
    """The names of one message, each of which is read once, however many point to it."""

    __slots__ = ("_known", "_left", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._known: dict[int, _Read] = {}  # by where they begin
        self._left = MAX_LABELS

    def read(self, at: int) -> tuple[Name, int]:
        """The name that begins at ``at``, and where what follows it begins.

        :raises Malformed: when there is none, or more than our bounds
        """
        data = self.data
        parts: list[tuple[int, list[bytes]]] = []  # of the name: where each begins; a pointer stands between two
        end = -1  # behind the first pointer
        rest: _Read | None = None
        while rest is None:
            if parts and (known := self._known.get(at)) is not None:
                rest = known
                break
            labels: list[bytes] = []
            parts.append((at, labels))
            if len(parts) > _MAX_JUMPS + 1:
                raise Malformed("a pointer that does not point back")
            begin = at  # of the part being read: a pointer must point before it
            at = self._part(at, labels)
            size = data[at]
            if not size:
                rest = _ROOT
                end = at + 1 if end < 0 else end
                break
            target = int.from_bytes(data[at : at + 2]) & 0x3FFF
            if target >= begin or target < _HEADER.size:
                raise Malformed("a pointer that does not point back")
            end = at + 2 if end < 0 else end
            at = target
        pointed = rest is not _ROOT
        for begin, labels in reversed(parts):
            length = rest.length + len(labels) + sum(map(len, labels))
            whole = (*labels, *rest.labels) if labels else rest.labels
            rest = _Read(whole, length, rest.jumps + pointed)
            pointed = True
            if length > _MAX_NAME or rest.jumps > _MAX_JUMPS:
                raise Malformed("a name too long, or a pointer too many")
            self._known[begin] = rest
        return rest.labels, end

    def _part(self, at: int, labels: list[bytes]) -> int:
        """Read labels up to the root or a pointer; where that is."""
        data = self.data
        length = 0
        while True:
            if at >= len(data):
                raise Malformed("a name is cut off")
            size = data[at]
            if size >= 0xC0:
                if at + 2 > len(data):
                    raise Malformed("a pointer is cut off")
                return at
            if size > 63:
                raise Malformed("a label of a kind that there is not")
            if not size:
                return at
            length += 1 + size
            self._left -= 1
            if at + 1 + size > len(data) or length > _MAX_NAME:
                raise Malformed("a label is cut off, or a name too long")
            if self._left < 0:
                raise Malformed(f"more than {MAX_LABELS} labels")
            labels.append(data[at + 1 : at + 1 + size].lower())
            at += 1 + size
