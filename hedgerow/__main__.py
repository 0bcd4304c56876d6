"""``python -m hedgerow`` and the ``hedgerow`` command."""

from __future__ import annotations

import os
import sys

#: As a shell reports programs that SIGINT or SIGPIPE ended.
_INTERRUPTED, _NO_READER = 130, 141


def main() -> None:
    """Run the command. A reader that went away (``hedgerow flows | head``) and Ctrl-C are no errors."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # an arrow in a terminal without one
    if len(sys.argv) == 4 and sys.argv[1:3] == ["sidecar", "--config"]:
        _sidecar(sys.argv[2:])
    try:
        try:
            from hedgerow.cli.app import app

            app()
        finally:
            sys.stdout.flush()
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # typer has seen it first
            sys.exit(_NO_READER)
        raise
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the very end
        sys.exit(_NO_READER)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


def _sidecar(arguments: list[str]) -> None:
    """Become a sidecar without loading the command, whose 10 MB would stay in every pod.

    Returns when this installation has no sidecar; the command says what to install.
    """
    try:
        from sidecar.__main__ import main as run
    except ModuleNotFoundError:
        return
    sys.exit(run(arguments))


if __name__ == "__main__":
    main()
