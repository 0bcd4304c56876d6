"""Destinations outside the mesh, by name: asked for, learned, closed and opened again in a whole mesh."""

from __future__ import annotations

import json
from typing import Any

import pytest

from graph.flow import EdgeKey
from graph.model import Port
from hedgerow.local.description import Program, WorkloadSpec
from hedgerow.local.mesh import LocalMesh
from tests.mesh.running import client, find_edge, script, set_mode

pytestmark = pytest.mark.asyncio(loop_scope="module")

API, OTHER = "api.example.com", "www.example.com"
#: Nobody has this address: whomever an application asks, its sidecar asks the pod's resolver.
SOMEBODY = "192.0.2.53"
PORT, DNS_PORT = 8080, 5300
#: The first two pods of a mesh have these.
RESOLVER, PARTNER = "10.77.1.1", "10.77.1.2"
SIDECAR = {"dns": {"upstreams": [f"{RESOLVER}:{DNS_PORT}"]}}
CLIENT = "shop/client-0"


def workloads() -> list[WorkloadSpec]:
    zone = json.dumps({API: PARTNER, OTHER: PARTNER})
    return [
        outside("outside/resolver", script("resolver.py", DNS_PORT, zone)),
        outside("outside/partner", script("web_server.py", "partner", PORT), Port(PORT)),
        client("shop/client"),
    ]


def outside(name: str, argv: tuple[str, ...], *ports: Port) -> WorkloadSpec:
    """What is in nobody's books."""
    return client(name, program=Program(argv), ports=ports, meshed=False, listed=False)


async def call(mesh: LocalMesh, name: str, host: str = "") -> str:
    command = script("egress_client.py", SOMEBODY, name, PORT, *([host] if host else []))
    done = await mesh.pod(CLIENT).exec(command)
    assert done.code == 0, done.stderr
    return done.stdout.strip()


async def allow(mesh: LocalMesh, destination: str) -> None:
    made = await mesh.api.post(
        "/overrides",
        {
            "effect": "allow", "from": "shop/client", "to": f"-/{destination}", "port": PORT,
            "owner": "tests", "reason": "a test of egress", "expires_in": None,
        },
    )  # fmt: skip
    assert made["pushed"]


ANSWERED = f"{PARTNER} partner {PORT} /"
REFUSED = f"{PARTNER} refused"


async def test_names_outside_are_learned_closed_and_opened_one_by_one(mesh: LocalMesh) -> None:
    assert (mesh.pod("outside/resolver-0").address, mesh.pod("outside/partner-0").address) == (RESOLVER, PARTNER)
    edges = {name: EdgeKey.parse(f"shop/client->-/{name}:{PORT}/TCP") for name in (API, OTHER)}

    # while it learns, both are known by their names
    assert await call(mesh, "nowhere.example.com") == "no address"
    for name in (API, OTHER):
        assert await call(mesh, name) == ANSWERED

        async def known(name: str = name) -> dict[str, Any] | None:
            return await find_edge(mesh, edges[name])

        await mesh.wait_for(known, f"the edge to {name}")

    # nothing outside opens by itself
    await set_mode(mesh, "shop", "enforce", "strict")
    assert [await call(mesh, name) for name in (API, OTHER)] == [REFUSED, REFUSED]

    # one name is opened, and its address is not
    await allow(mesh, API)
    assert await call(mesh, API) == ANSWERED
    assert await call(mesh, OTHER) == REFUSED
    assert await call(mesh, API, OTHER) == REFUSED, "what it asked DNS for is not what it asks for"
    assert await call(mesh, API, "evil.example.net") == REFUSED

    # the address is opened, and with it every name
    await allow(mesh, PARTNER)
    assert await call(mesh, OTHER) == ANSWERED
    assert await call(mesh, API, "evil.example.net") == ANSWERED


async def test_a_workload_in_quarantine_asks_nobody(mesh: LocalMesh) -> None:
    assert await call(mesh, API) != "no address"
    await set_mode(mesh, "shop", "quarantine", "strict")
    assert await call(mesh, API) == "no address"
