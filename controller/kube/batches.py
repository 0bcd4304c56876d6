"""Does the same to many objects, some at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any

#: Objects that are written together.
BATCH = 10


def batches[T](whole: Iterable[T], size: int = BATCH) -> list[tuple[T, ...]]:
    """In the order given, ``size`` at a time."""
    given = tuple(whole)
    return [given[start : start + size] for start in range(0, len(given), size)]


async def together(work: Iterable[Coroutine[Any, Any, object]]) -> None:
    """Do it side by side, and wait for all of it before a failure is told."""
    for done in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(done, BaseException):
            raise done
