"""What we keep of each object: values that are equal when nothing changed that matters.

Heartbeats, conditions' times, managed fields, images, environments: all of that is dropped as soon as it is read, so
that a cluster costs memory by its size and not by what people write into its objects.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from controller.injection.names import CONTAINERS, INJECTION, SIDECAR
from controller.kube.inventory.reading import (
    Labels,
    Object,
    Shared,
    addresses,
    labels,
    needed,
    number,
    part,
    parts,
    shared,
    text,
    word,
    words,
)
from controller.kube.inventory.said import NAMESPACE_SILENT, SILENT, NamespaceSaid, Said, namespace_said, said_of
from controller.kube.inventory.selecting import LabelSelector
from controller.kube.reflector import Unreadable
from controller.memory import forgotten_on_demand
from graph.model import Port, Protocol

#: A port that a person may give in a specification; what is beyond is no pod that anybody needs.
MAX_PORTS = 256
#: Of a service, and of a slice: Kubernetes bounds the one by bytes alone, and the other by 20,000. What is beyond leads
#: to nobody.
MAX_SERVICE_PORTS = 1_000


@dataclass(frozen=True, slots=True)
class Owner:
    """The controller that an object says it belongs to."""

    group: str
    kind: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class Template:
    """What all pods of an owner are made from, or what one pod is.

    :param sidecar: whether it holds our container
    :param wanted: of the injection label or annotation: None where neither says anything
    :param said: by other annotations
    """

    labels: Labels
    account: str
    ports: tuple[Port, ...]
    host_network: bool
    sidecar: bool
    wanted: bool | None
    said: Said = SILENT


@dataclass(frozen=True, slots=True)
class PodFacts:
    """:param ready: what its condition says; ``ending`` that somebody deleted it, and it still runs"""

    namespace: str
    name: str
    uid: str
    created: str
    owner: Owner | None
    spec: Template
    addresses: tuple[str, ...]
    ready: bool
    ending: bool


@dataclass(frozen=True, slots=True)
class OwnerFacts:
    """A Deployment, StatefulSet, DaemonSet, CronJob, or, by metadata alone, a ReplicaSet or a Job.

    :param template: None where metadata alone is known
    :param selector: which pods can be its own; None where that is not known
    :param ending: somebody deleted it, and it waits for what it owns, or for what it owns to be let go
    """

    kind: str
    namespace: str
    name: str
    uid: str
    created: str
    owner: Owner | None = None
    template: Template | None = None
    selector: LabelSelector | None = None
    schedule: str = ""
    ending: bool = False


@dataclass(frozen=True, slots=True)
class ServicePortFacts:
    """:param target: of the pods, where it is a number; 0 where it is a name"""

    name: str
    number: int
    protocol: Protocol
    target: int
    app_protocol: str


@dataclass(frozen=True, slots=True)
class ServiceFacts:
    """:param addresses: its cluster IPs; none when it is headless
    :param said: by annotations of its own
    """

    namespace: str
    name: str
    addresses: tuple[str, ...]
    selector: Labels
    ports: tuple[ServicePortFacts, ...]
    said: Said = SILENT


@dataclass(frozen=True, slots=True)
class SliceEndpoint:
    """:param serving: it would answer; ``ready`` also that it is not ending (or that its service does not mind)"""

    addresses: tuple[str, ...]
    ready: bool
    serving: bool


@dataclass(frozen=True, slots=True)
class SlicePort:
    name: str
    number: int
    protocol: Protocol
    app_protocol: str


@dataclass(frozen=True, slots=True)
class SliceFacts:
    namespace: str
    service: str
    ports: tuple[SlicePort, ...]
    endpoints: tuple[SliceEndpoint, ...]


@dataclass(frozen=True, slots=True)
class NamespaceFacts:
    name: str
    labels: Labels
    said: NamespaceSaid = NAMESPACE_SILENT

    @property
    def injected(self) -> bool:
        return (INJECTION, "enabled") in self.labels

    @property
    def for_pods(self) -> tuple[bool, NamespaceSaid]:
        """What its workloads depend on."""
        return self.injected, self.said


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """:param networks: of its pods; ``addresses`` its own, from which its kubelet probes"""

    name: str
    networks: tuple[str, ...]
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RangeFacts:
    """Networks of which services get their addresses."""

    networks: tuple[str, ...]


#: The pods of an owner are alike, and are listed one after the other.
_TEMPLATES = Shared[Template](512)
_OWNERS = Shared[Owner](512)
forgotten_on_demand(_TEMPLATES.forget)
forgotten_on_demand(_OWNERS.forget)
#: Labels and ports of a template that is worth keeping for the next pod; 1,024 of that size take 12 MB at most.
_ORDINARY = 32

# --- readers, one for each kind; each raises Unreadable


def pod(document: Object) -> PodFacts:
    metadata, status = part(document, "metadata"), part(document, "status")
    return PodFacts(
        shared(needed(metadata, "namespace")),
        needed(metadata, "name"),
        needed(metadata, "uid"),
        text(metadata, "creationTimestamp"),
        owner(metadata),
        template(document),
        _pod_addresses(status),
        any(text(each, "type") == "Ready" and text(each, "status") == "True" for each in parts(status, "conditions")),
        _ending(metadata),
    )


def _ending(metadata: Object) -> bool:
    return metadata.get("deletionTimestamp") is not None


def _pod_addresses(status: Object) -> tuple[str, ...]:
    listed = tuple(text(each, "ip") for each in parts(status, "podIPs"))
    return addresses(listed or (text(status, "podIP"),))


def template(document: Object) -> Template:
    """A pod, or a pod template."""
    metadata, spec = part(document, "metadata"), part(document, "spec")
    found = labels(metadata)
    ours = [each for kind in ("containers", "initContainers") for each in parts(spec, kind)]
    said = dict(found).get(INJECTION) or word(part(metadata, "annotations"), INJECTION)
    made = Template(
        found,
        word(spec, "serviceAccountName") or "default",
        _container_ports(spec),
        spec.get("hostNetwork") is True,
        any(word(each, "name") == SIDECAR for each in ours),
        {"enabled": True, "disabled": False}.get(said),
        said_of(metadata),
    )
    return _TEMPLATES.one(made) if len(made.labels) + len(made.ports) <= _ORDINARY else made


def _container_ports(spec: Object) -> tuple[Port, ...]:
    """What the application's containers declare; a name that is there twice names nothing."""
    found: dict[tuple[int, Protocol], str] = {}
    for container in parts(spec, "containers"):
        if word(container, "name") in CONTAINERS:
            continue
        for each in parts(container, "ports"):
            declared = number(each, "containerPort"), _protocol(each)
            if declared[0] and len(found) < MAX_PORTS:
                found.setdefault(declared, word(each, "name"))
    names = [name for name in found.values() if name]
    return tuple(
        Port(at, protocol, name if names.count(name) == 1 else "") for (at, protocol), name in sorted(found.items())
    )


def _protocol(document: Object) -> Protocol:
    said = word(document, "protocol") or "TCP"
    try:
        return Protocol(said)
    except ValueError:
        raise Unreadable(f"{said!r:.40} is not a protocol") from None


def owner(metadata: Object) -> Owner | None:
    """Whom the object says that it is controlled by: one at most (Kubernetes, "Owners and Dependents")."""
    for each in parts(metadata, "ownerReferences"):
        if each.get("controller") is True:
            group = word(each, "apiVersion").rpartition("/")[0]
            found = Owner(shared(group), shared(needed(each, "kind")), needed(each, "name"), needed(each, "uid"))
            return _OWNERS.one(found)
    return None


def owner_of_kind(kind: str) -> Any:
    """A reader of objects that own pods."""

    def read(document: Object) -> OwnerFacts:
        metadata, spec = part(document, "metadata"), part(document, "spec")
        jobs = part(part(spec, "jobTemplate"), "spec") if kind == "CronJob" else spec
        return OwnerFacts(
            kind,
            shared(needed(metadata, "namespace")),
            needed(metadata, "name"),
            needed(metadata, "uid"),
            text(metadata, "creationTimestamp"),
            owner(metadata),
            template(part(jobs, "template")) if jobs else None,
            LabelSelector.read(part(spec, "selector")) if kind != "CronJob" and "selector" in spec else None,
            word(spec, "schedule") if kind == "CronJob" else "",
            _ending(metadata),
        )

    return read


def bare_owner_of_kind(kind: str) -> Any:
    """A reader of metadata alone, for kinds of which there are many and which are on the way to the owner only."""

    def read(document: Object) -> OwnerFacts:
        metadata = part(document, "metadata")
        return OwnerFacts(
            kind,
            shared(needed(metadata, "namespace")),
            needed(metadata, "name"),
            needed(metadata, "uid"),
            text(metadata, "creationTimestamp"),
            owner(metadata),
            ending=_ending(metadata),
        )

    return read


def service(document: Object) -> ServiceFacts:
    metadata, spec = part(document, "metadata"), part(document, "spec")
    outside = word(spec, "type") == "ExternalName"  # a name in DNS and nothing else
    listed = () if outside else words(spec, "clusterIPs") or (text(spec, "clusterIP"),)
    ports = []
    for each in itertools.islice(parts(spec, "ports"), MAX_SERVICE_PORTS):
        target = number(each, "targetPort")
        named = isinstance(each.get("targetPort"), str)
        ports.append(
            ServicePortFacts(
                word(each, "name"),
                number(each, "port"),
                _protocol(each),
                target or (0 if named else number(each, "port")),
                word(each, "appProtocol"),
            )
        )
    return ServiceFacts(
        shared(needed(metadata, "namespace")),
        needed(metadata, "name"),
        addresses(listed),
        labels(spec, "selector"),
        () if outside else tuple(each for each in ports if each.number),
        said_of(metadata),
    )


def endpoint_slice(document: Object) -> SliceFacts:
    metadata = part(document, "metadata")
    by_name = word(document, "addressType") == "FQDN"  # nothing has such an address
    endpoints = []
    for each in () if by_name else parts(document, "endpoints"):
        conditions = part(each, "conditions")
        ready = conditions.get("ready") is not False  # unknown counts as ready (discovery.k8s.io/v1)
        serving = conditions.get("serving")
        endpoints.append(
            SliceEndpoint(addresses(words(each, "addresses")), ready, serving if isinstance(serving, bool) else ready)
        )
    return SliceFacts(
        shared(needed(metadata, "namespace")),
        word(part(metadata, "labels"), "kubernetes.io/service-name"),
        tuple(
            SlicePort(word(each, "name"), number(each, "port"), _protocol(each), word(each, "appProtocol"))
            for each in itertools.islice(parts(document, "ports"), MAX_SERVICE_PORTS)
            if number(each, "port")
        ),
        tuple(endpoints),
    )


def namespace(document: Object) -> NamespaceFacts:
    metadata = part(document, "metadata")
    return NamespaceFacts(needed(metadata, "name"), labels(metadata), namespace_said(metadata))


def node(document: Object) -> NodeFacts:
    metadata, spec, status = (part(document, name) for name in ("metadata", "spec", "status"))
    listed = words(spec, "podCIDRs") or tuple(each for each in (word(spec, "podCIDR"),) if each)
    own = tuple(word(each, "address") for each in parts(status, "addresses") if word(each, "type") == "InternalIP")
    return NodeFacts(needed(metadata, "name"), listed, addresses(own))


def service_range(document: Object) -> RangeFacts:
    return RangeFacts(words(part(document, "spec"), "cidrs"))
