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


if __name__ == "__main__":
    main()
