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
from controller.memory import remembered
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


@dataclass(frozen=True, slots=True, weakref_slot=True)
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
            (
                "_by_address",
                _frozen({at: instance for instance in self.instances.values() for at in instance.addresses}),
            ),
            ("_by_service_address", _frozen({at: each for each in self.services.values() for at in each.addresses})),
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
        return self._identity(ref, "")

    def identity_of_instance(self, instance: Instance) -> str:
        """The SPIFFE ID of one instance; empty when nothing proves who it is.

        While a workload's service account changes, its instances have the old one and the new one.
        """
        return self._identity(instance.workload, instance.service_account) if instance.meshed else ""

    def _identity(self, ref: WorkloadRef, account: str) -> str:
        workload = self.workloads.get(ref)
        if workload is None or not workload.meshed:
            return ""
        account = account or workload.service_account
        if workload.account_identity:
            return _account_id(self.trust_domain, ref.namespace, account)
        return _workload_id(self.trust_domain, ref.namespace, account, ref.name)

    def attributed(self, ref: WorkloadRef) -> WorkloadRef:
        """The workload behind an external address, where an instance or a service has it; else ``ref`` itself."""
        if not ref.is_external:
            return ref
        instance = self._by_address.get(ref.name)
        if instance is not None:
            return instance.workload
        service = self._by_service_address.get(ref.name)
        return service.workload if service is not None and service.workload is not None else ref

    def service_named(self, host: str) -> WorkloadRef | None:
        """The workload of the service that a DNS name leads to inside the cluster: ``cart.shop``, ``cart.shop.svc``, …
        (Kubernetes, "DNS for Services and Pods"); None when there is none, or not exactly one."""
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

        A service's address leads to the instances behind it, on the target port; a port that the service does not have
        leads to nobody. Each endpoint says whose it is where that is not the service's one workload. An instance's
        address leads to that instance alone. Any other address is not ours: the answer then has no workload, no service
        and no endpoint.

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
            version = _version_of(address)
            entry = next((each for each in service.ports if each.port == port and each.protocol is protocol), None)
            found = self._endpoints(service, entry, version) if entry is not None else []
            return self._answer(answer, service.workload, f"{service.namespace}/{service.name}", found)
        instance = self.instance_at(address)
        if instance is not None:
            found = [self._endpoint(instance, str(plain_address(address)), port, instance.ready, instance.workload)]
            return self._answer(answer, instance.workload, "", found)
        return answer

    def _endpoints(self, service: Service, entry: ServicePort, version: int) -> list[Endpoint]:
        """What is behind one port, of the IP family that was asked for."""
        if entry.endpoints is None:
            if service.workload is None:
                return []
            return [
                self._endpoint(instance, at, entry.target_port, instance.ready, service.workload)
                for instance in self.instances_of(service.workload)
                for at in _of_family(instance.addresses, version)
            ]
        found = []
        for each in entry.endpoints:
            if _version_of(each.address) != version:
                continue
            instance = self._by_address.get(each.address)
            if instance is not None:
                found.append(self._endpoint(instance, each.address, each.port, each.ready, service.workload))
            else:
                nobody = WorkloadRef.external(each.address)
                found.append(Endpoint(each.address, each.port, ready=each.ready, workload=nobody))
        return found

    def _endpoint(
        self, instance: Instance, address: str, port: int, ready: bool, expected: WorkloadRef | None
    ) -> Endpoint:
        """:param expected: whose it is unless it says otherwise"""
        return Endpoint(
            address,
            port,
            instance.name,
            self.identity_of_instance(instance),
            ready=ready,
            transport=self.workloads[instance.workload].transport,
            workload=instance.workload if instance.workload != expected else None,
        )

    def _answer(
        self, asked: Destination, ref: WorkloadRef | None, service: str, endpoints: list[Endpoint]
    ) -> Destination:
        # An endpoint's own identity says whether it is meshed. What is said of the whole only shuts more.
        meshed = ref is not None and self.workloads[ref].meshed and all(each.identity for each in endpoints)
        return Destination(
            asked.address,
            asked.port,
            asked.protocol,
            workload=ref,
            service=service,
            meshed=meshed,
            endpoints=tuple(endpoints),
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
            "instances": [_instance_dict(one) for _, one in sorted(self.instances.items())],
            "services": [_service_dict(service) for _, service in sorted(self.services.items())],
        }


@remembered(16384)
def _workload_id(trust_domain: str, namespace: str, account: str, name: str) -> str:
    return str(SpiffeId.for_workload(trust_domain, namespace, account, name))


@remembered(4096)
def _account_id(trust_domain: str, namespace: str, account: str) -> str:
    return str(SpiffeId.for_account(trust_domain, namespace, account))


def _version_of(address: str) -> int:
    """4 or 6, of an IP address; an IPv4 address in IPv6 form is the IPv4 address."""
    return 6 if ":" in (plain_address(address) or "") else 4


def _of_family(addresses: tuple[str, ...], version: int) -> tuple[str, ...]:
    """The addresses of one IP version; where there is none, the first one, as a service may translate."""
    return tuple(each for each in addresses if _version_of(each) == version) or addresses[:1]


def plain_address(text: str) -> str | None:
    """One spelling for one IP address; None when it is none. An IPv4 address in IPv6 form is the IPv4 address."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if address.version == 6 else None
    return str(mapped or address)


def _workload_dict(workload: Workload) -> dict[str, Any]:
    return (
        {
            "namespace": workload.ref.namespace,
            "name": workload.ref.name,
            "kind": workload.kind,
            "serviceAccount": workload.service_account,
            "labels": dict(workload.labels),
            "ports": [_port_dict(port) for port in workload.ports],
            "meshed": workload.meshed,
            "schedule": workload.schedule,
        }
        | _foreign_dict(workload)
        | _inspects_dict(workload)
    )


def _inspects_dict(workload: Workload) -> dict[str, Any]:
    return {"inspects": [str(one) for one in workload.inspects]} if workload.inspects else {}


def _foreign_dict(workload: Workload) -> dict[str, Any]:
    if workload.transport is Transport.TUNNEL:
        return {}
    return {"transport": str(workload.transport), "identity": "account" if workload.account_identity else "workload"}


def _instance_dict(one: Instance) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": one.name,
        "workload": str(one.workload),
        "address": one.address,
        "ready": one.ready,
    }
    if not one.meshed:
        made["meshed"] = False
    if one.service_account:
        made["serviceAccount"] = one.service_account
    if one.more_addresses:
        made["moreAddresses"] = list(one.more_addresses)
    if one.uid:
        made["uid"] = one.uid
    return made


def _service_dict(service: Service) -> dict[str, Any]:
    made: dict[str, Any] = {"namespace": service.namespace, "name": service.name}
    if service.address:
        made["address"] = service.address
    if service.more_addresses:
        made["moreAddresses"] = list(service.more_addresses)
    if service.workload is not None:
        made["workload"] = str(service.workload)
    return made | {"ports": [_service_port_dict(port) for port in service.ports]}


def _port_dict(port: Port) -> dict[str, Any]:
    return {"name": port.name, "port": port.number, "protocol": str(port.protocol), "appProtocol": port.app_protocol}


def _service_port_dict(port: ServicePort) -> dict[str, Any]:
    made = {"name": port.name, "port": port.port, "targetPort": port.target_port, "protocol": str(port.protocol)}
    if port.endpoints is None:
        return made
    behind = [{"address": each.address, "port": each.port, "ready": each.ready} for each in port.endpoints]
    return made | {"endpoints": behind}
