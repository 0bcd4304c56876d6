"""Connections that wait for their turn before they are inspected."""

from __future__ import annotations

import asyncio

import pytest

from graph.model import Mode
from sidecar.inspect.entrance import enter
from sidecar.inspect.lane import InspectLane
from tests.sidecar.inspect.connection import Kind, inspection, rule, until
from tests.sidecar.inspect.http2_ends import Pair

#: So short that whatever was done has used it up.
NO_TIME = 1e-9


def waiting(world, kind=Kind.HTTP1):
    """A client that comes while another one has used up all the time of this iteration of the loop."""
    world.hub.turns.used(world.reactor, 61.0)
    made = world.connect(kind, by=enter)
    assert not isinstance(made.client.lane, InspectLane)
    return made


def inspected(made):
    return [isinstance(one.client.lane, InspectLane) for one in made]


async def test_those_who_come_at_once_enter_one_after_the_other_and_others_have_their_turn(world):
    w = world(rule(), hub=inspection(slice=NO_TIME))
    made = [w.connect(by=enter) for _ in range(5)]
    assert inspected(made) == [True, False, False, False, False]
    for entered in range(2, 6):
        await asyncio.sleep(0)  # one iteration of the loop
        assert inspected(made) == [True] * entered + [False] * (5 - entered)
    assert w.hub.lanes == 5


@pytest.mark.parametrize("ends", [False, True])
async def test_what_a_client_said_meanwhile_is_heard(world, ends):
    one = waiting(world(rule()))
    assert one.client.paused
    one.client.give(b"GET /a HTTP/1.1\r\nHost: c", 5)
    one.client.give(b"art\r\n\r\n", 5)
    if ends:
        one.client.finish()
    assert one.dials == 0
    await until(lambda: one.server is not None and one.application.taken)
    assert one.application.read().startswith(b"GET /a HTTP/1.1\r\n")
    one.application.give(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    await until(lambda: one.client.taken.endswith(b"ok"))
    assert one.client.write_ended == ends
    assert not one.record.failed


async def test_whoever_is_inspected_gives_way_at_both_ends(world):
    one = world(rule()).connect(by=enter)
    assert one.client.gives_way
    one.client.give(b"POST /a HTTP/1.1\r\nHost: cart\r\nContent-Length: 9\r\n\r\n")
    assert one.application.gives_way


async def test_http2_is_spoken_when_the_turn_has_come(world):
    w = world(rule())
    one = waiting(w, Kind.HTTP2)
    assert not one.client.read()
    await until(lambda: isinstance(one.client.lane, InspectLane))
    assert not one.client.paused
    pair = Pair(one)
    pair.request("/a")
    pair.answer(pair.application.events[-2].stream_id)
    assert [each.status for each in w.flows.requests] == [200]


@pytest.mark.parametrize("way", ["leaves", "denied"])
async def test_who_does_not_wait_long_enough_is_not_inspected(world, way):
    w = world(rule())
    one = waiting(w)
    one.client.give(b"GET /a HTTP/1.1\r\nHost: cart\r\n\r\n")
    if way == "leaves":
        one.client.lose()
    else:
        w.policy(mode=Mode.ENFORCE)
        assert one.client.was_reset
    assert one.record.closed
    assert one.record.failed
    lane = one.client.lane
    await until(lambda: w.hub.turns.free(w.reactor))
    assert one.client.lane is lane
    assert one.dials == w.hub.lanes == 0


async def test_a_fault_while_entering_costs_one_connection(world, caplog):
    w = world(rule())
    one, other = waiting(w), waiting(w)
    del one.context.application
    await until(lambda: isinstance(other.client.lane, InspectLane))
    assert one.client.was_reset
    assert one.record.failed
    assert "please report it" in caplog.text
