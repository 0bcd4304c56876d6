"""Runs a sidecar and looks, every 4 ms of its processor time, at what it is doing: ``sampler OUT --config FILE``.

A signal of the processor-time timer (setitimer(2), ITIMER_PROF) reaches Python between two bytecodes: time in C (TLS,
system calls) counts for the line that called. Begins at SIGUSR2, so that the start does not count, and writes JSON at
the end: lists of [samples, file, line, function], and of [samples, file, function] for what was anywhere on the stack.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType

#: No shorter than a tick of the usual kernel (250 a second), which is what the timer can do.
_INTERVAL = 0.004


class Sampler:
    """Counts innermost lines, and for each function the samples in which it was anywhere on the stack."""

    def __init__(self) -> None:
        self.lines: Counter[tuple[str, int, str]] = Counter()
        self.within: Counter[tuple[str, str]] = Counter()

    def start(self) -> None:
        signal.signal(signal.SIGPROF, self._sample)
        signal.setitimer(signal.ITIMER_PROF, _INTERVAL, _INTERVAL)

    def _sample(self, _number: int, frame: FrameType | None) -> None:
        if frame is None:
            return
        code = frame.f_code
        self.lines[code.co_filename, frame.f_lineno or 0, code.co_qualname] += 1
        seen: set[tuple[str, str]] = set()
        at: FrameType | None = frame
        while at is not None:
            seen.add((at.f_code.co_filename, at.f_code.co_qualname))
            at = at.f_back
        self.within.update(seen)

    def write(self, path: Path) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        lines = [[count, *where] for where, count in self.lines.most_common()]
        within = [[count, *where] for where, count in self.within.most_common()]
        path.write_text(json.dumps({"interval": _INTERVAL, "lines": lines, "within": within}))


def main() -> int:
    from sidecar.__main__ import ALLOCATOR
    from sidecar.__main__ import main as sidecar

    os.environ.update(ALLOCATOR)  # given by the caller already: a restart would lose the timer
    out, *arguments = sys.argv[1:]
    sampler = Sampler()
    signal.signal(signal.SIGUSR2, lambda *_: sampler.start())
    try:
        return sidecar(arguments)
    finally:
        sampler.write(Path(out))


if __name__ == "__main__":
    sys.exit(main())
