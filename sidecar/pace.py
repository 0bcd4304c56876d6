"""How much of the time something may take that others can ask for without end. Pure: times are arguments."""

from __future__ import annotations


class Pace:
    """Keeps account of work, and says how long to rest after it.

    :param share: of the time that the work may take in the long run, above 0
    :param burst: seconds of work that may be done at once, without a rest
    """

    def __init__(self, share: float, burst: float) -> None:
        self._share = share
        self._burst = burst
        self._level = 0.0
        self._at: float | None = None

    def spent(self, seconds: float, now: float) -> float:
        """So much work was done.

        :param now: seconds of a clock that does not go back
        :return: seconds to rest before there is more; often 0
        """
        passed = max(0.0, now - self._at) if self._at is not None else 0.0
        self._at = now
        self._level = max(0.0, self._level - passed * self._share) + seconds
        return max(0.0, (self._level - self._burst) / self._share)
