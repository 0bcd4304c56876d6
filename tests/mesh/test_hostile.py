"""Those who are let in and do harm: floods, broken protocols, and a sidecar that lies to its controller and its peers.

``docs/threats.md`` says which attacker each test stands for.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import socket
import ssl
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import grpc
import pytest

from graph.flow import EdgeKey
from graph.wire import hedgerow_pb2 as pb
from graph.wire import hedgerow_pb2_grpc as rpc
from hedgerow.local.description import WorkloadSpec
from hedgerow.local.mesh import LocalMesh
from hedgerow.local.processes import run
from tests.mesh.attacking import (
    ACCEPTED,
    ALLOWED,
    CLIENT,
    EVIL,
    LEGACY,
    OPEN,
    PING,
    PONG,
    PORT,
    REFUSED,
    SAYING,
    VICTIM,
    answers,
    calling,
    claim,
    hold,
    in_thread,
    knock,
    let_go,
    report,
    scene,
    stolen,
    tunnel,
    use,
)
from tests.mesh.running import set_mode

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("closed_scene")]

#: What a sidecar holds at once of connections that are not yet anybody's, and seconds that one of them has.
HANDSHAKES = 1024
HANDSHAKE_SECONDS = 5.0
#: Tunnels that one address may hold.
TUNNELS_EACH = 256
#: How a ClientHello of 512 bytes begins.
HALF_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


def workloads() -> list[WorkloadSpec]:
    return scene()


def resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# --- a stranger on the network


async def test_those_who_only_begin_keep_nobody_out(mesh: LocalMesh) -> None:
    """As many halves of a hello as a sidecar holds at once, and then a peer who needs a new tunnel."""
    victim = mesh.pod(VICTIM).address
    held = await in_thread(hold, victim, PORT, HANDSHAKES + 76, HALF_HELLO)
    try:
        good = await in_thread(answers, stolen(mesh, CLIENT), victim, PORT, OPEN + SAYING, len(ACCEPTED + SAYING))
        assert good == ACCEPTED + SAYING
    finally:
        let_go(held)


async def test_a_hello_in_many_pieces_has_the_time_of_one(mesh: LocalMesh) -> None:
    """A byte just before the deadline must not make a new one."""
    assert await in_thread(_trickle, mesh.pod(VICTIM).address) < 2 * HANDSHAKE_SECONDS


def _trickle(address: str) -> float:
    """Seconds that a hello is waited for that never comes to its end."""
    begun = time.monotonic()
    with socket.create_connection((address, PORT), 10) as sock, contextlib.suppress(ConnectionError):
        sock.sendall(HALF_HELLO)
        sock.settimeout(0.05)
        while time.monotonic() - begun < 2 * HANDSHAKE_SECONDS:
            with contextlib.suppress(TimeoutError):
                if not sock.recv(1):
                    break
            sock.sendall(b"x")
    return time.monotonic() - begun


async def test_held_connections_do_not_make_a_pod_look_unready(mesh: LocalMesh) -> None:
    held = await in_thread(hold, mesh.pod(VICTIM).address, 15021, 200)
    try:
        await mesh.pod(VICTIM).wait_ready(deadline=3)
    finally:
        let_go(held)


async def test_sidecar_and_controller_take_all_descriptors_that_they_may_have(mesh: LocalMesh) -> None:
    """With the usual 1,024 a few hundred connections of a stranger would use them up."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    await mesh.kill_sidecar(EVIL)
    await mesh.kill_controller()
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
    try:
        await mesh.start_controller()
        await mesh.start_sidecar(EVIL)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert before[1] > 1024
    for pid in (mesh.pod(EVIL).sidecar.pid, mesh.controller.pid):
        assert _open_files(pid) == [str(before[1])] * 2


def _open_files(pid: int) -> list[str]:
    """The soft and the hard limit of a process."""
    limits = Path(f"/proc/{pid}/limits").read_text()
    (line,) = (line for line in limits.splitlines() if line.startswith("Max open files"))
    return line.split()[3:5]


async def test_a_message_that_unpacks_to_much_more_is_not_unpacked(mesh: LocalMesh) -> None:
    """Without any certificate: 64 MiB of nothing, 64 KiB on the wire, for the issuer."""
    before = resident(mesh.controller.pid)
    async with calling(mesh, None, compression=grpc.Compression.Gzip) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await rpc.IssuerStub(channel).Sign(pb.SignRequest(csr_der=bytes(64 << 20), join_token="x"), timeout=30)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert resident(mesh.controller.pid) - before < 32 << 20


# --- a sidecar that was broken into, towards its peers


async def test_one_address_can_not_fill_a_sidecar_with_tunnels(mesh: LocalMesh) -> None:
    """Any certificate of the mesh opens a tunnel, whether the policy lets it in or not."""
    opened = await in_thread(_tunnels, stolen(mesh, EVIL), mesh.pod(VICTIM).address, TUNNELS_EACH + 8)
    assert opened == TUNNELS_EACH
    assert await use(mesh) == "knock"


def _tunnels(context: ssl.SSLContext, address: str, number: int) -> int:
    """How many of so many tunnels answer a ping, all held open."""
    with contextlib.ExitStack() as held:
        return sum(_pings(held, context, address) for _ in range(number))


def _pings(held: contextlib.ExitStack, context: ssl.SSLContext, address: str) -> bool:
    with contextlib.suppress(OSError):
        sock = held.enter_context(tunnel(context, address))
        sock.sendall(PING)
        return sock.recv(len(PONG)) == PONG
    return False


async def test_whatever_comes_out_of_a_tunnel_ends_that_tunnel_alone(mesh: LocalMesh) -> None:
    """Random frames, well-formed ones out of turn, endless payloads: beside the client's own traffic."""
    victim, seed = mesh.pod(VICTIM), random.Random(7)
    before = resident(victim.sidecar.pid)
    nonsense = [seed.randbytes(2000) for _ in range(8)]
    nonsense += [_frames(seed) for _ in range(12)]
    nonsense += [OPEN + b"\x00\x00\x00\x00\x00\x00\x00\x01\xff\xff\xff\xff" + bytes(1 << 20)]  # 4 GiB announced
    for number, said in enumerate(nonsense):
        pod = (EVIL, CLIENT)[number % 2]  # of one every stream is refused, of the other it is served
        await in_thread(answers, stolen(mesh, pod), victim.address, PORT, said + PING, 4096, 0.5)
        if number % 8 == 0:
            assert await use(mesh) == "knock"
    assert resident(victim.sidecar.pid) - before < 48 << 20


def _frames(seed: random.Random) -> bytes:
    """Frames with valid types and flags in an invalid order, ending in one that no tunnel survives."""
    kinds, flags = (0, 1, 2, 3), (0, 1, 2, 4, 8, 5, 6)
    said = OPEN
    for _ in range(30):
        word = seed.choice(kinds) << 16 | seed.choice(flags)
        stream, size = seed.choice((0, 1, 1, 1, 2, 3, 2**32 - 1)), seed.choice((0, 1, 5, 262_145, 2**32 - 1))
        said += word.to_bytes(4) + stream.to_bytes(4) + size.to_bytes(4) + bytes(min(size, 64))
    return said + b"\xff" * 12


# --- a sidecar that was broken into, towards the controller


async def test_a_lying_sidecar_opens_nothing_for_anybody(mesh: LocalMesh) -> None:
    """Everything that could make a rule of a claim: of others' ends, of its own, in a mode that is over."""
    claims = [
        claim("shop/client", "shop/evil", "inbound"),  # its own end: the client called me, verified
        claim("shop/evil", "shop/victim", "outbound"),  # its own end: the victim let me in
        claim("shop/evil", "lab/legacy", "outbound", verified=False),  # nobody is there to contradict
        claim("shop/client", "shop/victim", "inbound", port=PORT + 1),  # somebody else's ends
        claim("lab/legacy", "shop/victim", "outbound"),
        claim("-/203.0.113.9", "shop/evil", "inbound"),
        claim("shop/evil", "-/203.0.113.9", "outbound", port=443),
    ]
    async with calling(mesh, EVIL) as channel:
        for _ in range(3):
            await report(channel, claims, boot_id=str(uuid.uuid4()))
            await asyncio.sleep(0.2)  # past the gate: an edge is learned once it is 0.2 s old
    edges = {edge["id"]: edge for edge in (await mesh.api.get("/graph"))["edges"]}
    assert "shop/evil->lab/legacy:7000/TCP" in edges, "what it says of its own end is shown"
    assert str(EdgeKey(ALLOWED.source, ALLOWED.destination, PORT + 1)) not in edges
    assert "lab/legacy->shop/victim:7000/TCP" not in edges
    assert {key for key, edge in edges.items() if edge["state"] == "active"} == {str(ALLOWED)}
    assert [rule["id"] for rule in (await mesh.api.get("/policy"))["rules"]] == [f"learned/{ALLOWED}"]
    evil, legacy = mesh.pod(EVIL), mesh.pod(LEGACY)
    assert await knock(mesh.pod(CLIENT), [{"host": evil.address, "port": PORT}]) == [""]
    assert await knock(evil, [{"host": legacy.address, "port": PORT}]) == [""]
    sidecars = {each["instance"]: each for each in (await mesh.api.get("/status"))["sidecars"]}
    assert sidecars["evil-0"]["refused"] >= 6, "and the lies about others are counted"


async def test_while_it_learns_one_liar_alone_still_opens_nothing(mesh: LocalMesh) -> None:
    """In mode learn anybody may call anybody, so the learner wants to hear it of both ends."""
    await set_mode(mesh, "shop", "learn", "permissive")
    try:
        async with calling(mesh, EVIL) as channel:
            claims = [claim("shop/victim", "shop/evil", "inbound"), claim("shop/evil", "shop/victim", "outbound")]
            for _ in range(3):
                await report(channel, claims, boot_id=str(uuid.uuid4()))
                await asyncio.sleep(0.2)
        edges = {edge["id"]: edge["state"] for edge in (await mesh.api.get("/graph"))["edges"]}
        assert edges["shop/victim->shop/evil:7000/TCP"] == edges["shop/evil->shop/victim:7000/TCP"] == "proposed"
    finally:
        await set_mode(mesh, "shop", "enforce", "strict")


async def test_clocks_and_counters_of_a_liar_are_bounded(mesh: LocalMesh) -> None:
    mine = {"source": "shop/evil", "destination": "shop/victim", "direction": "outbound", "port": 7777}
    future = claim(**mine, first_seen=9e12, last_seen=9e15, connections=2**48, bytes_sent=2**48)
    past = claim(**mine, first_seen=0.0, last_seen=1.0)
    async with calling(mesh, EVIL) as channel:
        await report(channel, [future, past], boot_id="a-liar")
        (edge,) = (e for e in (await mesh.api.get("/graph"))["edges"] if e["id"].endswith(":7777/TCP"))
        assert edge["last_seen"] <= time.time()
        assert edge["first_seen"] > time.time() - 2 * 86400
        for wrong in ({"connections": 2**49}, {"last_seen": float("nan")}, {"reporter": "evil\n0"}, {"port": 70000}):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await report(channel, [claim(**{**mine, **wrong})], boot_id="a-liar", sequence=2)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def refusal_of(stream: Any, number: int) -> grpc.StatusCode | None:
    """How the controller refuses one more stream of reports; None when it answers."""
    try:
        await stream.write(pb.FlowBatch(boot_id=f"b{number}", sequence=1))
        if await stream.read() is not grpc.aio.EOF:
            return None
    except grpc.aio.AioRpcError as error:
        return error.code()
    except asyncio.InvalidStateError:  # it ended before there was anything to write to
        pass
    return await stream.code()


async def test_a_sidecar_hears_its_own_policy_alone_and_opens_few_streams(mesh: LocalMesh) -> None:
    async with calling(mesh, EVIL) as channel:
        call = rpc.PolicyStub(channel).Watch(timeout=20)
        await call.write(pb.PolicyRequest(hello=pb.PolicyHello(boot_id="x", software="x")))
        push = await call.read()
        assert b"shop/evil" in push.snapshot.payload
        assert b"shop/victim" not in push.snapshot.payload
        call.cancel()
        streams = [rpc.TelemetryStub(channel).ReportFlows(timeout=20) for _ in range(8)]
        codes = await asyncio.gather(*(refusal_of(stream, number) for number, stream in enumerate(streams)))
        # gRPC's client calls an end that comes while it writes an internal one, whatever the server said
        assert set(codes) - {None} <= {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL}
        assert 1 <= codes.count(None) <= 4  # it has four, its own sidecar's among them
        for stream in streams:
            stream.cancel()


async def test_what_a_sidecar_says_of_itself_forges_no_line_and_no_colour(mesh: LocalMesh) -> None:
    """Terminal escapes, markup and line ends, on their way to logs, the API and a person's terminal."""
    words = "\x1b[2J\x1b[31m[bold red]all is well[/]\n2099-01-01 00:00:00 INFO forged\u2028<script>alert(1)</script>"
    await mesh.kill_sidecar(EVIL)  # there is one policy stream for each instance
    async with calling(mesh, EVIL) as channel:
        call = rpc.PolicyStub(channel).Watch(timeout=20)
        await call.write(pb.PolicyRequest(hello=pb.PolicyHello(boot_id="x", software=words)))
        push = await call.read()
        await call.write(pb.PolicyRequest(nack=pb.PolicyNack(nonce=push.nonce, error=words)))

        async def told() -> Any:
            sidecars = (await mesh.api.get("/status"))["sidecars"]
            return next((each for each in sidecars if each["instance"] == "evil-0" and each["nack"]), None)

        said = await mesh.wait_for(told, "the refusal to be shown", 10)
        access = {"HEDGEROW_SERVER": mesh.server, "HEDGEROW_TOKEN": mesh.token, "FORCE_COLOR": "1", "COLUMNS": "400"}
        shown = await run(_hedgerow("status"), env={**os.environ, **access})
        call.cancel()
    await mesh.start_sidecar(EVIL)
    assert "[bold red]all is well[/]" in said["nack"]
    assert said["nack"].isprintable()
    assert said["software"].isprintable()
    assert shown.code == 0, shown.stderr
    assert "[bold red]all is well[/]" in shown.stdout, "markup is text to the terminal"
    assert "\x1b[2J" not in shown.stdout
    assert "\n2099" not in shown.stdout
    log = mesh.controller.log.read_text()
    assert "forged" in log
    assert not [line for line in log.splitlines() if line.startswith("2099") or "\x1b" in line]


def _hedgerow(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "hedgerow", *arguments]


# --- quarantine


async def test_a_workload_in_quarantine_is_cut_off_by_its_peers_too(mesh: LocalMesh) -> None:
    """A sidecar that was broken into does not hold itself to its quarantine; what it has open ends as well."""
    body = {"workload": "shop/client", "direction": "both", "inbound_tls": None, "owner": "t", "reason": "t"}
    victim, context = mesh.pod(VICTIM).address, stolen(mesh, CLIENT)
    with contextlib.ExitStack() as held:
        sock = await in_thread(held.enter_context, tunnel(context, victim))
        sock.sendall(OPEN + SAYING)
        assert await in_thread(_take, sock, len(ACCEPTED + SAYING)) == ACCEPTED + SAYING
        try:
            await mesh.api.post("/modes", {**body, "mode": "quarantine"})
            assert await in_thread(_take, sock, len(REFUSED)) == REFUSED
            assert await in_thread(answers, context, victim, PORT, OPEN + SAYING, len(REFUSED)) == REFUSED
        finally:
            await mesh.api.post("/modes", {**body, "mode": "enforce"})

    async def open_again() -> bool:
        return await use(mesh) == "knock"

    await mesh.wait_for(open_again, "the quarantine to end")


def _take(sock: ssl.SSLSocket, size: int) -> bytes:
    got = b""
    while len(got) < size and (more := sock.recv(size - len(got))):
        got += more
    return got
