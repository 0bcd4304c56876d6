"""Knows who answers at the addresses that our application really uses.

The governing rules:

1. Nothing is guessed: without an answer there is :class:`~sidecar.errors.Unresolved`, and nothing is allowed.
2. What was asked for is watched, on one stream, and asked for again after every reconnect. Until then the last answer
   holds (fail static). Questions that wait for the same answer wait together.
3. Memory grows with what is used: the number of addresses is bounded, and those not used for a while are let go. So is
   what the controller is asked: an application that tries every port of everybody asks it no faster than the settings
   allow, and of what waits for an answer there is only so much.
   And so is what answers may take: the endpoints of all of them, and the time that is spent on answers that come
   without end. A controller that is broken, or was broken into, makes answers late and nothing else.
4. Answers of the last run (from disk) count only while the controller could not be reached since the start.
5. Our own addresses are answered here: such a connection never leaves the pod, so it is nobody's to authenticate.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import itertools
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from graph.directory import Destination, Endpoint, Transport
from graph.errors import DecodeError
from graph.model import Protocol, WorkloadRef
from graph.wire import hedgerow_pb2 as pb
from graph.wire import hedgerow_pb2_grpc as rpc
from graph.wire.codec import destination_from_message
from sidecar import directory_file
from sidecar.channel import Session, converse
from sidecar.dataplane.sockets import Address
from sidecar.directory_file import Kept
from sidecar.directory_settings import DEFAULTS, DirectorySettings
from sidecar.errors import StateError, Unresolved
from sidecar.pace import Pace
from sidecar.state import DIRECTORY, StateDirectory

log = logging.getLogger(__name__)

#: Seconds between two looks for idle entries.
UPKEEP_INTERVAL = 5.0
#: Seconds between two writes of the answers, at least. What is not written yet is unknown after a restart while the
#: controller is away, and so refused.
PERSIST_PAUSE = 0.25
#: Of the time, at most so much is spent on writing them: a pause is so many times as long as the work before it.
PERSIST_REST = 20
#: Endpoints of all answers together; of more, the answers least lately used are let go. Some 500 bytes each.
MOST_ENDPOINTS = 100_000
#: Of the time, what may be spent on answers, beyond so many seconds at once: those after a reconnect come together.
ANSWERING_SHARE = 0.2
ANSWERING_BURST = 1.0

type Key = tuple[str, int]


@dataclass(slots=True)
class _Entry:
    """One watched address. ``answer`` is set once there is a ``destination``, or nothing more to wait for."""

    answer: asyncio.Future[Destination]
    used_at: float
    destination: Destination | None = None
    message: bytes = b""  # in which it came


class DirectoryClient:
    """Implements :class:`sidecar.dataplane.contracts.Directory`.

    :param clock: seconds, only differences count
    :param resolve_timeout: seconds that the controller has for an answer
    """

    def __init__(
        self,
        workload: WorkloadRef,
        instance: str,
        addresses: tuple[str, ...],
        state: StateDirectory,
        clock: Callable[[], float],
        settings: DirectorySettings = DEFAULTS,
        resolve_timeout: float = 5.0,
    ) -> None:
        self._workload = workload
        self._instance = instance
        self._own = frozenset(addresses)
        self._state = state
        self._clock = clock
        self._timeout = resolve_timeout
        self._max_entries = settings.addresses
        self._idle = settings.idle
        self._max_waiting = settings.waiting
        self._asked_per_second = settings.per_second
        self._tokens = float(settings.waiting)
        self._counted_at = clock()
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()  # the lately used last
        self._waiting: set[Key] = set()  # without an answer
        self._endpoints = 0  # of all entries
        self._pace = Pace(ANSWERING_SHARE, ANSWERING_BURST)
        self._stored: dict[Key, Kept] = {}
        self._requests: asyncio.Queue[pb.WatchRequest] | None = None
        self._never_connected = True
        self._away = False
        self._changed = asyncio.Event()
        self._told: list[Callable[[str, int, Destination | None], None]] = []

    @property
    def connected(self) -> bool:
        return self._requests is not None

    @property
    def entries(self) -> int:
        return len(self._entries)

    def cached(self, address: str, port: int) -> Destination | None:
        key = (address, port)
        entry = self._entries.get(key)
        if entry is None:
            return self._local(address, port)
        self._use(key, entry)
        return entry.destination

    async def resolve(self, address: str, port: int) -> Destination:
        try:
            address = str(ipaddress.ip_address(address))
        except ValueError:
            raise Unresolved(f"{address!r} is not an IP address") from None
        local = self._local(address, port)
        if local is not None:
            return local
        key = (address, port)
        entry = self._entries.get(key)
        if entry is None:
            entry = self._watch(key)
        else:
            self._use(key, entry)
        try:
            # shielded: others wait for it too
            return await asyncio.wait_for(asyncio.shield(entry.answer), self._timeout)
        except TimeoutError:
            state = "did not answer" if self.connected else "is away"
            raise Unresolved(f"{address}:{port}: the controller {state} within {self._timeout:g} s") from None
        except asyncio.CancelledError:
            if entry.answer.cancelled():  # it was let go, we were not cancelled
                raise Unresolved(f"{address}:{port}: too many addresses are in use") from None
            raise

    def subscribe(self, told: Callable[[str, int, Destination | None], None]) -> None:
        """Have ``told`` called with every address, port and answer that is new, and None when it is watched no more."""
        self._told.append(told)

    def in_use(self, most: int) -> list[Address]:
        """The destinations with tunnels that are in use, or, while the controller has not been reached yet, were in the
        last run: at most so many, those used last first."""
        answers = [entry.destination for entry in reversed(self._entries.values())]
        if self._never_connected:
            answers += [
                stored.destination for key, stored in reversed(self._stored.items()) if key not in self._entries
            ]
        found = (Address(one.address, one.port) for one in answers if one is not None and _by_tunnel(one))
        return list(itertools.islice(found, most))

    # The stream ------------------------------------------------------------------------------------------------------

    async def session(self, session: Session) -> None:
        """One watch, for :meth:`sidecar.channel.ControllerLink.keep`."""
        requests: asyncio.Queue[pb.WatchRequest] = asyncio.Queue()
        for key in self._entries:
            requests.put_nowait(_request(key))
        self._requests = requests
        call = rpc.DirectoryStub(session.channel).Watch()

        asked_again = requests.qsize()

        async def ask() -> None:
            for written in itertools.count():
                request = await requests.get()
                if written >= asked_again and not request.remove:
                    await self._token()
                await call.write(request)

        def take(message: pb.Destination) -> Awaitable[None] | None:
            session.established()
            self._never_connected = False
            self._away = False
            began = time.thread_time()
            self._take(message)
            rest = self._pace.spent(time.thread_time() - began, time.monotonic())
            return _rest(rest) if rest > 0 else None

        try:
            await converse(call, ask(), take)
        finally:
            if self._requests is requests:
                self._requests = None

    def lost(self) -> None:
        """A session ended or could not begin. Before the first one, the answers of the last run are used."""
        if self._never_connected:
            self._away = True
            for key in [key for key in self._waiting if key in self._stored]:
                self._answer(key, self._entries[key], self._stored[key])

    def _take(self, message: pb.Destination) -> None:
        before = self._entries.get((message.address, message.port))
        try:
            destination = destination_from_message(message, before.destination if before is not None else None)
        except DecodeError as error:
            log.error("an answer of the directory is refused, the last one stays: %s", error)
            return
        key = (str(ipaddress.ip_address(destination.address)), destination.port)
        entry = self._entries.get(key)
        if entry is None or destination.protocol is not Protocol.TCP:
            return  # let go meanwhile
        if entry.destination == destination:
            return
        self._make_room(key, len(destination.endpoints) - _endpoints(entry))
        self._answer(key, entry, Kept(destination, message.SerializeToString()))
        self._changed.set()

    async def _token(self) -> None:
        """Wait until one more question may be asked."""
        while True:
            now = self._clock()
            earned = max(0.0, now - self._counted_at) * self._asked_per_second
            self._tokens = min(float(self._max_waiting), self._tokens + earned)
            self._counted_at = now
            if self._tokens >= 1:
                self._tokens -= 1
                return
            await asyncio.sleep((1 - self._tokens) / self._asked_per_second)

    # Entries ---------------------------------------------------------------------------------------------------------

    def _use(self, key: Key, entry: _Entry) -> None:
        entry.used_at = self._clock()
        self._entries.move_to_end(key)

    def _answer(self, key: Key, entry: _Entry, kept: Kept) -> None:
        destination = kept.destination
        if entry.answer.done():
            entry.answer = asyncio.get_running_loop().create_future()
        entry.answer.set_result(destination)
        self._endpoints += len(destination.endpoints) - _endpoints(entry)
        entry.destination, entry.message = kept
        self._waiting.discard(key)
        self._tell(key, destination)

    def _tell(self, key: Key, destination: Destination | None) -> None:
        for told in self._told:
            try:
                told(*key, destination)
            except Exception:  # one subscriber's fault must not keep the answer from the others, nor end the watch
                log.exception("a subscriber failed on an answer of the directory")

    def _watch(self, key: Key) -> _Entry:
        stored = self._stored.get(key) if self._away else None
        if stored is None and len(self._waiting) >= min(self._max_waiting, self._max_entries):
            raise Unresolved(f"{key[0]}:{key[1]}: {len(self._waiting)} addresses wait for the controller already")
        if len(self._entries) >= self._max_entries:
            self._release_least_used()
        entry = self._entries[key] = _Entry(asyncio.get_running_loop().create_future(), self._clock())
        if stored is not None:
            entry.answer.set_result(stored.destination)
            entry.destination, entry.message = stored
            self._endpoints += _endpoints(entry)
        else:
            self._waiting.add(key)
        if self._requests is not None:
            self._requests.put_nowait(_request(key))
        return entry

    def _release_least_used(self) -> None:
        """Let one address go. What still waits is passed over, which is never more than may wait."""
        for key in self._entries:
            if key not in self._waiting:
                self._release(key)
                return
        self._release(next(iter(self._entries)))

    def _release(self, key: Key) -> None:
        entry = self._entries.pop(key)
        self._endpoints -= _endpoints(entry)
        self._waiting.discard(key)
        if not entry.answer.done():
            entry.answer.cancel()
        self._tell(key, None)
        self._changed.set()
        if self._requests is not None:
            self._requests.put_nowait(_request(key, remove=True))

    def _make_room(self, key: Key, more: int) -> None:
        """Let go of answers until there is room for so many endpoints more, but not of the one that needs it."""
        if self._endpoints + more <= MOST_ENDPOINTS:
            return
        for other, entry in list(self._entries.items()):  # least lately used first
            if other != key and _endpoints(entry):
                self._release(other)
                if self._endpoints + more <= MOST_ENDPOINTS:
                    return

    def release_idle(self) -> None:
        """Let go what was not used for a while."""
        now = self._clock()
        while self._entries:
            key, entry = next(iter(self._entries.items()))
            if now - entry.used_at <= self._idle:
                return
            self._release(key)

    def _local(self, address: str, port: int) -> Destination | None:
        if address not in self._own:
            return None
        return Destination(
            address, port, workload=self._workload, endpoints=(Endpoint(address, port, instance=self._instance),)
        )

    # The disk --------------------------------------------------------------------------------------------------------

    async def upkeep(self) -> None:
        """Release what is idle and keep the disk current, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), UPKEEP_INTERVAL)
            self.release_idle()
            if self._changed.is_set():
                # a burst of first uses is written once more at its end
                await asyncio.sleep(max(PERSIST_PAUSE, PERSIST_REST * await self.persist()))

    async def persist(self) -> float:
        """Write the answers held now.

        :return: seconds of work that it took; none of it is our loop's
        """
        self._changed.clear()
        known = []
        if self._never_connected:  # what the last run knew and this one did not use yet
            known += [stored.message for key, stored in self._stored.items() if key not in self._entries]
        known += [entry.message for entry in self._entries.values() if entry.message]
        spent = 0.0

        def write() -> None:
            nonlocal spent
            began = time.thread_time()
            try:
                self._state.write_checked(DIRECTORY, directory_file.encode(known))
            finally:
                spent = time.thread_time() - began

        try:
            await asyncio.to_thread(write)
        except StateError as error:
            log.warning("the directory's answers are not kept for a restart: %s", error)
        return spent

    def restore(self) -> None:
        """Read the answers of the last run."""
        try:
            data = self._state.read_checked(DIRECTORY)
            found = directory_file.decode(data) if data is not None else []
        except (StateError, DecodeError) as error:
            log.error("the stored directory is not used: %s", error)
            return
        self._stored = {(kept.destination.address, kept.destination.port): kept for kept in found}


async def _rest(seconds: float) -> None:
    await asyncio.sleep(seconds)


def _endpoints(entry: _Entry) -> int:
    return len(entry.destination.endpoints) if entry.destination is not None else 0


def _by_tunnel(destination: Destination) -> bool:
    """Whether connections to it, or some of them, go by tunnels of ours."""
    return any(endpoint.identity and endpoint.transport is not Transport.MTLS for endpoint in destination.endpoints)


def _request(key: Key, remove: bool = False) -> pb.WatchRequest:
    target = pb.ResolveRequest(address=key[0], port=key[1], protocol=Protocol.TCP.value)
    return pb.WatchRequest(target=target, remove=remove)
