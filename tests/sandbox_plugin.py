"""Runs the whole test session in a sandbox, so that no test can leave a process, namespace or rule behind.

Loaded with ``-p`` from pytest's ``addopts``, before output is captured and before anything else is imported. As root,
the session starts once more inside :func:`hedgerow.local.sandbox.run_in_sandbox`; the outer process only waits for it
and exits with its code. Without root, or where namespaces are not permitted, the session runs where it is, and tests
that need network namespaces say so. ``HEDGEROW_TESTS_OUTSIDE=1`` keeps it outside.

Side by side (``-n``, pytest-xdist) every worker gets a sandbox of its own within the session's: its processes, ports,
addresses and rules are its own, as they are for a session alone. This module as a program
(``python -m tests.sandbox_plugin ARGUMENTS…``) is the interpreter of such a worker.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from hedgerow.local.sandbox import Confinement, is_sandboxed, probe, run_in_sandbox


def _started_by_its_command() -> bool:
    """Not when another program runs pytest within itself: its own process must go on."""
    program = Path(sys.argv[0])
    return program.name in ("pytest", "py.test") or program.parts[-2:] == ("pytest", "__main__.py")


def _enter() -> None:
    if os.geteuid() != 0 or is_sandboxed() or os.environ.get("HEDGEROW_TESTS_OUTSIDE") or not _started_by_its_command():
        return
    permitted = probe()
    if permitted.confinement is not Confinement.ROOT:
        print(f"tests run without a sandbox: {permitted.why_not}", file=sys.stderr)
        return
    code = run_in_sandbox([sys.executable, "-m", "pytest", *sys.argv[1:]])
    sys.stdout.flush()
    os._exit(code)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(specs: list[Any]) -> None:
    """Let every worker's interpreter start in a sandbox, where this session has one."""
    if not is_sandboxed():
        return
    for spec in specs:
        if spec.popen and spec.python is None:
            spec.python = shlex.join((sys.executable, "-m", "tests.sandbox_plugin"))


# A shell starts what it runs in the background without the signal of Ctrl-C, and so would be all that tests start: they
# send it to programs as a person does.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# gRPC's own fork handlers start threads in the child, which the kernel refuses between unshare(CLONE_NEWPID) and the
# next fork. Tests that import gRPC also fork sandboxes; no child of theirs goes on with gRPC's state.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
if __name__ == "__main__":
    sys.exit(run_in_sandbox([sys.executable, *sys.argv[1:]]))
_enter()
