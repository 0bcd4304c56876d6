"""Ends a tunnel when its lease does: the clock beside the rule of :mod:`sidecar.dataplane.lease`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from sidecar.dataplane.lease import Lease

#: Seconds after which the clock is looked at again: it may have been set, or the machine suspended.
_LONGEST_SLEEP: Final = 30.0


class Term:
    """Calls ``ended`` once when ``lease`` is over.

    :param lease: how long, for now
    :param clock: seconds since the epoch
    """

    __slots__ = ("_clock", "_ended", "_loop", "_timer", "lease")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        lease: Lease,
        ended: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._loop = loop
        self._ended = ended
        self._clock = clock
        self.lease = lease
        self._timer: asyncio.TimerHandle | None = self._arm()

    def extend(self, lease: Lease) -> None:
        """Go by ``lease`` from now on; a timer that comes too early for it looks again."""
        self.lease = lease

    def cancel(self) -> None:
        """Call nobody any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> asyncio.TimerHandle:
        left = self.lease.end - self._clock()
        return self._loop.call_later(min(max(left, 0.0), _LONGEST_SLEEP), self._check)

    def _check(self) -> None:
        if self.lease.end > self._clock():
            self._timer = self._arm()
            return
        self._timer = None
        self._ended()
