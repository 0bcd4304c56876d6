"""More requests at once than are allowed (RFC 9113 section 5.1.2): each that is too many is refused so that it may be
tried again, and whoever goes on although it knows the limit is cut off."""

from __future__ import annotations

import h2.connection
import h2.events
import hpack
import pytest
from h2.errors import ErrorCodes

from sidecar.inspect.frame_guard import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
)
from tests.sidecar.inspect.connection import Kind, inspection, rule
from tests.sidecar.inspect.http2_ends import Pair, frame

FEW = 5
FIELDS = [(":method", "GET"), (":scheme", "http"), (":authority", "cart")]
HEAD = hpack.Encoder().encode([hpack.NeverIndexedHeaderTuple(*each) for each in (*FIELDS, (":path", "/a"))])
ACKNOWLEDGED = frame(SETTINGS, ACK)


def asked(number: int) -> bytes:
    return frame(HEADERS, END_HEADERS | END_STREAM, 2 * number + 1, HEAD)


def frames(data: bytes) -> list[tuple[int, int, bytes]]:
    """Kind, stream and payload of each frame in ``data``."""
    found, at = [], 0
    while at < len(data):
        end = at + 9 + int.from_bytes(data[at : at + 3])
        found.append((data[at + 3], int.from_bytes(data[at + 5 : at + 9]), data[at + 9 : end]))
        at = end
    return found


def refused(data: bytes) -> list[int]:
    """The streams that were reset in ``data``, each of which was to be REFUSED_STREAM."""
    resets = [(stream, payload) for kind, stream, payload in frames(data) if kind == RST_STREAM]
    assert {payload for _, payload in resets} <= {int(ErrorCodes.REFUSED_STREAM).to_bytes(4)}
    return [stream for stream, _ in resets]


def farewells(data: bytes) -> list[tuple[int, bytes]]:
    """Code and reason of each GOAWAY in ``data``."""
    return [(int.from_bytes(payload[4:8]), payload[8:]) for kind, _, payload in frames(data) if kind == GOAWAY]


@pytest.fixture
async def few(world):
    w = world(rule(), hub=inspection(streams=FEW, early_resets=1_000_000))
    c = w.connect(Kind.HTTP2)
    c.client.give(PREFACE + frame(SETTINGS))
    return w, c


def count(world) -> int:
    return world.fabric.guards.counters.requests_refused


async def test_each_request_too_many_is_refused_and_nobody_else_hears_of_it(few):
    w, c = few
    for number in range(20):
        c.client.give(asked(number))
    said = c.client.read()
    assert refused(said) == [2 * number + 1 for number in range(FEW, 20)]
    assert not farewells(said)
    assert not c.client.write_ended
    assert len(c.lane.layers.streams) == FEW
    assert [kind for kind, *_ in frames(c.application.read().removeprefix(PREFACE))].count(HEADERS) == FEW
    assert (w.hub.requests, count(w)) == (FEW, 15)
    assert not w.hub.breaches
    c.client.lose()
    assert len(w.flows.requests) == FEW, "what was refused is no request"


async def test_the_last_one_that_is_allowed_is_served(few):
    w, c = few
    for number in range(FEW):
        c.client.give(asked(number))
    assert not refused(c.client.read())
    assert count(w) == 0
    c.client.lose()


async def test_what_was_refused_is_served_when_it_is_tried_again(world):
    w = world(rule(), hub=inspection(streams=FEW))
    pair = Pair(w.connect(Kind.HTTP2))
    end = pair.client.h2
    wanted, running, served, tried = {f"/{number}" for number in range(50)}, {}, [], 0
    while wanted or running:  # as many at once as a client may that has not heard of a limit
        for path in list(wanted) if not tried else list(wanted)[: FEW - len(running)]:
            stream = end.get_next_available_stream_id()
            h2.connection.H2Connection.send_headers(end, stream, [*FIELDS, (":path", path)], end_stream=True)
            running[stream] = path
            wanted.remove(path)
            tried += 1
        pair.client.flush()
        pair.turn()
        for event in pair.client.all(h2.events.StreamReset):
            if event.stream_id in running:
                assert event.error_code == ErrorCodes.REFUSED_STREAM
                wanted.add(running.pop(event.stream_id))
        for event in pair.application.all(h2.events.RequestReceived):
            path = dict(event.headers)[":path"]
            if path not in served:
                served.append(path)
                pair.answer(event.stream_id, body=path.encode())
        for stream in [one for one in running if pair.client.all(h2.events.StreamEnded, one)]:
            assert pair.client.body(stream) == running.pop(stream).encode()
    assert sorted(served) == sorted(f"/{number}" for number in range(50))
    assert tried == 50 + count(w) == 95
    assert sorted(request.path for request in w.flows.requests) == sorted(served)
    assert {request.status for request in w.flows.requests} == {200}
    assert not pair.connection.client.write_ended


async def test_what_follows_a_head_that_was_refused_is_ignored(few):
    """It was on its way. Both ends' tables of headers stay the same."""
    w, c = few
    end = hpack.Encoder()
    for number in range(FEW):
        head = end.encode([*FIELDS, (":path", f"/{number}")])
        c.client.give(frame(HEADERS, END_HEADERS | END_STREAM, 2 * number + 1, head))
    stream = 2 * FEW + 1
    head = end.encode([*FIELDS, (":path", "/refused"), ("x-new", "remembered")])
    c.client.give(frame(HEADERS, 0, stream, head[:7]) + frame(CONTINUATION, END_HEADERS, stream, head[7:]))
    c.client.give(frame(DATA, 0, stream, b"x" * 1000))
    c.client.give(frame(WINDOW_UPDATE, 0, stream, b"\0\0\1\0"))
    trailers = end.encode([("x-trailer", "remembered too")])
    c.client.give(frame(HEADERS, END_HEADERS | END_STREAM, stream, trailers))
    c.client.give(frame(RST_STREAM, 0, stream, (8).to_bytes(4)))
    said = c.client.read()
    assert refused(said) == [stream]
    assert not farewells(said)
    c.client.give(frame(RST_STREAM, 0, 1, (8).to_bytes(4)))  # makes room for one
    head = end.encode([*FIELDS, (":path", "/next"), ("x-new", "remembered"), ("x-trailer", "remembered too")])
    c.client.give(frame(HEADERS, END_HEADERS | END_STREAM, stream + 2, head))
    assert not refused(c.client.read())
    newest = c.lane.layers.streams[stream + 2].flow.request
    assert (newest.path, newest.headers["x-new"], newest.headers["x-trailer"]) == (
        "/next", "remembered", "remembered too",
    )  # fmt: skip
    assert c.record.bytes_sent
    assert count(w) == 1
    c.client.lose()


async def test_a_denied_request_takes_no_place_for_long(world):
    w = world(rule("GET /other"), hub=inspection(streams=FEW))
    c = w.connect(Kind.HTTP2)
    c.client.give(PREFACE + frame(SETTINGS))
    for number in range(20):
        c.client.give(asked(number))
    assert not refused(c.client.read())
    assert (w.hub.refused, count(w)) == (20, 0)
    c.client.lose()


async def test_an_identifier_that_may_not_be_used_is_no_stream_to_refuse(few):
    for wrong in (2 * FEW + 2, 2 * FEW - 1):
        w, _ = few
        c = w.connect(Kind.HTTP2)
        c.client.give(PREFACE + frame(SETTINGS))
        for number in range(FEW - 1):
            c.client.give(asked(number))
        c.client.give(asked(FEW))  # leaves one out
        c.client.give(frame(HEADERS, END_HEADERS | END_STREAM, wrong, HEAD))
        said = c.client.read()
        assert farewells(said)
        assert not refused(said)
        assert c.client.write_ended


async def test_a_broken_head_of_what_would_be_refused_ends_the_connection(few):
    """Nobody knows any more what the next one would mean."""
    _, c = few
    for number in range(FEW):
        c.client.give(asked(number))
    c.client.give(frame(HEADERS, END_HEADERS | END_STREAM, 2 * FEW + 1, b"\xff\xff\xff\xff\xff\xff"))
    said = c.client.read()
    assert farewells(said)
    assert not refused(said)
    assert c.client.write_ended


@pytest.mark.parametrize("limit", ["resets", "early_resets"])
async def test_a_client_that_knows_the_limit_and_goes_on_is_cut_off(world, limit):
    limits = {"resets": 1_000_000, "early_resets": 1_000_000, limit: 10}
    most = 20 if limit == "resets" else 10  # of a rate twice as many pass in a burst
    w = world(rule(), hub=inspection(streams=FEW, **limits))
    c = w.connect(Kind.HTTP2)
    c.client.give(PREFACE + frame(SETTINGS) + ACKNOWLEDGED)
    for number in range(FEW + most):
        c.client.give(asked(number))
        assert not c.client.write_ended
    c.client.give(asked(FEW + most))
    said = c.client.read()
    assert farewells(said) == [(ErrorCodes.ENHANCE_YOUR_CALM, b"streams")]
    assert c.client.write_ended
    assert c.application.was_reset
    assert w.hub.breaches == {"streams": 1}
    assert count(w) == most + 1
    c.client.finish()


async def test_what_was_begun_before_the_limit_was_known_is_forgiven(world):
    w = world(rule(), hub=inspection(streams=FEW, resets=10, early_resets=10))
    c = w.connect(Kind.HTTP2)
    c.client.give(PREFACE + frame(SETTINGS))
    c.client.give(b"".join(asked(number) for number in range(1000)) + ACKNOWLEDGED)
    assert count(w) == 1000 - FEW
    assert not c.client.write_ended
    for number in range(1000, 1010):
        c.client.give(asked(number))
    assert not c.client.write_ended
    c.client.give(asked(1010))
    assert w.hub.breaches == {"streams": 1}
    c.client.finish()


async def test_who_never_acknowledges_the_limit_is_cut_off_too(world):
    w = world(rule(), hub=inspection(streams=FEW, opens=500))
    c = w.connect(Kind.HTTP2)
    c.client.give(PREFACE + frame(SETTINGS))
    for number in range(FEW + 500):
        c.client.give(asked(number))
    assert not c.client.write_ended
    c.client.give(asked(FEW + 500))
    assert w.hub.breaches == {"streams": 1}
    assert c.client.write_ended
    c.client.finish()


async def test_what_the_application_refuses_is_refused_to_the_client(world):
    """As many as we allow, fewer than it does."""
    w = world(rule(), hub=inspection(streams=FEW))
    pair = Pair(w.connect(Kind.HTTP2))
    stream = pair.request("/a")
    (heard,) = pair.application.all(h2.events.RequestReceived)
    pair.application.h2.reset_stream(heard.stream_id, ErrorCodes.REFUSED_STREAM)
    pair.application.flush()
    pair.turn()
    (reset,) = pair.client.all(h2.events.StreamReset, stream)
    assert reset.error_code == ErrorCodes.REFUSED_STREAM
    assert count(w) == 0
