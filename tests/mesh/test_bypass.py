"""Ways around the fence, tried for real: by a pod that is not of the mesh, and by an application that was broken into.

``docs/threats.md`` says which attacker each test stands for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from collections.abc import Callable, Iterator

import pytest

from hedgerow.local.description import WorkloadSpec
from hedgerow.local.mesh import LocalMesh
from hedgerow.local.processes import run
from tests.mesh.attacking import EVIL, INTRUDER, LEGACY, LOOPBACK_PORT, PORT, VICTIM, in_thread, knock, scene

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("closed_scene")]

#: The sidecar's own ports, and what it must not be talked into relaying to.
SIDECAR_PORTS = (15000, 15001, 15006, 15020, 15021)
MULTIPATH = 262
_EVERYTHING = 3  # ETH_P_ALL: on every device, in both directions
_IPV4 = b"\x08\x00"


def workloads() -> list[WorkloadSpec]:
    return scene()


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
