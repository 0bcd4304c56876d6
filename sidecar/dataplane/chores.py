"""What can wait a moment: time-outs of connections, looks at all of them, and work for those who give way.

A thousand clients that come at once, and then say nothing, fall due at once too. Here that is worked off in slices of
time, between which whoever is served has his turn. Rules:

1. One slice is worked behind each batch of the reactor, and at least one step of it, so that everything that is due is
   done in the end, whatever else there is to do.
2. What is due first is done first; of jobs with many steps each gets one step, in turn.
3. What was cancelled before its turn came is not done.
4. An exception of a step ends its job and no other.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, Final, Protocol

#: Seconds of work behind one batch: what it costs those who are served is about this, however much is due. It is some
#: steps, and much more than looking whether anybody else has become ready (2 us).
SLICE: Final = 0.000_25

_log = logging.getLogger(__name__)


type Soon = Callable[..., None]


def at_once(call: Callable[..., object], *arguments: Any) -> None:
    """In place of :meth:`Chores.soon`, where nobody's turn has to be waited for."""
    call(*arguments)


class Chore(Protocol):
    """Something that is done in one step."""

    def ring(self) -> None:
        """Its turn has come."""


class Alarm:
    """Something that is to be done at a time, unless it is cancelled before."""

    __slots__ = ("_arguments", "_call", "_timer")

    def __init__(self, call: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        self._call: Callable[..., object] | None = call
        self._arguments = arguments
        self._timer: asyncio.TimerHandle | None = None

    def set(self, timer: asyncio.TimerHandle) -> None:
        """By whom it will be told that its time has come."""
        self._timer = timer

    def cancel(self) -> None:
        """It is not to be done any more. Calling it again, or when it was done, changes nothing."""
        self._call = None
        self._arguments = ()
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def ring(self) -> None:
        """Its turn has come."""
        call, arguments = self._call, self._arguments
        self._call, self._arguments, self._timer = None, (), None
        if call is not None:
            call(*arguments)


class _Steps:
    """A job that has many."""

    __slots__ = ("_due", "_steps")

    def __init__(self, due: deque[Chore], steps: Iterator[object]) -> None:
        self._due = due
        self._steps = steps

    def ring(self) -> None:
        try:
            next(self._steps)
        except StopIteration:
            return
        self._due.append(self)


class Chores:
    """Everything that is due.

    :param wake: is called when there is something to do after there was nothing; has :meth:`work` called soon
    """

    __slots__ = ("_due", "_wake")

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._due: deque[Chore] = deque()

    def __bool__(self) -> bool:
        """Whether there is something to do."""
        return bool(self._due)

    def later(
        self, loop: asyncio.AbstractEventLoop, delay: float, call: Callable[..., object], *arguments: Any
    ) -> Alarm:
        """Have ``call(*arguments)`` done when ``delay`` seconds are over and its turn has come."""
        alarm = Alarm(call, arguments)
        alarm.set(loop.call_later(delay, self.put, alarm))
        return alarm

    def soon(self, call: Callable[..., object], *arguments: Any) -> None:
        """Have ``call(*arguments)`` done when its turn has come."""
        self.put(Alarm(call, arguments))

    def begin(self, steps: Iterator[object]) -> None:
        """Have a job done that has many steps. After each the others have their turn; what was found before it may have
        changed then."""
        self.put(_Steps(self._due, steps))

    def put(self, job: Chore) -> None:
        """Have ``job`` done when its turn has come."""
        self._due.append(job)
        if len(self._due) == 1:
            self._wake()

    def work(self, slice: float = SLICE) -> None:
        """Do what is due, for ``slice`` seconds and at least one step."""
        due, end = self._due, monotonic() + slice
        while due:
            job = due.popleft()
            try:
                job.ring()
            except Exception:
                _log.exception("a fault in what was due; please report it")
            if monotonic() >= end:
                return

    def clear(self) -> None:
        """Forget everything."""
        self._due.clear()
