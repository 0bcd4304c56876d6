"""The intermediate form: the rules, resolved against the inventory, from which everything else is made.

What it fixes, so that sidecars and the cluster's network layer can be told the same:

1. A selector of identities means the workloads of the inventory that it names today. A service account means the
   workloads that run as it.
2. A workload without a sidecar proves nothing. As a source it is known by its addresses, and only by those that no
   other workload shares and that are not loopback; in doubt it is nobody.
3. A network at a workload's own end means the workload when *all* its instances are inside, for an allow rule, and
   when *any* is, for a deny rule.
4. A workload in quarantine is cut off by its peers too: no allow rule that names it holds at their end. Its own sidecar
   may be what was broken into.
5. Each end is judged on its own: what a rule says holds for the source's way out and the destination's way in. Between
   two instances of one workload, both ends are its own, and what holds at either end holds.
6. A host is a name outside the cluster. An allow rule for one does not hold where the name leads into the cluster's own
   networks, as far as these are known: whoever answers for the name must not choose a way into the cluster.
7. A network *outside* means nobody at a workload's own end, and at the other end no workload that is known to be one,
   where it is allowed. Where it is more than one address, it does not hold in the cluster's own networks either: who is
   there may be a workload that does not prove it. What is denied is denied to everybody at these addresses.
8. Operations are judged by the destination's sidecar, those towards a host outside by the source's, where that workload
   inspects the host on every port that the rule names. Where a rule about operations is judged by nobody so, an allow
   is left out and a deny holds for everything.

Pure: time is an argument, seconds since the epoch.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol as Structure

from controller.compiler.errors import CompileError
from controller.memory import remembered
from graph.model import (
    Direction,
    InboundTls,
    InspectedHost,
    Instance,
    Mode,
    Origin,
    Protocol,
    Rule,
    Selector,
    Service,
    Verdict,
    Workload,
    WorkloadRef,
)

type Network = ipaddress.IPv4Network | ipaddress.IPv6Network
type Address = ipaddress.IPv4Address | ipaddress.IPv6Address


#: All addresses.
EVERYWHERE: tuple[Network, ...] = (ipaddress.IPv4Network("0.0.0.0/0"), ipaddress.IPv6Network("::/0"))


class Modes(Structure):
    """How a workload is set; :class:`controller.view.WorkloadMode` is one."""

    @property
    def inbound(self) -> Mode: ...
    @property
    def outbound(self) -> Mode: ...
    @property
    def inbound_tls(self) -> InboundTls: ...


@dataclass(frozen=True, slots=True)
class PolicyInput:
    """Everything that the policy of a mesh is made from.

    :param modes: a workload that is not in it is compiled as ``enforce``: in doubt it is closed
    :param rules: learned, static and override rules, ids unique; baseline rules are added by the compiler
    :param control_plane: the controller's workload; None means ``hedgerow-system/hedgerow-controller``
    :param networks: the cluster's own networks; empty when they are not known
    :param resolvers: addresses of DNS servers that are not in the inventory; one that an instance holds does not count
    """

    trust_domain: str
    workloads: tuple[Workload, ...] = ()
    instances: tuple[Instance, ...] = ()
    services: tuple[Service, ...] = ()
    modes: Mapping[WorkloadRef, Modes] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    control_plane: WorkloadRef | None = None
    resolvers: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Settings:
    """The modes of a workload that :attr:`PolicyInput.modes` does not know."""

    inbound: Mode = Mode.ENFORCE
    outbound: Mode = Mode.ENFORCE
    inbound_tls: InboundTls = InboundTls.PERMISSIVE


@dataclass(frozen=True, slots=True)
class Subject:
    """A workload as the compiler sees it.

    :param addresses: of its instances, sorted
    :param own: those of them by which alone it can be told from everybody else
    :param meshed: whether it proves who it is
    :param listed: whether the inventory holds it; DNS and the controller may be known by convention only
    :param sidecar: whether it has a sidecar of ours, which holds a policy
    :param account_identity: what it proves is its account, which is then no other's
    :param protocols: ``appProtocol`` by TCP port, where the inventory says it, by port
    :param inspects: hosts outside that its sidecar reads
    """

    ref: WorkloadRef
    account: str
    labels: tuple[tuple[str, str], ...]
    meshed: bool
    addresses: tuple[str, ...] = ()
    own: frozenset[str] = frozenset()
    listed: bool = True
    sidecar: bool = False
    account_identity: bool = False
    protocols: tuple[tuple[int, str], ...] = ()
    inspects: tuple[InspectedHost, ...] = ()

    def named_by(self, selector: Selector) -> bool:
        """Whether the identity part of a selector names this workload."""
        return (
            selector.namespace == self.ref.namespace
            and selector.workload in ("", self.ref.name)
            and selector.service_account in ("", self.account)
        )


class Form:
    """The rules of one :class:`PolicyInput` that hold at ``now``, indexed by the workloads that they concern.

    :param now: rules that expired by then are left out; 0 leaves none out

    ``left_out`` are the rules about operations that nobody would judge; ``beyond`` what the cluster's networks leave of
    all addresses.

    :raises CompileError: when two rules share an id, or the input contradicts itself
    """

    def __init__(self, policy: PolicyInput, now: float = 0.0, *, known: Iterable[Subject] = ()) -> None:
        self.input = policy
        self.now = now
        self.subjects = _subjects(policy, known)
        self.networks = tuple(sorted({network(cidr) for cidr in policy.networks}, key=lambda n: (n.version, n)))
        self.beyond = _beyond(self.networks)
        holding = tuple(rule for rule in _unique(policy.rules, now) if not self._cut_off(rule))
        self.rules = tuple(held for rule in holding if (held := self._as_judged(rule)) is not None)
        self.left_out = tuple(rule for rule in holding if rule.operations and self._as_judged(rule) is not rule)
        self._by_workload: dict[WorkloadRef, list[Rule]] = {}
        self._by_namespace: dict[str, list[Rule]] = {}
        self._elsewhere: list[Rule] = []
        for rule in self.rules:
            self._index(rule)

    def _index(self, rule: Rule) -> None:
        for selector in {rule.source, rule.destination}:
            if selector.workload:
                self._by_workload.setdefault(WorkloadRef(selector.namespace, selector.workload), []).append(rule)
            elif selector.namespace:
                self._by_namespace.setdefault(selector.namespace, []).append(rule)
            else:
                self._elsewhere.append(rule)

    def _cut_off(self, rule: Rule) -> bool:
        if rule.effect is Verdict.DENY:
            return False
        source, destination = (
            self.settings(WorkloadRef(end.namespace, end.workload)) if end.workload else Settings()
            for end in (rule.source, rule.destination)
        )
        return source.outbound is Mode.QUARANTINE or destination.inbound is Mode.QUARANTINE

    def _as_judged(self, rule: Rule) -> Rule | None:
        """The rule as it can be held to (see 8 above); None when it can not."""
        if not rule.operations:
            return rule
        destination = rule.destination
        subject = self.subjects.get(WorkloadRef(destination.namespace, destination.workload))
        if destination.host:
            judged = self._inspected(rule)
        else:
            judged = subject is not None and subject.sidecar if destination.workload else True
        if judged:
            return rule
        return replace(rule, operations=()) if rule.effect is Verdict.DENY else None

    def _inspected(self, rule: Rule) -> bool:
        """Whether the rule's source reads all that the rule speaks of."""
        source = self.subjects.get(WorkloadRef(rule.source.namespace, rule.source.workload))
        if source is None or not source.sidecar or not rule.source.workload or not rule.ports:
            return False
        read = {one.port for one in source.inspects if one.host == rule.destination.host}
        return all(ports.first == ports.last and ports.first in read for ports in rule.ports)

    def settings(self, ref: WorkloadRef) -> Modes:
        return self.input.modes.get(ref) or Settings()

    def concerning(self, subject: Subject) -> tuple[Rule, ...]:
        """The rules of which this workload is, or may be, an end; by id. Baseline rules are not among them."""
        candidates = [
            *self._by_workload.get(subject.ref, ()),
            *self._by_namespace.get(subject.ref.namespace, ()),
            *self._elsewhere,
        ]
        found = {
            rule.id: rule
            for rule in candidates
            if self.at_own_end(rule, subject, Direction.INBOUND) or self.at_own_end(rule, subject, Direction.OUTBOUND)
        }
        return tuple(found[rule_id] for rule_id in sorted(found))

    @staticmethod
    def at_own_end(rule: Rule, subject: Subject, direction: Direction) -> bool:
        """Whether a rule speaks of this workload's connections in that direction."""
        selector = rule.destination if direction is Direction.INBOUND else rule.source
        if selector.host or selector.outside or (selector.by_identity and not subject.named_by(selector)):
            return False
        if not selector.cidr:
            return True
        inside = [within(address, selector.cidr) for address in subject.addresses]
        return any(inside) if rule.effect is Verdict.DENY else bool(inside) and all(inside)


def kept_out(rule: Rule, selector: Selector) -> bool:
    """Whether what this end of a rule opens stops at the cluster's own networks."""
    if rule.effect is Verdict.DENY:
        return False
    return bool(selector.host) or (selector.outside and network(selector.cidr).num_addresses > 1)


def contains(outer: Network, inner: Network) -> bool:
    """Whether a network lies in another as a whole."""
    return outer.version == inner.version and outer.supernet_of(inner)  # type: ignore[arg-type]  # of the same version


def within(address: str, cidr: str) -> bool:
    """Whether an address is in a network; an unknown address (empty) is in none."""
    if not address:
        return False
    return parsed(address) in network(cidr)


#: Takes 4 MB when it is full, as it is some minutes after many pods began to come and go.
@remembered(16384)
def parsed(address: str) -> Address:
    return ipaddress.ip_address(address)


@remembered(16384)
def network(cidr: str) -> Network:
    return ipaddress.ip_network(cidr)


def _unique(rules: Iterable[Rule], now: float) -> tuple[Rule, ...]:
    found: dict[str, Rule] = {}
    for rule in rules:
        if rule.expired(now):
            continue
        if rule.origin is Origin.BASELINE:
            raise CompileError(
                f"{rule.id} is a baseline rule", field="rules", remedy="leave baseline rules to the compiler"
            )
        if rule.source.host:
            raise CompileError(
                f"{rule.id} has the host {rule.source.host} as its source",
                field="rules",
                remedy="name a workload or a network: nobody is called from a name",
            )
        if "@" in rule.id:
            raise CompileError(f"{rule.id!r} has an '@' in it", field="rules", remedy="'@' marks what we add to an id")
        if found.setdefault(rule.id, rule) != rule:
            raise CompileError(f"two rules are called {rule.id}", field="rules", remedy="give every rule its own id")
    return tuple(found[rule_id] for rule_id in sorted(found))


def _subjects(policy: PolicyInput, known: Iterable[Subject]) -> dict[WorkloadRef, Subject]:
    addresses: dict[WorkloadRef, set[str]] = {workload.ref: set() for workload in policy.workloads}
    owners: dict[str, set[WorkloadRef]] = {}
    if len(addresses) != len(policy.workloads):
        raise CompileError("a workload is listed twice", field="workloads", remedy="list every workload once")
    for instance in policy.instances:
        if instance.workload not in addresses:
            raise CompileError(
                f"{instance.name} belongs to {instance.workload}, which is not a workload of the inventory",
                field="instances",
                remedy="add the workload, or remove the instance",
            )
        for address in {str(parsed(each)) for each in instance.addresses if each}:
            addresses[instance.workload].add(address)
            owners.setdefault(address, set()).add(instance.workload)
    subjects = {subject.ref: subject for subject in known}
    for workload in policy.workloads:
        mine = tuple(sorted(addresses[workload.ref], key=lambda text: (parsed(text).version, parsed(text))))
        subjects[workload.ref] = Subject(
            workload.ref,
            workload.service_account,
            tuple(sorted(workload.labels)),
            workload.meshed,
            mine,
            frozenset(a for a in mine if len(owners[a]) == 1 and not _nobody(parsed(a))),
            sidecar=workload.has_sidecar,
            account_identity=workload.meshed and workload.account_identity,
            protocols=_protocols(workload),
            inspects=workload.inspects if workload.has_sidecar else (),
        )
    _check_accounts(subjects.values())
    return {ref: subjects[ref] for ref in sorted(subjects)}


def _protocols(workload: Workload) -> tuple[tuple[int, str], ...]:
    spoken = {
        port.number: port.app_protocol for port in workload.ports if port.protocol is Protocol.TCP and port.app_protocol
    }
    return tuple(sorted(spoken.items()))


def _check_accounts(subjects: Iterable[Subject]) -> None:
    proving: dict[tuple[str, str], list[Subject]] = {}
    for subject in subjects:
        if subject.meshed:
            proving.setdefault((subject.ref.namespace, subject.account), []).append(subject)
    for sharing in proving.values():
        if len(sharing) > 1 and any(subject.account_identity for subject in sharing):
            raise CompileError(
                f"{sharing[0].ref} and {sharing[1].ref} prove the same account and can not be told apart",
                field="workloads",
                remedy="give each a service account of its own",
            )


def _beyond(networks: Iterable[Network]) -> tuple[Network, ...]:
    """All addresses but these, as few networks as there can be."""
    left = list(EVERYWHERE)
    for taken in networks:
        left = [
            part
            for block in left
            if not contains(taken, block)
            for part in (
                block.address_exclude(taken)  # type: ignore[arg-type]  # of the same version
                if contains(block, taken)
                else (block,)
            )
        ]
    return tuple(sorted(left, key=lambda n: (n.version, n)))


def _nobody(address: Address) -> bool:
    """Loopback and its like are everybody's own."""
    return address.is_loopback or address.is_unspecified or address.is_multicast
