"""Turns of the reactor: many who have always more to read do not keep others waiting longer than one does.

Over 400 lines: each test makes the sources that it needs, in sight of what it asks of their turns.
"""

from __future__ import annotations

import asyncio
import socket
from time import monotonic

import pytest

from sidecar.dataplane.reactor import EDGE, HUP, IN, Reactor


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


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # nobody tells of it
            await asyncio.sleep(0)


class Slow:
    """A source whose every event takes so many seconds."""

    def __init__(self, reactor, name, seconds, seen, events=IN):
        self.mine, self.other = socket.socketpair()
        self.mine.setblocking(False)
        self._reactor, self._name, self._seconds, self._seen = reactor, name, seconds, seen
        reactor.register(self.mine, events, self)

    def on_event(self, events):
        self._seen.append((self._name, self.mine.recv(100)))
        began = monotonic()
        while monotonic() - began < self._seconds:
            pass

    def abort(self, why):
        self.close()

    def close(self):
        self._reactor.close(self.mine)
        self.other.close()


async def test_a_batch_that_takes_long_is_cut_and_nothing_of_it_is_lost(reactor):
    seen = []
    sources = [Slow(reactor, name, 0.004, seen, IN | EDGE) for name in range(6)]
    for source in sources:
        source.other.send(b"x")
    async with asyncio.timeout(60):
        while len(seen) < 6:
            before = len(seen)
            await asyncio.sleep(0)
            assert len(seen) - before <= 2, "each of them takes longer than a turn"
    assert sorted(seen) == [(name, b"x") for name in range(6)]
    for source in sources:
        source.close()


async def test_what_was_left_of_a_batch_is_not_told_to_who_has_the_descriptor_now(reactor):
    seen = []
    first = Slow(reactor, "first", 0.004, seen, IN | EDGE)
    second = Slow(reactor, "second", 0.004, seen, IN | EDGE)
    first.other.send(b"x")
    second.other.send(b"x")
    await until(lambda: seen)
    assert len(seen) == 1, "a turn is over after the first"
    waiting = second if seen[0][0] == "first" else first
    descriptor = waiting.mine.fileno()
    waiting.close()
    heir = Slow(reactor, "heir", 0.0, seen, IN | EDGE)
    assert descriptor in (heir.mine.fileno(), heir.other.fileno())
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(seen) == 1, "it has nothing to read, and would have failed"
    heir.other.send(b"y")
    await until(lambda: len(seen) == 2)
    assert seen[1] == ("heir", b"y")
    for source in (first, second, heir):
        source.close()


async def test_a_thousand_that_are_due_at_once_are_no_turn_for_those_who_are_served(reactor):
    seen, due = [], []

    def expire(number):
        due.append(number)
        began = monotonic()
        while monotonic() - began < 0.001:
            pass

    for number in range(200):
        reactor.call_later(0.0, expire, number)
    await until(lambda: due)
    source = Slow(reactor, "served", 0.0, seen)
    source.other.send(b"x")
    async with asyncio.timeout(60):
        while not seen:
            before = len(due)
            await asyncio.sleep(0)
            assert len(due) - before <= 2
    assert len(due) < 100, "it was served long before all of that was done"
    await until(lambda: len(due) == 200)
    assert due == list(range(200))
    source.close()


async def test_an_alarm_is_no_part_of_a_reactor_that_has_stopped(reactor):
    reactor.chores.soon(pytest.fail, "it has stopped")
    reactor.stop()
    for _ in range(5):
        await asyncio.sleep(0)


class Giving(Slow):
    """One that gives way. ``first`` is done by the first one that has its turn."""

    def __init__(self, reactor, name, seen, seconds=0.001, first=None):
        super().__init__(reactor, name, seconds, seen, IN | EDGE)
        self.first = first
        reactor.give_way(self.mine)

    def on_event(self, events):
        if self.first is not None:
            self.first()
        super().on_event(events)


async def test_nobody_is_behind_those_who_give_way(reactor):
    """A thousand of them may be ready before him: he waits for one portion of their work."""
    seen = []
    served = Slow(reactor, "served", 0.0, seen, IN | EDGE)
    giving = [Giving(reactor, name, seen) for name in range(50)]
    giving[0].first = lambda: served.other.send(b"x")
    for source in giving:
        source.other.send(b"x")
    await until(lambda: len(seen) == 51)
    assert [name for name, _ in seen] == [0, "served", *range(1, 50)]
    for source in (served, *giving):
        source.close()


async def test_who_gives_way_is_served_in_every_turn_whoever_never_stops(reactor):
    seen, endless = [], []
    for name in range(3):
        reactor.pump_again(Busy(reactor, name, 0.003, 1 << 30, endless))
    giving = [Giving(reactor, name, seen, 0.0) for name in range(5)]
    for source in giving:
        source.other.send(b"x")
    await until(lambda: endless)
    begun = len(endless)
    await until(lambda: len(seen) == 5)
    assert len(endless) - begun <= 10, "each of their turns has one of his"
    for source in giving:
        source.close()


async def test_events_that_come_while_one_waits_are_told_together(reactor):
    told = []

    class Listening(Giving):
        def on_event(self, events):
            told.append(events)

    one = Listening(reactor, "one", [])
    for step in range(3):
        reactor._sources[one.mine.fileno()].on_event((IN, EDGE, HUP)[step])
    assert not told
    await until(lambda: told)
    assert told == [IN | EDGE | HUP]
    one.close()


async def test_who_is_gone_before_his_turn_is_not_told_and_nor_is_his_heir(reactor):
    seen, heirs = [], []
    second = Giving(reactor, "second", seen)

    def swap():
        descriptor = second.mine.fileno()
        reactor.forget(second.mine)
        second.mine.close()
        heir = Slow(reactor, "heir", 0.0, seen, IN | EDGE)
        assert descriptor in (heir.mine.fileno(), heir.other.fileno())
        heirs.append(heir)

    first = Giving(reactor, "first", seen, first=swap)
    first.other.send(b"x")
    await until(lambda: seen)
    # both were ready: the first has had its turn within the second's wait
    for _ in range(10):
        await asyncio.sleep(0)
    assert [name for name, _ in seen] == ["first"]
    heirs[0].other.send(b"y")
    await until(lambda: len(seen) == 2)
    assert seen[1] == ("heir", b"y")
    for source in (first, *heirs):
        source.close()
    second.other.close()


async def test_who_gets_the_socket_does_not_give_way_and_is_told_what_is_there(reactor):
    seen = []
    one = Giving(reactor, "one", seen)

    class Heir:
        def on_event(self, events):
            seen.append(("heir", one.mine.recv(100)))

        def abort(self, why):
            raise AssertionError(why)

    one.other.send(b"x")
    heir = Heir()
    reactor.hand_over(one.mine, IN | EDGE, heir)
    assert reactor._sources[one.mine.fileno()] is heir
    await until(lambda: seen)
    assert seen == [("heir", b"x")]
    one.close()


async def test_who_gives_way_no_more_is_served_with_the_others(reactor):
    seen = []
    giving = [Giving(reactor, name, seen) for name in range(20)]
    one = Giving(reactor, "one", seen, 0.0)
    reactor.give_way_no_more(one.mine)
    assert reactor._sources[one.mine.fileno()] is one
    giving[0].first = lambda: one.other.send(b"x")
    for source in giving:
        source.other.send(b"x")
    await until(lambda: len(seen) == 21)
    assert [name for name, _ in seen] == [0, "one", *range(1, 20)]
    for source in (one, *giving):
        source.close()


async def test_what_was_to_be_told_of_one_who_gives_way_no_more_is_not_lost(reactor):
    """It is readable once, and would never be told again."""
    seen = []
    two = Giving(reactor, "two", seen)

    def no_more():
        assert reactor._sources[two.mine.fileno()].waits, "its turn is yet to come"
        reactor.give_way_no_more(two.mine)

    one = Giving(reactor, "one", seen, first=no_more)
    one.other.send(b"x")
    two.other.send(b"y")
    await until(lambda: len(seen) == 2)
    assert seen == [("one", b"x"), ("two", b"y")]
    assert reactor._sources[two.mine.fileno()] is two
    one.close()
    two.close()


async def test_who_begins_to_give_way_again_before_that_goes_on_with_it(reactor):
    seen = []
    two = Giving(reactor, "two", seen)

    def no_more_and_again():
        reactor.give_way_no_more(two.mine)
        reactor.give_way(two.mine)

    one = Giving(reactor, "one", seen, first=no_more_and_again)
    one.other.send(b"x")
    two.other.send(b"y")
    await until(lambda: len(seen) == 2)
    assert reactor._sources[two.mine.fileno()] is not two
    reactor.give_way_no_more(one.mine)
    reactor.give_way_no_more(one.mine)
    assert reactor._sources[one.mine.fileno()] is one
    one.close()
    two.close()


@pytest.mark.parametrize("change", ["give_way", "give_way_no_more"])
async def test_who_changes_that_while_it_waits_in_a_batch_that_was_cut_is_told_all_the_same(reactor, change):
    """It is readable once, and would never be told again."""
    seen = []

    one = Giving(reactor, "one", seen)
    slow = Slow(reactor, "slow", 0.01, seen, IN | EDGE)  # longer than a turn: what is behind it comes later
    two = Slow(reactor, "two", 0.0, seen, IN | EDGE)
    if change == "give_way_no_more":
        reactor.give_way(two.mine)

    def first():
        lefts.append(len(reactor._left))
        getattr(reactor, change)(two.mine)

    lefts, one.first = [], first
    for source in (one, slow, two):
        source.other.send(b"x")
    await until(lambda: len(seen) == 3)
    assert sorted(name for name, _ in seen) == ["one", "slow", "two"]
    assert lefts[0] >= 1, "there was such a batch"
    for source in (one, slow, two):
        source.close()


async def test_one_may_give_way_no_more_while_it_has_its_turn_or_be_gone_then(reactor):
    seen = []
    one = Giving(reactor, "one", seen)
    one.first = lambda: reactor.give_way_no_more(one.mine)
    one.other.send(b"x")
    await until(lambda: seen)
    assert reactor._sources[one.mine.fileno()] is one

    class Ends(Giving):
        def on_event(self, events):
            seen.append("ends")
            reactor.give_way_no_more(self.mine)
            descriptors.append(self.mine.fileno())
            reactor.close(self.mine)

    descriptors = []
    ends = Ends(reactor, "ends", seen)
    reactor._sources[ends.mine.fileno()].on_event(IN)
    reactor.give_way_no_more(ends.mine)
    await until(lambda: descriptors)
    assert descriptors[0] not in reactor._sources
    ends.other.close()
    one.close()


async def test_a_fault_of_one_that_gives_way_ends_it_and_no_other(reactor, caplog):
    seen, ended = [], []

    class Faulty(Giving):
        def on_event(self, events):
            raise RuntimeError("a fault")

        def abort(self, why):
            ended.append(why)
            self.close()

    faulty, sound = Faulty(reactor, "faulty", seen), Giving(reactor, "sound", seen)
    faulty.other.send(b"x")
    sound.other.send(b"x")
    await until(lambda: seen and ended)
    assert ended == ["internal fault"]
    assert [name for name, _ in seen] == ["sound"]
    assert "please report it" in caplog.text
    sound.close()


async def test_the_end_of_all_reaches_those_who_give_way():
    ended = []

    class Last(Giving):
        def abort(self, why):
            ended.append(why)
            self.close()

    reactor = Reactor()
    reactor.start(asyncio.get_running_loop())
    Last(reactor, "last", [])
    reactor.stop()
    assert ended == ["the data path stops"]


async def test_there_is_one_turn_in_an_iteration_of_the_loop(reactor):
    """What is readable and what is left over are one reason each; both together are no reason for two."""
    seen = []
    for name in range(20):
        reactor.call_later(0.0, Busy(reactor, name, 0.003, 2, seen).pump)
    sources = [Slow(reactor, f"source {name}", 0.003, seen, IN) for name in range(3)]
    for source in sources:
        source.other.send(b"x")
    async with asyncio.timeout(60):
        while len(seen) < 43:
            before = reactor.batches
            await asyncio.sleep(0)
            assert reactor.batches - before <= 1, "each of them takes longer than a turn"
    for source in sources:
        source.close()
