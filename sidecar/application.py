"""Whether the application of our pod still runs, told by the sockets that other users than ours hold.

The containers of a pod share its network, and not their processes: the kernel's tables of TCP sockets are what we see
of the application. Whoever has held none for :data:`QUIET` has ended, as far as traffic is concerned.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

#: Seconds between two looks, and without a socket before the application counts as gone: between two calls of a client
#: there may be none.
LOOK = 0.25
QUIET = 1.0

_TABLES = (Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6"))
_UID, _INODE = 7, 9


def holds_sockets(uid: int, tables: Iterable[Path] = _TABLES) -> bool:
    """Whether a process of another user has a TCP socket in our network namespace.

    :param uid: ours
    :param tables: as proc(5) describes ``/proc/net/tcp``; one that is not there (no IPv6) says nothing
    :raises OSError: when one can not be read
    """
    return any(_others_in(table, str(uid)) for table in tables)


def _others_in(table: Path, uid: str) -> bool:
    try:
        with table.open(encoding="ascii", errors="replace") as lines:
            next(lines, None)
            for line in lines:
                fields = line.split(maxsplit=_INODE + 1)
                # sockets without an inode are the kernel's own: nobody holds them any more
                if len(fields) > _INODE and fields[_INODE] != "0" and fields[_UID] != uid:
                    return True
    except FileNotFoundError:
        pass
    return False


async def gone(
    holds: Callable[[], bool] = lambda: holds_sockets(os.geteuid()),
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Return when the application has ended. Cancel it when that is awaited no more.

    :param holds: blocks; called in a thread
    :raises OSError: when that can not be found out
    """
    quiet_since: float | None = None
    while True:
        held, now = await asyncio.to_thread(holds), clock()
        if held:
            quiet_since = None
        elif quiet_since is None:
            quiet_since = now
        elif now - quiet_since >= QUIET:
            return
        await asyncio.sleep(LOOK)
