"""Who holds what he does not take is ended in time and not before; want of memory keeps out only what is new."""

from __future__ import annotations

import asyncio
import logging

import pytest

from graph.model import Direction, Mode, Peer, Snapshot, WorkloadRef
from sidecar.dataplane.guards import LOOKS, Budget, Counters, Guards
from sidecar.dataplane.live import Connections, new_record
from sidecar.dataplane.settings import DataPlaneSettings
from tests.sidecar.dataplane.stand_ins import FlowList, HeldPolicy

CART = WorkloadRef("shop", "cart")


class Holder:
    """Holds what it is told to and gives it up when it is ended."""

    def __init__(self, budget):
        self.budget = budget
        self.ended = ""

    def abort(self, why):
        self.ended = why
        self.budget.drop(self)


@pytest.fixture
def budget():
    return Budget(1000, Counters())


def test_what_is_held_and_taken_adds_up(budget):
    first, second = Holder(budget), Holder(budget)
    assert budget.hold(first, 600)
    assert budget.hold(second, 300)
    assert budget.hold(first, 100)
    assert (budget.left, budget.holders) == (0, 2)
    budget.release(first, 700)
    assert (budget.left, budget.holders) == (700, 1)
    budget.drop(second)
    budget.drop(second)
    assert (budget.left, budget.holders) == (1000, 0)


def test_beyond_the_budget_nothing_is_held_and_that_is_counted(budget):
    holder = Holder(budget)
    assert not budget.hold(holder, 1001)
    assert (budget.left, budget.holders, budget.counters.buffers_exhausted) == (1000, 0, 1)


def test_a_receiver_that_takes_nothing_is_ended_after_the_limit_and_not_before(budget):
    holder = Holder(budget)
    budget.hold(holder, 10)
    for now in (100.0, 101.0, 102.0, 103.0, 103.9):
        budget.look(now, 4.0)
        assert not holder.ended
    budget.look(104.0, 4.0)
    assert holder.ended == "the receiver took nothing for 4 s"
    assert (budget.left, budget.holders, budget.counters.slow_readers_ended) == (1000, 0, 1)
    budget.look(200.0, 4.0)
    assert budget.counters.slow_readers_ended == 1


def test_a_receiver_that_takes_a_byte_now_and_then_stays(budget):
    holder = Holder(budget)
    budget.hold(holder, 100)
    for now in range(50):
        budget.look(float(now), 2.0)
        if now % 2:
            budget.release(holder, 1)
            budget.hold(holder, 1)
    assert not holder.ended


def test_what_comes_for_a_receiver_that_takes_nothing_gives_it_no_time(budget):
    holder = Holder(budget)
    for now in range(6):
        budget.hold(holder, 1)
        budget.look(float(now), 4.0)
    assert holder.ended


def test_one_that_takes_all_and_waits_again_has_the_whole_time_again(budget):
    holder = Holder(budget)
    budget.hold(holder, 10)
    budget.look(0.0, 4.0)
    budget.release(holder, 10)
    budget.hold(holder, 10)
    budget.look(4.0, 4.0)
    assert not holder.ended
    budget.look(8.0, 4.0)
    assert holder.ended


def test_ending_one_may_end_another(budget):
    first, second = Holder(budget), Holder(budget)
    first.abort = lambda why: (Holder.abort(first, why), Holder.abort(second, why))
    budget.hold(first, 1)
    budget.hold(second, 1)
    budget.look(0.0, 1.0)
    budget.look(9.0, 1.0)
    assert (budget.holders, budget.counters.slow_readers_ended) == (0, 1)


# --- idle connections


def register_with_one():
    policy = HeldPolicy(Snapshot(CART, "hedgerow.test", 1, Mode.LEARN, Mode.LEARN))
    register = Connections(policy, FlowList())
    ended = []
    record = new_record(Direction.INBOUND, Peer(address="10.0.0.1"), Peer(CART), 80)
    connection = register.judge(record, lambda connection: (ended.append(True), connection.finish()))
    return register, connection, ended


def test_a_connection_that_carries_nothing_is_ended_after_so_many_looks():
    register, _, ended = register_with_one()
    assert [register.end_idle(LOOKS) for _ in range(LOOKS)] == [0] * LOOKS, "the first look only begins"
    assert not ended
    assert register.end_idle(LOOKS) == 1
    assert ended
    assert register.count == 0
    assert register.end_idle(LOOKS) == 0


@pytest.mark.parametrize("counter", ["bytes_sent", "bytes_received"])
def test_a_byte_in_either_direction_keeps_it(counter):
    register, connection, ended = register_with_one()
    for look in range(LOOKS * 10):
        if look % LOOKS == 0:
            setattr(connection.record, counter, getattr(connection.record, counter) + 1)
        register.end_idle(LOOKS)
    assert not ended


# --- memory


class Gauge:
    def __init__(self, limit=1000):
        self.limit = limit
        self.now = 0
        self.closed = False

    def used(self):
        if isinstance(self.now, Exception):
            raise self.now
        return self.now

    def close(self):
        self.closed = True


def guarded(**settings):
    gauge, given_back = Gauge(), []
    made = Guards(DataPlaneSettings(**settings), gauge, lambda: given_back.append(gauge.now))
    return made, gauge, given_back


def test_above_the_high_mark_nothing_new_is_taken_until_below_the_low_one(caplog):
    guards, gauge, given_back = guarded(memory_high=0.9, memory_low=0.8)
    seen = []
    for used in (0, 899, 900, 850, 800, 799, 899, 950):
        gauge.now = used
        guards.look_at_memory()
        seen.append(guards.shedding)
    assert seen == [False, False, True, True, True, False, False, True]
    assert given_back == [850, 800, 799], "what is free goes back to the kernel while it is short"
    said = [(record.levelno, record.message) for record in caplog.records]
    assert [level for level, _ in said] == [logging.ERROR, logging.WARNING, logging.ERROR]
    assert "memory is short" in said[0][1]
    assert "memory is there again" in said[1][1]


@pytest.mark.parametrize("error", [OSError("gone"), ValueError("words")])
def test_memory_that_can_not_be_read_keeps_nobody_out(error, caplog):
    guards, gauge, _ = guarded()
    gauge.now = 1000
    guards.look_at_memory()
    assert guards.shedding
    gauge.now = error
    guards.look_at_memory()
    guards.look_at_memory()
    assert not guards.shedding
    assert sum("can not be watched" in record.message for record in caplog.records) == 1


async def test_the_looks_are_taken_by_themselves_and_end_with_the_data_path():
    guards, gauge, _ = guarded(connection_idle=0.04, slow_reader=0.04)
    holder = Holder(guards.budget)
    guards.budget.hold(holder, 1)
    gauge.now = 1000
    looked = asyncio.Event()

    def end_idle(looks):
        assert looks == LOOKS
        looked.set()
        return 2

    guards.start(asyncio.get_running_loop(), end_idle)
    assert guards.shedding, "the first look at memory is the start's"
    async with asyncio.timeout(60):
        await looked.wait()
        while not holder.ended:  # noqa: ASYNC110  # nobody tells of it
            await asyncio.sleep(0.005)
    assert guards.counters.idle_ended >= 2
    assert guards.counters.slow_readers_ended == 1
    guards.stop()
    assert gauge.closed
    before = guards.counters.idle_ended
    looked.clear()
    await asyncio.sleep(0.05)
    assert not looked.is_set()
    assert guards.counters.idle_ended == before


async def test_a_limit_of_0_is_never_looked_at():
    gauge = Gauge(0)
    guards = Guards(DataPlaneSettings(connection_idle=0, slow_reader=0), gauge)
    gauge.now = AssertionError("nobody asked")
    guards.start(asyncio.get_running_loop(), lambda looks: pytest.fail("it looked"))
    await asyncio.sleep(0.02)
    guards.look_at_memory()
    guards.stop()
