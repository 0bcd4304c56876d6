"""Reads the static inventory, and refuses all of it when anything in it is wrong.

An inventory decides who is who: a misspelt key that is silently passed over, or two things at one address, would give
somebody another's identity. Every refusal names the place (``instances[3].address``) and the remedy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from certs.errors import CertError
from certs.spiffe import SpiffeId
from controller.errors import InventoryError
from controller.inventory.model import API_VERSION, KIND, Inventory, Namespace
from controller.inventory.ports import (
    entry_of,
    opaque_ports,
    own_address,
    service_ports,
    unread,
    with_opaque,
    workload_ports,
)
from graph.documents import read_yaml
from graph.errors import InvalidValue
from graph.fields import (
    Check,
    Fields,
    Unfit,
    choice,
    flag,
    items,
    matching,
    namespace_name,
    parsed,
    shown,
    text,
    trust_domain_name,
    word,
)
from graph.model import (
    EXTERNAL_NAMESPACE,
    InspectedHost,
    Instance,
    Selector,
    Service,
    Transport,
    Workload,
    WorkloadRef,
)
from graph.text import printable

#: Each one makes the snapshots of workloads with rules about hosts longer.
MAX_NETWORKS = 16
#: Hosts outside that one workload inspects; a snapshot takes no more.
MAX_INSPECTED = 64
#: A mesh of some 40,000 instances fits.
MAX_INVENTORY_BYTES = 8 * 1024 * 1024

_KIND = re.compile(r"[A-Z][A-Za-z]{0,62}")
_SCHEDULE = re.compile(r"@(yearly|annually|monthly|weekly|daily|midnight|hourly)|(\S+ +){4}\S+")
#: Kubernetes: "Labels and Selectors", syntax and character set.
_LABEL_KEY = re.compile(
    r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", re.ASCII
)
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?", re.ASCII)


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
    try:
        document = read_yaml(content, MAX_INVENTORY_BYTES, if_larger="split the mesh over several controllers")
    except Unfit as error:
        problem = f"{error.problem} in {name}" if error.inner else f"{name}: {error.problem}"
        raise InventoryError(problem, field=error.inner, remedy=error.remedy) from None
    return inventory_of(document, trust_domain)


def inventory_of(document: object, trust_domain: str) -> Inventory:
    """Check a parsed inventory.

    :raises InventoryError: naming the field that is wrong
    """
    try:
        reading = _Reading(trust_domain_name(trust_domain))
    except Unfit as error:
        raise InventoryError(
            error.problem, field="trust_domain", remedy="set trust_domain in controller.yaml"
        ) from None
    return reading.read(document)


def _inspected(value: object) -> InspectedHost:
    try:
        return InspectedHost.parse(text(300)(value))
    except InvalidValue as error:
        raise Unfit(error.problem, error.remedy) from None


def _refusal(name: str, problem: str, remedy: str) -> InventoryError:
    return InventoryError(problem, field=name or "the document", remedy=remedy)


class _Reading:
    """One reading: what was found so far, to find contradictions. Addresses are in one spelling.

    Each entry's fields are all taken first and compared with the rest afterwards: a misspelt key would otherwise show
    as a contradiction.
    """

    def __init__(self, trust_domain: str) -> None:
        self._trust_domain = trust_domain
        self._namespaces: dict[str, Namespace] = {}
        self._declared = False
        self._workloads: dict[WorkloadRef, Workload] = {}
        self._instances: dict[str, Instance] = {}
        self._services: dict[str, Service] = {}
        self._addresses: dict[str, str] = {}
        self._accounts: dict[tuple[str, str], list[Workload]] = {}

    def read(self, document: object) -> Inventory:
        top = Fields(document, _refusal, noun="key")
        top.take("apiVersion", _constant("apiVersion", API_VERSION))
        top.take("kind", _constant("kind", KIND))
        sections: tuple[tuple[str, Check[None]], ...] = (
            ("namespaces", self._namespace),
            ("workloads", self._workload),
            ("instances", self._instance),
            ("services", self._service),
        )
        # how many there are is bounded by the bytes that were read
        networks = top.take("clusterNetworks", cluster_networks, ())
        given = {name: top.take(name, items(unread, at_most=MAX_INVENTORY_BYTES), None) for name, _ in sections}
        top.finish()
        self._declared = given["namespaces"] is not None
        for name, check in sections:
            top.checked(name, given[name] or (), items(check, at_most=MAX_INVENTORY_BYTES))
        return Inventory(
            self._trust_domain, self._namespaces, self._workloads, self._instances, self._services, networks
        )

    def _namespace(self, value: object) -> None:
        entry = entry_of(value)
        name = entry.take("name", _namespace_name)
        labels = entry.take("labels", _labels, ())
        entry.finish()
        if name in self._namespaces:
            entry.fail("name", f"the namespace {name!r} is there twice", "list every namespace once")
        self._namespaces[name] = Namespace(name, labels)

    def _workload(self, value: object) -> None:
        entry = entry_of(value)
        namespace, name = entry.take("namespace", _namespace_name), entry.take("name", _name)
        kind = entry.take("kind", matching(_KIND, "Deployment, StatefulSet, DaemonSet, CronJob …"), "Deployment")
        account = entry.take("serviceAccount", text(), "default")
        labels = entry.take("labels", _labels, ())
        ports = entry.take("ports", workload_ports, ())
        meshed = entry.take("meshed", flag, True)
        schedule = entry.take("schedule", text(may_be_empty=True), "")
        opaque = entry.take("opaquePorts", opaque_ports, ())
        transport = entry.take("transport", choice(Transport.MTLS), Transport.TUNNEL)
        identity = entry.take("identity", word("account", "workload"), None)
        inspects = entry.take("inspects", items(_inspected, at_most=MAX_INSPECTED), ())
        entry.finish()
        ref = self._ref(entry, namespace, name)
        if ref in self._workloads:
            entry.fail("name", f"the workload {ref} is there twice", "list every workload once")
        if schedule and (kind != "CronJob" or not _SCHEDULE.fullmatch(schedule)):
            entry.fail(
                "schedule", f"{schedule[:80]!r} on a {kind}", "give a CronJob five fields (*/5 * * * *) or @hourly"
            )
        self._check_account(entry, ref, account)
        if transport is Transport.MTLS and not meshed:
            entry.fail("transport", "mtls on a workload with `meshed: false`", "remove one of the two")
        if identity is not None and transport is not Transport.MTLS:
            entry.fail("identity", "set on a workload of ours", "leave it out: our sidecars prove their workload")
        self._workloads[ref] = Workload(
            ref,
            kind,
            account,
            labels,
            with_opaque(entry, ports, opaque),
            meshed,
            schedule,
            transport,
            account_identity=transport is Transport.MTLS and identity != "workload",
            inspects=tuple(sorted(set(inspects))),
        )
        if inspects and not self._workloads[ref].has_sidecar:
            entry.fail("inspects", "set on a workload without a sidecar of ours", "leave it out: nobody could inspect")
        self._tell_apart(entry, self._workloads[ref])

    def _check_account(self, entry: Fields, ref: WorkloadRef, account: str) -> None:
        try:
            SpiffeId.for_workload(self._trust_domain, ref.namespace, account, ref.name)
        except CertError as error:
            entry.fail("serviceAccount", str(error), "use names that Kubernetes would take")

    def _tell_apart(self, entry: Fields, workload: Workload) -> None:
        """Who proves an account alone must be the only one that can prove it, or a rule for it would be one for all."""
        if not workload.meshed:
            return
        sharing = self._accounts.setdefault((workload.ref.namespace, workload.service_account), [])
        sharing.append(workload)
        alone = next((each for each in sharing if each.account_identity), None)
        if alone is not None and len(sharing) > 1:
            other = next(each for each in sharing if each is not alone)
            entry.fail(
                "serviceAccount",
                f"{workload.service_account!r} is the account of {alone.ref}, which proves no more than that, and of "
                f"{other.ref}",
                f"give {alone.ref} an account of its own, or `identity: workload` if its certificates name it",
            )

    def _instance(self, value: object) -> None:
        entry = entry_of(value)
        name = entry.take("name", _name)
        ref = entry.take("workload", self._known_workload)
        address = entry.take("address", own_address)
        ready = entry.take("ready", flag, True)
        meshed = entry.take("meshed", flag, True)
        account = entry.take("serviceAccount", text(), "")
        more = entry.take("moreAddresses", _more_addresses, ())
        uid = entry.take("uid", text(253), "")
        entry.finish()
        if account:
            self._check_account(entry, ref, account)
        key = f"{ref.namespace}/{name}"
        if key in self._instances:
            entry.fail("name", f"the instance {key} is there twice", "give every replica a name of its own")
        for at in (address, *more):
            self._occupy(entry, at, f"the instance {key}")
        self._instances[key] = Instance(name, ref, address, ready, meshed, account, more, uid)

    def _service(self, value: object) -> None:
        entry = entry_of(value)
        namespace, name = entry.take("namespace", _namespace_name), entry.take("name", _name)
        ref: WorkloadRef | None = entry.take("workload", lambda at: self._known_workload_of(namespace, at), None)
        address = entry.take("address", own_address, "")
        more = entry.take("moreAddresses", _more_addresses, ())
        ports = entry.take("ports", service_ports(self._workloads[ref] if ref is not None else None))
        entry.finish()
        listed = all(port.endpoints is not None for port in ports)
        if ref is None and not listed:
            entry.fail("workload", "missing", "name the workload behind it, or list the `endpoints` of every port")
        if not address and (more or not listed):
            entry.fail("address", "missing", "write the service's own address; only one with `endpoints` may have none")
        key = str(self._ref(entry, namespace, name))
        if key in self._services:
            entry.fail("name", f"the service {key} is there twice", "list every service once")
        for at in (address, *more):
            if at:
                self._occupy(entry, at, f"the service {key}")
        self._services[key] = Service(namespace, name, address, ref, ports, more)

    def _ref(self, entry: Fields, namespace: str, name: str) -> WorkloadRef:
        if namespace not in self._namespaces:
            if self._declared:
                entry.fail(
                    "namespace",
                    f"{namespace!r} is not among the namespaces",
                    "add it to `namespaces`, or leave that out",
                )
            self._namespaces[namespace] = Namespace(namespace)
        return WorkloadRef(namespace, name)

    def _known_workload(self, value: object) -> WorkloadRef:
        ref = _workload_ref(value)
        if ref not in self._workloads:
            near = Inventory(workloads=self._workloads).closest(ref)
            remedy = f"did you mean {' or '.join(near)}?" if near else "add it to `workloads`"
            raise Unfit(f"there is no workload {ref}", remedy)
        return ref

    def _known_workload_of(self, namespace: str, value: object) -> WorkloadRef:
        ref = self._known_workload(value)
        if ref.namespace != namespace:
            raise Unfit(f"{ref} is not in the service's namespace", "a service selects pods of its own namespace")
        return ref

    def _occupy(self, entry: Fields, address: str, owner: str) -> None:
        other = self._addresses.setdefault(address, owner)
        if other != owner:
            entry.fail("address", f"{address} is also the address of {other}", "an address belongs to one of them")


# --- checks


def _constant(name: str, wanted: str) -> Check[None]:
    def check(value: object) -> None:
        if value != wanted:
            raise Unfit(f"{shown(value)} is not known here", f"write {name}: {wanted}")

    return check


def _namespace_name(value: object) -> str:
    if value == EXTERNAL_NAMESPACE:
        raise Unfit("'-' stands for what is outside", "use a Kubernetes name")
    return namespace_name(value)


#: Of a workload, a service or an instance.
_name: Check[str] = parsed(lambda written: WorkloadRef.parse(f"x/{written}").name)
_workload_ref: Check[WorkloadRef] = parsed(WorkloadRef.parse)


#: An IPv4 or IPv6 network.
_network: Check[str] = parsed(lambda written: Selector(cidr=written).cidr)


def cluster_networks(value: object) -> tuple[str, ...]:
    """Networks, sorted, each once."""
    networks = items(_network, at_most=MAX_NETWORKS)(value)
    for index, network in enumerate(networks):
        if not network or network.endswith("/0"):
            raise Unfit("everything", "write the networks of the cluster's pods, services and nodes", f"[{index}]")
    return tuple(sorted(set(networks)))


def _labels(value: object) -> tuple[tuple[str, str], ...]:
    """Kubernetes labels, sorted."""
    if not isinstance(value, Mapping):
        raise Unfit(f"{shown(value)} is not a mapping", "write each label by its name, as `name: value`")
    for name, content in value.items():
        if not isinstance(name, str) or not _LABEL_KEY.fullmatch(name):
            raise Unfit("not a label key", "use [prefix/]name as in Kubernetes", f".{printable(str(name)[:80])}")
        if not isinstance(content, str) or not _LABEL_VALUE.fullmatch(content):
            raise Unfit(
                f"{shown(content)} is not a label value", "quote it; at most 63 letters, digits, -_.", f".{name}"
            )
    return tuple(sorted(value.items()))


#: The further addresses of an instance or a service: one of the other IP family, as Kubernetes gives them.
_more_addresses: Check[tuple[str, ...]] = items(own_address, at_most=8)
