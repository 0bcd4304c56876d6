"""Turns of the reactor: many who have always more to read do not keep others waiting longer than one does."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest

from sidecar.dataplane.reactor import Reactor


class Busy:
    """Has so much to read, each time for so many seconds."""

    def __init__(self, reactor, name, seconds, times, seen):
        self._reactor, self._name, self._seconds, self._times, self._seen = reactor, name, seconds, times, seen
        self.queued = False

    def pump(self):
        self._seen.append(self._name)
        began = monotonic()
        while monotonic() - began < self._seconds:
            pass
        self._times -= 1
        if self._times:
            self._reactor.pump_again(self)

    def abort(self, why):
        raise AssertionError(why)


@pytest.fixture
async def reactor():
    reactor = Reactor()
    reactor.start(asyncio.get_running_loop())
    yield reactor
    reactor.stop()


async def test_many_who_take_long_share_a_turn_and_go_round(reactor):
    seen = []
    for name in "abc":
        reactor.pump_again(Busy(reactor, name, 0.005, 3, seen))
    while len(seen) < 9:
        before = len(seen)
        await asyncio.sleep(0)
        assert len(seen) - before <= 1, "each of them takes longer than a turn"
    assert seen == list("abcabcabc")


async def test_many_who_take_no_time_are_served_in_one_turn(reactor):
    seen = []
    for name in range(100):
        reactor.pump_again(Busy(reactor, name, 0.0, 1, seen))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert seen == list(range(100))
