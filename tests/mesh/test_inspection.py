"""Egress inspection in a whole mesh: a host outside is named in the inventory, and from then on read, learned, closed,
opened operation by operation, and shown."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from graph.flow import EdgeKey
from graph.model import Port
from hedgerow.client import ApiError
from hedgerow.local.description import Program, WorkloadSpec
from hedgerow.local.mesh import LocalMesh
from tests.mesh.running import client, find_edge, script, set_mode
from tests.sidecar.dataplane.web import WebAuthority

pytestmark = pytest.mark.asyncio(loop_scope="module")

API, OTHER = "api.example.com", "www.example.com"
SOMEBODY = "192.0.2.53"
PORT, DNS_PORT = 8443, 5300
#: The first two pods of a mesh have these.
RESOLVER, PARTNER = "10.77.1.1", "10.77.1.2"
CLIENT = "shop/client-0"
READ, WRITTEN, PATCHED = "GET /v1/{id}", "DELETE /v1/{id}", "PATCH /v1/{id}"
EDGE = EdgeKey.parse(f"shop/client->-/{API}:{PORT}/TCP")

_FOLDER = Path(tempfile.gettempdir()) / f"hedgerow-inspection-{uuid.uuid4().hex}"
WEB = WebAuthority()
ROOTS, CHAINS, TRUST = _FOLDER / "web.pem", _FOLDER / "chain.pem", _FOLDER / "trust"
SIDECAR = {
    "dns": {"upstreams": [f"{RESOLVER}:{DNS_PORT}"]},
    "inspect": {"egress": {"directory": str(TRUST), "roots": str(ROOTS)}},
}


@pytest.fixture(scope="module", autouse=True)
def _folder() -> Iterator[None]:
    """What is there while a mesh of this module is."""
    yield
    shutil.rmtree(_FOLDER)


def workloads() -> list[WorkloadSpec]:
    _FOLDER.mkdir()
    _FOLDER.chmod(0o777)  # the sidecar writes there what the application reads, each as its own user
    ROOTS.write_bytes(WEB.pem)
    CHAINS.write_bytes(WEB.chain(API))
    for path in (ROOTS, CHAINS):
        path.chmod(0o644)
    zone = json.dumps({API: PARTNER, OTHER: PARTNER})
    return [
        outside("outside/resolver", script("resolver.py", DNS_PORT, zone)),
        outside("outside/partner", script("tls_server.py", CHAINS, PORT), Port(PORT)),
        client("shop/client", inspects=(f"{API}:{PORT}",)),
    ]


def outside(name: str, argv: tuple[str, ...], *ports: Port) -> WorkloadSpec:
    return client(name, program=Program(argv), ports=ports, meshed=False, listed=False)


async def call(mesh: LocalMesh, method: str, *paths: str, name: str = API, trusts: Path | None = None) -> list[str]:
    command = script("https_client.py", SOMEBODY, name, PORT, method, *paths)
    env = {"SSL_CERT_FILE": str(trusts or TRUST / "ca-bundle.pem")}
    done = await mesh.pod(CLIENT).exec(command, env=env, deadline=60)
    assert done.code == 0, done.stderr
    return done.stdout.splitlines()


async def allow(mesh: LocalMesh, *operations: str, name: str = API) -> Any:
    asked = {
        "effect": "allow", "from": "shop/client", "to": f"-/{name}", "port": PORT, "operations": list(operations),
        "owner": "tests", "reason": "a test of inspection", "expires_in": None,
    }  # fmt: skip
    return await mesh.api.post("/overrides", asked)


async def test_a_named_host_is_read_closed_and_opened_by_operation(mesh: LocalMesh) -> None:
    async def signed() -> bool:
        return await asyncio.to_thread((TRUST / "ca-bundle.pem").exists)

    await mesh.wait_for(signed, "what the application has to trust")

    # while it learns, what is asked is seen
    assert await call(mesh, "GET", "/v1/17", "/v1/18") == ["Hedgerow", "200 GET /v1/17", "200 GET /v1/18"]

    async def asked() -> bool:
        flows = (await mesh.api.get("/flows"))["flows"]
        return (
            await find_edge(mesh, EDGE) is not None
            and sum(flow["requests"] for flow in flows if flow["operation"] == READ) == 2
        )

    await mesh.wait_for(asked, "the operation on the edge to the host")

    # an application that does not trust us refuses by itself, and is told why
    assert (await call(mesh, "GET", "/v1/17", trusts=ROOTS))[0].startswith("refused")

    # closed, and opened for one operation
    await set_mode(mesh, "shop", "enforce", "strict")
    assert (await call(mesh, "GET", "/v1/17"))[0].startswith("refused")
    assert (await allow(mesh, READ))["pushed"]
    said, first, *later = await call(mesh, "GET", "/v1/17", "/v2", "/v1/19")
    assert (said, first) == ("Hedgerow", "200 GET /v1/17")
    assert [line.split()[0] for line in later] == ["403", "200"]
    assert (await call(mesh, "DELETE", "/v1/17"))[1].startswith("403 ")
    partner = mesh.pod("outside/partner-0").application.log.read_text()
    assert "DELETE" not in partner
    assert "/v2" not in partner

    # where nobody reads, operations are no rule
    with pytest.raises(ApiError, match="does not inspect") as refused:
        await allow(mesh, READ, name=OTHER)
    assert f"inspects: [{OTHER}:{PORT}]" in refused.value.remedy
    assert (await call(mesh, "GET", "/v1/17", name=OTHER))[0].startswith("refused")


async def test_the_command_opens_an_operation_or_says_what_is_missing(mesh: LocalMesh) -> None:
    async def command(host: str) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "hedgerow", "allow", "shop/client", f"{host}:{PORT}"),
            *("--operation", PATCHED, "--for", "1h", "--reason", "a test", "--owner", "tests"),
            env={**os.environ, "HEDGEROW_SERVER": mesh.server, "HEDGEROW_TOKEN": mesh.token},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode is not None
        return process.returncode, " ".join(said.decode().split())

    code, said = await command(API)
    assert code == 0, said
    assert PATCHED in said
    code, said = await command(OTHER)
    assert code != 0
    assert f"inspects: [{OTHER}:{PORT}]" in said


async def test_what_is_asked_outside_is_shown(mesh: LocalMesh) -> None:
    asked = {"workload": "shop/client", "count": 1, "for": 30, "bodies": False, "owner": "tests", "reason": "a test"}
    shown: list[dict[str, Any]] = []

    async def watch() -> None:
        async for event, data in mesh.api.events("/tap", None, asked):
            if event == "request":
                shown.append(data)

    watching = asyncio.create_task(watch())
    try:
        async with asyncio.timeout(60):
            while not shown and not watching.done():  # a tap that began tells nobody
                await call(mesh, "DELETE", "/v1/17?token=abcdef")
            await watching
    finally:
        watching.cancel()
    (one,) = shown
    assert (one["from"], one["to"], one["operation"]) == ("shop/client", f"-/{API}", WRITTEN)
    assert one["verdict"] == "deny"
    assert "abcdef" not in json.dumps(one)


async def test_every_signature_is_in_the_audit_log(mesh: LocalMesh) -> None:
    entries = (await mesh.api.get("/audit"))["entries"]
    found = [entry for entry in entries if entry["action"] == "certificate.inspection"]
    assert [entry["detail"]["hosts"] for entry in found] == [[API]]
