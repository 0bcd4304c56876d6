"""The port that is meant by who writes a service's: rules name the port of the pods, where connections arrive."""

from __future__ import annotations

from controller.inventory.model import Inventory
from graph.model import Protocol, ServicePort, WorkloadRef


def meant_ports(inventory: Inventory, ref: WorkloadRef, port: int, protocol: Protocol) -> tuple[int, ...]:
    """The ports of a workload's pods behind its services' ``port``; none where that may well be a port of the pods.

    :returns: sorted
    """
    workload = inventory.workloads.get(ref)
    if workload is None or any((each.number, each.protocol) == (port, protocol) for each in workload.ports):
        return ()
    found: set[int] = set()
    for service in inventory.services.values():
        if service.namespace == ref.namespace:
            for entry in service.ports:
                if entry.protocol is protocol:
                    behind = _behind(inventory, entry, ref, whole=service.workload == ref)
                    if port in behind:  # not declared, and yet there
                        return ()
                    found |= behind if entry.port == port else set()
    return tuple(sorted(found))


def _behind(inventory: Inventory, entry: ServicePort, ref: WorkloadRef, *, whole: bool) -> set[int]:
    """The ports of this workload's pods to which a service's port leads."""
    if entry.endpoints is None:
        return {entry.target_port} if whole else set()
    here = [(inventory.instance_at(each.address), each.port) for each in entry.endpoints]
    found = {port for instance, port in here if instance is not None and instance.workload == ref}
    return found or ({entry.target_port} if whole else set())


def advice(inventory: Inventory, ref: WorkloadRef, port: int | None, protocol: Protocol) -> str:
    """A sentence for who names a service's port where the pods' is wanted; empty when there is nothing to say."""
    meant = () if port is None else meant_ports(inventory, ref, port, protocol)
    if not meant:
        return ""
    instead = " or ".join(map(str, meant))
    return f"{port} is a service's port: the pods of {ref} are reached at {instead}, and rules go by that"
