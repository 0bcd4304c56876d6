"""Where the pods of a local mesh are: what :mod:`hedgerow.local.mesh` needs to know of it, whichever kind it is.

Two kinds implement :class:`Site`: :class:`hedgerow.local.network.NamespaceSite` (a network namespace for each pod,
traffic captured) and :class:`hedgerow.local.loopback.LoopbackSite` (loopback addresses, declared ports, nothing
captured).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from hedgerow.local.description import PlacedPod, PlacedService
from hedgerow.local.processes import Completed, Process


class Role(StrEnum):
    """As whom a program runs in a pod, and what it may do and see there."""

    APPLICATION = "application"
    SIDECAR = "sidecar"
    CONTROLLER = "controller"
    CAPTURE = "capture"
    """Installs the capture rules: the only one with power over the pod's network."""


class Site(Protocol):
    """Gives pods a place, an address and a way to run programs in it."""

    @property
    def captures(self) -> bool:
        """Whether connections reach the sidecar without the application's help."""

    @property
    def root(self) -> Path:
        """A directory for the mesh's state that goes away with the mesh."""

    @property
    def controller_address(self) -> str: ...

    async def open(self) -> None:
        """Make what all pods share."""

    async def close(self) -> None:
        """Remove everything that :meth:`open` and :meth:`add` made."""

    def pod_address(self, index: int) -> str:
        """The address of the pod with this number (from 1), before it is added."""

    def service_address(self, index: int) -> str: ...

    async def add(self, pods: Sequence[PlacedPod], services: Sequence[PlacedService]) -> None:
        """Make places for pods in which the services' names mean something."""

    async def add_controller(self) -> None:
        """Make a place for the controller."""

    async def remove(self, pod: PlacedPod) -> None:
        """Remove a pod's place; its programs have ended."""

    def private_directory(self, path: Path, role: Role) -> None:
        """Make a directory that only programs of ``role`` can read."""

    def hand_over(self, path: Path, role: Role) -> None:
        """Make a file readable to programs of ``role`` and to nobody else."""

    def sidecar_settings(self, pod: PlacedPod, services: Sequence[PlacedService]) -> dict[str, Any]:
        """The part of ``sidecar.yaml`` that depends on the site."""

    def listen_address(self, pod: PlacedPod) -> str:
        """Where an application listens."""

    def host_of(self, pod: PlacedPod, service: PlacedService) -> str:
        """The host by which an application of ``pod`` reaches a service: a name where there are names."""

    def ready_address(self, pod: PlacedPod) -> tuple[str, int]:
        """Where this process reaches a sidecar's readiness."""

    async def start(
        self,
        process: Process,
        pod: PlacedPod | None,
        role: Role,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        uid: int | None = None,
    ) -> None:
        """Start a program in a pod, or in the controller's place (None)."""

    async def run(
        self,
        pod: PlacedPod | None,
        role: Role,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        deadline: float = 30.0,
        uid: int | None = None,
    ) -> Completed:
        """Run a command in a pod to its end."""
