"""The taps that run in this sidecar: who watches what, for how long, and how much of it.

Governing rules:

1. A tap has an end of its own here; a controller that went away, or forgot, changes nothing about that.
2. What is shown costs the traffic nothing: what does not fit is left out and counted.
3. Only a command of the authenticated controller starts one (:mod:`sidecar.inspect.tap_client`).

Without mitmproxy: it is asked for every connection from the start on.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from graph.model import WorkloadRef
from graph.tap import Shown, TapSpec
from sidecar.inspect.rates import Rate

_log = logging.getLogger(__name__)

#: Taps at once.
MOST: Final = 8
#: Events that wait for the controller to take them, and their bytes.
_WAITING: Final = 512
_WAITING_BYTES: Final = 4 << 20


class TooManyTapsError(Exception):
    """There are :data:`MOST` already."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A tap is over.

    :param shed: events that were left out since the last one that was shown
    """

    tap: str
    error: str = ""
    shed: int = 0


class Tap:
    """One that runs."""

    __slots__ = ("_rate", "alarm", "left", "shed", "spec")

    def __init__(self, spec: TapSpec, alarm: asyncio.TimerHandle) -> None:
        self.spec = spec
        self.alarm = alarm
        self.left = spec.count
        self.shed = 0
        self._rate = Rate(spec.events)

    def may_show(self, now: float) -> bool:
        """Whether its rate lets one more be shown; counts the one that is not."""
        if self._rate.take(now):
            return True
        self.shed += 1
        return False


class Taps:
    """All of them.

    :param loop: runs their alarms
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._taps: dict[str, Tap] = {}
        self._events: deque[tuple[Shown | Ended, int]] = deque()
        self._bytes = 0
        self._arrived = asyncio.Event()
        self.shown = 0
        self.total_shed = 0

    @property
    def running(self) -> int:
        return len(self._taps)

    def wants(self, port: int) -> bool:
        """Whether somebody watches connections to our application's ``port``."""
        return bool(self._taps) and any(tap.spec.of_port(port) for tap in self._taps.values())

    def start(self, spec: TapSpec) -> None:
        """Begin to watch. One of the same id begins anew.

        :raises TooManyTapsError: saying so
        """
        self.stop(spec.id)
        if len(self._taps) >= MOST:
            raise TooManyTapsError(f"{MOST} taps run already; end one")
        alarm = self._loop.call_later(spec.seconds, self._end, spec.id)
        self._taps[spec.id] = Tap(spec, alarm)
        _log.info("tap %s: %s are shown for %g s", spec.id, _what(spec), spec.seconds)

    def stop(self, name: str) -> None:
        """Watch no more, without a word to the controller, which asked for it."""
        tap = self._taps.pop(name, None)
        if tap is not None:
            tap.alarm.cancel()
            self.total_shed += tap.shed
            _log.info("tap %s: over", name)

    def stop_all(self) -> None:
        """The controller is away: nobody looks."""
        for name in list(self._taps):
            self.stop(name)
        self._events.clear()
        self._bytes = 0

    def of_request(self, source: WorkloadRef | None, port: int, operation: str) -> tuple[Tap, ...]:
        """The taps that watch a request, as far as can be said before its answer."""
        return tuple(tap for tap in self._taps.values() if tap.spec.of_request(source, port, operation))

    def running_tap(self, tap: Tap) -> bool:
        """Whether it still runs."""
        return self._taps.get(tap.spec.id) is tap

    def show(self, tap: Tap, make: Callable[[int], tuple[Shown, int]], now: float) -> None:
        """Show a request, if there is room.

        :param make: makes the event, given how many were left out before it; with its bytes
        """
        if not tap.may_show(now):
            return
        if len(self._events) >= _WAITING or self._bytes >= _WAITING_BYTES:
            tap.shed += 1
            return
        shed, tap.shed = tap.shed, 0
        self.total_shed += shed
        event, size = make(shed)
        self._put(event, size)
        self.shown += 1
        if tap.left:
            tap.left -= 1
            if not tap.left:
                self._end(tap.spec.id)

    async def next(self) -> Shown | Ended:
        """The next event, when there is one."""
        while not self._events:
            self._arrived.clear()
            await self._arrived.wait()
        event, size = self._events.popleft()
        self._bytes -= size
        return event

    def refuse(self, name: str, error: str) -> None:
        """Tell the controller that a tap was not started."""
        self._put(Ended(name, error), 0)

    def _end(self, name: str) -> None:
        tap = self._taps.get(name)
        if tap is not None:
            shed = tap.shed
            self.stop(name)
            self._put(Ended(name, "", shed), 0)

    def _put(self, event: Shown | Ended, size: int) -> None:
        self._events.append((event, size))
        self._bytes += size
        self._arrived.set()


def _what(spec: TapSpec) -> str:
    parts = [f"requests of {spec.source}" if spec.source is not None else "requests"]
    if spec.ports:
        parts.append("to " + ", ".join(map(str, spec.ports)))
    if spec.operation:
        parts.append(f"for {spec.operation}")
    parts.append("with bodies" if spec.bodies else "without bodies")
    return " ".join(parts)
