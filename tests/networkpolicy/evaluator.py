"""What NetworkPolicies allow, by the Kubernetes specification alone.

Written from https://kubernetes.io/docs/concepts/services-networking/network-policies/ and the API reference of
networking.k8s.io/v1, and from nothing in this repository, so that it can contradict the compiler. Where the
specification leaves something to the network plugin, the choice made here is said at its place.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.networkpolicy.manifests import (
    PROTOCOLS,
    Address,
    InvalidManifest,
    Manifest,
    Pod,
    Policy,
    PolicyPeer,
    flattened,
    labels,
    meta,
    once,
    read_pod,
    read_policy,
    string,
)

#: Set by the API server on every namespace and not to be changed (Kubernetes 1.22).
NAME_LABEL = "kubernetes.io/metadata.name"

type Allowed = tuple[str, str, int, str]  # source pod, destination pod (namespace/name), port, protocol


@dataclass(frozen=True)
class Party:
    """One end of a connection: a pod, or an address that is no pod's."""

    pod: Pod | None
    addresses: tuple[Address, ...]


class Cluster:
    """Namespaces, pods and policies, and what may connect to what.

    :param manifests: dictionaries of kinds Namespace, Pod, NetworkPolicy and List; other kinds are an error
    :param node_addresses: addresses of nodes; traffic between a pod and its node is never blocked, and which node a
        pod is on is not known here, so these reach every pod and are reached by every pod
    :raises InvalidManifest: naming the object and the field
    """

    def __init__(self, manifests: Iterable[Manifest], node_addresses: Iterable[str] = ()) -> None:
        self.namespaces: dict[str, Mapping[str, str]] = {}
        self.pods: dict[str, Pod] = {}
        self.policies: dict[str, Policy] = {}
        self._nodes = {ipaddress.ip_address(address) for address in node_addresses}
        self._by_address: dict[Address, Pod] = {}
        self._selected: dict[tuple[str, str], list[Policy]] = {}
        for manifest in flattened(manifests):
            self._add(manifest)
        placed = [(name, pod.namespace) for name, pod in self.pods.items()]
        placed += [(name, policy.namespace) for name, policy in self.policies.items()]
        for name, namespace in placed:
            if namespace not in self.namespaces:
                raise InvalidManifest(f"{name}: there is no namespace {namespace!r}")

    @classmethod
    def read(cls, directory: Path) -> Cluster:
        """Read ``inventory/*.yaml`` and ``networkpolicies/*.yaml``, each with any number of documents.

        :raises FileNotFoundError: when one of both folders is not there or holds no such file
        """
        manifests: list[Manifest] = []
        for folder in ("inventory", "networkpolicies"):
            files = sorted((directory / folder).glob("*.yaml"))
            if not files:
                raise FileNotFoundError(f"{directory / folder} holds no *.yaml")
            for file in files:
                with file.open(encoding="utf-8") as stream:
                    manifests += [document for document in yaml.safe_load_all(stream) if document is not None]
        return cls(manifests)

    def pod_to_pod(self, source: str, destination: str, port: int, protocol: str = "TCP") -> bool:
        """Whether pod ``source`` may connect to pod ``destination`` (both ``namespace/name``)."""
        return self._allowed(self._pod(source), self._pod(destination), port, protocol)

    def pod_to_address(self, source: str, address: str, port: int, protocol: str = "TCP") -> bool:
        """Whether a pod may connect to an IP address. An address of a pod is that pod."""
        return self._allowed(self._pod(source), self._party(address), port, protocol)

    def address_to_pod(self, address: str, destination: str, port: int, protocol: str = "TCP") -> bool:
        """Whether an IP address may connect to a pod. An address of a pod is that pod."""
        return self._allowed(self._party(address), self._pod(destination), port, protocol)

    def isolated(self, pod: str, direction: str) -> bool:
        """Whether any policy selects the pod for ``Ingress`` or ``Egress``."""
        return bool(self._selecting(self.pods[pod], direction))

    def allowed(self, ports: Iterable[tuple[int, str]] | None = None) -> frozenset[Allowed]:
        """The whole allowed relation between different pods.

        :param ports: the ports to ask about; by default :meth:`atoms`, between which no policy makes a difference
        """
        asked = list(ports) if ports is not None else self.atoms()
        return frozenset(
            (source, destination, port, protocol)
            for source in self.pods
            for destination in self.pods
            if source != destination
            for port, protocol in asked
            if self.pod_to_pod(source, destination, port, protocol)
        )

    def atoms(self) -> list[tuple[int, str]]:
        """One (port, protocol) at least of every class that the policies and the pods tell apart."""
        numbers = {1, 65535}
        for pod in self.pods.values():
            numbers.update(port.number for port in pod.ports)
        for policy in self.policies.values():
            for rule in (*policy.ingress, *policy.egress):
                for port in rule.ports:
                    if isinstance(port.port, int):
                        numbers |= {port.port, port.end or port.port}
        numbers |= {number + step for number in numbers for step in (-1, 1)}
        return [(number, protocol) for number in sorted(numbers) if 1 <= number <= 65535 for protocol in PROTOCOLS]

    # Inside

    def _allowed(self, source: Party, destination: Party, port: int, protocol: str) -> bool:
        if protocol not in PROTOCOLS or not 1 <= port <= 65535:
            raise ValueError(f"{port}/{protocol} is not a port")  # other protocols are undefined by the API
        if source.pod is not None and source.pod == destination.pod:
            return True  # a pod cannot block access to itself
        if self._nodes.intersection(source.addresses) or self._nodes.intersection(destination.addresses):
            return True
        return self._side("Egress", source, destination, destination, port, protocol) and self._side(
            "Ingress", destination, source, destination, port, protocol
        )

    def _side(self, direction: str, mine: Party, other: Party, destination: Party, port: int, protocol: str) -> bool:
        if mine.pod is None:
            return True
        policies = self._selecting(mine.pod, direction)
        if not policies:
            return True
        return any(
            (not rule.ports or any(each.matches(protocol, port, destination.pod) for each in rule.ports))
            and (not rule.peers or any(self._is(peer, other, policy.namespace) for peer in rule.peers))
            for policy in policies
            for rule in (policy.ingress if direction == "Ingress" else policy.egress)
        )

    def _is(self, peer: PolicyPeer, party: Party, policy_namespace: str) -> bool:
        if peer.cidr is not None:
            # Meant for addresses outside; the conformance tests apply it to pods' addresses too, and so do we.
            return any(
                address in peer.cidr and not any(address in hole for hole in peer.excepted)
                for address in party.addresses
            )
        if party.pod is None:
            return False
        if peer.namespaces is None:
            in_namespace = party.pod.namespace == policy_namespace
        else:
            in_namespace = peer.namespaces.matches(self.namespaces[party.pod.namespace])
        return in_namespace and (peer.pods is None or peer.pods.matches(party.pod.labels))

    def _selecting(self, pod: Pod, direction: str) -> list[Policy]:
        key = (str(pod), direction)
        if key not in self._selected:
            self._selected[key] = [
                policy for policy in self.policies.values() if direction in policy.types and policy.selects(pod)
            ]
        return self._selected[key]

    def _pod(self, name: str) -> Party:
        pod = self.pods[name]
        return Party(pod, pod.addresses)

    def _party(self, address: str) -> Party:
        parsed = ipaddress.ip_address(address)
        pod = self._by_address.get(parsed)
        return Party(pod, pod.addresses if pod is not None else (parsed,))

    def _add(self, manifest: Manifest) -> None:
        kind = manifest.get("kind")
        if kind == "Namespace":
            metadata = meta(manifest, "v1", kind)
            name = string(metadata, "name", "Namespace")
            once(self.namespaces, name, {**labels(metadata, "labels", name), NAME_LABEL: name}, kind)
        elif kind == "Pod":
            pod = read_pod(manifest)
            if pod is None:
                return
            once(self.pods, str(pod), pod, kind)
            for address in pod.addresses:
                once(self._by_address, address, pod, f"address of pod {pod}")
        elif kind == "NetworkPolicy":
            policy = read_policy(manifest)
            once(self.policies, f"{policy.namespace}/{policy.name}", policy, kind)
        else:
            raise InvalidManifest(f"{kind!r} is not a kind that says who may connect to whom")
