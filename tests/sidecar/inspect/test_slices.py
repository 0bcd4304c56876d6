"""Slices of time: nothing that one end sends at once, client or application, is worked off at once."""

from __future__ import annotations

import hpack
import pytest

from sidecar.inspect.frame_guard import DATA, HEADERS, PING, PREFACE, SETTINGS
from tests.sidecar.inspect.connection import Kind, inspection, rule, until
from tests.sidecar.inspect.http2_ends import frame

ASKED = b"GET /a HTTP/1.1\r\nHost: cart\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
SMALL = b"1\r\nx\r\n" * 8000
HEAD = hpack.Encoder().encode([(":method", "GET"), (":scheme", "http"), (":authority", "cart"), (":path", "/a")])
OK = b"\x88"  # :status 200, of the static table


class Turning:
    """Counts iterations of the loop."""

    def __init__(self, loop) -> None:
        self._loop = loop
        self.count = 0
        self._turn()

    def _turn(self) -> None:
        self.count += 1
        self._handle = self._loop.call_soon(self._turn)

    def stop(self) -> int:
        self._handle.cancel()
        return self.count


async def test_an_answer_in_small_chunks_is_passed_on_in_slices(world):
    w = world(rule(), hub=inspection(slice=0.0005))
    c = w.connect()
    c.client.give(ASKED)
    await until(lambda: c.server is not None)
    turning = Turning(w.loop)
    c.application.give(CHUNKED + SMALL + b"0\r\n\r\n")
    assert len(c.client.taken) < len(SMALL) // 4
    assert c.application.paused, "what it sends next waits there"
    await until(lambda: c.client.taken.endswith(b"\r\n0\r\n\r\n"))
    assert turning.stop() > 10
    assert not c.application.paused


async def test_an_application_that_ends_behind_a_large_answer_is_heard_out(world):
    w = world(rule(), hub=inspection(slice=0.0005))
    c = w.connect()
    c.client.give(ASKED)
    await until(lambda: c.server is not None)
    c.application.give(CHUNKED + SMALL + b"0\r\n\r\n")
    c.application.finish()
    assert not c.client.write_ended
    await until(lambda: c.client.write_ended)
    assert c.client.taken.endswith(b"\r\n0\r\n\r\n")
    assert c.client.taken.count(b"x\r\n") == 8000


async def test_a_body_in_small_chunks_is_passed_on_in_slices(world):
    w = world(rule(), hub=inspection(slice=0.0005))
    c = w.connect()
    turning = Turning(w.loop)
    c.client.give(b"POST /a HTTP/1.1\r\nHost: cart\r\nTransfer-Encoding: chunked\r\n\r\n" + SMALL + b"0\r\n\r\n")
    assert c.server is None or len(c.application.taken) < len(SMALL) // 4
    await until(lambda: c.server is not None and c.application.taken.endswith(b"\r\n0\r\n\r\n"))
    assert turning.stop() > 10
    assert c.application.taken.count(b"x\r\n") == 8000


async def test_an_applications_frames_are_worked_off_in_slices(world):
    w = world(rule(), hub=inspection(slice=0.0005))
    c = w.connect(Kind.HTTP2)
    c.client.give(PREFACE + frame(SETTINGS) + frame(HEADERS, 5, 1, HEAD))
    await until(lambda: c.server is not None)
    turning = Turning(w.loop)
    c.application.give(frame(SETTINGS) + frame(HEADERS, 4, 1, OK) + frame(DATA, 0, 1, b"x") * 4000 + frame(DATA, 1, 1))
    assert not w.flows.requests
    assert c.application.paused
    await until(lambda: w.flows.requests)
    assert turning.stop() > 10
    assert w.flows.requests[0].status == 200
    assert not c.application.paused


@pytest.mark.parametrize("sender", ["client", "application"])
async def test_frames_that_take_long_are_read_one_at_a_time(world, sender):
    """What is between two looks at the clock is what a slice takes, and not so many requests."""
    w = world(rule(), hub=inspection(slice=1e-5))
    c = w.connect(Kind.HTTP2)
    c.client.give(PREFACE + frame(SETTINGS) + frame(HEADERS, 5, 1, HEAD))
    await until(lambda: c.server is not None)
    turning, count = Turning(w.loop), 100
    if sender == "client":
        c.client.give(b"".join(frame(HEADERS, 5, 2 * number + 3, HEAD) for number in range(count)))
        await until(lambda: len(c.lane.layers.streams) == 1 + count)
    else:
        c.application.give(frame(SETTINGS) + frame(HEADERS, 4, 1, OK) + frame(DATA, 0, 1, b"x") * count)
        await until(lambda: c.client.taken.count(frame(DATA, 0, 1, b"x")) == count)
    assert turning.stop() > count // 2, "but the first few were read together"


async def test_an_application_that_takes_no_answers_to_its_frames_is_not_read_any_more(world):
    w = world(rule(), hub=inspection(connection_window=65_535, stream_window=65_535))
    c = w.connect(Kind.HTTP2)
    c.client.give(PREFACE + frame(SETTINGS) + frame(HEADERS, 5, 1, HEAD))
    await until(lambda: c.server is not None)
    c.application.give(frame(SETTINGS))
    c.application.blocked = True
    for _ in range(1000):
        if c.application.paused:
            break
        c.application.give(frame(PING, 0, 0, bytes(8)) * 100)
    assert c.application.paused
    assert c.application.unsent < 200_000
    c.application.unblock()
    assert not c.application.paused


@pytest.mark.parametrize("size", [0, 4096])
async def test_a_line_of_a_chunk_that_passes_the_bound_at_once_is_found_at_once(world, size):
    """Nothing more of such a client is read: what was not found with its last byte would never be."""
    hub = inspection()
    w = world(rule(), hub=hub)
    c = w.connect()
    opening = b"POST /a HTTP/1.1\r\nHost: cart\r\nTransfer-Encoding: chunked\r\n\r\n1;"
    c.client.give(opening + b"a=b;" * 17_000, size)
    assert hub.breaches["chunk-line"] == 1
    assert c.client.write_ended
    assert not c.record.closed, "as long as it stays it counts"
    c.client.finish()
    assert c.record.closed
