"""The working state: everything that the engine knows, changed in place, and the writes that make a change last.

Only the engine's task touches it, and only what :meth:`State.settle` has completed is written and published. When a
write fails the whole of it is thrown away and loaded again, so nothing here needs to be undone step by step;
``changes`` counts what was done, so that the engine knows whether a failed operation left something behind.

Over 400 lines: each change stands beside the write that makes it last, for everything that the engine knows.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from controller import audit, overrides
from controller.compiler import CompileError
from controller.declarations import (
    Declaration,
    Judgement,
    ModeDeclaration,
    Modes,
    NetworkPolicyMode,
    check_mode,
    declaration_of,
)
from controller.engine.gathering import Gathered, Shares
from controller.engine.policy import PolicyIndex, digest_of, same_policy
from controller.engine.settings import EngineSettings
from controller.engine.timers import Due, Timers
from controller.engine.tracked import Tracked
from controller.errors import InvalidRequest, StoreError
from controller.fences import Fence
from controller.inventory import Inventory, inventory_of
from controller.join_tokens import JoinToken
from controller.learner import EdgeState, Gate, LearnedEdge, rule_of
from controller.store import Mark, Position, Stored, Writes
from controller.view import AuditEntry, Override, SidecarState, WorkloadMode
from graph.flow import EdgeKey, Flow
from graph.model import Direction, Mode, Rule, Snapshot, WorkloadRef
from graph.service_graph import Limits, ServiceGraph
from graph.views import GraphChanges
from graph.windows import Window

_log = logging.getLogger(__name__)

#: Kinds of documents in the store, and the one that says that a cluster's resources are the truth.
DECLARATION = "declaration"
FENCE = "fence"
GATHERED = "gathered"
TRUTH = ("truth", "kubernetes")


class State:
    """See the module. ``stored`` is what the store gave; ``sidecars`` what was known of them before a reload."""

    def __init__(
        self,
        stored: Stored,
        trust_domain: str,
        settings: EngineSettings,
        now: float,
        sidecars: Mapping[str, SidecarState] | None = None,
    ) -> None:
        self.trust_domain = trust_domain
        self.settings = settings
        self.loaded_at = now
        self.writes = Writes(trust_domain=None if stored.trust_domain else trust_domain)
        self.changes = 0
        self.published_changes = -1  # what ``changes`` was when the last view was made; -1: none was made of this state
        self.generation = stored.generation
        self.inventory = Inventory(trust_domain)
        if stored.inventory is not None:
            self.inventory = replace(inventory_of(stored.inventory, trust_domain), revision=stored.inventory_revision)
        self.inventory_changed = True
        self.inventory_stored_at = 0.0  # by this run
        #: what people set, also for workloads that are not in the inventory now
        self.set_modes: dict[WorkloadRef, WorkloadMode] = dict(stored.modes)
        self.modes: Tracked[WorkloadRef, WorkloadMode] = Tracked()
        self.edges: Tracked[EdgeKey, LearnedEdge] = Tracked({edge.key: edge for edge in stored.edges})
        self.edges_of: Tracked[WorkloadRef, frozenset[EdgeKey]] = Tracked(_by_workload(stored.edges))
        self.rules: Tracked[str, Rule] = Tracked()
        self.overrides: Tracked[str, Override] = Tracked({each.id: each for each in stored.overrides})
        self.snapshots: Tracked[WorkloadRef, Snapshot] = Tracked()
        self.sidecars: Tracked[str, SidecarState] = Tracked(sidecars)
        #: a cluster's resources are the truth about overrides and modes; see :mod:`controller.engine.declared`
        self.declared = TRUTH in stored.documents
        self.declarations: Tracked[str, Declaration] = Tracked()
        self.declared_modes = Modes()
        self.judgements: Tracked[str, Judgement] = Tracked()
        self.no_room: set[str] = set()  # keys of those that wait until others end
        self.judged_anew = False  # since the state was loaded
        self.gates: Tracked[WorkloadRef, Gate] = Tracked()
        self.network_policies: Tracked[str, NetworkPolicyMode] = Tracked()
        self.namespace_modes: Tracked[str, WorkloadMode] = Tracked()
        self.fences: Tracked[str, Fence] = Tracked()
        self.marks: dict[WorkloadRef, Mark] = dict(stored.marks)
        self.tokens: dict[str, JoinToken] = {token.id: token for token in stored.tokens}
        self.positions: dict[str, dict[str, Position]] = {}  # by instance, then boot
        for (instance, boot_id), position in stored.positions.items():
            self.positions.setdefault(instance, {})[boot_id] = position
        self.audit_head: AuditEntry | None = stored.audit_head
        self.shares = Shares(settings.audit_share, settings.audit_pause)
        self.gathered: dict[str, Gathered] = {}  # by namespace; see :mod:`controller.engine.gathering`
        self.flows: list[Flow] = []  # counted since the last view
        self.timers = Timers()
        #: flows that a sidecar reported and may not, by reason, that are not in the audit log yet; and until when not
        self.refusals: dict[str, dict[str, int]] = {}
        self.quiet_until: dict[str, float] = {}
        self.index = PolicyIndex()
        #: workloads whose policy has to be compiled; ``urgent`` ones before anybody gets an answer
        self.stale: set[WorkloadRef] = set()
        self.urgent: set[WorkloadRef] = set()
        limits = Limits(
            external=settings.max_external,
            external_each=max(1, settings.max_external // 4),
            external_space=max(1, settings.max_external // 2),
            edges=settings.max_edges,
            edges_each=max(1, settings.max_edges // 20),
            operations=settings.max_operations,
        )
        self.graph = ServiceGraph(limits)
        self.graph_changes: list[GraphChanges] = []
        self._graph_seen = 0
        self._load_graph(stored, now)
        self._load_documents(stored.documents)
        self._derive(now)

    # --- loading

    def _load_documents(self, documents: Mapping[tuple[str, str], Mapping[str, Any]]) -> None:
        for (kind, key), document in documents.items():
            try:
                if kind == DECLARATION:
                    self.declarations.put(key, declaration_of(document))
                elif kind == FENCE:
                    self.fences.put(key, Fence.from_dict(document))
                elif kind == GATHERED:
                    self.gathered[key] = Gathered.from_dict(document)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise StoreError(
                    f"the document {kind}/{key:.120} is damaged: {error}", remedy="restore the database from a backup"
                ) from None
        accepted = []
        for each in self.declarations.values():
            with contextlib.suppress(InvalidRequest):  # it is told why when the resources are seen again
                if isinstance(each, ModeDeclaration):
                    check_mode(each, self.inventory, self.settings.gate)
                    accepted.append(each)
        self.declared_modes = Modes.of(accepted)

    def _load_graph(self, stored: Stored, now: float) -> None:
        for ref, workload in self.inventory.workloads.items():
            self.graph.put_workload(workload, self.inventory.identity_of(ref))
        for instance in self.inventory.instances.values():
            self.graph.put_instance(instance)
        self.graph.load(stored.traffic)
        self.graph.windows.load(
            (Window(key, width, start, counts) for (key, width, start), counts in stored.windows.items()), now
        )
        self.graph.load_operations(stored.operations)
        whole = self.graph.changes(0)
        self._graph_seen = whole.generation
        self.graph_changes.append(replace(whole, whole=True))

    def _derive(self, now: float) -> None:
        """Everything that follows from what was stored."""
        for ref in self.inventory.workloads:
            self.modes.put(ref, self.mode_of(ref))
            self.follow_gate(ref)
        for key, edge in self.edges.items():
            self.refresh_rule(key)
            self.schedule_edge(edge, now)
        for override in self.overrides.values():
            if override.revoked_at is None and not override.ended:
                self.put_rule(overrides.rule_of(override))
                self.schedule_override(override)
        if self.declared:
            self.follow_namespaces()
        for namespace in self.gathered:
            self.shares.exhaust(namespace, now)
            self.timers.at(now + self.settings.audit_pause, Due.GATHERED, namespace)
        self.timers.at(now + self.settings.housekeeping, Due.HOUSEKEEPING, "")
        self.stale = {ref for ref, workload in self.inventory.workloads.items() if workload.has_sidecar}
        self._compile(now, len(self.stale))

    # --- small changes, each with its write

    def hurry(self, refs: Iterable[WorkloadRef]) -> None:
        """Somebody waits for the policies of these workloads, where they are stale."""
        self.urgent |= self.stale & set(refs)

    def changed(self) -> None:
        """Every method that changes something that is stored or shown calls this."""
        self.changes += 1

    def log(self, now: float, actor: str, action: str, subject: str, /, **detail: object) -> None:
        """Write an audit entry."""
        self.changed()
        self.audit_head = audit.append(self.audit_head, now, actor, action, subject, detail)
        self.writes.audit.append(self.audit_head)

    def log_of(self, namespace: str, now: float, actor: str, action: str, subject: str, /, **detail: object) -> None:
        """Write an audit entry about what somebody in a namespace caused: one of its share, or gathered with others."""
        if self.shares.take(namespace, now):
            self.log(now, actor, action, subject, **detail)
        else:
            self.gather(namespace, now, actor, action, subject, **detail)

    def gather(self, namespace: str, now: float, actor: str, action: str, subject: str, /, **detail: object) -> None:
        """Let a change be told with others of its namespace, in a while."""
        held = self.gathered.get(namespace) or Gathered(now, now)
        self.gathered[namespace] = held.also(now, actor, action, subject, detail)
        self.put_document(GATHERED, namespace, self.gathered[namespace].to_dict())
        self.timers.at(now + self.settings.audit_pause, Due.GATHERED, namespace)

    def tell_gathered(self, now: float, namespace: str) -> None:
        """Write the entry about what was gathered of a namespace."""
        held = self.gathered.pop(namespace, None)
        if held is not None:
            self.put_document(GATHERED, namespace, None)
            self.log(now, "controller", "changes.gathered", f"ns/{namespace}", **held.to_dict())

    def store_inventory(self, now: float) -> None:
        """Let the inventory be written."""
        self.changed()
        self.inventory_stored_at = now
        self.writes.inventory = self.inventory.to_dict()
        self.writes.inventory_revision = self.inventory.revision

    def mode_of(self, ref: WorkloadRef) -> WorkloadMode:
        if self.declared:
            return self.declared_modes.mode_of(ref, self.settings.default_mode)
        return self.set_modes.get(ref, self.settings.default_mode)

    def gate_of(self, ref: WorkloadRef) -> Gate:
        """What learning waits for at a workload."""
        return self.gates.get(ref, self.settings.gate)

    def follow_gate(self, ref: WorkloadRef) -> bool:
        """Let a workload's gate be what is declared. :return: whether it is another one now"""
        before = self.gate_of(ref)
        wanted = self.declared_modes.gate_of(ref, self.settings.gate) if self.declared else self.settings.gate
        if ref in self.inventory.workloads and wanted != self.settings.gate:
            self.gates.put(ref, wanted)
        else:
            self.gates.drop(ref)
        return before != self.gate_of(ref)

    def follow_namespaces(self) -> None:
        """Let what is known of whole namespaces be what is declared."""
        spoken = {target for target in self.declared_modes.by_target if "/" not in target}
        for namespace in spoken | set(self.network_policies) | set(self.namespace_modes):
            _follow(self.network_policies, namespace, self.declared_modes.network_policy_of(namespace))
            whole = self.declared_modes.mode_of_namespace(namespace, self.settings.default_mode)
            _follow(self.namespace_modes, namespace, whole if namespace in spoken else None)

    def gate_of_edge(self, key: EdgeKey) -> Gate:
        """Who is called decides; where that is outside, who calls."""
        return self.gate_of(key.source if key.destination.is_external else key.destination)

    def put_mode(self, ref: WorkloadRef, mode: WorkloadMode) -> None:
        self.changed()
        before = self.mode_of(ref)
        self.set_modes[ref] = mode
        self.writes.modes[ref] = mode
        self.follow_mode(ref, before, mode)

    def follow_mode(self, ref: WorkloadRef, before: WorkloadMode, mode: WorkloadMode) -> None:
        """A workload's mode is another one now."""
        self.changed()
        self.modes.put(ref, mode)
        self.stale.add(ref)
        if Mode.QUARANTINE in (before.inbound, before.outbound, mode.inbound, mode.outbound):
            peers = self.index.neighbours(ref, self.rules)  # they cut it off too
            self.stale |= peers
            self.hurry(peers)

    def put_edge(self, edge: LearnedEdge, now: float) -> None:
        """Remember what is known of an edge now, and follow it with its rule and its timer."""
        self.changed()
        before = self.edges.get(edge.key)
        self.edges.put(edge.key, edge)
        self.writes.edges[edge.key] = edge
        if before is None:
            for ref in {edge.key.source, edge.key.destination}:
                self.edges_of.put(ref, self.edges_of.get(ref, frozenset()) | {edge.key})
        if before is None or (before.allows, before.approved_by) != (edge.allows, edge.approved_by):
            self.refresh_rule(edge.key)
        elif f"learned/{edge.key}" in self.rules:
            self.rules.put(f"learned/{edge.key}", rule_of(edge))  # the same rule, with the evidence of today
        self.schedule_edge(edge, now)

    def forget_edge(self, key: EdgeKey) -> None:
        """Drop an edge that has been retired for long, with its counters."""
        self.changed()
        self.edges.drop(key)
        self.writes.edges[key] = None
        for ref in {key.source, key.destination}:
            left = self.edges_of.get(ref, frozenset()) - {key}
            if left:
                self.edges_of.put(ref, left)
            else:
                self.edges_of.drop(ref)
        self.graph.remove_edge(key)
        self.drop_rule(f"learned/{key}")

    def known(self, ref: WorkloadRef) -> bool:
        """Whether a rule about ``ref`` can mean anything now."""
        return ref.is_external or ref in self.inventory.workloads

    def refresh_rule(self, key: EdgeKey) -> None:
        """Let the rule of an edge be what its state and the inventory say."""
        edge = self.edges[key]
        if edge.allows and self.known(key.source) and self.known(key.destination):
            self.put_rule(rule_of(edge))
        else:
            self.drop_rule(f"learned/{key}")

    def put_rule(self, rule: Rule) -> None:
        self.changed()
        self.drop_rule(rule.id)
        self.rules.put(rule.id, rule)
        self.stale |= self.index.add(rule)

    def drop_rule(self, rule_id: str) -> None:
        rule = self.rules.drop(rule_id)
        if rule is not None:
            self.changed()
            self.stale |= self.index.remove(rule)

    def put_override(self, override: Override) -> None:
        self.changed()
        self.overrides.put(override.id, override)
        self.writes.overrides[override.id] = override

    def put_document(self, kind: str, key: str, document: Mapping[str, Any] | None) -> None:
        self.changed()
        self.writes.documents[kind, key] = document

    def schedule_override(self, override: Override) -> None:
        """Come back to an override when it ends."""
        if override.expires_at is not None:
            self.timers.at(override.expires_at, Due.OVERRIDE, override.id)

    def remove_override(self, override_id: str) -> None:
        """Stop showing an override that ended long ago; the audit log keeps it."""
        self.changed()
        self.overrides.drop(override_id)
        self.writes.overrides[override_id] = None

    def remove_token(self, token_id: str) -> None:
        self.changed()
        del self.tokens[token_id]
        self.writes.tokens[token_id] = None

    def remove_sidecar(self, key: str) -> None:
        self.changed()
        self.sidecars.drop(key)

    def put_token(self, token: JoinToken) -> None:
        self.changed()
        self.tokens[token.id] = token
        self.writes.tokens[token.id] = token

    def put_position(self, instance: str, boot_id: str, position: Position | None) -> None:
        self.changed()
        self.writes.positions[instance, boot_id] = position
        boots = self.positions.setdefault(instance, {})
        if position is not None:
            boots[boot_id] = position
            return
        boots.pop(boot_id, None)
        if not boots:
            del self.positions[instance]

    def put_sidecar(self, key: str, sidecar: SidecarState) -> None:
        """Not stored: it says itself what it is when it connects again."""
        self.changed()
        self.sidecars.put(key, sidecar)

    def schedule_edge(self, edge: LearnedEdge, now: float) -> None:
        """Come back to an edge when time alone can move it."""
        gate = self.gate_of_edge(edge.key)
        moments = [edge.last_seen + gate.stale_after, edge.last_seen + gate.retire_after]
        if edge.state in (EdgeState.CANDIDATE, EdgeState.PROPOSED):
            moments.append(edge.first_seen + gate.min_seconds)
        if edge.state is EdgeState.RETIRED:
            moments = [edge.last_seen + 2 * gate.retire_after]
        due = min((moment for moment in moments if moment > now), default=None)
        if due is not None:
            self.timers.at(due, Due.EDGE, edge.key)

    # --- completing a group of changes

    def settle(self, now: float) -> Writes:
        """Complete what the operations began: counters, policies, versions.

        :return: what has to be written; they are the caller's now
        """
        changes = self.graph.changes(self._graph_seen)
        if changes.generation != self._graph_seen:
            self._graph_seen = changes.generation
            self.graph_changes.append(changes)
            for totals in self.graph.dump(view.key for view in changes.edges):
                self.writes.traffic[totals.key, totals.direction] = totals
            for key in changes.removed_edges:
                for direction in Direction:
                    self.writes.traffic[key, direction] = None
        for key, asked in self.graph.drain_operations().items():
            self.writes.operations[key] = asked or None
        drained = self.graph.windows.drain(now)
        for window in drained.changed:
            self.writes.windows[window.key, window.width, window.start] = window.counts
        for window in drained.ended:
            self.writes.windows[window.key, window.width, window.start] = None
        self._compile(now, self.settings.compile_at_once)
        writes, self.writes = self.writes, Writes()
        if writes:
            self.generation += 1
            writes.generation = self.generation
        return writes

    def _compile(self, now: float, most: int) -> None:
        """Compile the urgent policies and some of the other stale ones.

        :raises CompileError: when an urgent one fails; whoever waits for it is told, and the change is not made
        """
        urgent, self.urgent = self.urgent, set()
        chosen = urgent | set(islice(self.stale - urgent, max(0, most - len(urgent))))
        self.stale -= chosen
        for ref in sorted(chosen):
            try:
                fresh = self.index.compile(ref, self.rules, self.inventory, self.modes, now)
            except CompileError as error:
                if ref in urgent:
                    raise
                _log.error("the policy of %s was not compiled, the one before it stays in force: %s", ref, error)
                self.log(now, "controller", "policy.fail", str(ref), problem=str(error))
            else:
                self._take(ref, fresh, now)

    def _take(self, ref: WorkloadRef, fresh: Snapshot | None, now: float) -> None:
        """Let a freshly compiled policy be the workload's, if it says something new."""
        held = self.snapshots.get(ref)
        if fresh is None:
            self.snapshots.drop(ref)
        elif held is None or not same_policy(held, fresh):
            self.snapshots.put(ref, self._numbered(fresh, now))

    def _numbered(self, fresh: Snapshot, now: float) -> Snapshot:
        mark = self.marks.get(fresh.workload)
        digest = digest_of(fresh)
        if mark is None or mark.digest != digest:
            # Sidecars refuse to go back. A database that was lost and begun anew, or restored from a backup, numbers
            # on above what was given out meanwhile.
            mark = self._mark(fresh.workload, mark.version + 1 if mark is not None else 1, digest, now)
        return replace(fresh, version=mark.version, issued_at=mark.issued_at)

    def number_above(self, ref: WorkloadRef, version: int, now: float) -> None:
        """Give a workload's policy out once more as it is, under a number above ``version``."""
        mark = self._mark(ref, version + 1, self.marks[ref].digest, now)
        held = self.snapshots.get(ref)
        if held is not None:
            self.snapshots.put(ref, replace(held, version=mark.version, issued_at=mark.issued_at))

    def _mark(self, ref: WorkloadRef, least: int, digest: str, now: float) -> Mark:
        self.changed()
        mark = self.marks[ref] = self.writes.marks[ref] = Mark(max(least, int(now)), digest, now)
        return mark


def _follow[K, V](held: Tracked[K, V], key: K, value: V | None) -> None:
    if held.get(key) == value:
        return
    if value is None:
        held.drop(key)
    else:
        held.put(key, value)


def _by_workload(edges: tuple[LearnedEdge, ...]) -> dict[WorkloadRef, frozenset[EdgeKey]]:
    found: dict[WorkloadRef, set[EdgeKey]] = {}
    for edge in edges:
        for ref in (edge.key.source, edge.key.destination):
            found.setdefault(ref, set()).add(edge.key)
    return {ref: frozenset(keys) for ref, keys in found.items()}
