"""What stays for the life of the process is kept out of the way: of the garbage collector, and of memory.

Modules, classes and settings are some 40,000 objects, and a full collection that visits them holds everything up for
15 ms and more (40 ms once mitmproxy is loaded). What connections leave behind is freed by counting; what is collected
is the little that refers to itself.

Half of what is resident after the start is program code that only the start needed: gRPC's and OpenSSL's set-up, and
the interpreter's. It is let go of, and comes back from the page cache by the page where it is needed after all.
"""

from __future__ import annotations

import asyncio
import gc
import mmap
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from sidecar.dataplane.memory import give_back

#: Allocations before the youngest are looked at, and collections of each age before the next older is (``gc`` module).
#: The little that refers to itself comes to 20 objects a second under load: with 10,000 it waits for eight minutes, and
#: a soak sees a megabyte come and go. Everybody waits for a collection, 0.4 us for each object: while connections come,
#: all that the second one finds is theirs, and with ten times as many it took 15 ms.
_THRESHOLDS = (500, 4, 400)

#: Seconds after which what was just loaded has begun: connections to the controller are made, certificates are read.
#: The second time is for a start on a machine that has little time for us.
BEGUN: Final = (3.0, 60.0)

_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ (\d+)")


def settle() -> None:
    """What there is now will stay. To be called in the event loop when everything is loaded, and when more was."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    loop = asyncio.get_running_loop()
    for seconds in BEGUN:
        loop.call_later(seconds, let_go)


def let_go(smaps: Path = Path("/proc/self/smaps")) -> int:
    """Let go of pages that can be read again from their files, and of what the allocator keeps for nothing.

    :param smaps: our mappings, proc(5)
    :returns: bytes that were resident in the mappings that were let go of; 0 where the kernel does not say
    """
    import ctypes

    give_back()
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)
    madvise.restype = ctypes.c_int
    released = 0
    try:
        with smaps.open(encoding="ascii", errors="replace") as lines:
            found = list(readable_again(lines))
    except OSError:
        return 0
    for start, length, resident in found:
        if madvise(start, length, mmap.MADV_DONTNEED) == 0:
            released += resident
    return released


def readable_again(lines: Iterable[str]) -> Iterator[tuple[int, int, int]]:
    """Mappings whose every page is as it is in its file: code and constants, never what the linker or we wrote to.

    :param lines: of ``smaps``, proc(5)
    :returns: address, length and resident bytes of each
    """
    start = end = resident = 0
    of_a_file = False
    for line in lines:
        if (mapping := _MAPPING.match(line)) is not None:
            start, end = int(mapping[1], 16), int(mapping[2], 16)
            of_a_file = mapping[3] in ("r-xp", "r--p") and mapping[4] != "0"
            resident = 0
        elif line.startswith("Rss:"):
            resident = int(line.split()[1]) * 1024
        elif line.startswith("Anonymous:") and of_a_file and resident and int(line.split()[1]) == 0:
            yield start, end - start, resident
