"""The demo's files: the mesh as Kubernetes manifests, and the NetworkPolicies that were learned for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hedgerow.local.description import CONTROLLER, PlacedPod
from hedgerow.local.errors import LocalMeshError

WORKLOAD_ANNOTATION = "hedgerow.dev/workload"


def namespace_manifests(pods: Iterable[PlacedPod]) -> list[dict[str, Any]]:
    names = sorted({pod.spec.ref.namespace for pod in pods})
    return [
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
        }
        for name in names
    ]


def pod_manifest(pod: PlacedPod) -> dict[str, Any]:
    """A pod as the API server would show it, as far as NetworkPolicies are concerned."""
    spec = pod.spec
    ports = [{"name": port.name, "containerPort": port.number, "protocol": str(port.protocol)} for port in spec.ports]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod.name,
            "namespace": spec.ref.namespace,
            "labels": spec.pod_labels(),
            "annotations": {WORKLOAD_ANNOTATION: str(spec.ref)},
        },
        "spec": {
            "serviceAccountName": spec.service_account,
            "containers": [{"name": spec.ref.name, "image": f"hedgerow.dev/local/{spec.ref.name}:0", "ports": ports}],
        },
        "status": {"phase": "Running", "podIP": pod.address, "podIPs": [{"ip": pod.address}]},
    }


def prepare(folder: Path) -> None:
    """Make the folders that are written to, before anything is started.

    :raises LocalMeshError: when that is not possible
    """
    for part in ("networkpolicies", "inventory"):
        try:
            (folder / part).mkdir(parents=True, exist_ok=True)
            probe = folder / part / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise _unwritable(folder / part, error) from None


def write_inventory(folder: Path, pods: Sequence[PlacedPod], controller: str) -> None:
    """Write ``pods.yaml`` and ``namespaces.yaml``.

    :param controller: the controller's address
    """
    whole = [PlacedPod(CONTROLLER.pod_names()[0], CONTROLLER, 0, controller), *pods]
    _write(folder / "namespaces.yaml", namespace_manifests(whole))
    _write(folder / "pods.yaml", [pod_manifest(pod) for pod in whole])


def write_policies(folder: Path, policies: Sequence[Mapping[str, Any]]) -> None:
    """Write one file for each policy, and remove those of an earlier run."""
    for old in folder.glob("*.yaml"):
        if old.read_text(encoding="utf-8").startswith("apiVersion: networking.k8s.io/"):
            old.unlink()
    for policy in policies:
        metadata = policy["metadata"]
        _write(folder / f"{metadata['namespace']}.{metadata['name']}.yaml", [policy])


def _write(path: Path, documents: Sequence[Mapping[str, Any]]) -> None:
    """Replace a file at once, whoever wrote the one of an earlier run."""
    written = path.with_suffix(".new")
    try:
        written.write_text(yaml.safe_dump_all(documents, sort_keys=False), encoding="utf-8")
        written.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> LocalMeshError:
    return LocalMeshError(f"--out: cannot write {path}: {error.strerror}", "name another folder")
