"""Looks after the workers: starts them, deals them sockets, tells them what changes, and adds up what they tell.

The governing rules:

1. A policy is in force when every worker has it. First each verifies it; if one refuses, none applies it. A worker that
   does not answer in time is killed: it might still let through what is denied now.
2. A worker that dies is started again. Meanwhile another one accepts from its sockets; its live connections are lost,
   and nothing else is.
3. What a worker says is checked; one that says what it may not is killed.
4. Nothing waits for one worker but what has to: policy, drain and end do, each for a limited time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random
from typing import Final

from google.protobuf.message import DecodeError as ProtobufDecodeError

from graph.errors import DecodeError
from graph.wire import hedgerow_pb2 as pb
from graph.wire.bounds import MAX_VERSION
from graph.wire.codec import flow_from_message
from graph.wire.taps import shown_from_message
from sidecar.backoff import Backoff
from sidecar.credentials import CredentialStore
from sidecar.dataplane.sockets import Address, Inherited
from sidecar.errors import SidecarError, SnapshotRejected
from sidecar.settings import Settings
from sidecar.workers import values
from sidecar.workers.figures import Figures
from sidecar.workers.frames import Broken, Frame, Kind, number, one_blob, words
from sidecar.workers.harvests import Harvests
from sidecar.workers.messages import proof_head, read_proof, svid_blobs
from sidecar.workers.ports import Ports
from sidecar.workers.process import WorkerProcess
from sidecar.workers.questions import Questions
from sidecar.workers.relayed_taps import RelayedTaps
from sidecar.workers.settings import worker_settings

log = logging.getLogger(__name__)

#: Seconds that a worker has to be ready, and to listen.
START_SECONDS: Final = 30.0
#: Seconds that a worker has to answer about a policy.
PATIENCE: Final = 5.0
#: Seconds without a word, of a worker that says something every second, after which it is killed.
SILENCE: Final = 30.0
#: Seconds that workers have at the end, beyond what they were given to drain.
END_SECONDS: Final = 8.0
#: Seconds that a worker must have run for its next start not to wait.
STEADY: Final = 10.0


class Workers:
    """Implements :class:`sidecar.data_path.DataPath` and :class:`sidecar.policy_client.Followers`.

    :param figures: gets their metrics and statistics
    :param random: of the waits between two starts
    """

    def __init__(
        self,
        settings: Settings,
        credentials: CredentialStore,
        questions: Questions,
        harvests: Harvests,
        figures: Figures,
        taps: RelayedTaps,
        random: Random,
    ) -> None:
        self._settings = settings
        self._count = settings.workers
        self._credentials = credentials
        self._questions = questions
        self._harvests = harvests
        self._figures = figures
        self._taps = taps
        self._random = random
        self._ports = Ports(worker_settings(settings, 0).data_plane, settings.workers)
        self._workers: dict[int, WorkerProcess] = {}
        self._adopters: dict[int, int] = {}  # who accepts for whom
        self._waits: dict[int, float] = {}  # until when a start is put off
        self._tasks: list[asyncio.Task[None]] = []
        self._failed: asyncio.Future[None] | None = None
        self._changed = asyncio.Event()
        self._signed: bytes | None = None
        self._prepared: tuple[int, bytes, list[WorkerProcess]] | None = None
        self._number = 0
        self._drained: set[WorkerProcess] = set()
        self._serving = False
        self._started = False
        self._draining = False
        self._stopping = False
        self._logged: dict[str, str] = {}
        taps.tell = lambda command: self._tell(Kind.TAP, {}, (command,))
        credentials.subscribe(self._renewed)

    # the data path

    @property
    def listeners(self) -> list[tuple[Address, socket.socket]]:
        return self._ports.listeners

    async def listen(self, inherited: Inherited | None) -> None:
        """Have the sockets and every worker, without taking connections.

        :raises SidecarError: when an address can not be listened on, or a worker can not begin
        """
        self._ports.listen(inherited)
        self._failed = asyncio.get_running_loop().create_future()
        self._failed.add_done_callback(lambda failed: failed.cancelled() or failed.exception())  # it may be late
        self._tasks = [asyncio.ensure_future(self._keep(index)) for index in range(self._count)]
        self._tasks.append(asyncio.ensure_future(self._watch()))
        try:
            await self._all("be ready", lambda worker: worker.ready.is_set())
        except BaseException:
            await self.stop()
            raise

    async def start(self) -> None:
        """Take connections.

        :raises SidecarError: when a worker does not listen
        """
        self._serving = True
        for worker in self._live():
            self._deal(worker)
        await self._all("listen", lambda worker: worker.listening)
        self._started = True
        log.info("%d workers listen: processes %s", self._count, ", ".join(str(one.pid) for one in self._live()))

    async def drain(self, deadline: float, *, replaced: bool) -> None:
        self._draining = True
        # ours first: a socket that somebody holds takes connections, and nobody would come for them
        if replaced:
            self._ports.close()
        else:
            self._ports.close_inbound()
        self._tell(Kind.DRAIN, {"seconds": deadline, "replaced": replaced})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline + END_SECONDS):
                await self._until(lambda: all(worker in self._drained for worker in self._live()))

    async def stop(self) -> None:
        if self._stopping and not self._tasks:
            return
        self._stopping = True
        self._ports.close()
        for worker in self._live():
            worker.stopped = True
            worker.send(Kind.STOP)
        try:
            async with asyncio.timeout(END_SECONDS):
                await self._until(lambda: not self._workers)
        except TimeoutError:
            for worker in list(self._workers.values()):
                log.warning("worker %d (process %d) did not end by itself", worker.index, worker.pid)
                worker.kill()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_SECONDS):
                    await self._until(lambda: not self._workers)
        finally:
            tasks, self._tasks = self._tasks, []
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for worker in self._workers.values():
                worker.kill()

    def missing(self) -> list[str]:
        missing = []
        for index in range(self._count):
            worker = self._workers.get(index)
            if worker is None:
                wait = self._waits.get(index, 0.0) - time.monotonic()
                missing.append(f"worker {index} of {self._count} is not running; it starts in {max(wait, 0.0):.1f} s")
            elif not worker.listening:
                missing.append(f"worker {index} of {self._count} is not listening yet")
            elif self._signed is not None and not worker.version:
                missing.append(f"worker {index} of {self._count} holds no policy snapshot yet")
        return missing

    def stats(self) -> dict[str, object]:
        return self._figures.stats(self._workers)

    # followers of the policy

    def hold(self, signed: bytes) -> None:
        self._signed = signed
        self._number += 1
        self._tell(Kind.HOLD, {"number": self._number}, (signed,))

    async def prepare(self, signed: bytes) -> None:
        self._number += 1
        workers = self._live()
        answers = [worker.expect(Kind.PREPARED, self._number) for worker in workers]
        for worker in workers:
            worker.send(Kind.PREPARE, {"number": self._number}, (signed,))
        await self._answered(workers, answers)
        for worker, answer in zip(workers, answers, strict=True):
            if error := answer.result():
                raise SnapshotRejected(f"worker {worker.index}: {error}")
        self._prepared = (self._number, signed, workers)

    async def commit(self) -> None:
        assert self._prepared is not None, "prepare() comes first"
        number_, signed, prepared = self._prepared
        self._prepared = None
        self._signed = signed
        workers = self._live()
        answers = [worker.expect(Kind.IN_FORCE, number_) for worker in workers]
        for worker in workers:
            if worker in prepared:
                worker.send(Kind.COMMIT, {"number": number_})
            else:  # it began meanwhile, with the one before
                worker.send(Kind.HOLD, {"number": number_}, (signed,))
        await self._answered(workers, answers)
        for worker, answer in zip(workers, answers, strict=True):
            if error := answer.result():
                log.error("worker %d refuses what others judge by, and is killed: %s", worker.index, error)
                worker.kill()

    async def _answered(self, workers: Sequence[WorkerProcess], answers: list[asyncio.Future[str | None]]) -> None:
        """Wait until each has answered, or is dead."""
        if not answers:
            return
        _, late = await asyncio.wait(answers, timeout=PATIENCE)
        for worker, answer in zip(workers, answers, strict=True):
            if answer in late:
                log.error("worker %d (process %d) does not answer and is killed", worker.index, worker.pid)
                worker.kill()
        if late:
            await asyncio.wait(late)

    def _renewed(self) -> None:
        self._tell(Kind.SVID, {}, svid_blobs(self._credentials.svid))

    # for people

    def log_level(self, level: str, logger: str) -> None:
        """Have workers log more or less."""
        self._logged[logger] = level
        self._tell(Kind.LOG, {"level": level, "logger": logger})

    def access_log(self, mode: str) -> None:
        """Have workers write another access log."""
        self._figures.mode = mode
        self._tell(Kind.LOG, {"mode": mode})

    async def show(self, what: str) -> list[object]:
        """A page of every worker: ``tunnels``, ``connections`` or ``memory``."""
        self._number += 1
        workers = self._live()
        asked = self._number
        answers = [worker.expect(Kind.SHOWN, asked) for worker in workers]
        for worker in workers:
            worker.send(Kind.SHOW, {"id": asked, "what": what})
        if answers:
            await asyncio.wait(answers, timeout=PATIENCE)
        return [{"worker": one.index, **self._figures.shown(one, asked)} for one in workers]

    # one worker's life

    def _live(self) -> list[WorkerProcess]:
        return [worker for _, worker in sorted(self._workers.items()) if worker.live]

    def _tell(self, kind: Kind, head: Mapping[str, object], blobs: Sequence[bytes] = ()) -> None:
        for worker in self._live():
            worker.send(kind, head, blobs)

    async def _all(self, what: str, good: Callable[[WorkerProcess], bool]) -> None:
        """Wait until ``good`` is true of every worker.

        :raises SidecarError: when one can not begin
        """
        assert self._failed is not None
        waiting = asyncio.ensure_future(
            self._until(lambda: len(self._workers) == self._count and all(map(good, self._workers.values())))
        )
        try:
            await asyncio.wait({waiting, self._failed}, timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if self._failed.done():
                self._failed.result()
            if not waiting.done():
                raise SidecarError(
                    f"workers: not all of {self._count} could {what} within {START_SECONDS:g} s; see what they logged, "
                    "or set fewer"
                )
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def _keep(self, index: int) -> None:
        """Run one worker after another, until we end."""
        backoff = Backoff(self._random)
        while not self._draining and not self._stopping:
            try:
                worker = await WorkerProcess.start(index, self._take)
            except OSError as error:
                log.error("worker %d can not be started: %s", index, error.strerror)
                await self._pause(index, backoff.failed())
                continue
            try:
                self._begin(worker)
                code = await worker.over()
            finally:
                worker.kill()
                self._gone(worker)
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
        """Tell it everything that it has to know."""
        self._workers[worker.index] = worker
        self._questions.began(worker)
        self._harvests.began(worker.pid)
        settings = worker_settings(self._settings, worker.index)
        worker.send(Kind.START, {"settings": values.encode(settings)})
        worker.send(Kind.SVID, {}, svid_blobs(self._credentials.svid))
        if self._signed is not None:
            self._number += 1
            worker.send(Kind.HOLD, {"number": self._number}, (self._signed,))
        for logger, level in self._logged.items():
            worker.send(Kind.LOG, {"level": level, "logger": logger})
        worker.send(Kind.LOG, {"mode": self._figures.mode})
        for command in self._taps.commands():
            worker.send(Kind.TAP, {}, (command,))
        if self._serving:
            self._deal(worker)
        self._changed.set()

    def _gone(self, worker: WorkerProcess) -> None:
        if self._workers.get(worker.index) is worker:
            del self._workers[worker.index]
        self._questions.ended(worker)
        self._harvests.ended(worker.pid, orderly=worker.stopped or not self._serving)
        self._figures.ended(worker)
        self._drained.discard(worker)
        if not self._draining and not self._stopping:
            for index in [worker.index, *(one for one, by in self._adopters.items() if by == worker.index)]:
                self._adopters.pop(index, None)
                self._adopt(index)
        self._changed.set()

    # sockets

    def _deal(self, worker: WorkerProcess) -> None:
        self._hand(worker, worker.index)

    def _hand(self, worker: WorkerProcess, of: int) -> None:
        listeners = self._ports.of(of)
        named = [list(address) for address, _ in listeners]
        worker.send(Kind.LISTEN, {"of": of, "listeners": named}, (), [sock.fileno() for _, sock in listeners])

    def _adopt(self, index: int) -> None:
        """Have another worker accept what comes to a dead one's sockets."""
        if not self._started:  # the others listen in a moment
            return
        able = [worker for worker in self._live() if worker.listening and worker.index != index]
        if able:
            adopter = min(able, key=lambda one: sum(by == one.index for by in self._adopters.values()))
            self._adopters[index] = adopter.index
            self._hand(adopter, index)

    def _listens(self, worker: WorkerProcess) -> None:
        if worker.listening:
            raise Broken("LISTENING comes twice")
        worker.listening = True
        adopter = self._workers.get(self._adopters.pop(worker.index, -1))
        if adopter is not None:
            adopter.send(Kind.RELEASE, {"of": worker.index})
        for index in range(self._count):  # those for whom there was nobody
            other = self._workers.get(index)
            if (other is None or not other.listening) and index not in self._adopters:
                self._adopt(index)

    # what they say

    def _take(self, worker: WorkerProcess, frame: Frame) -> None:
        match frame.kind:
            case Kind.READY:
                worker.ready.set()
            case Kind.LISTENING:
                self._listens(worker)
            case Kind.PREPARED:
                if not worker.answered(Kind.PREPARED, number(frame, "number"), words(frame, "error", 500)):
                    raise Broken("PREPARED was not asked for")
            case Kind.IN_FORCE:
                self._in_force(worker, frame)
            case Kind.RESOLVE:
                self._questions.ask(worker, frame)
            case Kind.USED:
                self._questions.used(frame)
            case Kind.NAME:
                self._questions.named(worker, frame)
            case Kind.FLOWS:
                self._flows(worker, frame)
            case Kind.REPORT:
                live, records = self._figures.take(worker, frame)
                self._harvests.counted(worker.pid, live, records)
            case Kind.PROOF:
                proof = proof_head(read_proof(frame))
                for other in self._live():
                    if other is not worker:
                        other.send(Kind.PROVED, proof)
            case Kind.DRAINED:
                self._drained.add(worker)
            case Kind.SHOWN:
                self._figures.page(worker, frame)
                worker.answered(Kind.SHOWN, number(frame, "id"))
            case Kind.SHOWING:
                self._showing(frame)
        self._changed.set()

    def _in_force(self, worker: WorkerProcess, frame: Frame) -> None:
        worker.version = number(frame, "version", MAX_VERSION)
        error = words(frame, "error", 500)
        if not worker.answered(Kind.IN_FORCE, number(frame, "number"), error) and error:
            log.error("worker %d does not use the policy snapshot that others use: %s", worker.index, error)

    def _flows(self, worker: WorkerProcess, frame: Frame) -> None:
        taken = number(frame, "number")
        try:
            batch = pb.FlowBatch.FromString(one_blob(frame))
        except ProtobufDecodeError as error:
            raise Broken(f"FLOWS: {error}") from None
        flows, shed = [], number(frame, "shed")
        for message in batch.flows:
            try:
                flows.append(flow_from_message(message))
            except DecodeError as error:
                log.error("a flow of worker %d can not be reported: %s", worker.index, error)
                shed += 1
        self._harvests.take(worker.pid, taken, flows, shed)
        self._harvests.counted(worker.pid, number(frame, "live"), number(frame, "records"))
        worker.send(Kind.TAKEN, {"number": taken})

    def _showing(self, frame: Frame) -> None:
        data = one_blob(frame)
        try:
            self._taps.came(shown_from_message(pb.TapEvent.FromString(data).exchange), len(data))
        except (ProtobufDecodeError, DecodeError) as error:
            raise Broken(f"SHOWING: {error}") from None

    async def _watch(self) -> None:
        """Kill who says nothing any more, until cancelled."""
        while True:
            await asyncio.sleep(SILENCE / 10)
            self._kill_silent(self._live(), time.monotonic())

    @staticmethod
    def _kill_silent(workers: Iterable[WorkerProcess], now: float) -> None:
        for worker in workers:
            if worker.listening and now - worker.heard_at > SILENCE:
                text = "worker %d (process %d) has said nothing for %.0f s and is killed"
                log.error(text, worker.index, worker.pid, now - worker.heard_at)
                worker.kill()
