"""What the intermediate form allows: set algebra over port cells, written apart from :func:`graph.policy.decide`.

One :class:`Side` is one workload in one direction. :meth:`Side.allowed` answers for one peer what is open once the
workload is closed (mode ``enforce``; a quarantine stays one).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from controller.compiler.baseline import baseline_of
from controller.compiler.form import Form, Network, Subject, network, parsed, within
from controller.compiler.ports import PortSpace
from graph.model import Direction, InboundTls, Mode, Origin, PortRange, Protocol, Rule, Selector, Verdict

#: An operation that no rule names. The empty one is an operation that is not known.
OTHER_OPERATION = "OTHER"


class Limit(StrEnum):
    """What NetworkPolicy v1 has no words for."""

    OPERATIONS = "operations"  #: it ends at the transport layer
    DENY = "deny"  #: it can only allow; a deny is left out of the allows, where that can be done
    MUTUAL_TLS = "mutual-tls"  #: it knows labels and addresses, not proofs
    ADDRESS = "address"  #: it can not ask for a workload at certain addresses, or tell who shares one
    LABELS = "labels"  #: it selects pods by labels, and two workloads have the same
    ACCOUNT = "account"  #: it does not know service accounts
    UNKNOWN = "unknown-workload"  #: it needs labels, and the inventory does not know the workload


@dataclass(frozen=True, slots=True)
class Cell:
    """Peers that nothing tells apart: a workload at one address, or an address outside the inventory.

    :param subject: None outside the inventory
    :param address: empty when the workload has no instance; both empty is nobody in particular
    """

    subject: Subject | None = None
    address: str = ""

    @property
    def verified(self) -> bool:
        """Whether this peer proves who it is."""
        return self.subject is not None and self.subject.meshed

    def __str__(self) -> str:
        if self.subject is None:
            return f"-/{self.address}" if self.address else "*"
        return f"{self.subject.ref}@{self.address}" if self.address else str(self.subject.ref)


@dataclass(frozen=True, slots=True)
class Clause:
    """One rule at one side: whom it speaks of, and on which cells of the port space."""

    rule: Rule
    peer: Selector
    mask: int

    def names(self, cell: Cell, *, inbound: bool, lax: bool = False) -> bool:
        """Whether it speaks of this peer. ``lax`` takes every workload for what it says it is, wherever it is."""
        if self.peer.by_identity:
            subject = cell.subject
            if subject is None or not subject.named_by(self.peer):
                return False
            if lax:
                return True
            if inbound and not subject.meshed and cell.address not in subject.own:
                return False
        return not self.peer.cidr or within(cell.address, self.peer.cidr)

    def covers(self, operation: str) -> bool:
        """Whether it speaks of this operation; of one that is not known, a deny does and an allow does not."""
        if not self.rule.operations:
            return True
        return operation in self.rule.operations or (not operation and self.rule.effect is Verdict.DENY)


class Side:
    """One workload in one direction.

    :param extra: ranges that the port space must also tell apart
    """

    def __init__(
        self, form: Form, subject: Subject, direction: Direction, *, extra: Iterable[tuple[Protocol, PortRange]] = ()
    ) -> None:
        self.form = form
        self.subject = subject
        self.direction = direction
        self.inbound = direction is Direction.INBOUND
        settings = form.settings(subject.ref)
        mode = settings.inbound if self.inbound else settings.outbound
        self._quarantine = mode is Mode.QUARANTINE
        self._strict = self.inbound and subject.meshed and settings.inbound_tls is InboundTls.STRICT
        rules = [
            rule
            for rule in (*baseline_of(form, subject), *form.concerning(subject))
            if form.at_own_end(rule, subject, direction)
        ]
        self.space = PortSpace([*((rule.protocol, ports) for rule in rules for ports in rule.ports), *extra])
        self.clauses = tuple(
            Clause(
                rule,
                rule.source if self.inbound else rule.destination,
                self.space.mask(rule.protocol, rule.ports),
            )
            for rule in rules
        )
        named = {operation for rule in rules for operation in rule.operations}
        self.operations = ("", OTHER_OPERATION, *sorted(named)) if named else ("",)

    def allowed(
        self, cell: Cell, operation: str = "", relaxed: frozenset[Limit] = frozenset(), *, by_name: bool = False
    ) -> int:
        """The port cells that are open to a peer for one operation, as if the ``relaxed`` limits were not.

        :param by_name: leave out the allow rules that open networks, whoever is there
        """
        essential = baseline = override_allow = override_deny = static_deny = allow = 0
        lax = Limit.ADDRESS in relaxed
        for clause in self.clauses:
            deny = clause.rule.effect is Verdict.DENY
            if deny and Limit.DENY in relaxed:
                continue
            if by_name and not deny and clause.peer.cidr and not clause.peer.by_identity:
                continue
            if not clause.covers(operation) or not clause.names(cell, inbound=self.inbound, lax=lax and not deny):
                continue
            match clause.rule.origin, deny:
                case Origin.BASELINE, _:
                    essential |= clause.mask if clause.rule.essential else 0
                    baseline |= clause.mask
                case Origin.OVERRIDE, True:
                    override_deny |= clause.mask
                case Origin.OVERRIDE, False:
                    override_allow |= clause.mask
                case _, True:
                    static_deny |= clause.mask
                case _:
                    allow |= clause.mask
        if self._quarantine:
            return essential
        plaintext = self._strict and not cell.verified and Limit.MUTUAL_TLS not in relaxed
        opened = 0 if plaintext else ((allow & ~static_deny) | override_allow) & ~override_deny
        return baseline | opened

    def some(self, cell: Cell, relaxed: frozenset[Limit] = frozenset(), *, by_name: bool = False) -> int:
        """The port cells open for at least one operation: what a transport-layer policy has to allow."""
        mask = 0
        for operation in self.operations:
            mask |= self.allowed(cell, operation, relaxed, by_name=by_name)
        return mask

    def every(self, cell: Cell) -> int:
        """The port cells open for every operation."""
        mask = self.space.full
        for operation in self.operations:
            mask &= self.allowed(cell, operation)
        return mask

    def networks(self) -> list[Network]:
        """The networks that the rules of this side tell apart."""
        return sorted({network(c.peer.cidr) for c in self.clauses if c.peer.cidr}, key=lambda n: (n.version, n))


def cells_of(subject: Subject) -> list[Cell]:
    """One cell for every address; one without when there is no instance."""
    return [Cell(subject, address) for address in subject.addresses or ("",)]


def intervals(networks: Iterable[Network]) -> Iterator[tuple[int, int, int]]:
    """Cut the addresses inside these networks into intervals that none of them divides.

    :returns: IP version, first and last address as numbers
    """
    by_version: dict[int, list[Network]] = {}
    for block in networks:
        by_version.setdefault(block.version, []).append(block)
    for version, blocks in sorted(by_version.items()):
        starts = {int(block.network_address) for block in blocks}
        cuts = sorted(starts | {int(block.broadcast_address) + 1 for block in blocks})
        for first, beyond in pairwise(cuts):
            yield version, first, beyond - 1


def address_of(version: int, number: int) -> str:
    """The text of an address from its number."""
    return str(ipaddress.IPv4Address(number) if version == 4 else ipaddress.IPv6Address(number))


def outside(form: Form, networks: Iterable[Network]) -> list[Cell]:
    """One cell for every interval of addresses that are not an instance's, and one for the rest of the world."""
    taken = {
        (address.version, int(address))
        for address in (parsed(text) for subject in form.subjects.values() for text in subject.addresses)
    }
    cells = [Cell()]
    for version, first, last in intervals(networks):
        number = next((n for n in range(first, min(last, first + len(taken)) + 1) if (version, n) not in taken), None)
        if number is not None:
            cells.append(Cell(None, address_of(version, number)))
    return cells
