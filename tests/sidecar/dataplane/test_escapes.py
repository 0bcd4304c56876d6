"""What could leave a pod past its sidecar, and whether it does. ``docs/escapes.md`` says the same in words.

A listener sits on the client's cable. It proves each time that it would hear: an outsider says a word of its own over
the same cable.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess

import pytest

from sidecar import capture
from sidecar.capture_rules import CaptureRules
from tests.mesh.wire import Listener, Pieces
from tests.sidecar.dataplane import applications as apps
from tests.sidecar.dataplane.mesh import UID, meshed
from tests.sidecar.dns import packets as dns

PORT = 9300
ALLOW = {"rules": [{"from": "shop/front", "to": "shop/cart", "port": PORT}]}
STRICT = ALLOW | {"tls": "strict"}


class Scene:
    """A client and a server in the mesh, an outsider, and a listener on the client's cable."""

    def __init__(self, network, sidecars):
        self.client, self.server, self.outsider = network.pod(), network.pod(), network.pod()
        self._sidecars = sidecars
        self._switch = network.switch
        self.listener = network.switch.call(lambda: Listener("v1"))

    def start(self, **options):
        directory = [meshed("shop/cart", [self.server], PORT)]
        directory.append(meshed("shop/cart", [self.server], PORT, address=self.server.address6))
        front = self._sidecars(self.client, "shop/front", policy=ALLOW, directory=directory, **options)
        cart = self._sidecars(self.server, "shop/cart", policy=STRICT, **options)
        return front, cart

    def capture_only(self, rules):
        capture.install(rules, prefix=("ip", "netns", "exec", self.client.namespace.name))

    def track(self):
        """Have the kernel track the client's connections, as it does where anybody translates addresses."""
        rules = (
            "table inet other {\n chain tracked {\n type filter hook output priority 0\n ct state new accept\n }\n}\n"
        )
        command = ["ip", "netns", "exec", self.client.namespace.name, "nft", "-f", "-"]
        done = subprocess.run(command, input=rules, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr

    def heard(self, secret):
        """Whether ``secret`` crossed the cable in clear."""
        word = os.urandom(16)
        with self.outsider.namespace.socket(kind=socket.SOCK_DGRAM) as sock:
            sock.sendto(word, (self.client.address, 9))
        self.listener.look()
        while not Pieces([word]).in_any(self.listener.frames):  # bounded by the test's time limit
            self.listener.look()
        return Pieces([secret]).in_any(self.listener.frames)


@pytest.fixture
def scene(network, sidecars):
    made = Scene(network, sidecars)
    yield made
    made.listener.close()


async def said(pod, address, secret, port=PORT):
    """Whether the server sent it back."""
    try:
        await apps.echo(pod, address, port, secret)
    except (ConnectionError, asyncio.IncompleteReadError, TimeoutError):
        return False
    return True


async def test_tcp_over_either_version_crosses_encrypted(scene):
    scene.start()
    for address in (scene.server.address, scene.server.address6):
        async with apps.server(scene.server, PORT, address=address):
            secret = os.urandom(1000)
            assert await said(scene.client, address, secret)
            assert not scene.heard(secret)


# --- UDP


def datagram(pod, address, data, port=PORT):
    """Send one datagram as an application of ``pod``; the error's name, where there is one."""

    def send():
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                sock.sendto(data, (address, port))
        except OSError as error:
            return type(error).__name__
        return ""

    return pod.namespace.call(send)


@pytest.mark.parametrize("version", [4, 6])
async def test_udp_passes_by_default_and_is_dropped_where_that_is_asked_for(scene, version):
    address = scene.server.address if version == 4 else scene.server.address6
    scene.start()
    secret = os.urandom(64)
    assert datagram(scene.client, address, secret) == ""
    assert scene.heard(secret)

    rules = CaptureRules(uid=UID, dns_port=15053, drop_others=True)
    scene.capture_only(rules)
    secret = os.urandom(64)
    assert datagram(scene.client, address, secret) == "PermissionError", "it is told at once"
    assert datagram(scene.client, address, secret, 53) == "", "this goes to the DNS proxy, wherever it was to go"
    assert not scene.heard(secret)
    async with apps.server(scene.server, PORT, address=address):
        assert await said(scene.client, address, os.urandom(100)), "TCP goes on, and so does what TCP needs"


async def test_udp_from_outside_is_dropped_too_and_answers_are_not(scene):
    scene.start(captured=CaptureRules(uid=UID, drop_others=True))
    inside = scene.client.namespace.socket(kind=socket.SOCK_DGRAM)
    outside = scene.outsider.namespace.socket(kind=socket.SOCK_DGRAM)
    loop = asyncio.get_running_loop()
    with inside, outside:
        for sock, pod in ((inside, scene.client), (outside, scene.outsider)):
            sock.bind((pod.address, 5000))
            sock.setblocking(False)
        outside.sendto(b"unasked", (scene.client.address, 5000))

        def ask():  # the sidecar itself, which asks DNS
            os.setresuid(UID, UID, 0)
            try:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
                    asking.settimeout(60)
                    asking.sendto(b"question", (scene.outsider.address, 5000))
                    return asking.recv(100)
            finally:
                os.setresuid(0, 0, 0)

        asked = asyncio.ensure_future(asyncio.to_thread(scene.client.namespace.call, ask))
        question, source = await loop.sock_recvfrom(outside, 100)
        await loop.sock_sendto(outside, b"answer", source)
        assert (question, await asked) == (b"question", b"answer")
        with pytest.raises(BlockingIOError):  # it was sent before the question, over the same cable
            inside.recv(100)


# --- what is excluded


async def test_what_is_excluded_leaves_in_clear_and_a_strict_server_does_not_take_it(scene):
    scene.start()
    for rules in (
        CaptureRules(uid=UID, exclude_outbound_ports=(PORT,)),
        CaptureRules(uid=UID, exclude_cidrs=(f"{scene.server.address}/32",)),
    ):
        scene.capture_only(rules)
        secret = os.urandom(1000)
        async with apps.server(scene.server, PORT):
            reader, writer = await apps.connect(scene.client, scene.server.address, PORT)
            writer.write(secret)
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await asyncio.wait_for(reader.readexactly(1), 60)
            await apps.close(writer)
        assert scene.heard(secret), "that is what was asked for"


async def test_an_excluded_inbound_port_is_open_to_everybody(scene):
    rules = CaptureRules(uid=UID, exclude_inbound_ports=(PORT,))
    scene.start(captured=rules)
    async with apps.server(scene.client, PORT), apps.server(scene.client, PORT + 1):
        assert await said(scene.outsider, scene.client.address, b"hello to all")
        assert not await said(scene.outsider, scene.client.address, b"hello to all", PORT + 1)


# --- without a proxy


async def test_before_the_proxy_starts_nothing_leaves_and_afterwards_all_goes_well(scene):
    """The rules come first (an init container): an application that is early is refused, and not let out."""
    scene.capture_only(CaptureRules(uid=UID, dns_port=15053))
    secret = os.urandom(1000)
    async with apps.server(scene.server, PORT), apps.server(scene.outsider, PORT):
        for pod in (scene.server, scene.outsider):
            assert not await said(scene.client, pod.address, secret)
        assert datagram(scene.client, scene.outsider.address, dns.query("secret.example.com"), 53) == ""
        assert not scene.heard(secret)
        assert not scene.heard(dns.question("secret.example.com"))
        scene.start()
        assert await said(scene.client, scene.server.address, secret)
    assert not scene.heard(secret)


@pytest.mark.parametrize("tracked", [False, True])
async def test_a_connection_from_before_the_rules_ends_unless_the_kernel_knew_it(scene, tracked):
    """Why the rules come first: what the kernel tracked already is not captured any more."""
    if tracked:
        scene.track()
    async with apps.server(scene.outsider, PORT):
        reader, writer = await apps.connect(scene.client, scene.outsider.address, PORT)
        writer.write(b"ECHO\nhello")
        assert await reader.readexactly(5) == b"hello"
        scene.start()
        secret = os.urandom(1000)
        writer.write(secret)
        if tracked:
            assert await reader.readexactly(len(secret)) == secret
            writer.write_eof()
            assert await reader.read() == b""
        else:
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(reader.readexactly(1), 60)
        await apps.close(writer)
        assert scene.heard(secret) == tracked


async def test_when_the_proxy_is_killed_connections_end_and_none_leaves_in_clear(scene):
    front, _ = scene.start()
    async with apps.server(scene.server, PORT), apps.server(scene.outsider, PORT):
        reader, writer = await apps.connect(scene.client, scene.server.address, PORT)
        writer.write(b"ECHO\nhello")
        assert await reader.readexactly(5) == b"hello"
        front.kill()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(reader.readexactly(1), 60)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        secret = os.urandom(1000)
        for pod in (scene.server, scene.outsider):
            for _ in range(3):
                assert not await said(scene.client, pod.address, secret)
        assert not await said(scene.outsider, scene.client.address, b"let me in"), "nor does anything come in"
        assert not scene.heard(secret)
