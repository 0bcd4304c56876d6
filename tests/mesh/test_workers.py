"""Sidecars with several workers in real pods: captured connections, names outside, counters that add up."""

from __future__ import annotations

import json

import pytest

from graph.flow import EdgeKey
from graph.model import Port, WorkloadRef
from hedgerow.local.description import Program, WorkloadSpec
from hedgerow.local.mesh import LocalMesh
from tests.mesh.running import Counters, Traffic, check_counted, client, close, script, server

pytestmark = pytest.mark.asyncio(loop_scope="module")

API, OTHER = "api.example.com", "www.example.com"
#: Nobody has this address: whomever an application asks, its sidecar asks the pod's resolver.
SOMEBODY = "192.0.2.53"
WEB_PORT, DNS_PORT, ECHO_PORT = 8080, 5300, 7000
#: The first two pods of a mesh have these.
RESOLVER, PARTNER = "10.77.1.1", "10.77.1.2"
WORKERS = 3
SIDECAR = {"workers": WORKERS, "dns": {"upstreams": [f"{RESOLVER}:{DNS_PORT}"]}}
CLIENT = "shop/client-0"
CONNECTIONS, SIZE = 150, 5_000
ECHO = EdgeKey(WorkloadRef("shop", "client"), WorkloadRef("shop", "echo"), ECHO_PORT)


def workloads() -> list[WorkloadSpec]:
    zone = json.dumps({API: PARTNER, OTHER: PARTNER})
    return [
        outside("outside/resolver", script("resolver.py", DNS_PORT, zone)),
        outside("outside/partner", script("web_server.py", "partner", WEB_PORT), Port(WEB_PORT)),
        server("shop/echo", script("echo_server.py", ECHO_PORT), ECHO_PORT),
        client("shop/client"),
    ]


def outside(name: str, argv: tuple[str, ...], *ports: Port) -> WorkloadSpec:
    """What is in nobody's books."""
    return client(name, program=Program(argv), ports=ports, meshed=False, listed=False)


async def test_captured_connections_are_carried_by_all_and_counted_once(mesh: LocalMesh) -> None:
    argv = script("echo_client.py", "${service:echo}", ECHO_PORT, CONNECTIONS, SIZE)
    for enforced in (False, True):
        if enforced:
            await close(mesh, [ECHO])
        before = await Counters.of(mesh, ECHO)
        done = await mesh.pod(CLIENT).exec(argv)
        assert done.code == 0, done.stderr
        assert json.loads(done.stdout) == {"same": CONNECTIONS, "different": 0}
        volume = CONNECTIONS * SIZE
        await check_counted(mesh, ECHO, before, Traffic(CONNECTIONS, (volume, volume), (volume, volume)))
    get = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:15000/stats').read().decode())"

    async def told() -> list[int]:
        done = await mesh.pod(CLIENT).exec(["python3", "-c", get])
        assert done.code == 0, done.stderr
        return [one["records"] for one in json.loads(done.stdout)["workers"]]

    async def all_told() -> bool:
        # the server's end may have told the controller of the last before the client's workers tell their supervisor
        return sum(await told()) >= 2 * CONNECTIONS

    await mesh.wait_for(all_told, "the client's workers to tell of every connection")
    records = await told()
    assert len(records) == WORKERS
    assert min(records) > 0


async def test_names_that_dns_has_bound_reach_every_worker(mesh: LocalMesh) -> None:
    """The proxy that learns them is in another process than those who judge by them."""

    async def call(name: str, host: str = "") -> str:
        command = script("egress_client.py", SOMEBODY, name, WEB_PORT, *([host] if host else []))
        done = await mesh.pod(CLIENT).exec(command)
        assert done.code == 0, done.stderr
        return done.stdout.strip()

    allowed = await mesh.api.post(
        "/overrides",
        {
            "effect": "allow", "from": "shop/client", "to": f"-/{API}", "port": WEB_PORT,
            "owner": "tests", "reason": "a test of workers", "expires_in": None,
        },
    )  # fmt: skip
    assert allowed["pushed"]
    for _ in range(6):  # whichever worker has each
        assert await call(API) == f"{PARTNER} partner {WEB_PORT} /"
        assert await call(OTHER) == f"{PARTNER} refused"
        assert await call(API, OTHER) == f"{PARTNER} refused"
