"""Attacks on HTTP/2 through the whole lane: who attacks is cut off, told so and counted; others have their turn."""

from __future__ import annotations

import h2.events
import hpack
import pytest

from graph.model import Mode
from sidecar.inspect.frame_guard import CONTINUATION, DATA, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS, WINDOW_UPDATE
from tests.sidecar.inspect.connection import Kind, inspection, rule, until
from tests.sidecar.inspect.http2_ends import Pair, frame

REQUEST = [(":method", "GET"), (":scheme", "http"), (":authority", "cart"), (":path", "/a")]


def block(fields=REQUEST) -> bytes:
    """A head that does not depend on the table."""
    return hpack.Encoder().encode([hpack.NeverIndexedHeaderTuple(*field) for field in fields])


HEAD = block()


def goaways(data: bytes) -> list[int]:
    """The codes of the GOAWAY frames in ``data``."""
    found, at = [], 0
    while at + 9 <= len(data):
        length = int.from_bytes(data[at : at + 3])
        if data[at + 3] == 7:
            found.append(int.from_bytes(data[at + 13 : at + 17]))
        at += 9 + length
    return found


def rapid_reset(number: int) -> bytes:
    stream = 2 * number + 1
    return frame(HEADERS, 5, stream, HEAD) + frame(RST_STREAM, 0, stream, bytes((0, 0, 0, 8)))


def made_you_reset(number: int) -> bytes:
    """Opens a stream and has us reset it, by a window that overflows."""
    stream = 2 * number + 1
    return frame(HEADERS, 4, stream, HEAD) + frame(WINDOW_UPDATE, 0, stream, b"\x7f\xff\xff\xff")


FLOODS = {
    "rapid-reset": (rapid_reset, "rapid-reset"),
    "made-you-reset": (made_you_reset, "made-you-reset"),
    "settings": (lambda n: frame(SETTINGS), "settings"),
    "ping": (lambda n: frame(PING, 0, 0, bytes(8)), "pings"),
    "empty-data": (lambda n: (frame(HEADERS, 4, 1, HEAD) if not n else b"") + frame(DATA, 0, 1), "empty-data"),
    "continuation": (lambda n: frame(CONTINUATION, 0, 1) if n else frame(HEADERS, 0, 1, HEAD), "continuations"),
}


@pytest.mark.parametrize("name", FLOODS)
async def test_a_flood_ends_the_connection_with_a_word(world, name):
    make, kind = FLOODS[name]
    hub = inspection()
    w = world(rule(), hub=hub)
    c = w.connect(Kind.HTTP2)
    c.client.give(PREFACE + frame(SETTINGS))
    sent = bytearray()
    for number in range(40_000):
        if c.client.write_ended:
            break
        c.client.give(make(number))
        sent += c.client.read()
    assert c.client.write_ended
    assert goaways(bytes(sent) + c.client.read())
    assert not c.record.closed, "as long as it stays it counts"
    c.client.finish()
    assert c.record.closed
    assert hub.lanes == 0
    if name == "made-you-reset":  # the parser may take offence first, which ends it as well
        assert hub.breaches[kind] + len(goaways(bytes(sent)))
    else:
        assert hub.breaches[kind] == 1


async def test_resets_of_what_is_never_answered_end_a_connection_at_whatever_pace(world):
    hub = inspection(early_resets=20, resets=1_000_000)
    c = world(rule(), hub=hub).connect(Kind.HTTP2)
    c.client.give(PREFACE + frame(SETTINGS))
    for number in range(21):
        assert not c.client.write_ended
        c.client.give(rapid_reset(number))
    assert hub.breaches["rapid-reset"] == 1
    assert c.client.write_ended
    c.client.finish()


@pytest.mark.parametrize("answered", ["by the application", "by us"])
async def test_a_client_that_has_its_answers_may_reset_for_ever(world, answered):
    """As whoever ends a call that streams."""
    hub = inspection(early_resets=20, resets=1_000_000)
    c = world(rule(*(["GET /other"] if answered == "by us" else [])), hub=hub).connect(Kind.HTTP2)
    pair = Pair(c)
    for _ in range(100):
        stream = pair.request("/a", end=False)
        if answered == "by the application":
            theirs = pair.application.all(h2.events.RequestReceived)[-1].stream_id
            pair.application.h2.send_headers(theirs, [(":status", "200")])
            pair.application.flush()
            pair.turn()
        c.client.give(frame(RST_STREAM, 0, stream, bytes((0, 0, 0, 8))))
        if answered == "by the application":
            pair.client.h2.reset_stream(stream)
            pair.client.h2.data_to_send()  # it is sent
        pair.turn()
    assert not hub.breaches
    assert not c.client.write_ended


async def test_what_a_client_sent_that_is_gone_is_not_worked_off(world):
    hub = inspection(slice=1e-4, early_resets=1_000_000, resets=1_000_000, opens=1_000_000, streams=10_000)
    c = world(rule(), hub=hub).connect(Kind.HTTP2)
    c.client.give(PREFACE + frame(SETTINGS) + b"".join(frame(HEADERS, 5, 2 * n + 1, HEAD) for n in range(2000)))
    assert c.client.paused, "the rest waits for its turn"
    c.client.gone = True
    await until(lambda: c.record.closed)
    assert c.client.was_reset
    assert c.application.was_reset
    assert hub.lanes == 0
    assert hub.requests < 1000


async def test_the_little_that_a_client_sent_before_it_left_is_heard(world):
    """It may want no answer."""
    hub = inspection(slice=1e-5, streams=10_000)
    c = world(rule(), hub=hub).connect(Kind.HTTP2)
    c.client.give(PREFACE + frame(SETTINGS) + b"".join(frame(HEADERS, 5, 2 * n + 1, HEAD) for n in range(100)))
    c.client.gone = True
    await until(lambda: hub.requests == 100)
    assert not c.record.closed
    c.client.lose()


async def test_a_flood_in_one_piece_does_not_reach_the_parser_whole(world):
    hub = inspection()
    w = world(rule(), hub=hub)
    c = w.connect(Kind.HTTP2)
    flood = b"".join(rapid_reset(number) for number in range(3000))
    c.client.give(PREFACE + frame(SETTINGS) + flood)
    await until(lambda: c.client.write_ended)
    assert hub.requests < 1500


async def test_slices_let_others_have_their_turn(world):
    hub = inspection(slice=0.0005, opens=1_000_000, streams=10_000)
    w = world(rule(), hub=hub)
    c = w.connect(Kind.HTTP2)
    flood = b"".join(frame(HEADERS, 5, 2 * n + 1, HEAD) for n in range(1500))
    turns = 0

    def turn() -> None:
        nonlocal turns
        turns += 1
        if hub.requests < 1500:
            w.loop.call_soon(turn)

    w.loop.call_soon(turn)
    c.client.give(PREFACE + frame(SETTINGS) + flood)
    assert hub.requests < 1500
    assert c.client.paused
    await until(lambda: hub.requests == 1500)
    assert turns > 10
    assert not c.client.paused


async def test_a_head_that_decompresses_into_megabytes(world):
    """One field of 4000 bytes in the table, then a thousand references of one byte each."""
    w = world(rule())
    c = w.connect(Kind.HTTP2)
    field = bytes((0x40, 1)) + b"x" + bytes((0x7F,)) + hpack.hpack.encode_integer(3900, 7)[1:] + b"y" * 3900
    bomb = block() + field + bytes((0xBE,)) * 10_000
    c.client.give(PREFACE + frame(SETTINGS) + frame(HEADERS, 5, 1, bomb))
    assert goaways(c.client.read())
    assert c.client.write_ended
    assert c.dials == 0


async def test_pings_of_a_client_that_does_not_read_are_not_answered_without_end(world):
    w = world(rule(), hub=inspection(pings=1_000_000))
    c = w.connect(Kind.HTTP2)
    c.client.give(PREFACE + frame(SETTINGS))
    c.client.blocked = True
    for _ in range(1000):
        if c.client.paused:
            break
        c.client.give(frame(PING, 0, 0, bytes(8)) * 100)
    assert c.client.paused
    assert c.client.unsent < 200_000
    c.client.unblock()
    assert not c.client.paused


async def test_a_head_that_never_ends_is_cut_off_in_time(world):
    hub = inspection(head_seconds=0.1)
    w = world(rule(), hub=hub)
    c = w.connect(Kind.HTTP2)
    c.client.give(PREFACE + frame(SETTINGS) + frame(HEADERS, 0, 1, HEAD))
    await until(lambda: c.client.write_ended)
    assert hub.breaches["head-seconds"] == 1
    assert goaways(c.client.read()) == [11]


HALF = {
    "preface": PREFACE,
    "first-frame": PREFACE + frame(SETTINGS)[:-1],
    "frame": PREFACE + frame(SETTINGS) + frame(HEADERS, 5, 1, HEAD)[:5],
    "head": PREFACE + frame(SETTINGS) + frame(HEADERS, 5, 1, HEAD)[:-1],
    "continuation": PREFACE + frame(SETTINGS) + frame(HEADERS, 1, 1, HEAD) + frame(CONTINUATION, 4, 1, b"x" * 9)[:-1],
    "ping": PREFACE + frame(SETTINGS) + frame(PING, 0, 0, bytes(8))[:-1],
}


@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("data", HALF.values(), ids=HALF)
async def test_what_is_half_sent_is_cut_off_in_time(world, data, size):
    hub = inspection(head_seconds=0.1)
    c = world(rule(), hub=hub).connect(Kind.HTTP2)
    c.client.give(data, size)
    await until(lambda: c.client.write_ended)
    assert hub.breaches["head-seconds"] == 1
    assert goaways(c.client.read()) == [11]


async def somebody_is_late(made):
    """Let so much time pass that one who begins now, with half of something, is cut off."""
    late = made.connect(Kind.HTTP2)
    late.client.give(PREFACE)
    await until(lambda: late.client.write_ended)


async def test_half_a_body_and_a_pause_between_frames_take_the_time_they_want(world):
    hub = inspection(head_seconds=0.1)
    made = world(rule(), hub=hub)
    pausing = [made.connect(Kind.HTTP2) for _ in range(2)]
    pausing[0].client.give(PREFACE + frame(SETTINGS) + frame(HEADERS, 4, 1, HEAD) + frame(DATA, 0, 1, b"x" * 9)[:-1])
    pausing[1].client.give(PREFACE + frame(SETTINGS))
    for _ in range(3):
        await somebody_is_late(made)
    assert not any(one.client.write_ended for one in pausing)


async def test_who_is_not_read_for_a_while_is_not_late(world):
    hub = inspection(head_seconds=0.1)
    made = world(rule(), hub=hub)
    c = made.connect(Kind.HTTP2)
    c.client.give(PREFACE + frame(SETTINGS) + frame(HEADERS, 5, 1, HEAD))
    c.application.blocked = True
    c.client.give(frame(HEADERS, 5, 3, HEAD) + frame(HEADERS, 5, 5, HEAD)[:-1])
    assert c.client.paused
    for _ in range(2):
        await somebody_is_late(made)
    assert not c.client.write_ended
    c.application.unblock()
    assert not c.client.paused
    await until(lambda: c.client.write_ended)
    assert hub.breaches["head-seconds"] == 3


@pytest.mark.parametrize("way", ["silent", "talks", "resets", "denied"])
async def test_who_was_cut_off_is_gone_soon(world, way):
    hub = inspection(head_seconds=0.1, discarded=10_000)
    made = world(rule(), hub=hub)
    c = made.connect(Kind.HTTP2)
    c.client.give(PREFACE + b"x" * 20)
    assert c.client.write_ended
    assert not c.record.closed
    if way == "talks":
        c.client.give(b"x" * 10_001)
    elif way == "resets":
        c.client.lose()
    elif way == "denied":
        made.policy(mode=Mode.ENFORCE)
    else:
        await until(lambda: c.client.was_reset)
    assert c.client.closed
    assert c.record.closed


async def test_a_bystander_is_served_while_another_is_cut_off(world):
    hub = inspection()
    w = world(rule(), hub=hub)
    victim = Pair(w.connect(Kind.HTTP2))
    attacker = w.connect(Kind.HTTP2)
    attacker.client.give(PREFACE + frame(SETTINGS))
    for number in range(500):
        attacker.client.give(rapid_reset(number))
        if number % 50 == 0:
            victim.request("/a")
            victim.answer(victim.application.events[-2].stream_id)
    assert attacker.client.write_ended
    assert not victim.connection.client.write_ended
    served = [one for one in w.flows.requests if one.status == 200]
    assert len(served) == 10


async def test_what_a_client_that_was_cut_off_still_sends_is_thrown_away(world):
    w = world(rule(), hub=inspection(discarded=1000))
    c = w.connect(Kind.HTTP2)
    c.client.give(PREFACE + frame(SETTINGS) * 100)
    assert c.client.write_ended
    c.client.give(b"x" * 900)
    assert not c.client.was_reset
    c.client.give(b"x" * 200)
    assert c.client.was_reset


async def test_a_parser_that_fails_costs_one_connection(world, caplog):
    w = world(rule())
    c = w.connect(Kind.HTTP2)

    def broken(data: bytes) -> list:
        raise KeyError("a fault")

    c.lane.layers.client.h2_conn.receive_data = broken
    c.client.give(PREFACE + frame(SETTINGS))
    assert c.client.was_reset
    assert "a fault in the inspect lane" in caplog.text
