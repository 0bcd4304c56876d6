"""A process that is spoken with by lines of JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]


class Program:
    """Runs ``tests.attacks.<module>``.

    :param log: where its standard error goes
    :param first: what it is told first
    """

    def __init__(self, module: str, log: Path, first: Any = None) -> None:
        self._log = log
        self._file = log.open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-W", "error", "-m", f"tests.attacks.{module}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._file,
            cwd=_ROOT,
        )
        if first is not None:
            self.say(first)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def say(self, message: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()

    def hear(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().decode()
        assert line, f"it ended: {self.log}"
        return line

    def end(self) -> None:
        """Close its standard input and wait."""
        self._process.communicate(timeout=30)
        self._file.close()
        assert self._process.returncode == 0, self.log

    def kill(self) -> None:
        """End it if it has not ended yet, in whatever way."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()
        if not self._file.closed:
            self._file.close()
