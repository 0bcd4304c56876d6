"""The worker processes of one sidecar: started, started again, dealt sockets, and ended.

What they are told and what they say is the supervisor's; here is only that there are as many as there should be, and
that somebody accepts what comes to each one's sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Final, Protocol

from sidecar.backoff import Backoff
from sidecar.errors import SidecarError
from sidecar.workers.frames import Broken, Frame, Kind
from sidecar.workers.ports import Ports
from sidecar.workers.process import WorkerProcess

log = logging.getLogger(__name__)

#: Seconds that a worker has to be ready, and to listen: a node that starts many pods at once is slow.
START_SECONDS: Final = 90.0
#: Seconds without a word, of a worker that says something every second, after which it is killed.
SILENCE: Final = 30.0
#: Seconds that workers have at the end.
END_SECONDS: Final = 8.0
#: Seconds that a worker must have run for its next start not to wait.
STEADY: Final = 10.0


class Master(Protocol):
    """Talks to the workers."""

    def began(self, worker: WorkerProcess) -> None:
        """A process runs, and has to be told everything."""

    def heard(self, worker: WorkerProcess, frame: Frame) -> None:
        """It says something.

        :raises Broken: when it may not say that
        """

    def gone(self, worker: WorkerProcess, *, orderly: bool) -> None:
        """It has ended.

        :param orderly: it has told everything
        """


class Crew:
    """As many workers as there should be.

    :param random: of the waits between two starts
    """

    def __init__(self, count: int, ports: Ports, master: Master, random: Random) -> None:
        self.count = count
        self._ports = ports
        self._master = master
        self._random = random
        #: Those that run, by their index.
        self.workers: dict[int, WorkerProcess] = {}
        self._adopters: dict[int, int] = {}  # who accepts for whom
        self._waits: dict[int, float] = {}  # until when a start is put off
        self._tasks: list[asyncio.Task[None]] = []
        self._failed: asyncio.Future[None] | None = None
        self._changed = asyncio.Event()
        self._serving = False
        self._started = False
        self._stopping = False
        #: None is started any more.
        self.draining = False

    @property
    def serving(self) -> bool:
        """Whether they take connections, or are about to."""
        return self._serving

    def live(self) -> list[WorkerProcess]:
        """Those that can be told something."""
        return [worker for _, worker in sorted(self.workers.items()) if worker.live]

    def tell(self, kind: Kind, head: Mapping[str, object], blobs: Sequence[bytes] = ()) -> None:
        """Tell all of them."""
        for worker in self.live():
            worker.send(kind, head, blobs)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so that depends on what workers do and say."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    def missing(self) -> list[str]:
        """What is not there yet, for people."""
        missing = []
        for index in range(self.count):
            worker = self.workers.get(index)
            if worker is None:
                wait = self._waits.get(index, 0.0) - time.monotonic()
                missing.append(f"worker {index} of {self.count} is not running; it starts in {max(wait, 0.0):.1f} s")
            elif not worker.listening:
                missing.append(f"worker {index} of {self.count} is not listening yet")
        return missing

    # life

    async def start(self) -> None:
        """Have every worker, without taking connections.

        :raises SidecarError: when one can not begin
        """
        self._failed = asyncio.get_running_loop().create_future()
        self._failed.add_done_callback(lambda failed: failed.cancelled() or failed.exception())  # it may be late
        self._tasks = [asyncio.ensure_future(self._keep(index)) for index in range(self.count)]
        self._tasks.append(asyncio.ensure_future(self._watch()))
        await self._all("be ready", lambda worker: worker.ready.is_set())

    async def serve(self) -> None:
        """Take connections.

        :raises SidecarError: when a worker does not listen
        """
        self._serving = True
        for worker in self.live():
            self._hand(worker, worker.index)
        await self._all("listen", lambda worker: worker.listening)
        self._started = True

    async def stop(self) -> None:
        """End all: in good order, or when their time is over. Calling it again changes nothing."""
        if self._stopping and not self._tasks:
            return
        self._stopping = True
        for worker in self.live():
            worker.stopped = True
            worker.send(Kind.STOP)
        try:
            async with asyncio.timeout(END_SECONDS):
                await self.until(lambda: not self.workers)
        except TimeoutError:
            for worker in list(self.workers.values()):
                log.warning("worker %d (process %d) did not end by itself", worker.index, worker.pid)
                worker.kill()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_SECONDS):
                    await self.until(lambda: not self.workers)
        finally:
            tasks, self._tasks = self._tasks, []
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for worker in self.workers.values():
                worker.kill()

    async def _all(self, what: str, good: Callable[[WorkerProcess], bool]) -> None:
        """Wait until ``good`` is true of every worker.

        :raises SidecarError: when one can not begin
        """
        assert self._failed is not None
        waiting = asyncio.ensure_future(
            self.until(lambda: len(self.workers) == self.count and all(map(good, self.workers.values())))
        )
        try:
            await asyncio.wait({waiting, self._failed}, timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if self._failed.done():
                self._failed.result()
            if not waiting.done():
                raise SidecarError(
                    f"workers: not all of {self.count} could {what} within {START_SECONDS:g} s; see what they logged, "
                    "or set fewer"
                )
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    async def _keep(self, index: int) -> None:
        """Run one worker after another, until we end."""
        backoff = Backoff(self._random)
        while not self.draining and not self._stopping:
            try:
                worker = await WorkerProcess.start(index, self._heard)
            except OSError as error:
                log.error("worker %d can not be started: %s", index, error.strerror)
                await self._pause(index, backoff.failed())
                continue
            code = -1
            try:
                self._begin(worker)
                code = await worker.over()
            finally:
                worker.kill()
                self._gone(worker, code)
            if worker.stopped and code == 0:
                return
            ran = time.monotonic() - worker.began_at
            log.error("worker %d (process %d) ended with code %d after %.1f s", index, worker.pid, code, ran)
            if self._failed is not None and not self._failed.done() and not self._serving:
                text = f"workers: worker {index} ended with code {code} before it could carry anything; see its log"
                self._failed.set_exception(SidecarError(text))
                return
            if ran >= STEADY:
                backoff.succeeded()
            else:
                await self._pause(index, backoff.failed())

    async def _pause(self, index: int, seconds: float) -> None:
        self._waits[index] = time.monotonic() + seconds
        await asyncio.sleep(seconds)

    def _begin(self, worker: WorkerProcess) -> None:
        self.workers[worker.index] = worker
        self._master.began(worker)
        if self._serving:
            self._hand(worker, worker.index)
        self._changed.set()

    def _gone(self, worker: WorkerProcess, code: int) -> None:
        if self.workers.get(worker.index) is worker:
            del self.workers[worker.index]
        self._master.gone(worker, orderly=not self._serving or (worker.stopped and code == 0))
        for index in [worker.index, *(one for one, by in self._adopters.items() if by == worker.index)]:
            self._adopters.pop(index, None)
            self._adopt(index)
        self._changed.set()

    def _heard(self, worker: WorkerProcess, frame: Frame) -> None:
        if frame.kind is Kind.READY:
            worker.ready.set()
        elif frame.kind is Kind.LISTENING:
            self._listens(worker)
        else:
            self._master.heard(worker, frame)
        self._changed.set()

    async def _watch(self) -> None:
        """Kill who says nothing any more, until cancelled."""
        while True:
            await asyncio.sleep(SILENCE / 10)
            self.kill_silent(time.monotonic())

    def kill_silent(self, now: float) -> None:
        """Kill who has said nothing for too long.

        :param now: seconds of the monotonic clock
        """
        for worker in self.live():
            if worker.listening and now - worker.heard_at > SILENCE:
                text = "worker %d (process %d) has said nothing for %.0f s and is killed"
                log.error(text, worker.index, worker.pid, now - worker.heard_at)
                worker.kill()

    # sockets

    def _hand(self, worker: WorkerProcess, of: int) -> None:
        """Have a worker accept from its own sockets, or from those of another one."""
        listeners = self._ports.of(of)
        named = [list(address) for address, _ in listeners]
        worker.send(Kind.LISTEN, {"of": of, "listeners": named}, (), [sock.fileno() for _, sock in listeners])

    def _adopt(self, index: int) -> None:
        """Have another worker accept what comes to a dead one's sockets."""
        if not self._started or self._stopping:  # the others listen in a moment, or no more
            return
        able = [worker for worker in self.live() if worker.listening and worker.index != index]
        if able and self._ports.of(index):
            adopter = min(able, key=lambda one: sum(by == one.index for by in self._adopters.values()))
            self._adopters[index] = adopter.index
            self._hand(adopter, index)

    def _listens(self, worker: WorkerProcess) -> None:
        if worker.listening:
            raise Broken("LISTENING comes twice")
        worker.listening = True
        adopter = self.workers.get(self._adopters.pop(worker.index, -1))
        if adopter is not None:
            adopter.send(Kind.RELEASE, {"of": worker.index})
        for index in range(self.count):  # those for whom there was nobody
            other = self.workers.get(index)
            if (other is None or not other.listening) and index not in self._adopters:
                self._adopt(index)
