"""Namespaces whose turn fails, or lasts, keep nobody waiting."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from controller.kube import turns
from controller.kube.errors import Refused, Unreachable
from controller.kube.turns import Turns


class Visits:
    """What is done for each namespace, as it is told."""

    def __init__(self, **failures):
        self.failures = failures
        self.seen = []
        self.now = 0.0
        self.woken = asyncio.Event()
        self.turns = Turns("trying", self, self.woken.set, lambda: self.now, Random(1))

    async def __call__(self, namespace):
        self.seen.append(namespace)
        found = self.failures.get(namespace)
        if isinstance(found, Exception):
            raise found
        if isinstance(found, asyncio.Event):
            await found.wait()

    async def round(self, *namespaces):
        self.seen.clear()
        await self.turns.round(namespaces)
        return sorted(self.seen)


@pytest.mark.parametrize(
    "failure",
    [Unreachable("failed calling webhook", status=500), Refused("not here"), ValueError("a bug")],
    ids=["500", "refused", "bug"],
)
async def test_who_fails_waits_longer_each_time_and_the_others_do_not(failure):
    visits = Visits(bad=failure)
    assert await visits.round("bad", "good", "other") == ["bad", "good", "other"]
    assert str(failure) in visits.turns.problem("bad")
    assert visits.turns.problem("good") == ""
    assert await visits.round("bad", "good") == ["good"]
    waits = []
    for _ in range(10):
        waited = 0.0
        while await visits.round("bad", "good") == ["good"]:
            visits.now += 0.5
            waited += 0.5
        waits.append(waited)
    assert waits == sorted(waits) or waits[-1] > 25, waits
    assert waits[0] <= turns.FIRST
    assert turns.LONGEST / 2 <= max(waits) <= turns.LONGEST + 0.5
    visits.failures.clear()
    visits.now += turns.LONGEST
    assert await visits.round("bad", "good") == ["bad", "good"]
    assert visits.turns.problem("bad") == ""
    assert await visits.round("bad", "good") == ["bad", "good"], "it is well again"


async def test_a_failed_one_is_tried_again_though_nothing_happens(monkeypatch):
    monkeypatch.setattr(turns, "FIRST", 0.01)
    visits = Visits(bad=Unreachable("no"))
    await visits.round("bad")
    await asyncio.wait_for(visits.woken.wait(), 60)
    await visits.turns.end()


async def test_it_is_tried_at_once_when_all_begins_again():
    visits = Visits(bad=Unreachable("no", retry_after=1000.0))
    await visits.round("bad", "good")
    assert await visits.round("bad", "good") == ["good"]
    visits.turns.begin_again()
    assert await visits.round("bad", "good") == ["bad", "good"]
    visits.now += turns.LONGEST
    assert await visits.round("bad", "good") == ["bad", "good"], "no server keeps us away for longer"
    await visits.turns.end()


async def test_turns_that_last_take_no_places_of_those_that_are_well(monkeypatch):
    monkeypatch.setattr(turns, "PATIENCE", 0.05)
    held = {f"slow-{index}": asyncio.Event() for index in range(turns.WELL - 1)}
    visits = Visits(**held)
    names = [*held, *(f"good-{index}" for index in range(20))]
    assert await visits.round(*names) == sorted(names)
    good = sorted(each for each in names if each.startswith("good"))
    assert await visits.round(*names) == good, "never two of one namespace at a time"
    visits.now += 10.0
    for each in held.values():
        each.set()
    await asyncio.wait_for(visits.woken.wait(), 60)
    for each in held.values():
        each.clear()
    # from now on they are slow, and wait among themselves
    more = {f"late-{index}": asyncio.Event() for index in range(turns.WELL - 1)}
    visits.failures |= more
    found = await visits.round(*names, *more)
    assert set(found) == {*good, *more, *list(held)[: turns.TROUBLED]}
    await visits.turns.end()


async def test_what_is_under_way_ends_with_the_part():
    visits = Visits(slow=asyncio.Event())
    waiting = asyncio.create_task(visits.turns.round(["slow"]))
    while not visits.seen:  # noqa: ASYNC110  # until it is under way
        await asyncio.sleep(0)
    await visits.turns.end()
    await asyncio.wait_for(waiting, 60)
