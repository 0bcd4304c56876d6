"""What is due is done in slices, each in its turn, and nothing of it is forgotten."""

from __future__ import annotations

import asyncio
import gc

import pytest

from sidecar.dataplane.chores import Chores, at_once
from tests.sidecar.dataplane.timers import Loop


class Turns:
    """Has the chores done when it is told to."""

    def __init__(self):
        self.woken = 0
        self.chores = Chores(self._wake)

    def _wake(self):
        self.woken += 1

    def rest(self):
        """Turn until nothing is left; answers with how many turns that took."""
        for turns in range(1, 10_000):
            self.chores.work(0.0)
            if not self.chores:
                return turns
        raise AssertionError("it never ends")


def test_what_is_due_first_is_done_first_and_one_step_is_done_in_a_turn_however_short_it_is():
    turns, seen = Turns(), []
    for number in range(5):
        turns.chores.soon(seen.append, number)
    assert turns.woken == 1
    assert turns.chores
    turns.chores.work(0.0)
    assert seen == [0]
    assert turns.rest() == 4
    assert seen == [0, 1, 2, 3, 4]
    turns.chores.soon(seen.append, 5)
    assert turns.woken == 2, "there was nothing to do meanwhile"


def test_as_much_is_done_in_a_turn_as_there_is_time_for():
    turns, seen = Turns(), []
    for number in range(100):
        turns.chores.soon(seen.append, number)
    turns.chores.work(60.0)
    assert len(seen) == 100


def test_jobs_of_many_steps_take_turns():
    turns, seen = Turns(), []

    def job(name, steps):
        for step in range(steps):
            seen.append(f"{name}{step}")
            yield

    turns.chores.begin(job("a", 3))
    turns.chores.begin(job("b", 2))
    turns.chores.soon(seen.append, "c")
    turns.rest()
    assert seen == ["a0", "b0", "c", "a1", "b1", "a2"]


def test_a_fault_ends_what_it_is_in_and_nothing_else(caplog):
    turns, seen = Turns(), []

    def job():
        yield
        raise ValueError("a fault")

    turns.chores.begin(job())
    turns.chores.soon(int, "no number")
    turns.chores.soon(seen.append, 1)
    turns.rest()
    assert seen == [1]
    assert caplog.text.count("please report it") == 2


async def test_an_alarm_rings_in_its_turn_and_not_after_it_was_cancelled():
    loop, turns, seen = asyncio.get_running_loop(), Turns(), []
    alarms = [turns.chores.later(loop, 0.0, seen.append, number) for number in range(3)]
    alarms[0].cancel()
    async with asyncio.timeout(60):
        while not turns.chores:  # noqa: ASYNC110  # nobody tells of it
            await asyncio.sleep(0)
    assert not seen, "its time has come, and its turn has not"
    alarms[1].cancel()
    async with asyncio.timeout(60):
        while not seen:
            turns.chores.work()
            await asyncio.sleep(0)
    assert seen == [2]
    for alarm in alarms:
        alarm.cancel()
    turns.chores.work()
    assert seen == [2]


async def test_an_alarm_keeps_nothing_alive_when_it_is_over():
    loop, turns = asyncio.get_running_loop(), Turns()

    class Owner:
        alive = 0

        def __init__(self):
            Owner.alive += 1
            self.alarm = turns.chores.later(loop, 60.0, self.ring)

        def __del__(self):
            Owner.alive -= 1

        def ring(self):
            pass

    gc.disable()
    try:
        cancelled, rung = Owner(), Owner()
        cancelled.alarm.cancel()
        rung.alarm.ring()
        rung.alarm.cancel()
        del cancelled, rung
        assert Owner.alive == 0
    finally:
        gc.enable()


def test_those_who_wait_for_the_same_time_have_one_timer_and_ring_when_they_are_due():
    loop, turns, rung = Loop(), Turns(), []
    for _ in range(50):
        due = loop.now + 3.0
        turns.chores.later(loop, 3.0, lambda due=due: rung.append((due, loop.now)))
        loop.advance(0.25)
        turns.chores.work(60.0)
        assert len(loop.timers) == 1
    while loop.timers:
        loop.advance(0.0625)
        turns.chores.work(60.0)
    assert len(rung) == 50
    assert [due for due, _ in rung] == sorted(due for due, _ in rung)
    for due, now in rung:
        assert due <= now < due + 0.25


def test_who_waits_longer_or_shorter_rings_in_the_order_of_time():
    loop, turns, rung = Loop(), Turns(), []
    for name, delay in (("long", 5.0), ("short", 1.0), ("middle", 2.0), ("short too", 1.0)):
        turns.chores.later(loop, delay, rung.append, name)
    assert len(loop.timers) == 3
    loop.advance(1.0)
    turns.rest()
    assert rung == ["short", "short too"]
    turns.chores.later(loop, 1.0, rung.append, "one more")
    loop.advance(5.0)
    turns.rest()
    assert rung[2:] == ["middle", "one more", "long"]
    assert not loop.timers


def test_nothing_is_kept_of_those_who_were_cancelled_and_in_the_end_no_timer():
    loop, turns = Loop(), Turns()
    alarms = [turns.chores.later(loop, 3.0, pytest.fail, "it was cancelled") for _ in range(1000)]
    (line,) = turns.chores._lines.values()
    for alarm in alarms:
        alarm.cancel()
        alarm.cancel()
    assert not line._waiting
    loop.advance(3.0)
    assert not loop.timers
    assert not turns.chores
    assert not turns.chores._lines


def test_the_others_ring_when_the_first_one_was_cancelled():
    loop, turns, rung = Loop(), Turns(), []
    first = turns.chores.later(loop, 3.0, pytest.fail, "it was cancelled")
    loop.advance(1.0)
    turns.chores.later(loop, 3.0, rung.append, 1)
    first.cancel()
    loop.advance(2.5)
    turns.chores.work(60.0)
    assert not rung
    loop.advance(0.5)
    turns.rest()
    assert rung == [1]


def test_thousands_that_are_due_at_once_are_told_a_few_at_a_time():
    loop, turns, rung = Loop(), Turns(), []
    alarms = [turns.chores.later(loop, 3.0, rung.append, number) for number in range(3000)]
    loop.advance(3.0)
    assert len(turns.chores._due) < 300
    alarms[2000].cancel()
    turns.chores.soon(lambda: rung.append("somebody else"))
    turns.rest()
    assert rung.pop(rung.index("somebody else", 0, 300)) == "somebody else", "others have their turn between them"
    assert rung == [number for number in range(3000) if number != 2000]
    assert not loop.timers


def test_an_alarm_may_set_another_one_or_cancel_who_is_due_with_it():
    loop, turns, rung = Loop(), Turns(), []

    def ring():
        rung.append(loop.now)
        alarms[1].cancel()
        turns.chores.later(loop, 3.0, rung.append, "again")

    alarms = [turns.chores.later(loop, 3.0, ring), turns.chores.later(loop, 3.0, pytest.fail, "it was cancelled")]
    loop.advance(3.0)
    turns.rest()
    loop.advance(2.9)
    assert len(rung) == 1
    loop.advance(0.1)
    turns.rest()
    assert rung == [103.0, "again"]


def test_no_timer_is_left_of_what_is_forgotten():
    loop, turns = Loop(), Turns()
    for delay in (1.0, 2.0):
        for _ in range(300):
            turns.chores.later(loop, delay, pytest.fail, "it was forgotten")
    loop.advance(1.0)
    turns.chores.clear()
    assert not loop.timers
    loop.advance(10.0)
    assert not turns.chores


def test_nothing_is_done_of_what_is_forgotten():
    turns = Turns()
    turns.chores.soon(pytest.fail, "it was forgotten")
    turns.chores.clear()
    assert not turns.chores
    turns.chores.work()


def test_where_nobody_waits_it_is_done_at_once():
    seen = []
    at_once(seen.append, 1)
    assert seen == [1]
