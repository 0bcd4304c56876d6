"""``python -m hedgerow`` and the ``hedgerow`` command."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command; a reader that went away (``hedgerow flows | head``) is not an error."""
    from hedgerow.cli.app import app

    try:
        app()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


if __name__ == "__main__":
    main()
