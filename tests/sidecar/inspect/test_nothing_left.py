"""What an inspected connection took is free when it ends, down to the last object: nothing is left to the collector of
cycles, for which everybody waits, and before which memory grows."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections import Counter
from collections.abc import Callable

import hpack
import pytest

from sidecar.inspect.frame_guard import (
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
)
from tests.sidecar.inspect.connection import Inspected, Kind, World, inspection, rule
from tests.sidecar.inspect.http2_ends import frame

CONNECTIONS = 10
#: Turns of the loop in which what a connection's end left to be done soon is done, many times over.
TURNS = 300

GET = b"GET /ok HTTP/1.1\r\nHost: web\r\n\r\n"
POST = b"POST /ok HTTP/1.1\r\nHost: web\r\nContent-Length: 1000000\r\n\r\nx"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"
UPGRADE = (
    b"GET /chat HTTP/1.1\r\nHost: web\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
UPGRADED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


def block(*fields: tuple[str, str]) -> bytes:
    """A head that does not depend on the table."""
    return hpack.Encoder().encode([hpack.NeverIndexedHeaderTuple(*field) for field in fields])


ASKED = block((":method", "POST"), (":scheme", "http"), (":authority", "cart"), (":path", "/a"))
CALLED = block((":method", "POST"), (":scheme", "http"), (":authority", "cart"), (":path", "/a"),
               ("content-type", "application/grpc"), ("te", "trailers"))  # fmt: skip
INTERIM, ANSWERED = block((":status", "103")), block((":status", "200"), ("content-type", "application/grpc"))
TRAILERS = block(("grpc-status", "0"))
BEGIN = PREFACE + frame(SETTINGS)
ALL, OPEN = END_HEADERS | END_STREAM, END_HEADERS


def says(*sent: bytes, answers: bytes = b"") -> Callable[[Inspected], None]:
    """A client that says this, to an application that answers each time."""

    def talk(c: Inspected) -> None:
        for data in sent:
            c.client.give(data)
            if answers and c.server is not None and not c.client.closed:
                c.application.give(answers)

    return talk


def calls(c: Inspected) -> None:
    c.client.give(BEGIN)
    for stream in (1, 3, 5):
        c.client.give(frame(HEADERS, OPEN, stream, CALLED) + frame(DATA, END_STREAM, stream, b"\0\0\0\0\1x"))
        if c.server is not None:
            settings = frame(SETTINGS) if stream == 1 else b""
            heads = frame(HEADERS, OPEN, stream, INTERIM) + frame(HEADERS, OPEN, stream, ANSWERED)
            body = frame(DATA, 0, stream, b"\0\0\0\0\1y") + frame(HEADERS, ALL, stream, TRAILERS)
            c.application.give(settings + heads + body)


def gone_wrong(c: Inspected) -> None:
    """The application breaks the protocol."""
    c.client.give(BEGIN + frame(HEADERS, ALL, 1, ASKED))
    if c.server is not None:
        c.application.give(frame(SETTINGS) + frame(HEADERS, ALL, 1, block((":status", "so so"))))


TALKS = {
    "1: nothing": (Kind.HTTP1, says()),
    "1: requests": (Kind.HTTP1, says(GET, GET, GET, answers=ANSWER)),
    "1: pipelined": (Kind.HTTP1, says(GET * 3)),
    "1: half a head": (Kind.HTTP1, says(GET[:20])),
    "1: half a body": (Kind.HTTP1, says(POST)),
    "1: no head": (Kind.HTTP1, says(b"GET /a b c\r\n\r\n")),
    "1: a head too large": (Kind.HTTP1, says(b"GET /ok HTTP/1.1\r\nHost: web\r\nX: " + b"x" * 70_000)),
    "1: no answer": (Kind.HTTP1, says(GET, answers=b"nonsense\r\n\r\n")),
    "1: upgraded": (Kind.HTTP1, says(UPGRADE, answers=UPGRADED)),
    "2: nothing": (Kind.HTTP2, says(BEGIN)),
    "2: calls": (Kind.HTTP2, calls),
    "2: half a head": (Kind.HTTP2, says(BEGIN + frame(HEADERS, OPEN, 1, ASKED)[:20])),
    "2: half a body": (Kind.HTTP2, says(BEGIN, frame(HEADERS, OPEN, 1, ASKED) + frame(DATA, 0, 1, b"x" * 100))),
    "2: reset": (Kind.HTTP2, says(BEGIN, frame(HEADERS, ALL, 1, ASKED) + frame(RST_STREAM, 0, 1, bytes(4)))),
    "2: too many": (Kind.HTTP2, says(BEGIN, *(frame(HEADERS, ALL, 2 * n + 1, ASKED) for n in range(12)))),
    "2: far too many": (Kind.HTTP2, says(BEGIN, *(frame(HEADERS, ALL, 2 * n + 1, ASKED) for n in range(60)))),
    "2: an even stream": (Kind.HTTP2, says(BEGIN, frame(HEADERS, ALL, 2, ASKED))),
    "2: a broken head": (Kind.HTTP2, says(BEGIN, frame(HEADERS, ALL, 1, b"\xff\xff\xff\xff\xff\xff"))),
    "2: no request": (Kind.HTTP2, says(BEGIN, frame(HEADERS, ALL, 1, block((":method", "GET"))))),
    "2: a window too large": (
        Kind.HTTP2,
        says(BEGIN, frame(HEADERS, OPEN, 1, ASKED) + frame(WINDOW_UPDATE, 0, 1, b"\x7f\xff\xff\xff")),
    ),
    "2: pings": (Kind.HTTP2, says(BEGIN, frame(PING, 0, 0, bytes(8)) * 50)),
    "2: a farewell": (Kind.HTTP2, says(BEGIN, frame(HEADERS, ALL, 1, ASKED), frame(GOAWAY, 0, 0, bytes(8)))),
    "2: no preface": (Kind.HTTP2, says(b"X" * 40)),
    "2: no answer": (Kind.HTTP2, gone_wrong),
}


def client_ends(c: Inspected) -> None:
    c.client.finish()
    if c.server is not None and not c.record.closed:
        c.application.finish()


def application_ends(c: Inspected) -> None:
    if c.server is not None:
        c.application.finish()
    c.client.finish()
    if not c.record.closed:
        c.client.lose()


ENDS = {
    "the client ends": client_ends,
    "the application ends": application_ends,
    "the client is lost": lambda c: c.client.lose(),
    "the policy ends it": lambda c: c.connection.end(),
}


async def use(w: World, talk: str, end: str) -> None:
    kind, speak = TALKS[talk]
    used = []
    for _ in range(CONNECTIONS):
        c = w.connect(kind)
        speak(c)
        ENDS[end](c)
        used.append(c)
    for _ in range(TURNS):
        await asyncio.sleep(0)
    for c in used:
        assert c.record.closed or c.client.was_reset or c.client.write_ended
        for leg in filter(None, (c.client, c.server)):
            leg.lane = None
        vars(c.context).clear()  # this test's own ends refer to each other
        vars(c).clear()


@pytest.mark.parametrize("allowed", [True, False], ids=["allowed", "denied"])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("talk", TALKS)
async def test_nothing_is_left_to_the_collector(world, talk, end, allowed, caplog):
    caplog.set_level(logging.CRITICAL)
    caplog.clear()
    limits = {"streams": 5, "opens": 40, "head_seconds": 0.1}
    w = world(rule() if allowed else rule("GET /other"), hub=inspection(**limits))
    await use(w, talk, end)  # whatever is made with the first
    gc.collect()
    gc.freeze()  # what is there by now is not looked at again
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        await use(w, talk, end)
        gc.collect()
        left = Counter(f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
        gc.unfreeze()
    assert left.total() < CONNECTIONS, f"less than one of each: {left}"
