"""Lets go of memory that can be read again from its files, such as code that only the start needed.

The kernel would take such pages by itself, but only once memory is short; until then they are counted as ours.
"""

from __future__ import annotations

import ctypes
import mmap
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ (\d+)")


def let_go_of_files(smaps: Path = Path("/proc/self/smaps")) -> int:
    """Let go of them; what is needed after all comes back from the page cache, by the page.

    :param smaps: our mappings, proc(5)
    :returns: bytes that were resident in the mappings that were let go of; 0 where the kernel does not say
    """
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
