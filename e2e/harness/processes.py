"""Processes in containers of the session's own node, which the session sees from outside."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from e2e.harness.errors import HarnessError

_ID = re.compile(r"[0-9a-f]{64}")


def first_process(container: str) -> int:
    """The process that is number 1 in a container.

    :param container: its id, which the runtime puts into the name of its control group
    :raises HarnessError: when there is none
    """
    if not _ID.fullmatch(container):  # of a container that has not begun it is empty, and would be any process here
        raise HarnessError(f"{container!r} is not the id of a container that has begun")
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if container in (directory / "cgroup").read_text() and _numbers(directory)[-1] == 1:
                return int(directory.name)
    raise HarnessError(f"no process of container {container} runs here")


def alive(process: int) -> bool:
    """Whether it still runs: one that nobody has waited for yet does not."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return "\nState:\tZ" not in status


def _numbers(directory: Path) -> list[int]:
    """A process' number in each namespace that it is seen in, the innermost last (proc(5), ``NSpid``)."""
    status = (directory / "status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("NSpid:"))
    return [int(number) for number in line.split()[1:]]
