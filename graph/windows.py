"""Rolling aggregation: 10 s windows roll up into minutes, minutes into hours, hours end after their retention.

The governing rules:

1. Every count lives in exactly one window, so sums over levels never count twice.
2. All windows below one coarser window roll up together, once that coarser window lies wholly behind the retention of
   the finer level. A late report goes straight to the level that its time belongs to by then.
3. Memory mirrors the store: :meth:`Windows.drain` names every window that changed or ended since the last call, whole,
   so that writing it again does no harm.

Times are seconds since the epoch; a window is named by its start, a multiple of its width.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, fields
from itertools import pairwise

#: Sums stop here: the largest integer that SQLite and PostgreSQL keep.
MAX_TOTAL = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Counts:
    """What was counted on an edge.

    :param connections: connections that were allowed
    :param verified: those of them whose other end was proved by mutual TLS
    :param failed: those of them that did not reach the application
    :param denied: connections that were refused; not among ``connections``
    :param would_deny: those of ``connections`` that the pending policy would refuse
    :param bytes_sent: from source to destination
    :param bytes_received: from destination to source
    """

    connections: int = 0
    verified: int = 0
    failed: int = 0
    denied: int = 0
    would_deny: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            min(self.connections + other.connections, MAX_TOTAL),
            min(self.verified + other.verified, MAX_TOTAL),
            min(self.failed + other.failed, MAX_TOTAL),
            min(self.denied + other.denied, MAX_TOTAL),
            min(self.would_deny + other.would_deny, MAX_TOTAL),
            min(self.bytes_sent + other.bytes_sent, MAX_TOTAL),
            min(self.bytes_received + other.bytes_received, MAX_TOTAL),
        )

    def __sub__(self, other: Counts) -> Counts:
        """What was added to ``other``; totals only grow, so no part is below zero."""
        return Counts(*(max(0, mine - theirs) for mine, theirs in zip(self._all(), other._all(), strict=True)))

    def larger(self, other: Counts) -> Counts:
        """Part by part the larger: two witnesses of the same events."""
        return Counts(*(max(mine, theirs) for mine, theirs in zip(self._all(), other._all(), strict=True)))

    def _all(self) -> tuple[int, ...]:
        return (
            self.connections,
            self.verified,
            self.failed,
            self.denied,
            self.would_deny,
            self.bytes_sent,
            self.bytes_received,
        )


COUNT_NAMES: tuple[str, ...] = tuple(part.name for part in fields(Counts))


@dataclass(frozen=True, slots=True)
class Rates:
    """Per second, over whole 10 s windows."""

    connections: float
    failed: float
    denied: float
    would_deny: float
    bytes_sent: float
    bytes_received: float


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution. Both in seconds; ``retention`` counts from a window's end."""

    width: int
    retention: int


DEFAULT_LEVELS = (Level(10, 600), Level(60, 7_200), Level(3_600, 172_800))


@dataclass(frozen=True, slots=True)
class Window[K: Hashable]:
    """All counts of one key in ``[start, start + width)``."""

    key: K
    width: int
    start: int
    counts: Counts


@dataclass(frozen=True, slots=True)
class WindowChanges[K: Hashable]:
    """What a store has to write (``changed``, replacing what it has) and to delete (``ended``)."""

    changed: tuple[Window[K], ...]
    ended: tuple[Window[K], ...]


class Windows[K: Hashable]:
    """Counts per key over time.

    :param levels: finest first; each width divides the next, and each retention is at least the next width
    """

    def __init__(self, levels: tuple[Level, ...] = DEFAULT_LEVELS) -> None:
        for finer, coarser in pairwise(levels):
            if coarser.width % finer.width or coarser.width <= finer.width or finer.retention < coarser.width:
                raise ValueError(f"{finer} does not roll up into {coarser}")
        self._levels = levels
        self._buckets: tuple[dict[int, dict[K, Counts]], ...] = tuple({} for _ in levels)
        self._changed: set[tuple[int, int, K]] = set()
        self._ended: dict[tuple[int, int, K], Counts] = {}
        self._now = 0.0
        self.too_late = 0  #: additions that came after the last retention and were not counted

    def add(self, key: K, at: float, counts: Counts, now: float) -> None:
        """Count at time ``at``; a time after ``now`` counts as now."""
        self._advance(now)
        at = min(at, self._now)
        for level in range(len(self._levels)):
            if self._span_end(level, at) > self._now - self._levels[level].retention:
                self._put(level, self._start(level, at), key, counts)
                return
        self.too_late += 1

    def total(self, key: K, since: float, until: float) -> Counts:
        """The sum of all windows that overlap ``[since, until)``; exact where both are multiples of the widths."""
        total = Counts()
        for level, buckets in zip(self._levels, self._buckets, strict=True):
            for start, bucket in buckets.items():
                if start < until and start + level.width > since and key in bucket:
                    total += bucket[key]
        return total

    def denied(self, since: float) -> dict[K, int]:
        """How many of which key were refused in all windows that end after ``since``."""
        found: dict[K, int] = {}
        for level, buckets in zip(self._levels, self._buckets, strict=True):
            for start, bucket in buckets.items():
                if start + level.width <= since:
                    continue
                for key, counts in bucket.items():
                    if counts.denied:
                        found[key] = found.get(key, 0) + counts.denied
        return found

    def rates(self, key: K, now: float, over: int = 60) -> Rates:
        """Mean rates over the last ``over`` seconds of finished windows of the finest width."""
        width = self._levels[0].width
        span = max(width, over - over % width)
        until = int(now) // width * width
        total = self.total(key, until - span, until)
        return Rates(
            total.connections / span,
            total.failed / span,
            total.denied / span,
            total.would_deny / span,
            total.bytes_sent / span,
            total.bytes_received / span,
        )

    def series(self, key: K) -> tuple[Window[K], ...]:
        """Every window held for ``key``, oldest first."""
        found = [
            Window(key, level.width, start, bucket[key])
            for level, buckets in zip(self._levels, self._buckets, strict=True)
            for start, bucket in buckets.items()
            if key in bucket
        ]
        return tuple(sorted(found, key=lambda window: (window.start, window.width)))

    def forget(self, key: K) -> None:
        """Drop everything about ``key``."""
        for level, buckets in enumerate(self._buckets):
            for start in list(buckets):
                if key in buckets[start]:
                    self._end(level, start, key)

    def load(self, windows: Iterable[Window[K]], now: float) -> None:
        """Take back what :meth:`drain` gave out before a restart; windows of an unknown width are counted late."""
        widths = {level.width: index for index, level in enumerate(self._levels)}
        for window in windows:
            level = widths.get(window.width)
            if level is None or window.start % window.width:
                self.too_late += 1
                continue
            self._put(level, window.start, window.key, window.counts)
            self._changed.discard((level, window.start, window.key))
        self._advance(now)

    def drain(self, now: float) -> WindowChanges[K]:
        """Roll up to ``now`` and name what changed since the last call."""
        self._advance(now)
        changed = tuple(
            Window(key, self._levels[level].width, start, self._buckets[level][start][key])
            for level, start, key in self._changed
        )
        ended = tuple(
            Window(key, self._levels[level].width, start, counts) for (level, start, key), counts in self._ended.items()
        )
        self._changed.clear()
        self._ended.clear()
        return WindowChanges(changed, ended)

    def _start(self, level: int, at: float) -> int:
        width = self._levels[level].width
        return int(at // width) * width

    def _span_end(self, level: int, at: float) -> int:
        """The end of the coarser window that ``at`` rolls up into; of its own window on the last level."""
        above = min(level + 1, len(self._levels) - 1)
        return self._start(above, at) + self._levels[above].width

    def _put(self, level: int, start: int, key: K, counts: Counts) -> None:
        bucket = self._buckets[level].setdefault(start, {})
        before = bucket.get(key)
        bucket[key] = counts if before is None else before + counts
        self._changed.add((level, start, key))
        self._ended.pop((level, start, key), None)

    def _end(self, level: int, start: int, key: K) -> Counts:
        bucket = self._buckets[level][start]
        counts = bucket.pop(key)
        if not bucket:
            del self._buckets[level][start]
        self._changed.discard((level, start, key))
        self._ended[(level, start, key)] = counts
        return counts

    def _advance(self, now: float) -> None:
        if now <= self._now:
            return  # a clock that steps back does not bring anything back
        self._now = now
        for level, buckets in enumerate(self._buckets):
            horizon = now - self._levels[level].retention
            for start in [start for start in buckets if self._span_end(level, start) <= horizon]:
                for key in list(buckets[start]):
                    counts = self._end(level, start, key)
                    if level + 1 < len(self._levels):
                        self._put(level + 1, self._start(level + 1, start), key, counts)
