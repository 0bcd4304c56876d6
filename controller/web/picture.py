"""The service graph of one view, with what only the controller knows about it: modes, learning state, evidence, rule.

Pure: made of an immutable view and a time, it answers questions and never changes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from controller.view import View
from graph.model import Connection, Direction, EdgeKey, Origin, Peer, Rule, Verdict, Workload, WorkloadRef
from graph.policy import matches
from graph.views import EdgeVerdict, EdgeView, GraphView, NodeView


@dataclass(frozen=True)
class Picture:
    """What people are shown of the graph.

    :param now: seconds since the epoch, for rules that expire
    """

    view: View
    now: float

    def whole(self, namespace: str = "") -> GraphView:
        """Every workload of the inventory and everything that traffic showed, sorted.

        :param namespace: only its workloads, the edges that begin or end there, and the other ends of those
        """
        edges = [self.edge(key) for key in sorted(self.view.traffic) if not namespace or _touches(key, namespace)]
        shown = tuple(edge for edge in edges if edge is not None)
        refs = {*self.view.inventory.workloads, *self.view.nodes}
        if namespace:
            refs = {ref for ref in refs if ref.namespace == namespace}
            refs.update(end for edge in shown for end in (edge.source, edge.destination))
        nodes = (self.node(ref) for ref in sorted(refs))
        return GraphView(self.view.generation, self.now, tuple(node for node in nodes if node is not None), shown)

    def node(self, ref: WorkloadRef) -> NodeView | None:
        """One workload or outside address; None when neither the inventory nor traffic knows it."""
        node = self.view.nodes.get(ref)
        workload = self.view.inventory.workloads.get(ref)
        if node is None and workload is None:
            return None
        mode = self.view.modes.get(ref)
        base = node or self._of_inventory(ref, workload)
        if mode is None or not base.meshed:
            return base
        return replace(base, inbound_mode=str(mode.inbound), outbound_mode=str(mode.outbound))

    def _of_inventory(self, ref: WorkloadRef, workload: Workload | None) -> NodeView:
        inventory = self.view.inventory
        return NodeView(
            ref,
            kind=workload.kind if workload else "",
            meshed=bool(workload and workload.meshed),
            instances=len(inventory.instances_of(ref)),
            identity=inventory.identity_of(ref),
        )

    def edge(self, key: EdgeKey) -> EdgeView | None:
        """One edge; None when it was never observed."""
        learned = self.view.edges.get(key)
        seen = self.view.traffic.get(key)
        if seen is None and learned is None:
            return None
        base = seen or EdgeView(key, EdgeVerdict.ALLOW if learned and learned.allows else EdgeVerdict.WOULD_DENY)
        return replace(
            base,
            state=str(learned.state) if learned else "",
            evidence=learned.evidence() if learned else (),
            rule=self.rule(key),
        )

    def rule(self, key: EdgeKey) -> Rule | None:
        """The rule that speaks of an edge, the strongest one where there are several."""
        # asked as the source's sidecar would: whether the source can prove who it is does not change which rule is meant
        asked = Connection(
            Direction.OUTBOUND, self.peer(key.source), self.peer(key.destination), key.port, key.protocol
        )
        for rule in self._made_by_hand:
            if matches(rule, asked, self.now):
                return rule
        return self.view.rules.get(f"learned/{key}")

    @cached_property
    def _made_by_hand(self) -> tuple[Rule, ...]:
        """Every rule that is not learned, the stronger before the weaker (:mod:`graph.policy`, rule 2)."""
        others = (rule for rule in self.view.rules.values() if rule.origin is not Origin.LEARNED)
        return tuple(
            sorted(
                others,
                key=lambda rule: (rule.origin is not Origin.OVERRIDE, rule.effect is not Verdict.DENY, rule.id),
            )
        )

    def peer(self, ref: WorkloadRef, *, verified: bool = True) -> Peer:
        """An end of a connection as the inventory knows it."""
        if ref.is_external:
            return Peer(address=ref.name)
        workload = self.view.inventory.workloads.get(ref)
        instances = self.view.inventory.instances_of(ref)
        return Peer(
            workload=ref,
            namespace=ref.namespace,
            service_account=workload.service_account if workload else "",
            address=instances[0].address if instances else "",
            verified=verified,
        )


def _touches(key: EdgeKey, namespace: str) -> bool:
    return namespace in (key.source.namespace, key.destination.namespace)
