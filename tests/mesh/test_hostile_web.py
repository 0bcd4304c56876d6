"""Who reaches the web port and may not use it: a page in the operator's browser, a local user, and too many viewers.

``docs/threats.md`` says which attacker each test stands for.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import aiohttp
import pytest

from hedgerow.local.description import WorkloadSpec
from hedgerow.local.mesh import LocalMesh
from tests.mesh.attacking import scene

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("closed_scene")]


def workloads() -> list[WorkloadSpec]:
    return scene()


@contextlib.asynccontextmanager
async def _raw(mesh: LocalMesh) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, _, port = mesh.server.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()


async def _status(mesh: LocalMesh, head: str, body: bytes = b"") -> int:
    async with _raw(mesh) as (reader, writer):
        writer.write(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        line = await asyncio.wait_for(reader.readline(), 10)
        return int(line.split()[1]) if line else 0


MODE = b'{"namespace":"shop","mode":"learn","owner":"x","reason":"x"}'


async def test_a_page_in_the_operators_browser_can_do_nothing(mesh: LocalMesh) -> None:
    """It has no token; and should a browser ever add one, another page's request is refused all the same."""
    host = mesh.server.removeprefix("http://")
    before = (await mesh.api.get("/policy"))["workloads"]
    bearer = f"Authorization: Bearer {mesh.token}\nContent-Length: {len(MODE)}"
    post = "POST /api/v1/modes HTTP/1.1\n"
    rebound = f"{post}Host: attacker.example:{host.partition(':')[2]}\n{bearer}\nContent-Type: application/json"
    assert await _status(mesh, rebound, MODE) == 403
    for origin in ("http://attacker.example", "null", f"http://{host}.attacker.example", f"https://x@{host}"):
        head = f"{post}Host: {host}\nOrigin: {origin}\n{bearer}\nContent-Type: application/json"
        assert await _status(mesh, head, MODE) == 403, origin
    cross = f"{post}Host: {host}\nSec-Fetch-Site: cross-site\n{bearer}\nContent-Type: application/json"
    assert await _status(mesh, cross, MODE) == 403
    form = f"{post}Host: {host}\n{bearer}\nContent-Type: text/plain"
    assert await _status(mesh, form, MODE) == 400, "what a form can send without asking is no JSON"
    assert await _status(mesh, f"OPTIONS /api/v1/modes HTTP/1.1\nHost: {host}\nOrigin: http://attacker.example") == 403
    assert (await mesh.api.get("/policy"))["workloads"] == before


async def test_a_local_user_without_a_token_gets_nothing_and_holds_up_nobody(mesh: LocalMesh) -> None:
    host = mesh.server.removeprefix("http://")
    for path in ("/api/v1/status", "/api/v1/graph/live", "/api/v1/../v1/audit", "/api%2fv1/status", "//api/v1/status"):
        assert await _status(mesh, f"GET {path} HTTP/1.1\nHost: {host}") in (401, 403, 404), path
    for path in ("/../operator.token", "/..%2f..%2foperator.token", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/.."):
        assert await _status(mesh, f"GET {path} HTTP/1.1\nHost: {host}") == 404, path
    guess = f"GET /api/v1/status HTTP/1.1\nHost: {host}\nAuthorization: Bearer {'A' * 43}"
    assert await _status(mesh, guess) == 401
    smuggled = f"POST /api/v1/modes HTTP/1.1\nHost: {host}\nContent-Length: 4\nTransfer-Encoding: chunked"
    assert await _status(mesh, smuggled, b"0\r\n\r\n") == 400
    viewer = (mesh.controller_state / "viewer.token").read_text().strip()
    asked = f"POST /api/v1/modes HTTP/1.1\nHost: {host}\nAuthorization: Bearer {viewer}\nContent-Length: {len(MODE)}"
    assert await _status(mesh, f"{asked}\nContent-Type: application/json", MODE) == 403
    large = f"POST /api/v1/modes HTTP/1.1\nHost: {host}\nAuthorization: Bearer {mesh.token}"
    too_much = b"[" * (2 << 20)
    head = f"{large}\nContent-Type: application/json\nContent-Length: {len(too_much)}"
    assert await _status(mesh, head, too_much) == 413


async def test_viewers_can_not_use_up_the_live_streams_of_everything_else(mesh: LocalMesh) -> None:
    """The streams are bounded, and when all are taken the rest of the API still answers."""
    headers = {"Authorization": f"Bearer {(mesh.controller_state / 'viewer.token').read_text().strip()}"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(mesh.server, headers=headers, connector=connector) as session:
        statuses = []
        async with contextlib.AsyncExitStack() as held:
            for _ in range(200):
                response = await held.enter_async_context(session.get("/api/v1/graph/live"))
                statuses.append(response.status)
                if response.status != 200:
                    break
            assert statuses[-1] == 503, f"{len(statuses)} streams were given"
            assert (await mesh.api.get("/status"))["workloads"]
