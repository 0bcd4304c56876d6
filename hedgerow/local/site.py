"""Where the pods of a local mesh are: what :mod:`hedgerow.local.mesh` needs to know of it, whichever kind it is.

Two kinds implement :class:`Site`: :class:`hedgerow.local.network.NamespaceSite` (a network namespace for each pod,
traffic captured) and :class:`hedgerow.local.loopback.LoopbackSite` (loopback addresses, declared ports, nothing
captured).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from hedgerow.local.description import PlacedPod, PlacedService
from hedgerow.local.processes import Completed, Process, paths, run


class Role(StrEnum):
    """As whom a program runs in a pod, and what it may do and see there."""

    APPLICATION = "application"
    SIDECAR = "sidecar"
    CONTROLLER = "controller"
    CAPTURE = "capture"
    """Installs the capture rules: the only one with power over the pod's network."""


@dataclass(frozen=True, slots=True)
class Launch:
    """A program's way into a pod.

    :param directories: variables that name the directories which the pod has (``TMPDIR``)
    :param before_exec: what the new process does before it becomes the program
    """

    argv: Sequence[str]
    directories: Mapping[str, str]
    before_exec: Callable[[], None] | None = None


class Site(ABC):
    """Gives pods a place, an address and a way to run programs in it."""

    captures: bool
    """Whether connections reach the sidecar without the application's help."""
    root: Path
    """A directory for the mesh's state that goes away with the mesh."""

    @property
    @abstractmethod
    def controller_address(self) -> str: ...

    @abstractmethod
    async def open(self) -> None:
        """Make what all pods share."""

    @abstractmethod
    async def close(self) -> None:
        """Remove everything that :meth:`open` and :meth:`add` made."""

    @abstractmethod
    def pod_address(self, index: int) -> str:
        """The address of the pod with this number (from 1), before it is added."""

    @abstractmethod
    def service_address(self, index: int) -> str: ...

    @abstractmethod
    async def add(self, pods: Sequence[PlacedPod], services: Sequence[PlacedService]) -> None:
        """Make places for pods in which the services' names mean something."""

    @abstractmethod
    async def add_controller(self) -> None:
        """Make a place for the controller."""

    @abstractmethod
    async def remove(self, pod: PlacedPod) -> None:
        """Remove a pod's place; its programs have ended."""

    @abstractmethod
    def private_directory(self, path: Path, role: Role) -> None:
        """Make a directory that only programs of ``role`` can read."""

    @abstractmethod
    def hand_over(self, path: Path, role: Role) -> None:
        """Make a file readable to programs of ``role`` and to nobody else."""

    @abstractmethod
    def sidecar_settings(self, pod: PlacedPod, services: Sequence[PlacedService]) -> dict[str, Any]:
        """The part of ``sidecar.yaml`` that depends on the site."""

    @abstractmethod
    def listen_address(self, pod: PlacedPod) -> str:
        """Where an application listens."""

    @abstractmethod
    def host_of(self, pod: PlacedPod, service: PlacedService) -> str:
        """The host by which an application of ``pod`` reaches a service: a name where there are names."""

    @abstractmethod
    def _launch(self, pod: PlacedPod | None, role: Role, argv: Sequence[str], uid: int | None) -> Launch:
        """How a program comes to run in a pod."""

    def ready_address(self, pod: PlacedPod) -> tuple[str, int]:
        """Where this process reaches a sidecar's readiness."""
        return pod.address, 15021

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
        """Start a program in a pod, or in the controller's place (None).

        :param env: beside what every program is given
        """
        launch = self._launch(pod, role, argv, uid)
        values = environment(launch.directories, env)
        await process.start(launch.argv, values, pass_fds=pass_fds, before_exec=launch.before_exec)

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
        launch = self._launch(pod, role, argv, uid)
        values = environment(launch.directories, env)
        return await run(launch.argv, env=values, stdin=stdin, deadline=deadline, before_exec=launch.before_exec)


def environment(directories: Mapping[str, str], extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """A pod's environment: nothing of ours but the search paths.

    :param directories: variables that name the directories which the pod has
    """
    return {
        "LANG": "C.UTF-8",
        **directories,
        **paths(),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        **(extra or {}),
    }
