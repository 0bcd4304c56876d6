"""Where our sidecars spend their processor time under one load, as text for people."""

from __future__ import annotations

import json
import linecache
import os
import signal
import sys
from pathlib import Path

from bench.dataplane.launch import BenchFailed
from bench.dataplane.measures import Load
from bench.dataplane.ours import why_not
from bench.dataplane.session import Plan, Session, of_ours

_SECONDS = 8.0
_TOP = 25


def profile(load: Load, short: bool) -> str:
    """Run our pair alone under ``load``, sampled.

    :raises BenchFailed: when the load's lane is not there yet
    """
    seconds = _SECONDS / 2 if short else _SECONDS
    plan = Plan(1, seconds, (256 << 20) if short else (1 << 30), 0, 0)
    with Session(plan, lambda text: print(text, file=sys.stderr, flush=True)) as session:
        whose = of_ours(load.lane)
        pair = session.start(whose, profile=True)
        if reason := why_not(session.mesh, load.lane, pair):
            raise BenchFailed(f"{load.name} can not be profiled: {reason}")
        session.slice(load, pair, 1.0)  # unsampled: tunnels, caches, grown windows
        for program in pair.programs:
            os.kill(program.pid, signal.SIGUSR2)
        figures = session.slice(load, pair)
        pair.stop()
        name = f"{whose}-{pair.bed.number}"
        texts = [f"{load.name}: " + ", ".join(f"{key} {value:,.6g}" for key, value in figures.items()) + " (sampled)"]
        for workload in ("client", "server"):
            path = session.mesh.profile_of(name, workload)
            if not path.exists():
                raise BenchFailed(f"the {workload}'s sidecar left no profile at its end")
            texts.append(f"\n== the {workload}'s sidecar\n{render(path)}")
    return "\n".join(texts)


def render(path: Path, top: int = _TOP) -> str:
    """A sampler's file as two tables: lines by their own time, functions by the time within them."""
    found = json.loads(path.read_text())
    total = sum(each[0] for each in found["lines"]) or 1
    lines = [f"{total} samples, one every {found['interval'] * 1000:g} ms of processor time", "", "  own  line"]
    for count, file, line, function in found["lines"][:top]:
        source = linecache.getline(file, line).strip()
        lines.append(f"{count / total:5.1%}  {_short(file)}:{line} {function}: {source[:80]}")
    own: dict[tuple[str, str], int] = {}
    for count, file, _, function in found["lines"]:
        own[file, function] = own.get((file, function), 0) + count
    lines += ["", "  own   with what it calls  function"]
    ranked = sorted(found["within"], key=lambda each: -own.get((each[1], each[2]), 0))
    for count, file, function in ranked[:top]:
        lines.append(f"{own.get((file, function), 0) / total:5.1%}  {count / total:5.1%}  {_short(file)} {function}")
    return "\n".join(lines)


def _short(file: str) -> str:
    return "/".join(Path(file).parts[-3:])
