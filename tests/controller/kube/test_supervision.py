"""Parts that fail are begun again, each by itself, and complain no more than is useful."""

from __future__ import annotations

import asyncio
import logging
from random import Random

import pytest

from controller.kube.errors import Forbidden, Unreachable
from controller.kube.retry import Retry
from controller.kube.supervision import Complaints, Supervision


class Failing:
    """Fails as it is told, then works."""

    def __init__(self, name, *failures):
        self.name = name
        self.synced = False
        self.well = asyncio.Event()
        self._failures = list(failures)

    async def run(self):
        if self._failures:
            failure = self._failures.pop(0)
            if failure is None:
                return
            raise failure
        self.synced = True
        self.well.set()
        await asyncio.Event().wait()


async def run(*parts):
    supervision = Supervision(parts, asyncio.get_running_loop().time, Random(1))
    task = asyncio.create_task(supervision.run())
    async with asyncio.timeout(30):
        await asyncio.gather(*(part.well.wait() for part in parts))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return supervision


async def test_a_part_that_fails_is_begun_again_and_stops_nobody(caplog):
    good, bad = Failing("good"), Failing("bad", Forbidden("no"), ValueError("a bug"), None)
    supervision = await run(good, bad)
    assert supervision.synced
    failures = {each.part.name: each.failures for each in supervision.parts}
    assert failures == {"good": 0, "bad": 3}
    said = {each.part.name: each.problem for each in supervision.parts}
    assert said == {"good": "", "bad": "it ended by itself"}, "what it was last"
    assert [each.failed is None for each in supervision.parts] == [True, False]
    faults = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert [each.exc_info[0] for each in faults] == [ValueError], "only a bug has a trace"


async def test_a_server_that_is_away_is_one_complaint_and_not_one_a_part(caplog):
    caplog.set_level(logging.WARNING)
    await run(*(Failing(f"watch {n}", Unreachable(f"{n} is away")) for n in range(5)))
    assert len(caplog.records) == 1


async def test_who_waits_and_why_can_be_asked():
    part = Failing("one", Forbidden("add the rule"))
    supervision = Supervision([part], asyncio.get_running_loop().time, Random(1))
    assert supervision.waiting() == {"one": ""}
    assert not supervision.synced
    task = asyncio.create_task(supervision.run())
    async with asyncio.timeout(30):
        await part.well.wait()
    assert supervision.waiting() == {}
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_the_same_complaint_is_made_again_after_a_while():
    complaints = Complaints()
    assert [complaints.is_new("x", now) for now in (0, 1, 59, 61, 62)] == [True, False, False, True, False]


def test_waits_double_are_spread_and_never_shorter_than_the_server_asks():
    retry = Retry(Random(1), first=1.0, longest=8.0)
    for longest in (1, 2, 4, 8, 8):
        assert longest / 2 <= retry.failed() <= longest
    assert retry.failed(asked=60.0) == 60.0
    assert retry.failed(asked=10_000.0) == 120.0
    retry.succeeded()
    assert retry.failed() <= 1


@pytest.mark.parametrize("seed", range(5))
def test_waits_of_many_are_not_alike(seed):
    assert len({Retry(Random(seed * 100 + n)).failed() for n in range(20)}) > 15
