"""Memory that became free goes back to the system, when much of it did.

Python and the C library keep freed memory for what comes next, which is right as long as something comes. After a
cluster has become much smaller they are asked to part with it; what lies between things that are still in use stays.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc


class HighWater:
    """Notices when a number has fallen far below the highest that it was.

    :param least: a height from which on it is worth noticing
    """

    def __init__(self, least: int) -> None:
        self._least = least
        self._highest = 0

    def fell(self, count: int) -> bool:
        """Whether it fell below half of the highest since this last was so."""
        self._highest = max(self._highest, count)
        if self._highest < self._least or count > self._highest // 2:
            return False
        self._highest = count
        return True


def give_back() -> None:
    """Collect what refers to itself, and have the C library return what is free. Takes up to a tenth of a second."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)
