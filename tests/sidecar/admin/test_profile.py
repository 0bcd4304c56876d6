"""A profile shows where the loop's thread is, one at a time."""

from __future__ import annotations

import asyncio
import re

from sidecar.admin.profile import Sampler


def busy(turns):
    return sum(index * index for index in range(turns))


async def test_what_takes_the_time_is_seen_in_folded_stacks():
    sampler = Sampler()
    profile = asyncio.create_task(sampler.run(1.0))
    while not profile.done():
        busy(20_000)
        await asyncio.sleep(0)
    stacks = (await profile).splitlines()
    assert stacks
    assert all(re.fullmatch(r"\S+ [1-9]\d*", line) for line in stacks)
    assert any("test_profile.busy" in line for line in stacks)
    assert not sampler.running


async def test_who_leaves_ends_it():
    sampler = Sampler()
    profile = asyncio.create_task(sampler.run(60))
    await asyncio.sleep(0)
    assert sampler.running
    profile.cancel()
    await asyncio.gather(profile, return_exceptions=True)
    assert not sampler.running
