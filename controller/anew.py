"""A controller whose cluster has become much smaller begins anew, in place, for that brings down what memory it takes.

Python returns memory by the megabyte and moves nothing, so that something that is still in use keeps nearly all of what
a large cluster needed (:mod:`controller.memory`). A process that begins has nothing of that. It can begin at any time:
what a controller knows is in its store and at the API server, and sidecars go on with what they hold. The program
replaces itself (``execve``) after the same orderly end that SIGTERM brings, and is away for as long as a start takes;
process, container and parent stay what they are.

Rules:

1. Only when it is worth it: when the objects that are left would take so much less private memory, and an eighth less.
   What each takes is what all there were have added to what an empty controller took.
2. Once an hour at most, however often the cluster grows and shrinks.
3. Whoever stops a controller stops it: an end that was asked for is none of these.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

log = logging.getLogger("hedgerow.controller")

#: Seconds between two of these at least.
APART = 3600.0
#: In the environment of a process that has begun anew: when, in seconds since the epoch.
BEGAN = "HEDGEROW_CONTROLLER_BEGAN_ANEW"
#: Of what is taken: the least that is worth it, whatever the setting says.
_PART = 1 / 8


def private_bytes(status: Path = Path("/proc/self/status")) -> int:
    """What is resident and in no file.

    :raises OSError: on a system that does not tell
    """
    for line in status.read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{status} does not say how much is resident in no file")


class Anew:
    """Decides it.

    :param worth: bytes of private memory; 0: never
    :param begin: called when it is time
    :param clock: seconds since the epoch
    """

    def __init__(
        self,
        worth: int,
        begin: Callable[[], None],
        clock: Callable[[], float] = time.time,
        taken: Callable[[], int] = private_bytes,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._worth = worth
        self._begin = begin
        self._clock = clock
        self._taken = taken
        self._last = _moment(environment.get(BEGAN, ""))
        self._empty = 0

    def empty(self) -> None:
        """To be called when everything serves and the cluster is not known yet."""
        self._empty = self._measured()

    def shrunk(self, left: float) -> None:
        """To be called when a cluster has become smaller, and stayed so, and memory was given back.

        :param left: objects that there are, over the most that there were in this run
        """
        taken = self._measured()
        spared = (taken - self._empty) * (1 - left)
        if not self._worth or not self._empty or spared < max(self._worth, taken * _PART):
            return
        # a clock that was put back since says nothing of an hour
        if self._last is not None and 0 <= self._clock() - self._last < APART:
            log.info("beginning anew would return %d MB; that was done less than an hour ago", spared / 2**20)
            return
        log.info(
            "%d %% of the cluster is left: beginning anew in this process, to return about %d of %d MB",
            100 * left,
            spared / 2**20,
            taken / 2**20,
        )
        self._begin()

    def _measured(self) -> int:
        try:
            return self._taken()
        except OSError as error:
            log.debug("private memory is not known: %s", error)
            return 0


def _moment(written: str) -> float | None:
    try:
        return float(written)
    except ValueError:
        return None


def replace() -> None:
    """Run this program anew in this process, as it was started. Does not return.

    :raises OSError: when the system refuses; everything has been closed by then
    """
    # without a handler it would end what has not yet begun to listen for it
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    logging.shutdown()
    environment = {**os.environ, BEGAN: str(time.time())}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606  # our own program, as it was
