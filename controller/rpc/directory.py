"""Tells sidecars who answers at the addresses that they ask for, and of changes to those alone.

A watch holds a bounded set of addresses. What changed waits as a set of addresses, never as a queue of answers: a slow
sidecar gets the newest answer late, and no answer twice.

When the inventory changes, every watched address is looked at again. That is done in small slices, one stream at a time
in the whole controller and with everybody else's turn between two: streams that watch as much as they may make their
own answers late, and nothing else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Protocol

import grpc

from controller.engine import Subscription
from controller.rpc.answers import Answers, Target, same
from controller.rpc.caller import Caller, Refused
from controller.rpc.gate import Context, Gate, Outgoing, answered
from controller.together import until_one_ends
from controller.view import View
from graph.directory import Destination
from graph.errors import InvalidValue
from graph.model import Protocol as Transport
from graph.wire import hedgerow_pb2 as pb
from graph.wire import hedgerow_pb2_grpc as rpc

#: The most addresses that one stream may watch. Sidecars let go what they do not use at 4096.
MAX_WATCHED = 8192
#: Seconds that looking at addresses may keep everything else waiting.
SLICE = 0.002


class Changes(Protocol):
    """What the directory asks of the engine."""

    @property
    def view(self) -> View: ...

    def subscribe(self, limit: int = 256) -> Subscription: ...


def target_of(request: pb.ResolveRequest) -> Target:
    """Read a question.

    :raises InvalidValue: naming the field
    """
    if request.protocol not in list(Transport):
        raise InvalidValue("protocol", f"{request.protocol!r:.40} is not a protocol", "use TCP, UDP or SCTP")
    return request.address, request.port, Transport(request.protocol)


class DirectoryService(rpc.DirectoryServicer):
    """Serves ``Directory.Resolve`` and ``Directory.Watch``."""

    def __init__(self, engine: Changes, gate: Gate, max_watched: int = MAX_WATCHED) -> None:
        self._engine = engine
        self._gate = gate
        self._max_watched = max_watched
        self._answers = Answers(lambda: engine.view.inventory)
        self._turn = asyncio.Lock()

    async def Resolve(self, request: pb.ResolveRequest, context: Context) -> pb.Destination:
        async with answered(context):
            await self._gate.admitted(context)
            target = target_of(request)
            return self._answers.message(target, self._resolve(target))
        raise AssertionError("answered() does not swallow")  # for the type checker: abort always raises

    async def Watch(self, requests: AsyncIterator[pb.WatchRequest], context: Context) -> None:
        async def serve(_: Caller, outgoing: Outgoing) -> None:
            watch = self.watch()
            async with self._engine.subscribe() as changes:
                await until_one_ends(watch.read(requests), watch.follow(changes), watch.write(outgoing))

        async with answered(context):
            await self._gate.stream(context, "directory", serve)

    def watch(self) -> _Watch:
        """What one stream watches: nothing yet."""
        return _Watch(self._resolve, self._answers.message, self._turn, self._max_watched)

    def _resolve(self, target: Target) -> Destination:
        return self._answers.of(target)


class _Watch:
    """One stream: what it watches, what it was told last, and what it has to be told."""

    def __init__(
        self,
        resolve: Callable[[Target], Destination],
        written: Callable[[Target, Destination], pb.Destination],
        turn: asyncio.Lock,
        limit: int,
    ) -> None:
        self._resolve = resolve
        self._written = written
        self._turn = turn
        self._limit = limit
        self._told: dict[Target, Destination | None] = {}
        self._due: dict[Target, None] = {}
        self._wake = asyncio.Event()

    async def read(self, requests: AsyncIterator[pb.WatchRequest]) -> None:
        async for request in requests:
            target = target_of(request.target)
            if request.remove:
                self._told.pop(target, None)
                self._due.pop(target, None)
                continue
            self._resolve(target)  # refuses what is no address before it is remembered
            if target not in self._told and len(self._told) >= self._limit:
                raise Refused(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"target: {self._limit} addresses are watched already; remove those that are not used",
                )
            self._told[target] = None  # asked again: told again
            self._mark(target)

    async def follow(self, changes: Subscription) -> None:
        async for change in changes:
            if change.inventory or change.resync:
                for target in self._told:
                    self._mark(target)
        raise Refused(grpc.StatusCode.UNAVAILABLE, "the controller is stopping")

    async def write(self, outgoing: Outgoing) -> None:
        while True:
            while self._due:
                async with self._turn:
                    found = self._slice()
                    await asyncio.sleep(0)
                for answer in found:
                    await outgoing.write(answer)
            self._wake.clear()
            await self._wake.wait()

    def _slice(self) -> list[pb.Destination]:
        """What has to be told of some of the addresses that are due."""
        found: list[pb.Destination] = []
        ends = time.monotonic() + SLICE
        while self._due and time.monotonic() < ends:
            target = next(iter(self._due))
            del self._due[target]
            answer = self._resolve(target)
            told = self._told.get(target, answer)
            if told is not answer:  # nor is it watched no more
                self._told[target] = answer  # and if it says the same: all streams hold one
                if not same(told, answer):
                    found.append(self._written(target, answer))
        return found

    def _mark(self, target: Target) -> None:
        self._due[target] = None
        self._wake.set()
