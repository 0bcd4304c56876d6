"""What a local mesh consists of, as values: workloads, the programs in them, and the inventory file made of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from graph.model import Port, WorkloadRef

#: The user that applications run as unless they ask for another; no account of this machine.
APPLICATION_UID = 10001

_PLACEHOLDER = re.compile(r"\$\{(listen|address|service:[a-z0-9./-]+)\}")


@dataclass(frozen=True, slots=True)
class Program:
    """An application that knows nothing of the mesh.

    In ``argv`` and in the values of ``env``, ``${listen}`` stands for the address to listen on, ``${address}`` for
    the pod's own and ``${service:NAME}`` (or ``NAME.NAMESPACE``) for the host to reach a service by: its name, where
    the pod has names.

    :param uid: the user it runs as, where the sandbox has more than one
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    uid: int = APPLICATION_UID


@dataclass(frozen=True, slots=True)
class ServedAs:
    """A service in front of a workload, in the workload's namespace.

    :param ports: pairs of the service's port and the pods' port behind it
    """

    name: str
    ports: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class WorkloadSpec:
    """One workload: ``replicas`` pods that run ``program``.

    :param program: None for a pod in which commands are run from outside alone
    :param meshed: whether its pods have a sidecar
    :param listed: whether the controller's inventory knows of it
    :param inspects: hosts outside, ``host:port``, that its sidecars read
    """

    ref: WorkloadRef
    program: Program | None = None
    replicas: int = 1
    ports: tuple[Port, ...] = ()
    services: tuple[ServedAs, ...] = ()
    kind: str = "Deployment"
    service_account: str = "default"
    labels: Mapping[str, str] = field(default_factory=dict)
    schedule: str = ""
    meshed: bool = True
    listed: bool = True
    inspects: tuple[str, ...] = ()

    def pod_names(self) -> list[str]:
        return [f"{self.ref.name}-{index}" for index in range(self.replicas)]

    def pod_labels(self) -> dict[str, str]:
        return dict(self.labels) or {"app": self.ref.name}


@dataclass(frozen=True, slots=True)
class PlacedPod:
    """A pod and where it is.

    :param address: the address that others know it by
    """

    name: str
    spec: WorkloadSpec
    index: int
    address: str

    @property
    def instance(self) -> str:
        """Its name in the inventory, ``namespace/name``."""
        return f"{self.spec.ref.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class PlacedService:
    """A service and its address. ``index`` is unique in the mesh."""

    namespace: str
    name: str
    index: int
    address: str
    workload: WorkloadRef
    ports: tuple[tuple[int, int], ...]


def fill(text: str, *, listen: str, address: str, host_of: Callable[[str], str]) -> str:
    """Replace the placeholders of :class:`Program`.

    :param host_of: the host for a service's name
    """

    def value(match: re.Match[str]) -> str:
        what = match.group(1)
        if what == "listen":
            return listen
        if what == "address":
            return address
        return host_of(what.removeprefix("service:"))

    return _PLACEHOLDER.sub(value, text)


#: The controller is a pod of the mesh as well, without a sidecar.
CONTROLLER = WorkloadSpec(
    WorkloadRef("hedgerow-system", "hedgerow-controller"),
    ports=(Port(15012, name="grpc", app_protocol="grpc"), Port(15013, name="issuer", app_protocol="grpc")),
    service_account="hedgerow-controller",
    labels={"app.kubernetes.io/name": "hedgerow-controller"},
    meshed=False,
)


def inventory(
    specs: Iterable[WorkloadSpec],
    pods: Iterable[PlacedPod],
    services: Iterable[PlacedService],
    controller: str,
    unready: Container[str] = (),
) -> dict[str, Any]:
    """The controller's inventory file of this mesh, ready for YAML.

    :param controller: the controller's address
    :param unready: pods that get no new connections, ``namespace/name``
    """
    listed = [CONTROLLER, *(spec for spec in specs if spec.listed)]
    pods = [PlacedPod(CONTROLLER.pod_names()[0], CONTROLLER, 0, controller), *pods]
    return {
        "apiVersion": "hedgerow.dev/v1alpha1",
        "kind": "Inventory",
        "namespaces": [
            {"name": name, "labels": {"kubernetes.io/metadata.name": name}}
            for name in sorted({spec.ref.namespace for spec in listed})
        ],
        "workloads": [_workload(spec) for spec in listed],
        "instances": [
            {
                "name": pod.name,
                "workload": str(pod.spec.ref),
                "address": pod.address,
                "ready": pod.instance not in unready,
            }
            for pod in pods
            if pod.spec.listed
        ],
        "services": [
            {
                "namespace": service.namespace,
                "name": service.name,
                "address": service.address,
                "workload": str(service.workload),
                "ports": [
                    {"name": f"port-{port}", "port": port, "targetPort": target, "protocol": "TCP"}
                    for port, target in service.ports
                ],
            }
            for service in services
        ],
    }


def _workload(spec: WorkloadSpec) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "namespace": spec.ref.namespace,
        "name": spec.ref.name,
        "kind": spec.kind,
        "serviceAccount": spec.service_account,
        "labels": spec.pod_labels(),
        "ports": [
            {
                "name": port.name or f"port-{port.number}",
                "port": port.number,
                "protocol": str(port.protocol),
                "appProtocol": port.app_protocol or "tcp",
            }
            for port in spec.ports
        ],
        "meshed": spec.meshed,
    }
    if spec.schedule:
        entry["schedule"] = spec.schedule
    if spec.inspects:
        entry["inspects"] = list(spec.inspects)
    return entry
