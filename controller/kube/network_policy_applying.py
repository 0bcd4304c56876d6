"""Brings a planned set of NetworkPolicies about in one namespace, or takes ours out of it. See
:mod:`controller.kube.network_policy_plan` for the order and its reasons.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from controller.compiler.networkpolicy import WORKLOAD_ANNOTATION
from controller.compiler.reading import select
from controller.engine import Engine
from controller.kube.batches import batches, together
from controller.kube.client import FIELD_MANAGER, Client, Document
from controller.kube.errors import Conflicting, NoSuchObject, Refused
from controller.kube.kinds import NETWORK_POLICIES, PODS
from controller.kube.network_policy_plan import (
    DEFAULT_DENY,
    Manifest,
    Plan,
    Wanted,
    editor_of,
    made_by_us,
    says,
)
from controller.kube.resources.kinds import OURS, is_ours
from controller.view import View
from graph.model import WorkloadRef

log = logging.getLogger("hedgerow.kube.network-policies")

#: Seconds between two batches of objects that are written.
BATCH_PAUSE = 0.25
#: So many repairs of one object within so many seconds are a fight, and we leave it be for as long again.
REPAIRS, REPAIR_SECONDS = 5, 600.0
#: Pods that have ended are let through to nobody.
_RUNNING = "status.phase!=Succeeded,status.phase!=Failed"

_SELECTOR = ",".join(f"{key}={value}" for key, value in OURS.items())


@dataclass(slots=True)
class Known:
    """What is remembered of one namespace between rounds."""

    stale: bool = True
    compiled_at: float = 0.0
    wanted: Wanted | None = None
    gone_since: dict[str, float] = field(default_factory=dict)
    repairs: dict[str, deque[float]] = field(default_factory=dict)
    #: what was brought about last, by name; None: not known since we were started
    applied: Mapping[str, Manifest] | None = None


class Failed(Exception):
    """A set can not be applied as a whole. :param reason: a word for a condition"""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Applier:
    """:param clock: seconds since the epoch
    :param wake: called when something will be due that nobody tells of
    :param gone: seconds for which a workload must have been gone before its policy is deleted
    """

    def __init__(
        self, client: Client, engine: Engine, clock: Callable[[], float], wake: Callable[[], None], gone: float
    ) -> None:
        self._client = client
        self._engine = engine
        self._clock = clock
        self._wake = wake
        self._gone = gone

    async def bring_about(
        self,
        namespace: str,
        known: Known,
        wanted: Wanted,
        plan: Plan,
        live: Mapping[str, Document],
        view: View,
    ) -> None:
        """:raises Failed: with the reason, when it can not be brought about as a whole"""
        if plan.conflicts:
            raise Failed("Conflict", "; ".join(plan.conflicts))
        self._check_fights(known, plan, live)
        names = (*plan.create, *plan.change)
        if names:
            for batch in batches(names):
                await together(self._try(wanted.manifests[name], live.get(name)) for name in batch)
        before = known.applied or {}
        lost = [name for name in plan.create if name in before]
        edited = [name for name in plan.change if name in before and not says(live[name], before[name])]
        if lost or edited:
            await self._note_repair(namespace, known, lost, edited, live)
        first = tuple(name for name in names if name != DEFAULT_DENY)
        if DEFAULT_DENY in plan.delete:
            await self._delete(live[DEFAULT_DENY])
        await self._put(first, wanted, live)
        if names:
            await self._read_back(namespace, wanted, without_deny=True)
        if DEFAULT_DENY in names:
            await self._put((DEFAULT_DENY,), wanted, live)
            await self._read_back(namespace, wanted, without_deny=False)
        await self._prune(known, [live[name] for name in plan.delete if name != DEFAULT_DENY], view)

    async def _note_repair(
        self, namespace: str, known: Known, lost: list[str], edited: list[str], live: Mapping[str, Document]
    ) -> None:
        """Before it is done, so that it is known also when it fails half-way."""
        now = self._clock()
        for name in (*lost, *edited):
            known.repairs.setdefault(name, deque(maxlen=REPAIRS)).append(now)
        editors = sorted({editor_of(live[name]) for name in edited})
        detail: dict[str, Any] = {"deleted": lost, "edited": edited, "by": editors}
        await self._engine.record("controller", "network-policies.repair", namespace, detail, namespace=namespace)
        log.warning("%s: NetworkPolicies were changed by others and are put back: %s", namespace, detail)

    def _check_fights(self, known: Known, plan: Plan, live: Mapping[str, Document]) -> None:
        """Do not put back for ever what somebody changes for ever."""
        since = self._clock() - REPAIR_SECONDS
        for name in (*plan.create, *plan.change):
            times = known.repairs.get(name)
            if times is not None and len(times) == REPAIRS and times[0] > since:
                who = editor_of(live[name]) if name in live else ""
                raise Failed(
                    "Contested",
                    f"{name} was put back {REPAIRS} times, and {who or 'somebody'} changes it again: end that; "
                    "it is tried again later",
                )

    async def _try(self, manifest: Manifest, held: Document | None) -> None:
        try:
            await self._apply(manifest, held, dry_run=True)
        except (Conflicting, Refused) as error:
            name = manifest["metadata"]["name"]
            reason = "Conflict" if isinstance(error, Conflicting) else "Refused"
            raise Failed(reason, f"{name}: {error.problem}; nothing of the set was applied") from None

    async def _apply(self, manifest: Manifest, held: Document | None, *, dry_run: bool = False) -> Document:
        """Server-side apply. One that is there is changed only while it is the one that was judged."""
        meta = manifest["metadata"]
        body = {**manifest, "metadata": dict(meta)}
        if held is not None:
            body["metadata"] |= {key: held["metadata"][key] for key in ("uid", "resourceVersion")}
        return await self._client.apply(
            NETWORK_POLICIES, meta["name"], body, meta["namespace"], force=held is not None, dry_run=dry_run
        )

    async def _put(self, names: Iterable[str], wanted: Wanted, live: Mapping[str, Document]) -> None:
        for batch in batches(tuple(names)):
            await together(self._put_one(wanted.manifests[name], live.get(name)) for name in batch)
            await asyncio.sleep(BATCH_PAUSE)

    async def _put_one(self, manifest: Manifest, held: Document | None) -> None:
        name = manifest["metadata"]["name"]
        try:
            made = await self._apply(manifest, held)
        except (Conflicting, Refused) as error:
            raise Failed("Conflict", f"{name}: {error.problem}; it is tried again") from None
        if held is None and _mixed(made):
            await self._leave(made)
            raise Failed("Conflict", f"{name} was made by somebody else at the same moment: rename it, or delete it")

    async def _leave(self, document: Document) -> None:
        """Take back what we applied to somebody else's object."""
        meta = document["metadata"]
        body = {
            "apiVersion": NETWORK_POLICIES.api_version,
            "kind": NETWORK_POLICIES.kind,
            "metadata": {"name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"]},
        }
        await self._client.apply(NETWORK_POLICIES, meta["name"], body, meta["namespace"])

    async def _read_back(self, namespace: str, wanted: Wanted, *, without_deny: bool) -> None:
        """Whether the API server has what was proved: asked of it, not of a watch.

        :raises Failed: when something on the way changed it
        """
        there = {
            each["metadata"]["name"]: each
            for each in await self._client.every(NETWORK_POLICIES, namespace, labels=_SELECTOR)
        }
        for name, manifest in wanted.manifests.items():
            if without_deny and name == DEFAULT_DENY:
                continue
            if name not in there or not says(there[name], manifest):
                raise Failed("Altered", f"{name} is not what was applied: does an admission webhook change it?")

    async def _prune(self, known: Known, documents: Iterable[Document], view: View) -> None:
        """Delete what is not wanted: at once where its workload is there, else after a while, and not before every pod
        that it selects is gone or somebody's. Pods outlive their owners, and a controller that was started meanwhile
        does not know whose they were: without their policy they would be open.
        """
        now = self._clock()
        due = []
        names = set()
        for document in documents:
            name = document["metadata"]["name"]
            names.add(name)
            since = known.gone_since.setdefault(name, now)
            if _known(document, view):
                due.append(document)
            elif now - since >= self._gone:
                if await self._holds_somebody(document, view):
                    known.gone_since[name] = now  # so that it is asked no more often
                else:
                    due.append(document)
        for name in set(known.gone_since) - names:
            del known.gone_since[name]
        for batch in batches(due):
            await together(self._delete(document) for document in batch)
            await asyncio.sleep(BATCH_PAUSE)
        if names and len(due) < len(names):
            asyncio.get_running_loop().call_later(self._gone, self._wake)

    async def _holds_somebody(self, document: Document, view: View) -> bool:
        """Whether it selects a pod that runs and of which the inventory does not know whose it is. (Those of a workload
        are as that is set, also where it has the labels of the one that is gone.)
        """
        namespace, selector = document["metadata"]["namespace"], document["spec"].get("podSelector") or {}
        labels = ",".join(f"{key}={value}" for key, value in sorted((selector.get("matchLabels") or {}).items()))
        async for page in self._client.pages(PODS, namespace, labels=labels, fields=_RUNNING):
            for pod in page.items:
                meta = pod["metadata"]
                known = view.inventory.instances.get(f"{namespace}/{meta['name']}")
                theirs = known is not None and known.uid == meta["uid"]
                reached = not (pod.get("spec") or {}).get("hostNetwork")
                if reached and not theirs and select(selector, meta.get("labels") or {}):
                    return True
        return False

    async def remove(self, namespace: str, live: Mapping[str, Document]) -> int:
        """Take all of ours out, what denies the rest before anything else."""
        ours = [held for held in live.values() if is_ours(held) and made_by_us(held)]
        if not ours:
            return 0
        deny = [held for held in ours if held["metadata"]["name"] == DEFAULT_DENY]
        for held in deny:
            await self._delete(held)
        if deny:
            await self._await_gone(namespace)
        rest = [held for held in ours if held not in deny]
        for batch in batches(rest):
            await together(self._delete(held) for held in batch)
            await asyncio.sleep(BATCH_PAUSE)
        names = sorted(held["metadata"]["name"] for held in ours)
        deleted = {"deleted": names[:100]}
        await self._engine.record("controller", "network-policies.remove", namespace, deleted, namespace=namespace)
        return len(ours)

    async def _await_gone(self, namespace: str) -> None:
        there = await self._client.every(NETWORK_POLICIES, namespace, labels=_SELECTOR)
        if any(each["metadata"]["name"] == DEFAULT_DENY for each in there):
            raise Conflicting(
                f"{namespace}/{DEFAULT_DENY} is still there", remedy="a finalizer may hold it: look there"
            )

    async def _delete(self, document: Document) -> None:
        meta = document["metadata"]
        try:
            await self._client.delete(
                NETWORK_POLICIES,
                meta["name"],
                meta["namespace"],
                uid=meta["uid"],
                resource_version=meta["resourceVersion"],
            )
        except NoSuchObject:
            return


def _known(document: Document, view: View) -> bool:
    """Whether the workload that a policy is for is in the inventory, so that its policy is not wanted on purpose."""
    namespace, _, workload = workload_of(document).partition("/")
    return WorkloadRef(namespace, workload) in view.inventory.workloads


def workload_of(document: Mapping[str, Any]) -> str:
    """``namespace/name`` of the workload that a policy is for; empty for none."""
    return str((document["metadata"].get("annotations") or {}).get(WORKLOAD_ANNOTATION, ""))


def _mixed(document: Document) -> bool:
    """Whether somebody else's hand is in an object that we have just made."""
    return any(each.get("manager") != FIELD_MANAGER for each in document["metadata"].get("managedFields") or () if each)
