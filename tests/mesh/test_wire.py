"""Proof from the wire: what pods with sidecars say to each other is TLS 1.3 to the real port, and nothing else.

Listeners sit on the switch and on every pod's cable. Each proves that it would see a leak: it has to find what pods
without a sidecar say, in the same capture.
"""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from graph.flow import EdgeKey
from graph.model import WorkloadRef
from hedgerow.local.description import WorkloadSpec
from hedgerow.local.mesh import LocalMesh
from hedgerow.local.network import BRIDGE
from tests.mesh import wire
from tests.mesh.running import PROGRAMS, client, close, find_edge, installed, script, server
from tests.mesh.wire import Listener, Pieces

pytestmark = pytest.mark.asyncio(loop_scope="module")

BODY = 100_000
CLIENT, OUTSIDER = "shop/client-0", "shop/outsider-0"
WEB = EdgeKey(WorkloadRef("shop", "client"), WorkloadRef("shop", "web"), 8080)
MAIL = EdgeKey(WorkloadRef("shop", "client"), WorkloadRef("shop", "mail"), 2525)
LEGACY = EdgeKey(WorkloadRef("shop", "client"), WorkloadRef("shop", "legacy"), 8080)

# Extensions of a ClientHello (RFC 8446 section 4.2, RFC 7301)
_ALPN = 16
_SUPPORTED_VERSIONS = 43


def workloads() -> list[WorkloadSpec]:
    nginx = f"exec {installed('nginx')} -c {PROGRAMS}/nginx.conf"
    web = ["sh", "-ec", f"mkdir -p /run/pod/www; head -c {BODY} /dev/urandom >/run/pod/www/secret; {nginx}"]
    return [
        server("shop/web", web, 8080, service_port=80, app_protocol="http"),
        server("shop/mail", script("smtp_server.py", 2525), 2525, service_port=25),
        client("shop/client"),
        server("shop/legacy", ["sh", "-ec", f"mkdir -p /run/pod/www; {nginx}"], 8080, service_port=80, meshed=False),
        client("shop/outsider", meshed=False),
    ]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def listeners(mesh: LocalMesh) -> AsyncIterator[dict[str, Listener]]:
    """By what they listen to: ``the switch``, or a pod's name. They start before any pod has called another."""
    interfaces = {"the switch": BRIDGE} | {name: f"hg{pod.placed.index}" for name, pod in mesh.pods.items()}
    listening = {name: Listener(interface) for name, interface in interfaces.items()}
    yield listening
    for listener in listening.values():
        listener.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["learn", "enforce"])
async def mode(request: pytest.FixtureRequest, mesh: LocalMesh, listeners: dict[str, Listener]) -> str:
    """The mesh as it starts, where plaintext is permitted, then closed."""
    if request.param == "enforce":
        if any([await find_edge(mesh, edge) is None for edge in (WEB, MAIL, LEGACY)]):
            await talk(mesh)
            await talk_in_clear(mesh)
        await close(mesh, [WEB, MAIL, LEGACY])
    return str(request.param)


# --- what is said


@dataclass(frozen=True, slots=True)
class Said:
    """What applications said to each other.

    :param secrets: random bytes, to be found nowhere
    :param words: of the protocols, to be found nowhere between these pods
    """

    secrets: tuple[bytes, ...]
    words: tuple[bytes, ...]


async def talk(mesh: LocalMesh) -> Said:
    """Random bytes between pods with sidecars, in both directions, in bodies, headers and paths."""
    path, header, body = os.urandom(16).hex(), os.urandom(16).hex(), os.urandom(BODY)
    pod = mesh.pod(CLIENT)
    put = ["curl", "-sS", "-f", "-T", "-", "-H", f"X-Secret: {header}", f"http://${{service:web}}/upload/{path}"]
    done = await pod.exec(put, stdin=body)
    assert done.code == 0, done.stderr
    stored = await mesh.pod("shop/web-0").exec(["base64", f"/run/pod/www/upload/{path}"])
    assert base64.b64decode(stored.stdout) == body

    done = await pod.exec(["sh", "-c", 'curl -sS -f "$0" | base64', "http://${service:web}/secret"])
    served = await mesh.pod("shop/web-0").exec(["base64", "/run/pod/www/secret"])
    assert done.stdout == served.stdout != ""

    message = b"\r\n".join(os.urandom(32).hex().encode() for _ in range(BODY // 64)) + b"\r\n"
    done = await pod.exec(script("smtp_client.py", "${service:mail}", 25), stdin=message)
    assert done.stdout == "220 greeter.example ESMTP\nrefused 0\n", done.stderr
    secrets = (path.encode(), header.encode(), body, base64.b64decode(served.stdout), message)
    return Said(secrets, (b"HTTP/1.1 ", b"X-Secret: ", b"220 greeter.example ESMTP", b"ehlo client.example"))


async def talk_in_clear(mesh: LocalMesh) -> dict[str, bytes]:
    """Random words with a pod without a sidecar at one end; by the pod at the other end whose cable they cross.

    Whether they are answered does not matter here: they have crossed by then.
    """
    said = {}
    for name in mesh.pods:
        source, target = (OUTSIDER, name) if name not in (OUTSIDER, CLIENT) else (name, "shop/legacy-0")
        pod, word = mesh.pod(target), os.urandom(16).hex()
        address = f"http://{pod.address}:{pod.placed.spec.ports[0].number}/{word}"
        await mesh.pod(source).exec(["curl", "-s", "-m", "5", "--http0.9", address])
        said[name] = word.encode()
    return said


def meshed_addresses(mesh: LocalMesh) -> frozenset[str]:
    return frozenset(pod.address for pod in mesh.pods.values() if pod.meshed)


# --- the tests


async def test_no_application_byte_crosses_in_clear_between_meshed_pods(
    mesh: LocalMesh, mode: str, listeners: dict[str, Listener]
) -> None:
    said = await talk(mesh)
    in_clear = await talk_in_clear(mesh)
    secrets, words = Pieces(said.secrets), Pieces(said.words)
    hosts = meshed_addresses(mesh)
    for name, listener in listeners.items():
        listener.look()
        crossed = list(in_clear.values()) if name == "the switch" else [in_clear[name]]
        heard = [Pieces([word]).in_any(listener.frames) for word in crossed]
        assert all(heard), f"what was said in clear was not heard on {name}, so that its silence proves nothing"
        leaked = secrets.in_any(listener.frames)
        assert not leaked, f"application bytes in clear on {name}"
        between = [frame for frame in listener.frames if _is_between(frame, hosts)]
        spoken = words.in_any(between)
        assert not spoken, f"an application protocol in clear on {name}"


def _is_between(frame: bytes, hosts: frozenset[str]) -> bool:
    segment = wire.Segment.read(frame)
    return segment is not None and {segment.source.host, segment.destination.host} <= hosts


@pytest.mark.parametrize("place", ["the switch", CLIENT, "shop/web-0", "shop/mail-0"])
async def test_every_connection_between_meshed_pods_is_tls_13_to_the_real_port(
    mesh: LocalMesh, mode: str, listeners: dict[str, Listener], place: str
) -> None:
    await talk(mesh)
    listeners[place].look()
    found = wire.connections(listeners[place].frames, meshed_addresses(mesh))
    ports = {pod.address: {port.number for port in pod.placed.spec.ports} for pod in mesh.pods.values()}
    for each in found:
        assert each.server.port in ports[each.server.host]
        hello = wire.client_hello(each.sent.data)
        assert hello[_SUPPORTED_VERSIONS] == b"\x02\x03\x04", "it offers more than TLS 1.3"
        assert hello[_ALPN] == b"\x00\x0b\x0ahedgerow/1"
        for stream in (each.sent, each.received):
            kinds = [kind for kind, _ in wire.records(stream.data)]
            assert kinds.count(22) == 1  # one hello; whatever else there is to say is encrypted
            assert 23 in kinds
    reached = {(each.server.host, each.server.port) for each in found}
    here = ["shop/web-0", "shop/mail-0"] if place in ("the switch", CLIENT) else [place]
    assert reached == {(mesh.pod(name).address, port) for name in here for port in ports[mesh.pod(name).address]}
    carried = sum(len(each.sent.data) + len(each.received.data) for each in found)
    assert carried >= BODY  # these connections are what carried it
