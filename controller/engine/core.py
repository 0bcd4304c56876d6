"""The task that owns the state, and the methods by which others speak to it.

The order of things is the promise:

1. Messages are handled one after the other, in the order in which they arrived, on the working state.
2. The writes of a group of messages are one transaction of the store. While it is written, the next group gathers.
3. Only after the commit does the view change, are subscribers told, and do the senders get their answers: an answer
   means that a power cut can not take the change back.
4. When the store refuses, the working state is thrown away and loaded again, and every sender of the group is told.
5. An operation that fails half-way spoils nothing: the state is loaded again and the rest of its group done without it.

What is done to the state is in :mod:`controller.engine.operations` and its neighbours; this module knows about order,
waiting and time only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from controller.declarations import Declaration
from controller.engine import declared, fencing, ingest, operations, sidecars, upkeep
from controller.engine.declared import Acting
from controller.engine.settings import EngineSettings
from controller.engine.subscriptions import SnapshotWatch, Subscription
from controller.engine.worker import Worker
from controller.fences import Fence, Manifest
from controller.inventory import Inventory
from controller.overrides import OverrideRequest
from controller.store import Store
from controller.view import AuditEntry, Override, View
from graph.flow import EdgeKey, Flow
from graph.model import Direction, InboundTls, Instance, Mode, Verdict, WorkloadRef


@dataclass(frozen=True, slots=True)
class AuditPage:
    """The newest entries of the audit log, newest first, and whether the whole chain holds.

    :param problem: which entry breaks the chain and how; empty when none does
    """

    entries: tuple[AuditEntry, ...]
    intact: bool
    problem: str = ""


class Engine:
    """Owns inventory, graph, learned edges, modes, overrides, snapshots and the audit log.

    :param store: opened; the engine closes it when it stops
    :param clock: seconds since the epoch

    All methods are called on the event loop that runs :meth:`run`. They raise
    :class:`~controller.errors.NotReady` when the engine has stopped or could not store the change.
    """

    def __init__(
        self,
        store: Store,
        trust_domain: str,
        settings: EngineSettings | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._worker = Worker(store, trust_domain, settings or EngineSettings(), clock)

    # --- life

    async def run(self) -> None:
        """Load the stored state, then serve until cancelled or :meth:`stop` is called.

        :raises StoreError: when the stored state can not be read
        """
        await self._worker.run()

    async def started(self) -> None:
        """Wait until the stored state is loaded.

        :raises NotReady: when the engine stopped instead
        """
        await self._worker.began()

    async def stop(self) -> None:
        """Refuse new messages, finish those that wait, close the store; returns when it is done."""
        await self._worker.stop()

    async def tick(self) -> None:
        """Do now what is due by the clock (overrides that end, edges that ripen) and wait until it is stored.

        The engine does so by itself at the right moments; this is for those who move the clock.
        """
        await self._worker.ask(upkeep.advance)
        while await self._worker.ask(upkeep.behind):
            await self._worker.ask(upkeep.advance)

    # --- looking

    @property
    def view(self) -> View:
        """The newest view. Never blocks, never changes under the reader."""
        return self._worker.view

    def subscribe(self, limit: int = 256) -> Subscription:
        """Be told of every :class:`~controller.view.Change` from now on."""
        return self._worker.subscribe(limit)

    def watch_snapshot(self, workload: WorkloadRef) -> SnapshotWatch:
        """Get the present snapshot of ``workload`` and every newer one; only the newest ever waits."""
        return self._worker.watch(workload)

    def flows(
        self,
        limit: int = 100,
        workload: WorkloadRef | None = None,
        verdict: Verdict | None = None,
        since: float = 0.0,
        namespace: str = "",
    ) -> tuple[Flow, ...]:
        """Flows that were counted lately, newest first. ``since`` compares with ``last_seen``, ``namespace`` with both
        ends' unless it is empty."""
        found = (
            flow
            for flow in reversed(self._worker.flows)
            if (workload is None or workload in (flow.source, flow.destination))
            and (verdict is None or flow.verdict is verdict)
            and flow.last_seen >= since
            and (not namespace or namespace in (flow.source.namespace, flow.destination.namespace))
        )
        return tuple(islice(found, limit))

    def refused(self, since: float) -> Mapping[EdgeKey, int]:
        """How many connections of which edge were refused from ``since`` on, to the width of a window.

        It may be a group of reports ahead of :attr:`view`: those that are being written down.
        """
        return self._worker.refused(since)

    def refused_requests(self, since: float) -> Mapping[EdgeKey, int]:
        """How many requests over which edge were refused from ``since`` on, to the minute; of the last hour at most,
        and none of before this process began.

        Like :meth:`refused` it may be a group of reports ahead.
        """
        return self._worker.refused_requests(since)

    async def audit(self, limit: int = 100) -> AuditPage:
        """The newest audit entries from the store, after the whole chain has been checked again."""
        store, head = self._worker.store, self.view.audit_head
        entries = await asyncio.to_thread(store.audit_page, limit)
        verified = await asyncio.to_thread(store.audit_verified, head)
        return AuditPage(entries, verified.intact, verified.problem)

    async def record(
        self, actor: str, action: str, subject: str, detail: Mapping[str, object], *, namespace: str = ""
    ) -> None:
        """Write an audit entry about something that happened elsewhere in the controller, such as a signature.

        :param detail: JSON types only
        :param namespace: whose doing it is: then it is one of that namespace's share of the log
        """
        entry = dict(detail)
        if namespace:
            await self._worker.ask(lambda state, now: state.log_of(namespace, now, actor, action, subject, **entry))
        else:
            await self._worker.ask(lambda state, now: state.log(now, actor, action, subject, **entry))

    # --- changing: inventory and policy

    async def set_inventory(self, inventory: Inventory, actor: str) -> int:
        """Replace the inventory.

        :return: the generation; unchanged when the inventory is what it was
        """
        await self._worker.ask(lambda state, now: operations.set_inventory(state, now, inventory, actor))
        return self.view.generation

    async def follow_inventory(self, inventory: Inventory, actor: str) -> None:
        """Replace the inventory by one that changes all the time and can be read again from where it comes from.

        It is in force when this returns, and on disk within :attr:`~controller.engine.EngineSettings.inventory_pause`.
        The audit log tells of workloads that come, go or change, and not of every replica.
        """
        await self._worker.ask(lambda state, now: operations.set_inventory(state, now, inventory, actor, followed=True))

    async def set_mode(
        self,
        target: WorkloadRef | str,
        direction: Direction | None,
        mode: Mode | None,
        inbound_tls: InboundTls | None,
        owner: str,
        reason: str,
    ) -> tuple[WorkloadRef, ...]:
        """Set the mode of a workload, or of every workload of a namespace (a ``str``).

        :param direction: None means both
        :param mode: None leaves the mode as it is (then ``inbound_tls`` is required)
        :return: the workloads that it concerns, sorted, also those that had the mode already
        :raises UnknownWorkload, InvalidRequest:
        """
        return await self._worker.ask(
            lambda state, now: operations.set_mode(state, now, target, direction, mode, inbound_tls, owner, reason)
        )

    async def approve(self, edges: Iterable[EdgeKey] | None, owner: str, reason: str) -> tuple[EdgeKey, ...]:
        """Let edges be allowed without waiting for the gate.

        :param edges: None means all that wait and were not refused
        :return: the edges that this made active, sorted
        :raises NotFound: when an edge was never observed
        """
        wanted = None if edges is None else tuple(edges)
        return await self._worker.ask(lambda state, now: operations.approve_edges(state, now, wanted, owner, reason))

    async def create_override(self, asked: OverrideRequest) -> Override:
        """Allow or deny one connection, or some operations of it, from now on.

        :raises UnknownWorkload, InvalidRequest, Conflict:
        """
        return await self._worker.ask(lambda state, now: operations.create_override(state, now, asked))

    async def revoke_override(self, override_id: str, owner: str, reason: str) -> Override:
        """End an override now.

        :raises NotFound:
        :raises Conflict: when it has ended already
        """
        return await self._worker.ask(
            lambda state, now: operations.revoke_override(state, now, override_id, owner, reason)
        )

    # --- changing: what a cluster declares

    async def declare(self, declarations: Iterable[Declaration], acting: Mapping[str, Acting] | None = None) -> None:
        """Let these resources, and no others, be the overrides and modes; what each comes to is in
        :attr:`View.judgements <controller.view.View.judgements>`.

        From the first call on, also over restarts, :meth:`create_override`, :meth:`revoke_override` and
        :meth:`set_mode` are refused.

        :param declarations: all that there are
        :param acting: who changed what through us, by the resource's key
        """
        given, known = tuple(declarations), dict(acting or {})
        await self._worker.ask(lambda state, now: declared.declare(state, now, given, known))

    async def network_policies_applied(
        self, namespace: str, manifests: Sequence[Manifest], detail: Mapping[str, object]
    ) -> Fence:
        """Keep a set of NetworkPolicies that is in force now, so that one can go back to it.

        :param detail: for the audit log, JSON types only
        """
        held, said = tuple(manifests), dict(detail)
        return await self._worker.ask(lambda state, now: fencing.applied(state, now, namespace, held, said))

    async def pin_network_policies(self, namespace: str, to: int | str, owner: str, reason: str) -> Fence:
        """Go back to NetworkPolicies that were applied before, and stay there; or go on with the newest policy.

        :param to: a revision, ``previous`` or ``newest``
        :raises NotFound: when there is no such set
        """
        return await self._worker.ask(lambda state, now: fencing.pin(state, now, namespace, to, owner, reason))

    # --- changing: sidecars

    async def ingest(
        self,
        instance: Instance,
        boot_id: str,
        sequence: int,
        policy_version: int,
        flows: Sequence[Flow],
        shed: int = 0,
    ) -> int:
        """Count what a sidecar saw; when this returns it is on disk.

        Batches are known by (instance, ``boot_id``, ``sequence``): one that was counted before is acknowledged and not
        counted again. Flows of which ``instance``'s workload is not the reporting end are refused, counted and audited.

        :param instance: whose certificate the batch came under
        :param shed: flows that the sidecar dropped since the last batch
        :return: the sequence up to which everything of this boot is stored
        :raises IngestError: when the batch as a whole is malformed
        """
        batch = tuple(flows)
        return await self._worker.ask(
            lambda state, now: ingest.ingest(state, now, instance, boot_id, sequence, policy_version, batch, shed)
        )

    async def sidecar_connected(self, instance: Instance, boot_id: str, held_version: int, software: str) -> None:
        """A sidecar's policy stream opened."""
        await self._worker.ask(
            lambda state, now: sidecars.connected(state, now, instance, boot_id, held_version, software)
        )

    async def sidecar_pushed(self, instance: Instance, boot_id: str, version: int) -> None:
        """A snapshot was sent to it."""
        await self._worker.ask(lambda state, now: sidecars.pushed(state, now, instance, boot_id, version))

    async def sidecar_acked(self, instance: Instance, boot_id: str, version: int) -> None:
        """It holds ``version`` now."""
        await self._worker.ask(lambda state, now: sidecars.acked(state, now, instance, boot_id, version))

    async def sidecar_nacked(self, instance: Instance, boot_id: str, version: int, error: str) -> None:
        """It refused ``version`` and keeps what it has. ``error`` is shown to people."""
        await self._worker.ask(lambda state, now: sidecars.nacked(state, now, instance, boot_id, version, error))

    async def sidecar_disconnected(self, instance: Instance, boot_id: str) -> None:
        """Its policy stream ended. Ignored when a newer stream of another boot has replaced it."""
        await self._worker.ask(lambda state, now: sidecars.disconnected(state, now, instance, boot_id))

    async def wait_pushed(
        self,
        workloads: Iterable[WorkloadRef],
        timeout: float,
        versions: Mapping[WorkloadRef, int] | None = None,
    ) -> bool:
        """Wait until every connected sidecar of ``workloads`` holds at least its workload's version.

        :param versions: None means those of the present view. External references are passed over.
        :return: False when one refused it, or ``timeout`` seconds went by
        """
        view = self.view
        wanted = {
            ref: view.snapshots[ref].version if versions is None else versions.get(ref, 0)
            for ref in workloads
            if ref in view.snapshots
        }
        try:
            async with asyncio.timeout(timeout):
                while True:
                    held = _held(self.view, wanted)
                    if held is not None:
                        return held
                    await self._worker.published()
        except TimeoutError:
            return False

    # --- what people do that changes no policy

    async def note(self, owner: str, action: str, subject: str, reason: str, detail: Mapping[str, object]) -> None:
        """Write into the audit log what a person does; it is on disk when this returns.

        :param action: such as ``tap.start``; ``subject`` is what it is done to
        :raises InvalidRequest: when ``owner`` or ``reason`` is missing
        """
        await self._worker.ask(lambda state, now: operations.note(state, now, owner, action, subject, reason, detail))

    # --- join tokens

    async def create_join_token(self, workload: WorkloadRef, instance: str, expires_in: float, owner: str) -> str:
        """Make a one-time secret with which ``instance`` of ``workload`` gets its first certificate.

        :param expires_in: seconds
        :return: the token's text; it is stored only as a hash and can not be shown again
        :raises UnknownWorkload, InvalidRequest:
        """
        return await self._worker.ask(
            lambda state, now: operations.create_join_token(state, now, workload, instance, expires_in, owner)
        )

    async def redeem_join_token(self, token: str) -> Instance:
        """Use a join token up.

        :raises JoinTokenError: telling whether it is unknown, expired, used or orphaned
        """
        return await self._worker.ask(lambda state, now: operations.redeem_join_token(state, now, token))


def _held(view: View, wanted: Mapping[WorkloadRef, int]) -> bool | None:
    """Whether every connected sidecar holds what is wanted of its workload; None while that is not decided."""
    concerned = [each for each in view.sidecars.values() if each.connected and each.workload in wanted]
    behind = [each for each in concerned if each.held_version < wanted[each.workload]]
    if any(each.nack and each.pushed_version >= wanted[each.workload] for each in behind):
        return False
    return None if behind else True
