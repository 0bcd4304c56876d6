"""Holds what we need of every object of one kind, as the API server has it: one list, then a watch that goes on.

:class:`Ledger` is the state machine, without I/O: pages and events in, changes out. :class:`Reflector` drives it. Rules
(Kubernetes, "API concepts": efficient detection of changes):

1. A list counts when its last page has come, and not before. What it lacks is gone; what it has and we did not is new;
   so no event is lost that happened while nobody watched.
2. A watch goes on from the last resource version that was seen, of a list, an event or a bookmark. When the server has
   forgotten that version (410), it is listed again.
3. An API server that does not know an optional resource has none of it, unless one behind the same address had some:
   while a cluster is updated they are of two versions, and what was read stays.
4. Of an object we keep what a reader makes of it and nothing else. An event that changes nothing of that changes
   nothing. An object that can not be read is as good as not there, is counted, and stops nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from controller.kube.client import Client, Document, WatchEvent
from controller.kube.errors import Expired, NoSuchResource
from controller.kube.kinds import Resource

log = logging.getLogger("hedgerow.kube")

#: Seconds after which an API server is asked again for an optional resource that it did not know.
OPTIONAL_PAUSE = 600.0

type Key = tuple[str, str]
"""Namespace (empty for what has none) and name."""


class Unreadable(Exception):
    """An object is not as its API describes it; says where."""


@dataclass(frozen=True, slots=True)
class Changed[T]:
    """:param before: None when it is new; ``after`` None when it is gone"""

    key: Key
    before: T | None
    after: T | None


@dataclass(slots=True)
class Counts:
    """What happened, for people; they only grow."""

    lists: int = 0
    watches: int = 0
    events: int = 0
    bookmarks: int = 0
    expired: int = 0
    unreadable: int = 0


class Ledger[T]:
    """:param read: keeps what is needed of an object; equal results are the same. :raises Unreadable:"""

    def __init__(self, read: Callable[[Document], T]) -> None:
        self._read = read
        self.items: dict[Key, T] = {}
        self.version = ""
        self.counts = Counts()
        self._fresh: dict[Key, T] | None = None

    def begin(self) -> None:
        """A list begins; one that was not completed is forgotten."""
        self._fresh = {}

    def page(self, objects: Iterable[Document]) -> None:
        assert self._fresh is not None
        for each in objects:
            key, value = self._taken(each)
            if value is not None:
                before = self.items.get(key)
                self._fresh[key] = before if before == value and before is not None else value

    def complete(self, version: str) -> list[Changed[T]]:
        """The list is whole, as of ``version``."""
        assert self._fresh is not None
        before, self.items, self._fresh = self.items, self._fresh, None
        self.version = version
        self.counts.lists += 1
        gone = [Changed(key, value, None) for key, value in before.items() if key not in self.items]
        return gone + [
            Changed(key, before.get(key), value) for key, value in self.items.items() if before.get(key) is not value
        ]

    def event(self, event: WatchEvent) -> Changed[T] | None:
        """What an event changes."""
        version = _metadata(event.object).get("resourceVersion")
        change = None
        if event.kind == "BOOKMARK":
            self.counts.bookmarks += 1
        else:
            self.counts.events += 1
            change = self._changed(event)
        if isinstance(version, str) and version:
            self.version = version
        return change

    def _changed(self, event: WatchEvent) -> Changed[T] | None:
        key, value = self._taken(event.object, gone=event.kind == "DELETED")
        before = self.items.get(key)
        if before == value:
            return None
        if value is None:
            del self.items[key]
        else:
            self.items[key] = value
        return Changed(key, before, value)

    def expire(self) -> None:
        """The server has forgotten our version: only a list helps. What is held stays until then."""
        self.version = ""
        self.counts.expired += 1

    def _taken(self, document: Document, *, gone: bool = False) -> tuple[Key, T | None]:
        key = _key(document)
        if gone:
            return key, None
        try:
            return key, self._read(document)
        except Unreadable as error:
            self.counts.unreadable += 1
            log.warning("%s %s/%s is passed over: %s", document.get("kind", "an object"), *key, error)
            return key, None


def _metadata(document: Document) -> Document:
    found = document.get("metadata")
    return found if isinstance(found, dict) else {}


def _key(document: Document) -> Key:
    metadata = _metadata(document)
    return str(metadata.get("namespace") or ""), str(metadata.get("name") or "")


@dataclass(frozen=True, slots=True)
class Selection:
    """Which objects of a kind: all, unless something is set."""

    namespace: str = ""
    labels: str = ""
    fields: str = ""


@dataclass(slots=True)
class Reflector[T]:
    """A :class:`~controller.kube.supervision.Part` that keeps a ledger current.

    :param changed: called with every group of changes, at once after the ledger holds them
    :param optional: an API server that does not know the resource has none of it, where none of it was seen before
    :param clock: seconds; only differences count
    :ivar heard: when the API server last said anything of them; ``watching`` when the present watch began
    """

    client: Client
    resource: Resource
    ledger: Ledger[T]
    changed: Callable[[list[Changed[T]]], None]
    selection: Selection = field(default_factory=Selection)
    optional: bool = False
    clock: Callable[[], float] = time.monotonic
    synced: bool = False
    heard: float | None = None
    watching: float | None = None

    @property
    def name(self) -> str:
        return f"watch {self.resource}"

    async def run(self) -> None:
        """List, if need be, and watch. Begun again after an error it goes on where it was."""
        seen = -1  # of events, when the version was last found to be too old: twice without one between is a fault
        while True:
            try:
                if not self.ledger.version:
                    await self._list()
                await self._watch()
            except Expired:
                self.ledger.expire()
                if self.ledger.counts.events == seen:
                    raise
                seen = self.ledger.counts.events
            except NoSuchResource as error:
                if not self.optional:
                    raise
                if self.ledger.items:
                    raise NoSuchResource(
                        f"{error.problem}, though it had; what was read of them stays",
                        status=error.status,
                        reason=error.reason,
                        remedy="let all API servers behind this address be of one version",
                    ) from error
                self._settled(self._nothing())
                await asyncio.sleep(OPTIONAL_PAUSE)

    async def _list(self) -> None:
        chosen, ledger = self.selection, self.ledger
        ledger.begin()
        version = ""
        async for page in self.client.pages(
            self.resource, chosen.namespace, labels=chosen.labels, fields=chosen.fields
        ):
            ledger.page(page.items)
            version = page.resource_version
            self.heard = self.clock()
        self._settled(ledger.complete(version))

    def _nothing(self) -> list[Changed[T]]:
        self.ledger.begin()
        changes = self.ledger.complete("")
        self.ledger.version = ""
        self.heard = None
        return changes

    def _settled(self, changes: list[Changed[T]]) -> None:
        self.synced = True
        self.changed(changes)

    async def _watch(self) -> None:
        chosen, ledger = self.selection, self.ledger
        ledger.counts.watches += 1
        try:
            async for group in self.client.watch(
                self.resource, ledger.version, chosen.namespace, labels=chosen.labels, fields=chosen.fields
            ):
                self.heard = self.clock()
                if self.watching is None:
                    self.watching = self.heard
                changes = [change for event in group if (change := ledger.event(event)) is not None]
                if changes:
                    self.changed(changes)
        finally:
            self.watching = None
