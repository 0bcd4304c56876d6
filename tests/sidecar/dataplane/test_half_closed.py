"""One timer for all connections of which a direction has ended."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from sidecar.dataplane.half_closed import HalfClosed
from tests.sidecar.dataplane.timers import Loop


@dataclass(eq=False)
class Some:
    watch: HalfClosed[Some] = field(repr=False)
    bytes: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def carried(self) -> int:
        return self.bytes

    def end(self) -> None:
        self.watch.forget(self)
        self.ended.set()


def watched(limit: float = 10.0) -> tuple[Loop, HalfClosed[Some], list[int]]:
    counted: list[int] = []
    return Loop(), HalfClosed(limit, lambda: counted.append(1)), counted


def test_each_ends_when_its_own_time_has_come():
    loop, watch, counted = watched()
    first, second = Some(watch), Some(watch)
    watch.watch(first, loop)
    loop.advance(4)
    watch.watch(second, loop)
    loop.advance(5.9)
    assert not first.ended.is_set()
    loop.advance(0.2)
    assert first.ended.is_set()
    assert not second.ended.is_set()
    loop.advance(4)
    assert second.ended.is_set()
    assert len(counted) == 2
    assert not len(watch)
    assert not loop.timers


def test_what_carries_something_stays_for_as_long_again():
    loop, watch, counted = watched()
    one = Some(watch)
    watch.watch(one, loop)
    for _ in range(3):
        one.bytes += 1
        loop.advance(10)
        assert not one.ended.is_set()
    loop.advance(9.9)
    assert not counted
    loop.advance(0.2)
    assert one.ended.is_set()


def test_what_is_over_is_held_no_longer_and_one_timer_serves_all():
    loop, watch, _ = watched()
    for _ in range(1000):
        one = Some(watch)
        watch.watch(one, loop)
        watch.watch(one, loop)
        watch.forget(one)
        watch.forget(one)
    assert not len(watch)
    assert len(loop.timers) == 1
    loop.advance(10)
    assert not loop.timers


def test_one_that_ends_another_with_it():
    loop, watch, counted = watched()
    first, second = Some(watch), Some(watch)
    watch.watch(first, loop)
    watch.watch(second, loop)

    def end_both() -> None:
        watch.forget(second)
        first.ended.set()

    first.end = end_both
    loop.advance(10)
    assert first.ended.is_set()
    assert not second.ended.is_set()
    assert len(counted) == 1


def test_a_limit_of_nothing_watches_nothing():
    loop, watch, _ = watched(0.0)
    watch.watch(Some(watch), loop)
    assert not len(watch)
    assert not loop.timers
