"""When an HTTP/2 client's application is called: not before there is something whole for it, and not too late."""

from __future__ import annotations

import pytest
from hpack.hpack import encode_integer
from hypothesis import given
from hypothesis import strategies as st

from sidecar.http.frames import PREFACE
from sidecar.http.h2 import H2Lane
from tests.sidecar.http.fakes import Bench, allow
from tests.sidecar.http.h2_pair import REQUEST, Pair, check_refused, frame, last_words, many_heads

SETTINGS = frame(4, 0, 0, b"\0\3\0\0\0\1")
HEAD = frame(1, 5, 1, REQUEST)
CONTINUED = frame(1, 1, 1, REQUEST[:3]) + frame(9, 4, 1, REQUEST[3:])
#: What a client may have said while nobody has been called: of each all that is shorter, too.
NOT_YET = {
    "preface": PREFACE,
    "first-frame": PREFACE + SETTINGS[:-1],
    "head-first": PREFACE + HEAD[:-1],
    "continued-head-first": PREFACE + CONTINUED[:-1],
}
#: Bytes that come to nothing when they come at once: what is before them alone would be enough.
HALF_BEHIND = {
    "head": PREFACE + SETTINGS + HEAD[:-1],
    "head-of-a-frame": PREFACE + SETTINGS + HEAD[:5],
    "continued-head": PREFACE + SETTINGS + CONTINUED[:-1],
    "ping": PREFACE + SETTINGS + frame(8, 0, 0, b"\0\0\0\1") + frame(6, 0, 0, b"x" * 8)[:-1],
}
ENOUGH = {
    "settings": PREFACE + SETTINGS,
    "settings-and-window": PREFACE + SETTINGS + frame(8, 0, 0, b"\0\0\0\1"),
    "head": PREFACE + SETTINGS + HEAD,
    "head-first": PREFACE + HEAD,
    "continued-head": PREFACE + SETTINGS + CONTINUED,
    "head-and-half-a-second": PREFACE + SETTINGS + HEAD + frame(1, 5, 3, REQUEST)[:-1],
    "head-and-some-body": PREFACE + SETTINGS + frame(1, 4, 1, REQUEST) + frame(0, 0, 1, b"x" * 80)[:-1],
}


def fed(bench, data, cut=1 << 20):
    leg = bench.client(H2Lane)
    for start in range(0, len(data), cut):
        leg.feed(data[start : start + cut])
    return leg


@pytest.mark.parametrize("data", NOT_YET.values(), ids=NOT_YET)
@pytest.mark.parametrize("cut", [1, 7, 1 << 20])
def test_half_of_what_a_client_has_to_say_calls_nobody(data, cut):
    for size in {len(data) - len(data) // 3, len(data)}:
        bench = Bench(head_timeout=10.0)
        leg = fed(bench, data[:size], cut)
        assert not bench.apps
        bench.later(9.9)
        assert not leg.did_end
        bench.later(0.2)
        assert not bench.apps
        assert dict(bench.site.malformed) == {"head-timeout": 1}
        check_refused(leg, "head-timeout", 11)


@pytest.mark.parametrize("data", HALF_BEHIND.values(), ids=HALF_BEHIND)
def test_nor_does_half_a_head_that_came_with_it(data):
    bench = Bench(head_timeout=10.0)
    leg = fed(bench, data)
    bench.later(10.1)
    assert not bench.apps
    assert leg.record.bytes_sent == len(data)
    check_refused(leg, "head-timeout", 11)


@pytest.mark.parametrize("data", ENOUGH.values(), ids=ENOUGH)
@pytest.mark.parametrize("cut", [1, 7, 1 << 20])
def test_what_is_whole_reaches_the_application_as_it_came(data, cut):
    bench = Bench()
    leg = fed(bench, data, cut)
    assert len(bench.apps) == 1
    assert bench.app.take() == data
    assert leg.record.bytes_sent == len(data)
    bench.app.feed(SETTINGS)
    assert leg.take() == SETTINGS


@given(st.integers(1, 60))
def test_a_client_that_waits_for_the_settings_of_its_application_gets_them(cut):
    """It says nothing more before (RFC 9113 section 3.4 lets it wait)."""
    bench = Bench()
    pair = Pair(bench, cut)
    assert not pair.client.data_to_send()
    assert pair.client.remote_settings.max_concurrent_streams == pair.server.local_settings.max_concurrent_streams
    pair.client.send_headers(1, [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")])
    assert pair.swap()
    assert len(bench.apps) == 1


def test_the_client_is_not_read_while_the_application_is_being_called():
    bench = Bench()
    bench.connecting = True
    leg = fed(bench, PREFACE + SETTINGS + HEAD)
    assert leg.paused
    bench.app.unblock()
    assert not leg.paused
    assert bench.app.take() == PREFACE + SETTINGS + HEAD


def test_what_is_forged_in_the_first_head_calls_nobody():
    bench = Bench()
    leg = fed(bench, PREFACE + SETTINGS + frame(1, 5, 1, REQUEST + b"\x00\x17x-forwarded-client-cert\x01a"))
    assert not bench.apps
    check_refused(leg, "h2-forged-header")
    assert not leg.record.failed, "the application was not called in vain"


@pytest.mark.parametrize("data", [PREFACE[:10], PREFACE, PREFACE + SETTINGS[:4], PREFACE + SETTINGS + HEAD[:-1]])
def test_a_client_that_ends_before_has_ended(data):
    bench = Bench()
    leg = fed(bench, data)
    leg.finish()
    assert not bench.apps
    assert leg.closed
    assert not leg.was_reset
    assert leg.record.closed
    assert not leg.record.failed
    assert not bench.site._watched


@pytest.mark.parametrize("way", ["client", "policy"])
def test_a_connection_that_breaks_off_before(way):
    bench = Bench()
    leg = fed(bench, PREFACE)
    if way == "client":
        leg.break_off()
    else:
        bench.policy.change(allow("GET /a"))
        assert leg.was_reset
    assert not bench.apps
    assert leg.record.closed
    assert not leg.record.failed
    assert not bench.site._watched


@pytest.mark.parametrize("early", [32_768, 20_480])
def test_what_waits_for_a_first_head_is_bounded(early):
    bench = Bench(h2_block_bytes=16_384, h2_early_bytes=early)
    ping = frame(6, 0, 0, b"x" * 8)
    leg = bench.client(H2Lane)
    leg.feed(PREFACE + SETTINGS + ping[:-1])
    for _ in range(100_000):
        if leg.did_end:
            break
        leg.feed(ping[-1:] + ping * 50 + ping[:-1])
    assert dict(bench.site.malformed) == {"h2-before-a-head": 1}
    assert last_words(leg) == [(11, "h2-before-a-head")]
    assert 16_384 + early < leg.record.bytes_sent < 16_384 + early + 2_000
    assert not bench.apps


def test_the_longest_head_in_as_many_pieces_as_may_be_calls_the_application():
    bench = Bench()
    blocks = REQUEST + (b"\x00\x01x" + bytes(encode_integer(16_000, 7)) + b"a" * 16_000) * 4
    size = -(-len(blocks) // 16)
    pieces = [blocks[at : at + size] for at in range(0, len(blocks), size)]
    data = PREFACE + frame(4, 0, 0, b"\0\3\0\0\0\1" * 2000) + frame(1, 1, 1, pieces[0])
    data += b"".join(frame(9, 4 if piece is pieces[-1] else 0, 1, piece) for piece in pieces[1:])
    leg = fed(bench, data, 16_384)
    assert not bench.site.malformed
    assert not leg.did_end
    assert bench.app.take() == data


def test_while_draining_a_client_that_has_begun_is_served_and_asked_to_go():
    bench = Bench()
    leg = fed(bench, PREFACE)
    bench.draining = True
    bench.later(1)
    assert leg.take() == b""
    leg.feed(SETTINGS + many_heads(1))
    bench.app.feed(SETTINGS)
    assert leg.take() == SETTINGS + frame(7, 0, 0, b"\x7f\xff\xff\xff\0\0\0\0")
