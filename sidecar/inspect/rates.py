"""How often something may happen. Pure: the time is an argument."""

from __future__ import annotations


class Rate:
    """Lets ``per_second`` things happen, and twice as many in a burst (a token bucket).

    :ivar total: how often it happened
    """

    __slots__ = ("_burst", "_left", "_per_second", "_since", "total")

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._burst = 2.0 * per_second
        self._left = self._burst
        self._since = 0.0
        self.total = 0

    def take(self, now: float, count: int = 1) -> bool:
        """Count it.

        :param now: seconds of any clock that does not go back
        :return: False when that is too often
        """
        if not self.total:
            self._since = now
        self.total += count
        self._left -= count
        if self._left >= 0.0:
            return True
        since, self._since = self._since, now
        self._left = min(self._burst - count, self._left + (now - since) * self._per_second)
        return self._left >= 0.0
