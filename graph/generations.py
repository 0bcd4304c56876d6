"""What changed after a generation, found in time proportional to the change."""

from __future__ import annotations

from collections.abc import Hashable, Iterator


class Generations[T: Hashable]:
    """Remembers when each item last changed, and when it went.

    :param removals: how many that went are remembered
    """

    def __init__(self, removals: int) -> None:
        self._limit = removals
        self._changed: dict[T, int] = {}  # the latest change at the end
        self._removed: dict[T, int] = {}
        self._forgotten = 0  # removals up to this generation are no longer known
        self.current = 0  #: grows with every change; 0 is the beginning

    def next(self) -> int:
        """Begin another generation."""
        self.current += 1
        return self.current

    def touch(self, item: T, generation: int) -> None:
        """An item came or changed."""
        self._changed.pop(item, None)
        self._changed[item] = generation
        self._removed.pop(item, None)

    def remove(self, item: T, generation: int) -> None:
        """An item went."""
        self._changed.pop(item, None)
        self._removed.pop(item, None)
        self._removed[item] = generation
        if len(self._removed) > self._limit:
            oldest = next(iter(self._removed))
            self._forgotten = self._removed.pop(oldest)

    def knows(self, since: int) -> bool:
        """Whether everything that changed after generation ``since`` is remembered. One that has not been yet comes
        from before a restart: nothing is known about it."""
        return self._forgotten <= since <= self.current

    def changed(self, since: int) -> Iterator[T]:
        """What came or changed after ``since``, the latest first."""
        return _after(self._changed, since)

    def removed(self, since: int) -> Iterator[T]:
        """What went after ``since``, the latest first."""
        return _after(self._removed, since)


def _after[T](items: dict[T, int], generation: int) -> Iterator[T]:
    for item in reversed(items):
        if items[item] <= generation:
            return
        yield item
