"""The vocabulary that every part of Hedgerow shares: workloads, peers, flows, rules and snapshots.

Everything here is immutable and knows no I/O and no clock: times are arguments, in seconds since the Unix epoch.
Protobuf forms of these types are made and read in :mod:`graph.wire.codec` and nowhere else.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Self

from graph.errors import InvalidValue

#: The namespace of what is not a workload: ``-/192.0.2.7``. It cannot be a Kubernetes name, so nothing collides.
EXTERNAL_NAMESPACE = "-"

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


class Protocol(StrEnum):
    """A transport protocol, spelled as Kubernetes spells it."""

    TCP = "TCP"
    UDP = "UDP"
    SCTP = "SCTP"


class Mode(StrEnum):
    """What a workload's sidecar does with a connection that no rule speaks of."""

    LEARN = "learn"
    AUDIT = "audit"
    ENFORCE = "enforce"
    QUARANTINE = "quarantine"


class Verdict(StrEnum):
    """What is done to a connection; also the effect of a rule."""

    ALLOW = "allow"
    DENY = "deny"


class Origin(StrEnum):
    """Where a rule comes from."""

    LEARNED = "learned"
    OVERRIDE = "override"
    STATIC = "static"
    BASELINE = "baseline"


class Direction(StrEnum):
    """A connection as seen from the workload whose sidecar judges it."""

    INBOUND = "inbound"
    OUTBOUND = "outbound"


class InboundTls(StrEnum):
    """Whether a workload takes connections that are not mutual TLS (Istio's PeerAuthentication modes)."""

    PERMISSIVE = "permissive"
    STRICT = "strict"


class Transport(StrEnum):
    """How a meshed endpoint takes connections."""

    TUNNEL = ""
    """A Hedgerow sidecar: yamux tunnels, ALPN ``hedgerow/1``."""
    MTLS = "mtls"
    """Another mesh's proxy: SPIFFE mutual TLS, one TLS connection for each connection."""


#: A DNS name of at least two labels, the last of which begins with a letter, so that no IP address is one
#: (RFC 1123 section 2.1); underscores occur in names of services.
_HOST = re.compile(r"(?=.{3,253}\Z)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?")


def is_host(text: str) -> bool:
    """Whether ``text`` is a DNS name as we write it: lower case, without a final dot, two labels or more."""
    return _HOST.fullmatch(text) is not None


@dataclass(frozen=True, slots=True, order=True)
class WorkloadRef:
    """The name of a workload, ``namespace/name``, or of something outside the mesh, ``-/address`` or ``-/host``.

    What people say about the outside may be wider, a network or all names below a domain: :mod:`graph.outside` reads
    those, and :meth:`parse` does not, because no connection begins or ends at one.
    """

    namespace: str
    name: str

    @classmethod
    def parse(cls, text: str, *, field: str = "workload") -> Self:
        """Read ``namespace/name``.

        :raises InvalidValue: naming ``field``, when a part is missing or is not a Kubernetes name (RFC 1123)
        """
        namespace, slash, name = text.partition("/")
        if not slash:
            raise InvalidValue(field, f"{text!r} names no namespace", "write it as namespace/name, such as shop/cart")
        if namespace == EXTERNAL_NAMESPACE:
            known = cls.external_host if is_host(name) else cls.external
            return known(name, field=field)  # type: ignore[return-value]
        if not _LABEL.fullmatch(namespace):
            raise InvalidValue(
                field,
                f"{namespace!r} is not a namespace name",
                "use lower-case letters, digits and '-', 63 characters at most",
            )
        if len(name) > 253 or not _SUBDOMAIN.fullmatch(name):
            raise InvalidValue(
                field,
                f"{name!r} is not a workload name",
                "use lower-case letters, digits, '-' and '.', 253 characters at most",
            )
        return cls(namespace, name)

    @classmethod
    def external(cls, address: str, *, field: str = "address") -> WorkloadRef:
        """Name something outside the inventory by its IP address.

        :raises InvalidValue: naming ``field``, when ``address`` is no IP address
        """
        try:
            if "%" in address:  # a zone is local to the machine that wrote it, and free text
                raise ValueError
            return WorkloadRef(EXTERNAL_NAMESPACE, str(ipaddress.ip_address(address)))
        except ValueError:
            raise InvalidValue(
                field, f"{address!r} is not an IP address", "write it as 192.0.2.7 or 2001:db8::7"
            ) from None

    @classmethod
    def external_host(cls, host: str, *, field: str = "host") -> WorkloadRef:
        """Name something outside the inventory by its DNS name, in lower case and without a final dot.

        :raises InvalidValue: naming ``field``, when ``host`` is no such name
        """
        if not is_host(host):
            raise InvalidValue(field, f"{host[:64]!r} is not a host name", "write it as api.example.com")
        return WorkloadRef(EXTERNAL_NAMESPACE, host)

    @property
    def is_external(self) -> bool:
        return self.namespace == EXTERNAL_NAMESPACE

    @property
    def host(self) -> str:
        """The DNS name of something external that is known by it; empty otherwise."""
        return self.name if self.is_external and is_host(self.name) else ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Port:
    """A port that a workload serves.

    :param app_protocol: Kubernetes' ``appProtocol`` (``http``, ``grpc``, ``tcp``, …), empty when unknown
    """

    number: int
    protocol: Protocol = Protocol.TCP
    name: str = ""
    app_protocol: str = ""


@dataclass(frozen=True, slots=True, order=True)
class InspectedHost:
    """A name and port outside the mesh. What a workload that inspects it says there is read by its own sidecar, which
    ends the application's TLS for that, and judged operation by operation.

    :param host: one name, in lower case; never a pattern, because a certificate is made for it
    """

    host: str
    port: int = 443

    def __post_init__(self) -> None:
        if not is_host(self.host) or "_" in self.host:
            raise InvalidValue(
                "host", f"{self.host[:64]!r} is not one host name", "write api.example.com, in lower case, without '*'"
            )
        if not 1 <= self.port <= 65535:
            raise InvalidValue("port", f"{self.port} is not a port", "use a port from 1 to 65535")

    @classmethod
    def parse(cls, text: str, *, field: str = "inspects") -> Self:
        """Read ``host:port``, or ``host`` alone for port 443.

        :raises InvalidValue: naming ``field``
        """
        host, colon, port = text.partition(":")
        if colon and not (port.isascii() and port.isdigit() and len(port) <= 5):
            raise InvalidValue(field, f"{text[:80]!r} has no port behind its ':'", "write it as api.example.com:443")
        try:
            return cls(host, int(port) if colon else 443)
        except InvalidValue as error:
            raise InvalidValue(field, error.problem, error.remedy) from None

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Workload:
    """A set of replicas under one owner (Deployment, StatefulSet, CronJob, …).

    :param labels: the labels that its pods carry, sorted pairs
    :param meshed: whether its pods have a proxy that proves who they are
    :param schedule: the cron line of a CronJob, empty otherwise
    :param transport: whose proxy that is
    :param account_identity: its SPIFFE ID stops at the service account, as other meshes write them
    :param inspects: what it calls outside the mesh that its sidecar reads, sorted; nothing unless somebody names it
    """

    ref: WorkloadRef
    kind: str = "Deployment"
    service_account: str = "default"
    labels: tuple[tuple[str, str], ...] = ()
    ports: tuple[Port, ...] = ()
    meshed: bool = True
    schedule: str = ""
    transport: Transport = Transport.TUNNEL
    account_identity: bool = False
    inspects: tuple[InspectedHost, ...] = ()

    @property
    def has_sidecar(self) -> bool:
        """Whether its pods have a sidecar of ours, which holds a policy, judges by it and reports."""
        return self.meshed and self.transport is Transport.TUNNEL


@dataclass(frozen=True, slots=True, order=True)
class Instance:
    """One running replica. ``name`` is unique in its namespace, as a pod's is; ``address`` is its IP address.

    :param meshed: whether this one has the proxy that its workload's replicas have; one that was not restarted yet
        may not
    :param service_account: where that is another than its workload's; empty otherwise
    :param more_addresses: the others that it has, of the other IP family
    """

    name: str
    workload: WorkloadRef
    address: str
    ready: bool = True
    meshed: bool = True
    service_account: str = ""
    more_addresses: tuple[str, ...] = ()

    @property
    def addresses(self) -> tuple[str, ...]:
        return (self.address, *self.more_addresses)


@dataclass(frozen=True, slots=True)
class ServiceEndpoint:
    """Where connections to one port of a service go: an instance's address, or one that is nobody's."""

    address: str
    port: int
    ready: bool = True


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One port of a service and what is behind it.

    :param target_port: of the pods; where they differ, of most of them
    :param endpoints: None: every instance of the service's workload, on ``target_port``
    """

    port: int
    target_port: int
    protocol: Protocol = Protocol.TCP
    name: str = ""
    endpoints: tuple[ServiceEndpoint, ...] | None = None


@dataclass(frozen=True, slots=True)
class Service:
    """A stable name, and mostly an address, in front of instances.

    :param address: empty when it has none (a headless service)
    :param workload: whose instances these are; None when that is not exactly one workload
    :param more_addresses: the others that it has, of the other IP family
    """

    namespace: str
    name: str
    address: str
    workload: WorkloadRef | None
    ports: tuple[ServicePort, ...] = ()
    more_addresses: tuple[str, ...] = ()

    @property
    def addresses(self) -> tuple[str, ...]:
        return (self.address, *self.more_addresses) if self.address else ()


@dataclass(frozen=True, slots=True)
class Peer:
    """One end of a connection, as far as it is known.

    :param workload: who it is, where that is known
    :param service_account: known alone (with ``namespace``) when the peer's SPIFFE ID stops at ``/sa/…``
    :param address: its IP address, where that is known
    :param verified: whether a certificate proved ``workload`` (or the account) in a mutual TLS handshake
    :param host: the DNS name under which something external is reached, set only when an answer of DNS binds that name
        to ``address``: what a client merely claims (SNI, ``Host``) is no proof of where it goes
    """

    workload: WorkloadRef | None = None
    namespace: str = ""
    service_account: str = ""
    address: str = ""
    verified: bool = False
    host: str = ""
    _hash: int = field(init=False, repr=False, compare=False, default=0)

    def __post_init__(self) -> None:
        place = (self.workload, self.namespace, self.service_account, self.address, self.host, self.verified)
        object.__setattr__(self, "_hash", hash(place))

    def __hash__(self) -> int:
        return self._hash  # few peers are looked up for very many connections

    @property
    def is_known(self) -> bool:
        """Whether it is more than an address: a workload or an account of the inventory, or proved by a certificate."""
        return self.workload is not None or bool(self.namespace) or self.verified

    def ref(self) -> WorkloadRef:
        """The workload, else the host or the address as an external reference.

        :raises InvalidValue: when none is known
        """
        if self.workload is not None:
            return self.workload
        return WorkloadRef.external_host(self.host) if self.host else WorkloadRef.external(self.address)


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


@dataclass(frozen=True, slots=True)
class Connection:
    """What is asked of :func:`graph.policy.decide`.

    :param port: the port of the destination *instance*, not of a service in front of it
    """

    direction: Direction
    source: Peer
    destination: Peer
    port: int
    protocol: Protocol = Protocol.TCP
    operation: str = ""
