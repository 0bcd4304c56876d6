"""``python -m e2e.images``: the images of this checkout as docker archives; says where they are."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from e2e.harness.errors import HarnessError
from e2e.images.build import prepare


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m e2e.images", description=__doc__)
    parser.add_argument("--quiet", action="store_true", help="only what is made and what goes wrong")
    parser.add_argument("--out", type=Path, help="copy the archives into this directory")
    arguments = parser.parse_args()
    try:
        built = prepare(lambda text: print(text, file=sys.stderr, flush=True))
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for image in built:
        archive = image.archive
        if arguments.out:
            arguments.out.mkdir(parents=True, exist_ok=True)
            archive = Path(shutil.copy(archive, arguments.out / f"{image.image.name}.tar"))
        if not arguments.quiet:
            print(f"{image.reference}: {archive}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
