"""Control groups for a node: what the kubelet and the runtime make lies below them.

The kernel does not remove them with the processes in them. A session removes its own; one that was killed leaves them
behind, and a later one removes those that are old and empty.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from pathlib import Path

from e2e.harness.errors import HarnessError

_PREFIX = "hedgerow-e2e-"
#: How old an empty group must be to be one that was left behind, seconds.
_LEFT_BEHIND = 600


def make() -> list[Path]:
    """Make a group in every hierarchy, below the one that this process is in.

    :raises HarnessError: when that is not permitted
    """
    name = f"{_PREFIX}{secrets.token_hex(6)}"
    groups = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        root = Path("/sys/fs/cgroup")
        if (root / "cgroup.controllers").exists():
            parent = root / path.lstrip("/")
        else:
            parent = root / (controllers.removeprefix("name=") or "unified") / path.lstrip("/")
        if not parent.is_dir():
            continue
        for left_behind in parent.glob(f"{_PREFIX}*"):
            with contextlib.suppress(OSError):
                if time.time() - left_behind.stat().st_mtime > _LEFT_BEHIND and not _members(left_behind):
                    remove(left_behind)
        group = parent / name
        try:
            group.mkdir()
        except OSError as error:
            raise HarnessError(
                f"no control group in {parent}: {error.strerror}",
                "a cluster in here needs root or a privileged container, with writable control groups; "
                "KUBECONFIG=FILE uses a cluster that is there",
            ) from None
        for setting in ("cpuset.cpus", "cpuset.mems") if "cpuset" in controllers else ():
            (group / setting).write_text((parent / setting).read_text())
        groups.append(group)
    return groups


def _members(group: Path) -> bool:
    """Whether any process is in a group or below it."""
    return any(path.read_text().strip() for path in group.rglob("cgroup.procs"))


def remove(group: Path) -> bool:
    """Remove a control group and those in it; False while a process is in one."""
    if not group.is_dir():
        return True
    try:
        for directory, _, _ in os.walk(group, topdown=False):
            os.rmdir(directory)
    except OSError:
        return False
    return True
