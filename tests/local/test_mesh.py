"""A small mesh: it comes up, survives what the tests of others will do to it, and goes away completely."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator

import aiohttp
import pytest

from graph.model import Port, WorkloadRef
from hedgerow.client import ClientError
from hedgerow.local.description import Program, ServedAs, WorkloadSpec
from hedgerow.local.errors import LocalMeshError, NotReady
from hedgerow.local.mesh import LocalMesh
from hedgerow.local.processes import run
from hedgerow.local.sandbox import Confinement, confinement

pytestmark = pytest.mark.skipif(
    confinement() is not Confinement.ROOT, reason="needs the sandbox that the test session is started in as root"
)

GREETER = (
    "import socket\ns = socket.create_server(('${listen}', 7000))\n"
    "while True: c, _ = s.accept(); c.sendall(b'hello'); c.close()"
)
SERVER = WorkloadSpec(
    WorkloadRef("test", "server"),
    Program((sys.executable, "-c", GREETER)),
    ports=(Port(7000),),
    services=(ServedAs("greeter", ((70, 7000),)),),
)
CLIENT = WorkloadSpec(WorkloadRef("test", "client"))
CALL = "import socket; print(socket.create_connection(('${service:greeter}', 70), 5).recv(5).decode())"


async def call(mesh: LocalMesh, pod: str = "test/client-0") -> str:
    done = await mesh.pod(pod).exec([sys.executable, "-c", CALL])
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


@pytest.fixture
async def mesh() -> AsyncIterator[LocalMesh]:
    async with LocalMesh([SERVER, CLIENT], sidecar_settings={"report_interval": 0.2}) as running:
        yield running


async def test_a_call_by_service_name_goes_through_both_sidecars_as_mutual_tls(mesh: LocalMesh) -> None:
    assert await call(mesh) == "hello"

    async def reported() -> dict[str, object] | None:
        edges = (await mesh.api.get("/graph"))["edges"]
        return next((edge for edge in edges if edge["verified"]), None)

    edge = await mesh.wait_for(reported, "the sidecars' report")
    assert edge["id"] == "test/client->test/server:7000/TCP"
    assert edge["source_identities"] == ["spiffe://hedgerow.local/ns/test/sa/default/wl/client"]


async def test_traffic_goes_on_while_the_controller_is_dead_and_it_remembers(mesh: LocalMesh) -> None:
    assert await call(mesh) == "hello"
    await mesh.api.post(
        "/modes",
        {"namespace": "test", "direction": "both", "mode": "audit", "inbound_tls": None, "owner": "t", "reason": "t"},
    )
    pid = mesh.controller.pid
    await mesh.kill_controller()
    assert mesh.controller.returncode == -9
    assert await call(mesh) == "hello"
    await mesh.start_controller()
    assert mesh.controller.pid != pid
    workloads = {workload["workload"]: workload for workload in (await mesh.api.get("/status"))["workloads"]}
    assert workloads["test/server"]["inbound_mode"] == "audit"


async def test_a_killed_sidecar_closes_its_pod_and_comes_back(mesh: LocalMesh) -> None:
    assert await call(mesh) == "hello"
    await mesh.kill_sidecar("test/client-0")
    assert "refused" in await call(mesh)  # captured, and nobody there: never around it
    await mesh.start_sidecar("test/client-0")
    assert await call(mesh) == "hello"


async def test_a_pod_can_be_added_and_removed(mesh: LocalMesh) -> None:
    spec = WorkloadSpec(WorkloadRef("test", "late"))
    (late,) = await mesh.add(spec)
    assert await call(mesh, late.name) == "hello"
    await mesh.remove(late.name)
    with pytest.raises(LocalMeshError, match="no pod 'test/late-0'"):
        mesh.pod(late.name)
    assert "late" not in (await run(["ip", "netns", "list"])).stdout

    async def forgotten() -> bool:
        return all(one["name"] != "late-0" for one in (await mesh.api.get("/inventory"))["instances"])

    await mesh.wait_for(forgotten, "the controller to take the new inventory")


async def test_stopping_leaves_no_process_namespace_or_file() -> None:
    def processes() -> set[str]:
        return {entry for entry in os.listdir("/proc") if entry.isdigit()}

    before = processes(), (await run(["ip", "netns", "list"])).stdout, sorted(os.listdir("/run/hedgerow"))
    mesh = LocalMesh([SERVER, CLIENT])
    await mesh.start()
    inside = processes() - before[0]
    assert len(inside) >= 4  # the controller, two sidecars, the server
    await mesh.stop()
    await mesh.stop()
    assert not inside & processes()
    assert (await run(["ip", "netns", "list"])).stdout == before[1]
    assert sorted(os.listdir("/run/hedgerow")) == before[2]


async def test_an_application_that_ends_at_once_is_named_with_its_last_words() -> None:
    broken = WorkloadSpec(
        WorkloadRef("test", "broken"), Program(("sh", "-c", "echo no such luck; exit 3")), ports=(Port(1),)
    )
    with pytest.raises(NotReady, match=r"test/broken-0 \(application\) ended with 3(.|\n)*no such luck"):
        async with LocalMesh([broken]):
            pytest.fail("a mesh came up with a program that does not")


async def test_a_controller_that_does_not_start_is_named_with_its_last_words() -> None:
    with pytest.raises(NotReady, match=r"the controller ended with 2(.|\n)*svid_lifetime"):
        async with LocalMesh([SERVER], controller_settings={"svid_lifetime": "a while"}):
            pytest.fail("a mesh came up with a controller that does not")


async def test_the_api_refuses_a_stranger(mesh: LocalMesh) -> None:
    async with aiohttp.ClientSession() as session, session.get(f"{mesh.server}/api/v1/status") as response:
        assert response.status == 401
    with pytest.raises(ClientError):
        await mesh.api.get("/no-such-thing")


async def test_waiting_ends() -> None:
    mesh = LocalMesh([])

    async def never() -> bool:
        return False

    with pytest.raises(NotReady, match=r"waited 0\.2 s in vain for godot"):
        await mesh.wait_for(never, "godot", deadline=0.2)
