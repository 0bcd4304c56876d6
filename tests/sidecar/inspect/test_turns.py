"""Turns: all busy connections together get what one would get in an iteration of the loop."""

from __future__ import annotations

import asyncio
from time import monotonic

from sidecar.inspect.turns import Turns

SLICE = 0.001


def work(seconds: float) -> float:
    began = monotonic()
    while monotonic() - began < seconds:
        pass
    return monotonic() - began


async def test_who_comes_first_is_served_at_once_until_a_slice_is_used():
    loop, turns = asyncio.get_running_loop(), Turns(SLICE)
    assert turns.free
    turns.used(loop, SLICE / 2)
    assert turns.free
    turns.used(loop, SLICE)
    assert not turns.free
    await asyncio.sleep(0)
    assert turns.free, "it is another iteration"


async def test_who_waits_goes_before_who_comes():
    loop, turns, called = asyncio.get_running_loop(), Turns(SLICE), []
    turns.wait(loop, lambda: called.append(1))
    assert not turns.free
    assert not called, "not within the call"
    await asyncio.sleep(0)
    assert called == [1]
    assert turns.free


async def test_those_who_wait_share_an_iteration_and_go_round():
    loop, turns, called = asyncio.get_running_loop(), Turns(SLICE), []

    def busy(name: str, times: int) -> None:
        called.append(name)
        turns.used(loop, work(SLICE * 1.5))
        if times > 1:
            turns.wait(loop, lambda: busy(name, times - 1))

    for name in "abc":
        turns.wait(loop, lambda name=name: busy(name, 2))
    iterations = 0
    while len(called) < 6:
        before = len(called)
        await asyncio.sleep(0)
        iterations += 1
        assert len(called) - before <= 1, "each of them uses more than a slice"
    assert called == list("abcabc")
    assert iterations >= 6


async def test_one_who_waits_again_does_not_go_twice_in_one_iteration():
    loop, turns, called = asyncio.get_running_loop(), Turns(60.0), []

    def again() -> None:
        called.append(1)
        if len(called) < 3:
            turns.wait(loop, again)

    turns.wait(loop, again)
    for expected in (1, 2, 3):
        await asyncio.sleep(0)
        assert len(called) == expected
