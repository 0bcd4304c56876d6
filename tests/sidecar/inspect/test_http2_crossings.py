"""What one end of an inspected HTTP/2 connection says while it has not heard what the other, or a policy, did.

Each was found by random sequences (:mod:`tests.sidecar.inspect.test_http2_sequences`).
"""

from __future__ import annotations

import h2.events
import pytest
from h2.settings import SettingCodes

from tests.sidecar.inspect.connection import Kind, inspection, rule
from tests.sidecar.inspect.http2_ends import GRPC, Pair


async def test_a_request_that_waits_for_room_at_the_application_is_withdrawn_when_it_is_denied(world):
    """The end of one denied request made room for the next one, which then reached the application."""
    w = world(rule())
    pair = Pair(w.connect(Kind.HTTP2))
    pair.request("/a")
    pair.application.h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: 1})
    pair.application.flush()
    pair.turn()
    waiting = pair.request("/a")
    assert len(pair.application.all(h2.events.RequestReceived)) == 1
    w.policy(rule("GET /other"))
    pair.turn()
    assert len(pair.application.all(h2.events.RequestReceived)) == 1
    assert pair.client.all(h2.events.StreamReset, waiting)
    assert not pair.connection.lane.layers.server.stream_queue


@pytest.mark.parametrize("size", [0, 5, 50_000])
async def test_a_receiver_may_take_a_window_back(world, size):
    """h2 refuses to write when a window is below zero, and that ended the connection."""
    w = world(rule())
    pair = Pair(w.connect(Kind.HTTP2))
    pair.client.granting = False
    stream = pair.request("/a")
    asked = pair.application.all(h2.events.RequestReceived)[0].stream_id
    pair.application.h2.send_headers(asked, [(":status", "200")])
    pair.application.h2.send_data(asked, b"x" * 1000)
    pair.application.flush()
    pair.turn()
    pair.client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 10})
    pair.client.flush()
    pair.turn()
    for start in range(0, size, 10_000):
        pair.application.h2.send_data(asked, b"y" * min(size - start, 10_000))
    pair.application.h2.send_headers(asked, [("x-sum", "1")], end_stream=True)
    pair.application.flush()
    pair.turn()
    assert len(pair.client.body(stream)) == 1000
    pair.client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 65_535})
    pair.client.flush()
    pair.turn()
    assert len(pair.client.body(stream)) == 1000 + size
    assert pair.client.all(h2.events.TrailersReceived, stream)
    assert pair.client.all(h2.events.StreamEnded, stream)


async def test_a_receiver_may_make_its_frames_smaller_than_what_is_held_for_it(world):
    w = world(rule())
    pair = Pair(w.connect(Kind.HTTP2))
    pair.client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0, SettingCodes.MAX_FRAME_SIZE: 65_535})
    pair.client.flush()
    stream = pair.request("/a")
    asked = pair.application.all(h2.events.RequestReceived)[0].stream_id
    assert pair.application.h2.max_outbound_frame_size > 60_000
    pair.answer(asked, body=b"x" * 60_000)
    pair.client.h2.update_settings({SettingCodes.MAX_FRAME_SIZE: 16_384})
    pair.client.flush()
    pair.turn()
    pair.client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 65_535})
    pair.client.flush()
    pair.turn()
    assert pair.client.body(stream) == b"x" * 60_000
    assert pair.client.all(h2.events.StreamEnded, stream)


async def test_refused_uploads_leave_nothing(world):
    """Each left a request behind that would never end, as long as the connection lasted."""
    w = world(rule("POST /shop.Cart/Get"))
    c = w.connect(Kind.HTTP2)
    pair = Pair(c)
    for _ in range(50):
        pair.request("/shop.Cart/Drop", method="POST", fields=GRPC, end=False)
    assert not c.lane.layers.streams
    assert len(w.flows.requests) == 50
    w.hub.drain()
    assert not c.lane.layers.streams


async def test_what_a_client_had_sent_before_it_hears_of_a_refusal_is_not_held_against_it(world):
    """Each frame was answered with one more reset, and too many of those ended the connection."""
    hub = inspection(resets=3, early_resets=10)
    w = world(rule("POST /shop.Cart/Get"), hub=hub)
    pair = Pair(w.connect(Kind.HTTP2))
    h2_ = pair.client.h2
    head = [(":method", "POST"), (":scheme", "http"), (":authority", "cart"), (":path", "/shop.Cart/Drop"), *GRPC]
    h2_.send_headers(1, head)
    for _ in range(200):
        h2_.send_data(1, b"\0\0\0\0\1x")
    h2_.send_headers(1, [("x-sum", "1")], end_stream=True)
    pair.client.flush()
    pair.turn()
    assert not hub.breaches
    pair.request("/shop.Cart/Get", method="POST", fields=GRPC, body=b"x")
    assert pair.application.all(h2.events.RequestReceived)


@pytest.mark.parametrize("late", [[(":status", "103"), ("link", "</x>")], [(":status", "200")]])
async def test_an_answer_that_crosses_a_reset_ends_no_other_request(world, late):
    """An interim one was taken for a fault of the application, and ended its connection."""
    w = world(rule())
    c = w.connect(Kind.HTTP2)
    pair = Pair(c)
    stream, other = pair.request("/a"), pair.request("/b")
    first, second = (event.stream_id for event in pair.application.all(h2.events.RequestReceived))
    pair.application.h2.send_headers(first, late)
    pair.client.h2.reset_stream(stream, 8)
    pair.client.flush()
    pair.application.flush()
    pair.turn()
    pair.answer(second, body=b"hello")
    assert pair.client.body(other) == b"hello"
    assert not c.client.write_ended
    assert not c.application.write_ended


@pytest.mark.parametrize("code", [0, 2, 7, 8, 11, 99])
async def test_a_reset_passes_with_its_code(world, code):
    """A client tries again what was refused (7), and nothing else; it was answered with 502."""
    w = world(rule())
    pair = Pair(w.connect(Kind.HTTP2))
    first, second = (pair.request("/a", method="POST", end=False) for _ in range(2))
    asked, other = (event.stream_id for event in pair.application.all(h2.events.RequestReceived))
    pair.application.h2.reset_stream(asked, code)
    pair.application.flush()
    pair.client.h2.reset_stream(second, code)
    pair.client.flush()
    pair.turn()
    assert [event.error_code for event in pair.client.all(h2.events.StreamReset, first)] == [code]
    assert [event.error_code for event in pair.application.all(h2.events.StreamReset, other)] == [code]
    assert not pair.client.all(h2.events.ResponseReceived)
    assert not pair.connection.lane.layers.streams


async def test_an_application_that_refuses_streams_does_not_have_its_client_cut_off(world):
    hub = inspection(resets=3, early_resets=10)
    w = world(rule(), hub=hub)
    pair = Pair(w.connect(Kind.HTTP2))
    for _ in range(50):
        pair.request("/a")
        pair.application.h2.reset_stream(pair.application.all(h2.events.RequestReceived)[-1].stream_id, 7)
        pair.application.flush()
        pair.turn()
    assert len(pair.client.all(h2.events.StreamReset)) == 50
    assert not hub.breaches


async def test_an_early_answer_is_whole_although_its_request_was_not_wanted(world):
    """RFC 9113 section 8.1: an answer, and then a reset with NO_ERROR."""
    w = world(rule())
    pair = Pair(w.connect(Kind.HTTP2))
    pair.client.granting = False
    stream = pair.request("/a", method="POST", end=False)
    (asked,) = (event.stream_id for event in pair.application.all(h2.events.RequestReceived))
    pair.application.h2.send_headers(asked, [(":status", "413")])
    for _ in range(10):
        pair.application.h2.send_data(asked, b"x" * 10_000)
    pair.application.h2.end_stream(asked)
    pair.application.h2.reset_stream(asked, 0)
    pair.application.flush()
    pair.turn()
    assert len(pair.client.body(stream)) == 65_535
    assert not pair.client.all(h2.events.StreamReset)
    for event in pair.client.all(h2.events.DataReceived):
        pair.client.h2.acknowledge_received_data(event.flow_controlled_length, stream)
    pair.client.flush()
    pair.turn()
    assert len(pair.client.body(stream)) == 100_000
    assert pair.client.all(h2.events.StreamEnded, stream)


async def test_a_header_table_that_is_made_smaller_twice(world):
    """hpack told of it neither time, and the application ended the connection."""
    w = world(rule())
    pair = Pair(w.connect(Kind.HTTP2))
    pair.request("/a")
    for size in (100, 100):
        pair.application.h2.update_settings({SettingCodes.HEADER_TABLE_SIZE: size})
        pair.application.flush()
        pair.turn()
    pair.request("/b")
    assert len(pair.application.all(h2.events.RequestReceived)) == 2


async def test_an_early_answer_that_waits_for_its_client_while_the_request_ends(world):
    """Its end was held twice, and the second one ended the connection."""
    w = world(rule())
    pair = Pair(w.connect(Kind.HTTP2))
    pair.client.granting = False
    stream = pair.request("/a", method="POST", end=False)
    (asked,) = (event.stream_id for event in pair.application.all(h2.events.RequestReceived))
    pair.answer(asked, body=b"x" * 16_000)
    early = pair.request("/b", method="POST", end=False)
    other = pair.application.all(h2.events.RequestReceived)[-1].stream_id
    pair.application.h2.send_headers(other, [(":status", "200")])
    for _ in range(5):
        pair.application.h2.send_data(other, b"y" * 10_000)
    pair.application.h2.end_stream(other)
    pair.application.flush()
    pair.turn()
    for one in (stream, early):
        pair.client.h2.end_stream(one)
    pair.client.flush()
    pair.turn()
    for event in pair.client.all(h2.events.DataReceived):
        pair.client.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
    pair.client.flush()
    pair.turn()
    assert len(pair.client.body(early)) == 50_000
    assert pair.client.all(h2.events.StreamEnded, early)
    assert not pair.client.all(h2.events.ConnectionTerminated)
    assert not pair.connection.lane.layers.streams
