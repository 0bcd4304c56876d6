"""What the intermediate form allows: set algebra over port cells, written apart from :func:`graph.policy.decide`.

One :class:`Side` is one workload in one direction. :meth:`Side.allowed` answers for one peer what is open once the
workload is closed (mode ``enforce``; a quarantine stays one).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from controller.compiler.baseline import baseline_of
from controller.compiler.form import EVERYWHERE, Form, Network, Subject, kept_out, network, parsed, within
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
    NETWORK = "network"  #: it opens addresses, whoever is there, also to workloads that go by their identity
    LABELS = "labels"  #: it selects pods by labels, and two workloads have the same
    ACCOUNT = "account"  #: it does not know service accounts
    HOST = "host"  #: it knows addresses, not names
    UNKNOWN = "unknown-workload"  #: it needs labels, and the inventory does not know the workload


@dataclass(frozen=True, slots=True)
class Cell:
    """Peers that nothing tells apart: a workload at one address, or an address outside the inventory, under a name or
    without one.

    :param subject: None outside the inventory
    :param address: empty when the workload has no instance; both empty is nobody in particular
    :param host: the name under which an address outside is reached
    :param mine: our own address, where it matters: when a workload speaks with another instance of itself
    """

    subject: Subject | None = None
    address: str = ""
    mine: str = ""
    host: str = ""

    @property
    def verified(self) -> bool:
        """Whether this peer proves who it is."""
        return self.subject is not None and self.subject.meshed

    def __str__(self) -> str:
        if self.host:
            return f"-/{self.host}@{self.address}"
        if self.subject is None:
            return f"-/{self.address}" if self.address else "*"
        return f"{self.subject.ref}@{self.address}" if self.address else str(self.subject.ref)


@dataclass(frozen=True, slots=True)
class Clause:
    """One rule at one side: whom it speaks of, and on which cells of the port space.

    :param peer: the end of the rule that is not ours
    :param inside: the cluster's own networks, into which no allowed host leads
    :param turned: ours is the end that this side is not: between instances of one workload the rule holds both ways
    """

    rule: Rule
    peer: Selector
    mask: int
    turned: bool = False
    inside: tuple[Network, ...] = ()

    def names(
        self, cell: Cell, *, inbound: bool, lax: bool = False, nameless: bool = False, anybody: bool = False
    ) -> bool:
        """Whether it speaks of this peer. ``lax`` takes a workload for what it says it is, at any of its addresses;
        ``nameless`` takes any address for that of a host; ``anybody`` takes a workload for an address outside."""
        if self.peer.host and (not cell.address or not (nameless or fits(self.peer.host, cell.host))):
            return False
        if kept_out(self.rule, self.peer) and not self._leads_out(cell):
            return False
        if self.peer.outside and self._is_workload(cell, inbound=inbound) and not anybody:
            return False
        subject = cell.subject
        address = cell.mine if self.turned else cell.address
        if self.turned or self.peer.by_identity:
            if subject is None or (self.peer.by_identity and not subject.named_by(self.peer)):
                return False
            if inbound and not subject.meshed and cell.address not in subject.own and not lax:
                return False
        if not self.peer.cidr:
            return True
        addresses = subject.addresses if lax and subject is not None else (address,)
        return any(within(known, self.peer.cidr) for known in addresses)

    def _leads_out(self, cell: Cell) -> bool:
        return bool(cell.address) and not any(parsed(cell.address) in block for block in self.inside)

    def _is_workload(self, cell: Cell, *, inbound: bool) -> bool:
        """Whether the peer of an allow rule is known to be a workload: what comes in is where it proves it."""
        if self.rule.effect is Verdict.DENY or cell.subject is None:
            return False
        return self.turned or not inbound or cell.subject.meshed

    def covers(self, operation: str) -> bool:
        """Whether it speaks of this operation; of one that is not known, a deny does and an allow does not."""
        if not self.rule.operations:
            return True
        return operation in self.rule.operations or (not operation and self.rule.effect is Verdict.DENY)


def fits(pattern: str, host: str) -> bool:
    """Whether a host is the one that a pattern names, or lies below its ``*``."""
    wanted, labels = pattern.split("."), host.split(".")
    if wanted[0] != "*":
        return labels == wanted
    return len(labels) >= len(wanted) and labels[len(labels) - len(wanted) + 1 :] == wanted[1:]


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
        self._strict = self.inbound and subject.sidecar and settings.inbound_tls is InboundTls.STRICT
        known = (*baseline_of(form, subject), *form.concerning(subject))
        back = Direction.OUTBOUND if self.inbound else Direction.INBOUND
        rules = [(rule, False) for rule in known if form.at_own_end(rule, subject, direction)]
        rules += [(rule, True) for rule in known if form.at_own_end(rule, subject, back)]
        self.space = PortSpace([*((rule.protocol, ports) for rule, _ in rules for ports in rule.ports), *extra])
        self.clauses = tuple(
            Clause(
                rule,
                rule.source if self.inbound != turned else rule.destination,
                self.space.mask(rule.protocol, rule.ports),
                turned,
                form.networks,
            )
            for rule, turned in rules
        )
        #: one host for each that the rules tell from others
        self.hosts = tuple(sorted({witness(c.peer.host) for c in self.clauses if c.peer.host}))
        self._denies = self._where(lambda clause: clause.rule.effect is Verdict.DENY)
        self._networks = self._where(lambda clause: bool(clause.peer.cidr) and not clause.peer.by_identity)
        self._networks &= ~self._denies
        self._known: dict[tuple[int, str, bool], int] = {}
        operations = {operation for rule, _ in rules for operation in rule.operations}
        self.operations = ("", OTHER_OPERATION, *sorted(operations)) if operations else ("",)

    def _where(self, holds: Callable[[Clause], bool]) -> int:
        return sum(1 << n for n, clause in enumerate(self.clauses) if holds(clause))

    def allowed(
        self, cell: Cell, operation: str = "", relaxed: frozenset[Limit] = frozenset(), *, by_name: bool = False
    ) -> int:
        """The port cells that are open to a peer for one operation, as if the ``relaxed`` limits were not.

        :param by_name: leave out the allow rules that open networks, whoever is there
        """
        lax = Limit.ADDRESS in relaxed
        named = self.named(cell)
        if lax:
            named |= self.named(cell, lax=True) & ~self._denies
        if Limit.HOST in relaxed or Limit.NETWORK in relaxed:
            nameless, anybody = Limit.HOST in relaxed, Limit.NETWORK in relaxed
            named |= self.named(cell, lax=lax, nameless=nameless, anybody=anybody) & ~self._denies
        if Limit.DENY in relaxed:
            named &= ~self._denies
        if by_name:
            named &= ~self._networks
        plaintext = self._strict and not cell.verified and Limit.MUTUAL_TLS not in relaxed
        key = (named, operation, plaintext)
        if key not in self._known:
            self._known[key] = self._judged(named, operation, plaintext=plaintext)
        return self._known[key]

    def named(self, cell: Cell, *, lax: bool = False, nameless: bool = False, anybody: bool = False) -> int:
        """The clauses that speak of a peer; the n-th one is bit n."""
        itself = cell.subject is self.subject
        return sum(
            1 << n
            for n, clause in enumerate(self.clauses)
            if (itself or not clause.turned)
            and clause.names(cell, inbound=self.inbound, lax=lax, nameless=nameless, anybody=anybody)
        )

    def _judged(self, named: int, operation: str, *, plaintext: bool) -> int:
        essential = baseline = override_allow = override_deny = static_deny = allow = 0
        for n, clause in enumerate(self.clauses):
            if not named >> n & 1 or not clause.covers(operation):
                continue
            match clause.rule.origin, clause.rule.effect:
                case Origin.BASELINE, _:
                    essential |= clause.mask if clause.rule.essential else 0
                    baseline |= clause.mask
                case Origin.OVERRIDE, Verdict.DENY:
                    override_deny |= clause.mask
                case Origin.OVERRIDE, _:
                    override_allow |= clause.mask
                case _, Verdict.DENY:
                    static_deny |= clause.mask
                case _:
                    allow |= clause.mask
        if self._quarantine:
            return essential
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
        found = {network(c.peer.cidr) for c in self.clauses if c.peer.cidr}
        if self.hosts:  # a name may lead anywhere
            found |= {*EVERYWHERE, *self.form.networks}
        elif any(kept_out(c.rule, c.peer) for c in self.clauses):
            found |= {*self.form.networks}
        return sorted(found, key=lambda n: (n.version, n))

    def cells_of(self, peer: Subject, networks: Iterable[Network] = ()) -> list[Cell]:
        """The cells of one workload: one for every kind of address that it has, one without when it has none.

        :param networks: what tells addresses apart, besides the rules of this side
        """
        blocks = {*self.networks(), *networks}
        kinds = {(a in peer.own, *(parsed(a) in block for block in blocks)): a for a in reversed(peer.addresses)}
        addresses = sorted(kinds.values()) or [""]
        mine = addresses if peer is self.subject else [""]
        return [Cell(peer, address, own) for address in addresses for own in mine]


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


def witness(pattern: str) -> str:
    """A host that a pattern names; below a ``*``, one that no pattern names but for a ``*``, as no label of a pattern
    that :func:`graph.model.is_host` takes begins with a hyphen."""
    return pattern.replace("*", "-any", 1) if pattern.startswith("*") else pattern


def outside(form: Form, networks: Iterable[Network], hosts: Iterable[str] = ()) -> list[Cell]:
    """One cell for every interval of addresses that are not an instance's, under each of these names and without one,
    and one for the rest of the world."""
    taken = {
        (address.version, int(address))
        for address in (parsed(text) for subject in form.subjects.values() for text in subject.addresses)
    }
    cells = [Cell()]
    for version, first, last in intervals(networks):
        number = next((n for n in range(first, min(last, first + len(taken)) + 1) if (version, n) not in taken), None)
        if number is not None:
            cells += [Cell(None, address_of(version, number), host=host) for host in ("", *hosts)]
    return cells
