"""The steps of the end, and when each is over."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from sidecar import ending
from sidecar.capture_settings import Capture
from sidecar.life import Life
from tests.sidecar.test_main import SETTINGS

LONG = 3600.0


async def never():
    await asyncio.Event().wait()


async def at_once():
    pass


async def fails():
    raise OSError(13, "Permission denied")


async def over(work):
    """That it returns by itself, long before its time is over."""
    await asyncio.wait_for(work, 20)


async def lasts(work):
    task = asyncio.ensure_future(work)
    for _ in range(20):
        await asyncio.sleep(0)
    assert not task.done()
    return task


async def test_nothing_is_held_for_unless_it_is_asked_for():
    await over(ending.hold(SETTINGS, Life(), never))


async def test_it_holds_until_the_time_is_over_the_application_has_ended_or_it_is_told_again():
    await over(ending.hold(replace(SETTINGS, hold_seconds=0.01), Life(), never))
    settings = replace(SETTINGS, hold_seconds=LONG)
    await over(ending.hold(settings, Life(), at_once))
    life = Life()
    life.end()
    task = await lasts(ending.hold(settings, life, never))
    life.end()
    await over(task)


async def test_it_does_not_hold_for_a_successor():
    life = Life()
    life.replaced = True
    await over(ending.hold(replace(SETTINGS, hold_seconds=LONG), life, never))


@pytest.mark.parametrize("changes", [{"capture": Capture.EXPLICIT}, {"mark": 7}])
async def test_an_application_that_is_not_told_from_us_is_held_for_all_the_time(changes):
    settings = replace(SETTINGS, hold_seconds=LONG, **changes)
    (await lasts(ending.hold(settings, Life(), at_once))).cancel()


async def test_an_application_that_can_not_be_looked_for_counts_as_running(caplog):
    settings = replace(SETTINGS, hold_seconds=LONG, drain_seconds=LONG, exit_with_application=True)
    for work in (ending.hold(settings, Life(), fails), ending.drain(settings, Life(), at_once(), fails)):
        task = asyncio.ensure_future(work)
        async with asyncio.timeout(20):
            while "Permission denied" not in caplog.text:  # noqa: ASYNC110  # a log record is no event
                await asyncio.sleep(0.001)
        (await lasts(task)).cancel()
        caplog.clear()


async def test_draining_ends_with_what_runs_or_when_told_again():
    settings = replace(SETTINGS, drain_seconds=LONG)
    await over(ending.drain(settings, Life(), at_once(), never))
    life = Life()
    life.end()
    task = await lasts(ending.drain(settings, life, never(), never))
    life.end()
    await over(task)


async def test_draining_can_wait_for_the_application_too():
    settings = replace(SETTINGS, drain_seconds=LONG, exit_with_application=True)
    ended = asyncio.Event()

    async def application():
        await ended.wait()

    task = await lasts(ending.drain(settings, Life(), at_once(), application))
    ended.set()
    await over(task)
    await over(ending.drain(replace(settings, drain_seconds=0.01), Life(), at_once(), never))
    life = Life()
    life.replaced = True
    await over(ending.drain(settings, life, at_once(), never))


async def test_a_fault_of_the_data_path_is_told():
    with pytest.raises(OSError, match="Permission denied"):
        await ending.drain(SETTINGS, Life(), fails(), never)
