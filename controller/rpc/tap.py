"""Taps: who watches what, on which sidecars it runs, and what comes back.

Rules:

1. A sidecar shows only what it was asked for, and only requests to its own workload, or of its own workload to what is
   outside the mesh; anything else ends its stream.
2. A person who reads slowly costs a bounded queue. What does not fit is left out and counted.
3. A tap ends when its person leaves, and in the sidecar after its time, whatever happens here.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

import grpc

from controller.errors import NotReady
from controller.rpc.caller import Caller, Refused
from controller.rpc.gate import Context, Gate, Outgoing, answered
from graph.model import EXTERNAL_NAMESPACE, WorkloadRef
from graph.tap import Shown, TapSpec
from graph.wire import hedgerow_pb2 as pb
from graph.wire import hedgerow_pb2_grpc as rpc
from graph.wire.taps import shown_from_message, start_to_message

log = logging.getLogger("hedgerow.tap")

#: Taps at once, in the whole controller.
MOST: Final = 16
#: Events that wait for one person, and what they may take: a sidecar that was broken into makes each as large as it can
#: be.
_WAITING: Final = 1000
_WAITING_BYTES: Final = 8 * 1024 * 1024
#: Commands that wait for one sidecar.
_COMMANDS: Final = 64
#: Seconds for a sidecar's hello.
_HELLO: Final = 30.0


@dataclass(frozen=True, slots=True)
class Left:
    """A sidecar ended a tap. :param error: why it was not started; empty: it is over"""

    instance: str
    error: str


class Viewing:
    """One tap as its person sees it.

    :ivar sidecars: those that it runs on
    :ivar shed: events left out, here and in the sidecars
    """

    def __init__(self, spec: TapSpec, workload: WorkloadRef, ends: float) -> None:
        self.spec = spec
        self.workload = workload
        self.ends = ends
        self.sidecars: set[str] = set()
        self.shed = 0
        self.closed = False
        self._events: deque[tuple[str, Shown] | Left] = deque()
        self._bytes = 0
        self._arrived = asyncio.Event()

    def close(self) -> None:
        """The controller stops: there will be no more."""
        self.closed = True
        self._arrived.set()

    def offer(self, event: tuple[str, Shown] | Left) -> None:
        """An event came; never blocks."""
        size = _size(event)
        if len(self._events) >= _WAITING or (self._events and self._bytes + size > _WAITING_BYTES):
            self.shed += 1
            return
        self._bytes += size
        self._events.append(event)
        self._arrived.set()

    async def next(self, seconds: float) -> tuple[str, Shown] | Left | None:
        """The next event: which instance shows what; None when there is none for so long."""
        if not self._events:
            self._arrived.clear()
            try:
                async with asyncio.timeout(seconds):
                    await self._arrived.wait()
            except TimeoutError:
                return None
        if not self._events:
            return None
        event = self._events.popleft()
        self._bytes -= _size(event)
        return event


def _size(event: tuple[str, Shown] | Left) -> int:
    """About how much it takes."""
    if isinstance(event, Left):
        return 0
    both = (event[1].request, event[1].response)
    return sum(
        len(each.body) + sum(len(name) + len(value) for name, value in (*each.fields, *each.trailers))
        for each in both
        if each is not None
    )


class _Sidecar:
    """One open stream of a sidecar."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.running: set[str] = set()
        self._commands: deque[pb.TapCommand] = deque()
        self._arrived = asyncio.Event()

    @property
    def workload(self) -> WorkloadRef:
        return self.caller.instance.workload

    def start(self, spec: TapSpec) -> None:
        if len(self._commands) < _COMMANDS:
            self.running.add(spec.id)
            self._put(pb.TapCommand(start=start_to_message(spec)))

    def stop(self, name: str) -> None:
        if name in self.running:
            self.running.discard(name)
            self._put(pb.TapCommand(stop=pb.TapStop(id=name)))

    def _put(self, command: pb.TapCommand) -> None:
        self._commands.append(command)
        self._arrived.set()

    async def command(self) -> pb.TapCommand:
        while not self._commands:
            self._arrived.clear()
            await self._arrived.wait()
        return self._commands.popleft()


class TapDesk:
    """Brings people and sidecars together.

    :param clock: seconds of a clock that does not go back
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sidecars: set[_Sidecar] = set()
        self._viewings: dict[str, Viewing] = {}

    @contextmanager
    def watching(self, workload: WorkloadRef, spec: TapSpec) -> Iterator[Viewing]:
        """Watch requests to ``workload`` for as long as the block runs.

        :param spec: its id is replaced by one that nobody knows
        :raises NotReady: when too many taps run, or the workload has no sidecar that could show anything
        """
        if len(self._viewings) >= MOST:
            raise NotReady(f"{MOST} taps run already", remedy="end one, or wait until it has ended")
        reached = [sidecar for sidecar in self._sidecars if sidecar.workload == workload]
        if not reached:
            raise NotReady(
                f"no sidecar of {workload} is connected for taps", remedy="see `hedgerow status` for its sidecars"
            )
        spec = replace(spec, id=secrets.token_hex(8))
        viewing = self._viewings[spec.id] = Viewing(spec, workload, self._clock() + spec.seconds)
        try:
            for sidecar in reached:
                self._begin(sidecar, viewing)
            yield viewing
        finally:
            del self._viewings[spec.id]
            for sidecar in self._sidecars:
                sidecar.stop(spec.id)

    def close(self) -> None:
        """Let everybody who watches go."""
        for viewing in self._viewings.values():
            viewing.close()

    def _begin(self, sidecar: _Sidecar, viewing: Viewing) -> None:
        left = viewing.ends - self._clock()
        if left > 0:
            sidecar.start(replace(viewing.spec, seconds=left))
            viewing.sidecars.add(sidecar.caller.instance.name)

    def join(self, caller: Caller) -> _Sidecar:
        """A sidecar is there; taps of its workload that run already begin on it."""
        sidecar = _Sidecar(caller)
        self._sidecars.add(sidecar)
        for viewing in self._viewings.values():
            if viewing.workload == sidecar.workload:
                self._begin(sidecar, viewing)
        return sidecar

    def leave(self, sidecar: _Sidecar) -> None:
        self._sidecars.discard(sidecar)
        for name in sidecar.running:
            viewing = self._viewings.get(name)
            if viewing is not None:
                viewing.sidecars.discard(sidecar.caller.instance.name)

    def take(self, sidecar: _Sidecar, event: pb.TapEvent) -> None:
        """Take what a sidecar sent.

        :raises Refused: when it was not asked for that
        """
        kind = event.WhichOneof("kind")
        if kind == "ended":
            self._ended(sidecar, event.ended)
        elif kind == "exchange":
            self._shown(sidecar, shown_from_message(event.exchange))
        else:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "kind: neither an exchange nor an end")

    def _shown(self, sidecar: _Sidecar, shown: Shown) -> None:
        own = str(sidecar.workload)
        outward = shown.source == own and shown.destination.startswith(f"{EXTERNAL_NAMESPACE}/")
        if shown.destination != own and not outward:
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, "exchange.destination: not the caller's own workload")
        viewing = self._viewings.get(shown.tap)
        if viewing is None or shown.tap not in sidecar.running:
            return  # on its way when the tap ended
        viewing.shed += shown.shed
        viewing.offer((sidecar.caller.instance.name, shown))

    def _ended(self, sidecar: _Sidecar, ended: pb.TapEnded) -> None:
        viewing = self._viewings.get(ended.id)
        if viewing is not None and ended.id in sidecar.running:
            sidecar.running.discard(ended.id)
            viewing.shed += min(ended.shed, 2**48)
            error = "".join(mark if mark.isprintable() else " " for mark in ended.error[:200])
            viewing.offer(Left(sidecar.caller.instance.name, error))


class TapService(rpc.TapServicer):
    """Serves ``Tap.Serve``."""

    def __init__(self, desk: TapDesk, gate: Gate) -> None:
        self._desk = desk
        self._gate = gate

    async def Serve(self, requests: AsyncIterator[pb.TapEvent], context: Context) -> None:
        async def serve(caller: Caller, outgoing: Outgoing) -> None:
            try:
                async with asyncio.timeout(_HELLO):
                    hello = await anext(requests, None)
            except TimeoutError:
                raise Refused(grpc.StatusCode.DEADLINE_EXCEEDED, "no hello; connect again") from None
            if hello is None:
                return
            if hello.WhichOneof("kind") != "hello":
                raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "kind: the first message must be a hello")
            sidecar = self._desk.join(caller)
            await context.send_initial_metadata(())  # "you are taken": it may be long until somebody watches

            async def command() -> None:
                while True:
                    await outgoing.write(await sidecar.command())

            commanding = asyncio.ensure_future(command())
            try:
                async for event in requests:
                    self._desk.take(sidecar, event)
            finally:
                self._desk.leave(sidecar)
                commanding.cancel()
                await asyncio.gather(commanding, return_exceptions=True)

        async with answered(context):
            await self._gate.stream(context, "tap", serve)
