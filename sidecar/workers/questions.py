"""Answers what workers ask: who is where, and under which names.

The governing rules:

1. What a worker holds is what the directory says now: it gets the answer that holds when it is sent, and is entered
   for changes in the same moment.
2. Names go with every answer about an address outside the mesh, and such an answer is for one connection
   (:mod:`sidecar.workers.remote`). That it is not outside any more is told all the same.
3. What a worker uses is given back when it dies.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from collections.abc import Hashable
from typing import Final, Protocol

from graph.directory import Destination
from graph.errors import InvalidValue
from graph.wire.codec import destination_to_message
from sidecar.dataplane.contracts import Directory, Names
from sidecar.directory_settings import DEFAULTS
from sidecar.errors import Unresolved
from sidecar.workers.frames import Broken, Frame, Kind, place, places, words
from sidecar.workers.remote import Send

#: Names that one worker's connections use, which are told apart.
_MOST_NAMES: Final = 65_536

type Key = tuple[str, int]


class Asker(Hashable, Protocol):
    """A worker, as far as it asks."""

    @property
    def send(self) -> Send: ...


class _Open:
    """What one worker has asked and uses."""

    __slots__ = ("names", "tasks")

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[None]] = set()
        self.names: Counter[tuple[str, str]] = Counter()


class Questions:
    """Of all workers.

    :param own: our own addresses, which the directory answers without watching anything
    :param names: None when the application's questions to DNS do not go through us
    :param waiting: questions of one worker that wait at once
    """

    def __init__(
        self, directory: Directory, names: Names | None, own: frozenset[str], waiting: int = DEFAULTS.waiting
    ) -> None:
        self._most_waiting = waiting
        self._directory = directory
        self._names = names
        self._own = own
        self._open: dict[Asker, _Open] = {}
        self._watching: dict[Key, dict[Asker, None]] = {}

    def began(self, worker: Asker) -> None:
        """A worker may ask from now on."""
        self._open[worker] = _Open()

    def ended(self, worker: Asker) -> None:
        """A worker is gone. Calling it again changes nothing."""
        held = self._open.pop(worker, None)
        if held is None:
            return
        for task in held.tasks:
            task.cancel()
        for key in [key for key, watching in self._watching.items() if worker in watching]:
            self._unwatch(key, worker)
        if self._names is not None:
            for (address, host), uses in held.names.items():
                for _ in range(uses):
                    self._names.ended(address, host)

    def ask(self, worker: Asker, frame: Frame) -> None:
        """RESOLVE.

        :raises Broken: when it is none, or the worker asks for more at once than it may
        """
        address, port = place(frame)
        tasks = self._open[worker].tasks
        if len(tasks) > self._most_waiting:
            raise Broken("RESOLVE: too much is asked at once")
        task = asyncio.ensure_future(self._answer(worker, address, port))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def used(self, frame: Frame) -> None:
        """USED: the directory is to keep these.

        :raises Broken: when it is none
        """
        for address, port in places(frame):
            self._directory.cached(address, port)

    def named(self, worker: Asker, frame: Frame) -> None:
        """NAME: a connection to a name begins or ends.

        :raises Broken: when it is none
        """
        name = (words(frame, "address", 64), words(frame, "host", 255))
        used = self._open[worker].names
        if self._names is None:
            raise Broken("NAME: there are none")
        if frame.head.get("uses") == 1:
            if len(used) >= _MOST_NAMES and name not in used:
                raise Broken("NAME: too many")
            used[name] += 1
            self._names.began(*name)
        elif frame.head.get("uses") == -1 and used[name] > 0:
            used[name] -= 1
            if not used[name]:
                del used[name]
            self._names.ended(*name)
        else:
            raise Broken("NAME: ends what did not begin")

    def changed(self, address: str, port: int, destination: Destination | None) -> None:
        """The directory says something else from now on, or watches it no more."""
        watching = self._watching.get((address, port))
        if watching is None:
            return
        if destination is None:
            del self._watching[(address, port)]
        data = _encoded(destination) if destination is not None else None
        for worker in tuple(watching):
            if data is None or self._by_name(destination):  # it asks again, and hears the names then
                worker.send(Kind.FORGET, {"address": address, "port": port})
            else:
                worker.send(Kind.CHANGED, {}, (data,))

    async def _answer(self, worker: Asker, address: str, port: int) -> None:
        key = (_canonical(address), port)
        head: dict[str, object] = {"address": address, "port": port, "error": ""}
        try:
            destination = await self._directory.resolve(address, port)
        except Unresolved as error:
            worker.send(Kind.ANSWER, {**head, "error": str(error)[:500] or "not resolved"})
            return
        held = self._directory.cached(*key)
        destination = held or destination
        data = _encoded(destination)
        if data is None:
            worker.send(Kind.ANSWER, {**head, "error": "the answer can not be passed on"})
            return
        outside = self._by_name(destination)
        watched = held is not None and key[0] == address
        if watched and address not in self._own:
            self._watching.setdefault(key, {})[worker] = None
        keep = watched and not outside
        names = list(self._names.bound(address)) if outside and self._names is not None else []
        worker.send(Kind.ANSWER, {**head, "names": names, "keep": keep}, (data,))

    def _by_name(self, destination: Destination | None) -> bool:
        """Whether an answer is for one connection: the names of the address belong to it."""
        return destination is not None and destination.outside and self._names is not None

    def _unwatch(self, key: Key, worker: Asker) -> None:
        watching = self._watching.get(key)
        if watching is not None:
            watching.pop(worker, None)
            if not watching:
                del self._watching[key]


def _canonical(address: str) -> str:
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        return ""  # the directory refuses it


def _encoded(destination: Destination) -> bytes | None:
    try:
        return destination_to_message(destination).SerializeToString()
    except InvalidValue:
        return None
