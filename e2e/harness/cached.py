"""One builder at a time in a cache that several sessions share."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path

from e2e.harness.errors import HarnessError


@contextlib.contextmanager
def alone(cache: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Make the cache where there is none, and wait until nobody else builds into it.

    :param say: told when it has to wait
    :raises HarnessError: when there can be no cache
    """
    path = cache / ".lock"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")
    except OSError as error:
        raise HarnessError(
            f"no cache in {cache}: {error.strerror}", "set XDG_CACHE_HOME to a place that is writable"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another build ({path})")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
