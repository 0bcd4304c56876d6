"""Network namespaces made for a test and removed after it: pods on a bridge, each with an IPv4 and an IPv6 address."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def ip(*arguments: str) -> str:
    """Run ``ip``; a failure shows what it said."""
    result = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=60)
    if result.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {result.stderr.strip()}")
    return result.stdout


def _enter(name: str) -> None:
    descriptor = os.open(f"/run/netns/{name}", os.O_RDONLY)
    try:
        if _libc.setns(descriptor, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {name}")
    finally:
        os.close(descriptor)


class Namespace:
    """One namespace, and a thread that lives in it: a socket made there stays there."""

    def __init__(self, name: str) -> None:
        self.name = name
        ip("netns", "add", name)
        ip("-n", name, "link", "set", "lo", "up")
        self._thread = ThreadPoolExecutor(1, initializer=_enter, initargs=(name,))

    def call[T](self, function: Callable[[], T]) -> T:
        return self._thread.submit(function).result(timeout=60)

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        return self.call(lambda: socket.socket(family, kind, protocol))

    def remove(self) -> None:
        self._thread.shutdown()
        ip("netns", "del", self.name)


class Pod:
    """A namespace with ``eth0`` on the network."""

    def __init__(self, network: Network, number: int) -> None:
        self.address = f"10.213.7.{number}"
        self.address6 = f"fd00:213:7::{number:x}"
        self.namespace = Namespace(f"{network.prefix}p{number}")
        name, outside = self.namespace.name, f"v{number}"
        ip("-n", network.switch.name, "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("-n", network.switch.name, "link", "set", outside, "master", "br0", "up")
        ip("-n", name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        ip("-n", name, "addr", "add", f"{self.address6}/64", "dev", "eth0", "nodad")
        ip("-n", name, "link", "set", "eth0", "up")
        # so that service addresses have a way out, as in a cluster
        ip("-n", name, "route", "add", "10.96.0.0/16", "via", "10.213.7.254")
        ip("-n", name, "neigh", "add", "10.213.7.254", "lladdr", "02:00:00:00:00:fe", "dev", "eth0")


class Network:
    """A bridge and the pods on it. Names carry the process id, so that runs side by side do not meet."""

    _count = 0
    _lock = threading.Lock()

    def __init__(self) -> None:
        with Network._lock:
            Network._count += 1
            self.prefix = f"hgdp{os.getpid()}x{Network._count}"
        self.switch = Namespace(f"{self.prefix}s")
        ip("-n", self.switch.name, "link", "add", "br0", "type", "bridge", "forward_delay", "0")
        ip("-n", self.switch.name, "link", "set", "br0", "up")
        self._pods: list[Pod] = []

    def pod(self) -> Pod:
        pod = Pod(self, len(self._pods) + 1)
        self._pods.append(pod)
        return pod

    def remove(self) -> None:
        for pod in self._pods:
            pod.namespace.remove()
        self.switch.remove()
