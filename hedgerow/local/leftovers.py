"""Temporary directories that outlive nobody: each is named after the process that made it.

What a killed process left behind is removed by whoever looks next. The name alone tells whose a directory is: the
process namespace, the id in it, and the start time, because ids come round again. So there is no moment at which nobody
can tell, and nobody judges a process that it cannot see.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

_PREFIX = "hedgerow-mesh-"


def make_directory() -> Path:
    """A new directory of this process, closed to other users."""
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{_namespace()}-{os.getpid()}-{_started(os.getpid())}-"))


def remove_leftovers() -> list[Path]:
    """Remove what killed runs of this user left in the temporary directory.

    :returns: what was removed
    """
    removed = []
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}{_namespace()}-*-*-*"):
        _, pid, started, _ = directory.name.removeprefix(_PREFIX).split("-", 3)
        if not pid.isdigit() or not started.isdigit() or directory.is_symlink():
            continue
        with contextlib.suppress(FileNotFoundError):
            if directory.stat().st_uid == os.geteuid() and _started(int(pid)) != int(started):
                shutil.rmtree(directory, ignore_errors=True)
                removed.append(directory)
    return removed


def _namespace() -> int:
    """The process namespace that our ids are counted in."""
    return os.stat("/proc/self/ns/pid").st_ino


def _started(pid: int) -> int | None:
    """When a process started, in clock ticks since boot (field 22 of proc(5)'s stat); None when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
