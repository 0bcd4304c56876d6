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
from sidecar.http.h2 import H2Lane
from tests.sidecar.http.fakes import PORT, Bench, allow

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


def many_heads(size):
    return b"".join(frame(1, 5, stream, REQUEST) for stream in range(1, 2 * size, 2))


REQUEST = b"\x82\x86\x84\x41\x01x"
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


def last_words(leg):
    """What a client is told at the end: the codes and reasons of the GOAWAYs, each of which turns no request away."""
    words, said = [], leg.take()
    while said:
        length, kind = int.from_bytes(said[:3]), said[3]
        if kind == 7:
            assert said[9:13] == b"\x7f\xff\xff\xff"
            words.append((int.from_bytes(said[13:17]), said[17 : 9 + length].decode()))
        said = said[9 + length :]
    return words


def check_refused(leg, reason, code=1):
    """It gets one last word behind whatever it was told before, and then has to go."""
    assert last_words(leg) == [(code, reason)]
    assert leg.did_end
    assert not leg.closed
    assert not leg.record.closed, "as long as it stays it counts"
    leg.finish()
    assert leg.record.closed


@pytest.mark.parametrize(("reason", "data"), REFUSED.items())
@pytest.mark.parametrize("cut", [1 << 20, 977])
def test_a_client_that_can_not_be_read_is_refused(reason, data, cut):
    bench = Bench(h2_headers_bytes=65_536)
    leg = bench.client(H2Lane)
    for start in range(0, len(data), cut):
        leg.feed(data[start : start + cut])
    assert bench.app.was_reset
    assert len(bench.app.take()) < len(data), "its last piece does not arrive"
    assert dict(bench.site.malformed) == {reason: 1}
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


# What is half sent ----------------------------------------------------------------------------------------------------

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
    if spoken:
        bench.app.feed(frame(4, 0, 0, b"\0\3\0\0\0\1"))
    bench.later(9.9)
    assert not leg.did_end
    bench.later(0.2)
    assert dict(bench.site.malformed) == {"head-timeout": 1}
    assert bench.app.was_reset
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


def test_who_is_not_read_for_a_while_has_no_part_in_it():
    """What is missing may wait on its way, because the application takes nothing."""
    bench = Bench(head_timeout=10.0)
    leg = bench.client(H2Lane)
    leg.feed(PREFACE + frame(4, 0, 0, b""))
    bench.app.stuck = True
    head = frame(1, 5, 1, REQUEST)
    leg.feed(head[:-1])
    assert leg.paused
    leg.feed(head[-1:])
    for _ in range(20):
        bench.later(1.0)
    assert not leg.did_end
    bench.app.unblock()
    leg.resume()
    for _ in range(20):
        bench.later(1.0)
    assert not leg.did_end
    assert bench.app.take().endswith(head)


def test_more_requests_than_are_kept_in_mind_pass():
    bench = Bench()
    leg = bench.client(H2Lane)
    data = PREFACE + many_heads(2000)
    leg.feed(data)
    bench.app.feed(b"whatever")
    assert bench.app.take() == data
    assert leg.take() == b"whatever"
    assert dict(bench.site.unobserved) == {"h2-streams": 1}
    assert not leg.closed
    leg.feed(frame(1, 5, 5001, REQUEST + FORGED_BLOCK))
    assert leg.was_reset, "they are still read; what the application says is not, and nothing can be put into it"
    assert bench.app.take() == b""


def test_an_application_that_can_not_be_read_is_not_observed_any_more():
    bench = Bench()
    leg = bench.client(H2Lane)
    data = PREFACE + many_heads(1)
    leg.feed(data)
    garbage = frame(1, 4, 1, b"\xff\x00") + b"whatever"
    bench.app.feed(garbage)
    assert (bench.app.take(), leg.take()) == (data, garbage)
    assert dict(bench.site.unobserved) == {"hpack-index": 1}
    leg.feed(frame(1, 5, 3, REQUEST + FORGED_BLOCK))
    assert leg.was_reset


def test_a_method_that_is_none_is_told_as_such():
    bench = Bench()
    leg = bench.client(H2Lane)
    leg.feed(PREFACE + frame(1, 5, 1, b"\x84"))
    leg.break_off()
    assert [told.operation for told in bench.flows.requests] == ["UNCLEAR /"]


# Headers that only we may set -----------------------------------------------------------------------------------------

#: ``x-forwarded-client-cert: a``, as a literal with a new name that the table does not keep.
FORGED_BLOCK = b"\x00\x17x-forwarded-client-cert\x01a"
OURS = [
    "x-forwarded-client-cert", "x_forwarded_client_cert", "x-forwarded-client_cert", "x-hedgerow-reason", "x_hedgerow-a"
]  # fmt: skip


class Application:
    """What an h2 server makes of the bytes that reach it."""

    def __init__(self, bench):
        self.bench = bench
        self.server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self.server.initiate_connection()
        self.heads = []

    def read(self):
        for event in self.server.receive_data(self.bench.app.take()):
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
    assert bench.app.was_reset
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


# Draining -------------------------------------------------------------------------------------------------------------


class Told(Pair):
    """The client may see more than the application sent: ``farewells`` has the streams that each GOAWAY named. The h2
    package would take one for the end of everything."""

    def __init__(self, bench, cut=None):
        self.events, self.farewells = [], []
        self._came = b""
        super().__init__(bench, cut)

    def read(self):
        self._came += self.leg.take()
        while len(self._came) >= 9 and len(self._came) >= (size := 9 + int.from_bytes(self._came[:3])):
            one, self._came = self._came[:size], self._came[size:]
            if one[3] == 7:
                self.farewells.append((int.from_bytes(one[9:13]), int.from_bytes(one[13:17])))
            else:
                self.events += self.client.receive_data(one)

    def swap(self):
        while True:
            forth, back = self.client.data_to_send(), self.server.data_to_send()
            if not forth and not back:
                return
            if forth:
                self.feed(self.leg, forth)
                self.server.receive_data(self.bench.app.take())
            if back:
                self.feed(self.bench.app, back)
            self.read()


ONE_FAREWELL = [(0x7FFFFFFF, 0)]


@pytest.mark.parametrize("watched", [False, True])
async def test_while_draining_or_to_be_watched_the_client_is_asked_to_go_and_its_requests_are_finished(watched):
    bench = Bench()
    pair = Told(bench)
    pair.client.send_headers(1, GET, end_stream=True)
    pair.swap()
    bench.later(1)
    pair.read()
    assert pair.farewells == []
    bench.draining = not watched
    bench.tapped = {PORT} if watched else set()
    bench.later(1)
    pair.read()
    assert pair.farewells == ONE_FAREWELL
    bench.later(10)
    assert not pair.leg.did_end, "a request is under way"
    pair.server.send_headers(1, [(":status", "200")])
    pair.server.send_data(1, b"x" * 100, end_stream=True)
    pair.swap()
    assert [told.status for told in bench.flows.requests] == [200]
    bench.later(1)
    assert pair.leg.did_end
    assert bench.app.did_end
    bench.app.finish()
    pair.leg.finish()
    assert pair.leg.record.closed
    assert pair.farewells == ONE_FAREWELL


@given(st.integers(1, 70))
def test_the_client_is_asked_between_two_frames_however_they_are_cut(cut):
    bench = Bench()
    pair = Told(bench)
    pair.client.send_headers(1, GET, end_stream=True)
    pair.swap()
    pair.server.send_headers(1, [(":status", "200"), ("x", "y" * 30)])
    pair.server.send_data(1, b"z" * 20)
    pair.server.ping(b"12345678")
    pair.server.send_data(1, b"z" * 20)
    data = pair.server.data_to_send()
    bench.app.feed(data[:cut])
    bench.draining = True
    bench.later(1)
    if cut < len(data):
        bench.app.feed(data[cut:])
    pair.server.end_stream(1)
    pair.swap()
    assert pair.farewells == ONE_FAREWELL
    assert sum(len(event.data) for event in pair.events if isinstance(event, h2.events.DataReceived)) == 40
    bench.later(1)
    assert pair.leg.did_end


def test_the_application_speaks_first_also_while_draining():
    bench = Bench()
    bench.draining = True
    leg = bench.client(H2Lane)
    leg.feed(PREFACE)
    bench.later(1)
    assert leg.take() == b""
    settings = frame(4, 0, 0, b"\0\3\0\0\0\1")
    bench.app.feed(settings[:10])
    assert leg.take() == settings[:10]
    bench.app.feed(settings[10:] + frame(6, 0, 0, b"x" * 8))
    got = leg.take()
    assert got.startswith(settings[10:])
    assert got.count(frame(7, 0, 0, b"\x7f\xff\xff\xff\0\0\0\0")) == 1


def test_memory_held_for_a_connection_is_bounded():
    bench = Bench()
    leg = bench.client(H2Lane)
    leg.feed(PREFACE + frame(1, 0, 1, REQUEST))
    leg.feed((1 << 20).to_bytes(3) + bytes([9, 0, 0, 0, 0, 1]))
    assert dict(bench.site.malformed) == {"h2-block": 1}
    leg = bench.client(H2Lane)
    leg.feed(PREFACE + (1 << 24 >> 1).to_bytes(3) + bytes([0, 0, 0, 0, 0, 1]))
    for _ in range(20):
        leg.feed(b"x" * 65_536)
        assert not leg.lane._from_client._held
    assert bench.site.malformed.total() == 1


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


@given(st.binary(max_size=400), st.booleans(), st.integers(1, 400))
def test_any_bytes_pass_or_cost_the_connection(data, start, cut):
    bench = Bench()
    leg = bench.client(H2Lane)
    data = (PREFACE if start else b"") + data
    for at in range(0, len(data), cut):
        leg.feed(data[at : at + cut])
    if bench.site.malformed:
        assert leg.did_end
        assert bench.app.was_reset
        assert data.startswith(bench.app.take())
    else:
        assert bench.app.take() == data


@given(st.binary(max_size=400))
def test_whatever_the_application_says_passes(data):
    bench = Bench()
    leg = bench.client(H2Lane)
    leg.feed(PREFACE)
    if data:
        bench.app.feed(data)
    assert leg.take() == data
