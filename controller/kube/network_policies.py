"""Keeps the NetworkPolicies of namespaces that ask for it (``networkPolicy: apply``) as they were compiled and proved.

Work comes in rounds, at most one every :data:`PAUSE` seconds. A round compiles the namespaces about which something
changed, holds what they should have against what is there, and brings about the difference in the order that
:mod:`controller.kube.network_policy_plan` gives reasons for:

1. When anything of the set could not be applied, nothing of it is: the API server is asked first (dry run).
2. Policies are applied in small batches, each only if it is still the object that was judged.
3. All are read back from the API server. Only when each says what was proved, the policy that denies the rest is
   applied.
4. What is no longer wanted is deleted; when its workload has left the inventory, only after it has stayed away for a
   while, because a watch that lost sight of a workload must not open it.

What somebody edits or deletes is put back, and audited; who does so again and again is named, and let be for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from controller.compiler import CompileError, compile_policy
from controller.compiler.networkpolicy import WORKLOAD_ANNOTATION
from controller.declarations import NetworkPolicyMode
from controller.engine import Engine
from controller.fences import Fence, digest_of
from controller.kube.batches import batches, together
from controller.kube.client import FIELD_MANAGER, Client, Document
from controller.kube.errors import Conflicting, KubernetesError, NoSuchObject, Refused
from controller.kube.kinds import NETWORK_POLICIES
from controller.kube.network_policy_plan import (
    DEFAULT_DENY,
    PROTECTED,
    Manifest,
    Plan,
    Wanted,
    editor_of,
    foreign_of,
    made_by_us,
    plan_of,
    says,
    wanted_of,
)
from controller.kube.network_policy_status import Outcome, StatusWriter
from controller.kube.reflector import Changed, Ledger, Reflector
from controller.kube.resources.kinds import OURS, is_ours
from controller.kube.resources.sync import ResourceSync
from controller.mesh_policy import policy_input
from controller.view import Change, View
from graph.model import Mode, WorkloadRef

log = logging.getLogger("hedgerow.kube.network-policies")

#: Seconds between two rounds, and between two rounds without a reason.
PAUSE = 1.0
ROUTINE = 60.0
#: Seconds between two compilations of what is only reported.
REPORT_PAUSE = 15.0
#: Seconds between two batches of objects that are written.
BATCH_PAUSE = 0.25
#: Seconds for which a workload must have been gone before its policy is deleted.
GONE = 30.0
#: So many repairs of one object within so many seconds are a fight, and we leave it be for as long again.
REPAIRS, REPAIR_SECONDS = 5, 600.0

_SELECTOR = ",".join(f"{key}={value}" for key, value in OURS.items())


@dataclass(slots=True)
class _Namespace:
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


class NetworkPolicyKeeper:
    """A :class:`~controller.kube.supervision.Part`, and what the web API asks about NetworkPolicies.

    :param own: the controller's own namespace: its policies come with the chart
    :param clock: seconds since the epoch
    :param ready: whether the inventory is the cluster's by now: before that a workload may only seem to be gone
    :param gone: see :data:`GONE`
    """

    name = "network policies"

    def __init__(
        self,
        client: Client,
        engine: Engine,
        resources: ResourceSync,
        own: str,
        clock: Callable[[], float],
        ready: Callable[[], bool],
        gone: float = GONE,
    ) -> None:
        self._client = client
        self._engine = engine
        self._resources = resources
        self._protected = PROTECTED | {own}
        self._clock = clock
        self._ready = ready
        self._gone = gone
        self._arrived = asyncio.Event()
        self._held = Reflector(client, NETWORK_POLICIES, Ledger(lambda document: document), self._changed)
        self._status = StatusWriter(client, resources, clock)
        self._known: dict[str, _Namespace] = {}
        self._synced = False

    @property
    def synced(self) -> bool:
        return self._synced

    async def run(self) -> None:
        """Keep them until cancelled, or until the API server fails us."""
        for each in self._known.values():
            each.stale = True
        tasks = [asyncio.create_task(work) for work in (self._held.run(), self._watch_engine(), self._rounds())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _changed(self, _: list[Changed[Document]]) -> None:
        self._arrived.set()

    async def _watch_engine(self) -> None:
        async with self._engine.subscribe() as changes:
            async for change in changes:
                if self._concerns(change):
                    self._arrived.set()

    def _concerns(self, change: Change) -> bool:
        if not (change.rules or change.modes or change.inventory or change.fences or change.network_policies):
            return change.resync
        # a rule can name any namespace, and a workload's labels matter wherever it is a peer
        for each in self._known.values():
            each.stale = True
        return True

    async def _rounds(self) -> None:
        self._arrived.set()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ROUTINE):
                    await self._arrived.wait()
            self._arrived.clear()
            if not (self._held.synced and self._resources.synced and self._ready()):
                await asyncio.sleep(PAUSE)
                self._arrived.set()
                continue
            began = time.monotonic()
            await self._round()
            self._synced = True
            # compiling a large mesh takes its time, and must not take all of it
            await asyncio.sleep(max(PAUSE, 2 * (time.monotonic() - began)))

    async def _round(self) -> None:
        view = self._engine.view
        inside = {namespace for namespace, mode in view.network_policies.items() if mode is NetworkPolicyMode.APPLY}
        ours = {key[0] for key, held in self._held.ledger.items.items() if is_ours(held) and made_by_us(held)}
        problems: list[KubernetesError] = []
        for namespace in sorted(inside | ours | set(view.network_policies)):
            mode = view.network_policies.get(namespace, NetworkPolicyMode.REPORT)
            try:
                outcome = await self._namespace(view, namespace, mode)
            except KubernetesError as error:
                if error.passing:
                    raise
                problems.append(error)
                outcome = Outcome(mode, False, "Failed", str(error))
            await self._status.tell(namespace, outcome)
        for gone in set(self._known) - set(view.network_policies) - ours:
            del self._known[gone]

    # --- one namespace

    async def _namespace(self, view: View, namespace: str, mode: NetworkPolicyMode) -> Outcome:
        known = self._known.setdefault(namespace, _Namespace())
        fence = view.fences.get(namespace, Fence())
        if mode is NetworkPolicyMode.APPLY and namespace in self._protected:
            said = "this namespace keeps the cluster, or us, running: nothing is applied here"
            return Outcome(mode, False, "Protected", said)
        if mode is not NetworkPolicyMode.APPLY:
            known.applied = {}
            removed = await self._remove(namespace)
            if mode is NetworkPolicyMode.OFF:
                return Outcome(mode, True, "Off", "ours are not there", deleted=removed)
        now = self._clock()
        if mode is NetworkPolicyMode.REPORT and known.wanted is not None and now - known.compiled_at < REPORT_PAUSE:
            known.stale = False  # it is only looked at: the next routine round makes it anew
        try:
            wanted = await self._wanted(view, namespace, known, fence)
        except (CompileError, ValueError) as error:
            return Outcome(mode, False, "NotCompiled", f"{error}; what was applied before stays")
        live = self._live(namespace)
        plan = plan_of(wanted.manifests, live)
        foreign = foreign_of(namespace, live, wanted.manifests, view.inventory.workloads.values())
        if mode is NetworkPolicyMode.REPORT:
            said = f"{len(plan.create)} would be applied" if wanted.manifests else "nothing would be applied"
            return Outcome(mode, True, "Reported", said, plan=plan, foreign=foreign, open=wanted.open)
        try:
            if known.applied is None:
                known.applied = _kept(fence)
            await self._bring_about(namespace, known, wanted, plan, live, view)
        except Failed as error:
            return Outcome(mode, False, error.reason, str(error), plan=plan, foreign=foreign, open=wanted.open)
        if fence.pinned is None and wanted.manifests and known.applied is not wanted.manifests:
            manifests = list(wanted.manifests.values())
            detail = {"created": list(plan.create), "changed": list(plan.change), "deleted": list(plan.delete)}
            fence = await self._engine.network_policies_applied(namespace, manifests, detail)
        known.applied = wanted.manifests
        return _applied(wanted, fence, foreign)

    async def _wanted(self, view: View, namespace: str, known: _Namespace, fence: Fence) -> Wanted:
        """:raises CompileError, ValueError: when there is nothing that may be applied"""
        if fence.pinned is None:
            return await self._today(view, namespace, known)
        pinned = fence.found(fence.pinned)
        if pinned is None:
            raise ValueError(f"revision {fence.pinned} is not kept any more")
        manifests = {each["metadata"]["name"]: each for each in pinned.manifests}
        shut = {
            str(ref)
            for ref, mode in view.modes.items()
            if ref.namespace == namespace and Mode.QUARANTINE in (mode.inbound, mode.outbound)
        }
        if shut:  # going back opens no quarantine
            today = await self._today(view, namespace, known)
            fresh = {name: each for name, each in today.manifests.items() if _workload_of(each) in shut}
            manifests = dict(sorted((manifests | fresh).items(), key=lambda item: item[0] == DEFAULT_DENY))
        return Wanted(manifests)

    async def _today(self, view: View, namespace: str, known: _Namespace) -> Wanted:
        if known.stale or known.wanted is None:
            known.stale = False
            known.wanted = None
            known.compiled_at = self._clock()
            known.wanted = await asyncio.to_thread(_compiled, view, namespace, self._clock())
        return known.wanted

    def _live(self, namespace: str) -> dict[str, Document]:
        return {name: held for (space, name), held in self._held.ledger.items.items() if space == namespace}

    async def _bring_about(
        self,
        namespace: str,
        known: _Namespace,
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
        edited = [name for name in plan.change if name in before and not says(live[name], before[name])]
        if lost or edited:
            now = self._clock()
            for name in (*lost, *edited):
                known.repairs.setdefault(name, deque(maxlen=REPAIRS)).append(now)
            editors = sorted({editor_of(live[name]) for name in edited})
            detail = {"deleted": lost, "edited": edited, "by": editors}
            await self._engine.record("controller", "network-policies.repair", namespace, detail)
            log.warning("%s: NetworkPolicies were changed by others and are put back: %s", namespace, detail)

    def _check_fights(self, known: _Namespace, plan: Plan, live: Mapping[str, Document]) -> None:
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

    async def _prune(self, known: _Namespace, documents: Iterable[Document], view: View) -> None:
        now = self._clock()
        due = []
        names = set()
        for document in documents:
            name = document["metadata"]["name"]
            names.add(name)
            since = known.gone_since.setdefault(name, now)
            if _known(document, view) or now - since >= self._gone:
                due.append(document)
        for name in set(known.gone_since) - names:
            del known.gone_since[name]
        for batch in batches(due):
            await together(self._delete(document) for document in batch)
            await asyncio.sleep(BATCH_PAUSE)
        if names and len(due) < len(names):
            asyncio.get_running_loop().call_later(self._gone, self._arrived.set)

    async def _remove(self, namespace: str) -> int:
        """Take all of ours out, what denies the rest before anything else."""
        ours = [held for held in self._live(namespace).values() if is_ours(held) and made_by_us(held)]
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
        await self._engine.record("controller", "network-policies.remove", namespace, {"deleted": names[:100]})
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

    # --- for people

    async def report(self, namespace: str | None) -> list[dict[str, Any]]:
        """See :class:`controller.authoring.NetworkPolicies`."""
        view = self._engine.view
        spaces = {ref.namespace for ref in view.inventory.workloads} if namespace is None else {namespace}
        return [await self._report(view, space) for space in sorted(spaces - self._protected)]

    async def _report(self, view: View, namespace: str) -> dict[str, Any]:
        mode = view.network_policies.get(namespace, NetworkPolicyMode.REPORT)
        fence = view.fences.get(namespace, Fence())
        said: dict[str, Any] = {
            "namespace": namespace,
            "mode": str(mode),
            "pinned": fence.pinned,
            "revision": fence.newest.revision if fence.newest is not None else None,
            "problem": "",
        }
        try:
            wanted = await self._wanted(view, namespace, _Namespace(), fence)
        except (CompileError, ValueError) as error:
            return said | {"problem": str(error)}
        live = self._live(namespace)
        plan = plan_of(wanted.manifests, live)
        return said | {
            "create": [wanted.manifests[name] for name in plan.create],
            "change": [{"from": _shown(live[name]), "to": _shown(wanted.manifests[name])} for name in plan.change],
            "delete": list(plan.delete),
            "conflicts": list(plan.conflicts),
            "foreign": list(foreign_of(namespace, live, wanted.manifests, view.inventory.workloads.values())),
            "open": list(wanted.open),
        }


def _compiled(view: View, namespace: str, now: float) -> Wanted:
    members = {ref for ref in view.inventory.workloads if ref.namespace == namespace}
    policies = compile_policy(policy_input(view), now, only=members).network_policies if members else ()
    return wanted_of(
        namespace,
        policies,
        view.inventory.workloads.values(),
        view.modes,
        view.namespace_modes.get(namespace),
    )


def _applied(wanted: Wanted, fence: Fence, foreign: tuple[str, ...]) -> Outcome:
    count = len(wanted.manifests)
    outcome = Outcome(
        NetworkPolicyMode.APPLY,
        True,
        "Applied",
        f"{count} are applied as they were proved",
        foreign=foreign,
        open=wanted.open,
        applied=count,
        digest=digest_of(wanted.manifests.values()),
        revision=fence.newest.revision if fence.newest is not None else None,
    )
    if fence.pinned is None:
        return outcome
    outcome.revision = outcome.pinned = fence.pinned
    outcome.reason = "RolledBack"
    outcome.message = f"{fence.pinned_by} went back to revision {fence.pinned}, which stays: {fence.reason}"
    return outcome


def _known(document: Document, view: View) -> bool:
    """Whether the workload that a policy is for is in the inventory, so that its policy is not wanted on purpose."""
    namespace, _, workload = _workload_of(document).partition("/")
    return WorkloadRef(namespace, workload) in view.inventory.workloads


def _workload_of(document: Mapping[str, Any]) -> str:
    """``namespace/name`` of the workload that a policy is for; empty for none."""
    return str((document["metadata"].get("annotations") or {}).get(WORKLOAD_ANNOTATION, ""))


def _mixed(document: Document) -> bool:
    """Whether somebody else's hand is in an object that we have just made."""
    return any(each.get("manager") != FIELD_MANAGER for each in document["metadata"].get("managedFields") or () if each)


def _shown(document: Mapping[str, Any]) -> dict[str, Any]:
    meta = document["metadata"]
    return {"metadata": {"namespace": meta["namespace"], "name": meta["name"]}, "spec": document["spec"]}


def _kept(fence: Fence) -> Mapping[str, Manifest]:
    """What was in force when it was last written down."""
    kept = fence.newest if fence.pinned is None else fence.found(fence.pinned)
    if kept is None:
        return {}
    try:
        return {each["metadata"]["name"]: each for each in kept.manifests}
    except ValueError:
        return {}
