"""Programs that run during the benchmark: started in a namespace, watched, read from /proc, stopped by their own id."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

#: Seconds between two looks at a condition that nobody announces: other programs do not tell us what they do, and the
#: benchmark has nothing else to do meanwhile.
POLL = 0.02
GRACE = 10.0
_TAIL = 2000


class BenchFailed(Exception):
    """The benchmark can not go on; the message says why, with the last words of whoever knows."""


class Program:
    """One long-running program; it is this very process that was asked for, whatever was in front of it on the way.

    :param argv: nothing in it may fork: ``nsenter`` and ``setpriv`` replace themselves
    """

    def __init__(self, name: str, argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def check(self) -> None:
        """:raises BenchFailed: when it has ended"""
        code = self._process.poll()
        if code is not None:
            raise BenchFailed(f"{self.name} ended with {code}: {self.last_words()}")

    def last_words(self) -> str:
        return self.log.read_text(errors="replace")[-_TAIL:].strip() or "(it said nothing)"

    def cpu(self) -> float:
        """Seconds of processor time so far, user and system, of all its threads.

        The kernel's clock of that process (clock_getcpuclockid(3)): utime + stime of ``/proc/PID/stat``, which rounds
        to 10 ms what this gives in nanoseconds.
        """
        self.check()
        return time.clock_gettime((~self.pid << 3) | 2)

    def rss(self) -> int:
        """Resident memory in bytes, as ``/proc/PID/statm`` has it."""
        self.check()
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(GRACE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(GRACE)


def until[T](condition: Callable[[], T], what: str, *programs: Program, seconds: float = 30.0) -> T:
    """Look at a condition until it holds; returns what it returned.

    :param programs: that have to run meanwhile
    :raises BenchFailed: when it does not come to hold in time
    """
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        for program in programs:
            program.check()
        if time.monotonic() > deadline:
            words = "\n".join(f"{program.name}: {program.last_words()}" for program in programs)
            raise BenchFailed(f"waited {seconds:g} s in vain for {what}\n{words}")
        time.sleep(POLL)
    return found


def run(argv: Sequence[str], *, stdin: str = "", seconds: float = 60.0, env: Mapping[str, str] | None = None) -> str:
    """Run a command to its end; returns what it wrote.

    :raises BenchFailed: when it fails, or does not end in time
    """
    try:
        done = subprocess.run(
            list(argv),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            cwd="/",
            env={**os.environ, **(env or {})},
        )
    except FileNotFoundError:
        raise BenchFailed(f"{argv[0]} is not installed; run .ci/system-packages bench") from None
    except subprocess.TimeoutExpired:
        raise BenchFailed(f"{' '.join(argv)} did not end within {seconds:g} s") from None
    if done.returncode:
        raise BenchFailed(f"{' '.join(argv)} ended with {done.returncode}: {(done.stderr or done.stdout)[-_TAIL:]}")
    return done.stdout
