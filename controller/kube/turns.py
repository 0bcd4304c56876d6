"""Does something for many namespaces so that none keeps the others waiting.

What one namespace makes of our requests is not ours to choose: a broken admission webhook answers each with 500, a slow
one after seconds. So:

1. Each namespace's turn is apart from the others': what it raises ends that turn, and nothing else.
2. Who failed waits, doubling up to :data:`LONGEST`, and is then tried again.
3. Who failed or took long last time waits for its turn with others of that sort, and not in front of those that are
   well.
4. A round waits for those that are well, for :data:`PATIENCE` at most; a turn that still lasts goes on beside the next
   rounds, and there is never a second one of the same namespace.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from random import Random

from controller.errors import ControllerError
from controller.kube.errors import Unreachable
from controller.kube.retry import Retry

log = logging.getLogger("hedgerow.kube")

#: Seconds until the second try after a failure, at most, and the longest between two tries.
FIRST = 1.0
LONGEST = 60.0
#: Turns at one time of namespaces that are well, and of others.
WELL, TROUBLED = 4, 2
#: Seconds that a round waits for its turns, and what a turn may take without being called slow.
PATIENCE = 5.0


@dataclass(slots=True)
class _Trouble:
    retry: Retry
    problem: str = ""
    until: float = 0.0
    waking: asyncio.TimerHandle | None = field(default=None)


class Turns:
    """:param about: what is done, for the log
    :param visit: does it for one namespace
    :param wake: called when a turn ended that a round did not wait for, and when one is to be tried again
    """

    def __init__(
        self,
        about: str,
        visit: Callable[[str], Awaitable[None]],
        wake: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        random: Random | None = None,
    ) -> None:
        self._about = about
        self._visit = visit
        self._wake = wake
        self._clock = clock
        self._random = random or Random()  # noqa: S311  # spreads retries, keeps no secret
        self._running: dict[str, asyncio.Task[None]] = {}
        self._troubles: dict[str, _Trouble] = {}
        self._slow: set[str] = set()
        self._well = asyncio.Semaphore(WELL)
        self._troubled = asyncio.Semaphore(TROUBLED)

    def problem(self, namespace: str) -> str:
        """Why its last turn failed; empty when it did not."""
        trouble = self._troubles.get(namespace)
        return trouble.problem if trouble is not None else ""

    async def round(self, namespaces: Collection[str]) -> None:
        """Let every namespace that does not wait have its turn.

        :param namespaces: all that there are; others are forgotten
        """
        there = self._running.keys() | set(namespaces)
        for gone in self._troubles.keys() - there:
            self._forget(gone)
        self._slow &= there
        now = self._clock()
        well: list[asyncio.Task[None]] = []
        lasting: list[asyncio.Task[None]] = []
        for namespace in namespaces:
            trouble = self._troubles.get(namespace)
            if namespace in self._running or (trouble is not None and now < trouble.until):
                continue
            troubled = trouble is not None or namespace in self._slow
            turn = asyncio.create_task(self._turn(namespace, troubled), name=f"{self._about} {namespace}")
            self._running[namespace] = turn
            (lasting if troubled else well).append(turn)
        if well:
            _, late = await asyncio.wait(well, timeout=PATIENCE)
            lasting += late
        for turn in lasting:
            turn.add_done_callback(lambda _: self._wake())

    def begin_again(self) -> None:
        """What was wrong may have been the way to the API server: wait for nobody."""
        for trouble in self._troubles.values():
            trouble.until = 0.0
            trouble.retry.succeeded()

    async def end(self) -> None:
        """End all turns."""
        running = list(self._running.values())
        for turn in running:
            turn.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for trouble in self._troubles.values():
            if trouble.waking is not None:
                trouble.waking.cancel()

    async def _turn(self, namespace: str, troubled: bool) -> None:
        try:
            async with self._troubled if troubled else self._well:
                began = self._clock()
                try:
                    await self._visit(namespace)
                except ControllerError as error:
                    self._failed(namespace, str(error), error.retry_after if isinstance(error, Unreachable) else 0.0)
                except Exception as error:
                    log.exception("%s of namespace %s: a fault; please report it", self._about, namespace)
                    self._failed(namespace, f"a fault: {type(error).__name__}: {error}", 0.0)
                else:
                    self._forget(namespace)
                if self._clock() - began > PATIENCE:
                    self._slow.add(namespace)
                else:
                    self._slow.discard(namespace)
        finally:
            del self._running[namespace]

    def _failed(self, namespace: str, problem: str, asked: float) -> None:
        trouble = self._troubles.get(namespace)
        if trouble is None:
            trouble = self._troubles[namespace] = _Trouble(Retry(self._random, FIRST, LONGEST))
        if trouble.problem != problem:
            log.warning("%s of namespace %s: %s; it is tried again", self._about, namespace, problem)
        trouble.problem = problem
        # nobody else waits for it, and who answers 500 also says when to come back
        wait = trouble.retry.failed(min(asked, LONGEST))
        trouble.until = self._clock() + wait
        if trouble.waking is not None:
            trouble.waking.cancel()
        trouble.waking = asyncio.get_running_loop().call_later(wait, self._wake)

    def _forget(self, namespace: str) -> None:
        trouble = self._troubles.pop(namespace, None)
        if trouble is not None and trouble.waking is not None:
            trouble.waking.cancel()
