"""Where our sidecars spend their processor time under one load, as text for people.

Two looks, each at a slice of its own. ``perf`` tells which library, or the kernel, and which of its functions; the
sampler that runs inside tells which line of ours. What the processor does for others meanwhile is in neither.
"""

from __future__ import annotations

import json
import linecache
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.dataplane.launch import GRACE, BenchFailed, Program, run
from bench.dataplane.measures import Load
from bench.dataplane.ours import why_not
from bench.dataplane.pairs import Pair
from bench.dataplane.session import Plan, Session, of_ours

_SECONDS = 8.0
_TOP = 40
#: Samples a second of processor time; not in step with the kernel's timers.
_RATE = 997
#: By the first that is part of a library's path.
_LIBRARIES = {
    "[kernel": "kernel",
    "[vdso]": "kernel",
    "libpython": "interpreter",
    "bin/python": "interpreter",
    "libcrypto": "TLS",
    "libssl": "TLS",
    "/_ssl.": "TLS (Python's module)",
    "/lib-dynload/": "Python's modules",
    "/uvloop/": "uvloop",
    "/cygrpc.": "gRPC",
    "/httptools/": "httptools",
    "/libc.so": "libc",
}

_FRAME = re.compile(r"\s*[0-9a-f]+ (.*) \(([^()]*(?:\([^()]*\))?)\)\s*")
_CALL = re.compile(r"__x64_sys_(\w+)")

#: Samples by library and function.
type Symbols = Mapping[tuple[str, str], int]


def profile(load: Load, short: bool) -> str:
    """Run our pair alone under ``load``, looked at.

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
        texts = [_by_library(session, load, pair)]
        for program in pair.programs:
            os.kill(program.pid, signal.SIGUSR2)
        figures = session.slice(load, pair)
        pair.stop()
        name = f"{whose}-{pair.bed.number}"
        texts.append(f"\n== by line\n{_said(load, figures)}")
        for workload in ("client", "server"):
            path = session.mesh.profile_of(name, workload)
            if not path.exists():
                raise BenchFailed(f"the {workload}'s sidecar left no profile at its end")
            texts.append(f"\n-- the {workload}'s sidecar\n{render(path)}")
    return "\n".join(texts)


def _said(load: Load, figures: Mapping[str, float]) -> str:
    return f"{load.name}: " + ", ".join(f"{key} {value:,.6g}" for key, value in figures.items()) + " (sampled)"


# --- libraries


def _by_library(session: Session, load: Load, pair: Pair) -> str:
    if shutil.which("perf") is None:
        return "== by library: not known, perf is not installed"
    records = [(program, session.folder / f"{program.name}.perf") for program in pair.programs]
    watching = [_watch(program, path) for program, path in records]
    before = [program.cpu() for program in pair.programs]
    try:
        figures = session.slice(load, pair)
    finally:
        spent = [program.cpu() - one for program, one in zip(pair.programs, before, strict=True)]
        for perf in watching:
            perf.send_signal(signal.SIGINT)
            perf.wait(GRACE)
    texts = [f"== by library\n{_said(load, figures)}"]
    for (program, path), cpu in zip(records, spent, strict=True):
        script = run(["perf", "script", "-i", str(path), "-F", "ip,sym,dso"], seconds=120)
        texts.append(f"\n-- {program.name}\n{render_symbols(symbols(script), cpu / figures['requests'] * 1e6)}")
    return "\n".join(texts)


def _watch(program: Program, path: Path) -> subprocess.Popen[bytes]:
    argv = ["perf", "record", "-q", "-F", str(_RATE), "-e", "cpu-clock", "-g", "-o", str(path), "-p", str(program.pid)]
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def symbols(script: str) -> Symbols:
    """Count what ``perf script -F ip,sym,dso`` says of samples with their callers.

    Each sample is a paragraph, the innermost function first, and each of its lines an address, a function and (its
    library). What the kernel did is told apart by the system call that it did it for.
    """
    found: Counter[tuple[str, str]] = Counter()
    for paragraph in re.split(r"\n\s*\n", script):
        frames = [told for line in paragraph.splitlines() if (told := _FRAME.fullmatch(line)) is not None]
        if not frames:
            continue
        where = library(frames[0][2])
        if where == "kernel":
            called = (_CALL.match(frame[1]) for frame in frames)
            where += f" ({next((call[1] for call in called if call is not None), 'no system call')})"
        found[where, frames[0][1]] += 1
    return found


def library(path: str) -> str:
    """What a shared object is to us."""
    return next((known for part, known in _LIBRARIES.items() if part in path), path.rpartition("/")[2])


def render_symbols(found: Symbols, micros: float, top: int = _TOP) -> str:
    """Libraries and functions by their own time.

    :param micros: of processor time for a request; shares are given as their part of it
    """
    total = sum(found.values()) or 1
    libraries: Counter[str] = Counter()
    for (where, _), count in found.items():
        libraries[where] += count
    lines = [f"{total} samples, {micros:.3g} µs of processor time a request", "", "  own     µs  library"]
    lines += [
        f"{count / total:5.1%}  {count / total * micros:5.2f}  {where}"
        for where, count in libraries.most_common()
        if count * 500 >= total
    ]
    lines += ["", "  own     µs  function"]
    ranked: Sequence[tuple[tuple[str, str], int]] = sorted(found.items(), key=lambda each: -each[1])[:top]
    lines += [f"{n / total:5.1%}  {n / total * micros:5.2f}  {where}: {name}" for (where, name), n in ranked]
    return "\n".join(lines)


# --- lines


def render(path: Path, top: int = _TOP) -> str:
    """A sampler's file as tables: lines and functions by their own time, functions by the time within them."""
    found = json.loads(path.read_text())
    total = sum(each[0] for each in found["lines"]) or 1
    lines = [f"{total} samples, one every {found['interval'] * 1000:g} ms of processor time", "", "  own  line"]
    for count, file, line, function in found["lines"][:top]:
        source = linecache.getline(file, line).strip()
        lines.append(f"{count / total:5.1%}  {_short(file)}:{line} {function}: {source[:80]}")
    own: dict[tuple[str, str], int] = {}
    for count, file, _, function in found["lines"]:
        own[file, function] = own.get((file, function), 0) + count
    by_own = sorted(found["within"], key=lambda each: -own.get((each[1], each[2]), 0))
    by_all = sorted(found["within"], key=lambda each: -each[0])
    for ranked in (by_own, by_all):
        lines += ["", "  own   with what it calls  function"]
        for count, file, function in ranked[:top]:
            mine = own.get((file, function), 0)
            lines.append(f"{mine / total:5.1%}  {count / total:5.1%}  {_short(file)} {function}")
    return "\n".join(lines)


def _short(file: str) -> str:
    return "/".join(Path(file).parts[-3:])
