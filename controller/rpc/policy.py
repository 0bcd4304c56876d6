"""Pushes policy: to every sidecar the newest signed snapshot of its own workload, and never two at once.

Rules:

1. The stream begins with a hello. After that the sidecar only answers.
2. A push waits for its ACK or NACK before the next one; meanwhile only the newest snapshot is kept (one slot).
3. An answer counts for the push whose nonce it carries; any other ends the stream.
4. A sidecar has one policy stream. A newer one (it renewed its certificate) replaces the older one.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Protocol

import grpc
import grpc.aio

from controller.engine import SnapshotWatch
from controller.keyring import PolicySigner
from controller.rpc.caller import Caller, Refused
from controller.rpc.gate import Context, Gate, Outgoing, answered
from graph.model import Instance, Snapshot, WorkloadRef
from graph.wire import hedgerow_pb2 as pb
from graph.wire import hedgerow_pb2_grpc as rpc
from graph.wire.codec import encode_snapshot

log = logging.getLogger("hedgerow.policy")

#: Seconds that a sidecar has for its hello, and for the answer to a push (it writes the snapshot to disk before).
ANSWER_SECONDS = 30.0

#: What a sidecar may say of itself and of why it refused, in characters.
MAX_TEXT = 500


class Sidecars(Protocol):
    """What the policy service asks of the engine."""

    def watch_snapshot(self, workload: WorkloadRef) -> SnapshotWatch: ...

    async def sidecar_connected(self, instance: Instance, boot_id: str, held_version: int, software: str) -> None: ...

    async def sidecar_pushed(self, instance: Instance, boot_id: str, version: int) -> None: ...

    async def sidecar_acked(self, instance: Instance, boot_id: str, version: int) -> None: ...

    async def sidecar_nacked(self, instance: Instance, boot_id: str, version: int, error: str) -> None: ...

    async def sidecar_disconnected(self, instance: Instance, boot_id: str) -> None: ...


class SnapshotSigner:
    """Signs snapshots, each once for all replicas of its workload, and again when the signer has changed.

    :param signer: gives the signer in force (:attr:`controller.keyring.Keyring.signer`)
    """

    def __init__(self, signer: Callable[[], PolicySigner]) -> None:
        self._signer = signer
        self._last: dict[WorkloadRef, tuple[Snapshot, PolicySigner, pb.SignedSnapshot]] = {}

    def __call__(self, snapshot: Snapshot) -> pb.SignedSnapshot:
        signer = self._signer()
        held = self._last.get(snapshot.workload)
        if held is not None and held[0] is snapshot and held[1] is signer:
            return held[2]
        payload = encode_snapshot(snapshot)
        signed = pb.SignedSnapshot(
            payload=payload, signature=signer.sign(payload), signer_chain_der=signer.chain.chain_der
        )
        self._last[snapshot.workload] = (snapshot, signer, signed)
        return signed

    def __len__(self) -> int:
        """Workloads whose signed snapshot is kept."""
        return len(self._last)

    def forget(self, workload: WorkloadRef) -> None:
        """Nobody has to be told of it any more."""
        self._last.pop(workload, None)


class PolicyService(rpc.PolicyServicer):
    """Serves ``Policy.Watch``."""

    def __init__(
        self, engine: Sidecars, gate: Gate, signer: SnapshotSigner, answer_seconds: float = ANSWER_SECONDS
    ) -> None:
        self._engine = engine
        self._gate = gate
        self._signer = signer
        self._answer_seconds = answer_seconds
        self._current: dict[str, asyncio.Future[None]] = {}
        self._watching: Counter[WorkloadRef] = Counter()

    async def Watch(self, requests: AsyncIterator[pb.PolicyRequest], context: Context) -> None:
        async def serve(caller: Caller, outgoing: Outgoing) -> None:
            hello = await self._read(requests)
            if hello is None:
                return
            if hello.WhichOneof("kind") != "hello":
                raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "kind: the first message must be a hello")
            await self._serve(caller, hello.hello, requests, outgoing)

        async with answered(context):
            await self._gate.stream(context, "policy", serve)

    async def _serve(
        self, caller: Caller, hello: pb.PolicyHello, requests: AsyncIterator[pb.PolicyRequest], outgoing: Outgoing
    ) -> None:
        boot_id = hello.boot_id
        if not boot_id or len(boot_id) > 128:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "boot_id: 1 to 128 characters are required")
        mine = self._take_over(caller.key)
        self._watching[caller.instance.workload] += 1
        software = hello.software[:MAX_TEXT]
        try:
            await self._engine.sidecar_connected(caller.instance, boot_id, hello.held_version, software)
            async with self._engine.watch_snapshot(caller.instance.workload) as watch:
                pushing = asyncio.ensure_future(self._push_all(caller, boot_id, watch, requests, outgoing))
                try:
                    await asyncio.wait({pushing, mine}, return_when=asyncio.FIRST_COMPLETED)
                    if not pushing.done():
                        raise Refused(
                            grpc.StatusCode.ABORTED, "a newer policy stream of this instance replaced this one"
                        )
                    pushing.result()
                finally:
                    pushing.cancel()
                    await asyncio.gather(pushing, return_exceptions=True)
        finally:
            self._leave(caller.instance.workload)
            if self._current.get(caller.key) is mine:
                del self._current[caller.key]
                await self._engine.sidecar_disconnected(caller.instance, boot_id)

    def _leave(self, workload: WorkloadRef) -> None:
        """One stream fewer: who makes workloads and removes them must not have all of them remembered."""
        self._watching[workload] -= 1
        if not self._watching[workload]:
            del self._watching[workload]
            self._signer.forget(workload)

    def _take_over(self, key: str) -> asyncio.Future[None]:
        older = self._current.get(key)
        if older is not None and not older.done():
            older.set_result(None)
        mine = self._current[key] = asyncio.get_running_loop().create_future()
        return mine

    async def _push_all(
        self,
        caller: Caller,
        boot_id: str,
        watch: SnapshotWatch,
        requests: AsyncIterator[pb.PolicyRequest],
        outgoing: Outgoing,
    ) -> None:
        async for snapshot in watch:
            nonce = secrets.token_hex(8)
            await outgoing.write(pb.PolicyPush(nonce=nonce, snapshot=self._signer(snapshot)))
            await self._engine.sidecar_pushed(caller.instance, boot_id, snapshot.version)
            answer = await self._read(requests)
            if answer is None:
                return
            await self._take(caller, boot_id, snapshot.version, nonce, answer)
        raise Refused(grpc.StatusCode.UNAVAILABLE, "the controller is stopping")

    async def _take(self, caller: Caller, boot_id: str, version: int, nonce: str, answer: pb.PolicyRequest) -> None:
        kind = answer.WhichOneof("kind")
        given = answer.ack.nonce if kind == "ack" else answer.nack.nonce
        if kind not in ("ack", "nack") or given != nonce:
            raise Refused(
                grpc.StatusCode.INVALID_ARGUMENT, "kind: answer every push with one ack or nack that repeats its nonce"
            )
        if kind == "nack":
            error = "".join(mark if mark.isprintable() else " " for mark in answer.nack.error[:MAX_TEXT])
            log.warning("%s refuses policy version %d: %s", caller.key, version, error)
            await self._engine.sidecar_nacked(caller.instance, boot_id, version, error or "no reason given")
        elif answer.ack.version != version:
            raise Refused(
                grpc.StatusCode.INVALID_ARGUMENT, f"version: {answer.ack.version} was not pushed, {version} was"
            )
        else:
            await self._engine.sidecar_acked(caller.instance, boot_id, version)

    async def _read(self, requests: AsyncIterator[pb.PolicyRequest]) -> pb.PolicyRequest | None:
        """The sidecar's next message; None when it has ended the stream."""
        try:
            async with asyncio.timeout(self._answer_seconds):
                return await anext(requests, None)
        except TimeoutError:
            raise Refused(
                grpc.StatusCode.DEADLINE_EXCEEDED, f"no answer within {self._answer_seconds:g} s; connect again"
            ) from None
