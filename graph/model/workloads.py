"""Who is in the mesh: workloads, what they serve, and the replicas that run."""

from __future__ import annotations

from dataclasses import dataclass

from graph.model.names import InspectedHost, WorkloadRef
from graph.model.words import Protocol, Transport


@dataclass(frozen=True, slots=True)
class Port:
    """A port that a workload serves.

    :param app_protocol: Kubernetes' ``appProtocol`` (``http``, ``grpc``, ``tcp``, …), empty when unknown
    """

    number: int
    protocol: Protocol = Protocol.TCP
    name: str = ""
    app_protocol: str = ""


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
    :param uid: never that of another one, also of one that has the same name later; empty where nobody gives any
    """

    name: str
    workload: WorkloadRef
    address: str
    ready: bool = True
    meshed: bool = True
    service_account: str = ""
    more_addresses: tuple[str, ...] = ()
    uid: str = ""

    @property
    def addresses(self) -> tuple[str, ...]:
        return (self.address, *self.more_addresses)
