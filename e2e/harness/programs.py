"""Programs that run beside the tests: started with their output in a file, stopped by their own process id.

They end with the test session, however it ends: the kernel kills them with the thread that started them.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from e2e.harness.errors import CommandFailed, HarnessError

#: How long a program may take to end after SIGTERM before it gets SIGKILL, seconds.
GRACE = 10.0
_POLL = 0.05
#: How long anything may take on a machine that does ten other things, seconds. Bounds a failure, not a success.
PATIENCE = 240.0
#: Below the range that the kernel takes local ports from, so that a port stays free while its server is stopped.
_PORTS = range(20000, 32000)


class Program:
    """One program; :meth:`start` and :meth:`stop` may alternate, the log is appended to.

    :param argv: program and arguments
    """

    def __init__(self, name: str, argv: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.log = log
        self._argv = ["setpriv", "--pdeathsig", "KILL", *map(str, argv)]
        self._env = dict(os.environ if env is None else env)
        self._process: subprocess.Popen[bytes] | None = None
        self._told = False

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def ending(self) -> str:
        """How it ended by itself, with its last words; empty while it runs, before it began, when it was told to."""
        if self._process is None or self.running or self._told:
            return ""
        return f"{self.name} {_how(self._process.returncode)}:\n{self.last_words()}"

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    def start(self) -> None:
        assert not self.running, f"{self.name} runs already"
        self._told = False
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._env, start_new_session=True
            )

    def stop(self, *, grace: float = GRACE) -> None:
        """End it in order, by force after ``grace`` seconds. Does nothing when it has ended."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        self._told = True
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """As a machine that fails would end it."""
        if self._process is not None:
            self._told = True
            self._process.kill()
            self._process.wait()

    def last_words(self, lines: int = 15) -> str:
        with contextlib.suppress(FileNotFoundError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        return ""

    def until(self, ready: Callable[[], object], what: str, *, seconds: float = PATIENCE) -> None:
        """Wait until ``ready`` answers something true.

        :raises HarnessError: when the program ended first, or did not get there in time; with its last words
        """
        deadline = time.monotonic() + seconds
        while True:
            if self._process is None or self._process.poll() is not None:
                how = _how(self._process.returncode) if self._process is not None else "was not started"
                raise HarnessError(f"{self.name} {how} before {what}:\n{self.last_words()}")
            if ready():
                return
            if time.monotonic() > deadline:
                raise HarnessError(f"{self.name}: not {what} after {seconds:.0f} s:\n{self.last_words()}")
            time.sleep(_POLL)


def _how(code: int) -> str:
    return f"ended with {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"


def until(ready: Callable[[], object], what: str, *, seconds: float = PATIENCE) -> None:
    """Wait for a condition that no single program is to blame for.

    :raises HarnessError: when it did not come true in time
    """
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise HarnessError(f"not {what} after {seconds:.0f} s")
        time.sleep(_POLL)


def run(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
    check: bool = True,
    seconds: float = PATIENCE,
) -> str:
    """Run a command to its end.

    :param check: whether a failure raises; without it standard output and error are answered together
    :param seconds: how long it may take
    :returns: its standard output
    :raises CommandFailed: when it failed or took too long
    """
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
            words, input=stdin, capture_output=True, text=True, errors="replace", env=env, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as error:
        said = error.stderr.decode(errors="replace") if isinstance(error.stderr, bytes) else str(error.stderr or "")
        raise CommandFailed(words, -signal.SIGKILL, "", f"no end after {seconds:.0f} s: {said}") from None
    except FileNotFoundError:
        raise HarnessError(f"not found: {words[0]}") from None
    if not check:
        return done.stdout + done.stderr
    if done.returncode:
        raise CommandFailed(words, done.returncode, done.stdout, done.stderr)
    return done.stdout


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody listens on now. Another program may be faster: start again with others then."""
    found: list[int] = []
    candidates = random.sample(_PORTS, k=len(_PORTS))
    for port in candidates:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise HarnessError("no free port on 127.0.0.1 between 20000 and 32000")
