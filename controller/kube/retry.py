"""How long to wait before an API server is asked again: doubling, capped, spread, and never less than it asked for."""

from __future__ import annotations

from random import Random

#: The longest that a server's own ``Retry-After`` is obeyed, in seconds.
_OBEYED = 120.0


class Retry:
    """Counts failures in a row; durations in seconds.

    :param first: before the second try, at most
    :param longest: what no wait of our own exceeds
    """

    def __init__(self, random: Random, first: float = 0.25, longest: float = 30.0) -> None:
        self._random = random
        self._first = first
        self._longest = longest
        self.failures = 0

    def failed(self, asked: float = 0.0) -> float:
        """Seconds to wait after one more failure.

        :param asked: what the server's ``Retry-After`` says; 0 when it says nothing
        """
        step = min(self._longest, self._first * 2.0 ** min(self.failures, 20))
        self.failures += 1
        return max(min(asked, _OBEYED), step * self._random.uniform(0.5, 1.0))

    def succeeded(self) -> None:
        self.failures = 0
