"""What can wait a moment: time-outs of connections, looks at all of them, and work for those who give way.

A thousand clients that come at once, and then say nothing, fall due at once too. Here that is worked off in slices of
time, between which whoever is served has his turn. Rules:

1. One slice is worked behind each batch of the reactor, and at least one step of it, so that everything that is due is
   done in the end, whatever else there is to do.
2. What is due first is done first; of jobs with many steps each gets one step, in turn.
3. What was cancelled before its turn came is not done.
4. An exception of a step ends its job and no other.
5. No connection has a timer of the event loop, which takes longer to make and to cancel than most of what is done for a
   new connection: time-outs come from a few settings, and those of one length fall due in the order in which they were
   set, so that one timer is enough for all of them. Nothing is due earlier or later for that.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from time import monotonic
from typing import Any, Final, Protocol

#: Seconds of work behind one batch: what it costs those who are served is about this, however much is due. It is some
#: steps, and much more than looking whether anybody else has become ready (2 us).
SLICE: Final = 0.000_25
#: Alarms whose time has come that are put among the chores in one step.
_AT_ONCE: Final = 256
#: Seconds that are no difference: what the timers of an event loop may be early.
_GRAIN: Final = 0.000_5

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

    __slots__ = ("_arguments", "_call", "_waiting")

    def __init__(
        self,
        call: Callable[..., object],
        arguments: tuple[Any, ...],
        waiting: dict[Alarm, float] | None = None,
    ) -> None:
        self._call: Callable[..., object] | None = call
        self._arguments = arguments
        self._waiting = waiting  # among those it is whose time has not come

    def cancel(self) -> None:
        """It is not to be done any more. Calling it again, or when it was done, changes nothing."""
        self._call = None
        self._arguments = ()
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.pop(self, None)

    def ring(self) -> None:
        """Its turn has come."""
        call, arguments = self._call, self._arguments
        self.cancel()
        if call is not None:
            call(*arguments)


class _Line:
    """The alarms that were set for the same number of seconds.

    :param due: told of each whose time has come
    :param empty: told when there is none left, and no timer
    """

    __slots__ = ("_delay", "_due", "_empty", "_loop", "_timer", "_waiting")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        delay: float,
        due: Callable[[Chore], None],
        empty: Callable[[float], object],
    ) -> None:
        self._loop = loop
        self._delay = delay
        self._due = due
        self._empty = empty
        self._waiting: dict[Alarm, float] = {}  # and when each is due, in that order
        self._timer: asyncio.TimerHandle | None = loop.call_later(delay, self.ring)

    def set(self, call: Callable[..., object], arguments: tuple[Any, ...]) -> Alarm:
        alarm = Alarm(call, arguments, self._waiting)
        self._waiting[alarm] = self._loop.time() + self._delay
        return alarm

    def ring(self) -> None:
        """It is time to look, or our turn to look on."""
        self._timer = None
        waiting, now = self._waiting, self._loop.time() + _GRAIN
        late: list[Alarm] = []
        left = 0.0
        for alarm, due in islice(waiting.items(), _AT_ONCE):
            if due > now:
                left = due - now + _GRAIN
                break
            late.append(alarm)
        for alarm in late:
            del waiting[alarm]
            self._due(alarm)
        if left:
            self._timer = self._loop.call_later(left, self.ring)
        elif waiting:
            self._due(self)
        else:
            self._empty(self._delay)

    def clear(self) -> None:
        """Forget all of them."""
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


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

    __slots__ = ("_due", "_lines", "_wake")

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._due: deque[Chore] = deque()
        self._lines: dict[float, _Line] = {}  # by the seconds that their alarms wait

    def __bool__(self) -> bool:
        """Whether there is something to do."""
        return bool(self._due)

    def later(
        self, loop: asyncio.AbstractEventLoop, delay: float, call: Callable[..., object], *arguments: Any
    ) -> Alarm:
        """Have ``call(*arguments)`` done when ``delay`` seconds are over and its turn has come.

        :param loop: always the same one
        :param delay: one of few
        """
        line = self._lines.get(delay)
        if line is None:
            line = self._lines[delay] = _Line(loop, delay, self.put, self._lines.pop)
        return line.set(call, arguments)

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
        for line in self._lines.values():
            line.clear()
        self._lines.clear()
