"""How much memory we use, and how much we may: files of the kernel, read in microseconds.

What counts as used is our resident memory and, in a control group of version 2, the kernel's socket buffers of that
group, which many slow connections fill without a byte of ours. The rest of the group is left out: it may hold an
application, for whose memory nobody should be refused, and pages of files, which the kernel takes back by itself.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
#: Version 1 writes a number of pages near 2^63 where there is no limit.
_ABSURD: Final = 1 << 60


class Gauge:
    """Measures this process against a limit.

    :param limit: bytes; 0: what the control group allows
    :param proc: where the process file system is mounted; ``groups`` the control groups
    """

    __slots__ = ("_pages", "_statistics", "limit")

    def __init__(self, limit: int = 0, proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> None:
        self._statistics = -1
        #: Bytes that may be used; 0: nobody says.
        self.limit = limit
        if not limit:
            allowed, folder = _tightest(proc, groups)
            self.limit = allowed
            if allowed:
                self._statistics = _opened(folder / "memory.stat")
        self._pages = _opened(proc / "self" / "statm") if self.limit else -1

    def used(self) -> int:
        """Bytes in use now.

        :raises OSError: when the kernel does not say; ValueError when nobody can read what it says
        """
        total = int(os.pread(self._pages, 256, 0).split()[1]) * _PAGE
        if self._statistics >= 0:
            _, found, rest = (b"\n" + os.pread(self._statistics, 16_384, 0)).partition(b"\nsock ")
            total += int(rest.split(maxsplit=1)[0]) if found else 0
        return total

    def close(self) -> None:
        for descriptor in (self._pages, self._statistics):
            if descriptor >= 0:
                os.close(descriptor)
        self._pages = self._statistics = -1


def give_back() -> None:
    """Have the allocator return what is free: its thresholds are set so high (see ``__main__``) that it would not."""
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # not every C library has it
        trim(0)


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def _tightest(proc: Path, groups: Path) -> tuple[int, Path]:
    """The smallest limit of our control group and those above it, in bytes, and whose it is; 0 when there is none."""
    limits: list[tuple[int, Path]] = []
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            root, name = groups, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = groups / "memory", "memory.limit_in_bytes"
        else:
            continue
        # in a namespace of its own, or where only a part is mounted, the path leads nowhere and the root is ours
        folder = root / path.strip("/")
        limits += ((_number(one / name), one) for one in (folder, *folder.parents) if one.is_relative_to(root))
    return min(((limit, folder) for limit, folder in limits if limit), default=(0, groups))


def _number(path: Path) -> int:
    """What a limit's file says; 0 where there is no file or no limit."""
    try:
        written = int(path.read_text())  # "max" is no number
    except (OSError, ValueError):
        return 0
    return written if 0 < written < _ABSURD else 0
