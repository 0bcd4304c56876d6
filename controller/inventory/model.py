"""The inventory as a value: workloads, instances, services, and the indexes by which the rest asks for them.

It is made by :mod:`controller.inventory.reader`, which refuses whatever is inconsistent: every instance has its
workload, and an address belongs to one instance or one service.
"""

from __future__ import annotations

import difflib
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from certs.spiffe import SpiffeId
from graph.directory import Destination, Endpoint
from graph.errors import InvalidValue
from graph.model import Instance, Port, Protocol, Service, ServicePort, Transport, Workload, WorkloadRef

API_VERSION = "hedgerow.dev/v1alpha1"
KIND = "Inventory"
#: The most names that a misspelt one is compared with: comparing takes about 10 µs each.
_COMPARED = 2_000


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace and the labels by which a NetworkPolicy can select it, sorted pairs."""

    name: str
    labels: tuple[tuple[str, str], ...] = ()


def _frozen[K, V](entries: Mapping[K, V]) -> Mapping[K, V]:
    return MappingProxyType(dict(entries))


@dataclass(frozen=True, slots=True)
class Inventory:
    """Everything that is known to run.

    :param trust_domain: in which the workloads have their identities
    :param namespaces: by name
    :param instances: by ``namespace/name``, as are ``services``
    :param networks: the cluster's own, of its pods, services and nodes, sorted; empty when they are not known
    :param revision: grows when the engine takes a different inventory; the ``version`` of directory answers
    """

    trust_domain: str = ""
    namespaces: Mapping[str, Namespace] = field(default_factory=dict)
    workloads: Mapping[WorkloadRef, Workload] = field(default_factory=dict)
    instances: Mapping[str, Instance] = field(default_factory=dict)
    services: Mapping[str, Service] = field(default_factory=dict)
    networks: tuple[str, ...] = ()
    revision: int = field(default=0, compare=False)
    _by_address: Mapping[str, Instance] = field(init=False, compare=False, repr=False)
    _by_service_address: Mapping[str, Service] = field(init=False, compare=False, repr=False)
    _by_workload: Mapping[WorkloadRef, tuple[Instance, ...]] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        by_workload: dict[WorkloadRef, list[Instance]] = {}
        for instance in self.instances.values():
            by_workload.setdefault(instance.workload, []).append(instance)
        for name, value in (
            ("namespaces", _frozen(self.namespaces)),
            ("workloads", _frozen(self.workloads)),
            ("instances", _frozen(self.instances)),
            ("services", _frozen(self.services)),
            ("_by_address", _frozen({instance.address: instance for instance in self.instances.values()})),
            ("_by_service_address", _frozen({service.address: service for service in self.services.values()})),
            ("_by_workload", _frozen({ref: tuple(sorted(found)) for ref, found in by_workload.items()})),
        ):
            object.__setattr__(self, name, value)

    # --- looking things up

    def instances_of(self, ref: WorkloadRef) -> tuple[Instance, ...]:
        """The replicas of a workload, sorted by name; empty when it has none or is unknown."""
        return self._by_workload.get(ref, ())

    def instance_at(self, address: str) -> Instance | None:
        """The instance with this IP address, in whatever spelling."""
        return self._by_address.get(plain_address(address) or "")

    def service_at(self, address: str) -> Service | None:
        """The service with this IP address, in whatever spelling."""
        return self._by_service_address.get(plain_address(address) or "")

    def identity_of(self, ref: WorkloadRef) -> str:
        """The SPIFFE ID of a workload's instances; empty when it is unknown or nothing proves who it is."""
        workload = self.workloads.get(ref)
        if workload is None or not workload.meshed:
            return ""
        if workload.account_identity:
            return str(SpiffeId.for_account(self.trust_domain, ref.namespace, workload.service_account))
        return str(SpiffeId.for_workload(self.trust_domain, ref.namespace, workload.service_account, ref.name))

    def attributed(self, ref: WorkloadRef) -> WorkloadRef:
        """The workload behind an external address, where an instance or a service has it; else ``ref`` itself."""
        if not ref.is_external:
            return ref
        instance = self._by_address.get(ref.name)
        if instance is not None:
            return instance.workload
        service = self._by_service_address.get(ref.name)
        return service.workload if service is not None else ref

    def service_named(self, host: str) -> WorkloadRef | None:
        """The workload of the service that a DNS name leads to inside the cluster: ``cart.shop``, ``cart.shop.svc``, …
        (Kubernetes, "DNS for Services and Pods")."""
        labels = host.split(".")
        if len(labels) < 2 or labels[2:3] not in ([], ["svc"]):
            return None
        service = self.services.get(f"{labels[1]}/{labels[0]}")
        return service.workload if service is not None else None

    def closest(self, ref: WorkloadRef, limit: int = 3) -> tuple[str, ...]:
        """The names of workloads that are spelled most like ``ref``, the best first."""
        same_name = sorted(str(known) for known in self.workloads if known.name == ref.name)
        neighbours = sorted(self.workloads, key=lambda known: known.namespace != ref.namespace)[:_COMPARED]
        near = difflib.get_close_matches(str(ref), [str(known) for known in neighbours], n=limit, cutoff=0.6)
        return tuple(dict.fromkeys((*same_name, *near)))[:limit]

    def resolve(self, address: str, port: int, protocol: Protocol = Protocol.TCP) -> Destination:
        """Who answers at ``address`` and ``port``.

        A service's address leads to the instances of its workload, on the target port; a port that the service does not
        have leads to nobody. An instance's address leads to that instance alone. Any other address is not ours: the
        answer then has no workload and no endpoint.

        :raises graph.errors.InvalidValue: when ``address`` or ``port`` is none
        """
        if plain_address(address) is None:
            raise InvalidValue(
                "address", f"{address!r:.80} is not an IP address", "write it as 192.0.2.7 or 2001:db8::7"
            )
        if not 1 <= port <= 65535:
            raise InvalidValue("port", f"{port} is not a port", "use a port from 1 to 65535")
        answer = Destination(address, port, protocol, version=self.revision)
        service = self.service_at(address)
        if service is not None:
            found = [
                self._endpoint(instance, entry.target_port)
                for entry in service.ports
                if entry.port == port and entry.protocol is protocol
                for instance in self.instances_of(service.workload)
            ]
            name = f"{service.namespace}/{service.name}"
            return self._answer(answer, service.workload, name, tuple(found))
        instance = self.instance_at(address)
        if instance is not None:
            return self._answer(answer, instance.workload, "", (self._endpoint(instance, port),))
        return answer

    def _endpoint(self, instance: Instance, port: int) -> Endpoint:
        workload = self.workloads[instance.workload]
        return Endpoint(
            instance.address,
            port,
            instance.name,
            self.identity_of(instance.workload),
            ready=instance.ready,
            transport=workload.transport,
        )

    def _answer(
        self, asked: Destination, ref: WorkloadRef, service: str, endpoints: tuple[Endpoint, ...]
    ) -> Destination:
        return Destination(
            asked.address,
            asked.port,
            asked.protocol,
            workload=ref,
            service=service,
            meshed=self.workloads[ref].meshed,
            endpoints=endpoints,
            version=asked.version,
        )

    # --- its form for the store, the web API, and the file

    def to_dict(self) -> dict[str, Any]:
        """The form of the file, from which :func:`controller.inventory.inventory_of` reads it again."""
        return {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "clusterNetworks": list(self.networks),
            "namespaces": [
                {"name": space.name, "labels": dict(space.labels)} for _, space in sorted(self.namespaces.items())
            ],
            "workloads": [_workload_dict(workload) for _, workload in sorted(self.workloads.items())],
            "instances": [
                {"name": one.name, "workload": str(one.workload), "address": one.address, "ready": one.ready}
                for _, one in sorted(self.instances.items())
            ],
            "services": [
                {
                    "namespace": service.namespace,
                    "name": service.name,
                    "address": service.address,
                    "workload": str(service.workload),
                    "ports": [_service_port_dict(port) for port in service.ports],
                }
                for _, service in sorted(self.services.items())
            ],
        }


def plain_address(text: str) -> str | None:
    """One spelling for one IP address; None when it is none. An IPv4 address in IPv6 form is the IPv4 address."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if address.version == 6 else None
    return str(mapped or address)


def _workload_dict(workload: Workload) -> dict[str, Any]:
    return {
        "namespace": workload.ref.namespace,
        "name": workload.ref.name,
        "kind": workload.kind,
        "serviceAccount": workload.service_account,
        "labels": dict(workload.labels),
        "ports": [_port_dict(port) for port in workload.ports],
        "meshed": workload.meshed,
        "schedule": workload.schedule,
    } | _foreign_dict(workload) | _inspects_dict(workload)


def _inspects_dict(workload: Workload) -> dict[str, Any]:
    return {"inspects": [str(one) for one in workload.inspects]} if workload.inspects else {}


def _foreign_dict(workload: Workload) -> dict[str, Any]:
    if workload.transport is Transport.TUNNEL:
        return {}
    return {"transport": str(workload.transport), "identity": "account" if workload.account_identity else "workload"}


def _port_dict(port: Port) -> dict[str, Any]:
    return {"name": port.name, "port": port.number, "protocol": str(port.protocol), "appProtocol": port.app_protocol}


def _service_port_dict(port: ServicePort) -> dict[str, Any]:
    return {"name": port.name, "port": port.port, "targetPort": port.target_port, "protocol": str(port.protocol)}
