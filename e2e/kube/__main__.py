"""``python -m e2e.kube apiserver|cluster``: build what is missing for a suite, once, and say where it is."""

from __future__ import annotations

import argparse
import sys

from e2e.harness.errors import HarnessError
from e2e.kube.build import prepare
from e2e.kube.parts import Suite


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m e2e.kube", description=__doc__)
    parser.add_argument("suite", type=Suite, choices=list(Suite))
    parser.add_argument("--quiet", action="store_true", help="only what is built and what goes wrong")
    arguments = parser.parse_args()
    try:
        found = prepare(arguments.suite, lambda text: print(text, file=sys.stderr, flush=True))
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not arguments.quiet:
        for name, path in found.paths.items():
            print(f"{name}: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
