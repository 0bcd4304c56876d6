"""Observed against allowed: what happened that no rule allows, and which rules nothing used.

Every verdict here is made by :func:`graph.policy.decide` and :func:`graph.policy.admit`, as the sidecars make theirs:
both ends judge that a connection is opened, the destination also what is asked over it. Nothing is judged by comparing
rules with edges.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from graph.flow import EdgeKey
from graph.model import Connection, Direction, Mode, Origin, Peer, Rule, Snapshot, Verdict, WorkloadRef
from graph.policy import Decision, admit, decide
from graph.views import EdgeView


@dataclass(frozen=True, slots=True)
class Observation:
    """An edge with what its verdict depends on.

    :param source_verified: whether mutual TLS proved the source; unproved, no rule about identities is for it
    :param source_account: the source's service account, ``destination_account`` the destination's, where known
    :param source_address: an IP address of the source, where known; likewise ``destination_address``
    :param operations: what was asked and allowed; none where nothing is known of what was asked
    """

    key: EdgeKey
    source_verified: bool = True
    source_account: str = ""
    destination_account: str = ""
    source_address: str = ""
    destination_address: str = ""
    operations: tuple[str, ...] = ()

    def connection(self, direction: Direction) -> Connection:
        source = _peer(self.key.source, self.source_account, self.source_address)
        return Connection(
            direction,
            replace(source, verified=self.source_verified and source.workload is not None),
            _peer(self.key.destination, self.destination_account, self.destination_address),
            self.key.port,
            self.key.protocol,
        )

    @classmethod
    def of(cls, edge: EdgeView, accounts: Mapping[WorkloadRef, str] | None = None) -> tuple[Observation, ...]:
        """What the service graph saw on ``edge``: one observation, or two where only a part came from a proved source.

        :param accounts: the service accounts of the workloads, from the inventory
        """
        proved = edge.verified > 0 or (edge.connections == 0 and bool(edge.source_identities))
        # a failed connection proved nothing either way
        unproved = not proved or edge.connections - edge.failed > edge.verified > 0
        known = accounts or {}
        asked = asked_of(edge)
        return tuple(
            cls(edge.key, verified, known.get(edge.source, ""), known.get(edge.destination, ""), operations=asked)
            for verified, seen in ((True, proved), (False, unproved))
            if seen
        )


def asked_of(edge: EdgeView) -> tuple[str, ...]:
    """The operations of an edge that were allowed, by name."""
    return tuple(operation.name for operation in edge.operations if operation.requests)


@dataclass(frozen=True, slots=True)
class Unexpected:
    """An observed edge that enforcement would refuse, or of which it would refuse operations.

    :param inbound: the destination's decision, None where it has no policy; ``outbound`` likewise the source's
    :param operations: what was asked and would be refused; an empty one is whatever was asked and is not known
    """

    key: EdgeKey
    inbound: Decision | None
    outbound: Decision | None
    operations: tuple[str, ...] = ()

    @property
    def refused(self) -> bool:
        """Whether enforcement would refuse the connection itself."""
        return any(each is not None and each.pending is Verdict.DENY for each in (self.inbound, self.outbound))


@dataclass(frozen=True, slots=True)
class Drift:
    """:param unused: rules that allow something, of which nothing was observed; each once, by id
    :param used: ids of the others
    """

    unexpected: tuple[Unexpected, ...] = ()
    unused: tuple[Rule, ...] = ()
    used: frozenset[str] = field(default=frozenset(), compare=False)


def find_drift(snapshots: Mapping[WorkloadRef, Snapshot], observations: Iterable[Observation], now: float) -> Drift:
    """Compare what was observed with what the policies allow.

    :param snapshots: the policy of every workload with a sidecar
    :param now: seconds since the epoch; expired rules allow nothing and are not reported as unused
    """
    unexpected: dict[EdgeKey, Unexpected] = {}
    used: set[str] = set()
    alone = {ref: _each_alone(snapshot, now) for ref, snapshot in snapshots.items()}
    for observation in observations:
        decisions: dict[Direction, Decision] = {}
        refused: tuple[str, ...] = ()
        for direction, ref in (
            (Direction.INBOUND, observation.key.destination),
            (Direction.OUTBOUND, observation.key.source),
        ):
            if ref not in snapshots:
                continue
            connection = observation.connection(direction)
            decisions[direction], by_operation = admit(snapshots[ref], connection, now)
            if by_operation and (direction is Direction.INBOUND or observation.key.destination.is_external):
                refused = _refused(snapshots[ref], connection, observation.operations, now)
            used |= {
                each.rule.id
                for each in alone[ref]
                if each.fits(observation) and decide(each.policy, connection, now).rule_id == each.rule.id
            }
        if refused or any(decision.pending is Verdict.DENY for decision in decisions.values()):
            unexpected[observation.key] = Unexpected(
                observation.key, decisions.get(Direction.INBOUND), decisions.get(Direction.OUTBOUND), refused
            )
    rules = {each.rule.id: each.rule for found in alone.values() for each in found}
    return Drift(
        tuple(unexpected[key] for key in sorted(unexpected)),
        tuple(rules[name] for name in sorted(rules.keys() - used)),
        frozenset(used),
    )


def _refused(snapshot: Snapshot, connection: Connection, operations: tuple[str, ...], now: float) -> tuple[str, ...]:
    """Which operations the end that judges them would refuse; where none are known, whether it refuses unknown ones."""
    return tuple(
        operation
        for operation in operations or ("",)
        if decide(snapshot, replace(connection, operation=operation), now).pending is Verdict.DENY
    )


@dataclass(frozen=True, slots=True)
class _Alone:
    """A rule that should be used.

    :param policy: with that rule alone, for any operation, closed; so that a rule beside another one counts as used
    """

    rule: Rule
    policy: Snapshot

    def fits(self, observation: Observation) -> bool:
        """Whether what was asked is what the rule is for; in doubt it is."""
        wanted, asked = self.rule.operations, observation.operations
        return not wanted or not asked or not set(wanted).isdisjoint(asked)


def _each_alone(snapshot: Snapshot, now: float) -> tuple[_Alone, ...]:
    """Baseline rules are there whether they are used or not (DNS, probes, the control plane)."""
    return tuple(
        _Alone(
            rule,
            replace(
                snapshot, rules=(replace(rule, operations=()),), inbound_mode=Mode.ENFORCE, outbound_mode=Mode.ENFORCE
            ),
        )
        for rule in snapshot.rules
        if rule.effect is Verdict.ALLOW and rule.origin is not Origin.BASELINE and not rule.expired(now)
    )


def _peer(ref: WorkloadRef, account: str, address: str) -> Peer:
    if ref.host:
        return Peer(address=address, host=ref.host)
    if ref.is_external:
        return Peer(address=ref.name)
    return Peer(workload=ref, namespace=ref.namespace, service_account=account, address=address)
