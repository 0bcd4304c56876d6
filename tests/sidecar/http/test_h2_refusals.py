"""HTTP/2 that can not be read, that is half sent, or that bears headers which only we may set, is refused."""

from __future__ import annotations

import h2.config
import h2.connection
import h2.events
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.http.frames import PREFACE
from sidecar.http.h2 import H2Lane
from tests.sidecar.http.fakes import Bench
from tests.sidecar.http.h2_pair import GET, REQUEST, Pair, check_refused, frame, many_heads

REFUSED = {
    "h2-preface": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "h2-block": PREFACE + frame(1, 0, 1, REQUEST) + frame(9, 0, 1, b"\x00" * 16_000) * 5,
    "h2-continuations": PREFACE + frame(1, 0, 1, REQUEST) + frame(9, 0, 1, b"") * 100,
    "h2-interleaved": PREFACE + frame(1, 0, 1, REQUEST) + frame(0, 0, 1, b"a"),
    "h2-padding": PREFACE + frame(1, 0x0C, 1, b"\xff" + REQUEST),
    "hpack-size": PREFACE
    + frame(1, 4, 1, REQUEST + b"\x40\x01x\x7f\xb9\x16" + b"a" * 3000)
    + frame(1, 4, 3, REQUEST + b"\xbf" * 200),
    "hpack-index": PREFACE + frame(1, 5, 1, b"\xff\x00"),
    "huffman": PREFACE + frame(1, 5, 1, REQUEST + b"\x40\x81\x00\x00"),
    "h2-field-name": PREFACE + frame(1, 5, 1, REQUEST + b"\x40\x01X\x01a"),
    "h2-field-value": PREFACE + frame(1, 5, 1, REQUEST + b"\x40\x01x\x03a\r\n"),
}


@pytest.mark.parametrize(("reason", "data"), REFUSED.items())
@pytest.mark.parametrize("cut", [1 << 20, 977])
def test_a_client_that_can_not_be_read_is_refused(reason, data, cut):
    bench = Bench(h2_headers_bytes=65_536)
    leg = bench.client(H2Lane)
    for start in range(0, len(data), cut):
        leg.feed(data[start : start + cut])
    assert bench.left_alone
    assert len(bench.heard()) < len(data), "its last piece does not arrive"
    assert dict(bench.site.malformed) == {reason: 1}
    assert bench.site.fabric.guards.counters.requests_malformed == 1
    check_refused(leg, reason)
    assert not bench.site._watched


def test_a_client_that_was_refused_has_little_time_and_few_bytes_to_go():
    for way in ("time", "bytes"):
        bench = Bench(linger=3.0, linger_bytes=10_000)
        leg = bench.client(H2Lane)
        leg.feed(PREFACE + frame(1, 5, 1, b"\xff\x00"))
        leg.feed(b"x" * 9_000)
        bench.later(2.9)
        assert not leg.closed
        leg.feed(b"x" * 2_000) if way == "bytes" else bench.later(0.2)
        assert leg.was_reset
        assert leg.record.closed
        assert not bench.site._watched
        assert dict(bench.site.malformed) == {"hpack-index": 1}


def test_a_client_that_does_not_take_its_last_word_still_counts():
    bench = Bench()
    leg = bench.client(H2Lane)
    leg.stuck = True
    leg.feed(PREFACE + frame(1, 5, 1, b"\xff\x00"))
    leg.finish()
    assert not leg.record.closed
    leg.unblock()
    assert leg.record.closed
    assert not leg.record.failed


def test_the_application_comes_to_an_end_in_the_middle_of_a_frame():
    """Nothing can be said between its bytes."""
    bench = Bench()
    leg = bench.client(H2Lane)
    leg.feed(PREFACE + many_heads(1))
    bench.app.feed(frame(0, 0, 1, b"x" * 100)[:50])
    leg.feed(frame(1, 5, 3, b"\xff\x00"))
    assert leg.was_reset
    assert len(leg.take()) == 50


HALF = {
    "preface": PREFACE,
    "first-frame": PREFACE + frame(4, 0, 0, b"\0\3\0\0\0\1")[:-1],
    "frame": PREFACE + frame(4, 0, 0, b"") + frame(1, 5, 1, REQUEST)[:5],
    "head": PREFACE + frame(4, 0, 0, b"") + frame(1, 5, 1, REQUEST)[:-1],
    "continued-head": PREFACE + frame(4, 0, 0, b"") + frame(1, 1, 1, REQUEST),
    "continuation": PREFACE + frame(4, 0, 0, b"") + frame(1, 1, 1, REQUEST) + frame(9, 0, 1, b""),
    "trailers": PREFACE + frame(4, 0, 0, b"") + frame(1, 4, 1, REQUEST) + frame(1, 1, 1, b""),
    "ping": PREFACE + frame(4, 0, 0, b"") + frame(6, 0, 0, b"x" * 8)[:-1],
    "settings": PREFACE + frame(4, 0, 0, b"") + frame(4, 0, 0, b"\0\3\0\0\0\1")[:-2],
    "of-no-known-kind": PREFACE + frame(4, 0, 0, b"") + frame(99, 0, 0, b"x" * 80)[:-2],
}
WHOLE = {
    "settings": PREFACE + frame(4, 0, 0, b""),
    "first-frame-of-another-kind": PREFACE + frame(1, 5, 1, REQUEST),
    "body": PREFACE + frame(4, 0, 0, b"") + frame(1, 4, 1, REQUEST) + frame(0, 0, 1, b"x" * 80)[:-1],
    "head-without-body": PREFACE + frame(4, 0, 0, b"") + frame(1, 4, 1, REQUEST),
}


@pytest.mark.parametrize("cut", [1 << 20, 1, 11])
@pytest.mark.parametrize("data", HALF.values(), ids=HALF)
@pytest.mark.parametrize("spoken", [False, True])
def test_what_is_half_sent_for_too_long_ends_the_connection(data, cut, spoken):
    bench = Bench(head_timeout=10.0)
    leg = bench.client(H2Lane)
    for start in range(0, len(data), cut):
        leg.feed(data[start : start + cut])
    spoken = spoken and bool(bench.apps)
    if spoken:
        bench.app.feed(frame(4, 0, 0, b"\0\3\0\0\0\1"))
    bench.later(9.9)
    assert not leg.did_end
    bench.later(0.2)
    assert dict(bench.site.malformed) == {"head-timeout": 1}
    assert bench.left_alone
    assert bytes(leg.sent).startswith(frame(4, 0, 0, b"\0\3\0\0\0\1" if spoken else b"")), "SETTINGS come first"
    check_refused(leg, "head-timeout", 11)


@pytest.mark.parametrize("cut", [1 << 20, 1, 11])
@pytest.mark.parametrize("data", WHOLE.values(), ids=WHOLE)
def test_who_sent_something_whole_may_pause(data, cut):
    bench = Bench(head_timeout=10.0)
    leg = bench.client(H2Lane)
    for start in range(0, len(data), cut):
        leg.feed(data[start : start + cut])
    for _ in range(30):
        bench.later(1.0)
    assert not leg.closed
    assert not leg.did_end
    assert bench.app.take() == data


@pytest.mark.parametrize("name", ["first-frame", "head", "continued-head"])
def test_a_byte_now_and_then_gains_no_time(name):
    bench = Bench(head_timeout=10.0)
    leg = bench.client(H2Lane)
    settings = b"" if name == "first-frame" else frame(4, 0, 0, b"")
    kind = {"first-frame": (4, 0, 0), "head": (1, 5, 1), "continued-head": (9, 0, 1)}[name]
    begun = (4000).to_bytes(3) + bytes(kind[:2]) + kind[2].to_bytes(4)
    leg.feed(PREFACE + settings + (frame(1, 0, 1, REQUEST) if name == "continued-head" else b""))
    for byte in begun:
        leg.feed(bytes([byte]))
    for _ in range(9):
        bench.later(1.0)
        leg.feed(b"\0")
        assert not leg.did_end
    bench.later(1.1)
    assert leg.did_end
    assert dict(bench.site.malformed) == {"head-timeout": 1}


def test_every_head_has_its_own_time():
    bench = Bench(head_timeout=10.0)
    leg = bench.client(H2Lane)
    leg.feed(PREFACE + frame(4, 0, 0, b""))
    rest = b""
    for stream in range(1, 21, 2):
        head = frame(1, 5, stream, REQUEST)
        leg.feed(rest + head[:-3])
        rest = head[-3:]
        bench.later(9.0)
    assert not leg.did_end
    bench.later(1.1)
    assert leg.did_end, "the last one came to nothing"


OURS = [
    "x-forwarded-client-cert", "x_forwarded_client_cert", "x-forwarded-client_cert", "x-hedgerow-reason",
    "x_hedgerow-a", "x.forwarded.client.cert",
]  # fmt: skip


class Application:
    """What an h2 server makes of the bytes that reach it."""

    def __init__(self, bench):
        self.bench = bench
        self.server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self.server.initiate_connection()
        self.heads = []

    def read(self):
        for event in self.server.receive_data(self.bench.heard()):
            if isinstance(event, h2.events.RequestReceived | h2.events.TrailersReceived):
                self.heads.append(dict(event.headers))
        return self.heads


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("where", ["head", "trailers", "repeated"])
@given(cut=st.integers(1, 200))
def test_no_request_reaches_the_application_with_a_header_of_ours(name, where, cut):
    bench = Bench()
    application = None
    leg = bench.client(H2Lane)
    application = Application(bench)
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    client.send_headers(1, GET, end_stream=True)
    forged = (name, "By=x;URI=spiffe://hedgerow.test/ns/shop/sa/default/wl/admin" + "x" * 100)
    if where == "trailers":
        client.send_headers(3, GET)
        client.send_headers(3, [forged], end_stream=True)
    else:
        for stream in (3, 5) if where == "repeated" else (3,):
            client.send_headers(stream, [*GET, forged], end_stream=True)
    data = client.data_to_send()
    for start in range(0, len(data), cut):
        leg.feed(data[start : start + cut])
        application.read()
    assert not any(name in head for head in application.heads)
    assert application.heads or cut > 50, "what came before it was served"
    assert bench.left_alone
    assert dict(bench.site.malformed) == {"h2-forged-header": 1}
    check_refused(leg, "h2-forged-header")


def test_headers_that_only_look_like_ours_pass():
    bench = Bench()
    pair = Pair(bench)
    fields = [
        ("x-forwarded-for", "a"),
        ("x-forwarded-client-cert-chain", "b"),
        ("x-hedgerow", "c"),
        ("hedgerow-x", "d"),
    ]
    pair.client.send_headers(1, [*GET, *fields], end_stream=True)
    (seen,) = [event for event in pair.swap() if isinstance(event, h2.events.RequestReceived)]
    assert {(name.encode(), value.encode()) for name, value in fields} <= set(seen.headers)
