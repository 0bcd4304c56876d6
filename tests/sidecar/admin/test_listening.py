"""Where the pages listen, in pods that have IPv4, IPv6, or both: real network namespaces."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess

import pytest

from sidecar.admin.server import open_listener
from sidecar.path_settings import data_plane_settings
from sidecar.readiness import ReadinessServer
from sidecar.settings import Address, Settings
from tests.sidecar.dataplane.netns import ip

EVERYWHERE = Address("0.0.0.0", 0)


def without_ipv4(pod):
    """Not even the loopback address is left."""
    name = pod.namespace.name
    for device in ("lo", "eth0"):
        ip("-n", name, "-4", "addr", "flush", "dev", device)
    assert "inet " not in ip("-n", name, "addr")


def without_ipv6(pod):
    switch = ["sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1"]
    subprocess.run(["ip", "netns", "exec", pod.namespace.name, *switch], check=True, timeout=30)
    assert "inet6" not in ip("-n", pod.namespace.name, "addr")


def unchanged(pod):
    """Both versions."""


async def get(pod, address, port, path):
    """The status and body that a program of the pod gets."""
    sock = pod.namespace.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    sock.setblocking(False)
    async with asyncio.timeout(60):
        try:
            await asyncio.get_running_loop().sock_connect(sock, (address, port))
        except OSError:
            sock.close()
            raise
        reader, writer = await asyncio.open_connection(sock=sock)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
    return int(head.split()[1]), body.decode()


@pytest.mark.parametrize("listen", [EVERYWHERE, Address("::", 0)], ids=str)
@pytest.mark.parametrize(
    ("prepare", "loopback", "own"),
    [
        (without_ipv4, ["::1"], ["fd00:213:7::1"]),
        (without_ipv6, ["127.0.0.1"], ["10.213.7.1"]),
        (unchanged, ["127.0.0.1", "::1"], ["10.213.7.1", "fd00:213:7::1"]),
    ],
    ids=["IPv6 alone", "IPv4 alone", "both"],
)
async def test_everywhere_is_every_address_of_the_pod(pod, prepare, loopback, own, listen):
    prepare(pod)
    server = ReadinessServer(listen, list, lambda: {"instance": "cart-1"})
    await server.start(pod.namespace.call(lambda: open_listener(listen)))
    try:
        for address in (*loopback, *own):
            assert await get(pod, address, server.port, "/healthz/ready") == (200, "ready\n")
        for address in loopback:  # an IPv4 client of an IPv6 socket is still a program of this pod
            status, body = await get(pod, address, server.port, "/stats")
            assert (status, json.loads(body)) == (200, {"instance": "cart-1"})
        for address in own:
            assert (await get(pod, address, server.port, "/stats"))[0] == 403
    finally:
        await server.stop()


@pytest.mark.parametrize(("given", "other"), [("127.0.0.1", "::1"), ("::1", "127.0.0.1"), ("10.213.7.1", "::1")])
async def test_one_address_is_that_one_alone(pod, given, other):
    server = ReadinessServer(Address(given, 0), list, dict)
    await server.start(pod.namespace.call(lambda: open_listener(Address(given, 0))))
    try:
        assert (await get(pod, given, server.port, "/healthz/ready"))[0] == 200
        with pytest.raises(ConnectionRefusedError):
            await get(pod, other, server.port, "/healthz/ready")
    finally:
        await server.stop()


def test_a_port_that_is_taken_in_either_version_is_taken(pod):
    for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        holder = pod.namespace.call(lambda host=host, family=family: socket.create_server((host, 0), family=family))
        taken = Address("0.0.0.0", holder.getsockname()[1])
        with holder, pytest.raises(OSError, match="in use"):
            pod.namespace.call(lambda taken=taken: open_listener(taken).close())


def test_without_ipv6_in_the_kernel_ipv4_is_listened_on(monkeypatch):
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    with open_listener(EVERYWHERE) as sock:
        assert sock.family is socket.AF_INET


@pytest.mark.parametrize(
    ("addresses", "wanted"),
    [(["10.0.0.1"], ["0.0.0.0"]), (["fd00::1"], ["0.0.0.0", "::"]), (["10.0.0.1", "fd00::1"], ["0.0.0.0", "::"])],
)
def test_declared_ports_are_taken_in_every_version_of_the_pods(addresses, wanted):
    settings = Settings.parse(
        {
            "instance": "cart-1",
            "controller": "controller:15012",
            "issuer": "controller:15013",
            "trust_domain": "hedgerow.test",
            "trust_bundle": "/trust.pem",
            "state_dir": "/state",
            "addresses": addresses,
            "capture": "explicit",
            "explicit": {"inbound": [{"listen": "0.0.0.0:8080", "application": "127.0.0.1:18080"}]},
        }
    )
    inbound = data_plane_settings(settings).explicit_inbound
    assert [one.listen.host for one in inbound] == wanted
    assert {(one.listen.port, str(one.application)) for one in inbound} == {(8080, "127.0.0.1:18080")}
