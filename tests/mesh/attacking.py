"""What attackers of a mesh have: a foot on its network, a program in a pod, or what a sidecar holds.

The test session itself is the best unmeshed pod there is: it is root on the switch that all pods hang on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from certs.ca import CertificateAuthority
from certs.spiffe import CONTROLLER_DNS_NAME
from graph.flow import EdgeKey
from graph.model import WorkloadRef
from graph.wire import hedgerow_pb2 as pb
from graph.wire import hedgerow_pb2_grpc as rpc
from hedgerow.local.description import WorkloadSpec
from hedgerow.local.mesh import LocalMesh
from hedgerow.local.pod import Pod
from tests.certs.forge import Chain, Forge
from tests.mesh.running import client, close, script, server, set_mode

PORT = 7000
LOOPBACK_PORT = 9000

VICTIM, CLIENT, EVIL = "shop/victim-0", "shop/client-0", "shop/evil-0"
INTRUDER, LEGACY = "lab/intruder-0", "lab/legacy-0"

#: The one edge that is learned before the namespace ``shop`` is closed.
ALLOWED = EdgeKey(WorkloadRef("shop", "client"), WorkloadRef("shop", "victim"), PORT)


def scene() -> list[WorkloadSpec]:
    """A victim with one client, a service that was broken into, one without a sidecar, and one in nobody's books."""
    victim = script("victim.py", PORT, LOOPBACK_PORT)
    return [
        server("shop/victim", victim, PORT),
        client("shop/client"),
        server("shop/evil", victim, PORT),
        server("lab/legacy", victim, PORT, meshed=False),
        client("lab/intruder", meshed=False, listed=False),
    ]


async def close_scene(mesh: LocalMesh) -> None:
    """Learn the one edge, then enforce; what the attacker must not get is shown to work for whom it is meant."""
    await set_mode(mesh, "shop", "learn", "permissive")
    assert await use(mesh) == "knock"
    await close(mesh, [ALLOWED])
    assert await use(mesh) == "knock"


async def use(mesh: LocalMesh) -> str:
    """The client's own call of the victim; ``knock`` when it is served."""
    (answer,) = await knock(mesh.pod(CLIENT), [{"host": mesh.pod(VICTIM).address, "port": PORT}])
    return answer


async def knock(pod: Pod, attempts: Sequence[dict[str, Any]]) -> list[str]:
    """What came back for each of ``attempts`` (see ``programs/knock.py``), made by an application in ``pod``."""
    done = await pod.exec(script("knock.py", json.dumps(attempts)))
    assert done.code == 0, done.stderr
    answers: list[str] = json.loads(done.stdout)
    return answers


# --- tunnels, spoken by hand

_HEADER = struct.Struct("!III")
OPEN = _HEADER.pack(1 << 16 | 1, 1, 0)
PING = _HEADER.pack(2 << 16 | 1, 0, 7)
PONG = _HEADER.pack(2 << 16 | 2, 0, 7)
REFUSED = _HEADER.pack(1 << 16 | 8, 1, 0)
ACCEPTED = _HEADER.pack(1 << 16 | 2, 1, 0)
SAYING = _HEADER.pack(0, 1, 5) + b"knock"


def stolen(mesh: LocalMesh, pod: str) -> ssl.SSLContext:
    """What whoever broke into a pod's sidecar can connect with."""
    return presenting(mesh, mesh.pod(pod).state_dir / "svid.pem")


def presenting(mesh: LocalMesh, pem: Path) -> ssl.SSLContext:
    """A client's context with a certificate, its chain and key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.load_verify_locations(cafile=mesh.root / "trust-bundle.pem")
    context.load_cert_chain(pem)
    context.set_alpn_protocols(["hedgerow/1"])
    return context


@contextlib.contextmanager
def tunnel(context: ssl.SSLContext, address: str, port: int = PORT) -> Iterator[ssl.SSLSocket]:
    """:raises OSError: when there is none; ``ssl.SSLError`` is one"""
    # wrapped before it connects: wrapping a connection that the peer has reset already leaves its socket open
    with context.wrap_socket(socket.socket()) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(10)
        sock.connect((address, port))
        yield sock


def answers(context: ssl.SSLContext, address: str, port: int, said: bytes, least: int, patience: float = 10.0) -> bytes:
    """What a sidecar answers to frames: ``least`` bytes, unless it ends the tunnel or says nothing for ``patience``
    seconds before; empty when it has none."""
    got = b""
    with contextlib.suppress(OSError), tunnel(context, address, port) as sock:
        sock.settimeout(patience)
        sock.sendall(said)
        while len(got) < least and (more := sock.recv(4096)):
            got += more
    return got


# --- certificates


def issuing(mesh: LocalMesh, now: float) -> Forge:
    """The mesh's own issuing key, as whoever broke into the controller has it, ready to sign anything."""
    authority = CertificateAuthority.load((mesh.controller_state / "ca" / "authority.pem").read_bytes())
    return Forge(now, authority.issuing.certificate, authority.issuing.key)


def write_chain(folder: Path, name: str, chain: Chain) -> Path:
    path = folder / f"{name}.pem"
    path.write_text(chain.pem)
    return path


# --- the controller's gRPC, with a stolen certificate


@contextlib.asynccontextmanager
async def calling(mesh: LocalMesh, pod: str | None, **options: Any) -> Any:
    """A channel to the controller as the sidecar of ``pod``; None: to the issuer, without a certificate."""
    roots = (mesh.root / "trust-bundle.pem").read_bytes()
    key = chain = None
    if pod is not None:
        pem = (mesh.pod(pod).state_dir / "svid.pem").read_bytes()
        end = pem.index(b"-----BEGIN CERTIFICATE-----")
        key, chain = pem[:end], pem[end:]
    port = 15013 if pod is None else 15012
    async with grpc.aio.secure_channel(
        f"{mesh.controller_address}:{port}",
        grpc.ssl_channel_credentials(roots, key, chain),
        options=[("grpc.ssl_target_name_override", CONTROLLER_DNS_NAME), ("grpc.max_send_message_length", -1)],
        **options,
    ) as channel:
        yield channel


def claim(source: str, destination: str, direction: str, **changes: Any) -> pb.Flow:
    """A flow that nobody saw, as convincing as can be."""
    now = time.time()
    fields: dict[str, Any] = {
        "source": source, "destination": destination, "port": PORT, "protocol": "TCP", "direction": direction,
        "reporter": "evil-0", "verified": True, "verdict": "allow", "pending": "deny", "reason": "learning",
        "connections": 50, "bytes_sent": 1, "bytes_received": 1, "first_seen": now - 3600, "last_seen": now,
        "source_identity": _identity(source), "destination_identity": _identity(destination),
    }  # fmt: skip
    return pb.Flow(**{**fields, **changes})


def _identity(name: str) -> str:
    namespace, _, workload = name.partition("/")
    return "" if namespace == "-" else f"spiffe://hedgerow.local/ns/{namespace}/sa/{workload}/wl/{workload}"


async def report(channel: grpc.aio.Channel, flows: Iterable[pb.Flow], boot_id: str, sequence: int = 1) -> int:
    """Report flows; returns the acknowledged sequence.

    :raises grpc.aio.AioRpcError: when the controller refuses
    """
    call = rpc.TelemetryStub(channel).ReportFlows(timeout=20)
    await call.write(pb.FlowBatch(boot_id=boot_id, sequence=sequence, policy_version=1, flows=flows))
    await call.done_writing()
    ack: Any = await call.read()
    if ack is grpc.aio.EOF:
        raise grpc.aio.AioRpcError(await call.code(), None, None, details=await call.details())
    return int(ack.sequence)


# --- floods


def hold(address: str, port: int, number: int, said: bytes = b"") -> list[socket.socket]:
    """Open connections and leave them."""
    held = []
    for _ in range(number):
        sock = socket.create_connection((address, port), 10)
        held.append(sock)
        with contextlib.suppress(OSError):
            if said:
                sock.sendall(said)
    return held


def let_go(held: Iterable[socket.socket]) -> None:
    for sock in held:
        sock.close()


async def in_thread[T](work: Any, *arguments: Any) -> T:
    """Blocking attack code, beside the event loop."""
    return await asyncio.to_thread(work, *arguments)
