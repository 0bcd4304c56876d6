"""Keeps the parts that work on the cluster going: each in a task of its own, restarted with backoff.

A fault of one part never stops another, nor the controller; what it said last stays in force. What is expected to pass
(:attr:`~controller.kube.errors.KubernetesError.passing`) is logged in one line, when it begins to be different and once
a minute after that; anything else with its trace, because it is a bug.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from random import Random
from typing import Protocol

from controller.errors import ControllerError
from controller.kube.errors import Unreachable
from controller.kube.retry import Retry

log = logging.getLogger("hedgerow.kube")

#: Seconds after which a part that ran that long is taken to be well: its next failure waits the shortest time.
SETTLED = 60.0
#: The longest wait between two tries, seconds.
LONGEST = 10.0
#: Seconds for which the same complaint is not repeated.
QUIET = 60.0


class Part(Protocol):
    """One thing that the controller does on the cluster."""

    @property
    def name(self) -> str:
        """For people, such as ``inventory``."""

    @property
    def synced(self) -> bool:
        """Whether it has done its first round: it knows what there is, and what it keeps is as it should be."""

    async def run(self) -> None:
        """Do it until cancelled. Begun again, on the same object, after it raised or returned."""


class Complaints:
    """Which complaints were made lately. All parts share one: a server that is away is one complaint, not fifteen."""

    def __init__(self) -> None:
        self._said: dict[str, float] = {}

    def is_new(self, complaint: str, now: float) -> bool:
        """Whether it was not made within :data:`QUIET` seconds; then it counts as made now."""
        self._said = {each: at for each, at in self._said.items() if now - at < QUIET}
        if complaint in self._said:
            return False
        self._said[complaint] = now
        return True


class Supervised:
    """One part and how it fares."""

    def __init__(self, part: Part, clock: Callable[[], float], random: Random, complaints: Complaints) -> None:
        self.part = part
        #: Why it ended last, and when.
        self.problem = ""
        self.failed: float | None = None
        self.failures = 0
        self._clock = clock
        self._retry = Retry(random, longest=LONGEST)
        self._complaints = complaints

    async def keep(self) -> None:
        """Run the part for ever."""
        while True:
            began = self._clock()
            asked = 0.0
            try:
                await self.part.run()
                self._note("it ended by itself", None)
            except ControllerError as error:
                away = isinstance(error, Unreachable)
                asked = error.retry_after if isinstance(error, Unreachable) else 0.0
                self._note(str(error), None, "unreachable" if away else "")
            except Exception as error:
                self._note(f"a fault: {type(error).__name__}: {error}", error)
            if self._clock() - began >= SETTLED:
                self._retry.succeeded()
            await asyncio.sleep(self._retry.failed(asked))

    def _note(self, problem: str, fault: Exception | None, alike: str = "") -> None:
        """:param alike: what the complaints of several parts have in common, where one is enough"""
        self.problem = problem
        self.failed = self._clock()
        self.failures += 1
        if not self._complaints.is_new(alike or f"{self.part.name}: {problem}", self._clock()):
            return
        if fault is not None:
            log.error("%s: %s; it is begun again; please report it", self.part.name, problem, exc_info=fault)
        else:
            log.warning("%s: %s; it is tried again", self.part.name, problem)


class Supervision:
    """All parts together.

    :param clock: seconds; only differences count
    """

    def __init__(self, parts: Sequence[Part], clock: Callable[[], float], random: Random | None = None) -> None:
        chosen = random or Random()  # noqa: S311  # spreads retries, keeps no secret
        complaints = Complaints()
        self.parts = tuple(Supervised(part, clock, chosen, complaints) for part in parts)

    async def run(self) -> None:
        """Keep all of them going until cancelled."""
        async with asyncio.TaskGroup() as group:
            for each in self.parts:
                group.create_task(each.keep(), name=f"kube-{each.part.name}")

    @property
    def synced(self) -> bool:
        return all(each.part.synced for each in self.parts)

    def waiting(self) -> dict[str, str]:
        """The parts that are not synced, and the last problem of each."""
        return {each.part.name: each.problem for each in self.parts if not each.part.synced}
