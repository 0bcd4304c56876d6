"""Coverage-guided fuzzing of what reads bytes that anybody may send.

    python -m tests.fuzz                     the names of the targets
    python -m tests.fuzz TARGET --seconds N  run one; what it found is kept in the folder --corpus names

Ends with 0 when nothing was found, else with another code, the exception, and the input in hexadecimal.
``python -m tests.fuzz TARGET --input HEX`` runs one input alone. Needs atheris (libFuzzer for Python); the seeds are
made by code, and a corpus of an earlier run is gone on with.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import atheris

#: One input may take this long, in seconds, and all of them this much memory, in MiB.
_SECONDS_AN_INPUT = 5
_MEMORY = 1024

with atheris.instrument_imports(include=["sidecar", "graph", "tests.fuzz"]):
    from tests.fuzz.target import Target
    from tests.fuzz.targets import PLANTED, TARGETS


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("target", nargs="?", choices=[*TARGETS, PLANTED.name])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--runs", type=int, default=-1, help="end after so many inputs")
    parser.add_argument("--seed", type=int, default=0, help="of libFuzzer's random numbers; 0: another one each time")
    parser.add_argument("--corpus", type=Path, help="where inputs that reach something new are kept")
    parser.add_argument("--input", help="run this input, in hexadecimal, and nothing else")
    return parser.parse_args()


def _run(target: Target, options: argparse.Namespace, corpus: Path) -> None:
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed-{number:03}").write_bytes(seed)

    def check(data: bytes) -> None:
        try:
            target.check(data)
        except BaseException:
            print(f"{target.name}: failed on --input {data.hex()}", file=sys.stderr, flush=True)
            raise

    flags = [
        f"-max_total_time={options.seconds}",
        f"-runs={options.runs}",
        f"-seed={options.seed}",
        f"-max_len={target.longest}",
        f"-timeout={_SECONDS_AN_INPUT}",
        f"-rss_limit_mb={_MEMORY}",
        f"-artifact_prefix={corpus}/",
        "-print_final_stats=1",
        "-verbosity=1",
    ]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], check)
    atheris.Fuzz()  # ends the process


def main() -> None:
    options = _arguments()
    if options.target is None:
        print("\n".join(TARGETS))
        return
    target = {**TARGETS, PLANTED.name: PLANTED}[options.target]
    if options.input is not None:
        target.check(bytes.fromhex(options.input))
        return
    if options.corpus is not None:
        _run(target, options, options.corpus)
        return
    # libFuzzer ends its process where it stands: somebody else has to take the folder away
    with tempfile.TemporaryDirectory(prefix="hedgerow-fuzz-") as corpus:
        again = [sys.executable, "-m", "tests.fuzz", *sys.argv[1:], "--corpus", corpus]
        ended = subprocess.run(again, check=False).returncode
    sys.exit(ended)


if __name__ == "__main__":
    main()
