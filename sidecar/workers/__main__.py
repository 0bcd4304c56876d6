"""A worker process, as the supervisor starts it: ``python -m sidecar.workers DESCRIPTOR LEVEL``.

It ends with its supervisor: the kernel kills it (``PR_SET_PDEATHSIG``) should it not notice. Signals that are sent to
the whole group of processes are the supervisor's to act upon.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def main() -> int:
    """Run until the supervisor says otherwise; returns the exit code."""
    try:
        descriptor, parent, level = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
        sock = socket.socket(fileno=descriptor)
    except (IndexError, ValueError, OSError):
        print("error: workers are started by a sidecar (`workers:` in sidecar.yaml)", file=sys.stderr)
        return 2
    os.set_inheritable(descriptor, False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    _die_with(parent)

    from sidecar import logs
    from sidecar.__main__ import protect_memory

    protect_memory()
    logs.configure(level)

    import asyncio

    import uvloop

    from sidecar.workers.app import Worker

    async def run() -> int:
        return await Worker(sock).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


def _die_with(parent: int) -> None:
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it was gone before we could ask for that
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main())
