"""Pods as network namespaces: the sandbox is the switch they hang on, a bridge its backplane.

Inside a sandbox (:mod:`hedgerow.local.sandbox`) each pod is a named network namespace with one link, ``eth0``, an
address of 10.77.0.0/16 and a default route to the switch. Service addresses (10.78.0.0/16) belong to nobody: they
lead somewhere only where a sidecar captures them; from any other pod the switch answers that they are unreachable.
Names come from a hosts file of the pod's own; there is no DNS and no way out.

Applications have no capabilities and a user of their own. In a user namespace there is one user only: there a sidecar
is told apart by its packets' mark, which takes a capability that applications lack (and without which they cannot
read the memory of a program that has it, either).
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hedgerow.local import views
from hedgerow.local.description import APPLICATION_UID, PlacedPod, PlacedService
from hedgerow.local.errors import CommandFailed, LocalMeshError
from hedgerow.local.processes import python, run
from hedgerow.local.sandbox import STATE, Confinement, confinement
from hedgerow.local.site import Launch, Role, Site, environment

PODS = ipaddress.ip_network("10.77.0.0/16")
SERVICES = ipaddress.ip_network("10.78.0.0/16")
BRIDGE = "hedgerow0"
_SWITCH_ADDRESS = str(PODS[1])
_CONTROLLER_ADDRESS = str(PODS[2])
_CONTROLLER = "hedgerow-controller"
#: The view of sidecars and controller; no pod's name, which has ``--`` in it.
_INFRASTRUCTURE = "infrastructure"
#: Pod number 1 is 10.77.1.1; the addresses below are the switch's and the controller's.
_FIRST_POD = 256

SIDECAR_UID = 1337
_CONTROLLER_UID = 1338
#: Every view has a directory of its own there.
_DIRECTORIES = {"HOME": "/run/pod", "TMPDIR": "/run/pod"}
#: Exempts the sidecar's own packets in a user namespace.
_MARK = 1337


class NamespaceSite(Site):
    """A site made of network namespaces. There can be one at a time in a sandbox."""

    captures = True

    def __init__(self, state: Path = STATE) -> None:
        kind = confinement()
        if kind is Confinement.NONE:
            raise LocalMeshError(
                "a mesh of network namespaces needs a sandbox around it",
                "start this program through hedgerow.local.sandbox.run_in_sandbox",
            )
        self._many_users = kind is Confinement.ROOT
        self.root = Path(tempfile.mkdtemp(prefix="mesh-", dir=state))
        self.root.chmod(0o755)
        self._hosts = self.root / "hosts"
        self._views: dict[str, views.View] = {}
        self._links: dict[str, str] = {}
        self._opened = False

    @property
    def controller_address(self) -> str:
        return _CONTROLLER_ADDRESS

    async def open(self) -> None:
        """Make the bridge and the view of sidecars and controller.

        :raises CommandFailed: when the kernel refuses, or other users cannot run this interpreter
        """
        self._hosts.mkdir(mode=0o755)
        await run(["sh", "-c", _ANSWER_UNREACHABLE], check=True)
        await _ip(
            f"link add {BRIDGE} type bridge",
            f"addr add {_SWITCH_ADDRESS}/{PODS.prefixlen} dev {BRIDGE}",
            f"link set {BRIDGE} up",
            "route add unreachable default",
        )
        self._opened = True
        script = views.infrastructure_script(other_users=self._many_users)
        self._views[_INFRASTRUCTURE] = await views.make_view(script)
        if self._many_users:
            await self._check_interpreter()

    async def close(self) -> None:
        for name in list(self._links):
            await self._remove(name)
        while self._views:
            self._views.popitem()[1].close()
        if self._opened:
            self._opened = False
            await _ip("route del unreachable default", f"link del {BRIDGE}", must=False)
        shutil.rmtree(self.root, ignore_errors=True)

    def pod_address(self, index: int) -> str:
        return str(PODS[_FIRST_POD * (1 + (index - 1) // 250) + 1 + (index - 1) % 250])

    def service_address(self, index: int) -> str:
        return str(SERVICES[index])

    async def add(self, pods: Sequence[PlacedPod], services: Sequence[PlacedService]) -> None:
        for pod in pods:
            name = _namespace(pod)
            hosts = self._hosts / name
            hosts.write_text(_hosts_file(pod, services))
            hosts.chmod(0o644)
            script = views.application_script(hosts, hide=self.root, other_users=self._many_users)
            self._views[name] = await views.make_view(script)
        await self._connect([(_namespace(pod), pod.index, pod.address) for pod in pods])

    async def add_controller(self) -> None:
        await self._connect([(_CONTROLLER, 0, _CONTROLLER_ADDRESS)])

    async def remove(self, pod: PlacedPod) -> None:
        await self._remove(_namespace(pod))

    async def _connect(self, places: Sequence[tuple[str, int, str]]) -> None:
        """Make the namespaces and hang each on the bridge by a cable of its own."""
        cables = []
        for name, number, _ in places:
            self._links[name] = link = f"hg{number}"
            cables += [
                f"netns add {name}",
                f"link add {link} type veth peer name eth0 netns {name}",
                # No IPv6 link-local address: nothing captures IPv6 here, so there must be none to reach a pod by.
                f"link set {link} addrgenmode none",
                f"link set {link} master {BRIDGE} up",
            ]
        await _ip(*cables)
        for name, _, address in places:
            await _ip(
                "link set lo up",
                "link set eth0 addrgenmode none",
                f"addr add {address}/{PODS.prefixlen} dev eth0",
                "link set eth0 up",
                f"route add default via {_SWITCH_ADDRESS}",
                inside=name,
            )

    async def _remove(self, name: str) -> None:
        if (link := self._links.pop(name, None)) is not None:
            # The kernel takes its time to end a namespace; the cable's name has to be free at once.
            await _ip(f"link del {link}", f"netns del {name}", must=False)
        if (view := self._views.pop(name, None)) is not None:
            view.close()
        (self._hosts / name).unlink(missing_ok=True)

    async def _check_interpreter(self) -> None:
        argv = self._enter(_NETWORK_OF_THE_SWITCH, _INFRASTRUCTURE, Role.SIDECAR, None)
        tried = await run([*argv, *python(), "-c", "import hedgerow"], env=environment(_DIRECTORIES))
        if tried.code != 0:
            raise CommandFailed(
                f"the interpreter {python()[0]} cannot be run by another user: {tried.stderr.strip()[-300:]}",
                "make its directory and this checkout readable to everybody (chmod -R o+rX), or start as that user",
            )

    def private_directory(self, path: Path, role: Role) -> None:
        path.mkdir(mode=0o700)
        self._give(path, role)

    def hand_over(self, path: Path, role: Role) -> None:
        path.chmod(0o600)
        self._give(path, role)

    def _give(self, path: Path, role: Role) -> None:
        if self._many_users:
            uid = _uid(role, None)
            os.chown(path, uid, uid)

    def sidecar_settings(self, pod: PlacedPod, services: Sequence[PlacedService]) -> dict[str, Any]:
        settings: dict[str, Any] = {"capture": "redirect"}
        if self._many_users:
            settings["uid"] = SIDECAR_UID
        else:
            settings |= {"uid": 0, "mark": _MARK}
        return settings

    def listen_address(self, pod: PlacedPod) -> str:
        return "0.0.0.0"

    def host_of(self, pod: PlacedPod, service: PlacedService) -> str:
        same = service.namespace == pod.spec.ref.namespace
        return service.name if same else f"{service.name}.{service.namespace}"

    def _launch(self, pod: PlacedPod | None, role: Role, argv: Sequence[str], uid: int | None) -> Launch:
        name = _namespace(pod) if pod is not None else _CONTROLLER
        view = name if role is Role.APPLICATION else _INFRASTRUCTURE
        return Launch([*self._enter(f"/run/netns/{name}", view, role, uid), *argv], _DIRECTORIES)

    def _enter(self, network: str, view: str, role: Role, uid: int | None) -> list[str]:
        """The command line that enters a namespace and gives up every privilege that the role does not need."""
        enter = ["nsenter", f"--net={network}", f"--mount={self._views[view].path}"]
        if role is Role.CAPTURE:
            return enter
        user: list[str] = []
        kept = ""
        if self._many_users:
            number = str(_uid(role, uid))
            user = ["--reuid", number, "--regid", number, "--clear-groups"]
        elif role is Role.SIDECAR:
            kept = ",+net_admin"  # to mark its packets
        elif role is Role.CONTROLLER:
            kept = ",+net_bind_service"  # unused: the capability that keeps applications from tracing it
        capabilities = ["--bounding-set", f"-all{kept}", "--inh-caps", f"-all{kept}"]
        return [*enter, "setpriv", *user, *capabilities, "--ambient-caps", "-all", "--no-new-privs", "--"]


#: A switch that may forward answers "unreachable" for addresses that nobody has; else it would say nothing.
_ANSWER_UNREACHABLE = "echo 1 > /proc/sys/net/ipv4/ip_forward"
_NETWORK_OF_THE_SWITCH = "/proc/self/ns/net"


def _uid(role: Role, uid: int | None) -> int:
    if role is Role.SIDECAR:
        return SIDECAR_UID
    if role is Role.CONTROLLER:
        return _CONTROLLER_UID
    if uid in (0, SIDECAR_UID, _CONTROLLER_UID):
        raise LocalMeshError(f"an application cannot run as user {uid}", "capture tells the sidecar by its user")
    return APPLICATION_UID if uid is None else uid


def _namespace(pod: PlacedPod) -> str:
    """The name of a pod's network namespace. ``--`` cannot be confused: a Kubernetes name never starts with ``-``."""
    return f"{pod.spec.ref.namespace}--{pod.name}"


def _hosts_file(pod: PlacedPod, services: Sequence[PlacedService]) -> str:
    lines = ["127.0.0.1 localhost", f"{pod.address} {pod.name}"]
    for service in services:
        full = f"{service.name}.{service.namespace}"
        names = [full, f"{full}.svc", f"{full}.svc.cluster.local"]
        if service.namespace == pod.spec.ref.namespace:
            names.insert(0, service.name)
        lines.append(f"{service.address} {' '.join(names)}")
    return "\n".join(lines) + "\n"


async def _ip(*commands: str, inside: str = "", must: bool = True) -> None:
    """Run ip(8) once for many commands.

    :param inside: the network namespace to do it in
    :param must: stop at the first that fails and raise; else do what can be done
    """
    argv = ["ip", *(["-n", inside] if inside else []), *([] if must else ["-force"]), "-batch", "-"]
    await run(argv, stdin="\n".join(commands).encode() + b"\n", check=must)
