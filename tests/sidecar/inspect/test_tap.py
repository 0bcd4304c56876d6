"""Taps in the sidecar: what they show of which requests, and what they cost."""

from __future__ import annotations

import asyncio
import json

import h2.events
import pytest

from graph.errors import DecodeError, InvalidValue
from graph.model import Verdict, WorkloadRef
from graph.tap import Shown, TapSpec
from graph.wire import hedgerow_pb2 as pb
from graph.wire.taps import shown_from_message, shown_to_message, start_from_message, start_to_message
from sidecar.inspect.hub import Inspection
from sidecar.inspect.settings import InspectSettings, Limits
from sidecar.inspect.taps import MOST, Ended, Taps, TooManyTapsError
from tests.sidecar.inspect.connection import FRONT, PORT, Kind, rule, until
from tests.sidecar.inspect.http2_ends import GRPC, Pair

OK = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 30\r\n\r\n"
    + b'{"token": "hunter2", "id":17}  '[:30]
)
POST = (
    b"POST /cart/17?token=hunter2&x=1 HTTP/1.1\r\nHost: cart\r\nAuthorization: Bearer hunter2\r\n"
    b"Content-Type: application/json\r\nContent-Length: 34\r\n\r\n"
    b'{"password": "hunter2", "item": 1}'
)


@pytest.fixture
async def taps():
    made = Taps(asyncio.get_running_loop())
    yield made
    made.stop_all()


@pytest.fixture
async def tapped(world, taps):
    """An inspected connection, and what its taps have shown."""

    def make(*rules, kind: Kind = Kind.HTTP1):
        hub = Inspection(InspectSettings(limits=Limits(slice=60.0)), taps)
        w = world(*(rules or (rule(),)), hub=hub)
        return w, w.connect(kind)

    return make


def seen(taps: Taps) -> list:
    return [event for event, _ in taps._events]


def call(c, request: bytes = POST, response: bytes = OK) -> None:
    c.client.give(request)
    if c.server is not None:
        c.server.give(response)


async def test_a_request_is_shown_without_secrets_and_without_bodies(tapped, taps):
    taps.start(TapSpec("t", 60))
    _, c = tapped()
    call(c)
    (shown,) = seen(taps)
    assert (shown.tap, shown.source, shown.destination, shown.port) == ("t", "shop/front", "shop/cart", PORT)
    assert (shown.operation, shown.status, shown.verdict) == ("POST /cart/{id}", 200, Verdict.ALLOW)
    assert shown.path == "/cart/17?token=[redacted]&x=1"
    assert (b"Authorization", b"[redacted]") in shown.request.fields
    assert shown.request.size == 34
    assert shown.request.body == b""
    assert b"hunter2" not in shown_to_message(shown).SerializeToString()


async def test_bodies_are_shown_when_asked_for_and_redacted(tapped, taps):
    taps.start(TapSpec("t", 60, bodies=True))
    _, c = tapped()
    call(c)
    (shown,) = seen(taps)
    assert json.loads(shown.request.body) == {"password": "[redacted]", "item": 1}
    assert json.loads(shown.response.body) == {"token": "[redacted]", "id": 17}
    assert b"hunter2" not in shown_to_message(shown).SerializeToString()


async def test_what_the_application_gets_is_not_changed(tapped, taps):
    taps.start(TapSpec("t", 60, bodies=True))
    _, c = tapped()
    c.client.give(POST)
    sent = c.application.read()
    assert sent.endswith(b'{"password": "hunter2", "item": 1}')
    assert b"Authorization: Bearer hunter2" in sent


async def test_a_refused_request_is_shown(tapped, taps):
    taps.start(TapSpec("t", 60, status=(400, 499)))
    _, c = tapped(rule("GET /cart/{id}"))
    call(c)
    (shown,) = seen(taps)
    assert (shown.status, shown.verdict, shown.reason) == (403, Verdict.DENY, "no-rule")


async def test_a_call_is_shown_with_its_trailers(tapped, taps):
    taps.start(TapSpec("t", 60))
    _, c = tapped(kind=Kind.HTTP2)
    pair = Pair(c)
    pair.request("/shop.Cart/Get", method="POST", fields=GRPC, body=b"x")
    asked = pair.application.all(h2.events.RequestReceived)[0].stream_id
    pair.answer(asked, fields=[("content-type", "application/grpc")], trailers=[("grpc-status", "5")])
    (shown,) = seen(taps)
    assert (shown.protocol, shown.grpc_status) == ("grpc", 5)
    assert shown.response.trailers == ((b"grpc-status", b"5"),)


@pytest.mark.parametrize(
    ("spec", "matches"),
    [
        (TapSpec("t", 60, source=FRONT), True),
        (TapSpec("t", 60, source=WorkloadRef("shop", "other")), False),
        (TapSpec("t", 60, ports=(PORT,)), True),
        (TapSpec("t", 60, ports=(1,)), False),
        (TapSpec("t", 60, operation="POST /cart/{id}"), True),
        (TapSpec("t", 60, operation="POST /c*"), True),
        (TapSpec("t", 60, operation="GET*"), False),
        (TapSpec("t", 60, status=(200, 299)), True),
        (TapSpec("t", 60, status=(500, 599)), False),
    ],
)
async def test_filters(tapped, taps, spec, matches):
    taps.start(spec)
    _, c = tapped()
    call(c)
    assert bool(seen(taps)) is matches


async def test_a_port_is_inspected_while_somebody_watches_it(taps):
    hub = Inspection(InspectSettings(limits=Limits(slice=60.0)), taps)
    assert not hub.wants(8080)
    taps.start(TapSpec("t", 60, ports=(8080,)))
    assert hub.wants(8080)
    assert not hub.wants(9090)
    taps.stop("t")
    assert not hub.wants(8080)


async def test_a_tap_ends_by_itself(taps):
    taps.start(TapSpec("t", 0.02))
    await until(lambda: not taps.running)
    assert seen(taps) == [Ended("t")]


async def test_a_tap_ends_after_so_many(tapped, taps):
    taps.start(TapSpec("t", 60, count=2))
    _, c = tapped()
    for _ in range(3):
        call(c)
    assert [type(event) for event in seen(taps)] == [Shown, Shown, Ended]
    assert not taps.running


async def test_what_comes_too_fast_is_left_out_and_counted(tapped, taps):
    taps.start(TapSpec("t", 60, events=5))
    _, c = tapped()
    for _ in range(60):
        call(c)
    shown = len(seen(taps))
    assert 10 <= shown < 60
    tap = taps._taps["t"]
    assert shown + tap.shed + sum(event.shed for event in seen(taps)) == 60


async def test_nobody_reads_and_memory_stays(tapped, taps):
    taps.start(TapSpec("t", 60, events=500, bodies=True))
    _, c = tapped()
    for _ in range(900):
        call(c)
    assert len(seen(taps)) <= 512


async def test_so_many_taps_and_no_more(taps):
    for number in range(MOST):
        taps.start(TapSpec(f"t{number}", 60))
    with pytest.raises(TooManyTapsError):
        taps.start(TapSpec("more", 60))
    taps.start(TapSpec("t0", 60))


async def test_the_controller_is_away_and_nothing_is_watched(tapped, taps):
    taps.start(TapSpec("t", 60))
    _, c = tapped()
    c.client.give(POST)
    taps.stop_all()
    c.application.give(OK)
    assert not seen(taps)


# on the wire


async def test_the_wire_keeps_everything(tapped, taps):
    taps.start(TapSpec("t", 60, bodies=True))
    _, c = tapped()
    call(c)
    (shown,) = seen(taps)
    assert shown_from_message(pb.TapExchange.FromString(shown_to_message(shown).SerializeToString())) == shown
    spec = TapSpec("t", 12.5, FRONT, (1, 2), "GET /a*", (500, 599), True, 100, 7, 3)
    assert start_from_message(start_to_message(spec)) == spec


@pytest.mark.parametrize(
    "changes",
    [
        {"seconds": 3601.0},
        {"seconds": float("inf")},
        {"body_bytes": 1 << 20},
        {"events_per_second": 100_000},
        {"source": "nonsense"},
        {"id": "../x"},
        {"ports": [70000]},
        {"status_first": 700, "status_last": 800},
        {"operation": "x" * 600},
    ],
)
def test_a_controller_that_asks_for_too_much(changes):
    good = {"id": "t", "seconds": 60.0, "body_bytes": 100, "events_per_second": 10}
    start_from_message(pb.TapStart(**good))
    with pytest.raises(DecodeError):
        start_from_message(pb.TapStart(**{**good, **changes}))


def test_a_spec_names_what_is_wrong():
    with pytest.raises(InvalidValue, match=r"tap\.for"):
        TapSpec("t", 4000)


# messages of WebSockets

CHAT = (
    b"GET /chat?token=hunter2 HTTP/1.1\r\nHost: cart\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


def message(payload: bytes, kind: int = 1, *, last: bool = True, mask: bytes = b"", flags: int = 0) -> bytes:
    size = len(payload)
    length = (
        bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2) if size < 65_536 else b"\x7f" + size.to_bytes(8)
    )
    if mask:
        length = bytes([length[0] | 0x80]) + length[1:]
        payload = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
    return bytes([(0x80 if last else 0) | flags | kind]) + length + mask + payload


@pytest.fixture
async def chat(tapped, taps):
    """An open WebSocket whose messages are shown with bodies; what was shown of its opening is forgotten."""
    taps.start(TapSpec("t", 60, bodies=True))
    _, c = tapped(rule("WEBSOCKET /chat"))
    c.client.give(CHAT)
    c.application.give(SWITCHED)
    assert [event.operation for event in seen(taps)] == ["WEBSOCKET /chat"]
    taps._events.clear()
    c.client.read()
    c.application.read()
    return c


@pytest.mark.parametrize("size", [0, 1, 3, 5])
async def test_messages_are_shown_as_they_pass_and_redacted(chat, taps, size):
    asked = message(b'{"password": "hunter2", "item": 1}', mask=b"\x01\x99\xfe\x00")
    pieces = message(b"token=hu", last=False) + message(b"", kind=9) + message(b"nter2 and more", kind=0)
    chat.client.give(asked, size)
    chat.application.give(pieces, size)
    assert chat.application.read() == asked
    assert chat.client.read() == pieces
    first, second = seen(taps)
    assert (first.protocol, first.method, first.path, first.status) == (
        "websocket", "WEBSOCKET", "/chat?token=[redacted]", 101,
    )  # fmt: skip
    assert json.loads(first.request.body) == {"password": "[redacted]", "item": 1}
    assert (first.request.size, first.response) == (34, None)
    assert second.response.body == b"token=[redacted] and more"
    assert (second.response.size, second.request.size) == (22, 0)
    for event in (first, second):
        assert shown_from_message(shown_to_message(event)) == event


async def test_binary_and_compressed_messages_are_withheld(chat, taps):
    chat.client.give(message(b"\x08\x01hunter2", kind=2, mask=b"abcd"))
    chat.client.give(message(b"hunter2", mask=b"abcd", flags=0x40))
    binary, compressed = seen(taps)
    assert (binary.request.body, binary.request.withheld, binary.request.size) == (b"", "not text", 9)
    assert (compressed.request.body, compressed.request.withheld) == (b"", "compressed")


async def test_of_a_large_message_only_the_beginning_is_kept(chat, taps):
    whole = message(b"x" * 300_000, mask=b"abcd")
    chat.client.give(whole, 10_000)
    assert chat.application.read() == whole
    (shown,) = seen(taps)
    assert shown.request.body == b"x" * 8192
    assert (shown.request.size, shown.request.withheld) == (300_000, "shortened")
    chat.client.give(message(b'{"a": "' + b"x" * 300_000 + b'"}', mask=b"abcd"))
    assert seen(taps)[-1].request.withheld == "larger than what is looked at"


async def test_without_bodies_sizes_are_shown(chat, taps):
    taps.start(TapSpec("t", 60))
    chat.client.give(message(b"hunter2", mask=b"abcd"))
    (shown,) = seen(taps)
    assert (shown.request.size, shown.request.body, shown.request.withheld) == (7, b"", "")


@pytest.mark.parametrize(
    "nonsense", [b"\x83\x00", b"\xb1\x01a", b"\x80\x00", b"\x09\x00", b"\x89\x7e\x00\x80", b"\x81\xff" + b"\xff" * 12]
)
async def test_what_is_no_frame_passes_and_nothing_is_shown_any_more(chat, taps, nonsense):
    assert chat.client.gives_way, "every frame is read"
    assert chat.application.gives_way
    chat.client.give(nonsense + message(b"hello"))
    assert chat.application.read() == nonsense + message(b"hello")
    assert not seen(taps)
    assert not chat.client.gives_way, "it is a plain stream now"
    assert not chat.application.gives_way
    chat.application.give(message(b"hello"))
    assert chat.client.read() == message(b"hello")
    assert not seen(taps)


async def test_messages_are_shown_to_a_tap_that_began_later(tapped, taps):
    taps.start(TapSpec("t", 60, count=1))
    _, c = tapped(rule("WEBSOCKET /chat"))
    c.client.give(CHAT)
    c.application.give(SWITCHED)
    assert taps.running == 0
    c.application.give(message(b"x" * 70_000)[:-5])
    taps.start(TapSpec("later", 60, bodies=True, body_bytes=10))
    c.application.give(b"xxxxx" + message(b"hello"))
    later = [event for event in seen(taps) if isinstance(event, Shown) and event.tap == "later"]
    assert [(event.response.size, event.response.body) for event in later] == [(70_000, b""), (5, b"hello")]
