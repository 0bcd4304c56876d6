"""Stable names in front of instances, and where each of their ports leads."""

from __future__ import annotations

from dataclasses import dataclass

from graph.model.names import WorkloadRef
from graph.model.words import Protocol


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
