"""What is due when: one heap for overrides that end, edges that ripen or fade, and reports that were held back."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from enum import StrEnum
from itertools import count

from graph.flow import EdgeKey


class Due(StrEnum):
    """Kinds of things that can be due."""

    OVERRIDE = "override"
    EDGE = "edge"
    REFUSALS = "refusals"
    INVENTORY = "inventory"
    GATHERED = "gathered"
    HOUSEKEEPING = "housekeeping"


type Subject = str | EdgeKey


class Timers:
    """Times are seconds since the epoch. One entry for each (kind, subject), the earliest that was asked for."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Due, Subject]] = []
        self._at: dict[tuple[Due, Subject], float] = {}
        self._order = count()

    def at(self, due: float, kind: Due, subject: Subject) -> None:
        """Ask for ``due``, unless something earlier is asked for already."""
        present = self._at.get((kind, subject))
        if present is None or due < present:
            self._at[kind, subject] = due
            heapq.heappush(self._heap, (due, next(self._order), kind, subject))

    def next(self) -> float | None:
        """When something is due next; None when nothing ever is."""
        while self._heap and self._outdated(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take(self, now: float) -> Iterator[tuple[Due, Subject]]:
        """Everything due by ``now``, the earliest first. What is asked for meanwhile for later stays."""
        while True:
            due = self.next()
            if due is None or due > now:
                return
            _, _, kind, subject = heapq.heappop(self._heap)
            del self._at[kind, subject]
            yield kind, subject

    def _outdated(self, entry: tuple[float, int, Due, Subject]) -> bool:
        return self._at.get((entry[2], entry[3])) != entry[0]
