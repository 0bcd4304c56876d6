"""Real programs through the mesh, unmodified: first while it learns, then closed, by name and service address alone.

Every program is used twice. While the mesh learns, its edge comes to be known; in the closed mesh (mode enforce,
inbound mutual TLS alone) the same use has to go as well, and a pod that was never learned, and one without a sidecar,
have to be refused by the same server.
"""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from graph.flow import EdgeKey
from graph.model import WorkloadRef
from hedgerow.local.description import WorkloadSpec
from hedgerow.local.mesh import LocalMesh
from hedgerow.local.pod import Pod
from hedgerow.local.processes import Completed, Process
from tests.mesh.running import (
    PROGRAMS,
    Counters,
    Traffic,
    check_counted,
    client,
    close,
    find_edge,
    identity,
    installed,
    refusals,
    script,
    server,
    set_mode,
    until_said,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

CLIENT = "shop/client-0"
#: Meshed, and never learned: it is not used before the mesh is closed.
STRANGER = "lab/stranger-0"
#: In the inventory, but without a sidecar.
OUTSIDER = "lab/outsider-0"

LARGE = 8 << 20
REDIS_COMMANDS = 12_000
SESSIONS = 8
ROWS = 40_000


def workloads() -> list[WorkloadSpec]:
    postgres = "usr/lib/postgresql/*/bin"
    initdb, postmaster = installed("initdb", postgres), installed("postgres", postgres)
    prepare_nginx = f"mkdir -p /run/pod/www && echo small >/run/pod/www/small && {_random_file('/run/pod/www/large')}"
    start_nginx = f"exec {installed('nginx')} -c {PROGRAMS}/nginx.conf"
    data = "/run/pod/postgres"
    prepare_postgres = (
        f"{initdb} --pgdata={data} --username=postgres --auth=trust --no-sync --locale=C --encoding=UTF8 >/dev/null"
        f" && echo 'host all all 0.0.0.0/0 trust' >>{data}/pg_hba.conf"
    )
    start_postgres = (
        f"exec {postmaster} -D {data} -c listen_addresses=0.0.0.0 -c unix_socket_directories=/run/pod"
        # mmap: a file below the pod's /run goes away with it, what is in /dev/shm would not
        " -c fsync=off -c dynamic_shared_memory_type=mmap"
    )
    redis = [installed("redis-server"), "--bind", "0.0.0.0", "--port", "6379", "--save", "", "--dir", "/run/pod"]
    return [
        server(
            "shop/web", ["sh", "-ec", f"{prepare_nginx}; {start_nginx}"], 8080, service_port=80, app_protocol="http"
        ),
        server("data/redis", [*redis, "--protected-mode", "no"], 6379),
        server(
            "data/postgres",
            ["sh", "-ec", f"{prepare_postgres}; {start_postgres}"],
            5432,
            kind="StatefulSet",
            uid=pwd.getpwnam("postgres").pw_uid,  # it refuses to run as root, and without an account
        ),
        server("shop/mail", script("smtp_server.py", 2525), 2525, service_port=25),
        server("shop/kinds", script("grpc_server.py", 50051), 50051, app_protocol="grpc"),
        client("shop/client"),
        client("lab/stranger"),
        client("lab/outsider", meshed=False),
    ]


def _random_file(path: str) -> str:
    return f"head -c {LARGE} /dev/urandom >{path}"


class Commands:
    """Runs one program in the client's pod, again and again, each run a connection of its own."""

    def __init__(self, pod: Pod, *prefix: str) -> None:
        self._pod = pod
        self._prefix = prefix
        self.runs = 0

    async def __call__(self, *arguments: str, stdin: bytes = b"") -> str:
        self.runs += 1
        done = await self._pod.exec([*self._prefix, *arguments], stdin=stdin, deadline=60)
        assert done.code == 0, done.stderr
        return done.stdout

    async def spawn(self, log: Path, *arguments: str) -> Process:
        self.runs += 1
        process = Process(log.stem, log)
        await self._pod.spawn(process, [*self._prefix, *arguments])
        return process


# --- the programs


async def use_nginx(mesh: LocalMesh, scratch: Path) -> Traffic:
    """curl: three requests on one kept connection, a large body among them; then a large body the other way."""
    pod, url = mesh.pod(CLIENT), "http://${service:web}"
    told = "%{http_code} %{num_connects} %{size_request} %{size_upload} %{size_header} %{size_download}\\n"
    fetch = ["curl", "-sS", "-w", told, "-o", "/dev/null", "-o", "/run/pod/large", "-o", "/dev/null"]
    got = await pod.exec([*fetch, f"{url}/small", f"{url}/large", f"{url}/missing"])
    put = await pod.exec(["curl", "-sS", "-w", told, "-T", "/run/pod/large", f"{url}/upload/{os.urandom(8).hex()}"])
    transfers = [[int(field) for field in line.split()] for line in (got.stdout + put.stdout).splitlines()]
    assert [transfer[:2] for transfer in transfers] == [[200, 1], [200, 0], [404, 0], [201, 1]], got.stderr + put.stderr
    served = await mesh.pod("shop/web-0").exec(["sh", "-c", "sha256sum </run/pod/www/large; ls /run/pod/www/upload"])
    fetched = await pod.exec(["sha256sum", "/run/pod/large"])
    assert fetched.stdout.split()[0] == served.stdout.split()[0]
    sent = sum(request + upload for _, _, request, upload, _, _ in transfers)
    received = sum(header + download for *_, header, download in transfers)
    return Traffic(2, (sent, sent), (received, received))  # curl knows what it sent, to the byte


async def use_redis(mesh: LocalMesh, scratch: Path) -> Traffic:
    """redis-cli: a subscription and a blocking pop stay open while 12,000 commands are pipelined."""
    cli = Commands(mesh.pod(CLIENT), "redis-cli", "-h", "${service:redis.data}", "-p", "6379")
    token = os.urandom(8).hex()
    subscriber = await cli.spawn(scratch / "subscriber.log", "SUBSCRIBE", "news")
    popper = await cli.spawn(scratch / "popper.log", "BLPOP", f"queue-{token}", "60")
    try:
        await until_said(mesh, subscriber.log, "news\n1\n")

        async def blocked() -> bool:
            return "blocked_clients:1\r\n" in await cli("INFO", "clients")

        await mesh.wait_for(blocked, "the pop to block")
        commands = b"".join(_resp("SET", f"{token}:{number}", f"{number:064d}") for number in range(REDIS_COMMANDS))
        told = await cli("--pipe", stdin=commands)
        assert f"errors: 0, replies: {REDIS_COMMANDS}" in told
        last = await cli("GET", f"{token}:{REDIS_COMMANDS - 1}")
        assert last.strip() == f"{REDIS_COMMANDS - 1:064d}"
        for number in range(3):
            assert (await cli("PUBLISH", "news", f"{token}-{number}")).strip() == "1"
            await until_said(mesh, subscriber.log, f"message\nnews\n{token}-{number}\n")
        assert popper.running
        await cli("RPUSH", f"queue-{token}", f"popped-{token}")
        assert f"popped-{token}" in await until_said(mesh, popper.log, f"popped-{token}")
        assert await asyncio.wait_for(popper.wait(), 20) == 0
    finally:
        await subscriber.stop()
        await popper.stop()
    return Traffic.about(cli.runs, len(commands), REDIS_COMMANDS * len("+OK\r\n"))


def _resp(*words: str) -> bytes:
    return f"*{len(words)}\r\n{''.join(f'${len(word)}\r\n{word}\r\n' for word in words)}".encode()


async def use_postgres(mesh: LocalMesh, scratch: Path) -> Traffic:
    """psql: COPY both ways, then a session that listens and holds a lock for which parallel transactions wait."""
    options = ["-qtAX", "-v", "ON_ERROR_STOP=1", "-h", "${service:postgres.data}", "-U", "postgres", "-d", "postgres"]
    psql = Commands(mesh.pod(CLIENT), "psql", *options)
    # psql shows notifications when it has run a command, so it is given one every now and then
    keep_asking = '{ echo "$0"; while sleep 0.1; do echo "SELECT 1;"; done; } | psql "$@"'
    listener = Commands(mesh.pod(CLIENT), "sh", "-c", keep_asking)
    await psql("-c", "DROP TABLE IF EXISTS rows, visits; CREATE TABLE rows (id int, word text); CREATE TABLE visits ()")
    rows = "".join(f"{number}\t{random.randbytes(48).hex()}\n" for number in range(ROWS))
    await psql("-c", "\\copy rows FROM pstdin", stdin=rows.encode())
    assert await psql("-c", "SELECT count(*), count(DISTINCT word) FROM rows") == f"{ROWS}|{ROWS}\n"
    assert await psql("-c", "\\copy rows TO pstdout") == rows

    holding = "SELECT pg_advisory_lock(7); LISTEN news; SELECT 'it is' || ' held';"
    holder = await listener.spawn(scratch / "holder.log", holding, *options)
    try:
        await until_said(mesh, holder.log, "it is held")
        visit = "BEGIN; INSERT INTO visits DEFAULT VALUES; SELECT pg_advisory_xact_lock_shared(7); COMMIT"
        visits = [asyncio.create_task(psql("-c", visit)) for _ in range(SESSIONS)]

        async def all_wait() -> bool:
            return await psql("-c", "SELECT count(*) FROM pg_locks WHERE NOT granted") == f"{SESSIONS}\n"

        await mesh.wait_for(all_wait, f"{SESSIONS} transactions to wait for the lock")
        token = os.urandom(8).hex()
        await psql("-c", f"NOTIFY news, '{token}'")
        await until_said(mesh, holder.log, f'Asynchronous notification "news" with payload "{token}"')
        assert await psql("-c", "SELECT count(*) FROM visits") == "0\n"  # nobody has committed
    finally:
        await holder.stop()
    await asyncio.gather(*visits)
    assert await psql("-c", "SELECT count(*) FROM visits") == f"{SESSIONS}\n"
    return Traffic.about(psql.runs + listener.runs, len(rows), len(rows))


async def use_smtp(mesh: LocalMesh, scratch: Path) -> Traffic:
    """smtplib: the server greets before the client says a word; then a message that is full of dots."""
    body = "".join(f"{'.' * (number % 4)}{os.urandom(32).hex()}\r\n" for number in range(4000))
    message = f"From: a@example\r\nTo: b@example\r\nSubject: the mesh\r\n\r\n{body}".encode()
    send = Commands(mesh.pod(CLIENT), *script("smtp_client.py", "${service:mail}", 25))
    assert await send(stdin=message) == "220 greeter.example ESMTP\nrefused 0\n"
    digest = (await mesh.pod(CLIENT).exec(["sha256sum"], stdin=message)).stdout.split()[0]
    await until_said(mesh, mesh.pod("shop/mail-0").application.log, digest)
    greeting = await send()
    assert greeting.startswith("220 ")
    return Traffic.about(send.runs, len(message), len("220 greeter.example ESMTP\r\n"))


async def use_grpc(mesh: LocalMesh, scratch: Path) -> Traffic:
    """All four kinds of call on one channel; the client checks every answer."""
    call = Commands(mesh.pod(CLIENT), *script("grpc_client.py", "${service:kinds}", 50051))
    said = json.loads(await call())
    return Traffic.about(call.runs, said["sent"], said["received"], each=40_000)  # frame headers of 1,300 messages


@dataclass(frozen=True, slots=True)
class Scenario:
    """One program.

    :param use: uses it from the client's pod, checks what comes back, and says what went over the wire
    :param knock: the command that asks it one thing; ``HOST`` and ``PORT`` are replaced
    :param answer: what the knock prints when it was answered
    """

    server: str
    port: int
    service_port: int
    use: Callable[[LocalMesh, Path], Awaitable[Traffic]]
    knock: tuple[str, ...]
    answer: str

    @property
    def pod(self) -> str:
        return f"{self.server}-0"

    def edge(self, source: str = "shop/client") -> EdgeKey:
        return EdgeKey(WorkloadRef.parse(source), WorkloadRef.parse(self.server), self.port)

    async def by_service(self, mesh: LocalMesh, pod: str) -> Completed:
        namespace, _, name = self.server.partition("/")
        return await self._knock(mesh.pod(pod), f"${{service:{name}.{namespace}}}", self.service_port)

    async def by_address(self, mesh: LocalMesh, pod: str) -> Completed:
        return await self._knock(mesh.pod(pod), mesh.pod(self.pod).address, self.port)

    async def _knock(self, pod: Pod, host: str, port: int) -> Completed:
        words = [word.replace("HOST", host).replace("PORT", str(port)) for word in self.knock]
        return await pod.exec(words, deadline=30)

    def answered(self, done: Completed) -> bool:
        """Whether the server's own words came back. A refusal has to look like one to the program, too."""
        answered = self.answer in done.stdout
        assert answered == (done.code == 0), f"{done.code}: {done.stdout} {done.stderr}"
        return answered


_PSQL = ("psql", "-qtAX", "-h", "HOST", "-p", "PORT", "-U", "postgres", "-d", "postgres", "-c", "SELECT 'ans' || 'wer'")
SCENARIOS = (
    Scenario("shop/web", 8080, 80, use_nginx, ("curl", "-sS", "-m", "20", "http://HOST:PORT/small"), "small"),
    Scenario("data/redis", 6379, 6379, use_redis, ("redis-cli", "-h", "HOST", "-p", "PORT", "PING"), "PONG"),
    Scenario("data/postgres", 5432, 5432, use_postgres, _PSQL, "answer"),
    Scenario("shop/mail", 2525, 25, use_smtp, script("smtp_client.py", "HOST", "PORT"), "220 "),
    Scenario("shop/kinds", 50051, 50051, use_grpc, script("grpc_client.py", "HOST", "PORT", "--once"), "answered"),
)
scenarios = pytest.mark.parametrize("scenario", SCENARIOS, ids=[scenario.server for scenario in SCENARIOS])


# --- the tests


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["learn", "enforce"])
async def mode(request: pytest.FixtureRequest, mesh: LocalMesh, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The mesh as it starts, then closed. What no earlier test has used is used now, so that it can be learned."""
    if request.param == "enforce":
        for scenario in SCENARIOS:
            if await find_edge(mesh, scenario.edge()) is None:
                await scenario.use(mesh, tmp_path_factory.mktemp("learning"))
        await close(mesh, [scenario.edge() for scenario in SCENARIOS])
        # Its own sidecar lets the stranger do as it likes, so that the servers' sidecars have to refuse it.
        await set_mode(mesh, "lab", "learn", "permissive")
    return str(request.param)


@scenarios
async def test_a_program_works_unmodified(mesh: LocalMesh, mode: str, scenario: Scenario, tmp_path: Path) -> None:
    before = await Counters.of(mesh, scenario.edge())
    traffic = await scenario.use(mesh, tmp_path)
    await check_counted(mesh, scenario.edge(), before, traffic)


@scenarios
async def test_a_pod_without_sidecar_is_served_only_until_the_mesh_is_closed(
    mesh: LocalMesh, mode: str, scenario: Scenario
) -> None:
    answered = scenario.answered(await scenario.by_address(mesh, OUTSIDER))
    assert answered == (mode == "learn")
    if mode == "learn":
        return
    edge = scenario.edge("lab/outsider")

    async def reported() -> list[dict[str, object]]:
        return await refusals(mesh, edge, "inbound")

    for flow in await mesh.wait_for(reported, f"{scenario.pod} to report the refusal"):
        assert (flow["reason"], flow["verified"], flow["bytes_received"]) == ("plaintext-refused", False, 0)


@pytest.mark.parametrize("mode", ["enforce"], indirect=True)
@scenarios
async def test_a_meshed_pod_that_was_not_learned_is_refused_by_the_server(
    mesh: LocalMesh, mode: str, scenario: Scenario
) -> None:
    assert scenario.answered(await scenario.by_service(mesh, CLIENT))  # else the next line would prove nothing
    assert not scenario.answered(await scenario.by_service(mesh, STRANGER))
    assert not scenario.answered(await scenario.by_address(mesh, STRANGER))
    edge = scenario.edge("lab/stranger")

    async def reported() -> bool:
        added = await Counters.of(mesh, edge)
        return added.denied >= 2 and added.failed >= 2

    await mesh.wait_for(reported, f"{STRANGER} and {scenario.pod} to report what they saw")
    for flow in await refusals(mesh, edge, "inbound"):
        assert (flow["reason"], flow["verified"], flow["bytes_received"]) == ("no-rule", True, 0)
    shown = await find_edge(mesh, edge)
    assert shown is not None
    assert shown["source_identities"] == [identity(edge.source)]
    assert shown["failed"] == shown["connections"]
    assert shown["state"] == "candidate"  # knocking does not teach


@pytest.mark.parametrize("mode", ["enforce"], indirect=True)
async def test_a_meshed_pod_that_was_not_learned_is_refused_by_its_own_sidecar(mesh: LocalMesh, mode: str) -> None:
    await set_mode(mesh, "lab", "enforce", "strict")
    try:
        for scenario in SCENARIOS:
            assert not scenario.answered(await scenario.by_service(mesh, STRANGER))
            edge = scenario.edge("lab/stranger")

            async def reported(edge: EdgeKey = edge) -> list[dict[str, object]]:
                return await refusals(mesh, edge, "outbound")

            for flow in await mesh.wait_for(reported, f"{STRANGER} to report the refusal"):
                assert flow["reason"] == "no-rule"
    finally:
        await set_mode(mesh, "lab", "learn", "permissive")
