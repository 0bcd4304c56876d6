"""Ports that the inventory comes to call opaque while the mesh runs: nobody at either end waits for their clients'
bytes or reads them, and everybody does again when they are no longer."""

from __future__ import annotations

import sys

import pytest
import yaml

from graph.flow import EdgeKey
from hedgerow.local.description import WorkloadSpec
from hedgerow.local.mesh import LocalMesh
from tests.mesh.running import client, script, server, set_mode
from tests.mesh.traffic import reaches, web

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: Far longer than the test waits: a sidecar that looked for a request of a client that is waiting would be seen.
SIDECAR = {"limits": {"first_byte_wait": 300}}
WEB, MAIL = 8080, 2525
EDGE = EdgeKey.parse(f"shop/client->shop/web:{WEB}/TCP")
CLIENT = "shop/client-0"
#: Says nothing until it was greeted.
GREETED = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=60) as sock:
    print(sock.recv(3).decode())
"""


def workloads() -> list[WorkloadSpec]:
    return [
        web("shop/web", WEB),
        server("shop/mail", script("smtp_server.py", MAIL), MAIL, app_protocol="http"),  # which is not so
        client("shop/client"),
    ]


def edit(mesh: LocalMesh, *, opaque: bool) -> None:
    """Have the inventory's file call both ports opaque, or what their workloads said."""
    path = mesh.root / "inventory.yaml"
    document = yaml.safe_load(path.read_text())
    for workload in document["workloads"]:
        if workload["name"] in ("web", "mail"):
            for port in workload["ports"]:
                port["appProtocol"] = "" if opaque else "http"
            workload["opaquePorts"] = [port["port"] for port in workload["ports"]] if opaque else []
    beside = path.with_suffix(".edited")
    beside.write_text(yaml.safe_dump(document))
    beside.chmod(0o644)
    beside.replace(path)


async def inbound(mesh: LocalMesh, what: str) -> int:
    """What the web server's sidecar has reported of the client so far."""
    flows = (await mesh.api.get("/flows", {"limit": 1000}))["flows"]
    ends = ("shop/client", "shop/web", "inbound")
    return sum(flow[what] for flow in flows if (flow["source"], flow["destination"], flow["direction"]) == ends)


async def call(mesh: LocalMesh, *, connections: int, requests: int) -> None:
    """One more request, after which so many in all have been reported."""
    assert await reaches(mesh, CLIENT, f"{mesh.pod('shop/web-0').address}:{WEB}")

    async def reported() -> bool:
        return (await inbound(mesh, "connections"), await inbound(mesh, "requests")) == (connections, requests)

    await mesh.wait_for(reported, f"{requests} requests on {connections} connections", 60)


async def in_force(mesh: LocalMesh, protocol: str, tls: str) -> None:
    """Wait until the ports speak ``protocol``, and every sidecar has a snapshot from after that."""

    async def said() -> bool:
        edges = {each["id"]: each for each in (await mesh.api.get("/graph"))["edges"]}
        return bool(edges[str(EDGE)]["app_protocol"] == protocol)

    await mesh.wait_for(said, f"the port to be {protocol}", 60)
    await set_mode(mesh, "shop", "learn", tls)


async def test_what_becomes_opaque_is_neither_waited_for_nor_read(mesh: LocalMesh) -> None:
    await call(mesh, connections=1, requests=1)
    edit(mesh, opaque=True)
    await in_force(mesh, "tcp", "strict")
    await call(mesh, connections=2, requests=1)
    await call(mesh, connections=3, requests=1)
    greeted = await mesh.pod(CLIENT).exec(
        (sys.executable, "-c", GREETED, mesh.pod("shop/mail-0").address, str(MAIL)), deadline=90
    )
    assert greeted.stdout.strip() == "220", greeted.stderr
    edit(mesh, opaque=False)
    await in_force(mesh, "http", "permissive")
    await call(mesh, connections=4, requests=2)  # reports come in order: nothing of the others was left
