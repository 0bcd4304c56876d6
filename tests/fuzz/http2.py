"""Targets for HTTP/2: what observes it, and the guard before the parser of the ``inspect`` lane.

Frames and header blocks are read a second time by the simplest code that can do it, and by the ``hpack`` package.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import hpack

from sidecar.http.errors import Malformed
from sidecar.http.frames import PREFACE, FrameReader
from sidecar.http.grpc_messages import Messages
from sidecar.http.h2 import H2Lane
from sidecar.http.settings import HttpSettings
from sidecar.inspect.frame_guard import CONTINUATION, DATA, GOAWAY, HEADERS, PUSH_PROMISE, Breach, FrameGuard
from sidecar.inspect.settings import Limits
from tests.fuzz.target import Target, pieces, split
from tests.sidecar.http.fakes import Bench

_BOUNDS = {"h2_block_bytes": 2048, "h2_headers_bytes": 8192, "h2_table_bytes": 4096, "h2_streams": 8}
_SETTINGS = HttpSettings(**_BOUNDS)
_END_STREAM, _END_HEADERS, _PADDED, _PRIORITY = 1, 4, 8, 32


def _frames(data: bytes) -> Iterator[tuple[int, int, int, bytes, bytes]]:
    """Every whole frame: kind, flags, stream, header and payload."""
    at = 0
    while at + 9 <= len(data):
        length = int.from_bytes(data[at : at + 3])
        if at + 9 + length > len(data):
            return
        header = data[at : at + 9]
        yield header[3], header[4], int.from_bytes(header[5:]) & 0x7FFFFFFF, header, data[at + 9 : at + 9 + length]
        at += 9 + length


# the observer ---------------------------------------------------------------------------------------------------------


class _Told:
    """What a frame reader tells. Sizes of data are told when a frame begins, heads when they are complete."""

    def __init__(self, parts: Iterator[bytes] | list[bytes], *, preface: bool) -> None:
        self.heads: list[tuple[int, tuple[tuple[bytes, bytes], ...], bool]] = []
        self.data: list[tuple[int, int, bool]] = []
        self.resets: list[int] = []
        self.messages = 0
        self.refused = ""
        calls: dict[int, Messages] = {}

        def counted(*one: Any) -> Messages:
            self.data.append(one)
            return calls.setdefault(one[0], Messages())

        def began(count: int) -> None:
            self.messages += count

        reader = FrameReader(
            _SETTINGS, lambda *head: self.heads.append(head), counted, self.resets.append, began, preface=preface
        )
        for part in parts:
            buffer = bytearray(part)
            try:
                reader.feed(memoryview(buffer))
            except Malformed as error:
                self.refused = error.reason
                return
            finally:
                buffer[:] = b"\xaa" * len(buffer)  # it is ours during the call only
            assert len(reader._held) <= max(_SETTINGS.h2_block_bytes + 9, len(PREFACE))
            assert len(reader._block) <= _SETTINGS.h2_block_bytes


def check_observer(data: bytes) -> None:
    how, data = split(data)
    whole = _Told([PREFACE + data], preface=True)
    cut = _Told(pieces(how, PREFACE + data), preface=True)
    assert vars(whole) == vars(cut)
    for _, headers, _ in whole.heads:
        assert sum(len(name) + len(value) + 32 for name, value in headers) <= _SETTINGS.h2_headers_bytes
    _compare(data, whole)
    if not whole.refused:
        assert whole.messages == _messages(data)


def _messages(data: bytes) -> int:
    """How many messages of gRPC begin in the bodies, each of which is put together first."""
    bodies: dict[int, bytes] = {}
    at = 0
    while at + 9 <= len(data):
        length, stream = int.from_bytes(data[at : at + 3]), int.from_bytes(data[at + 5 : at + 9]) & 0x7FFFFFFF
        if data[at + 3] == DATA:
            body = data[at + 9 : at + 9 + length]  # of the last frame, what there is
            if data[at + 4] & _PADDED:
                body = body[1 : max(1, length - body[0])] if body else b""
            bodies[stream] = bodies.get(stream, b"") + body
        at += 9 + length
    began = 0
    for body in bodies.values():
        while body:
            began += 1
            body = body[5 + int.from_bytes(body[1:5]) :] if len(body) >= 5 else b""
    return began


def _compare(data: bytes, told: _Told) -> None:
    """The same by simpler means, as far as it was read: every head that was told is what hpack makes of its bytes."""
    decoder = hpack.Decoder(max_header_list_size=_SETTINGS.h2_headers_bytes)
    decoder.max_allowed_table_size = _SETTINGS.h2_table_bytes
    heads, block, promised, ends = iter(told.heads), b"", False, False
    left = len(told.heads)
    for kind, flags, stream, _, payload in _frames(data):
        if kind in (HEADERS, PUSH_PROMISE):
            if flags & _PADDED:
                if not payload or payload[0] >= len(payload):
                    return
                payload = payload[1 : len(payload) - payload[0]]
            if kind == PUSH_PROMISE:
                payload = payload[4:]
            elif flags & _PRIORITY:
                payload = payload[5:]
            block, promised, ends = payload, kind == PUSH_PROMISE, bool(flags & _END_STREAM)
        elif kind == CONTINUATION:
            block += payload
        else:
            continue
        if not flags & _END_HEADERS:
            continue
        if promised:
            if not left:
                return
            decoder.decode(block, raw=True)
            continue
        head = next(heads, None)
        if head is None:
            return
        left -= 1
        fields = tuple((bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True))
        assert head == (stream, fields, ends)
    assert next(heads, None) is None, "a head that is not there was told"


def check_lane(data: bytes) -> None:
    """What the client says passes unchanged up to where it is refused, what the application says passes always; no head
    of a client reaches the application with what only we may say, or with what would be another one in HTTP/1."""
    how, data = split(data)
    bench = Bench(**_BOUNDS)
    leg = bench.client(H2Lane)
    half = len(data) // 2 if how & 2 else len(data)
    forth, back = PREFACE + data[:half], data[half:]
    for part in pieces(how, forth):
        leg.feed(part)
        assert len(leg.lane._calls or ()) <= _SETTINGS.h2_streams
    called, refused, got = bool(bench.apps), leg.did_end or leg.was_reset, bench.heard()
    assert forth.startswith(got)
    if refused:
        assert bench.left_alone
    else:
        assert got == (forth if called else b"")
    for name, value in _fields(got[len(PREFACE) :]):
        assert not _OURS.fullmatch(name.lower().replace(b"_", b"-")), name
        assert not _SMUGGLED.search(name)
        assert not _SMUGGLED.search(value)
    if refused:
        leg.finish()
    elif not called:  # it may still become something
        (leg.break_off if how & 4 else leg.finish)()
    else:
        for part in pieces(how, back):
            bench.app.feed(part)
        assert leg.take() == back
        (leg if how & 4 else bench.app).break_off()
    bench.later(1.0)
    assert leg.record.closed
    assert not leg.lane._calls, "what was under way is reported"
    assert leg.lane not in bench.site._watched


_OURS = re.compile(rb"x-forwarded-client-cert|x-hedgerow-.*")
_SMUGGLED = re.compile(rb"[\0\r\n]")


def _fields(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The fields of every whole head and trailer section, as the hpack package reads them; until it gives up."""
    decoder = hpack.Decoder(max_header_list_size=1 << 20)
    decoder.max_allowed_table_size = 1 << 16
    block = b""
    for kind, flags, _, _, payload in _frames(data):
        if kind == HEADERS:
            if flags & _PADDED:
                if not payload or payload[0] >= len(payload):
                    return
                payload = payload[1 : len(payload) - payload[0]]
            block = payload[5:] if flags & _PRIORITY else payload
        elif kind == CONTINUATION:
            block += payload
        else:
            continue
        if flags & _END_HEADERS:
            try:
                yield from ((bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True))
            except hpack.HPACKError:
                return


def _block(*fields: tuple[str, str], indexed: bool = True) -> bytes:
    kind = hpack.HeaderTuple if indexed else hpack.NeverIndexedHeaderTuple
    return bytes(hpack.Encoder().encode([kind(*field) for field in fields]))


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


_GET = ((":method", "GET"), (":scheme", "http"), (":path", "/cart/17"), (":authority", "cart"), ("x", "y" * 50))
_CALL = ((":method", "POST"), (":path", "/shop.Cart/Add"), ("content-type", "application/grpc"))


def _observer_seeds() -> Iterator[bytes]:
    get, call = _block(*_GET), _block(*_CALL, indexed=False)
    streams = (
        _frame(4, 0, 0) + _frame(HEADERS, 5, 1, get) + _frame(HEADERS, 5, 3, call),
        _frame(HEADERS, 4, 1, get) + _frame(DATA, 0, 1, b"abc") + _frame(DATA, 1, 1) + _frame(HEADERS, 5, 3, b"\xbe"),
        _frame(HEADERS, 1, 1, get[:5]) + _frame(CONTINUATION, 0, 1, get[5:9]) + _frame(CONTINUATION, 4, 1, get[9:]),
        _frame(HEADERS, 0x2D, 5, b"\x02" + bytes(5) + call + b"\0\0") + _frame(3, 0, 5, bytes(4)),
        _frame(PUSH_PROMISE, 4, 1, (2).to_bytes(4) + get) + _frame(7, 0, 0, bytes(8)) + _frame(6, 0, 0, bytes(8)),
        _frame(HEADERS, 5, 1, b"\x3f\xe1\x1f" + get) + _frame(HEADERS, 5, 3, b"\x20" + get),
        _frame(HEADERS, 5, 1, b"\x40\x01x\x7f\x80\x07" + b"y" * 1023 + b"\xbe" * 100),
        _frame(8, 0, 0, (1 << 16).to_bytes(4)) + _frame(99, 0xFF, 0, b"?"),
    )
    for stream in streams:
        for how in (0, 7, 0xFF):
            yield bytes((how,)) + stream


# the guard ------------------------------------------------------------------------------------------------------------

_LIMITS = Limits(head_bytes=1024, opens=8, resets=4, settings=4, pings=4, updates=8, empty_frames=4, others=4)


def _guarded(parts: Iterator[bytes] | list[bytes], frames: int, *, from_client: bool) -> tuple[bytes, object, str]:
    """What was handed on, the GOAWAY that was withheld, and the breach."""
    guard = FrameGuard(_LIMITS, from_client=from_client)
    out = b""
    for part in parts:
        while part:
            try:
                taken, good = guard.feed(part, 1.0, frames)
            except Breach as breach:
                return out, guard.gone, breach.kind
            assert 0 < taken <= len(part), "nothing was looked at"
            assert len(guard._withheld) <= 4096
            out, part = out + good, part[taken:]
    return out, guard.gone, ""


def check_guard(data: bytes) -> None:
    how, data = split(data)
    from_client = bool(how & 1)
    gone_away = any(kind == GOAWAY for kind, *_ in _frames(data))
    if from_client:
        data = PREFACE + data
    whole, gone, breach = _guarded([data], 1 << 20, from_client=from_client)
    cut = _guarded(pieces(how, data), 1 + (how >> 5), from_client=from_client)
    assert cut[1:] == (gone, breach)
    if breach:
        assert data.startswith(cut[0]) or gone_away
        return
    assert cut[0] == whole
    expected = data[: len(PREFACE)] if from_client else b""
    at, said = len(expected), None
    for kind, _, _, header, payload in _frames(data[at:]):
        at += 9 + len(payload)
        if kind == GOAWAY:
            said = (int.from_bytes(payload[:4]) & 0x7FFFFFFF, int.from_bytes(payload[4:8]))
        else:
            expected += header + payload
    assert (gone is None) == (said is None)
    if gone is not None:
        assert (gone.last_stream, gone.code) == said
    rest = data[at:]
    if len(rest) >= 9 and rest[3] != GOAWAY:
        expected += rest
    assert whole == expected, "what is handed on is what came, less GOAWAY and the beginning of a header"


def _lane_seeds() -> Iterator[bytes]:
    yield from _observer_seeds()
    forged = (("x-forwarded-client-cert", "By=x"), ("x_hedgerow-a", "1"), ("X-Hedgerow-B", "1"), ("a", "b\r\nc"))
    for field in forged:
        head = _block(*_GET, field, indexed=False)
        yield b"\0" + _frame(HEADERS, 5, 1, head)
        yield b"\x33" + _frame(HEADERS, 1, 1, head[:30]) + _frame(CONTINUATION, 4, 1, head[30:])
        yield b"\x05" + _frame(HEADERS, 4, 1, _block(*_GET)) + _frame(HEADERS, 5, 1, _block(field, indexed=False))


def _guard_seeds() -> Iterator[bytes]:
    head = _block(*_CALL)
    streams = (
        _frame(4, 0, 0, bytes(6)) + _frame(HEADERS, 4, 1, head) + _frame(DATA, 1, 1, b"abc"),
        _frame(HEADERS, 0, 1, head[:4]) + _frame(CONTINUATION, 4, 1, head[4:]) + _frame(3, 0, 1, bytes(4)),
        _frame(7, 0, 0, bytes(8) + b"why") + _frame(6, 0, 0, bytes(8)),
        _frame(8, 0, 0, bytes(4)) + _frame(2, 0, 1, bytes(5)) + _frame(99, 0, 0, b"?"),
        _frame(DATA, 8, 1, b"\x01\0"),
    )
    for stream in streams:
        for how in (0, 1, 0x23, 0xFF):
            yield bytes((how,)) + stream


TARGETS = (
    Target("observer", check_observer, _observer_seeds),
    Target("lane", check_lane, _lane_seeds, 2048),
    Target("guard", check_guard, _guard_seeds, 2048),
)
