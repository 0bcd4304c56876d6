"""Streams that watch as many addresses as they may keep nobody else waiting when the inventory changes."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from controller.rpc.directory import SLICE, DirectoryService
from graph.directory import Destination
from graph.wire import hedgerow_pb2 as pb
from tests.controller.mesh import inventory
from tests.controller.running import eventually

ADDRESSES = 40


class Recorder:
    """Takes what one stream writes, as :class:`controller.rpc.gate.Outgoing` does."""

    def __init__(self) -> None:
        self.told: list[pb.Destination] = []

    async def write(self, message: Any) -> None:
        self.told.append(message)


async def test_everybody_has_a_turn_between_two_slices() -> None:
    world = inventory()
    loop = asyncio.get_running_loop()
    turn = 0
    resolved: Counter[int] = Counter()

    def tick() -> None:
        nonlocal turn, ticking
        turn += 1
        ticking = loop.call_soon(tick)

    def slowly(target: tuple[Any, ...]) -> Destination:
        resolved[turn] += 1
        time.sleep(SLICE / 2)  # as of a service with very many instances
        return world.resolve(*target)

    async def asked() -> AsyncIterator[pb.WatchRequest]:
        for number in range(ADDRESSES):
            yield pb.WatchRequest(target=pb.ResolveRequest(address=f"10.0.1.{number}", port=80, protocol="TCP"))

    service = DirectoryService(None, None)  # no engine: who begins to watch has all of it resolved
    service._resolve = slowly
    watches = [(service.watch(), Recorder()) for _ in range(3)]
    for watch, _ in watches:
        await watch.read(asked())
    resolved.clear()
    ticking = loop.call_soon(tick)
    writing = [asyncio.create_task(watch.write(recorder)) for watch, recorder in watches]
    try:
        await eventually(lambda: all(len(recorder.told) == ADDRESSES for _, recorder in watches))
    finally:
        ticking.cancel()
        for task in writing:
            task.cancel()
        await asyncio.gather(*writing, return_exceptions=True)
    assert resolved.total() == ADDRESSES * len(watches)
    assert max(resolved.values()) <= 2
