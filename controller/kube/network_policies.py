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
5. What was applied to a namespace, and what a person went back to there, ends with it. The API server is asked which
   namespace has the name: that the inventory does not show one for a moment says nothing, and neither does the name.

What somebody edits or deletes is put back, and audited; who does so again and again is named, and let be for a while.

A namespace that refuses, or keeps us waiting, does so for itself alone: see :mod:`controller.kube.turns`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from controller.cluster_state import POLICIES
from controller.compiler import CompileError, compile_policy
from controller.declarations import NetworkPolicyMode
from controller.engine import Engine
from controller.fences import NAMESPACE_UID, Fence, digest_of
from controller.kube.batches import batches, together
from controller.kube.client import Client, Document
from controller.kube.errors import KubernetesError, NoSuchObject
from controller.kube.inventory.problems import Problems
from controller.kube.kinds import NAMESPACES, NETWORK_POLICIES
from controller.kube.network_policy_applying import Applier, Failed, Known, workload_of
from controller.kube.network_policy_plan import (
    DEFAULT_DENY,
    PROTECTED,
    Manifest,
    Wanted,
    foreign_of,
    made_by_us,
    plan_of,
    trimmed,
    wanted_of,
)
from controller.kube.network_policy_status import Outcome, StatusWriter
from controller.kube.reflector import Changed, Ledger, Reflector
from controller.kube.resources.kinds import is_ours
from controller.kube.resources.reading import moment_of
from controller.kube.resources.sync import ResourceSync
from controller.kube.turns import Turns
from controller.mesh_policy import policy_input
from controller.together import until_one_ends
from controller.view import Change, View
from graph.model import Mode

log = logging.getLogger("hedgerow.kube.network-policies")

#: Seconds between two rounds, and between two rounds without a reason.
PAUSE = 1.0
ROUTINE = 60.0
#: Seconds for which a workload must have been gone before its policy is deleted.
GONE = 30.0
#: Seconds between two compilations of what is only reported.
REPORT_PAUSE = 15.0


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
        self.protected = tuple(sorted(self._protected))
        self._clock = clock
        self._ready = ready
        self._arrived = asyncio.Event()
        self._applier = Applier(client, engine, clock, self._arrived.set, gone)
        self._held = Reflector(client, NETWORK_POLICIES, Ledger(trimmed), self._changed)
        self._status = StatusWriter(client, resources, clock)
        self._known: dict[str, Known] = {}
        self._turns = Turns(self.name, self._turn, self._arrived.set)
        self._compiling = asyncio.Lock()  # it takes all of a processor: one namespace after the other
        self._synced = False
        #: of namespaces whose policies are not as they should be, for people
        self.problems = Problems()

    @property
    def synced(self) -> bool:
        return self._synced

    async def run(self) -> None:
        """Keep them until cancelled, or until the API server fails us."""
        for each in self._known.values():
            each.stale = True
        self._turns.begin_again()
        try:
            await until_one_ends(self._held.run(), self._watch_engine(), self._rounds())
        finally:
            await self._turns.end()

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
        ours = {key[0] for key, held in self._held.ledger.items.items() if is_ours(held) and made_by_us(held)}
        concerned = ours | set(view.network_policies)
        await self._turns.round(sorted(concerned))
        for gone in set(self._known) - concerned:
            del self._known[gone]
        for about in [about for about in self.problems if about.partition("/")[2] not in concerned]:
            self.problems.note(about, "")
        unseen = sorted(set(view.fences) - concerned - set(view.inventory.namespaces))
        for batch in batches(unseen):
            await together(self._forget_if_gone(namespace) for namespace in batch)

    async def _forget_if_gone(self, namespace: str) -> None:
        try:
            await self._client.get(NAMESPACES, namespace)
        except NoSuchObject:
            await self._engine.network_policies_applied(namespace, (), {})
        except KubernetesError as error:
            log.debug("whether namespace %s is there can not be seen: %s", namespace, error)

    async def _turn(self, namespace: str) -> None:
        """Do one namespace's part of a round, and say what became of it where people look."""
        view = self._engine.view
        mode = view.network_policies.get(namespace, NetworkPolicyMode.REPORT)
        failure: KubernetesError | None = None
        try:
            outcome = await self._namespace(view, namespace, mode)
        except KubernetesError as error:
            failure = error
            outcome = Outcome(mode, False, "Failed", f"{error}; what was applied before stays, and it is tried again")
        untold = ""
        try:
            await self._status.tell(namespace, outcome)
        except KubernetesError as error:  # the policies are not kept up for that: the next round tells it
            untold = f"its SegmentationMode can not be told: {error}"
        wrong = "" if outcome.holds or outcome.reason == "Protected" else outcome.message
        said = "; ".join(each for each in (wrong, untold) if each)
        self.problems.note(f"{POLICIES}/{namespace}", f"namespace {namespace}: NetworkPolicies: {said}" if said else "")
        if untold:
            log.warning("namespace %s: %s", namespace, untold)
        if failure is not None:
            raise failure

    # --- one namespace

    async def _namespace(self, view: View, namespace: str, mode: NetworkPolicyMode) -> Outcome:
        known = self._known.setdefault(namespace, Known())
        fence = view.fences.get(namespace, Fence())
        if mode is NetworkPolicyMode.APPLY and namespace in self._protected:
            said = "this namespace keeps the cluster, or us, running: nothing is applied here"
            return Outcome(mode, False, "Protected", said)
        if mode is not NetworkPolicyMode.APPLY:
            known.applied = {}
            removed = await self._applier.remove(namespace, self._live(namespace))
            if mode is NetworkPolicyMode.OFF:
                return Outcome(mode, True, "Off", "ours are not there", deleted=removed)
        elif fence.pinned is not None or known.applied is None:
            fence = await self._of_today(namespace, known, fence)
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
            await self._applier.bring_about(namespace, known, wanted, plan, live, view)
        except Failed as error:
            return Outcome(mode, False, error.reason, str(error), plan=plan, foreign=foreign, open=wanted.open)
        if fence.pinned is None and wanted.manifests and known.applied is not wanted.manifests:
            manifests = list(wanted.manifests.values())
            detail: dict[str, Any] = {
                "created": list(plan.create),
                "changed": list(plan.change),
                "deleted": list(plan.delete),
                NAMESPACE_UID: (await self._client.get(NAMESPACES, namespace))["metadata"]["uid"],
            }
            fence = await self._engine.network_policies_applied(namespace, manifests, detail)
        known.applied = wanted.manifests
        return _applied(wanted, fence, foreign)

    async def _of_today(self, namespace: str, known: Known, fence: Fence) -> Fence:
        """What is kept of a namespace, unless that was another one of its name."""
        if not fence.sets:
            return fence
        meta = (await self._client.get(NAMESPACES, namespace))["metadata"]
        if fence.is_of(meta["uid"], moment_of(meta["creationTimestamp"])):
            return fence
        known.applied = {}  # nobody took away what was never there
        return await self._engine.network_policies_applied(namespace, (), {})

    async def _wanted(self, view: View, namespace: str, known: Known, fence: Fence) -> Wanted:
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
            fresh = {name: each for name, each in today.manifests.items() if workload_of(each) in shut}
            manifests = dict(sorted((manifests | fresh).items(), key=lambda item: item[0] == DEFAULT_DENY))
        return Wanted(manifests)

    async def _today(self, view: View, namespace: str, known: Known) -> Wanted:
        if known.stale or known.wanted is None:
            known.stale = False
            known.wanted = None
            known.compiled_at = self._clock()
            async with self._compiling:
                known.wanted = await asyncio.to_thread(_compiled, view, namespace, self._clock())
        return known.wanted

    def _live(self, namespace: str) -> dict[str, Document]:
        return {name: held for (space, name), held in self._held.ledger.items.items() if space == namespace}

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
            wanted = await self._wanted(view, namespace, Known(), fence)
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
