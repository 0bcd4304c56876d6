"""Whose turn it is among inspected connections that have something left to do.

One connection works for a slice of time and then lets others go first; here the same holds for all of them together, so
that a hundred busy connections keep the rest of the data path waiting no longer than one does. Rules:

1. Behind one look at who has become ready (:attr:`sidecar.dataplane.reactor.Reactor.batches`), connections begin work
   for about a slice of time at once; whoever comes later waits, in the order of coming, and is one of the chores of the
   data path (:mod:`sidecar.dataplane.chores`), which are done between two such looks.
2. While somebody waits, nobody is served at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sidecar.dataplane.chores import Chores


class Beat(Protocol):
    """What Turns needs of :class:`sidecar.dataplane.reactor.Reactor`."""

    batches: int
    chores: Chores


class Turns:
    """Of all inspected connections of one data plane.

    :param slice: seconds of work that may begin at once behind one look at who has become ready
    """

    __slots__ = ("_batch", "_slice", "_used", "_waiting")

    def __init__(self, slice: float) -> None:
        self._slice = slice
        self._used = 0.0
        self._batch = -1  # of the reactor, in which that was
        self._waiting = 0

    def free(self, beat: Beat) -> bool:
        """Whether one who has something to do may do it at once."""
        return not self._waiting and (self._used < self._slice or self._batch != beat.batches)

    def used(self, beat: Beat, took: float) -> None:
        """Somebody worked for ``took`` seconds."""
        if self._batch != beat.batches:
            self._batch, self._used = beat.batches, 0.0
        self._used += took

    def wait(self, beat: Beat, work: Callable[[], None]) -> None:
        """Have ``work`` called when its turn comes; it must not raise."""
        self._waiting += 1
        beat.chores.soon(self._next, work)

    def _next(self, work: Callable[[], None]) -> None:
        self._waiting -= 1
        work()
