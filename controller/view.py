"""What everybody but the engine sees: immutable values, swapped as a whole.

A :class:`View` never changes after it was made. The engine publishes a new one after every batch of messages whose
writes are on disk, so nothing is ever shown that a crash could take back. The mappings inside are persistent
(:mod:`controller.frozen_map`): a new view shares with its predecessor everything that did not change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from controller.frozen_map import FrozenMap
from controller.inventory import Inventory
from controller.learner import Gate, LearnedEdge
from graph.flow import EdgeKey, Flow
from graph.model import InboundTls, Mode, Protocol, Rule, Snapshot, Verdict, WorkloadRef
from graph.service_graph import EdgeView, NodeView

if TYPE_CHECKING:  # they speak of overrides and modes themselves
    from controller.declarations import Declaration, Judgement, NetworkPolicyMode
    from controller.fences import Fence


@dataclass(frozen=True, slots=True)
class WorkloadMode:
    """How a workload's sidecars treat connections that no rule speaks of, for each direction."""

    inbound: Mode = Mode.LEARN
    outbound: Mode = Mode.LEARN
    inbound_tls: InboundTls = InboundTls.PERMISSIVE


class OverrideState(StrEnum):
    """Whether an override holds."""

    ACTIVE = "active"
    EXPIRED = "expired"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class Override:
    """What a person decided about one connection, above everything that was learned.

    :param id: unique for all times, such as ``override/7f3a…``; also the id of the rule that it becomes
    :param port: None means every port
    :param operations: none means everything that can be asked; else only these, such as ``GET /cart/{id}``
    :param owner: the person who answers for it
    :param created_at: seconds since the epoch
    :param expires_at: seconds since the epoch; None means never
    :param revoked_at: seconds since the epoch; None while nobody revoked it
    :param ended: its end has been written down (see the audit log) and its rule is gone
    """

    id: str
    effect: Verdict
    source: WorkloadRef
    destination: WorkloadRef
    port: int | None
    protocol: Protocol
    owner: str
    reason: str
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    revoked_by: str = ""
    revoke_reason: str = ""
    ended: bool = False
    operations: tuple[str, ...] = ()

    def state(self, now: float) -> OverrideState:
        if self.revoked_at is not None:
            return OverrideState.REVOKED
        if self.ended or (self.expires_at is not None and now >= self.expires_at):
            return OverrideState.EXPIRED
        return OverrideState.ACTIVE


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One change that a person or the learner made. The entries are a hash chain: see :mod:`controller.audit`.

    :param sequence: 1, 2, 3 …, without gaps
    :param at: seconds since the epoch
    :param actor: who: a person's name, ``learner``, ``controller``, or ``sidecar:NAMESPACE/INSTANCE``
    :param action: what, a stable word such as ``override.create``
    :param subject: to what: an override's id, an edge, a workload
    :param detail: the rest, canonical JSON
    :param previous: the hash of the entry before, 64 hexadecimal digits
    :param hash: of this entry and ``previous``, 64 hexadecimal digits
    """

    sequence: int
    at: float
    actor: str
    action: str
    subject: str
    detail: str
    previous: str
    hash: str


@dataclass(frozen=True, slots=True)
class SidecarState:
    """What is known of one sidecar. Not stored: it is learned again when the sidecar connects again.

    :param instance: the instance's name; ``key`` in :attr:`View.sidecars` is ``namespace/name``
    :param held_version: the snapshot version that it said it holds; 0 is none
    :param pushed_version: the version last sent to it
    :param nack: why it refused the last push; empty when it did not
    :param last_seen: seconds since the epoch
    :param shed: flows that it dropped because its buffer was full
    :param refused: flows that it reported and may not report, or that made no sense
    """

    instance: str
    workload: WorkloadRef
    connected: bool = False
    held_version: int = 0
    pushed_version: int = 0
    nack: str = ""
    last_seen: float = 0.0
    software: str = ""
    boot_id: str = ""
    shed: int = 0
    refused: int = 0


@dataclass(frozen=True, slots=True)
class View:
    """The state of the whole mesh at one moment.

    :param generation: grows with every stored change, also over restarts. What sidecars say of themselves
        (``sidecars``) changes without it.
    :param at: when this view was made, seconds since the epoch
    :param modes: every workload of the inventory is in it
    :param rules: by id: everything that is in force now, overrides included, baseline excluded
    :param edges: what the learner knows, also of edges that are not (or no longer) allowed
    :param edges_of: the keys in ``edges`` of which a workload, or an address, is an end
    :param snapshots: the newest policy of every meshed workload
    :param overrides: by id; ended ones stay for a day
    :param sidecars: by ``namespace/instance``
    :param nodes: the service graph's nodes, with their modes
    :param traffic: the service graph's edges, with counters, and with the learner's state, evidence and the rule that
        decides about them; an edge that was only ever refused is here and not in ``edges``
    :param audit_head: the newest entry of the audit log; None before the first
    :param declared: overrides and modes are what a cluster's resources declare
    :param declarations: what those resources say, by ``Kind/namespace/name``
    :param judgements: of those resources, by ``Kind/namespace/name``
    :param gates: the learning gates of workloads that have one of their own
    :param network_policies: by namespace, where a resource says what is done with its NetworkPolicies
    :param namespace_modes: how a workload that comes is set, where a resource speaks for a whole namespace
    :param fences: by namespace: the NetworkPolicies that were applied to the cluster
    """

    trust_domain: str
    generation: int = 0
    at: float = 0.0
    started_at: float = 0.0
    inventory: Inventory = field(default_factory=Inventory)
    modes: Mapping[WorkloadRef, WorkloadMode] = field(default_factory=FrozenMap)
    rules: Mapping[str, Rule] = field(default_factory=FrozenMap)
    edges: Mapping[EdgeKey, LearnedEdge] = field(default_factory=FrozenMap)
    edges_of: Mapping[WorkloadRef, frozenset[EdgeKey]] = field(default_factory=FrozenMap)
    snapshots: Mapping[WorkloadRef, Snapshot] = field(default_factory=FrozenMap)
    overrides: Mapping[str, Override] = field(default_factory=FrozenMap)
    sidecars: Mapping[str, SidecarState] = field(default_factory=FrozenMap)
    nodes: Mapping[WorkloadRef, NodeView] = field(default_factory=FrozenMap)
    traffic: Mapping[EdgeKey, EdgeView] = field(default_factory=FrozenMap)
    audit_head: AuditEntry | None = None
    declared: bool = False
    declarations: Mapping[str, Declaration] = field(default_factory=FrozenMap)
    judgements: Mapping[str, Judgement] = field(default_factory=FrozenMap)
    gates: Mapping[WorkloadRef, Gate] = field(default_factory=FrozenMap)
    network_policies: Mapping[str, NetworkPolicyMode] = field(default_factory=FrozenMap)
    namespace_modes: Mapping[str, WorkloadMode] = field(default_factory=FrozenMap)
    fences: Mapping[str, Fence] = field(default_factory=FrozenMap)

    @property
    def ready(self) -> bool:
        """Whether the stored state has been loaded."""
        return self.started_at > 0.0


@dataclass(frozen=True, slots=True)
class Change:
    """What a new view changed. Read the values from :attr:`controller.engine.Engine.view`.

    :param edges: whose traffic, learning state or verdict changed
    :param snapshots: the workloads that have a new policy
    :param flows: what was counted, in the order of arrival
    :param sidecars: keys of :attr:`View.sidecars`
    :param judgements: resources that are judged differently now, or are gone
    :param modes: workloads whose mode may have changed; ``fences``: namespaces whose applied NetworkPolicies have
    :param network_policies: namespaces about which something else is said
    :param inventory: the inventory was replaced: directory answers may differ
    :param resync: this subscriber was too slow and missed changes: read the whole view again
    """

    generation: int
    at: float = 0.0
    edges: tuple[EdgeKey, ...] = ()
    nodes: tuple[WorkloadRef, ...] = ()
    removed_edges: tuple[EdgeKey, ...] = ()
    removed_nodes: tuple[WorkloadRef, ...] = ()
    snapshots: tuple[WorkloadRef, ...] = ()
    rules: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    flows: tuple[Flow, ...] = ()
    sidecars: tuple[str, ...] = ()
    judgements: tuple[str, ...] = ()
    modes: tuple[WorkloadRef, ...] = ()
    fences: tuple[str, ...] = ()
    network_policies: tuple[str, ...] = ()
    inventory: bool = False
    resync: bool = False
