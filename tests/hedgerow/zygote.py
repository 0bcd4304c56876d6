"""Runs the ``hedgerow`` command many times for the price of one start.

This program imports what the command imports, then reads requests, one JSON object a line, and runs the command for
each in a process of its own, forked: with its own arguments, environment, directory and output, and its own exit code.
A few tests run the installed command itself instead; there, starting is what they are about.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import struct
import subprocess
import sys
import tempfile
import termios
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.hedgerow.served import Ended, environment


class Zygote:
    """The other end: a callable that runs the command."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment({"PYTHONPATH": str(Path(__file__).parents[2])}),
        )

    def __call__(self, *arguments: str, env: Mapping[str, str] | None = None, cwd: str = "/") -> Ended:
        """Run ``hedgerow`` with these arguments to its end."""
        with tempfile.TemporaryDirectory() as folder:
            code = self._run(arguments, env, cwd, f"{folder}/out", f"{folder}/err")
            said = (Path(folder, "out").read_text(), Path(folder, "err").read_text())
            return Ended(subprocess.CompletedProcess(arguments, code, *said))

    def at_terminal(self, *arguments: str, env: Mapping[str, str], columns: int = 80) -> str:
        """Run it to a good end at a terminal of so many columns; what it wrote there."""
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        pieces: list[bytes] = []

        def read() -> None:
            with contextlib.suppress(OSError):  # how Linux says that nobody has the other end any more
                while piece := os.read(master, 65536):
                    pieces.append(piece)

        reading = threading.Thread(target=read)
        reading.start()
        try:
            code = self._run(arguments, env, "/", os.ttyname(slave), os.ttyname(slave))
        finally:
            os.close(slave)
            reading.join(30)
            os.close(master)
        said = b"".join(pieces).decode().replace("\r\n", "\n")
        assert code == 0, said
        return said

    def _run(self, arguments: Sequence[str], env: Mapping[str, str] | None, cwd: str, out: str, err: str) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = {"arguments": arguments, "environment": environment(env), "cwd": cwd, "out": out, "err": err}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate(timeout=30)


def _run(asked: dict[str, Any]) -> None:
    """Become the command. Never returns."""
    code: object = 70
    try:
        for descriptor, path in ((0, os.devnull), (1, asked["out"]), (2, asked["err"])):
            os.dup2(os.open(path, os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT, 0o600), descriptor)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  # for the whole process
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  # likewise
        os.chdir(asked["cwd"])
        os.environ.clear()
        os.environ.update(asked["environment"])
        sys.argv = ["hedgerow", *asked["arguments"]]
        from hedgerow.__main__ import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def _serve() -> None:
    import aiohttp  # noqa: F401  # so that no child has to
    import yaml  # noqa: F401  # likewise

    from hedgerow.cli.app import app

    with contextlib.redirect_stdout(io.StringIO()):
        app(["version"], standalone_mode=False)  # typer imports half of itself when it first reads arguments
    while line := sys.stdin.readline():
        if (child := os.fork()) == 0:
            _run(json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    _serve()
