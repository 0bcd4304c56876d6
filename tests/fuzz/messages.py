"""Targets for messages: DNS, and what the controller and sidecars tell each other.

Messages of protobuf are made in two ways: from any bytes, and field by field from a stream of choices, which gets
further into the checks.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError as ProtobufDecodeError
from google.protobuf.message import Message
from mitmproxy.dns import DNSMessage
from mitmproxy.net.dns import types

from graph.directory import Destination, Endpoint, Transport
from graph.errors import DecodeError
from graph.flow import Flow
from graph.model import (
    Connection,
    Direction,
    InboundTls,
    Mode,
    Origin,
    Peer,
    PortRange,
    Protocol,
    Rule,
    Selector,
    Snapshot,
    Verdict,
    WorkloadRef,
)
from graph.policy import Reason, admit, decide
from graph.wire import codec
from graph.wire import hedgerow_pb2 as pb
from sidecar.dns.message import (
    MAX_QUERY,
    ErrorInfo,
    Malformed,
    Query,
    Rcode,
    Unanswerable,
    host_of,
    read_answer,
    read_query,
    refusal,
    with_id,
)
from tests.fuzz.target import Target
from tests.sidecar.dns import packets

# DNS ------------------------------------------------------------------------------------------------------------------


def check_query(data: bytes) -> None:
    try:
        query = read_query(data)
    except Malformed:
        return
    except Unanswerable as unanswerable:
        _refused(unanswerable.query, unanswerable.rcode)
        return
    assert len(data) <= MAX_QUERY
    assert data[12:].startswith(query.question)
    moved = read_query(with_id(data, query.id ^ 0xFFFF))
    assert (moved.name, moved.type, moved.klass) == (query.name, query.type, query.klass)
    assert host_of(query.name) == host_of(query.name).lower()
    _refused(query, Rcode.REFUSED)
    theirs = _as_mitmproxy(data)
    if theirs is not None and query.name and all(b"." not in label for label in query.name):
        (question,) = theirs.questions
        assert (question.type, question.class_) == (query.type, query.klass)
        assert _folded(question.name) == _folded(b".".join(query.name).decode("latin-1"))


def _refused(query: object, rcode: Rcode) -> None:
    sent = refusal(query, rcode, ErrorInfo.PROHIBITED, "why")
    answer = read_answer(sent)
    assert answer.rcode == rcode
    assert not answer.addresses
    assert answer.answers(query, query.id)


def _folded(name: str) -> str:
    """A name without what the other parser makes of bytes that are no ASCII (IDNA), and of letters."""
    return (
        name.lower() if name.isascii() and not name.lower().startswith("xn--") and ".xn--" not in name.lower() else ""
    )


def _as_mitmproxy(data: bytes) -> DNSMessage | None:
    """The same by a parser that shares nothing with ours; None when it refuses."""
    try:
        return DNSMessage.unpack(data)
    except (struct.error, ValueError, UnicodeError):
        return None


def check_answer(data: bytes) -> None:
    try:
        answer = read_answer(data)
    except Malformed:
        return
    assert len(data) >= 12
    for _, ttl in answer.addresses:
        assert 0 <= ttl < 1 << 31
    theirs = _as_mitmproxy(data)
    if theirs is None:
        return
    assert theirs.id == answer.id
    there = {str(one.ipv4_address if one.type == types.A else one.ipv6_address) for one in _addresses(theirs)}
    assert {address for address, _ in answer.addresses} <= there
    if answer.addresses:
        assert answer.name is not None
        assert _as_refusal(answer, data)


def _addresses(message: DNSMessage) -> list[object]:
    return [one for one in message.answers if (one.type, len(one.data)) in ((types.A, 4), (types.AAAA, 16))]


def _as_refusal(answer: object, data: bytes) -> bool:
    """Only the query with the same question and id is answered by it."""
    flags = struct.unpack_from("!H", data, 2)[0] & 0x7800
    asked = _query_of(answer, flags)
    other = _query_of(answer, flags, kind=answer.type ^ 1)
    return answer.answers(asked, answer.id) and not answer.answers(other, answer.id)


def _query_of(answer: object, flags: int, kind: int | None = None) -> object:
    return Query(answer.id, flags, answer.name, answer.type if kind is None else kind, answer.klass)


def _dns_seeds() -> Iterator[bytes]:
    host, pointer = "api.example.com", b"\xc0\x0c"
    yield packets.query(host)
    yield packets.query(host, packets.AAAA, additional=[packets.opt()])
    yield packets.query(host, 252)
    yield packets.response(host, packets.address(pointer, "192.0.2.1"), packets.address(host, "192.0.2.2", 1 << 31))
    yield packets.response(host, packets.address(pointer, "2001:db8::1"), kind=packets.AAAA)
    chain = [packets.alias(pointer, "b.example"), packets.alias("b.example", "c.example", 5)]
    yield packets.response(host, *chain, packets.address("c.example", "192.0.2.7"))
    yield packets.response(host, packets.alias(pointer, pointer), packets.address(pointer, "192.0.2.7"))
    yield packets.response(host, rcode=3, authorities=[packets.record("example.com", packets.SOA, bytes(22))])
    yield packets.response(host, packets.record(b"\xc0\x10", packets.TXT, b"\x03abc"), additional=[packets.opt(b"")])


# protobuf -------------------------------------------------------------------------------------------------------------

_WORDS = (
    "",
    "shop/cart",
    "shop/front",
    "-/192.0.2.1",
    "-/2001:db8::1",
    "-/api.example.com",
    "-/*",
    "shop",
    "cart",
    "default",
    "hedgerow.test",
    "192.0.2.1",
    "10.0.0.0/8",
    "10.0.0.1/8",
    "::/0",
    "*.example.com",
    "api.example.com",
    "GET /cart/{id}",
    "spiffe://hedgerow.test/ns/shop/sa/default/wl/cart",
    "static/1",
    "a" * 300,
    "a\x00b",
    "\u2028",
    "\U0001f600",
    "cart.shop:80",
    *(
        each.value
        for kind in (Mode, Origin, Protocol, Verdict, Direction, InboundTls, Reason, Transport)
        for each in kind
    ),
)
_NUMBERS = (0, 1, 80, 443, 65535, 65536, 2**31, 2**32 - 1, 2**48, 2**48 + 1, 2**63 - 1, 2**63, 2**64 - 1)
_TIMES = (0.0, 1.5, 1e9, 1e300, -1.0, float("inf"), float("nan"), 5e-324)


class _Choices:
    """A stream of choices; when it is used up, every choice is the first one."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def text(self) -> str:
        which = self.byte()
        if which < len(_WORDS):
            return _WORDS[which]
        size = which - len(_WORDS)
        self._at += size
        return self._data[self._at - size : self._at].decode("utf-8", "ignore")


def _fill(message: Message, choices: _Choices, depth: int = 0) -> Message:
    """Set fields of ``message``, as ``choices`` say."""
    for field in message.DESCRIPTOR.fields:
        if field.is_repeated:
            for _ in range(min(choices.byte() & 7, 3) if depth < 3 else 0):
                if field.message_type is not None:
                    _fill(getattr(message, field.name).add(), choices, depth + 1)
                else:
                    getattr(message, field.name).append(_value(field, choices))
        elif field.message_type is not None:
            if choices.byte() != 255 and depth < 3:
                getattr(message, field.name).SetInParent()
                _fill(getattr(message, field.name), choices, depth + 1)
        else:
            setattr(message, field.name, _value(field, choices))
    return message


def _value(field: FieldDescriptor, choices: _Choices) -> object:
    if field.type == FieldDescriptor.TYPE_STRING:
        return choices.text()
    which = choices.byte()
    if field.type == FieldDescriptor.TYPE_BOOL:
        return bool(which & 1)
    if field.type == FieldDescriptor.TYPE_DOUBLE:
        return _TIMES[which % len(_TIMES)]
    number = _NUMBERS[which % len(_NUMBERS)]
    return number & 0xFFFFFFFF if field.type == FieldDescriptor.TYPE_UINT32 else number


def _made[M: Message](kind: type[M], data: bytes) -> M | None:
    """A message of ``data``: the first byte says how."""
    if data[:1] >= b"\x80":
        return _fill(kind(), _Choices(data[1:]))
    try:
        return kind.FromString(data[1:])
    except ProtobufDecodeError:
        return None


def _check_wire[M: Message, T](
    kind: type[M], read: Callable[[M], T], write: Callable[[T], M], further: Callable[[T], None]
) -> Callable[[bytes], None]:
    """What is read can be written, means the same then, and has one written form."""

    def check(data: bytes) -> None:
        message = _made(kind, data)
        if message is None:
            return
        try:
            value = read(message)
        except DecodeError:
            return
        written = write(value).SerializeToString(deterministic=True)
        assert read(kind.FromString(written)) == value
        assert write(read(kind.FromString(written))).SerializeToString(deterministic=True) == written
        further(value)

    return check


def _peers(snapshot: Snapshot) -> Iterator[Peer]:
    yield Peer(address="192.0.2.1")
    yield Peer(WorkloadRef("shop", "front"), "shop", "default", "10.0.0.1", True)
    yield Peer(address="2001:db8::1", host="api.example.com")
    yield Peer(snapshot.workload, snapshot.workload.namespace, "default", "", True)


def _judge(snapshot: Snapshot) -> None:
    """A snapshot that was read can be pushed, and gives a verdict on everything."""
    assert codec.decode_snapshot(codec.encode_snapshot(snapshot)) == snapshot
    mine = Peer(snapshot.workload, snapshot.workload.namespace, "default", "10.0.0.9", True)
    for peer in _peers(snapshot):
        for direction in Direction:
            ends = (peer, mine) if direction is Direction.INBOUND else (mine, peer)
            asked = Connection(direction, *ends, 80, Protocol.TCP)
            decision, by_operation = admit(snapshot, asked, 1e9)
            exact = decide(snapshot, Connection(direction, *ends, 80, Protocol.TCP, "GET /cart/{id}"), 1e9)
            assert by_operation or decision.verdict == decide(snapshot, asked, 1e9).verdict
            # an operation passes only where the connection that carries it does
            assert decision.allowed or not exact.allowed


def _raw_snapshot(data: bytes) -> None:
    """Any bytes, as a sidecar takes them from its disk or from the controller."""
    try:
        snapshot = codec.decode_snapshot(data)
    except DecodeError:
        return
    _judge(snapshot)


_checked_snapshot = _check_wire(pb.Snapshot, codec.snapshot_from_message, codec.snapshot_to_message, _judge)


def check_snapshot(data: bytes) -> None:
    _raw_snapshot(data[1:])
    _checked_snapshot(data)


def _nothing(value: object) -> None:
    """There is nothing further to promise."""


check_flow = _check_wire(pb.Flow, codec.flow_from_message, codec.flow_to_message, _nothing)
check_destination = _check_wire(pb.Destination, codec.destination_from_message, codec.destination_to_message, _nothing)


def _snapshot_seeds() -> Iterator[bytes]:
    cart, front = WorkloadRef("shop", "cart"), WorkloadRef("shop", "front")
    rules = (
        Rule("static/1", Selector.of(front), Selector.of(cart), (PortRange(80, 90),), operations=("GET /cart/{id}",)),
        Rule("override/2", Selector("shop"), Selector(cidr="10.0.0.0/8"), effect=Verdict.DENY, origin=Origin.OVERRIDE),
        Rule("learned/3", Selector.of(cart), Selector(host="*.example.com"), expires_at=5.0, evidence=("seen",)),
    )
    snapshot = Snapshot(
        cart, "hedgerow.test", 7, Mode.ENFORCE, Mode.LEARN, InboundTls.STRICT, rules, 1e9, ((80, "http"),)
    )
    yield b"\0" + codec.encode_snapshot(snapshot)
    yield b"\0" + codec.encode_snapshot(Snapshot(cart, "hedgerow.test", 1, Mode.AUDIT, Mode.QUARANTINE))
    yield from (b"\x80" + bytes((fill,)) * 60 for fill in (0, 1, 2))


def _flow_seeds() -> Iterator[bytes]:
    flow = Flow(
        WorkloadRef("shop", "front"), WorkloadRef("shop", "cart"), 80, Protocol.TCP, Direction.INBOUND, "cart-0",
        True, Verdict.ALLOW, Verdict.DENY, next(iter(Reason)),
    )  # fmt: skip
    yield b"\0" + codec.flow_to_message(flow).SerializeToString(deterministic=True)
    yield from (b"\x80" + bytes((fill,)) * 40 for fill in (0, 1, 2))


def _destination_seeds() -> Iterator[bytes]:
    endpoint = Endpoint("10.0.0.7", 8080, "cart-0", "spiffe://hedgerow.test/ns/shop/sa/default/wl/cart")
    destination = Destination("10.96.0.1", 80, workload=WorkloadRef("shop", "cart"), meshed=True, endpoints=(endpoint,))
    yield b"\0" + codec.destination_to_message(destination).SerializeToString(deterministic=True)
    yield from (b"\x80" + bytes((fill,)) * 40 for fill in (0, 1, 2))


TARGETS = (
    Target("query", check_query, _dns_seeds, 1024),
    Target("answer", check_answer, _dns_seeds, 2048),
    Target("snapshot", check_snapshot, _snapshot_seeds, 2048),
    Target("flow", check_flow, _flow_seeds, 1024),
    Target("destination", check_destination, _destination_seeds, 1024),
)
