"""How changes reach those who wait for them, without ever making the engine wait.

A :class:`Subscription` has a bounded queue: when it is full everything in it is replaced by one ``resync`` change. A
:class:`SnapshotWatch` has one slot, which a newer snapshot overwrites. Both live on the engine's event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from controller.view import Change
from graph.model import Snapshot, WorkloadRef


class Subscription:
    """An async iterator of :class:`~controller.view.Change`; a context manager that unsubscribes.

    It ends when the engine stops.
    """

    def __init__(self, limit: int, leave: Callable[[Subscription], None]) -> None:
        self._waiting: deque[Change] = deque()
        self._limit = limit
        self._arrived = asyncio.Event()
        self._ended = False
        self._leave = leave

    def offer(self, change: Change) -> None:
        """Called by the engine; never blocks."""
        if len(self._waiting) >= self._limit or (self._waiting and self._waiting[0].resync):
            self._waiting.clear()
            change = Change(generation=change.generation, at=change.at, resync=True)
        self._waiting.append(change)
        self._arrived.set()

    def end(self) -> None:
        """Called by the engine when it stops."""
        self._ended = True
        self._arrived.set()

    def close(self) -> None:
        """Unsubscribe. Harmless when done twice."""
        self.end()
        self._leave(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        while not self._waiting:
            if self._ended:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        return self._waiting.popleft()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SnapshotWatch:
    """The newest snapshot of one workload, as an async iterator; versions in between may be skipped.

    The present snapshot comes first, at once, where there is one.
    """

    def __init__(self, workload: WorkloadRef, present: Snapshot | None, leave: Callable[[SnapshotWatch], None]) -> None:
        self.workload = workload
        self._slot = present
        self._arrived = asyncio.Event()
        self._ended = False
        self._leave = leave

    def offer(self, snapshot: Snapshot) -> None:
        """Called by the engine; never blocks."""
        self._slot = snapshot
        self._arrived.set()

    def end(self) -> None:
        self._ended = True
        self._arrived.set()

    def close(self) -> None:
        """Stop watching. Harmless when done twice."""
        self.end()
        self._leave(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Snapshot:
        while self._slot is None:
            if self._ended:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        snapshot, self._slot = self._slot, None
        return snapshot

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
