"""Connections of which one direction has ended: the other must carry something within a limit, or they end.

Almost every connection is half closed for a moment, and a timer of the event loop for each costs more than its end
does. The limit is the same for all, so that they fall due in the order in which they came: one timer is enough.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from sidecar.dataplane.chores import Soon, at_once


class HalfClosable(Protocol):
    """What is watched."""

    def carried(self) -> int:
        """Bytes so far, in both directions."""

    def end(self) -> None:
        """End it now."""


class HalfClosed[T: HalfClosable]:
    """Those that are watched.

    :param limit: seconds in which something must be carried; 0 watches nothing
    :param ended: told of each that is about to be ended
    :param soon: ends them one after the other: many may fall due at once
    """

    __slots__ = ("_due", "_ended", "_soon", "_timer", "limit")

    def __init__(self, limit: float, ended: Callable[[], None], soon: Soon = at_once) -> None:
        self.limit = limit
        self._ended = ended
        self._soon = soon
        self._due: dict[T, tuple[float, int]] = {}  # when, and what it had carried; in the order of when
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._due)

    def watch(self, connection: T, loop: asyncio.AbstractEventLoop) -> None:
        """From now on. Watching it again changes nothing."""
        if self.limit and connection not in self._due:
            self._due[connection] = (loop.time() + self.limit, connection.carried())
            if self._timer is None:
                self._timer = loop.call_later(self.limit, self._look, loop)

    def forget(self, connection: T) -> None:
        """It is over."""
        self._due.pop(connection, None)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        late: list[tuple[T, int]] = []
        for connection, (due, carried) in self._due.items():
            if due > now:
                self._timer = loop.call_later(due - now, self._look, loop)
                break
            late.append((connection, carried))
        for connection, carried in late:
            if self._due.pop(connection, None) is None:
                continue  # it ended with another of them
            if connection.carried() == carried:
                self._ended()
                self._soon(connection.end)
            else:
                self.watch(connection, loop)
