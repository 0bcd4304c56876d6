"""The proof that goes with every policy: sidecars and the cluster's network layer are told the same.

Atoms are finite: workload, direction, peer (every workload at every address of it, every interval of addresses that
some rule tells apart), protocol, port cell, operation. On each of them

1. the snapshot, judged by :func:`graph.policy.decide`, says what the intermediate form says;
2. the NetworkPolicies, read back as a cluster would, allow at least that, and
3. where they allow more, NetworkPolicy v1 has no words for the difference: without that :class:`Limit` the form would
   allow it too. Each is named.

Anything else is a fault, and :mod:`controller.compiler.compiling` raises. What no atom covers: a workload that goes
round its own sidecar. Its peers' sidecars see that no identity was proved; a NetworkPolicy can not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from controller.compiler.evaluate import Cell, Limit, Side, outside, witness
from controller.compiler.form import Form, Subject, network
from controller.compiler.labels import PodSelector
from controller.compiler.networkpolicy import Manifest, fenced
from controller.compiler.reading import Reading, blocks_of, ranges_of
from graph.model import Connection, Direction, Mode, Peer, PortRange, Protocol, Rule, Snapshot, Verdict, WorkloadRef
from graph.policy import decide

#: Enough to see what went wrong.
MAX_FAULTS = 20


@dataclass(frozen=True, slots=True, order=True)
class Atom:
    """Some connections that nothing tells apart.

    :param peer: ``namespace/name``, with ``@address`` behind it, or ``-/address`` outside the inventory
    """

    workload: WorkloadRef
    direction: Direction
    peer: str
    protocol: Protocol
    first_port: int
    last_port: int

    def __str__(self) -> str:
        arrow = "from" if self.direction is Direction.INBOUND else "to"
        ports = PortRange(self.first_port, self.last_port)
        return f"{self.workload} {self.direction} {arrow} {self.peer}, {ports}/{self.protocol}"


@dataclass(frozen=True, slots=True, order=True)
class Inexpressible:
    """Something that NetworkPolicy v1 can not say.

    :param workload: whose policy it would be in
    :param rules: the ids of the rules that say it; empty when it is about the workload itself
    :param widens: whether the NetworkPolicies allow more than the sidecars because of it
    """

    workload: WorkloadRef
    limit: Limit
    rules: tuple[str, ...]
    detail: str
    widens: bool


@dataclass(frozen=True, slots=True)
class Proof:
    """What was found on all atoms.

    :param equal: NetworkPolicies and snapshots allow exactly the same
    :param wider: what NetworkPolicies alone allow
    :param faults: where they contradict each other; empty in every policy that is pushed
    """

    equal: bool
    wider: tuple[Atom, ...] = ()
    inexpressible: tuple[Inexpressible, ...] = ()
    faults: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        return not self.faults


def compare(
    form: Form,
    subjects: Sequence[Subject],
    snapshots: Mapping[WorkloadRef, Snapshot],
    policies: Sequence[Manifest],
    selectors: Mapping[WorkloadRef, PodSelector],
) -> Proof:
    """Hold given snapshots and NetworkPolicies against the form, on every atom of these workloads."""
    work = _Work(form, policies, selectors)
    for subject in subjects:
        for direction in Direction:
            work.side(subject, direction, snapshots.get(subject.ref))
        work.notes(subject)
    findings = {(f.workload, f.limit, f.rules): f for f in sorted(work.found, key=lambda f: f.widens)}
    return Proof(
        equal=not work.wider and not work.faults,
        wider=tuple(sorted(set(work.wider))),
        inexpressible=tuple(sorted(findings.values())),
        faults=tuple(work.faults[:MAX_FAULTS]),
    )


class _Work:
    def __init__(self, form: Form, policies: Sequence[Manifest], selectors: Mapping[WorkloadRef, PodSelector]) -> None:
        self.form = form
        self.policies = policies
        self.selectors = selectors
        self.ranges = ranges_of(policies)
        self.blocks = [network(cidr) for cidr in blocks_of(policies)]
        self.wider: list[Atom] = []
        self.found: list[Inexpressible] = []
        self.faults: list[str] = []

    def side(self, subject: Subject, direction: Direction, snapshot: Snapshot | None) -> None:
        """Judge every peer of one side. Peers that no rule and no policy tells apart are judged once."""
        side = Side(self.form, subject, direction, extra=ranges_of(self._of(subject)))
        reading = Reading(self.policies, subject, direction, side.space) if fenced(self.form, subject) else None
        written = [end for rule in snapshot.rules for end in (rule.source, rule.destination)] if snapshot else []
        networks = [*self.blocks, *{network(selector.cidr) for selector in written if selector.cidr}]
        hosts = {*side.hosts, *(witness(selector.host) for selector in written if selector.host)}
        cells = [cell for peer in self.form.subjects.values() for cell in side.cells_of(peer, networks)]
        cells += outside(self.form, [*side.networks(), *networks], sorted(hosts))
        judged: set[tuple[object, ...]] = set()
        for cell in cells:
            if snapshot is not None and (kind := _kind(side, cell, snapshot)) not in judged:
                judged.add(kind)
                self._snapshot(side, cell, snapshot)
            if reading is not None:
                self._policy(side, cell, reading.allowed(cell))

    def _of(self, subject: Subject) -> list[Manifest]:
        return [p for p in self.policies if p["metadata"]["namespace"] == subject.ref.namespace]  # type: ignore[index]  # ours all have one

    def _snapshot(self, side: Side, cell: Cell, snapshot: Snapshot) -> None:
        closed = _closed(snapshot)
        for operation in side.operations:
            allowed = side.allowed(cell, operation)
            for bit, protocol, ports in side.space.bits(side.space.full):
                decision = decide(closed, _connection(side, cell, protocol, ports.first, operation), self.form.now)
                if (decision.verdict is Verdict.ALLOW) != bool(allowed & bit):
                    atom = _atom(side, cell, protocol, ports)
                    self.faults.append(f"the snapshot says {decision.verdict} and the rules do not: {atom} {operation}")

    def _policy(self, side: Side, cell: Cell, opened: int) -> None:
        some = side.some(cell)
        for protocol, ports in side.space.ranges(some & ~opened):
            self.faults.append(f"the NetworkPolicy is narrower: {_atom(side, cell, protocol, ports)}")
        extra = opened & ~side.every(cell)
        if not extra:
            return
        self.wider += [_atom(side, cell, protocol, ports) for protocol, ports in side.space.ranges(extra)]
        for protocol, ports in side.space.ranges(self._explained(side, cell, extra, some)):
            self.faults.append(f"the NetworkPolicy is wider without a reason: {_atom(side, cell, protocol, ports)}")

    def _explained(self, side: Side, cell: Cell, extra: int, some: int) -> int:
        """Name the limits behind what is wider; returns what is left without one."""
        if extra & some:
            self._note(side, Limit.OPERATIONS, _rules(side, cell, extra & some, Limit.OPERATIONS))
            extra &= ~some
        extra &= ~self._by_twins(side, cell, extra, frozenset())
        for relaxed in (
            frozenset(some_of) for size in range(1, len(_LIMITS) + 1) for some_of in combinations(_LIMITS, size)
        ):
            reached = extra & side.some(cell, relaxed)
            if reached:
                for limit in sorted(relaxed):
                    self._note(side, limit, _rules(side, cell, reached, limit))
            extra &= ~reached
        return extra & ~self._by_twins(side, cell, extra, frozenset(_LIMITS))

    def _by_twins(self, side: Side, cell: Cell, extra: int, relaxed: frozenset[Limit]) -> int:
        """What of it is open because an end has the same labels as another workload."""
        found = 0
        for theirs, mine in self._twins(side, cell) if extra else ():
            other = side
            if mine is not side.subject:
                other = Side(self.form, mine, side.direction, extra=side.space.cells)
            found |= extra & _translated(other, side, other.some(theirs, relaxed))
        if found:
            self._note(side, Limit.LABELS, ())
        return found

    def _twins(self, side: Side, cell: Cell) -> Iterator[tuple[Cell, Subject]]:
        """The same connection with an end exchanged for another workload that has the same labels."""
        mine = [side.subject, *(self.form.subjects[ref] for ref in self.selectors[side.subject.ref].twins)]
        theirs = [cell]
        if cell.subject is not None:
            twins = self.selectors[cell.subject.ref].twins
            theirs += [twin for ref in twins for twin in side.cells_of(self.form.subjects[ref])]
        for subject in mine:
            for peer in theirs:
                if subject is not side.subject or peer is not cell:
                    yield peer, subject

    def _note(self, side: Side, limit: Limit, rules: tuple[str, ...]) -> None:
        known = limit is Limit.HOST and self.form.networks
        detail = _HOST_OUTSIDE if known else _WIDER[limit]
        self.found.append(Inexpressible(side.subject.ref, limit, rules, detail, widens=True))

    def notes(self, subject: Subject) -> None:
        """What the policy says in other words, without allowing more."""
        if not fenced(self.form, subject):
            return
        for rule in self.form.concerning(subject):
            ends = (rule.source, rule.destination)
            unknown = [e for e in ends if e.workload and WorkloadRef(e.namespace, e.workload) not in self.form.subjects]
            limits = [Limit.DENY] * (rule.effect is Verdict.DENY)
            limits += [Limit.ACCOUNT] * any(end.service_account for end in ends)
            limits += [Limit.UNKNOWN] * bool(unknown)
            for limit in limits:
                self.found.append(Inexpressible(subject.ref, limit, (rule.id,), _SAME[limit], widens=False))
        for rule in self.form.left_out:
            if subject.named_by(rule.source) or subject.named_by(rule.destination):
                limit = Limit.OPERATIONS
                self.found.append(Inexpressible(subject.ref, limit, (rule.id,), _SAME[limit], widens=False))


_LIMITS = (Limit.DENY, Limit.MUTUAL_TLS, Limit.ADDRESS, Limit.HOST, Limit.NETWORK)
_WIDER = {
    Limit.OPERATIONS: "NetworkPolicy ends at the transport layer: the ports are open for every operation",
    Limit.DENY: "NetworkPolicy can not deny: the peer is part of a wider selection that is allowed",
    Limit.MUTUAL_TLS: "NetworkPolicy can not ask for mutual TLS",
    Limit.ADDRESS: "NetworkPolicy can not ask for a workload at certain addresses, or tell who shares one",
    Limit.HOST: "NetworkPolicy does not know names: the ports are open to every address; list the cluster's own "
    "networks in the inventory (clusterNetworks) to leave those out",
    Limit.NETWORK: "NetworkPolicy opens addresses, whoever is there: also to workloads inside that network; list the "
    "cluster's own networks in the inventory (clusterNetworks) to leave those out",
    Limit.LABELS: "another workload of the namespace has the same labels: give one of them a label of its own",
}
_HOST_OUTSIDE = "NetworkPolicy does not know names: the ports are open to every address outside the cluster's networks"
_SAME = {
    Limit.OPERATIONS: "the destination has no sidecar that judges operations: an allow is left out, a deny is for all",
    Limit.DENY: "NetworkPolicy can not deny: the peer is left out, but another NetworkPolicy that allows it would win",
    Limit.ACCOUNT: "NetworkPolicy does not know service accounts: the workloads that run as it today are named",
    Limit.UNKNOWN: "the inventory does not know the workload, so its labels are unknown: it is left out",
}


def _rules(side: Side, cell: Cell, mask: int, limit: Limit) -> tuple[str, ...]:
    """The ids of the rules that a limit is about, of those that speak of a peer on some of these port cells."""
    deny, nameless, anybody = limit is Limit.DENY, limit is Limit.HOST, limit is Limit.NETWORK
    return tuple(
        sorted(
            clause.rule.id
            for clause in side.clauses
            if clause.mask & mask
            and not clause.turned
            and clause.names(cell, inbound=side.inbound, lax=not deny, nameless=nameless, anybody=anybody)
            and _is_about(clause.rule, limit)
        )
    )


def _is_about(rule: Rule, limit: Limit) -> bool:
    if limit is Limit.OPERATIONS:
        return bool(rule.operations)
    if limit is Limit.HOST:
        return bool(rule.destination.host) and rule.effect is Verdict.ALLOW
    if limit is Limit.NETWORK:
        return (rule.source.outside or rule.destination.outside) and rule.effect is Verdict.ALLOW
    return (rule.effect is Verdict.DENY) is (limit is Limit.DENY)


def _translated(source: Side, target: Side, mask: int) -> int:
    """A mask of one port space in another whose cells it does not cut."""
    found = 0
    for protocol, ports in source.space.ranges(mask):
        found |= target.space.mask(protocol, (ports,))
    return found


def _closed(snapshot: Snapshot) -> Snapshot:
    """The snapshot as it is when the workload is closed; a quarantine stays one."""
    inbound, outbound = (
        mode if mode is Mode.QUARANTINE else Mode.ENFORCE for mode in (snapshot.inbound_mode, snapshot.outbound_mode)
    )
    return replace(snapshot, inbound_mode=inbound, outbound_mode=outbound)


def _kind(side: Side, cell: Cell, snapshot: Snapshot) -> tuple[object, ...]:
    """What the form and the snapshot can tell a peer by. Peers of one kind need to be judged once."""
    connection = _connection(side, cell, Protocol.TCP, 1, "")
    peer = connection.source if side.inbound else connection.destination
    return (
        cell.verified,
        peer.is_known,
        side.named(cell),
        tuple(
            rule.source.matches(connection.source) and rule.destination.matches(connection.destination)
            for rule in snapshot.rules
        ),
    )


def _peer(side: Side, cell: Cell) -> Peer:
    """The far end as the sidecar of this side sees it: what did not prove an identity is an address."""
    subject = cell.subject
    if subject is None or (side.inbound and not cell.verified):
        return Peer(address=cell.address, host=cell.host)
    account = subject.account if subject.meshed else ""
    proved = None if side.inbound and subject.account_identity else subject.ref
    return Peer(proved, subject.ref.namespace, account, cell.address, verified=cell.verified)


def _connection(side: Side, cell: Cell, protocol: Protocol, port: int, operation: str) -> Connection:
    """The connection as the sidecar of this side sees it."""
    me = Peer(side.subject.ref, side.subject.ref.namespace, side.subject.account, cell.mine, verified=True)
    peer = _peer(side, cell)
    source, destination = (peer, me) if side.inbound else (me, peer)
    return Connection(side.direction, source, destination, port, protocol, operation)


def _atom(side: Side, cell: Cell, protocol: Protocol, ports: PortRange) -> Atom:
    return Atom(side.subject.ref, side.direction, str(cell), protocol, ports.first, ports.last)
