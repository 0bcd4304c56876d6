"""``python -m e2e.dockerfile``: the targets of this checkout's Dockerfile as docker archives; says where they are."""

from __future__ import annotations

import argparse
import sys

from e2e.dockerfile.build import prepare
from e2e.harness.errors import HarnessError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m e2e.dockerfile", description=__doc__)
    parser.add_argument("--quiet", action="store_true", help="only what is made and what goes wrong")
    arguments = parser.parse_args()
    try:
        built = prepare(lambda text: print(text, file=sys.stderr, flush=True))
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not arguments.quiet:
        for each in built:
            print(f"{each.reference}: {each.archive}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
