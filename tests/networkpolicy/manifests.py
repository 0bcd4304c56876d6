"""Namespaces, pods and NetworkPolicies as the Kubernetes API reference defines them, read from manifests.

What the API server would refuse is refused here too: a policy that cannot be stored protects nobody.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

PROTOCOLS = ("TCP", "UDP", "SCTP")
_PORT_NAME = re.compile(r"(?=.*[a-z])(?!.*--)[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?")  # IANA_SVC_NAME

type Manifest = Mapping[str, Any]
type Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class InvalidManifest(ValueError):
    """The API server would not take it."""


# Objects --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ContainerPort:
    number: int
    protocol: str
    name: str


@dataclass(frozen=True)
class Pod:
    namespace: str
    name: str
    labels: Mapping[str, str] = field(hash=False)
    addresses: tuple[Address, ...]
    ports: tuple[ContainerPort, ...]
    annotations: Mapping[str, str] = field(hash=False)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    def named(self, name: str, protocol: str) -> set[int]:
        """The numbers of the container ports with this name and protocol."""
        return {port.number for port in self.ports if port.name == name and port.protocol == protocol}


@dataclass(frozen=True)
class Requirement:
    key: str
    operator: str
    values: frozenset[str]

    def matches(self, labels: Mapping[str, str]) -> bool:
        match self.operator:
            case "In":
                return labels.get(self.key) in self.values and self.key in labels
            case "NotIn":  # also where there is no such label
                return self.key not in labels or labels[self.key] not in self.values
            case "Exists":
                return self.key in labels
            case _:
                return self.key not in labels


@dataclass(frozen=True)
class LabelSelector:
    """All requirements hold; with none, everything is selected. A selector that is not there is None instead."""

    requirements: tuple[Requirement, ...]

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(requirement.matches(labels) for requirement in self.requirements)


@dataclass(frozen=True)
class PolicyPeer:
    pods: LabelSelector | None = None
    namespaces: LabelSelector | None = None
    cidr: ipaddress.IPv4Network | ipaddress.IPv6Network | None = None
    excepted: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()


@dataclass(frozen=True)
class PolicyPort:
    """:param port: None for every port of the protocol"""

    protocol: str
    port: int | str | None
    end: int | None

    def matches(self, protocol: str, port: int, destination: Pod | None) -> bool:
        if protocol != self.protocol:
            return False
        if self.port is None:
            return True
        if isinstance(self.port, str):  # a name means what the destination's containers call so
            return destination is not None and port in destination.named(self.port, protocol)
        return self.port <= port <= (self.end if self.end is not None else self.port)


@dataclass(frozen=True)
class PolicyRule:
    """Empty ``peers`` means everybody, empty ``ports`` every port."""

    peers: tuple[PolicyPeer, ...]
    ports: tuple[PolicyPort, ...]


@dataclass(frozen=True)
class Policy:
    namespace: str
    name: str
    pods: LabelSelector
    types: frozenset[str]
    ingress: tuple[PolicyRule, ...]
    egress: tuple[PolicyRule, ...]

    def selects(self, pod: Pod) -> bool:
        return pod.namespace == self.namespace and self.pods.matches(pod.labels)


# Reading --------------------------------------------------------------------------------------------------------------


def flattened(manifests: Iterable[Manifest]) -> Iterator[Manifest]:
    for manifest in manifests:
        if not isinstance(manifest, Mapping):
            raise InvalidManifest(f"{type(manifest).__name__} is not a manifest")
        if str(manifest.get("kind", "")).endswith("List"):
            yield from flattened(manifest.get("items") or [])
        else:
            yield manifest


def once(found: dict[Any, Any], key: Any, value: Any, kind: str) -> None:
    if key in found:
        raise InvalidManifest(f"{kind} {key} is there twice")
    found[key] = value


def meta(manifest: Manifest, version: str, kind: str) -> Manifest:
    if manifest.get("apiVersion") != version:
        raise InvalidManifest(f"{kind}: apiVersion is {manifest.get('apiVersion')!r}, not {version}")
    return _mapping(manifest.get("metadata"), f"{kind}.metadata")


def _mapping(value: Any, where: str, known: Iterable[str] | None = None) -> Manifest:
    if not isinstance(value, Mapping):
        raise InvalidManifest(f"{where}: {value!r} is not a mapping")
    if known is not None and (unknown := set(value) - set(known)):
        raise InvalidManifest(f"{where}: unknown field {sorted(unknown)[0]!r}")
    return value


def _list(value: Any, where: str) -> list[Any]:
    """A list; null is the same as an absent one."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidManifest(f"{where}: {value!r} is not a list")
    return value


def string(mapping: Manifest, key: str, where: str) -> str:
    value = mapping.get(key)
    if not isinstance(value, str) or not value:
        raise InvalidManifest(f"{where}.{key}: {value!r} is not a name")
    return value


def labels(mapping: Manifest, key: str, where: str) -> dict[str, str]:
    found = mapping.get(key)
    if found is None:
        return {}
    for name, value in _mapping(found, f"{where}.{key}").items():
        if not isinstance(name, str) or not isinstance(value, str):  # unquoted yes, 1 or null in YAML
            raise InvalidManifest(f"{where}.{key}: {name!r}: {value!r} is not text")
    return dict(found)


def read_pod(manifest: Manifest) -> Pod | None:
    metadata = meta(manifest, "v1", "Pod")
    namespace, name = metadata.get("namespace", "default"), string(metadata, "name", "Pod")
    where = f"Pod {namespace}/{name}"
    spec, status = manifest.get("spec") or {}, manifest.get("status") or {}
    if spec.get("hostNetwork"):
        raise InvalidManifest(f"{where}: what policies mean for pods on the host's network is undefined")
    if status.get("phase") in ("Succeeded", "Failed"):
        return None  # it ended; its address may be another pod's by now
    texts = {entry["ip"] for entry in status.get("podIPs") or []} | {status.get("podIP") or ""} - {""}
    ports = tuple(
        ContainerPort(
            _number(port.get("containerPort"), f"{where}: containerPort"),
            _protocol(port.get("protocol", "TCP"), where),
            port.get("name", ""),
        )
        for container in _list(spec.get("containers"), f"{where}: containers")
        for port in _list(container.get("ports"), f"{where}: ports")
    )
    addresses = tuple(sorted((ipaddress.ip_address(text) for text in texts), key=str))
    return Pod(
        namespace, name, labels(metadata, "labels", where), addresses, ports, labels(metadata, "annotations", where)
    )


def read_policy(manifest: Manifest) -> Policy:
    metadata = meta(manifest, "networking.k8s.io/v1", "NetworkPolicy")
    namespace, name = metadata.get("namespace", "default"), string(metadata, "name", "NetworkPolicy")
    where = f"NetworkPolicy {namespace}/{name}"
    spec = _mapping(manifest.get("spec"), f"{where}: spec", ("podSelector", "policyTypes", "ingress", "egress"))
    ingress = _list(spec.get("ingress"), f"{where}: ingress")
    egress = _list(spec.get("egress"), f"{where}: egress")
    types = frozenset(_list(spec.get("policyTypes"), f"{where}: policyTypes"))
    if not types <= {"Ingress", "Egress"}:
        raise InvalidManifest(f"{where}: policyTypes: {sorted(types)}")
    if not types:  # always Ingress; Egress where there are egress rules
        types = frozenset(("Ingress", "Egress") if egress else ("Ingress",))
    return Policy(
        namespace,
        name,
        _read_selector(spec.get("podSelector") or {}, f"{where}: podSelector"),
        types,
        tuple(_read_rule(rule, "from", f"{where}: ingress[{index}]") for index, rule in enumerate(ingress)),
        tuple(_read_rule(rule, "to", f"{where}: egress[{index}]") for index, rule in enumerate(egress)),
    )


def _read_rule(rule: Any, side: str, where: str) -> PolicyRule:
    rule = _mapping(rule, where, ("ports", side))
    peers = _list(rule.get(side), f"{where}.{side}")
    ports = _list(rule.get("ports"), f"{where}.ports")
    return PolicyRule(
        tuple(_read_peer(peer, f"{where}.{side}[{index}]") for index, peer in enumerate(peers)),
        tuple(_read_port(port, f"{where}.ports[{index}]") for index, port in enumerate(ports)),
    )


def _read_peer(peer: Any, where: str) -> PolicyPeer:
    peer = _mapping(peer, where, ("podSelector", "namespaceSelector", "ipBlock"))
    pods, namespaces, block = peer.get("podSelector"), peer.get("namespaceSelector"), peer.get("ipBlock")
    if block is not None:
        if pods is not None or namespaces is not None:
            raise InvalidManifest(f"{where}: ipBlock stands alone")
        block = _mapping(block, f"{where}.ipBlock", ("cidr", "except"))
        cidr = _network(block.get("cidr"), f"{where}.ipBlock.cidr")
        holes = tuple(_network(hole, f"{where}.ipBlock.except") for hole in _list(block.get("except"), where))
        for hole in holes:
            inside = hole.version == cidr.version and hole != cidr and hole.subnet_of(cidr)
            if not inside:
                raise InvalidManifest(f"{where}.ipBlock.except: {hole} is not a strict subset of {cidr}")
        return PolicyPeer(cidr=cidr, excepted=holes)
    if pods is None and namespaces is None:
        raise InvalidManifest(f"{where}: must specify a peer")
    return PolicyPeer(
        pods=_read_selector(pods, f"{where}.podSelector") if pods is not None else None,
        namespaces=_read_selector(namespaces, f"{where}.namespaceSelector") if namespaces is not None else None,
    )


def _read_port(port: Any, where: str) -> PolicyPort:
    port = _mapping(port, where, ("protocol", "port", "endPort"))
    number, end = port.get("port"), port.get("endPort")
    if isinstance(number, str):
        if not _PORT_NAME.fullmatch(number):
            raise InvalidManifest(f"{where}.port: {number!r} is not a port name")
    elif number is not None:
        number = _number(number, f"{where}.port")
    if end is not None:
        end = _number(end, f"{where}.endPort")
        if not isinstance(number, int) or end < number:
            raise InvalidManifest(f"{where}.endPort: {end} without a number in port that is not above it")
    return PolicyPort(_protocol(port.get("protocol") or "TCP", where), number, end)


def _read_selector(selector: Any, where: str) -> LabelSelector:
    selector = _mapping(selector, where, ("matchLabels", "matchExpressions"))
    requirements = [
        Requirement(key, "In", frozenset({value})) for key, value in labels(selector, "matchLabels", where).items()
    ]
    for index, entry in enumerate(_list(selector.get("matchExpressions"), where)):
        here = f"{where}.matchExpressions[{index}]"
        entry = _mapping(entry, here, ("key", "operator", "values"))
        operator, values = entry.get("operator"), _list(entry.get("values"), f"{here}.values")
        if operator not in ("In", "NotIn", "Exists", "DoesNotExist"):
            raise InvalidManifest(f"{here}.operator: {operator!r}")
        if bool(values) != (operator in ("In", "NotIn")):
            raise InvalidManifest(f"{here}.values: must be {'set' if not values else 'empty'} with {operator}")
        requirements.append(Requirement(string(entry, "key", here), operator, frozenset(values)))
    return LabelSelector(tuple(requirements))


def _network(text: Any, where: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        if not isinstance(text, str) or "/" not in text:
            raise ValueError(f"{text!r} is not a CIDR")
        return ipaddress.ip_network(text, strict=False)  # the API server takes host bits and ignores them
    except ValueError as error:
        raise InvalidManifest(f"{where}: {error}") from None


def _number(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 65535:
        raise InvalidManifest(f"{where}: {value!r} is not a port")
    return value


def _protocol(value: Any, where: str) -> str:
    if value not in PROTOCOLS:
        raise InvalidManifest(f"{where}: {value!r} is not TCP, UDP or SCTP")
    return str(value)
