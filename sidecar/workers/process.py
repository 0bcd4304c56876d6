"""One worker process, as the supervisor sees it: started afresh, spoken to, and ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from sidecar.workers.frames import FROM_WORKER, Frame, Kind
from sidecar.workers.link import Link

log = logging.getLogger(__name__)

#: Seconds that a process may take to end once it has hung up.
LAST_SECONDS: Final = 2.0


class WorkerProcess:
    """A process that runs :mod:`sidecar.workers.app`. Two are equal only when they are the same."""

    def __init__(self, index: int, process: asyncio.subprocess.Process, link: Link) -> None:
        self.index = index
        self.process = process
        self._link = link
        self._left = asyncio.Event()
        self._answers: dict[tuple[Kind, int], asyncio.Future[str | None]] = {}
        self.ready = asyncio.Event()
        self.listening = False
        self.stopped = False
        self.heard_at = time.monotonic()
        self.began_at = time.monotonic()
        #: What it said of itself last.
        self.stats: Mapping[str, object] = {}
        #: Of the policy that it judges by; 0: none.
        self.version = 0

    @classmethod
    async def start(cls, index: int, take: Callable[[WorkerProcess, Frame], None]) -> WorkerProcess:
        """Start one.

        :param take: gets what it says; may raise :class:`~sidecar.workers.frames.Broken`
        :raises OSError: when no process can be had
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        level = logging.getLevelName(logging.getLogger().level).lower()
        command = [sys.executable, *_paths(), "-m", "sidecar.workers", str(theirs.fileno()), str(os.getpid()), level]
        try:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, pass_fds=(theirs.fileno(),)
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        made: WorkerProcess

        def heard(frame: Frame, descriptors: list[int]) -> None:
            for descriptor in descriptors:  # nobody asked for any
                os.close(descriptor)
            made.heard_at = time.monotonic()
            take(made, frame)

        def lost(why: str) -> None:
            if not made.stopped:
                log.warning("worker %d (process %d) is lost: %s", index, process.pid, why)
            if link.left:  # it ends, and its exit code may say something
                asyncio.get_running_loop().call_later(LAST_SECONDS, made.kill)
            else:
                made.kill()
            made._left.set()

        link = Link(ours, FROM_WORKER, heard, lost)
        made = cls(index, process, link)
        link.start()
        return made

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def live(self) -> bool:
        """Whether it can be told something."""
        return self._link.open

    def send(
        self,
        kind: Kind,
        head: Mapping[str, object] | None = None,
        blobs: Sequence[bytes] = (),
        descriptors: Sequence[int] = (),
    ) -> None:
        """Tell it something, or nobody, when it is gone."""
        self._link.send(kind, head, blobs, descriptors)

    def expect(self, kind: Kind, number: int = 0) -> asyncio.Future[str | None]:
        """What it will answer: an error, empty when there is none; None when it is gone before."""
        answer = self._answers[(kind, number)] = asyncio.get_running_loop().create_future()
        if not self.live:
            answer.set_result(None)
        return answer

    def expect_no_more(self, kind: Kind, number: int) -> None:
        """It need not answer any more."""
        self._answers.pop((kind, number), None)

    def answered(self, kind: Kind, number: int = 0, error: str = "") -> bool:
        """It has answered. False: it was not asked."""
        answer = self._answers.pop((kind, number), None)
        if answer is not None and not answer.done():
            answer.set_result(error)
        return answer is not None

    def kill(self) -> None:
        """End it now."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()

    def forsake(self) -> None:
        """It was killed, and its end is not seen: nothing is said to it or heard of it any more."""
        self._link.close()
        self.listening = False
        self._answer_none()

    def _answer_none(self) -> None:
        for answer in self._answers.values():
            if not answer.done():
                answer.set_result(None)
        self._answers.clear()

    async def over(self) -> int:
        """Wait for its end, and for the last that it said; the exit code."""
        code = await self.process.wait()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._left.wait(), LAST_SECONDS)
        self._link.close()
        self.listening = False
        self._answer_none()
        self.ready.set()  # nobody is to wait for it any more
        return code


def _paths() -> list[str]:
    """Where the interpreter may import from: as we were told, and nowhere else."""
    return ["-I"] if sys.flags.isolated else ["-P"] if sys.flags.safe_path else []
