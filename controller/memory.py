"""Memory that became free goes back to the system, when much of it did.

Python and the C library keep freed memory for what comes next, which is right as long as something comes. After a
cluster has become much smaller they are asked to part with it, and what was only remembered is forgotten first. What
lies between things that are still in use stays: Python returns memory by the megabyte and moves nothing, and copying
what is left does not help, because copies go into the gaps.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
from collections.abc import Callable, Hashable
from typing import cast

#: How to forget what is only remembered because it may be asked for again.
_FORGETS: list[Callable[[], None]] = []


def remembered[**P, T: Hashable](most: int) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A function of values that came from the mesh: what it said of the last ``most`` is kept until memory is given
    back. ``functools.lru_cache`` alone would keep something of every pod that has gone, here and there, for ever.
    """

    def remember(function: Callable[P, T]) -> Callable[P, T]:
        kept = functools.lru_cache(maxsize=most)(function)
        forgotten_on_demand(kept.cache_clear)
        return cast("Callable[P, T]", kept)

    return remember


def forgotten_on_demand(forget: Callable[[], None]) -> None:
    """Have something called, from now on, when memory is to be given back."""
    _FORGETS.append(forget)


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
    """Forget what was only remembered, collect what refers to itself, and have the C library return what is free. Takes
    up to a tenth of a second.
    """
    for forget in _FORGETS:
        forget()
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)
