"""Shows what was learned, one ``LearnedPolicy`` for each workload, for people and for tools that read the API server.

They say nothing that the engine goes by. One is written when what it says is different, and it says nothing that moves
with every connection: counts are powers of ten, times are those of the last change of state.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from typing import Any

from controller.engine import Engine
from controller.engine.policy import digest_of
from controller.kube.batches import batches, together
from controller.kube.client import Client, Document
from controller.kube.errors import Conflicting, NoSuchObject, Refused
from controller.kube.reflector import Changed, Ledger, Reflector
from controller.kube.resources.kinds import LEARNED_POLICIES, OURS, is_ours
from controller.kube.resources.reading import moment_written
from controller.kube.turns import Turns
from controller.learner import EdgeState, LearnedEdge
from controller.together import until_one_ends
from controller.view import Change, View
from graph.model import WorkloadRef

log = logging.getLogger("hedgerow.kube.resources")

#: Connections that are listed; the rest is counted.
MAX_LISTED = 500
#: Seconds between two rounds, and between two looks at everything.
PAUSE = 5.0
ROUTINE = 300.0
BATCH_PAUSE = 0.5


class LearnedPolicyWriter:
    """A :class:`~controller.kube.supervision.Part`."""

    name = "learned policies"

    def __init__(self, client: Client, engine: Engine, ready: Callable[[], bool], pause: float = PAUSE) -> None:
        """:param ready: whether the inventory is the cluster's by now; before that nothing is written or deleted"""
        self._client = client
        self._engine = engine
        self._ready = ready
        self._pause = pause
        self._arrived = asyncio.Event()
        self._stale: set[WorkloadRef] = set()
        self._pending: dict[str, set[WorkloadRef]] = {}  # to be looked at, by namespace
        self._turns = Turns(self.name, self._turn, self._arrived.set)
        self._all = True
        self._held = Reflector(client, LEARNED_POLICIES, Ledger(_shortened), self._changed)
        self._synced = False

    @property
    def synced(self) -> bool:
        return self._synced

    async def run(self) -> None:
        """Write them until cancelled, or until the API server fails us."""
        self._all = True
        self._turns.begin_again()
        try:
            await until_one_ends(self._held.run(), self._watch_engine(), self._rounds())
        finally:
            await self._turns.end()

    def _changed(self, changes: list[Changed[Document]]) -> None:
        self._stale |= {WorkloadRef(*each.key) for each in changes}
        self._arrived.set()

    async def _watch_engine(self) -> None:
        async with self._engine.subscribe() as changes:
            async for change in changes:
                self._note(change)

    def _note(self, change: Change) -> None:
        self._all = self._all or change.resync or change.inventory
        touched = {end for key in change.edges for end in (key.source, key.destination)}
        self._stale |= {ref for ref in (*touched, *change.modes, *change.snapshots) if not ref.is_external}
        if self._stale or self._all:
            self._arrived.set()

    async def _rounds(self) -> None:
        self._arrived.set()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ROUTINE):
                    await self._arrived.wait()
            self._arrived.clear()
            if self._held.synced and self._ready():
                await self._round()
                self._synced = True
            elif self._held.synced:
                self._arrived.set()
            await asyncio.sleep(self._pause)

    async def _round(self) -> None:
        view = self._engine.view
        stale, self._stale = self._stale, set()
        whole, self._all = self._all, False
        held = self._held.ledger.items
        if whole:
            stale = set(view.inventory.workloads) | {WorkloadRef(*key) for key in held}
        for ref in stale:
            self._pending.setdefault(ref.namespace, set()).add(ref)
        await self._turns.round(sorted(self._pending))

    async def _turn(self, namespace: str) -> None:
        """Write what is different in one namespace."""
        refs = self._pending.pop(namespace, set())
        try:
            await self._follow(refs)
        except BaseException:
            self._pending.setdefault(namespace, set()).update(refs)
            raise

    async def _follow(self, refs: set[WorkloadRef]) -> None:
        view, held = self._engine.view, self._held.ledger.items
        waiting: list[tuple[WorkloadRef, dict[str, Any]]] = []
        gone: list[Document] = []
        for ref in sorted(refs):
            document = held.get((ref.namespace, ref.name))
            if document is not None and not is_ours(document):
                continue  # somebody wrote it by hand; it means nothing
            if ref not in view.inventory.workloads:
                gone += [document] if document is not None else []
                continue
            status = learned_status(view, ref)
            if document is None or (document.get("status") or {}) != status:
                waiting.append((ref, status))
        for batch in batches(waiting):
            await together(self._write(ref, status, (ref.namespace, ref.name) in held) for ref, status in batch)
            await asyncio.sleep(BATCH_PAUSE)
        for documents in batches(gone):
            await together(self._delete(document) for document in documents)

    async def _write(self, ref: WorkloadRef, status: dict[str, Any], there: bool) -> None:
        body: dict[str, Any] = {
            "apiVersion": LEARNED_POLICIES.api_version,
            "kind": LEARNED_POLICIES.kind,
            "metadata": {"name": ref.name, "namespace": ref.namespace, "labels": dict(OURS)},
        }
        try:
            if not there:
                await self._client.apply(LEARNED_POLICIES, ref.name, body, ref.namespace)
            told = {**body, "metadata": {"name": ref.name, "namespace": ref.namespace}, "status": status}
            await self._client.apply(LEARNED_POLICIES, ref.name, told, ref.namespace, subresource="status", force=True)
        except (NoSuchObject, Conflicting):
            self._stale.add(ref)  # deleted under our hands, or its namespace is: another round looks again
        except Refused as error:
            log.error("the LearnedPolicy of %s: %s", ref, error)

    async def _delete(self, document: Document) -> None:
        meta = document["metadata"]
        with contextlib.suppress(NoSuchObject, Conflicting):
            await self._client.delete(LEARNED_POLICIES, meta["name"], meta["namespace"], uid=meta["uid"])


def learned_status(view: View, ref: WorkloadRef) -> dict[str, Any]:
    """What a workload's ``LearnedPolicy`` says. Pure."""
    edges = [view.edges[key] for key in sorted(view.edges_of.get(ref, ())) if key in view.edges]
    active = sum(1 for edge in edges if edge.allows)
    waiting = sum(1 for edge in edges if not edge.allows and edge.state is not EdgeState.RETIRED)
    mode, snapshot = view.modes.get(ref), view.snapshots.get(ref)
    status: dict[str, Any] = {"workload": str(ref), "active": active, "waiting": waiting}
    if mode is not None:
        status |= {"ingressMode": str(mode.inbound), "egressMode": str(mode.outbound)}
    if snapshot is not None:
        status["digest"] = digest_of(snapshot)
    listed = list(_listed(ref, edges))
    if listed:
        status["connections"] = listed[:MAX_LISTED]
    if len(listed) > MAX_LISTED:
        status["omitted"] = len(listed) - MAX_LISTED
    return status


def _listed(ref: WorkloadRef, edges: Iterable[LearnedEdge]) -> Iterable[dict[str, Any]]:
    for edge in sorted(edges, key=lambda edge: (not edge.allows, edge.key)):  # what is allowed is listed first
        ends = [("ingress", edge.key.source)] if edge.key.destination == ref else []
        ends += [("egress", edge.key.destination)] if edge.key.source == ref else []
        for direction, peer in ends:
            entry: dict[str, Any] = {
                "direction": direction,
                "peer": str(peer),
                "port": edge.key.port,
                "protocol": str(edge.key.protocol),
                "state": str(edge.state),
                "since": moment_written(edge.state_since),
                "connectionsAtLeast": _power_of_ten(edge.reached),
                "proved": edge.inbound.verified > 0,
            }
            if edge.approved_by:
                entry["approvedBy"] = edge.approved_by
            if edge.identities:
                entry["identities"] = sorted(edge.identities)[:16]
            yield entry


def _power_of_ten(count: int) -> int:
    return 10 ** (len(str(count)) - 1) if count > 0 else 0


def _shortened(document: Document) -> Document:
    meta = document["metadata"]
    kept = {key: meta[key] for key in ("name", "namespace", "uid", "labels") if key in meta}
    return {"metadata": kept, "status": document.get("status") or {}}
