"""Reads the static inventory, and refuses all of it when anything in it is wrong.

An inventory decides who is who: a misspelt key that is silently passed over, or two things at one address, would give
somebody another's identity. Every refusal names the place (``instances[3].address``) and the remedy.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import yaml

from certs.errors import CertError
from certs.spiffe import SpiffeId, check_trust_domain
from controller.errors import InventoryError
from controller.inventory.fields import Fields
from controller.inventory.model import API_VERSION, KIND, Inventory, Namespace
from graph.errors import InvalidValue
from graph.model import EXTERNAL_NAMESPACE, Instance, Port, Protocol, Service, ServicePort, Workload, WorkloadRef

#: A mesh of some 40,000 instances fits.
MAX_INVENTORY_BYTES = 8 * 1024 * 1024
#: The format itself has six levels.
MAX_DEPTH = 20

_KIND = re.compile(r"[A-Z][A-Za-z]{0,62}")
_SCHEDULE = re.compile(r"@(yearly|annually|monthly|weekly|daily|midnight|hourly)|(\S+ +){4}\S+")
_PORT_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_APP_PROTOCOL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_./]{0,251}[A-Za-z0-9])?")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # chosen when imported
    """Plain data only, and a key may be there once: YAML would take the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable) or key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r:.80} is there twice or can not be a key", key_node.start_mark
                )
            seen.add(key)
        made: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return made


def load_inventory(path: Path, trust_domain: str) -> Inventory:
    """Read an inventory file.

    :raises InventoryError: when it can not be read or anything in it is wrong
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_INVENTORY_BYTES + 1)
    except OSError as error:
        raise InventoryError(
            f"{path} can not be read: {error.strerror}", remedy="set `inventory` to a file that the controller can read"
        ) from None
    return read_inventory(content, trust_domain, name=str(path))


def read_inventory(content: bytes, trust_domain: str, *, name: str = "the inventory") -> Inventory:
    """Read the text of an inventory file (YAML or JSON, UTF-8).

    :param name: what to call it in messages
    :raises InventoryError: when anything in it is wrong
    """
    if len(content) > MAX_INVENTORY_BYTES:
        raise InventoryError(
            f"{name} has more than {MAX_INVENTORY_BYTES} bytes", remedy="split the mesh over several controllers"
        )
    try:
        text = content.decode()
        _check_depth(text, name)
        document = yaml.load(text, Loader=_Loader)  # noqa: S506 - derived from the safe loader
    except UnicodeDecodeError as error:
        raise InventoryError(f"{name} is not UTF-8 (byte {error.start})", remedy="save it as UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "it can not be parsed"
        raise InventoryError(f"{name} is not YAML{where}: {problem}", remedy="correct that line") from None
    except ValueError as error:  # what a scalar's own constructor says, such as of a date that is none
        raise InventoryError(f"{name} is not YAML: {error}", remedy="put that value in quotes") from None
    return inventory_of(document, trust_domain)


def _check_depth(text: str, name: str) -> None:
    """Building nested nodes takes stack for each level, and in C nobody counts it; reading the events takes none."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise InventoryError(
                    f"{name} is not YAML of ours: it is nested more than {MAX_DEPTH} levels deep",
                    remedy="nest no deeper than the format does",
                )
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def inventory_of(document: object, trust_domain: str) -> Inventory:
    """Check a parsed inventory.

    :raises InventoryError: naming the field that is wrong
    """
    try:
        check_trust_domain(trust_domain)
    except CertError as error:
        raise InventoryError(str(error), field="trust_domain", remedy="set trust_domain in controller.yaml") from None
    top = Fields(document, "")
    top.only("apiVersion", "kind", "namespaces", "workloads", "instances", "services")
    for key, wanted in (("apiVersion", API_VERSION), ("kind", KIND)):
        if top.text(key) != wanted:
            raise top.wrong(key, f"{top.text(key)!r:.80} is not known here", f"write {key}: {wanted}")
    return _Reading(trust_domain).read(top)


class _Reading:
    """One reading: what was found so far, to find contradictions. Addresses are in one spelling."""

    def __init__(self, trust_domain: str) -> None:
        self._trust_domain = trust_domain
        self._namespaces: dict[str, Namespace] = {}
        self._declared = False
        self._workloads: dict[WorkloadRef, Workload] = {}
        self._instances: dict[str, Instance] = {}
        self._services: dict[str, Service] = {}
        self._addresses: dict[str, str] = {}

    def read(self, top: Fields) -> Inventory:
        self._declared = top.has("namespaces")
        for entry in top.entries("namespaces"):
            self._namespace(entry)
        for entry in top.entries("workloads"):
            self._workload(entry)
        for entry in top.entries("instances"):
            self._instance(entry)
        for entry in top.entries("services"):
            self._service(entry)
        return Inventory(self._trust_domain, self._namespaces, self._workloads, self._instances, self._services)

    def _namespace(self, entry: Fields) -> None:
        entry.only("name", "labels")
        name = self._name(entry, "name", lambda text: WorkloadRef.parse(f"{text}/x").namespace)
        if name in self._namespaces:
            raise entry.wrong("name", f"the namespace {name!r} is there twice", "list every namespace once")
        self._namespaces[name] = Namespace(name, entry.labels("labels"))

    def _workload(self, entry: Fields) -> None:
        entry.only("namespace", "name", "kind", "serviceAccount", "labels", "ports", "meshed", "schedule")
        ref = self._ref(entry)
        if ref in self._workloads:
            raise entry.wrong("name", f"the workload {ref} is there twice", "list every workload once")
        kind = entry.text("kind", "Deployment")
        if not _KIND.fullmatch(kind):
            raise entry.wrong(
                "kind", f"{kind!r:.80} is not a kind", "use Deployment, StatefulSet, DaemonSet, CronJob …"
            )
        schedule = entry.text("schedule", "")
        if schedule and (kind != "CronJob" or not _SCHEDULE.fullmatch(schedule)):
            raise entry.wrong(
                "schedule", f"{schedule!r:.80} on a {kind}", "give a CronJob five fields (*/5 * * * *) or @hourly"
            )
        account = entry.text("serviceAccount", "default")
        try:
            SpiffeId.for_workload(self._trust_domain, ref.namespace, account, ref.name)
        except CertError as error:
            raise entry.wrong("serviceAccount", str(error), "use names that Kubernetes would take") from None
        self._workloads[ref] = Workload(
            ref,
            kind,
            account,
            entry.labels("labels"),
            self._ports(entry),
            entry.flag("meshed", True),
            schedule,
        )

    def _ports(self, workload: Fields) -> tuple[Port, ...]:
        found: dict[tuple[int, Protocol], Port] = {}
        names: set[str] = set()
        for entry in workload.entries("ports"):
            entry.only("name", "port", "protocol", "appProtocol")
            port = Port(
                entry.port("port"),
                self._protocol(entry),
                self._port_name(entry, names),
                entry.matching("appProtocol", _APP_PROTOCOL, "http, grpc, tcp or another of Kubernetes' appProtocols"),
            )
            if (port.number, port.protocol) in found:
                raise entry.wrong("port", f"{port.number}/{port.protocol} is there twice", "list every port once")
            found[port.number, port.protocol] = port
        return tuple(found.values())

    def _instance(self, entry: Fields) -> None:
        entry.only("name", "workload", "address", "ready")
        ref = self._known_workload(entry)
        name = self._name(entry, "name", lambda text: WorkloadRef.parse(f"{ref.namespace}/{text}").name)
        key = f"{ref.namespace}/{name}"
        if key in self._instances:
            raise entry.wrong("name", f"the instance {key} is there twice", "give every replica a name of its own")
        address = self._address(entry, f"the instance {key}")
        self._instances[key] = Instance(name, ref, address, entry.flag("ready", True))

    def _service(self, entry: Fields) -> None:
        entry.only("namespace", "name", "address", "workload", "ports")
        named = self._ref(entry)
        key = str(named)
        if key in self._services:
            raise entry.wrong("name", f"the service {key} is there twice", "list every service once")
        ref = self._known_workload(entry)
        if ref.namespace != named.namespace:
            raise entry.wrong(
                "workload", f"{ref} is not in the service's namespace", "a service selects pods of its own namespace"
            )
        address = self._address(entry, f"the service {key}")
        ports = self._service_ports(entry, self._workloads[ref])
        self._services[key] = Service(named.namespace, named.name, address, ref, ports)

    def _service_ports(self, service: Fields, workload: Workload) -> tuple[ServicePort, ...]:
        found: dict[tuple[int, Protocol], ServicePort] = {}
        names: set[str] = set()
        for entry in service.entries("ports", required=True):
            entry.only("name", "port", "targetPort", "protocol")
            protocol = self._protocol(entry)
            number = entry.port("port")
            target = self._target(entry, number, protocol, workload)
            if (number, protocol) in found:
                raise entry.wrong("port", f"{number}/{protocol} is there twice", "list every port once")
            found[number, protocol] = ServicePort(number, target, protocol, self._port_name(entry, names))
        return tuple(found.values())

    def _target(self, entry: Fields, number: int, protocol: Protocol, workload: Workload) -> int:
        if not entry.has("targetPort"):
            return number
        if not isinstance(entry.raw("targetPort"), str):
            return entry.port("targetPort")
        name = entry.text("targetPort")
        for port in workload.ports:
            if port.name == name and port.protocol is protocol:
                return port.number
        raise entry.wrong(
            "targetPort",
            f"{workload.ref} has no {protocol} port named {name!r:.80}",
            "name one of its ports, or a number",
        )

    # --- parts that several have

    def _name(self, entry: Fields, key: str, parse: Callable[[str], str]) -> str:
        text = entry.text(key)
        if text == EXTERNAL_NAMESPACE:
            raise entry.wrong(key, "'-' stands for what is outside", "use a Kubernetes name")
        try:
            return parse(text)
        except InvalidValue as error:
            raise entry.wrong(key, error.problem, error.remedy) from None

    def _ref(self, entry: Fields) -> WorkloadRef:
        namespace = self._name(entry, "namespace", lambda text: WorkloadRef.parse(f"{text}/x").namespace)
        if namespace not in self._namespaces:
            if self._declared:
                raise entry.wrong(
                    "namespace",
                    f"{namespace!r} is not among the namespaces",
                    "add it to `namespaces`, or leave that out",
                )
            self._namespaces[namespace] = Namespace(namespace)
        name = self._name(entry, "name", lambda text: WorkloadRef.parse(f"{namespace}/{text}").name)
        return WorkloadRef(namespace, name)

    def _known_workload(self, entry: Fields) -> WorkloadRef:
        text = entry.text("workload")
        try:
            ref = WorkloadRef.parse(text)
        except InvalidValue as error:
            raise entry.wrong("workload", error.problem, error.remedy) from None
        if ref not in self._workloads:
            near = Inventory(workloads=self._workloads).closest(ref)
            remedy = f"did you mean {' or '.join(near)}?" if near else "add it to `workloads`"
            raise entry.wrong("workload", f"there is no workload {ref}", remedy)
        return ref

    def _address(self, entry: Fields, owner: str) -> str:
        text = entry.text("address")
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            raise entry.wrong(
                "address", f"{text!r:.80} is not an IP address", "write it as 10.0.0.7 or fd00::7"
            ) from None
        if address.version == 6 and (address.ipv4_mapped is not None or address.scope_id is not None):
            raise entry.wrong("address", f"{text!r:.80} has a second spelling", "write the plain address, no scope")
        if address.is_unspecified or address.is_multicast:
            raise entry.wrong("address", f"{address} is nobody's own address", "write the address of the instance")
        taken = self._addresses.get(str(address))
        if taken is not None:
            raise entry.wrong(
                "address", f"{address} is also the address of {taken}", "an address belongs to one of them"
            )
        self._addresses[str(address)] = owner
        return str(address)

    def _protocol(self, entry: Fields) -> Protocol:
        text = entry.text("protocol", "TCP")
        try:
            return Protocol(text)
        except ValueError:
            raise entry.wrong("protocol", f"{text!r:.80} is not a protocol", "use TCP, UDP or SCTP") from None

    def _port_name(self, entry: Fields, names: set[str]) -> str:
        name = entry.matching("name", _PORT_NAME, "lower-case letters, digits and '-', 63 characters at most")
        if name and name in names:
            raise entry.wrong("name", f"the port name {name!r} is there twice", "give every port a name of its own")
        names.add(name)
        return name
