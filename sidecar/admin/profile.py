"""Where the event loop's thread spends its processor time, by looking at its stack again and again.

A timer of the kernel counts the time that the process really runs and interrupts the main thread, which looks at
itself between two of its bytecodes. It takes about a hundredth of one core and changes nothing in the data path; a
tracing profiler would slow that down by half. (A thread that looks would see the main thread only where it lets go of
Python's lock, which in the data path is always the same few calls.)
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections import Counter
from types import FrameType
from typing import Final

MAX_SECONDS: Final = 60.0
#: Seconds of processor time between two samples.
INTERVAL: Final = 0.005
#: Different stacks that are told apart; more are counted as one.
MAX_STACKS: Final = 5000
MAX_DEPTH: Final = 64


class Sampler:
    """Takes one profile at a time, of the process's main thread."""

    def __init__(self) -> None:
        self._stacks: Counter[str] | None = None

    @property
    def running(self) -> bool:
        return self._stacks is not None

    async def run(self, seconds: float) -> str:
        """Look for a while, in which nothing else may be asked for. Called on the main thread.

        :param seconds: up to :data:`MAX_SECONDS`
        :return: one line for each stack, outermost function first, and how often it was seen: the format that
            https://github.com/brendangregg/FlameGraph and https://www.speedscope.app read
        """
        assert self._stacks is None
        assert threading.current_thread() is threading.main_thread(), "signals arrive there alone"
        stacks = self._stacks = Counter()
        signal.signal(signal.SIGPROF, self._look)
        signal.setitimer(signal.ITIMER_PROF, INTERVAL, INTERVAL)
        try:
            await asyncio.sleep(min(seconds, MAX_SECONDS))
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, signal.SIG_IGN)  # not the default: one may be under way, and would end us
            self._stacks = None
        return "".join(f"{stack} {count}\n" for stack, count in stacks.most_common())

    def _look(self, number: int, frame: FrameType | None) -> None:
        stacks = self._stacks
        if stacks is not None and frame is not None:
            stack = _written(frame)
            stacks[stack if stack in stacks or len(stacks) < MAX_STACKS else "(others)"] += 1


def _written(frame: FrameType | None) -> str:
    names: list[str] = []
    while frame is not None and len(names) < MAX_DEPTH:
        code = frame.f_code
        module = frame.f_globals.get("__name__", "?")
        names.append(f"{module}.{code.co_qualname}".replace(";", ":").replace(" ", "_"))
        frame = frame.f_back
    return ";".join(reversed(names))
