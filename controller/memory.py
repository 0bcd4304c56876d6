"""Memory that became free goes back to the system, when much of it did.

Python and the C library keep freed memory for what comes next, which is right as long as something comes. After a
cluster has become much smaller they are asked to part with it: what was only remembered is forgotten first, tables are
made as large as what is in them, and code that is not needed now is let go of. What lies between things that are still
in use stays. Another allocator changes little of that (docs/kubernetes.md has the figures), and copying what is left
does not help, because copies go into the gaps. Where that is much, the program begins anew (:mod:`controller.anew`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import gc
from collections.abc import Callable, Hashable
from typing import cast

from graph.pages import let_go_of_files

#: Seconds after the start when what only the start needed is let go of; the second time is for a slow machine's start.
_BEGUN = (5.0, 60.0)

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


def pack(*holders: object) -> None:
    """Let dictionaries and sets be as large as what is in them: Python never makes one smaller.

    :param holders: objects whose own attributes they are, and of which nobody else holds any
    """
    for holder in holders:
        for name, table in list(vars(holder).items()):
            if type(table) in (dict, set):
                setattr(holder, name, table.copy())


def give_back() -> None:
    """Forget what was only remembered, collect what refers to itself, and let go of what is free or can be read again.
    Takes up to a tenth of a second.
    """
    for forget in _FORGETS:
        forget()
    gc.collect()
    let_go()


def settle() -> None:
    """Let go of what only the start needed, soon. To be called in the event loop."""
    for seconds in _BEGUN:
        asyncio.get_running_loop().call_later(seconds, let_go)


def let_go() -> None:
    """Have the C library return what is free, where it can (glibc), and let go of code that is not needed now."""
    with contextlib.suppress(AttributeError, OSError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)
    let_go_of_files()
