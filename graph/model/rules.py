"""The policy: whom a rule selects, what it says, and the whole of one workload's rules."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from functools import lru_cache

from graph.errors import InvalidValue
from graph.model.connections import Peer
from graph.model.names import InspectedHost, WorkloadRef, is_host
from graph.model.words import InboundTls, Mode, Origin, Protocol, Verdict


@lru_cache(maxsize=4096)
def _network(cidr: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    if "%" in cidr:
        raise ValueError(f"{cidr!r} has a zone, which means nothing on another machine")
    return ipaddress.ip_network(cidr)


@lru_cache(maxsize=4096)
def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Read a peer's address; an IPv4 peer of a dual-stack socket (RFC 4291, section 2.5.5.2) is an IPv4 peer."""
    address = ipaddress.ip_address(text)
    return getattr(address, "ipv4_mapped", None) or address


@dataclass(frozen=True, slots=True)
class Selector:
    """Which peers a rule speaks of. Every part that is set must match; with none set it selects every peer.

    ``namespace``, ``workload`` and ``service_account`` select identities; ``cidr`` selects addresses, ``host`` a name
    outside the mesh (``api.example.com``, or ``*.example.com`` for every name below). A selector of identities never
    matches the *source* of an inbound connection whose identity was not proved. ``cidr`` is kept in canonical form
    (``10.0.0.1`` becomes ``10.0.0.1/32``).

    ``outside`` stands beside a ``cidr``: a rule that allows then never speaks of whoever is known to be a workload
    (:mod:`graph.policy`), so that an address is no way round an identity.
    """

    namespace: str = ""
    workload: str = ""
    service_account: str = ""
    cidr: str = ""
    host: str = ""
    outside: bool = False

    def __post_init__(self) -> None:
        if self.host:
            if self.namespace:
                raise InvalidValue(
                    "selector.host", "set beside a namespace", "a host is outside the mesh: set it alone"
                )
            if not is_host(self.host.removeprefix("*.")):
                raise InvalidValue(
                    "selector.host",
                    f"{self.host[:64]!r} is not a host name",
                    "write api.example.com, or *.example.com for every name below it, in lower case",
                )
        if self.workload and not self.namespace:
            raise InvalidValue("selector.workload", "a workload without a namespace", "set selector.namespace too")
        if self.service_account and not self.namespace:
            raise InvalidValue(
                "selector.service_account", "an account without a namespace", "set selector.namespace too"
            )
        if self.cidr:
            try:
                object.__setattr__(self, "cidr", str(_network(self.cidr)))
            except ValueError as error:
                raise InvalidValue("selector.cidr", str(error), "write a network such as 10.0.0.0/8") from None
        if self.outside and (self.namespace or not self.cidr):
            raise InvalidValue("selector.outside", "set without a network alone", "set it beside selector.cidr only")

    @classmethod
    def of(cls, ref: WorkloadRef) -> Selector:
        """Select exactly one workload, or what is outside: an address, a network, a host, all names below a domain."""
        if not ref.is_external:
            return cls(namespace=ref.namespace, workload=ref.name)
        if ref.host or ref.name.startswith("*."):
            return cls(host=ref.name)
        return cls(cidr=str(_network(ref.name)))

    @property
    def by_identity(self) -> bool:
        return bool(self.namespace)

    def matches(self, peer: Peer) -> bool:
        """Whether ``peer`` is selected. The caller decides whether an unproved identity counts."""
        if self.namespace:
            ref = peer.workload
            if self.namespace != (ref.namespace if ref is not None else peer.namespace):
                return False
            if self.workload and (ref is None or ref.name != self.workload):
                return False
            if self.service_account and peer.service_account != self.service_account:
                return False
        if self.host:
            if self.host.startswith("*."):
                if not peer.host.endswith(self.host[1:]):
                    return False
            elif peer.host != self.host:
                return False
        if self.cidr:
            if not peer.address:
                return False
            address = _address(peer.address)
            network = _network(self.cidr)
            if address.version != network.version or address not in network:
                return False
        return True

    def __str__(self) -> str:
        if self.workload:
            text = f"{self.namespace}/{self.workload}"
        elif self.namespace:
            text = f"{self.namespace}/*"
        elif self.host:
            text = self.host
        else:
            text = "" if self.cidr else "*"
        if self.service_account:
            text += f"[sa={self.service_account}]"
        return f"{text}@{self.cidr}" if text and self.cidr else text or self.cidr


@dataclass(frozen=True, slots=True)
class PortRange:
    """Ports ``first`` to ``last``, both included."""

    first: int
    last: int

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.last <= 65535:
            raise InvalidValue(
                "ports",
                f"{self.first}-{self.last} is not a port range",
                "use ports from 1 to 65535, the smaller one first",
            )

    @classmethod
    def single(cls, port: int) -> PortRange:
        return cls(port, port)

    def __contains__(self, port: int) -> bool:
        return self.first <= port <= self.last

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True)
class Rule:
    """One statement of the policy: these sources may, or may not, reach these destinations on these ports.

    :param id: stable while the rule means the same; ``learned/…``, ``override/…``, ``static/…``, ``baseline/…``
    :param ports: empty means every port
    :param operations: empty means every operation (``GET /cart/{id}``); else an allow rule does not hold for a
        connection whose operation is unknown, and a deny rule does
    :param owner: who answers for it: a person for an override, ``learner`` for a learned rule
    :param expires_at: seconds since the epoch at which it stops to hold; 0 means never
    :param evidence: why a learned rule exists, for people: one short sentence each
    :param essential: holds in quarantine too (the control plane's own paths); only for ``baseline`` rules
    """

    id: str
    source: Selector
    destination: Selector
    ports: tuple[PortRange, ...] = ()
    protocol: Protocol = Protocol.TCP
    operations: tuple[str, ...] = ()
    effect: Verdict = Verdict.ALLOW
    origin: Origin = Origin.LEARNED
    owner: str = ""
    reason: str = ""
    expires_at: float = 0.0
    evidence: tuple[str, ...] = ()
    essential: bool = False

    def __post_init__(self) -> None:
        if not self.id:
            raise InvalidValue("rule.id", "empty", "give every rule an id")
        if self.essential and self.origin is not Origin.BASELINE:
            raise InvalidValue(
                "rule.essential", f"set on a rule of origin {self.origin}", "only baseline rules are essential"
            )
        if self.effect is Verdict.DENY and self.origin not in (Origin.OVERRIDE, Origin.STATIC):
            raise InvalidValue(
                "rule.effect", f"deny on a rule of origin {self.origin}", "only overrides and static rules deny"
            )

    def expired(self, now: float) -> bool:
        return self.expires_at != 0.0 and now >= self.expires_at


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole policy of one workload. A sidecar holds exactly one at a time.

    :param version: grows with every change of this workload's policy; 0 is "never synced"
    :param issued_at: seconds since the epoch
    :param protocols: (port, Kubernetes' ``appProtocol``) of the workload's own ports, as far as the inventory says
    :param inspects: what it calls outside the mesh that its sidecar may read, and has to
    """

    workload: WorkloadRef
    trust_domain: str
    version: int
    inbound_mode: Mode
    outbound_mode: Mode
    inbound_tls: InboundTls = InboundTls.PERMISSIVE
    rules: tuple[Rule, ...] = ()
    issued_at: float = 0.0
    protocols: tuple[tuple[int, str], ...] = ()
    inspects: tuple[InspectedHost, ...] = ()
