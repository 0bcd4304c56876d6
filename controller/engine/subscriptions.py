"""How changes reach those who wait for them, without ever making the engine wait.

A :class:`Subscription` has a bounded queue: when it is full everything in it is replaced by one ``resync`` change. A
:class:`SnapshotWatch` has one slot, which a newer snapshot overwrites. Both live on the engine's event loop.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from controller.view import Change
from graph.model import Snapshot, WorkloadRef


class _Waiting[T](ABC):
    """An async iterator of what the engine offers, and a context manager that leaves; it ends when the engine stops."""

    def __init__(self, leave: Callable[[], None]) -> None:
        self._arrived = asyncio.Event()
        self._ended = False
        self._leave = leave

    @abstractmethod
    def _next(self) -> T | None:
        """Take out what comes next; None when there is nothing."""

    def end(self) -> None:
        """Called by the engine when it stops."""
        self._ended = True
        self._arrived.set()

    def close(self) -> None:
        """Leave. Harmless when done twice."""
        self.end()
        self._leave()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while (found := self._next()) is None:
            if self._ended:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        return found

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Subscription(_Waiting[Change]):
    """Every :class:`~controller.view.Change` from now on."""

    def __init__(self, limit: int, leave: Callable[[Subscription], None]) -> None:
        super().__init__(lambda: leave(self))
        self._waiting: deque[Change] = deque()
        self._limit = limit

    def offer(self, change: Change) -> None:
        """Called by the engine; never blocks."""
        if len(self._waiting) >= self._limit or (self._waiting and self._waiting[0].resync):
            self._waiting.clear()
            change = Change(generation=change.generation, at=change.at, resync=True)
        self._waiting.append(change)
        self._arrived.set()

    def _next(self) -> Change | None:
        return self._waiting.popleft() if self._waiting else None


class SnapshotWatch(_Waiting[Snapshot]):
    """The newest snapshot of one workload; versions in between may be skipped.

    The present snapshot comes first, at once, where there is one.
    """

    def __init__(self, workload: WorkloadRef, present: Snapshot | None, leave: Callable[[SnapshotWatch], None]) -> None:
        super().__init__(lambda: leave(self))
        self.workload = workload
        self._slot = present

    def offer(self, snapshot: Snapshot) -> None:
        """Called by the engine; never blocks."""
        self._slot = snapshot
        self._arrived.set()

    def _next(self) -> Snapshot | None:
        found, self._slot = self._slot, None
        return found
