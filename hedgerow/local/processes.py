"""Child processes that are always stopped by their own id, in bounded time, and whose last words are kept."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hedgerow.local.errors import CommandFailed, NotReady

#: How long a program may take to end after SIGTERM before it gets SIGKILL, seconds.
GRACE = 5.0


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that has ended; output is decoded, undecodable bytes replaced."""

    code: int
    stdout: str
    stderr: str


class Process:
    """One long-running program in a session of its own, its output in a file."""

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self.log = log
        self._process: asyncio.subprocess.Process | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative when a signal ended it."""
        return self._process.returncode if self._process is not None else None

    async def start(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        pass_fds: Sequence[int] = (),
        before_exec: Callable[[], None] | None = None,
    ) -> None:
        """Start it; the log is appended to, so that a restart keeps what was said before.

        :raises CommandFailed: when the program is not there or must not be run
        """
        assert not self.running, f"{self.name} runs already"
        with self.log.open("ab") as output:
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=dict(env),
                    cwd="/",
                    pass_fds=tuple(pass_fds),
                    start_new_session=True,
                    preexec_fn=before_exec,
                )
            except OSError as error:
                raise CommandFailed(f"{self.name} does not start: {argv[0]}: {error.strerror}") from error

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the program and everything in its session's first process group."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    async def kill(self) -> None:
        """End it as ``kill -9`` does, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        await self.wait()

    async def stop(self, grace: float = GRACE) -> None:
        """Ask it to end, give it ``grace`` seconds, then kill it."""
        if not self.running:
            return
        self.signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self.wait(), grace)
        except TimeoutError:
            await self.kill()
        with contextlib.suppress(ProcessLookupError):  # what it left behind in its group
            os.killpg(self.pid, signal.SIGKILL)

    async def wait(self) -> int:
        assert self._process is not None, f"{self.name} was not started"
        return await self._process.wait()

    def tail(self, lines: int = 20) -> str:
        """The last lines it wrote."""
        try:
            with self.log.open(encoding="utf-8", errors="replace") as log:
                return "".join(deque(log, lines)).rstrip()
        except FileNotFoundError:
            return ""


async def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    deadline: float = 30.0,
    check: bool = False,
    before_exec: Callable[[], None] | None = None,
) -> Completed:
    """Run a command to its end.

    :param deadline: seconds after which it is killed
    :param check: raise when it fails
    :raises NotReady: when it did not end in time
    :raises CommandFailed: when it cannot be started, or with ``check`` when it fails
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=dict(env) if env is not None else None,
            cwd="/",
            start_new_session=True,
            preexec_fn=before_exec,
        )
    except OSError as error:
        raise CommandFailed(f"{argv[0]} does not start: {error.strerror}") from error
    try:
        stdout, stderr = await asyncio.wait_for(process.communicate(stdin), deadline)
    except TimeoutError:
        raise NotReady(f"{' '.join(argv)} did not end within {deadline:g} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    assert process.returncode is not None
    done = Completed(process.returncode, stdout.decode(errors="replace"), stderr.decode(errors="replace"))
    if check and done.code != 0:
        said = done.stderr.strip() or done.stdout.strip()
        raise CommandFailed(f"{' '.join(argv)} ended with {done.code}: {said}")
    return done


def python() -> list[str]:
    """The interpreter for our own programs: this one, without the current directory on its path."""
    return [sys.executable, "-P"]


def paths() -> dict[str, str]:
    """The part of our environment that programs are found by."""
    found = {"PATH": os.environ.get("PATH", os.defpath)}
    if "PYTHONPATH" in os.environ:
        found["PYTHONPATH"] = os.environ["PYTHONPATH"]
    return found
