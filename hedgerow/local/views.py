"""What a pod sees of the file system: its own names, none of the mesh's state, and the interpreter.

A view is a mount namespace that this process holds a descriptor of, entered with ``nsenter --mount=``.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import stat
import sys
from collections.abc import Iterable
from pathlib import Path

from hedgerow.local.errors import CommandFailed

_DEADLINE = 30.0


class View:
    """A mount namespace that differs from ours; it lives until it is closed and the last program in it has ended."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @property
    def path(self) -> str:
        """What ``nsenter --mount=`` takes, from every process of this process namespace."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


async def make_view(script: str) -> View:
    """Make a mount namespace and mount in it what ``script`` says.

    :raises CommandFailed: with what the script said
    """
    # Held by a descriptor, not by a bind mount of /proc/PID/ns/mnt: Linux 6.18 refuses that one at times (EINVAL), when
    # the new namespace's number, drawn from the processor's own range, is smaller than that of the old one.
    command = f"{script}\necho made\nread -r _ || true"
    process = await asyncio.create_subprocess_exec(
        *("unshare", "--mount", "--propagation", "private", "sh", "-e", "-c", command),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd="/",
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_DEADLINE):
            view = View(_open_namespace(process.pid)) if await process.stdout.readline() == b"made\n" else None
            _, said = await process.communicate()
    except BaseException:
        if process.returncode is None:
            process.kill()
        await process.wait()
        raise
    if view is None:
        raise CommandFailed(f"a pod's view of the file system cannot be made: {said.decode(errors='replace').strip()}")
    return view


def _open_namespace(pid: int) -> int:
    return os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)


def application_script(hosts: Path, *, hide: Path, other_users: bool) -> str:
    """For an application: its names, an empty resolver, its own ``/run``.

    :param hide: a directory outside ``/run`` that it must not see; ``/run`` is hidden in any case
    :param other_users: whether programs run as users who may lack access to this interpreter
    """
    q = shlex.quote
    lines = [f"mount --bind {q(str(hosts))} /etc/hosts", "mount --bind /dev/null /etc/resolv.conf"]
    if not Path("/etc/resolv.conf").exists():
        lines.pop()
    if other_users:
        lines += _open_paths(_needed_paths())
    if not hide.is_relative_to("/run"):
        lines.append(f"mount -t tmpfs -o mode=0755 tmpfs {q(str(hide))}")
    lines += ["mount -t tmpfs -o nosuid,nodev,mode=0755 tmpfs /run", "mkdir -m 1777 /run/pod /run/lock"]
    return "\n".join(lines)


def infrastructure_script(*, other_users: bool) -> str:
    """For sidecars and the controller: everything, and the interpreter within their reach."""
    return "\n".join(["true", *(_open_paths(_needed_paths()) if other_users else [])])


def _needed_paths() -> set[Path]:
    """The directories that this interpreter, its packages and we ourselves are in, as named and as resolved."""
    named = {Path(sys.prefix), Path(sys.base_prefix), Path(sys.exec_prefix), Path(__file__).parents[2]}
    named |= {Path(entry) for entry in sys.path if entry and os.path.isdir(entry)}
    link = Path(sys.executable)
    for _ in range(16):  # python -> python3 -> /usr/bin/python3.12: each hop may be in another directory
        named.add(link.parent.parent)
        if not link.is_symlink():
            break
        link = link.parent / link.readlink()
    absolute = {path.absolute() for path in named} | {path.resolve() for path in named}
    return {path for path in absolute if path.is_dir() and path != Path("/")}


def _open_paths(needed: Iterable[Path]) -> list[str]:
    """Shell lines that let every user reach ``needed``, and nothing else of the closed directories above them.

    A home directory that is closed to others, with an interpreter in it, is replaced (in the view alone) by an empty
    one that holds only what is needed.
    """
    closed: dict[Path, set[Path]] = {}
    for path in needed:
        obstacle = _first_closed(path)
        if obstacle is not None:
            closed.setdefault(obstacle, set()).add(path)
    lines = []
    for obstacle, paths in sorted(closed.items()):
        tops = sorted(path for path in paths if not any(parent in paths for parent in path.parents))
        quoted = [shlex.quote(str(path)) for path in tops]
        lines.append("mkdir -p /run/held")
        for number, top in enumerate(quoted):
            lines += [f"mkdir -p /run/held/{number}", f"mount --rbind {top} /run/held/{number}"]
        lines.append(f"mount -t tmpfs -o nosuid,nodev,mode=0755 tmpfs {shlex.quote(str(obstacle))}")
        for number, top in enumerate(quoted):
            lines += [f"mkdir -p {top}", f"mount --rbind /run/held/{number} {top}", f"umount -l /run/held/{number}"]
    return lines


def _first_closed(path: Path) -> Path | None:
    """The first directory on the way to ``path`` that other users must not pass through."""
    for step in (*reversed(path.parents), path):
        if not step.stat().st_mode & stat.S_IXOTH:
            return step
    return None
