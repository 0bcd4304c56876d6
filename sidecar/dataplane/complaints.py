"""What people should know of peers, without letting a hostile one fill the log, or hide in it.

Of each kind of message the first few are logged as they are. What follows within the same minute is counted, and at
its end one line says how many there were and shows the last one. Every refusal is still a flow of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

#: Messages of one kind that are logged in full within one interval.
FIRST: Final = 5
#: Seconds that are summed up in one line.
INTERVAL: Final = 60.0

type Later = Callable[[float, Callable[[], None]], asyncio.TimerHandle]


@dataclass(slots=True)
class _Kind:
    """One kind of message within the present interval."""

    level: int
    timer: asyncio.TimerHandle
    logged: int = 0
    held: int = 0
    last: tuple[object, ...] = ()


class Complaints:
    """Logs to ``log``; kinds are told apart by their format.

    :param later: calls back after so many seconds
    """

    __slots__ = ("_kinds", "_later", "_log")

    def __init__(self, log: logging.Logger, later: Later) -> None:
        self._log = log
        self._later = later
        self._kinds: dict[str, _Kind] = {}

    def say(self, level: int, message: str, *arguments: object) -> None:
        """Log ``message % arguments``, or count it.

        :param message: a constant, which makes the kind
        """
        kind = self._kinds.get(message)
        if kind is None:
            kind = self._kinds[message] = _Kind(level, self._later(INTERVAL, lambda: self._sum_up(message)))
        if kind.logged < FIRST:
            kind.logged += 1
            self._log.log(level, message, *arguments)
        else:
            kind.held += 1
            kind.last = arguments

    def stop(self) -> None:
        """Say what was held back until now."""
        for message, kind in list(self._kinds.items()):
            kind.timer.cancel()
            self._sum_up(message)

    def _sum_up(self, message: str) -> None:
        kind = self._kinds.pop(message)
        if kind.held:
            summary = "%d more of this kind within %g s, the last one: " + message
            self._log.log(kind.level, summary, kind.held, INTERVAL, *kind.last)
