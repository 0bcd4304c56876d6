"""Who has which place in a local mesh: pods and services by name, the addresses that they were given, and the
inventory file by which the controller knows of them.

A number is never given twice, so that no pod gets an address at which another one was known.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import yaml

from graph.model import WorkloadRef
from hedgerow.local.description import PlacedPod, PlacedService, WorkloadSpec, inventory
from hedgerow.local.errors import LocalMeshError
from hedgerow.local.pod import Pod
from hedgerow.local.site import Site


class Placement:
    """:param site: gives the addresses; the inventory is a file in its root

    :ivar pods: by name, ``namespace/name``
    :ivar services: in the order in which they came
    :ivar unready: pods that get no new connections, by name
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._specs: list[WorkloadSpec] = []
        self._next_pod = 1
        self.pods: dict[str, Pod] = {}
        self.services: list[PlacedService] = []
        self.unready: set[str] = set()

    # --- what there is

    def pod(self, name: str) -> Pod:
        """:raises LocalMeshError: when there is none of that name"""
        try:
            return self.pods[name]
        except KeyError:
            raise LocalMeshError(f"no pod {name!r}", f"there are {', '.join(sorted(self.pods))}") from None

    def pods_of(self, workload: WorkloadRef) -> list[Pod]:
        return [pod for pod in self.pods.values() if pod.placed.spec.ref == workload]

    # --- giving places

    def place(self, specs: Iterable[WorkloadSpec]) -> list[Pod]:
        """Give services and pods their addresses. Services first: pods know all services by name."""
        pods: list[Pod] = []
        specs = list(specs)
        for spec in specs:
            self._specs.append(spec)
            for service in spec.services:
                index = len(self.services) + 1
                address = self._site.service_address(index)
                self.services.append(
                    PlacedService(spec.ref.namespace, service.name, index, address, spec.ref, service.ports)
                )
        for spec in specs:
            pods += self._place_pods(spec, spec.pod_names())
        return pods

    def place_more(self, workload: WorkloadRef, count: int) -> list[Pod]:
        """Give places to so many further pods of a workload that is placed."""
        spec = next(spec for spec in self._specs if spec.ref == workload)
        taken = {pod.placed.name for pod in self.pods_of(workload)}
        names = [name for name in replace(spec, replicas=count + len(taken)).pod_names() if name not in taken]
        return self._place_pods(spec, names[:count])

    def _place_pods(self, spec: WorkloadSpec, names: Iterable[str]) -> list[Pod]:
        pods: list[Pod] = []
        for name in names:
            placed = PlacedPod(name, spec, self._next_pod, self._site.pod_address(self._next_pod))
            self._next_pod += 1
            directory = self._site.root / f"pod-{placed.index}"
            directory.mkdir(mode=0o755)
            pod = Pod(placed, self._site, directory, tuple(self.services))
            self.pods[pod.name] = pod
            pods.append(pod)
        return pods

    def forget(self, names: Iterable[str]) -> None:
        """Take pods out; their numbers stay used."""
        for name in names:
            del self.pods[name]
            self.unready.discard(name)

    # --- for the controller

    @property
    def inventory(self) -> Path:
        return self._site.root / "inventory.yaml"

    def write_inventory(self) -> None:
        """Replace the inventory file at once, so that the controller never reads half of it."""
        placed = [pod.placed for pod in self.pods.values()]
        document = inventory(self._specs, placed, self.services, self._site.controller_address, self.unready)
        written = self.inventory.with_suffix(".new")
        written.write_text(yaml.safe_dump(document, sort_keys=False))
        written.chmod(0o644)
        written.replace(self.inventory)
