"""HTTP/2 beside its bytes: what is reported, and that nothing but that is done."""

from __future__ import annotations

import h2.config
import h2.connection
import h2.events
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph.model import Mode
from sidecar.http.frames import PREFACE
from sidecar.http.h2 import H2Lane, grpc_operation
from tests.sidecar.http.fakes import Bench, allow

CALL = [
    (":method", "POST"), (":scheme", "http"), (":path", "/shop.Cart/Add17"), (":authority", "cart"),
    ("content-type", "application/grpc+proto"), ("te", "trailers"), ("user-agent", "grpc-go/1"),
]  # fmt: skip
GET = [
    (":method", "GET"),
    (":scheme", "http"),
    (":path", "/cart/17?a=b"),
    (":authority", "cart"),
    ("x-request-id", "r1"),
]


class Pair:
    """A client and a server of the h2 package with the lane between them."""

    def __init__(self, bench, cut=None):
        self.bench, self.cut = bench, cut
        self.leg = bench.client(H2Lane)
        self.client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self.client.initiate_connection()
        self.server.initiate_connection()
        self.swap()

    def feed(self, leg, data):
        for start in range(0, len(data), self.cut or max(len(data), 1)):
            leg.feed(data[start : start + (self.cut or len(data))])

    def swap(self):
        """Pass on what both have to say; answers with what the server saw."""
        seen = []
        while True:
            forth, back = self.client.data_to_send(), self.server.data_to_send()
            if not forth and not back:
                return seen
            if forth:
                self.feed(self.leg, forth)
                got = self.bench.app.take()
                assert got == forth
                seen += self.server.receive_data(got)
            if back:
                self.feed(self.bench.app, back)
                got = self.leg.take()
                assert got == back
                self.client.receive_data(got)


@pytest.mark.parametrize("cut", [None, 1, 7])
def test_calls_are_told_with_both_statuses(cut):
    bench = Bench(mode=Mode.LEARN)
    pair = Pair(bench, cut)
    for _ in range(3):
        stream = pair.client.get_next_available_stream_id()
        pair.client.send_headers(stream, CALL)
        pair.client.send_data(stream, b"x" * 10, end_stream=True)
        pair.swap()
        bench.now += 1.5
        pair.server.send_headers(stream, [(":status", "200"), ("content-type", "application/grpc")])
        pair.server.send_data(stream, b"y" * 20)
        pair.swap()
        pair.server.send_headers(stream, [("grpc-status", "5"), ("grpc-message", "no")], end_stream=True)
        pair.swap()
    assert len(bench.flows.requests) == 3
    for told in bench.flows.requests:
        assert (told.operation, told.protocol) == ("POST /shop.Cart/Add17", "grpc")
        assert (told.status, told.grpc_status, told.seconds) == (200, 5, 1.5)
        assert (told.request_bytes, told.response_bytes) == (10, 20)
        assert (told.host, told.user_agent, told.path) == ("cart", "grpc-go/1", "/shop.Cart/Add17")
    assert pair.leg.record.protocol == "grpc"


@given(st.integers(1, 40), st.integers(1, 6))
def test_requests_are_told_wherever_bytes_are_cut(cut, count):
    bench = Bench()
    pair = Pair(bench, cut)
    streams = [pair.client.get_next_available_stream_id() + 2 * number for number in range(count)]
    for stream in streams:
        pair.client.send_headers(stream, GET, end_stream=True)
    pair.swap()
    for stream in reversed(streams):
        pair.server.send_headers(stream, [(":status", "103")])
        pair.server.send_headers(stream, [(":status", "404"), ("x", "z" * 500)])
        pair.server.send_data(stream, b"ab", end_stream=True, pad_length=3)
    pair.swap()
    assert [told.operation for told in bench.flows.requests] == ["GET /cart/{id}"] * count
    assert {(told.status, told.protocol, told.request_id) for told in bench.flows.requests} == {(404, "http2", "r1")}
    assert bench.site.unobserved.total() == 0


def test_streams_that_are_reset_and_connections_that_end_are_told():
    bench = Bench()
    pair = Pair(bench)
    for stream in (1, 3, 5):
        pair.client.send_headers(stream, GET, end_stream=True)
    pair.swap()
    pair.client.reset_stream(1)
    pair.swap()
    pair.server.reset_stream(3)
    pair.swap()
    assert [told.status for told in bench.flows.requests] == [0, 0]
    pair.leg.break_off()
    assert len(bench.flows.requests) == 3
    assert pair.leg.record.closed
    assert bench.app.was_reset
    assert not bench.site._watched


def test_large_heads_come_in_pieces():
    bench = Bench()
    pair = Pair(bench, 1000)
    pair.client.send_headers(1, [*GET, ("cookie", "c" * 40_000)], end_stream=True)
    pair.swap()
    pair.server.send_headers(1, [(":status", "200")], end_stream=True)
    pair.swap()
    assert [told.status for told in bench.flows.requests] == [200]


def frame(kind, flags, stream, payload):
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


REQUEST = b"\x82\x86\x84\x41\x01x"
GIVEN_UP = {
    "h2-preface": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "h2-block": PREFACE + frame(1, 0, 1, REQUEST) + frame(9, 0, 1, b"\x00" * 16_000) * 5,
    "h2-continuations": PREFACE + frame(1, 0, 1, REQUEST) + frame(9, 0, 1, b"") * 100,
    "h2-interleaved": PREFACE + frame(1, 0, 1, REQUEST) + frame(0, 0, 1, b"a"),
    "h2-padding": PREFACE + frame(1, 0x0C, 1, b"\xff" + REQUEST),
    "h2-streams": PREFACE + b"".join(frame(1, 5, stream, REQUEST) for stream in range(1, 4000, 2)),
    "h2-method": PREFACE + frame(1, 5, 1, b"\x84"),
    "hpack-size": PREFACE
    + frame(1, 4, 1, REQUEST + b"\x40\x01x\x7f\xb9\x16" + b"a" * 3000)
    + frame(1, 4, 3, REQUEST + b"\xbf" * 200),
    "hpack-index": PREFACE + frame(1, 5, 1, b"\xff\x00"),
    "huffman": PREFACE + frame(1, 5, 1, REQUEST + b"\x40\x81\x00\x00"),
}


@pytest.mark.parametrize(("reason", "data"), GIVEN_UP.items())
@pytest.mark.parametrize("cut", [1 << 20, 977])
def test_what_can_not_be_read_passes_unread(reason, data, cut):
    bench = Bench(h2_headers_bytes=65_536)
    leg = bench.client(H2Lane)
    for start in range(0, len(data), cut):
        leg.feed(data[start : start + cut])
    assert bench.app.take() == data
    assert dict(bench.site.unobserved) == {reason: 1}
    leg.feed(b"more")
    bench.app.feed(b"whatever")
    assert bench.app.take() == b"more"
    assert leg.take() == b"whatever"
    assert not leg.closed


def test_memory_held_for_a_connection_is_bounded():
    bench = Bench()
    leg = bench.client(H2Lane)
    leg.feed(PREFACE + frame(1, 0, 1, REQUEST))
    leg.feed((1 << 20).to_bytes(3) + bytes([9, 0, 0, 0, 0, 1]))
    assert dict(bench.site.unobserved) == {"h2-block": 1}
    leg = bench.client(H2Lane)
    leg.feed(PREFACE + (1 << 24 >> 1).to_bytes(3) + bytes([0, 0, 0, 0, 0, 1]))
    for _ in range(20):
        leg.feed(b"x" * 65_536)
        assert not leg.lane._from_client._held
    assert bench.site.unobserved.total() == 1


def test_rules_by_operation_that_come_later_end_what_is_not_read():
    bench = Bench(allow())
    leg = bench.client(H2Lane)
    leg.feed(PREFACE)
    bench.policy.change(allow(), allow("GET /a", rule="static/more"))
    assert not leg.closed, "everything is allowed all the same"
    bench.policy.change(allow("GET /a"))
    assert leg.was_reset
    assert bench.app.was_reset
    assert leg.record.closed


def test_an_application_that_can_not_be_called():
    bench = Bench()
    bench.refuse_dials = True
    leg = bench.client(H2Lane)
    assert leg.was_reset
    assert leg.record.failed


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (b"/a.b.C/Method1234", "POST /a.b.C/Method1234"),
        (b"/a/../b", "POST /{unclear}"),
        (b"/a/b/1234", "POST /a/b/{id}"),
        (b"/" + b"a" * 300 + b"/" + b"b" * 300, "POST /{id}/{id}"),
    ],
)
def test_names_of_calls(path, name):
    assert grpc_operation(path) == name


@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_pass(data, start):
    bench = Bench()
    leg = bench.client(H2Lane)
    data = (PREFACE if start else b"") + data
    if data:
        leg.feed(data)
    assert bench.app.take() == data
