"""How long to wait before trying again: exponential, capped, and spread, so that a fleet does not come back as one.

Each wait is drawn from the upper half of the present step, so that it is spread and still grows.
"""

from __future__ import annotations

from random import Random


class Backoff:
    """Counts failures in a row.

    :param first: seconds before the first retry, at most
    :param cap: seconds that no wait exceeds
    """

    def __init__(self, random: Random, first: float = 0.2, cap: float = 20.0) -> None:
        self._random = random
        self._first = first
        self._cap = cap
        self._step = first

    def failed(self) -> float:
        """Seconds to wait after one more failure."""
        step = min(self._step, self._cap)
        self._step = min(self._step * 2, self._cap)
        return step * (0.5 + self._random.random() / 2)

    def succeeded(self) -> None:
        """Start over with the shortest wait."""
        self._step = self._first
