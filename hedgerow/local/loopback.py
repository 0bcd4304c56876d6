"""Pods as loopback addresses, for machines that permit no namespaces: explicit mode.

Every pod is known by an address of 127.77.0.0/16, at which its sidecar listens on the application's own port; the
application listens on an address of 127.78.0.0/16 that nobody is told of. A client reaches each service through a
listener of its own sidecar (127.79.0.0/16, one address for each pair of client and service). Nothing is captured, so
nothing keeps a program from going around the sidecars: :data:`CANNOT_SHOW` says so in words for people.

Programs are killed by the kernel when this process ends. The state directory is removed at the end; one that a killed
run left behind is removed by the next run.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hedgerow.local import kernel
from hedgerow.local.description import PlacedPod, PlacedService
from hedgerow.local.leftovers import make_directory, remove_leftovers
from hedgerow.local.site import Launch, Role, Site

CANNOT_SHOW = (
    "connections are not captured: applications are told their sidecar's ports, and one that ignores them goes around",
    "pods have no network of their own: everything on this machine can reach every application's real port",
    "applications and sidecars run as the same user and could read each other's files",
    "service addresses and names lead nowhere: each client has a loopback address for each service instead",
)

_CONTROLLER_ADDRESS = "127.77.0.2"


def _address(network: str, index: int) -> str:
    return str(ipaddress.ip_network(network)[256 * (1 + index // 250) + 1 + index % 250])


class LoopbackSite(Site):
    """A site made of loopback addresses."""

    captures = False

    def __init__(self) -> None:
        remove_leftovers()
        self.root = make_directory()

    @property
    def controller_address(self) -> str:
        return _CONTROLLER_ADDRESS

    async def open(self) -> None:
        """Nothing is shared."""

    async def close(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def pod_address(self, index: int) -> str:
        return _address("127.77.0.0/16", index)

    def service_address(self, index: int) -> str:
        return _address("127.80.0.0/16", index)

    async def add(self, pods: Sequence[PlacedPod], services: Sequence[PlacedService]) -> None:
        """Loopback addresses are there already."""

    async def add_controller(self) -> None:
        """Likewise."""

    async def remove(self, pod: PlacedPod) -> None:
        """Likewise."""

    def private_directory(self, path: Path, role: Role) -> None:
        path.mkdir(mode=0o700)

    def hand_over(self, path: Path, role: Role) -> None:
        path.chmod(0o600)

    def sidecar_settings(self, pod: PlacedPod, services: Sequence[PlacedService]) -> dict[str, Any]:
        return {
            "capture": "explicit",
            "uid": os.geteuid(),
            "ready_listen": f"{pod.address}:15021",
            "explicit": {
                "outbound": [
                    {"listen": f"{self.host_of(pod, service)}:{port}", "destination": f"{service.address}:{port}"}
                    for service in services
                    for port, _ in service.ports
                ],
                "inbound": [
                    {
                        "listen": f"{pod.address}:{port.number}",
                        "application": f"{self.listen_address(pod)}:{port.number}",
                    }
                    for port in pod.spec.ports
                ],
            },
        }

    def listen_address(self, pod: PlacedPod) -> str:
        return _address("127.78.0.0/16", pod.index)

    def host_of(self, pod: PlacedPod, service: PlacedService) -> str:
        return f"127.79.{pod.index}.{service.index}"

    def _launch(self, pod: PlacedPod | None, role: Role, argv: Sequence[str], uid: int | None) -> Launch:
        return Launch(argv, {"TMPDIR": str(self.root)}, _die_with(os.getpid()))


def _die_with(parent: int) -> Callable[[], None]:
    """What a child does before it becomes the program: have the kernel kill it when we end, also if we just did."""

    def before_exec() -> None:
        kernel.die_with_parent()
        if os.getppid() != parent:
            os._exit(1)

    return before_exec
