"""Whose turn it is among inspected connections that have something left to do.

One connection works for a slice of time and then lets others go first; here the same holds for all of them together, so
that a hundred busy connections keep the rest of the data path waiting no longer than one does. Rules:

1. In one iteration of the loop, connections begin work for about a slice of time at once, and for about one more in
   their turn; whoever comes later waits, in the order of coming.
2. While somebody waits, nobody is served at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from time import monotonic


class Turns:
    """Of all inspected connections of one data plane.

    :param slice: seconds of work that may begin at once in one iteration of the loop, and again of work that waited
    """

    __slots__ = ("_scheduled", "_slice", "_used", "_waiting")

    def __init__(self, slice: float) -> None:
        self._slice = slice
        self._used = 0.0
        self._waiting: deque[Callable[[], None]] = deque()
        self._scheduled = False

    @property
    def free(self) -> bool:
        """Whether one who has something to do may do it at once."""
        return not self._waiting and self._used < self._slice

    def used(self, loop: asyncio.AbstractEventLoop, took: float) -> None:
        """Somebody worked for ``took`` seconds."""
        self._used += took
        self._schedule(loop)

    def wait(self, loop: asyncio.AbstractEventLoop, work: Callable[[], None]) -> None:
        """Have ``work`` called when its turn comes; it must not raise."""
        self._waiting.append(work)
        self._schedule(loop)

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._next, loop)

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        """A new iteration."""
        self._scheduled = False
        self._used = 0.0
        end = monotonic() + self._slice
        waiting = self._waiting
        for _ in range(len(waiting)):
            waiting.popleft()()
            if monotonic() >= end:
                break
        if waiting:
            self._schedule(loop)
