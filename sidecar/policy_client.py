"""Keeps the policy in force the newest that the controller has signed for us.

The governing rules:

1. What may be put in force is said by :mod:`sidecar.snapshots`.
2. In force, then to disk, then acknowledged: no disk stands between a denial and those whom it denies, and no restart
   falls back behind what the controller was told, unless the disk fails or takes longer than :data:`STORE_WAIT`. In
   force means everywhere: where other processes judge by it too, each of them has verified it before any applies it.
   What is in force is written also when the watch that brought it has ended; what is newer, last.
   What comes while another process takes over from us is written before it is told to go on, and what comes after that
   is not acknowledged: the controller tells the other one.
3. A bad snapshot changes nothing: it is refused with the reason and the last good one stays.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from google.protobuf.message import DecodeError as ProtobufDecodeError

from graph.wire import hedgerow_pb2 as pb
from graph.wire import hedgerow_pb2_grpc as rpc
from sidecar.authority import PolicyAuthority
from sidecar.channel import Session, converse
from sidecar.credentials import CredentialStore
from sidecar.errors import SnapshotRejected, StateError
from sidecar.snapshots import read_snapshot
from sidecar.state import SNAPSHOT, StateDirectory

log = logging.getLogger(__name__)

MAX_ERROR = 500
#: Seconds between two looks at what our successor stores.
FOLLOW_INTERVAL = 0.2
#: Seconds that an acknowledgement waits for the disk: the controller pushes nothing newer before it.
STORE_WAIT = 2.0


class Followers(Protocol):
    """Others that judge by the same snapshot; :class:`sidecar.workers.supervisor.Workers` has some."""

    def hold(self, signed: bytes) -> None:
        """Have it put in force; it was read from the disk."""

    async def prepare(self, signed: bytes) -> None:
        """Have it verified everywhere.

        :raises SnapshotRejected: when anybody refuses it; it is in force nowhere then
        """

    async def commit(self) -> None:
        """Have what was prepared put in force; it is, everywhere, when this returns."""


class PolicyClient:
    """Watches the policy of our workload.

    :param followers: are given what is put in force here
    :param boot_id: names this run of the sidecar
    :param software: our version, for people
    :param clock: seconds since the epoch
    """

    def __init__(
        self,
        authority: PolicyAuthority,
        credentials: CredentialStore,
        state: StateDirectory,
        boot_id: str,
        software: str,
        clock: Callable[[], float],
        followers: Followers | None = None,
    ) -> None:
        self._authority = authority
        self._followers = followers
        self._credentials = credentials
        self._state = state
        self._boot_id = boot_id
        self._software = software
        self._clock = clock
        self._stamp: tuple[int, int] | None = None  # of the stored snapshot that was used last
        self._refused: tuple[int, int] | None = None  # and of one that could not be
        self._unstored: deque[bytes] = deque(maxlen=1)  # what is in force and not on disk yet
        self._committing: asyncio.Future[None] | None = None
        self._storing: asyncio.Future[None] | None = None
        self._disk = ThreadPoolExecutor(1, "policy")  # one at a time, and nobody else waits behind a disk that hangs
        self.connected = False
        self.last_rejection = ""
        """Why the controller's newest snapshot is not in force, for people; empty when it is."""

    def restore_newer(self) -> None:
        """Put the stored snapshot in force, if it is another one than we have used. One that was refused may be good
        later: its signer's root may be in a trust bundle that we do not have yet."""
        if self._state.stamp(SNAPSHOT) != self._stamp:
            self.restore()

    def restore(self) -> bool:
        """Put the stored snapshot in force, if there is a good one."""
        stamp = self._state.stamp(SNAPSHOT)
        try:
            data = self._state.read_checked(SNAPSHOT)
            if data is None:
                return False
            signed = pb.SignedSnapshot.FromString(data)
            snapshot = read_snapshot(signed, self._credentials, self._authority.snapshot, self._clock())
        except (StateError, SnapshotRejected, ProtobufDecodeError) as error:
            if stamp is None or stamp != self._refused:  # what is asked again and again is said once
                log.error("the stored policy snapshot is not used: %s", error)
            self._refused = stamp
            return False
        self._stamp = stamp
        self._authority.apply(snapshot)
        if self._followers is not None:
            self._followers.hold(data)
        log.info("stored policy version %d of %s in force", snapshot.version, snapshot.workload)
        return True

    async def follow(self) -> None:
        """Put in force what the process that has taken over from us stores, until cancelled. The controller should not
        hear of us any more: for it, there is one sidecar of an instance."""
        self._stamp = None
        while True:
            self.restore_newer()
            await asyncio.sleep(FOLLOW_INTERVAL)

    async def session(self, session: Session) -> None:
        """One watch, for :meth:`sidecar.channel.ControllerLink.keep`."""
        call = rpc.PolicyStub(session.channel).Watch()
        answers: asyncio.Queue[pb.PolicyRequest] = asyncio.Queue()
        hello = pb.PolicyHello(boot_id=self._boot_id, held_version=self._authority.version, software=self._software)
        answers.put_nowait(pb.PolicyRequest(hello=hello))

        async def answer() -> None:
            while True:
                await call.write(await answers.get())

        async def take(push: pb.PolicyPush) -> None:
            session.established()
            self.connected = True
            answer = await self._take(push)
            if not self._state.abandoned:
                answers.put_nowait(answer)

        try:
            await converse(call, answer(), take)
        finally:
            self.connected = False

    async def stored(self) -> bool:
        """Wait until what is in force is on disk or failed to be; whether it is so before :data:`STORE_WAIT`."""
        if self._storing is None:
            return True
        done, _ = await asyncio.wait([self._storing], timeout=STORE_WAIT)
        return bool(done)

    async def _take(self, push: pb.PolicyPush) -> pb.PolicyRequest:
        """Put a pushed snapshot in force, or not; returns what to answer."""
        signed = push.snapshot
        try:
            snapshot = read_snapshot(signed, self._credentials, self._authority.snapshot, self._clock())
            data = signed.SerializeToString()
            if self._followers is not None:
                await self._followers.prepare(data)
        except SnapshotRejected as error:
            self.last_rejection = str(error)
            log.error("policy version %d stays in force, a pushed one is refused: %s", self._authority.version, error)
            nack = pb.PolicyNack(nonce=push.nonce, version=self._authority.version, error=str(error)[:MAX_ERROR])
            return pb.PolicyRequest(nack=nack)
        self._authority.apply(snapshot)
        self._store(data)
        if self._followers is not None:
            # the end of the watch leaves no process behind with another policy
            self._committing = asyncio.ensure_future(self._followers.commit())
            await asyncio.shield(self._committing)
        self.last_rejection = ""
        log.info("policy version %d of %s in force, %d rules", snapshot.version, snapshot.workload, len(snapshot.rules))
        if not await self.stored():
            log.error("policy version %d is in force and not stored yet: the disk of state_dir hangs", snapshot.version)
        return pb.PolicyRequest(ack=pb.PolicyAck(nonce=push.nonce, version=snapshot.version))

    def _store(self, data: bytes) -> None:
        """Have it written, whatever becomes of us."""
        self._unstored.append(data)
        self._storing = asyncio.get_running_loop().run_in_executor(self._disk, self._write)
        self._storing.add_done_callback(_stored)

    def _write(self) -> None:
        """Store the newest, unless whoever was asked before us has."""
        try:
            data = self._unstored.pop()
        except IndexError:
            return
        self._state.write_checked(SNAPSHOT, data)


def _stored(storing: asyncio.Future[None]) -> None:
    if not storing.cancelled() and (error := storing.exception()):
        # only a restart without the controller would fall back
        log.error("the policy that is in force will not survive a restart: %s", error)
