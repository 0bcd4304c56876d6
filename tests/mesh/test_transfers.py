"""Bytes in bulk, many connections at once, and connections of which one direction ends long before the other."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from pathlib import Path

import pytest
import pytest_asyncio

from graph.flow import EdgeKey
from graph.model import WorkloadRef
from hedgerow.local.description import WorkloadSpec
from hedgerow.local.mesh import LocalMesh
from hedgerow.local.processes import Process
from tests.mesh.running import (
    PROGRAMS,
    Counters,
    Traffic,
    check_counted,
    client,
    close,
    find_edge,
    installed,
    script,
    server,
    until_said,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

CLIENT = "shop/client-0"
FILE = 200 * 1000 * 1000
#: So much more memory than before does a sidecar take for one transfer of any size, at the most, bytes: a window of
#: 1 MiB for each direction, a send buffer, and room for the allocator. Measured: below 2 MB.
GROWTH = 16 << 20
#: What waits on the way to a reader that does not read, at the most, bytes: a send buffer (the kernel lets it grow to
#: 4 MB) and a window of 1 MiB, and as much again for reserve.
ON_THE_WAY = 12 << 20
CONNECTIONS = 500
ECHOED = 20_000
HALF_CLOSED = 8_000_000

WEB = EdgeKey(WorkloadRef("shop", "client"), WorkloadRef("shop", "web"), 8080)
ECHO = EdgeKey(WorkloadRef("shop", "client"), WorkloadRef("shop", "echo"), 7000)
HALVES = EdgeKey(WorkloadRef("shop", "client"), WorkloadRef("shop", "halves"), 7001)


def workloads() -> list[WorkloadSpec]:
    prepare = f"mkdir -p /run/pod/www && head -c {FILE} /dev/urandom >/run/pod/www/file"
    serve = f"exec {installed('nginx')} -c {PROGRAMS}/nginx.conf"
    return [
        server("shop/web", ["sh", "-ec", f"{prepare}; {serve}"], 8080, service_port=80, app_protocol="http"),
        server("shop/echo", script("echo_server.py", 7000), 7000),
        server("shop/halves", script("half_close_server.py", 7001), 7001),
        client("shop/client"),
    ]


async def talk(mesh: LocalMesh, edge: EdgeKey) -> None:
    """One small connection, from which the edge is learned."""
    port = next(port for each in mesh.services if each.workload == edge.destination for port, _ in each.ports)
    if edge == WEB:
        argv = ["curl", "-sS", "http://${service:web}/none"]
    elif edge == ECHO:
        argv = [*script("echo_client.py", "${service:echo}", port, 1, 100)]
    else:
        argv = [*script("half_close_client.py", "${service:halves}", port, "c", 100)]
    done = await mesh.pod(CLIENT).exec(argv)
    assert done.code == 0, done.stderr


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["learn", "enforce"], autouse=True)
async def mode(request: pytest.FixtureRequest, mesh: LocalMesh) -> str:
    """The mesh as it starts, then closed."""
    if request.param == "enforce":
        for edge in (WEB, ECHO, HALVES):
            if await find_edge(mesh, edge) is None:
                await talk(mesh, edge)
        await close(mesh, [WEB, ECHO, HALVES])
    return str(request.param)


class Memory:
    """How much the sidecars of an edge hold more than now at the most, until it is asked for.

    Looked at is anonymous memory, which is what bytes are held in. Sidecars let go of their code's pages when they have
    begun, some of which come back with the next transfer: how much of them is resident says nothing of what is held.
    """

    def __init__(self, mesh: LocalMesh, edge: EdgeKey) -> None:
        pods = [pod for ref in (edge.source, edge.destination) for pod in mesh.pods_of(ref)]
        self._pids = {pod.name: pod.sidecar.pid for pod in pods}
        self._before = self._now()
        self._most = dict(self._before)
        self._watching = asyncio.create_task(self._watch())

    def growth(self) -> dict[str, int]:
        """By pod, bytes. Nobody looks any more."""
        self._watching.cancel()
        self._look()
        return {name: most - self._before[name] for name, most in self._most.items()}

    async def _watch(self) -> None:
        while True:
            self._look()
            await asyncio.sleep(0.02)

    def _look(self) -> None:
        for name, size in self._now().items():
            self._most[name] = max(self._most[name], size)

    def _now(self) -> dict[str, int]:
        return {name: _memory(pid, "RssAnon") for name, pid in self._pids.items()}


def _memory(pid: int, field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found.group(1)) * 1024


_TOLD = "%{stderr}%{http_code} %{size_request} %{size_upload} %{size_header} %{size_download}"


async def _curl(mesh: LocalMesh, command: str) -> tuple[list[int], str]:
    """Run a shell command with one curl in it; what curl counted, and the digest that the command printed."""
    done = await mesh.pod(CLIENT).exec(["bash", "-o", "pipefail", "-ec", command, "bash", _TOLD], deadline=100)
    assert done.code == 0, done.stderr
    return [int(field) for field in done.stderr.split()], done.stdout.split()[0]


async def _shell(mesh: LocalMesh, pod: str, command: str) -> str:
    done = await mesh.pod(pod).exec(["sh", "-ec", command])
    assert done.code == 0, done.stderr
    return done.stdout


async def test_a_download_of_200_mb_arrives_whole_and_sidecars_hold_little_of_it(mesh: LocalMesh) -> None:
    before, memory = await Counters.of(mesh, WEB), Memory(mesh, WEB)
    download = 'curl -sS -w "$1" http://${service:web}/file | sha256sum'
    (code, sent, _, header, downloaded), digest = await _curl(mesh, download)
    grown = memory.growth()
    assert (code, downloaded) == (200, FILE)
    assert digest == (await _shell(mesh, "shop/web-0", "sha256sum </run/pod/www/file")).split()[0]
    await check_counted(mesh, WEB, before, Traffic(1, (sent, sent), (header + FILE, header + FILE)))
    assert max(grown.values()) <= GROWTH, grown


async def test_an_upload_of_200_mb_arrives_whole_and_sidecars_hold_little_of_it(mesh: LocalMesh) -> None:
    name = os.urandom(8).hex()
    await _shell(mesh, CLIENT, f"head -c {FILE} /dev/urandom >/run/pod/file")
    before, memory = await Counters.of(mesh, WEB), Memory(mesh, WEB)
    upload = f'curl -sS -w "$1" -T /run/pod/file http://${{service:web}}/upload/{name}; sha256sum </run/pod/file'
    (code, request, uploaded, header, downloaded), digest = await _curl(mesh, upload)
    grown = memory.growth()
    assert (code, uploaded) == (201, FILE)
    stored = f"/run/pod/www/upload/{name}"
    assert digest == (await _shell(mesh, "shop/web-0", f"sha256sum <{stored}; rm {stored}")).split()[0]
    sent, received = request + FILE, header + downloaded
    await check_counted(mesh, WEB, before, Traffic(1, (sent, sent), (received, received)))
    assert max(grown.values()) <= GROWTH, grown


async def test_a_reader_that_stops_stops_the_server_and_loses_nothing(mesh: LocalMesh, tmp_path: Path) -> None:
    before, memory = await Counters.of(mesh, WEB), Memory(mesh, WEB)
    reader = Process("a slow reader", tmp_path / "reader.log")
    await mesh.pod(CLIENT).spawn(reader, script("slow_reader.py", "${service:web}", 80, "/file"))
    try:
        await until_said(mesh, reader.log, "asked")
        await check_counted(mesh, WEB, before, Traffic(1, (1, 100), (1_000_000, ON_THE_WAY)))
        stopped = memory.growth()
        assert max(stopped.values()) <= GROWTH, stopped
        reader.signal(signal.SIGUSR1)
        told = await until_said(mesh, reader.log, "digest", 60)
    finally:
        await reader.stop()
    assert told.split()[-1] == (await _shell(mesh, "shop/web-0", "sha256sum </run/pod/www/file")).split()[0]
    await check_counted(mesh, WEB, before, Traffic(1, (1, 100), (FILE, FILE + 1000)))


async def test_500_parallel_connections_are_echoed_each_its_own(mesh: LocalMesh) -> None:
    before = await Counters.of(mesh, ECHO)
    argv = script("echo_client.py", "${service:echo}", 7000, CONNECTIONS, ECHOED)
    done = await mesh.pod(CLIENT).exec(argv, deadline=90)
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout) == {"same": CONNECTIONS, "different": 0}
    total = CONNECTIONS * ECHOED
    await check_counted(mesh, ECHO, before, Traffic(CONNECTIONS, (total, total), (total, total)))


async def test_a_client_that_ends_its_direction_still_gets_the_whole_answer(mesh: LocalMesh) -> None:
    before = await Counters.of(mesh, HALVES)
    argv = script("half_close_client.py", "${service:halves}", 7001, "c", HALF_CLOSED)
    done = await mesh.pod(CLIENT).exec(argv, deadline=60)
    assert done.code == 0, done.stderr
    sent, received = 1 + HALF_CLOSED, 64 + HALF_CLOSED
    await check_counted(mesh, HALVES, before, Traffic(1, (sent, sent), (received, received)))


async def test_a_server_that_ends_its_direction_still_gets_the_whole_request(mesh: LocalMesh) -> None:
    before = await Counters.of(mesh, HALVES)
    argv = script("half_close_client.py", "${service:halves}", 7001, "s", HALF_CLOSED)
    done = await mesh.pod(CLIENT).exec(argv, deadline=60)
    assert done.code == 0, done.stderr
    await until_said(mesh, mesh.pod("shop/halves-0").application.log, done.stdout.strip())
    sent, received = 1 + HALF_CLOSED, 1_000_000
    await check_counted(mesh, HALVES, before, Traffic(1, (sent, sent), (received, received)))
