"""What the directory answers: who takes connections at an address."""

from __future__ import annotations

from dataclasses import dataclass, field

from graph.model import Protocol, Transport, WorkloadRef

__all__ = ["Destination", "Endpoint", "Transport"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where one instance of a destination takes connections.

    :param identity: the SPIFFE ID that it must prove, empty when it is not meshed
    :param transport: how it is reached when it is meshed
    :param workload: whose it is, when that is not the destination's workload; an external reference when it is nobody's
    :ivar key: what makes it the same one: a pod that got the address of another is a different endpoint
    """

    address: str
    port: int
    instance: str = ""
    identity: str = ""
    ready: bool = True
    transport: Transport = Transport.TUNNEL
    workload: WorkloadRef | None = None
    key: tuple[str, int, str] = field(init=False, repr=False, compare=False, default=("", 0, ""))

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", (self.address, self.port, self.identity))


@dataclass(frozen=True, slots=True)
class Destination:
    """The directory's answer for one address and port that a workload connects to.

    :param address: the address asked for: a service's, or an instance's
    :param workload: who answers there; None when the address is not in the inventory, or when that is not one workload
    :param service: whose address it is; empty for an instance's
    :param meshed: whether all of its instances have sidecars, so that only mutual TLS will do; where only some have,
        their endpoints' identities say so
    :param endpoints: empty inside the inventory means that nothing is running there now
    """

    address: str
    port: int
    protocol: Protocol = Protocol.TCP
    workload: WorkloadRef | None = None
    service: str = ""
    meshed: bool = False
    endpoints: tuple[Endpoint, ...] = field(default=())
    version: int = 0

    @property
    def outside(self) -> bool:
        """Whether the inventory does not know the address."""
        return self.workload is None and not self.service

    def workload_of(self, endpoint: Endpoint | None) -> WorkloadRef | None:
        """Who answers at ``endpoint`` (None: at none of them); None when it is nobody of the inventory."""
        if endpoint is None or endpoint.workload is None:
            return self.workload
        return None if endpoint.workload.is_external else endpoint.workload
