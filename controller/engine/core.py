"""The task that owns the state, and the methods by which others speak to it.

The order of things is the promise:

1. Messages are handled one after the other, in the order in which they arrived, on a draft of the state.
2. The writes of a group of messages are one transaction of the store. While it is written, the next group gathers.
3. Only after the commit does the view change, are subscribers told, and do the senders get their answers: an answer
   means that a power cut can not take the change back.
4. When the store refuses, the draft is thrown away, every sender of the group is told, and the state is as it was.

What is done to the state is in :mod:`controller.engine.draft`; this module knows about order, waiting and time only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from controller.engine.settings import EngineSettings
from controller.engine.subscriptions import SnapshotWatch, Subscription
from controller.inventory import Inventory
from controller.store import Store
from controller.view import AuditEntry, Override, SidecarState, View
from graph.model import (
    Direction,
    EdgeKey,
    Flow,
    InboundTls,
    Instance,
    Mode,
    Protocol,
    Verdict,
    WorkloadRef,
)


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
    ) -> None: ...

    # --- life

    async def run(self) -> None:
        """Load the stored state, then serve until cancelled or :meth:`stop` is called.

        :raises StoreError: when the stored state can not be read
        """

    async def started(self) -> None:
        """Wait until the stored state is loaded.

        :raises NotReady: when the engine stopped instead
        """

    async def stop(self) -> None:
        """Refuse new messages, finish those that wait, close the store; returns when it is done."""

    async def tick(self) -> None:
        """Do now what is due by the clock (overrides that end, edges that ripen) and wait until it is stored.

        The engine does so by itself at the right moments; this is for those who move the clock.
        """

    # --- looking

    @property
    def view(self) -> View:
        """The newest view. Never blocks, never changes under the reader."""

    def subscribe(self, limit: int = 256) -> Subscription:
        """Be told of every :class:`~controller.view.Change` from now on."""

    def watch_snapshot(self, workload: WorkloadRef) -> SnapshotWatch:
        """Get the present snapshot of ``workload`` and every newer one; only the newest ever waits."""

    def flows(
        self, limit: int = 100, workload: WorkloadRef | None = None, verdict: Verdict | None = None, since: float = 0.0
    ) -> tuple[Flow, ...]:
        """Flows that were counted lately, newest first. ``since`` compares with ``last_seen``."""

    async def audit(self, limit: int = 100) -> AuditPage:
        """The newest audit entries from the store, after the whole chain has been checked again."""

    # --- changing: inventory and policy

    async def set_inventory(self, inventory: Inventory, actor: str) -> int:
        """Replace the inventory.

        :return: the generation; unchanged when the inventory is what it was
        """

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

    async def approve(self, edges: Iterable[EdgeKey] | None, owner: str, reason: str) -> tuple[EdgeKey, ...]:
        """Let edges be allowed without waiting for the gate.

        :param edges: None means all that wait and were not refused
        :return: the edges that this made active, sorted
        :raises NotFound: when an edge was never observed
        """

    async def create_override(
        self,
        effect: Verdict,
        source: WorkloadRef,
        destination: WorkloadRef,
        port: int | None,
        protocol: Protocol,
        owner: str,
        reason: str,
        expires_in: float | None,
    ) -> Override:
        """Allow or deny one connection from now on.

        :param port: None means every port
        :param expires_in: seconds; None means that it has no end
        :raises UnknownWorkload, InvalidRequest, Conflict:
        """

    async def revoke_override(self, override_id: str, owner: str, reason: str) -> Override:
        """End an override now.

        :raises NotFound:
        :raises Conflict: when it has ended already
        """

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

    async def sidecar_connected(self, instance: Instance, boot_id: str, held_version: int, software: str) -> None:
        """A sidecar's policy stream opened."""

    async def sidecar_pushed(self, instance: Instance, boot_id: str, version: int) -> None:
        """A snapshot was sent to it."""

    async def sidecar_acked(self, instance: Instance, boot_id: str, version: int) -> None:
        """It holds ``version`` now."""

    async def sidecar_nacked(self, instance: Instance, boot_id: str, version: int, error: str) -> None:
        """It refused ``version`` and keeps what it has. ``error`` is shown to people."""

    async def sidecar_disconnected(self, instance: Instance, boot_id: str) -> None:
        """Its policy stream ended. Ignored when a newer stream of another boot has replaced it."""

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

    # --- join tokens

    async def create_join_token(self, workload: WorkloadRef, instance: str, expires_in: float, owner: str) -> str:
        """Make a one-time secret with which ``instance`` of ``workload`` gets its first certificate.

        :param expires_in: seconds
        :return: the token's text; it is stored only as a hash and can not be shown again
        :raises UnknownWorkload, InvalidRequest:
        """

    async def redeem_join_token(self, token: str) -> Instance:
        """Use a join token up.

        :raises JoinTokenError: telling whether it is unknown, expired, used or orphaned
        """
