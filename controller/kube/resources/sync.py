"""Lets the custom resources be what the engine goes by, and tells each resource what became of it.

The order of things:

1. Nothing is given to the engine before both kinds were listed as a whole: until then what it stored is in force.
2. Every change gives it all resources again, so that nothing depends on the order in which watches speak.
3. Resources that went with their definition or their namespace were deleted by nobody: what they said stays for as
   long as :mod:`~controller.kube.resources.departed` says.
4. What can not be read any more, since it was edited, goes on closing what it closed.
5. A status is written after the engine has stored what it says; one namespace that does not take it keeps nobody else's
   resources from being followed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from controller.declarations import Declaration, Judgement, Kind, check_mode_itself
from controller.engine import Engine
from controller.engine.declared import Acting
from controller.errors import InvalidRequest
from controller.kube.batches import batches, together
from controller.kube.client import Client, Document
from controller.kube.errors import Conflicting, NoSuchObject, Refused
from controller.kube.kinds import Resource
from controller.kube.reflector import Changed, Ledger, Reflector
from controller.kube.resources.departed import GONE, LOOK, Departed, closes
from controller.kube.resources.kinds import ACCESS_OVERRIDES, SEGMENTATION_MODES, is_ours
from controller.kube.resources.reading import mode_declaration, override_declaration
from controller.kube.resources.status import says_already, status_of
from controller.kube.turns import Turns
from controller.together import until_one_ends

log = logging.getLogger("hedgerow.kube.resources")

#: The most statuses of one namespace that are written at one time.
WRITERS = 8
#: Seconds for which changes gather before the engine is given everything.
COALESCE = 0.02
#: Seconds until it is asked again whether the inventory is there.
READY_PAUSE = 0.5
#: Seconds between two looks at what is not told to us: overrides of ours that ended long ago.
HOUSEKEEPING = 300.0
#: Seconds for which an override that we made is still there after its end.
ENDED_KEPT = 86400.0

_RESOURCES: Mapping[Kind, Resource] = {Kind.OVERRIDE: ACCESS_OVERRIDES, Kind.MODE: SEGMENTATION_MODES}


class ResourceSync:
    """A :class:`~controller.kube.supervision.Part`.

    :param clock: seconds since the epoch
    :param ready: whether the inventory is the cluster's by now: before that nobody is told that a workload is unknown
    :param gone: seconds for which what went with a definition stays after that was made anew
    """

    name = "custom resources"

    def __init__(
        self,
        client: Client,
        engine: Engine,
        clock: Callable[[], float],
        ready: Callable[[], bool] = lambda: True,
        gone: float = GONE,
    ) -> None:
        self._client = client
        self._engine = engine
        self._clock = clock
        self._ready = ready
        self._arrived = asyncio.Event()
        self._held = {
            kind: Reflector(client, resource, Ledger(_whole), self._changed) for kind, resource in _RESOURCES.items()
        }
        self._departed = Departed(client, _RESOURCES, self._inhabited, gone)
        self._read: dict[str, tuple[str, Declaration | Judgement]] = {}
        self._kept: dict[str, Declaration] = {}  # what stays in force though no resource says it now
        self._acting: dict[str, Acting] = {}
        self._ending: set[str] = set()  # of those who act: what they delete
        self._told: dict[str, tuple[Document, Judgement]] = {}
        self._untold: dict[str, list[tuple[Resource, Document, Document]]] = {}  # statuses to write, by namespace
        self._turns = Turns("statuses", self._turn, self._arrived.set)
        self._taken = asyncio.Event()
        self._synced = False

    @property
    def synced(self) -> bool:
        return self._synced

    # --- for the author

    def document(self, key: str) -> Document | None:
        """A resource as it was last seen, by ``Kind/namespace/name``."""
        kind, namespace, name = key.split("/")
        return self._held[Kind(kind)].ledger.items.get((namespace, name))

    def declarations(self) -> list[Declaration]:
        """What all resources declare that can be read, and what stays in force of others."""
        return [each for _, each in self._read.values() if not isinstance(each, Judgement)] + [*self._kept.values()]

    @contextmanager
    def acting(self, key: str, by: Acting, *, ends: bool = False) -> Iterator[None]:
        """Who changes a resource meanwhile, for the audit log.

        :param ends: by deleting it: when it is gone, that is why
        """
        self._acting[key] = by
        if ends:
            self._ending.add(key)
        try:
            yield
        finally:
            self._acting.pop(key, None)
            self._ending.discard(key)

    async def taken(self) -> None:
        """Wait until the engine was given resources again."""
        await self._taken.wait()

    def judgement(self, key: str) -> Judgement | None:
        """What became of a resource, as far as it is stored."""
        found = self._read.get(key)
        if found is not None and isinstance(found[1], Judgement):
            stays = " (what it said before stays in force)" if key in self._kept else ""
            return replace(found[1], problem=found[1].problem + stays)
        return self._engine.view.judgements.get(key)

    def _inhabited(self, namespace: str) -> bool:
        return any(ref.namespace == namespace for ref in self._engine.view.inventory.workloads)

    # --- the part

    async def run(self) -> None:
        """Follow the resources until cancelled, or until the API server fails us."""
        self._turns.begin_again()
        try:
            await until_one_ends(*(held.run() for held in self._held.values()), self._follow(), self._housekeep())
        finally:
            await self._turns.end()

    def _changed(self, _: list[Changed[Document]]) -> None:
        self._arrived.set()

    async def _follow(self) -> None:
        self._arrived.set()  # what is there may not have been taken when we were stopped
        watcher = asyncio.create_task(self._watch_engine())
        try:
            while True:
                await self._arrived.wait()
                await asyncio.sleep(COALESCE)
                self._arrived.clear()
                if not all(held.synced for held in self._held.values()):
                    continue
                await self._take()
                if self._ready():
                    await self._tell()
                else:
                    asyncio.get_running_loop().call_later(READY_PAUSE, self._arrived.set)
                if watcher.done():
                    watcher.result()
                    return
        finally:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)

    async def _watch_engine(self) -> None:
        """Overrides end and workloads come without a word from the API server."""
        async with self._engine.subscribe() as changes:
            async for change in changes:
                if change.judgements or change.resync:
                    self._arrived.set()
        self._arrived.set()

    async def _take(self) -> None:
        """Give the engine everything.

        :raises KubernetesError: when something is not there any more, and the API server does not say why
        """
        fresh: dict[str, tuple[str, Declaration | Judgement]] = {}
        for key, kind, document in self._documents():
            version = _version(document)
            known = self._read.get(key)
            fresh[key] = known if known is not None and known[0] == version else (version, _read(kind, document))
        declared = self._engine.view.declarations
        gone = [each for key, each in declared.items() if key not in fresh and key not in self._ending]
        kept = {each.key: each for each in (await self._departed.held(gone) if gone else ())}
        if kept:
            asyncio.get_running_loop().call_later(LOOK, self._arrived.set)
        for key, (_, read) in fresh.items():
            before = declared.get(key)
            if isinstance(read, Judgement) and before is not None and before.source.uid == read.uid and closes(before):
                kept[key] = before
        self._read, self._kept = fresh, kept
        await self._engine.declare(self.declarations(), dict(self._acting))
        self._synced = True
        taken, self._taken = self._taken, asyncio.Event()
        taken.set()

    def _documents(self) -> Iterator[tuple[str, Kind, Document]]:
        """Every resource that nobody has deleted: one with a finalizer stays, and who may write one may write those."""
        for kind, held in self._held.items():
            for (namespace, name), document in held.ledger.items.items():
                if "deletionTimestamp" not in document["metadata"]:
                    yield f"{kind}/{namespace}/{name}", kind, document

    async def _tell(self) -> None:
        """Write the statuses that are not what they should be."""
        now = self._clock()
        for key in [key for key in self._told if key not in self._read]:
            del self._told[key]
        self._untold = {}
        for key, kind, document in self._documents():
            judgement = self.judgement(key)
            meta = document["metadata"]
            if judgement is None or judgement.uid != meta["uid"]:
                continue
            told = self._told.get(key)
            if told is not None and told[0] is document and told[1] == judgement:
                continue
            read = self._read.get(key, ("", judgement))[1]
            declaration = None if isinstance(read, Judgement) else read
            status = status_of(document, declaration, judgement, now, override=kind is Kind.OVERRIDE)
            if not says_already(document.get("status"), status):
                self._untold.setdefault(meta["namespace"], []).append((_RESOURCES[kind], document, status))
            else:
                self._told[key] = (document, judgement)
        await self._turns.round(sorted(self._untold))

    async def _turn(self, namespace: str) -> None:
        for batch in batches(self._untold.get(namespace, ()), WRITERS):
            await together(self._write(*each) for each in batch)

    async def _write(self, resource: Resource, document: Document, status: Document) -> None:
        meta = document["metadata"]
        body = {
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {"name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"]},
            "status": status,
        }
        try:
            await self._client.apply(resource, meta["name"], body, meta["namespace"], subresource="status", force=True)
        except (NoSuchObject, Conflicting):
            return  # it is gone, or another one by now: the watch tells
        except Refused as error:
            log.error("the status of %s %s/%s: %s", resource.kind, meta["namespace"], meta["name"], error)

    async def _housekeep(self) -> None:
        """Delete overrides that we made, once they have ended long ago. Those of others are theirs."""
        while True:
            await asyncio.sleep(HOUSEKEEPING)
            now = self._clock()
            for key, kind, document in list(self._documents()):
                judgement = self.judgement(key)
                over = judgement is not None and judgement.ended and judgement.expires_at is not None
                if kind is not Kind.OVERRIDE or not over or not is_ours(document):
                    continue
                assert judgement is not None
                assert judgement.expires_at is not None
                if now - judgement.expires_at > ENDED_KEPT:
                    meta = document["metadata"]
                    try:
                        await self._client.delete(ACCESS_OVERRIDES, meta["name"], meta["namespace"], uid=meta["uid"])
                    except (NoSuchObject, Conflicting):
                        continue


def _whole(document: Document) -> Document:
    """Everything but what is only in the way."""
    meta = {key: value for key, value in document["metadata"].items() if key != "managedFields"}
    return document | {"metadata": meta}


def _version(document: Document) -> str:
    """Changes with what a resource says; its status does not count."""
    meta = document["metadata"]
    return f"{meta.get('uid')}/{meta.get('generation')}"


def _read(kind: Kind, document: Document) -> Declaration | Judgement:
    """What a resource declares, or why it can not be read."""
    try:
        if kind is Kind.OVERRIDE:
            return override_declaration(document)
        mode = mode_declaration(document)
        check_mode_itself(mode)
        return mode
    except InvalidRequest as error:
        meta = document["metadata"]
        return Judgement(
            str(meta.get("uid")),
            int(meta.get("generation", 1)),
            False,
            error.code,
            error.field,
            error.problem,
            error.remedy,
        )
