"""A connection and its ends, as far as they are known: what a verdict is asked about."""

from __future__ import annotations

from dataclasses import dataclass, field

from graph.model.names import WorkloadRef
from graph.model.words import Direction, Protocol


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
