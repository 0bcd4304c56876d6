"""Kubernetes manifests as text: the NetworkPolicies, and the inventory as the Pods and Namespaces that it stands for.

Output is deterministic: the same input gives the same bytes, so that a folder of it can be kept in git and compared.
The pods are for tools that evaluate policies. They say who is where, not what runs there: the image is a placeholder.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping

import yaml

from controller.compiler.networkpolicy import NAMESPACE_LABEL, WORKLOAD_ANNOTATION, Manifest
from graph.model import Instance, Workload

PLACEHOLDER_IMAGE = "placeholder"
MAX_FILE_NAME = 255

_PORT_NAME = re.compile(r"(?=.*[a-z])(?!.*--)[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?")  # RFC 6335, IANA_SVC_NAME


def network_policy_files(policies: Iterable[Manifest]) -> dict[str, str]:
    """One file for each policy.

    :returns: file name (``<namespace>.<policy>.yaml``) to YAML text; no namespace has a dot, so names never collide
    """
    files = {}
    for policy in policies:
        metadata = policy["metadata"]
        assert isinstance(metadata, dict)
        files[_file_name(f"{metadata['namespace']}.{metadata['name']}")] = to_yaml([policy])
    return files


def inventory_files(
    workloads: Iterable[Workload],
    instances: Iterable[Instance],
    namespaces: Mapping[str, Iterable[tuple[str, str]]] | None = None,
) -> dict[str, str]:
    """The inventory as Namespaces and Pods.

    :param namespaces: labels of namespaces by name; those of the workloads are there without being named
    :returns: file name to YAML text: ``namespaces.yaml`` and ``pods.<namespace>.yaml``
    """
    by_ref = {workload.ref: workload for workload in workloads}
    given = dict(namespaces or {})
    names = sorted({ref.namespace for ref in by_ref} | set(given))
    files = {"namespaces.yaml": to_yaml(namespace_manifest(name, given.get(name, ())) for name in names)}
    pods: dict[str, list[Manifest]] = {}
    for instance in sorted(instances, key=lambda each: (each.workload.namespace, each.name)):
        pods.setdefault(instance.workload.namespace, []).append(pod_manifest(by_ref[instance.workload], instance))
    for namespace, manifests in pods.items():
        files[f"pods.{namespace}.yaml"] = to_yaml(manifests)
    return files


def namespace_manifest(name: str, labels: Iterable[tuple[str, str]] = ()) -> Manifest:
    """A Namespace with the label that the API server gives every one."""
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": dict(sorted({**dict(labels), NAMESPACE_LABEL: name}.items()))},
    }


def pod_manifest(workload: Workload, instance: Instance) -> Manifest:
    """One replica as a Pod with its address, labels, account and container ports."""
    metadata: Manifest = {"name": instance.name, "namespace": workload.ref.namespace}
    if workload.labels:
        metadata["labels"] = dict(sorted(workload.labels))
    metadata["annotations"] = {WORKLOAD_ANNOTATION: str(workload.ref)}
    container: Manifest = {"name": "app", "image": PLACEHOLDER_IMAGE}
    if workload.ports:
        container["ports"] = _container_ports(workload)
    status: Manifest = {"phase": "Running"}
    if instance.address:
        status |= {"podIP": instance.address, "podIPs": [{"ip": instance.address}]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"serviceAccountName": workload.service_account, "containers": [container]},
        "status": status,
    }


def _container_ports(workload: Workload) -> list[Manifest]:
    """Each port once. A name that Kubernetes would refuse, or that is there already, is left out."""
    entries: dict[tuple[int, str], Manifest] = {}
    names: set[str] = set()
    for port in sorted(workload.ports, key=lambda each: (each.number, each.protocol)):
        entry: Manifest = {"containerPort": port.number, "protocol": str(port.protocol)}
        if (port.number, str(port.protocol)) in entries:
            continue
        if _PORT_NAME.fullmatch(port.name) and port.name not in names:
            names.add(port.name)
            entry["name"] = port.name
        entries[port.number, str(port.protocol)] = entry
    return list(entries.values())


def to_yaml(manifests: Iterable[Manifest]) -> str:
    """YAML documents, each behind ``---``; text that YAML 1.1 would read as something else is quoted."""
    # no aliases: two equal parts are written twice, as people and other parsers expect
    return yaml.dump_all(manifests, Dumper=_Plain, sort_keys=False, explicit_start=True, allow_unicode=True)


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


def _file_name(stem: str) -> str:
    name = f"{stem}.yaml"
    if len(name) <= MAX_FILE_NAME:
        return name
    return f"{stem[: MAX_FILE_NAME - 22]}-{hashlib.sha256(stem.encode()).hexdigest()[:16]}.yaml"
