"""HTTP/2 beside its bytes: what is reported, and that nothing but that is done."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph.model import Mode
from sidecar.http.frames import PREFACE
from sidecar.http.h2 import H2Lane
from tests.sidecar.http.fakes import Bench, allow
from tests.sidecar.http.h2_pair import CALL, FORGED_BLOCK, GET, REQUEST, Pair, frame, many_heads


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


def test_memory_held_for_a_connection_is_bounded():
    bench = Bench()
    leg = bench.client(H2Lane)
    leg.feed(PREFACE + frame(1, 0, 1, REQUEST))
    leg.feed((1 << 20).to_bytes(3) + bytes([9, 0, 0, 0, 0, 1]))
    assert dict(bench.site.malformed) == {"h2-block": 1}
    leg = bench.client(H2Lane)
    leg.feed(PREFACE + frame(4, 0, 0, b"") + (1 << 24 >> 1).to_bytes(3) + bytes([0, 0, 0, 0, 0, 1]))
    for _ in range(20):
        leg.feed(b"x" * 65_536)
        assert not leg.lane._from_client._held
    assert bench.site.malformed.total() == 1


def test_rules_by_operation_that_come_later_end_what_is_not_read():
    bench = Bench(allow())
    leg = bench.client(H2Lane)
    leg.feed(PREFACE + frame(4, 0, 0, b""))
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
    leg.feed(PREFACE + many_heads(1))
    assert leg.was_reset
    assert leg.record.closed
    assert leg.record.failed
    assert not bench.site._watched


@given(st.binary(max_size=400), st.booleans(), st.integers(1, 400))
def test_any_bytes_pass_or_cost_the_connection(data, start, cut):
    bench = Bench()
    leg = bench.client(H2Lane)
    data = (PREFACE if start else b"") + data
    for at in range(0, len(data), cut):
        leg.feed(data[at : at + cut])
    if bench.site.malformed:
        assert leg.did_end
        assert bench.left_alone
        assert data.startswith(bench.heard())
    elif bench.apps:
        assert bench.app.take() == data
    else:
        assert not leg.closed, "it may still become something"


@given(st.binary(max_size=400))
def test_whatever_the_application_says_passes(data):
    bench = Bench()
    leg = bench.client(H2Lane)
    leg.feed(PREFACE + frame(4, 0, 0, b""))
    if data:
        bench.app.feed(data)
    assert leg.take() == data
