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
    """

    address: str
    port: int
    instance: str = ""
    identity: str = ""
    ready: bool = True
    transport: Transport = Transport.TUNNEL


@dataclass(frozen=True, slots=True)
class Destination:
    """The directory's answer for one address and port that a workload connects to.

    :param address: the address asked for: a service's, or an instance's
    :param workload: who answers there; None when the address is not in the inventory
    :param meshed: whether its instances have sidecars, so that only mutual TLS will do
    :param endpoints: empty with ``workload`` set means that nothing is running there now
    """

    address: str
    port: int
    protocol: Protocol = Protocol.TCP
    workload: WorkloadRef | None = None
    service: str = ""
    meshed: bool = False
    endpoints: tuple[Endpoint, ...] = field(default=())
    version: int = 0
