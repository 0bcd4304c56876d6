"""From the working state to a new view, and to the change that subscribers hear of."""

from __future__ import annotations

from dataclasses import replace

from controller import overrides
from controller.declarations import Declaration, Judgement, NetworkPolicyMode
from controller.engine.state import State
from controller.fences import Fence
from controller.frozen_map import FrozenMap
from controller.learner import Gate, LearnedEdge
from controller.view import Change, Override, SidecarState, View, WorkloadMode
from graph.flow import EdgeKey
from graph.model import Rule, Snapshot, WorkloadRef
from graph.outside import is_wide, takes_in
from graph.views import EdgeView, NodeView

#: What the id of a learned rule begins with; its edge follows.
LEARNED = "learned/"


class Publisher:
    """Makes one view from the one before and what was touched since."""

    def __init__(self, trust_domain: str) -> None:
        self._view = View(trust_domain)
        self._reset()

    @property
    def view(self) -> View:
        return self._view

    def _reset(self) -> None:
        self._modes: FrozenMap[WorkloadRef, WorkloadMode] = FrozenMap()
        self._rules: FrozenMap[str, Rule] = FrozenMap()
        self._edges: FrozenMap[EdgeKey, LearnedEdge] = FrozenMap()
        self._edges_of: FrozenMap[WorkloadRef, frozenset[EdgeKey]] = FrozenMap()
        self._snapshots: FrozenMap[WorkloadRef, Snapshot] = FrozenMap()
        self._overrides: FrozenMap[str, Override] = FrozenMap()
        self._sidecars: FrozenMap[str, SidecarState] = FrozenMap()
        self._nodes: FrozenMap[WorkloadRef, NodeView] = FrozenMap()
        self._traffic: FrozenMap[EdgeKey, EdgeView] = FrozenMap()
        self._declarations: FrozenMap[str, Declaration] = FrozenMap()
        self._judgements: FrozenMap[str, Judgement] = FrozenMap()
        self._gates: FrozenMap[WorkloadRef, Gate] = FrozenMap()
        self._network_policies: FrozenMap[str, NetworkPolicyMode] = FrozenMap()
        self._namespace_modes: FrozenMap[str, WorkloadMode] = FrozenMap()
        self._fences: FrozenMap[str, Fence] = FrozenMap()
        self._overrides_of: dict[tuple[WorkloadRef, WorkloadRef], set[str]] = {}
        self._wide: dict[str, Override] = {}  # of the overrides in force, those with an end that takes in several
        self._between: dict[tuple[WorkloadRef, WorkloadRef], set[EdgeKey]] = {}  # the keys of _traffic by their ends

    def publish(self, state: State, now: float, *, started_at: float) -> tuple[View, Change]:
        """The view of ``state`` and what is different in it.

        A state that was loaded anew shares nothing with the view before, and everybody has to look again.
        """
        afresh = state.published_changes < 0
        state.published_changes = state.changes
        if afresh:
            self._reset()
        touched_modes = set(state.modes.touched)
        touched_edges = set(state.edges.touched)
        rules, touched_overrides = tuple(sorted(state.rules.touched)), tuple(sorted(state.overrides.touched))
        sidecars, snapshots = tuple(sorted(state.sidecars.touched)), set(state.snapshots.touched)
        judgements, fences = tuple(sorted(state.judgements.touched)), tuple(sorted(state.fences.touched))
        touched_edges |= {EdgeKey.parse(rule[len(LEARNED) :]) for rule in rules if rule.startswith(LEARNED)}
        touched_edges |= self._concerned_by_overrides(state)
        self._modes = state.modes.published(self._modes)
        self._rules = state.rules.published(self._rules)
        self._edges = state.edges.published(self._edges)
        self._edges_of = state.edges_of.published(self._edges_of)
        self._snapshots = state.snapshots.published(self._snapshots)
        self._overrides = state.overrides.published(self._overrides)
        self._sidecars = state.sidecars.published(self._sidecars)
        self._declarations = state.declarations.published(self._declarations)
        self._judgements = state.judgements.published(self._judgements)
        self._gates = state.gates.published(self._gates)
        spoken = state.network_policies.touched | state.namespace_modes.touched
        self._namespace_modes = state.namespace_modes.published(self._namespace_modes)
        self._network_policies = state.network_policies.published(self._network_policies)
        self._fences = state.fences.published(self._fences)
        nodes, removed_nodes = self._publish_nodes(state, touched_modes)
        edges, removed_edges = self._publish_traffic(state, touched_edges)
        inventory_changed, state.inventory_changed = state.inventory_changed, False
        flows, state.flows = tuple(state.flows), []
        state.graph_changes = []
        change = Change(
            generation=state.generation,
            at=now,
            edges=tuple(sorted(edges)),
            nodes=tuple(sorted(nodes)),
            removed_edges=tuple(sorted(removed_edges)),
            removed_nodes=tuple(sorted(removed_nodes)),
            snapshots=tuple(sorted(ref for ref in snapshots if ref in self._snapshots)),
            rules=rules,
            overrides=touched_overrides,
            flows=flows,
            sidecars=sidecars,
            judgements=judgements,
            modes=tuple(sorted(touched_modes)),
            fences=fences,
            network_policies=tuple(sorted(spoken)),
            inventory=inventory_changed,
            resync=afresh,
        )
        self._view = View(
            trust_domain=state.trust_domain,
            generation=state.generation,
            at=now,
            started_at=started_at,
            inventory=state.inventory,
            modes=self._modes,
            rules=self._rules,
            edges=self._edges,
            edges_of=self._edges_of,
            snapshots=self._snapshots,
            overrides=self._overrides,
            sidecars=self._sidecars,
            nodes=self._nodes,
            traffic=self._traffic,
            audit_head=state.audit_head,
            declared=state.declared,
            declarations=self._declarations,
            judgements=self._judgements,
            gates=self._gates,
            network_policies=self._network_policies,
            namespace_modes=self._namespace_modes,
            fences=self._fences,
        )
        return self._view, change

    def _publish_nodes(self, state: State, touched: set[WorkloadRef]) -> tuple[set[WorkloadRef], set[WorkloadRef]]:
        for changes in state.graph_changes:
            if changes.whole:
                touched = touched | set(self._nodes) | {view.ref for view in changes.nodes}
            touched = touched | {view.ref for view in changes.nodes} | set(changes.removed_nodes)
        present = {}
        for ref in touched:
            node = state.graph.node(ref)
            if node is not None:
                present[ref] = self._node(node)
        gone = {ref for ref in touched if ref not in present and ref in self._nodes}
        self._nodes = self._nodes.updated(present, gone)
        return set(present), gone

    def _node(self, node: NodeView) -> NodeView:
        mode = self._modes.get(node.ref)
        if mode is None:
            return node
        return replace(node, inbound_mode=str(mode.inbound), outbound_mode=str(mode.outbound))

    def _publish_traffic(self, state: State, touched: set[EdgeKey]) -> tuple[set[EdgeKey], set[EdgeKey]]:
        for changes in state.graph_changes:
            if changes.whole:
                touched = touched | set(self._traffic)
            touched = touched | {view.key for view in changes.edges} | set(changes.removed_edges)
        present = {}
        for key in touched:
            edge = state.graph.edge(key)
            if edge is not None:
                present[key] = self._edge(edge)
                self._between.setdefault((key.source, key.destination), set()).add(key)
        gone = {key for key in touched if key not in present and key in self._traffic}
        for key in gone:
            self._between[key.source, key.destination].discard(key)
        self._traffic = self._traffic.updated(present, gone)
        return set(present), gone

    def _edge(self, edge: EdgeView) -> EdgeView:
        learned = self._edges.get(edge.key)
        return replace(
            edge,
            state=str(learned.state) if learned is not None else "",
            evidence=learned.evidence() if learned is not None else (),
            rule=self._deciding(edge.key),
        )

    def _deciding(self, key: EdgeKey) -> Rule | None:
        """The rule that decides about an edge: an override on it, else what was learned, else an override on some
        operations of it."""
        named = self._overrides_of.get((key.source, key.destination), set())
        named = named | {each for each, wide in self._wide.items() if _speaks_of(wide, key.source, key.destination)}
        holding = [self._overrides[each] for each in named if each in self._rules and each in self._overrides]
        override = overrides.deciding(holding, key.port, key.protocol)
        learned = self._rules.get(f"{LEARNED}{key}")
        if override is not None and (learned is None or not override.operations):
            return self._rules[override.id]
        return learned

    def _concerned_by_overrides(self, state: State) -> set[EdgeKey]:
        """The edges between the ends of overrides that came or went; keeps the index of overrides by their ends."""
        found: set[EdgeKey] = set()
        for override_id in state.overrides.touched:
            override = state.overrides.get(override_id) or self._overrides.get(override_id)
            if override is None:
                continue
            ends = (override.source, override.destination)
            holds = override_id in state.overrides and not override.ended
            if any(is_wide(end) for end in ends):
                if holds:
                    self._wide[override_id] = override
                else:
                    self._wide.pop(override_id, None)
                found.update(*(keys for between, keys in self._between.items() if _speaks_of(override, *between)))
                continue
            named = self._overrides_of.setdefault(ends, set())
            if holds:
                named.add(override_id)
            else:
                named.discard(override_id)
                if not named:
                    del self._overrides_of[ends]
            found |= self._between.get(ends, set())
        return found


def _speaks_of(override: Override, source: WorkloadRef, destination: WorkloadRef) -> bool:
    return takes_in(override.source, source) and takes_in(override.destination, destination)
