"""What a worker asks the supervisor: who answers at an address, and under which names.

The governing rules:

1. Nothing is guessed here either: what the supervisor does not answer is :class:`~sidecar.errors.Unresolved`.
2. What was answered holds until the supervisor says something else, or that it is not watched any more; it is told now
   and then what is in use, so that it does not let that go.
3. Where names are known, an address outside the mesh is asked for again with every connection: DNS may have bound
   another name to it a moment ago, and the answer to that question has reached the application before its connection
   reached us.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from google.protobuf.message import DecodeError as ProtobufDecodeError

from graph.directory import Destination
from graph.errors import DecodeError
from graph.wire import hedgerow_pb2 as pb
from graph.wire.codec import destination_from_message
from sidecar.directory_settings import DEFAULTS
from sidecar.errors import Unresolved
from sidecar.workers.frames import Broken, Frame, Kind, one_blob, place, words

#: Addresses whose names are remembered; they are told anew with every answer.
MAX_NAMED: Final = 4096
#: Seconds more than the supervisor has, which then says itself that it has no answer.
SPARE_SECONDS: Final = 1.0
#: Addresses in one frame.
_AT_ONCE: Final = 4096

type Key = tuple[str, int]


class Send(Protocol):
    """Tells the supervisor something; :meth:`sidecar.workers.link.Link.send` does."""

    def __call__(self, kind: Kind, head: Mapping[str, object], blobs: Sequence[bytes] = ...) -> None: ...


class RemoteNames:
    """Implements :class:`sidecar.dataplane.contracts.Names` from what came with the answers."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._names: OrderedDict[str, tuple[str, ...]] = OrderedDict()

    def bound(self, address: str) -> tuple[str, ...]:
        return self._names.get(address, ())

    def began(self, address: str, host: str) -> None:
        self._send(Kind.NAME, {"address": address, "host": host, "uses": 1})

    def ended(self, address: str, host: str) -> None:
        self._send(Kind.NAME, {"address": address, "host": host, "uses": -1})

    def told(self, address: str, names: tuple[str, ...]) -> None:
        """The names of an address, as they are now."""
        self._names.pop(address, None)
        if names:
            self._names[address] = names
            if len(self._names) > MAX_NAMED:
                self._names.popitem(last=False)


class RemoteDirectory:
    """Implements :class:`sidecar.dataplane.contracts.Directory`.

    :param timeout: seconds for an answer
    :param max_known: addresses that are remembered
    :param max_waiting: questions that wait for an answer at once
    """

    def __init__(
        self,
        send: Send,
        names: RemoteNames,
        timeout: float = 10.0,
        max_known: int = DEFAULTS.addresses,
        max_waiting: int = DEFAULTS.waiting,
    ) -> None:
        self._send = send
        self._names = names
        self._timeout = timeout
        self._max_known = max_known
        self._max_waiting = max_waiting
        self._known: OrderedDict[Key, Destination] = OrderedDict()  # the lately used last
        self._used: dict[Key, None] = {}
        self._waiting: dict[Key, asyncio.Future[Destination]] = {}
        self._told: list[Callable[[str, int, Destination | None], None]] = []

    @property
    def entries(self) -> int:
        return len(self._known)

    def cached(self, address: str, port: int) -> Destination | None:
        key = (address, port)
        known = self._known.get(key)
        if known is not None and key not in self._used:
            self._used[key] = None
            self._known.move_to_end(key)
        return known

    async def resolve(self, address: str, port: int) -> Destination:
        key = (address, port)
        answer = self._waiting.get(key)
        if answer is None:
            if len(self._waiting) >= self._max_waiting:
                raise Unresolved(f"{address}:{port}: {self._max_waiting} addresses wait for an answer already")
            answer = self._waiting[key] = asyncio.get_running_loop().create_future()
            answer.add_done_callback(_heard)
            self._send(Kind.RESOLVE, {"address": address, "port": port})
        try:
            # shielded: others wait for it too
            return await asyncio.wait_for(asyncio.shield(answer), self._timeout)
        except TimeoutError:
            if self._waiting.get(key) is answer:
                del self._waiting[key]
            raise Unresolved(f"{address}:{port}: no answer within {self._timeout:g} s") from None

    def subscribe(self, told: Callable[[str, int, Destination | None], None]) -> None:
        self._told.append(told)

    # what the supervisor says

    def answered(self, frame: Frame) -> None:
        """ANSWER.

        :raises Broken: when it is none
        """
        key = place(frame)
        error = words(frame, "error")
        destination = None if error else self._destination(one_blob(frame))
        self._names.told(key[0], _names(frame))
        if destination is not None and frame.head.get("keep") is True:
            self._keep(key, destination)
            self._tell(key, destination)
        answer = self._waiting.pop(key, None)
        if answer is None or answer.done():
            return
        if destination is None:
            answer.set_exception(Unresolved(error))
        else:
            answer.set_result(destination)

    def changed(self, frame: Frame) -> None:
        """CHANGED: what was said of an address is not so any more.

        :raises Broken: when it is none
        """
        destination = self._destination(one_blob(frame))
        key = (destination.address, destination.port)
        if key in self._known:
            self._known[key] = destination
        elif not destination.outside:  # a connection to it, when it was, may be about to begin
            self._keep(key, destination)
        self._tell(key, destination)

    def forgotten(self, frame: Frame) -> None:
        """FORGET: it is not watched any more.

        :raises Broken: when it is none
        """
        key = place(frame)
        self._known.pop(key, None)
        self._tell(key, None)

    def tell_uses(self) -> None:
        """Say what was used since the last time."""
        used, self._used = list(self._used), {}
        for start in range(0, len(used), _AT_ONCE):
            self._send(Kind.USED, {"keys": used[start : start + _AT_ONCE]})

    def _destination(self, data: bytes) -> Destination:
        try:
            message = pb.Destination.FromString(data)
            return destination_from_message(message, self._known.get((message.address, message.port)))
        except (DecodeError, ProtobufDecodeError) as error:
            raise Broken(f"no destination: {error}") from None

    def _tell(self, key: Key, destination: Destination | None) -> None:
        for told in self._told:
            told(*key, destination)

    def _keep(self, key: Key, destination: Destination) -> None:
        self._known[key] = destination
        self._known.move_to_end(key)
        if len(self._known) > self._max_known:
            self._known.popitem(last=False)


def _names(frame: Frame) -> tuple[str, ...]:
    names = frame.head.get("names", [])
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        raise Broken("ANSWER: names are no list of texts")
    return tuple(names)


def _heard(answer: asyncio.Future[Destination]) -> None:
    """Nobody may wait for it any more; then its error is nobody's."""
    if not answer.cancelled():
        answer.exception()
