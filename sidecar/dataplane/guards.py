"""What keeps the data path from being worn out by those who only hold on: idle connections, slow readers, memory.

Rules:

1. What runs is not hurt by what comes: under memory pressure only new connections and streams are refused.
2. Nobody is ended early. Connections are looked at four times within a limit, so that one goes between 1 and 1.25 times
   (idle) or 1.5 times (slow) the limit after its last sign of life, and no connection has a timer of its own.
3. Everything that is refused, dropped or ended by a limit is counted.
4. What a look finds to be ended is ended one by one: a look at ten thousand costs others no more than one at ten.

Limits by number and rate are checked where the things are counted: listeners, tunnels, streams.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from sidecar.dataplane.chores import Soon, at_once
from sidecar.dataplane.memory import Gauge, give_back
from sidecar.dataplane.settings import DataPlaneSettings

_log = logging.getLogger("sidecar.dataplane")

#: How often connections are looked at within a limit.
LOOKS: Final = 4
#: Seconds between two looks at our memory.
MEMORY_INTERVAL: Final = 1.0


@dataclass(slots=True)
class Counters:
    """What limits have cost since the start.

    :param connections_refused: more at once than ``connections``; ``streams_refused`` the same in tunnels, or more in
        one than ``streams_per_tunnel``
    :param handshakes_dropped: beyond ``handshakes``
    :param tunnels_refused: beyond ``tunnels_per_source``
    :param tunnels_broken: ended because the peer broke the protocol or one of its rates
    :param buffers_exhausted: streams reset because ``buffered_bytes`` were held already
    :param connections_shed: refused for want of memory; ``streams_shed`` likewise
    :param idle_ended: by ``connection_idle``; ``half_closed_ended`` and ``slow_readers_ended`` by theirs
    :param accept_pauses: times that no connection could be accepted for want of descriptors
    :param requests_refused: HTTP/2 requests of inspected connections, beyond ``inspect.limits.streams``
    :param requests_malformed: refused for their form or for a limit of their head, whoever asked: answered with 400,
        408 or 431, or ended with their connection over HTTP/2
    """

    connections_refused: int = 0
    streams_refused: int = 0
    handshakes_dropped: int = 0
    tunnels_refused: int = 0
    tunnels_broken: int = 0
    buffers_exhausted: int = 0
    connections_shed: int = 0
    streams_shed: int = 0
    idle_ended: int = 0
    half_closed_ended: int = 0
    slow_readers_ended: int = 0
    accept_pauses: int = 0
    requests_refused: int = 0
    requests_malformed: int = 0


class Holder(Protocol):
    """Holds bytes that its receiver does not take."""

    def abort(self, why: str) -> None:
        """Give up at once, releasing everything. Must not raise."""


@dataclass(slots=True)
class _Held:
    """How much is held, and since which look nothing of it was taken; None: since none."""

    size: int
    since: float | None = None


class Budget:
    """Bytes held for receivers that do not read, over all connections, and by whom.

    :param limit: bytes, together
    :param early: bytes that one client may have said for its connection to be tried elsewhere
    :ivar soon: ends those who hold too long
    """

    __slots__ = ("_holders", "counters", "early", "left", "soon")

    def __init__(self, limit: int, counters: Counters | None = None, early: int = 0) -> None:
        self.left = limit
        self.early = early
        self.counters = counters if counters is not None else Counters()
        self._holders: dict[Holder, _Held] = {}
        self.soon: Soon = at_once

    @property
    def holders(self) -> int:
        """How many connections hold something."""
        return len(self._holders)

    def hold(self, holder: Holder, size: int) -> bool:
        """Account for ``size`` bytes more that were not taken. False: there is no room, and ``holder`` has to end."""
        if self.left < size:
            self.counters.buffers_exhausted += 1
            return False
        self.left -= size
        held = self._holders.get(holder)
        if held is None:
            self._holders[holder] = _Held(size)
        else:
            held.size += size
        return True

    def release(self, holder: Holder, taken: int) -> None:
        """The receiver took ``taken`` bytes of what was held."""
        if not taken:
            return
        self.left += taken
        held = self._holders[holder]
        held.size -= taken
        held.since = None
        if not held.size:
            del self._holders[holder]

    def drop(self, holder: Holder) -> None:
        """The holder has ended, with all it held. Calling it again changes nothing."""
        held = self._holders.pop(holder, None)
        if held is not None:
            self.left += held.size

    def look(self, now: float, limit: float) -> None:
        """End those whose receiver has taken nothing for too long.

        :param now: seconds, only differences count
        :param limit: seconds since the look that first found nothing taken
        """
        for holder, held in list(self._holders.items()):
            if held.since is None:
                held.since = now
            elif now - held.since >= limit and holder in self._holders:
                self.counters.slow_readers_ended += 1
                self.soon(holder.abort, f"the receiver took nothing for {limit:g} s")


class Measured(Protocol):
    """Knows our memory; :class:`~sidecar.dataplane.memory.Gauge` does."""

    limit: int

    def used(self) -> int: ...

    def close(self) -> None: ...


class Guards:
    """The state that all parts of the data path ask before they begin something, and the looks at what runs.

    :param gauge: made of the settings when None
    """

    __slots__ = (
        "_end_idle",
        "_gauge",
        "_give_back",
        "_loop",
        "_settings",
        "_timers",
        "budget",
        "counters",
        "draining",
        "shedding",
    )

    def __init__(
        self,
        settings: DataPlaneSettings,
        gauge: Measured | None = None,
        give_back: Callable[[], None] = give_back,
    ) -> None:
        self._settings = settings
        self._gauge = gauge
        self._give_back = give_back
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timers: dict[Callable[[], None], asyncio.TimerHandle] = {}
        self._end_idle: Callable[[int], int] = _none
        self.counters = Counters()
        self.budget = Budget(settings.buffered_bytes, self.counters, settings.early_bytes)
        #: We take nothing new from others and want to be rid of what runs.
        self.draining = False
        #: There is not enough memory for anything new.
        self.shedding = False

    @property
    def soon(self) -> Soon:
        """Ends what a look has found."""
        return self.budget.soon

    def start(self, loop: asyncio.AbstractEventLoop, end_idle: Callable[[int], int], soon: Soon = at_once) -> None:
        """Begin to look.

        :param end_idle: ends the connections that carried nothing since it was called so many times before, and says
            how many those are
        :param soon: ends one of them when its turn has come
        """
        self._loop = loop
        self.budget.soon = soon
        self._end_idle = end_idle
        settings = self._settings
        if settings.slow_reader:
            self._every(settings.slow_reader / LOOKS, self._look_for_slow)
        if settings.connection_idle:
            self._every(settings.connection_idle / LOOKS, self._look_for_idle)
        if self._gauge is None:
            self._gauge = Gauge(settings.memory_limit)
        if self._gauge.limit:
            self.look_at_memory()
            self._every(MEMORY_INTERVAL, self.look_at_memory)

    def stop(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        if self._gauge is not None:
            self._gauge.close()
            self._gauge = None

    def look_at_memory(self) -> None:
        """Begin or end to refuse what is new."""
        gauge, settings = self._gauge, self._settings
        if gauge is None or not gauge.limit:
            return
        try:
            used = gauge.used()
        except (OSError, ValueError) as error:
            _log.error("our memory can not be watched any more: %s; nothing will be refused for want of it", error)
            gauge.limit = 0
            self.shedding = False
            return
        if self.shedding:
            self._give_back()
        if not self.shedding and used >= settings.memory_high * gauge.limit:
            self.shedding = True
            text = "memory is short: %d of %d MiB are in use; new connections are refused until less than %d MiB are"
            _log.error(text, used >> 20, gauge.limit >> 20, int(settings.memory_low * gauge.limit) >> 20)
        elif self.shedding and used < settings.memory_low * gauge.limit:
            self.shedding = False
            text = "memory is there again: %d of %d MiB are in use; %d connections and %d streams were refused so far"
            shed = (self.counters.connections_shed, self.counters.streams_shed)
            _log.warning(text, used >> 20, gauge.limit >> 20, *shed)

    def _look_for_slow(self) -> None:
        assert self._loop is not None
        self.budget.look(self._loop.time(), self._settings.slow_reader)

    def _look_for_idle(self) -> None:
        self.counters.idle_ended += self._end_idle(LOOKS)

    def _every(self, seconds: float, look: Callable[[], None]) -> None:
        """Call ``look`` again and again; a fault in it is logged and costs one look."""
        loop = self._loop
        assert loop is not None

        def due() -> None:
            self._timers[look] = loop.call_later(seconds, due)
            look()

        self._timers[look] = loop.call_later(seconds, due)


def _none(looks: int) -> int:
    return 0
