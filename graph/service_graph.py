"""The live service graph: who talks to whom, on which port, how often, proved by which identity.

A networkx multigraph holds it: nodes are workloads, parallel edges are keyed by (port, protocol). The governing rules:

1. One owner mutates it; everybody else reads immutable views, which are cached until something changes.
2. Every change has a generation. What changed after a generation is found in time proportional to the change.
3. Everything that traffic can make grow is bounded (:mod:`graph.limits`), and what goes over a bound is counted, never
   silent: addresses and hosts outside the inventory are folded into one node, flows beyond the other bounds left out.
4. A report about a workload from before its removal does not bring it back.
5. A report of an operation belongs to an edge that connections have made; it never makes one. How many requests were
   refused lately is in memory alone: :attr:`ServiceGraph.refused_requests`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import networkx as nx

from graph.accounts import EdgeAccounts, EdgeTotals
from graph.flow import EdgeKey, Flow
from graph.generations import Generations
from graph.limits import OTHER_ADDRESSES, Limits, Shed
from graph.model import Direction, Instance, Verdict, Workload, WorkloadRef
from graph.nodes import Node
from graph.shares import Shares
from graph.views import EdgeVerdict, EdgeView, GraphChanges, GraphView, NodeView, OperationView
from graph.windows import Counts, Level, Windows

__all__ = ["OTHER_ADDRESSES", "EdgeTotals", "EdgeVerdict", "EdgeView", "Limits", "NodeView", "ServiceGraph", "Shed"]


type _Item = WorkloadRef | EdgeKey

#: The hour that people are told of, in minutes.
_LATELY = (Level(60, 3600),)


class ServiceGraph:
    """The graph and its windows. Not thread-safe: it has one owner."""

    def __init__(self, limits: Limits | None = None, windows: Windows[EdgeKey] | None = None) -> None:
        self._limits = limits or Limits()
        self._graph: nx.MultiDiGraph[WorkloadRef] = nx.MultiDiGraph()
        self._generations: Generations[_Item] = Generations(self._limits.removals)
        self._tombstones: dict[WorkloadRef, float] = {}
        self._owners: dict[tuple[str, str], WorkloadRef] = {}  # of instances, by namespace and name
        self._shares = Shares(self._limits)
        self._unknowns = 0
        self._operations = 0
        self._asked: set[EdgeKey] = set()  # whose operations changed since they were drained
        self.windows: Windows[EdgeKey] = windows if windows is not None else Windows()
        #: Requests that were refused within the hour, as ``denied``.
        self.refused_requests: Windows[EdgeKey] = Windows(_LATELY)
        self.shed = Shed()

    @property
    def generation(self) -> int:
        """Grows with every change that a view shows; 0 is the empty graph."""
        return self._generations.current

    # What the inventory says

    def put_workload(self, workload: Workload, identity: str = "") -> None:
        """Add a workload, or change its facts.

        :param identity: the SPIFFE ID that its instances carry
        """
        self._tombstones.pop(workload.ref, None)
        node = self._find(workload.ref)
        if node is None:
            node = self._add_node(workload.ref)
        elif node.workload == workload and node.identity == identity:
            return
        elif node.workload is None and not workload.ref.is_external:
            self._unknowns -= 1
        node.workload, node.identity = workload, identity
        generation = self._generations.next()
        self._touch_node(node, generation)
        for key in self._edges_at(workload.ref, leaving=False):
            self._graph.edges[key.source, key.destination, (key.port, key.protocol)]["accounts"].invalidate()
            self._generations.touch(key, generation)  # the ports' application protocols may have changed

    def put_instance(self, instance: Instance) -> None:
        """Add a replica, or change its facts; its workload gets a node when it has none."""
        key = (instance.workload.namespace, instance.name)
        node = self._find(instance.workload)
        if node is not None and node.instances.get(key) == instance:
            return
        self.remove_instance(*key)  # the name may have belonged to another workload
        if node is None:
            node = self._add_node(instance.workload)
            self._unknowns += 1
        node.instances[key] = instance
        self._owners[key] = instance.workload
        self._touch_node(node, self._generations.next())

    def remove_instance(self, namespace: str, name: str) -> bool:
        """A replica is gone. What it reported stays; False when it was not there."""
        owner = self._owners.pop((namespace, name), None)
        node = self._find(owner) if owner is not None else None
        if node is None:
            return False
        del node.instances[(namespace, name)]
        if not self._drop_if_unused(node, self._generations.current + 1):
            self._touch_node(node, self._generations.current + 1)
        self._generations.next()
        return True

    def remove_workload(self, ref: WorkloadRef, now: float) -> tuple[EdgeKey, ...]:
        """A workload is gone, with all its edges.

        :param now: later reports of what happened until then are left out
        :returns: the edges that went with it
        """
        node = self._find(ref)
        if node is None:
            return ()
        generation = self._generations.next()
        keys = self._edges_at(ref)
        for key in keys:
            self._drop_edge(key, generation)
        for instance in node.instances:
            del self._owners[instance]
        self._drop_node(node, generation)
        for key in keys:
            self._drop_unused(key, generation)
        self._tombstones[ref] = now
        if len(self._tombstones) > self._limits.removals:
            del self._tombstones[next(iter(self._tombstones))]
        return keys

    def remove_edge(self, key: EdgeKey) -> bool:
        """Drop one edge with its counts; False when it was not there. Ends that only it brought in go with it."""
        if self._accounts(key) is None:
            return False
        generation = self._generations.next()
        self._drop_edge(key, generation)
        self._drop_unused(key, generation)
        return True

    # What traffic says

    def ingest(self, flows: Iterable[Flow], now: float) -> frozenset[EdgeKey]:
        """Add reports, and return the edges that they changed.

        :param flows: as they were reported, also by both ends of the same connection
        :param now: seconds since the epoch; reported times after it count as now
        """
        generation = self._generations.current + 1
        touched: set[EdgeKey] = set()
        asked = []
        for flow in flows:
            if flow.operation:
                asked.append(flow)
                continue
            key = self._admit(flow, now)
            if key is None:
                continue
            accounts = self._accounts(key) or self._add_edge(key, generation)
            added = accounts.add(flow, now)
            self.windows.add(key, flow.last_seen, added, now)
            touched.add(key)
        touched.update(key for flow in asked if (key := self._add_operation(flow, now)) is not None)
        for key in touched:
            self._generations.touch(key, generation)
        if touched:
            self._generations.next()
        return frozenset(touched)

    def _add_operation(self, flow: Flow, now: float) -> EdgeKey | None:
        """Count requests, after the connections that carried them; None when nobody reported those."""
        source, destination = self._fold(flow.source, flow.destination), self._fold(flow.destination, flow.source)
        key = replace(flow.edge, source=source, destination=destination)
        accounts = self._accounts(key) if not self._is_late(flow, now) else None
        if accounts is None:
            self.shed.operations += 1
            return None
        room = self._operations < self._limits.operations
        self._operations += accounts.add_operation(flow, now, room=room)
        self._asked.add(key)
        if flow.verdict is Verdict.DENY:
            self.refused_requests.add(key, flow.last_seen, Counts(denied=flow.requests), now)
            self.refused_requests.drain(now)  # nobody writes it down
        return key

    # What others read

    def node(self, ref: WorkloadRef) -> NodeView | None:
        node = self._find(ref)
        return node.seen() if node is not None else None

    def edge(self, key: EdgeKey) -> EdgeView | None:
        accounts = self._accounts(key)
        return accounts.view(self._app_protocol(key)) if accounts is not None else None

    def instances(self, ref: WorkloadRef) -> tuple[Instance, ...]:
        node = self._find(ref)
        return tuple(sorted(node.instances.values())) if node is not None else ()

    def nodes(self) -> tuple[NodeView, ...]:
        return tuple(sorted((node.seen() for node in self._nodes()), key=lambda view: view.ref))

    def edges(self) -> tuple[EdgeView, ...]:
        return tuple(sorted((self._view(accounts) for accounts in self._all_accounts()), key=lambda view: view.key))

    def view(self, at: float) -> GraphView:
        """Everything, at time ``at``."""
        return GraphView(self._generations.current, at, self.nodes(), self.edges())

    def changes(self, since: int) -> GraphChanges:
        """What changed after generation ``since``, as :attr:`generation` or an earlier answer said it."""
        generation = self._generations.current
        if not self._generations.knows(since):
            return GraphChanges(generation, self.nodes(), self.edges(), whole=True)
        changed, removed = list(self._generations.changed(since)), list(self._generations.removed(since))
        nodes = (self.node(item) for item in changed if isinstance(item, WorkloadRef))
        edges = (self.edge(item) for item in changed if isinstance(item, EdgeKey))
        return GraphChanges(
            generation,
            tuple(sorted((view for view in nodes if view is not None), key=lambda view: view.ref)),
            tuple(sorted((view for view in edges if view is not None), key=lambda view: view.key)),
            tuple(sorted(item for item in removed if isinstance(item, WorkloadRef))),
            tuple(sorted(item for item in removed if isinstance(item, EdgeKey))),
        )

    # What is kept on disk

    def dump(self, keys: Iterable[EdgeKey] | None = None) -> tuple[EdgeTotals, ...]:
        """The accounts of ``keys``, else of every edge: one or two for each, by the end that reported."""
        if keys is None:
            return tuple(totals for accounts in self._all_accounts() for totals in accounts.totals())
        found = (self._accounts(key) for key in keys)
        return tuple(totals for accounts in found if accounts is not None for totals in accounts.totals())

    def load(self, totals: Iterable[EdgeTotals]) -> None:
        """Take back what :meth:`dump` gave out; replaces the accounts that are there. Bounds hold here too."""
        generation = self._generations.next()
        for each in totals:
            key = self._place(each.key)
            if key is None:
                continue
            accounts = self._accounts(key) or self._add_edge(key, generation)
            accounts.load(replace(each, key=key))
            self._generations.touch(key, generation)

    def drain_operations(self) -> Mapping[EdgeKey, tuple[OperationView, ...]]:
        """All operations of every edge where they changed since the last call; none where they are gone."""
        asked, self._asked = self._asked, set()
        found = {key: self._accounts(key) for key in asked}
        return {key: accounts.operations if accounts is not None else () for key, accounts in found.items()}

    def load_operations(self, operations: Mapping[EdgeKey, tuple[OperationView, ...]]) -> None:
        """Take back what :meth:`drain_operations` gave out, for the edges that are there."""
        generation = self._generations.next()
        for key, views in operations.items():
            accounts = self._accounts(key)
            if accounts is None:
                continue
            self._operations += len(views) - len(accounts.operations)
            accounts.load_operations(views)
            self._generations.touch(key, generation)

    # Inside

    def _find(self, ref: WorkloadRef) -> Node | None:
        data: dict[str, Node] | None = self._graph.nodes.get(ref)
        return data["node"] if data is not None else None

    def _nodes(self) -> Iterator[Node]:
        data: dict[str, Node]
        for _, data in self._graph.nodes(data=True):
            yield data["node"]

    def _accounts(self, key: EdgeKey) -> EdgeAccounts | None:
        data: dict[str, EdgeAccounts] | None
        data = self._graph.get_edge_data(key.source, key.destination, (key.port, key.protocol))
        return data["accounts"] if data is not None else None

    def _all_accounts(self) -> Iterator[EdgeAccounts]:
        data: dict[str, EdgeAccounts]
        for _, _, data in self._graph.edges(data=True):
            yield data["accounts"]

    def _view(self, accounts: EdgeAccounts) -> EdgeView:
        return accounts.view(self._app_protocol(accounts.key))

    def _app_protocol(self, key: EdgeKey) -> str:
        node = self._find(key.destination)
        ports = node.workload.ports if node is not None and node.workload is not None else ()
        return next((p.app_protocol for p in ports if (p.number, p.protocol) == (key.port, key.protocol)), "")

    def _edges_at(self, ref: WorkloadRef, *, leaving: bool = True) -> tuple[EdgeKey, ...]:
        edges = set(self._graph.in_edges(ref, keys=True))
        if leaving:
            edges.update(self._graph.out_edges(ref, keys=True))
        return tuple(sorted(EdgeKey(source, destination, *port) for source, destination, port in edges))

    def _admit(self, flow: Flow, now: float) -> EdgeKey | None:
        """The edge that ``flow`` counts on, or None when it is left out."""
        if self._is_late(flow, now):
            self.shed.late += 1
            return None
        speaker = flow.source if flow.direction is Direction.OUTBOUND else flow.destination
        return self._place(flow.edge, speaker)

    def _is_late(self, flow: Flow, now: float) -> bool:
        last = min(flow.last_seen, now)
        removed = (self._tombstones.get(ref) for ref in (flow.source, flow.destination))
        return any(removed_at is not None and last <= removed_at for removed_at in removed)

    def _place(self, key: EdgeKey, speaker: WorkloadRef | None = None) -> EdgeKey | None:
        """:param speaker: whose word it is; None when it was taken before"""
        source = self._fold(key.source, key.destination)
        destination = self._fold(key.destination, source)
        if source != key.source or destination != key.destination:
            self.shed.folded += 1
            key = replace(key, source=source, destination=destination)
        if self._accounts(key) is not None:
            return key
        if self._shares.edges_full(speaker) or self._tries_ports(source, destination):
            self.shed.edges += 1
            return None
        unknown = sum(1 for ref in {source, destination} if not ref.is_external and ref not in self._graph)
        if self._unknowns + unknown > self._limits.unknown:
            self.shed.unknown += 1
            return None
        return key

    def _tries_ports(self, source: WorkloadRef, destination: WorkloadRef) -> bool:
        shared = OTHER_ADDRESSES in (source, destination)
        outside = (source.is_external or destination.is_external) and not shared
        limit = self._limits.external_ports if outside else self._limits.ports
        ports: int = self._graph.number_of_edges(source, destination)
        return ports >= limit

    def _fold(self, ref: WorkloadRef, beside: WorkloadRef) -> WorkloadRef:
        """:param beside: the other end, which may be about to take a place itself"""
        if not self._is_new_address(ref):
            return ref
        more = beside != ref and self._is_new_address(beside)
        return OTHER_ADDRESSES if self._shares.outside_full(beside, more) else ref

    def _is_new_address(self, ref: WorkloadRef) -> bool:
        return ref.is_external and ref != OTHER_ADDRESSES and ref not in self._graph

    def _add_node(self, ref: WorkloadRef) -> Node:
        node = Node(ref)
        self._graph.add_node(ref, node=node)
        self._shares.add_node(ref)
        return node

    def _drop_node(self, node: Node, generation: int) -> None:
        self._graph.remove_node(node.ref)
        self._shares.drop_node(node.ref)
        self._unknowns -= node.workload is None and not node.ref.is_external
        self._generations.remove(node.ref, generation)

    def _drop_unused(self, key: EdgeKey, generation: int) -> None:
        """Drop the ends of a dropped edge that no inventory names and no edge needs."""
        for ref in (key.source, key.destination):
            node = self._find(ref)
            if node is not None:
                self._drop_if_unused(node, generation)

    def _drop_if_unused(self, node: Node, generation: int) -> bool:
        unused = node.workload is None and not node.instances and not self._graph.degree(node.ref)
        if unused:
            self._drop_node(node, generation)
        return unused

    def _add_edge(self, key: EdgeKey, generation: int) -> EdgeAccounts:
        for ref, beside in ((key.source, key.destination), (key.destination, key.source)):
            if ref not in self._graph:
                node = self._add_node(ref)
                self._unknowns += not ref.is_external
                self._touch_node(node, generation)
                self._shares.bring(ref, beside)
        accounts = EdgeAccounts(key)
        self._graph.add_edge(key.source, key.destination, key=(key.port, key.protocol), accounts=accounts)
        self._shares.add_edge(key)
        return accounts

    def _drop_edge(self, key: EdgeKey, generation: int) -> None:
        accounts = self._accounts(key)
        if accounts is not None and accounts.operations:
            self._operations -= len(accounts.operations)
            self._asked.add(key)
        self._graph.remove_edge(key.source, key.destination, key=(key.port, key.protocol))
        self._shares.drop_edge(key)
        self.windows.forget(key)
        self.refused_requests.forget(key)
        self._generations.remove(key, generation)

    def _touch_node(self, node: Node, generation: int) -> None:
        node.view = None
        self._generations.touch(node.ref, generation)
