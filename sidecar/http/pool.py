"""Idle connections to our application, kept for the next request.

Rules:

1. A connection comes here only at a clean boundary: its last response was complete, nothing came behind it, and nothing
   that spoke of who the connection is passed on it.
2. The one that was used last is used first, so that those that are not needed grow old and go.
3. A connection on which anything happens while it is here is not used any more.
"""

from __future__ import annotations

from sidecar.dataplane.legs import Lane, Leg


class Pool:
    """Of one address of the application.

    :param most: connections that are kept
    """

    __slots__ = ("_idle", "_most")

    def __init__(self, most: int) -> None:
        self._idle: dict[Idle, None] = {}  # the one used last is last
        self._most = most

    def __len__(self) -> int:
        return len(self._idle)

    def take(self, lane: Lane, now: float, longest: float) -> Leg | None:
        """A connection that was idle for no longer than ``longest`` seconds, now of ``lane``; None: there is none."""
        while self._idle:
            idle, _ = self._idle.popitem()
            leg = idle.leg
            if leg.closed:
                continue
            if now >= idle.until:
                leg.reset()
            elif now - idle.since > longest:
                self._idle[idle] = None
                return None  # the others are older
            else:
                leg.lane = lane
                return leg
        return None

    def give(self, leg: Leg, since: float, until: float) -> None:
        """Keep ``leg``, idle since then, if there is room."""
        if leg.closed:
            return
        if len(self._idle) >= self._most:
            oldest = next(iter(self._idle))
            del self._idle[oldest]
            oldest.leg.reset()
        idle = Idle(self, leg, since, until)
        leg.lane = idle
        self._idle[idle] = None

    def expire(self, now: float) -> None:
        """Let those go whose time is over."""
        for idle in [idle for idle in self._idle if now >= idle.until]:
            del self._idle[idle]
            idle.leg.reset()

    def clear(self) -> None:
        """Let all go."""
        self.expire(float("inf"))

    def gone(self, idle: Idle) -> None:
        """Something happened on it."""
        self._idle.pop(idle, None)


class Idle:
    """The lane of a connection that waits. ``since`` and ``until`` are seconds of the site's clock."""

    __slots__ = ("_pool", "leg", "since", "until")

    def __init__(self, pool: Pool, leg: Leg, since: float, until: float) -> None:
        self._pool = pool
        self.leg = leg
        self.since = since
        self.until = until

    def received(self, leg: Leg, data: memoryview) -> None:
        """Nothing was asked: whatever this is, it must not be taken for the answer to the next request."""
        self._pool.gone(self)
        leg.reset()

    def ended(self, leg: Leg) -> None:
        self._pool.gone(self)
        leg.end()

    def drained(self, leg: Leg) -> None:
        """Nothing is written here."""

    def lost(self, leg: Leg, why: str) -> None:
        self._pool.gone(self)
