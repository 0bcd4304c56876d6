"""Ways around the fence, tried for real: by a pod that is not of the mesh, by an application that was broken into, and
with certificates that prove the wrong thing. ``docs/threats.md`` says which attacker each test stands for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from certs.ca import CertificateAuthority
from certs.keys import make_csr, new_key
from certs.spiffe import SpiffeId
from certs.svid import check_leaf, instance_of
from graph.wire import hedgerow_pb2 as pb
from graph.wire import hedgerow_pb2_grpc as rpc
from hedgerow.local.description import WorkloadSpec
from hedgerow.local.mesh import LocalMesh
from hedgerow.local.processes import run
from tests.certs.forge import Chain, Forge, Leaf, key_usage, uris
from tests.mesh.attacking import (
    ACCEPTED,
    CLIENT,
    EVIL,
    INTRUDER,
    LEGACY,
    LOOPBACK_PORT,
    OPEN,
    PORT,
    REFUSED,
    SAYING,
    VICTIM,
    answers,
    calling,
    close_scene,
    in_thread,
    issuing,
    knock,
    presenting,
    scene,
    stolen,
    use,
    write_chain,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: The sidecar's own ports, and what it must not be talked into relaying to.
SIDECAR_PORTS = (15000, 15001, 15006, 15020, 15021)
MULTIPATH = 262
_EVERYTHING = 3  # ETH_P_ALL: on every device, in both directions
_IPV4 = b"\x08\x00"


def workloads() -> list[WorkloadSpec]:
    return scene()


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def closed(mesh: LocalMesh) -> AsyncIterator[None]:
    await close_scene(mesh)
    yield
    assert await use(mesh) == "knock", "the attacks must not have cost the victim its client"


async def inside(pod: str, command: str) -> None:
    """Change a pod's network as only its node may."""
    await run(["nsenter", f"--net=/run/netns/{pod.replace('/', '--')}", "sh", "-ec", command], check=True)


# --- from the network


async def test_no_port_of_a_closed_pod_answers_a_stranger(mesh: LocalMesh) -> None:
    victim = mesh.pod(VICTIM).address
    ports = (22, PORT, PORT + 1, LOOPBACK_PORT, *SIDECAR_PORTS)
    tries = [{"host": victim, "port": port} for port in ports]
    tries += [{"host": f"::ffff:{victim}", "port": PORT}, {"host": victim, "port": PORT, "protocol": MULTIPATH}]
    assert set(await knock(mesh.pod(INTRUDER), tries)) == {""}
    for path, said in (("/healthz/ready", b"HTTP/1.1 200 "), ("/stats", b"HTTP/1.1 403 "), ("/", b"HTTP/1.1 404 ")):
        reader, writer = await asyncio.open_connection(victim, 15021)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert (await reader.read()).startswith(said)
        writer.close()


async def test_ipv6_is_no_second_door(mesh: LocalMesh) -> None:
    """Pods have no IPv6 address here, so both get one: what nothing listens for is refused and not let through."""
    await run(["ip", "addr", "add", "fd77::1/64", "dev", "hedgerow0", "nodad"], check=True)
    try:
        for pod, address in ((VICTIM, "fd77::2"), (EVIL, "fd77::3"), (LEGACY, "fd77::4")):
            await inside(pod, f"ip addr add {address}/64 dev eth0 nodad")
        assert await in_thread(_echo, "fd77::4") == b"knock", "without a sidecar the program answers"
        assert await in_thread(_echo, "fd77::2") == b""
        assert await knock(mesh.pod(EVIL), [{"host": "fd77::2", "port": PORT}, {"host": "fd77::4", "port": PORT}]) == [
            "",
            "",
        ]
    finally:
        await run(["ip", "addr", "del", "fd77::1/64", "dev", "hedgerow0"], check=True)
        for pod in (VICTIM, EVIL, LEGACY):
            await inside(pod, "ip -6 addr flush dev eth0")


def _echo(address: str) -> bytes:
    try:
        with socket.create_connection((address, PORT), 5) as sock:
            sock.sendall(b"knock")
            return sock.recv(5)
    except OSError:
        return b""


# --- from an application in a pod of the mesh


async def test_an_application_reaches_nothing_that_was_not_learned(mesh: LocalMesh) -> None:
    victim, legacy, own = (mesh.pod(name).address for name in (VICTIM, LEGACY, EVIL))
    tries = [
        *({"host": victim, "port": port} for port in (PORT, LOOPBACK_PORT, *SIDECAR_PORTS)),
        *({"host": own, "port": port} for port in SIDECAR_PORTS),
        *({"host": "127.0.0.1", "port": port} for port in SIDECAR_PORTS),
        {"host": legacy, "port": PORT},
        {"host": f"::ffff:{legacy}", "port": PORT},
        {"host": legacy, "port": PORT, "protocol": MULTIPATH},
        {"host": legacy, "port": PORT, "source": victim},
        {"host": mesh.pod(INTRUDER).address, "port": PORT},
        {"host": "${service:victim}", "port": PORT},
        {"host": "${service:legacy.lab}", "port": PORT},
        *({"host": host, "port": PORT, "device": "eth0"} for host in (victim, legacy)),
        *({"host": host, "port": PORT, "device": "lo"} for host in (victim, legacy)),
    ]
    came = await knock(mesh.pod(EVIL), [*tries, {"host": "127.0.0.1", "port": PORT}])
    assert came.pop() == "knock", "the program itself answers, so that the others mean something"
    # readiness is for everybody: it answers what is no HTTP at all with its refusal
    assert {answer for answer in came if not answer.startswith("HTTP")} == {""}


async def test_a_socket_bound_to_a_device_never_leaves_past_the_sidecar(mesh: LocalMesh) -> None:
    """Also where the node forwards and takes loopback addresses from the network, as some nodes do."""
    legacy = mesh.pod(LEGACY).address
    sysctls = " ".join(
        f"net/ipv4/{name}=1" for name in ("ip_forward", "conf/all/accept_local", "conf/all/route_localnet")
    )
    await inside(EVIL, f"for s in {sysctls}; do echo ${{s#*=}} > /proc/sys/${{s%=*}}; done")
    with _packets() as seen:
        ways = [(host, device) for host in ("127.0.0.1", legacy) for device in ("lo", "eth0")]
        tries = [{"host": host, "port": PORT, "device": device} for host, device in ways]
        assert await knock(mesh.pod(EVIL), tries) == ["knock", "", "", ""]  # the first is its own loopback
        assert await knock(mesh.pod(INTRUDER), [{"host": legacy, "port": PORT}]) == ["knock"]
        ends = seen()
    assert (mesh.pod(INTRUDER).address, legacy) in ends, "the watch works"
    evil = mesh.pod(EVIL).address
    assert not [end for end in ends if end[0] == evil and end[1] in (legacy, "127.0.0.1")]


@contextlib.contextmanager
def _packets() -> Iterator[Callable[[], set[tuple[str, str]]]]:
    """Watch the switch; the answer gives source and destination of the TCP packets for the programs' port so far."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(_EVERYTHING)) as tap:
        tap.setblocking(False)

        def seen() -> set[tuple[str, str]]:
            found = set()
            with contextlib.suppress(BlockingIOError):
                while True:
                    frame = tap.recv(2048)
                    if (
                        frame[12:14] == _IPV4
                        and frame[23] == socket.IPPROTO_TCP
                        and int.from_bytes(frame[36:38]) == PORT
                    ):
                        found.add((socket.inet_ntoa(frame[26:30]), socket.inet_ntoa(frame[30:34])))
            return found

        yield seen


@pytest.mark.parametrize("port", SIDECAR_PORTS)
async def test_an_application_can_not_be_called_on_the_sidecars_ports(mesh: LocalMesh, port: int) -> None:
    """An accomplice in the pod would listen where capture lets everybody in."""
    evil = mesh.pod(EVIL)
    listen = (
        "import socket, sys\n"
        f"try: s = socket.create_server(('0.0.0.0', {port}))\n"
        "except OSError: sys.exit('taken')\n"
        "print('listening', flush=True); s.settimeout(2)\n"
        "try: c, _ = s.accept(); c.sendall(b'accomplice'); print('called')\n"
        "except TimeoutError: pass"
    )
    accomplice = asyncio.ensure_future(evil.exec([sys.executable, "-P", "-c", listen]))
    await asyncio.sleep(0)

    async def calls() -> bool:
        came = await in_thread(_read, evil.address, port)
        assert b"accomplice" not in came
        return accomplice.done()

    await mesh.wait_for(calls, "the accomplice to give up", 15)
    done = await accomplice
    assert "called" not in done.stdout
    assert "listening" in done.stdout or "taken" in done.stderr


def _read(address: str, port: int) -> bytes:
    try:
        with socket.create_connection((address, port), 2) as sock:
            sock.settimeout(0.3)
            return sock.recv(100)
    except OSError:
        return b""


PRIVILEGES = r"""
import ctypes, json, os, signal, socket, sys
from pathlib import Path
sidecar, controller, state = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
libc = ctypes.CDLL(None, use_errno=True)
got = []
def trying(name, act):
    try:
        if act() is not False:
            got.append(name)
    except OSError:
        pass
def mark():
    with socket.socket() as s: s.setsockopt(socket.SOL_SOCKET, 36, 1337)
def listing(path):
    return bool(os.listdir(path))
trying("mark", mark)
trying("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP).close())
trying("packet", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close())
for uid in (0, 1337, 1338):
    trying(f"setuid {uid}", lambda: os.setuid(uid))
trying("rules", lambda: os.system("nft delete table inet hedgerow 2>/dev/null") == 0)
trying("address", lambda: os.system("ip addr add 10.77.9.9/16 dev eth0 2>/dev/null") == 0)
for name, pid in (("sidecar", sidecar), ("controller", controller)):
    for entry in ("mem", "environ", "maps", "auxv", "stack"):
        trying(f"{name} {entry}", lambda: bool(Path(f"/proc/{pid}/{entry}").open("rb").read(1)))
    for entry in ("fd", "root", "cwd", "map_files"):
        trying(f"{name} {entry}", lambda: listing(f"/proc/{pid}/{entry}"))
    trying(f"{name} kill", lambda: os.kill(pid, signal.SIGCONT))
    trying(f"{name} ptrace", lambda: libc.ptrace(16, pid, 0, 0) == 0)
    trying(f"{name} pidfd", lambda: libc.syscall(438, os.pidfd_open(pid), 3, 0) >= 0)
    trying(f"{name} network", lambda: os.setns(os.open(f"/proc/{pid}/ns/net", os.O_RDONLY), 0))
trying("state", lambda: listing(state))
trying("userns", lambda: os.unshare(0x10000000))  # all capabilities, but over nothing that is ours
if "userns" in got:
    got.remove("userns")
trying("mark in a user namespace", mark)
trying("rules from a user namespace", lambda: os.system("nft delete table inet hedgerow 2>/dev/null") == 0)
print(json.dumps(got))
"""


async def test_an_application_has_no_grip_on_sidecar_controller_or_capture(mesh: LocalMesh) -> None:
    evil = mesh.pod(EVIL)
    assert evil.state_dir.is_dir()
    pids = (str(evil.sidecar.pid), str(mesh.controller.pid))
    done = await evil.exec([sys.executable, "-P", "-c", PRIVILEGES, *pids, str(evil.state_dir)])
    assert (done.code, json.loads(done.stdout or "null")) == (0, []), done.stderr


# --- with certificates


async def test_only_a_workloads_own_valid_certificate_opens_a_tunnel_and_only_its_own_edges(
    mesh: LocalMesh, tmp_path: Path
) -> None:
    victim = mesh.pod(VICTIM).address
    whole = len(ACCEPTED) + len(SAYING)
    good = await in_thread(answers, stolen(mesh, CLIENT), victim, PORT, OPEN + SAYING, whole)
    assert good == ACCEPTED + SAYING, "the client's own certificate gets an answer"
    # a tunnel leads to the port that it was opened to, and says nothing of others
    for port in (PORT + 1, LOOPBACK_PORT):
        assert await in_thread(answers, stolen(mesh, CLIENT), victim, port, OPEN + SAYING, len(REFUSED)) == REFUSED
    for port in (15000, 15001, 15006, 15020):
        came = await in_thread(answers, stolen(mesh, CLIENT), victim, port, OPEN + SAYING, 1)
        assert came == b""
    assert await in_thread(answers, stolen(mesh, EVIL), victim, PORT, OPEN + SAYING, len(REFUSED)) == REFUSED
    for name, chain in _forged(mesh).items():
        context = presenting(mesh, write_chain(tmp_path, name, chain))
        came = await in_thread(answers, context, victim, PORT, OPEN + SAYING, len(REFUSED))
        # the controller is somebody, and nobody whom the policy lets in
        assert came == (REFUSED if name == "controller" else b""), name


def _forged(mesh: LocalMesh) -> dict[str, Chain]:
    """What the mesh's own issuing key could sign, and must not be taken for the client's identity now."""
    now = time.time()
    key, foreign = issuing(mesh, now), Forge.root(now)
    own = uris(_id("client"))
    authority = CertificateAuthority.load((mesh.controller_state / "ca" / "authority.pem").read_bytes())
    signer, server = new_key(), new_key()
    both = (*own, x509.DNSName("victim.shop"))
    return {
        "foreign": foreign.sign(Leaf(names=own)),
        "foreign intermediate": foreign.intermediate().sign(Leaf(names=own)),
        "expired": key.sign(Leaf(names=own, begins=-7200, ends=-5)),
        "not yet valid": key.sign(Leaf(names=own, begins=3600, ends=7200)),
        "another trust domain": key.sign(Leaf(names=uris("spiffe://evil.local/ns/shop/sa/client/wl/client"))),
        "two identities": key.sign(Leaf(names=(*own, *uris(_id("evil"))))),
        "a name beside it": key.sign(Leaf(names=both)),
        "clients only": key.sign(Leaf(names=own, purposes=(ExtendedKeyUsageOID.CLIENT_AUTH,))),
        "signing usage": key.sign(Leaf(names=own, usage=key_usage("digital_signature", "key_cert_sign"))),
        "an authority": key.sign(Leaf(names=own, constraints=x509.BasicConstraints(True, 0))),
        "the issuing certificate": Chain((key.der,), key.key),
        "policy signer": Chain(authority.sign_policy_signer(make_csr(signer), now).chain_der, signer),
        "controller": Chain(authority.sign_controller(make_csr(server), now, 600).chain_der, server),
    }


def _id(name: str) -> str:
    return str(SpiffeId.for_workload("hedgerow.local", "shop", name, name))


async def test_a_recorded_handshake_opens_nothing_and_no_session_is_resumed(mesh: LocalMesh) -> None:
    victim = mesh.pod(VICTIM).address
    context = stolen(mesh, CLIENT)
    flights, session = await in_thread(_record, context, victim)
    assert session is None or not session.has_ticket
    assert await in_thread(_replay, flights, victim) == b""


def _record(context: ssl.SSLContext, address: str) -> tuple[list[bytes], ssl.SSLSession | None]:
    """Use a tunnel once; what was sent, flight by flight, and its session."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    channel = context.wrap_bio(incoming, outgoing)
    flights: list[bytes] = []
    with socket.create_connection((address, PORT), 10) as sock:

        def exchange() -> None:
            if data := outgoing.read():
                flights.append(data)
                sock.sendall(data)

        while True:
            try:
                channel.do_handshake()
                break
            except ssl.SSLWantReadError:
                exchange()
                incoming.write(sock.recv(65536))
        channel.write(OPEN + SAYING)
        exchange()
        got = b""
        while len(got) < len(ACCEPTED) + len(SAYING):
            try:
                got += channel.read(4096)
            except ssl.SSLWantReadError:
                incoming.write(sock.recv(65536))
    assert got == ACCEPTED + SAYING
    return flights, channel.session


def _replay(flights: list[bytes], address: str) -> bytes:
    """Send the same bytes again; what the sidecar says after its own part of the handshake, that is not an alert."""
    with socket.create_connection((address, PORT), 10) as sock, contextlib.suppress(OSError):
        sock.sendall(flights[0])
        assert sock.recv(65536)[:1] == b"\x16"  # its hello: the recorded one is as good as any
        sock.sendall(b"".join(flights[1:]))
        rest = b""
        while more := sock.recv(65536):
            rest += more
        assert len(rest) < 200, "an alert at most"
    return b""


async def test_a_workload_can_not_pose_as_the_controller(mesh: LocalMesh) -> None:
    """The controller's name is in no other certificate: a sidecar that is led astray gives its flows to nobody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(mesh.pod(EVIL).state_dir / "svid.pem")
    context.set_alpn_protocols(["h2"])
    listening = await asyncio.start_server(_never_called, "127.0.0.1", 0, ssl=context)
    port = listening.sockets[0].getsockname()[1]
    roots = (mesh.root / "trust-bundle.pem").read_bytes()
    name = [("grpc.ssl_target_name_override", "hedgerow-controller.hedgerow-system.svc")]
    async with (
        listening,
        grpc.aio.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(roots), options=name) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError, match="Hostname Verification Check failed"):
            await rpc.IssuerStub(channel).Sign(pb.SignRequest(join_token="secret"), timeout=10)


async def _never_called(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def test_a_certificate_is_renewed_for_its_own_workload_whatever_the_request_asks(mesh: LocalMesh) -> None:
    key = new_key()
    names = x509.SubjectAlternativeName(uris(_id("client")))
    subject = x509.Name([x509.NameAttribute(x509.NameOID.DN_QUALIFIER, "client-0")])
    asking = x509.CertificateSigningRequestBuilder().subject_name(subject).add_extension(names, critical=True)
    async with calling(mesh, EVIL) as channel:
        issuer = rpc.IssuerStub(channel)
        for csr in (make_csr(key), asking.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)):
            answer = await issuer.Sign(pb.SignRequest(csr_der=csr), timeout=10)
            assert (answer.spiffe_id, answer.instance) == (_id("evil"), "evil-0")
            assert check_leaf(answer.chain_der[0], "hedgerow.local", time.time()) == SpiffeId.parse(_id("evil"))
            assert instance_of(answer.chain_der[0]) == "evil-0"
