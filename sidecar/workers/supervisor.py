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
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Final

from google.protobuf.message import DecodeError as ProtobufDecodeError

from graph.errors import DecodeError
from graph.wire import hedgerow_pb2 as pb
from graph.wire.bounds import MAX_VERSION
from graph.wire.codec import flow_from_message
from graph.wire.taps import shown_from_message
from sidecar.credentials import CredentialStore
from sidecar.dataplane.sockets import Address, Inherited
from sidecar.errors import SnapshotRejected
from sidecar.inspect.certificates import Certificates
from sidecar.settings import Settings, Unsynced
from sidecar.workers import values
from sidecar.workers.crew import END_SECONDS, Crew
from sidecar.workers.figures import Figures
from sidecar.workers.frames import Broken, Frame, Kind, number, one_blob, words
from sidecar.workers.harvests import Harvests
from sidecar.workers.messages import proof_head, read_proof, signer_parts, svid_blobs
from sidecar.workers.ports import Ports
from sidecar.workers.process import WorkerProcess
from sidecar.workers.questions import Questions
from sidecar.workers.relayed_taps import RelayedTaps
from sidecar.workers.settings import worker_settings

log = logging.getLogger(__name__)

#: Seconds that a worker has to answer about a policy.
PATIENCE: Final = 5.0
#: Seconds after which one that was killed counts as dead though its end is not seen: the kernel may have it wait for a
#: disk that hangs, and it does nothing more when that goes on.
REAPED_SECONDS: Final = 1.0


class Workers:
    """Implements :class:`sidecar.data_path.DataPath`, :class:`sidecar.policy_client.Followers`,
    :class:`sidecar.observer.Elsewhere` and :class:`sidecar.workers.crew.Master`.

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
        self._credentials = credentials
        self._questions = questions
        self._harvests = harvests
        self._figures = figures
        self._taps = taps
        self._ports = Ports(worker_settings(settings, 0).data_plane, settings.workers)
        self._crew = Crew(settings.workers, self._ports, self, random)
        self._signed: bytes | None = None
        self._used: Callable[[], Sequence[Address]] | None = None
        self._prepared: tuple[int, bytes, list[WorkerProcess]] | None = None
        self._number = 0
        self._drained: set[WorkerProcess] = set()
        self._certificates: Certificates | None = None
        self._logged: dict[str, str] = {}
        taps.tell = lambda command: self._crew.tell(Kind.TAP, {}, (command,))
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
        try:
            await self._crew.start()
        except BaseException:
            await self.stop()
            raise

    async def start(self) -> None:
        """Take connections.

        :raises SidecarError: when a worker does not listen
        """
        await self._crew.serve()
        pids = ", ".join(str(one.pid) for one in self._crew.live())
        log.info("%d workers listen: processes %s", self._crew.count, pids)

    def warm(self, used: Callable[[], Sequence[Address]]) -> None:
        self._used = used
        for worker in self._crew.live():
            self._warm(worker)

    def _warm(self, worker: WorkerProcess) -> None:
        if self._used is not None:
            worker.send(Kind.WARM, {"keys": [list(place) for place in self._used()]})

    async def drain(self, deadline: float, *, replaced: bool) -> None:
        self._crew.draining = True
        # ours first: a socket that somebody holds takes connections, and nobody would come for them
        if replaced:
            self._ports.close()
        else:
            self._ports.close_inbound()
        self._crew.tell(Kind.DRAIN, {"seconds": deadline, "replaced": replaced})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline + END_SECONDS):
                await self._crew.until(lambda: self._drained.issuperset(self._crew.live()))

    async def stop(self) -> None:
        self._ports.close()
        await self._crew.stop()

    def missing(self) -> list[str]:
        missing = self._crew.missing()
        if self._signed is not None:
            without = [worker.index for worker in self._crew.live() if worker.listening and not worker.version]
            missing += [f"worker {index} of {self._crew.count} holds no policy snapshot yet" for index in without]
        return missing

    def stats(self) -> dict[str, object]:
        return self._figures.stats(self._crew.workers)

    # followers of the policy

    def hold(self, signed: bytes) -> None:
        self._signed = signed
        self._number += 1
        self._crew.tell(Kind.HOLD, {"number": self._number}, (signed,))

    async def prepare(self, signed: bytes) -> None:
        self._number += 1
        workers = self._crew.live()
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
        workers = self._crew.live()
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
        """Wait until each has answered, or is dead, or as good as dead."""
        if not answers:
            return
        _, late = await asyncio.wait(answers, timeout=PATIENCE)
        for worker, answer in zip(workers, answers, strict=True):
            if answer in late:
                log.error("worker %d (process %d) does not answer and is killed", worker.index, worker.pid)
                worker.kill()
        if late:
            await asyncio.wait(late, timeout=REAPED_SECONDS)
            for worker, answer in zip(workers, answers, strict=True):
                if not answer.done():
                    worker.forsake()

    def _renewed(self) -> None:
        self._crew.tell(Kind.SVID, {}, svid_blobs(self._credentials.svid))

    def stand_in(self, certificates: Certificates) -> None:
        """Have workers show what these show, from now on and whenever that changes."""
        self._certificates = certificates
        certificates.changed = lambda: self._crew.tell(Kind.INSPECT, *signer_parts(certificates.signer))

    # for people

    def log_level(self, level: str, logger: str) -> None:
        """Have workers log more or less."""
        self._logged[logger] = level
        self._crew.tell(Kind.LOG, {"level": level, "logger": logger})

    def access_log(self, mode: str) -> None:
        """Have workers write another access log."""
        self._figures.mode = mode
        self._crew.tell(Kind.LOG, {"mode": mode})

    async def show(self, what: str) -> list[object]:
        """A page of every worker: ``tunnels``, ``connections`` or ``memory``."""
        self._number += 1
        workers = self._crew.live()
        asked = self._number
        answers = [worker.expect(Kind.SHOWN, asked) for worker in workers]
        for worker in workers:
            worker.send(Kind.SHOW, {"id": asked, "what": what})
        if answers:
            await asyncio.wait(answers, timeout=PATIENCE)
        for worker in workers:
            worker.expect_no_more(Kind.SHOWN, asked)
        return [{"worker": one.index, **self._figures.shown(one, asked)} for one in workers]

    # one worker's life

    def began(self, worker: WorkerProcess) -> None:
        """Tell it everything that it has to know."""
        self._questions.began(worker)
        self._harvests.began(worker.pid)
        settings = worker_settings(self._settings, worker.index)
        if self._signed is not None:  # `unsynced` speaks of the time before the first policy
            settings = replace(settings, unsynced=Unsynced.DENY)
        worker.send(Kind.START, {"settings": values.encode(settings)})
        worker.send(Kind.SVID, {}, svid_blobs(self._credentials.svid))
        if self._signed is not None:
            self._number += 1
            worker.send(Kind.HOLD, {"number": self._number}, (self._signed,))
        if self._certificates is not None and self._certificates.signer is not None:
            worker.send(Kind.INSPECT, *signer_parts(self._certificates.signer))
        self._warm(worker)
        for logger, level in self._logged.items():
            worker.send(Kind.LOG, {"level": level, "logger": logger})
        worker.send(Kind.LOG, {"mode": self._figures.mode})
        for command in self._taps.commands():
            worker.send(Kind.TAP, {}, (command,))

    def gone(self, worker: WorkerProcess, *, orderly: bool) -> None:
        self._questions.ended(worker)
        self._harvests.ended(worker.pid, orderly=orderly)
        self._figures.ended(worker)
        self._drained.discard(worker)

    def heard(self, worker: WorkerProcess, frame: Frame) -> None:
        match frame.kind:
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
                for other in self._crew.live():
                    if other is not worker:
                        other.send(Kind.PROVED, proof)
            case Kind.DRAINED:
                self._drained.add(worker)
            case Kind.SHOWN:
                self._figures.page(worker, frame)
                worker.answered(Kind.SHOWN, number(frame, "id"))
            case Kind.SHOWING:
                self._showing(frame)
            case _:
                raise Broken(f"{frame.kind.name} may not be said")

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
