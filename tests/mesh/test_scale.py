"""A workload grows and shrinks while it is used: nobody notices, and nothing stays behind."""

from __future__ import annotations

import json
from typing import Any

import pytest
import pytest_asyncio

from graph.flow import EdgeKey
from graph.model import WorkloadRef
from hedgerow.local.description import WorkloadSpec
from hedgerow.local.mesh import LocalMesh
from tests.mesh.running import Counters, client, close, counted
from tests.mesh.traffic import Load, connections, reaches, web

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

WEB = WorkloadRef.parse("test/web")
TARGET = "${service:web}:8080"
EDGE = EdgeKey.parse("test/front->test/web:8080/TCP")
MANY = 5


def workloads() -> list[WorkloadSpec]:
    return [web("test/web", 8080), client("test/front")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def closed(mesh: LocalMesh) -> LocalMesh:
    """The mesh, enforced, with one instance of each."""
    assert await reaches(mesh, "test/front-0", TARGET)
    await close(mesh, [EDGE])
    return mesh


async def known(mesh: LocalMesh) -> dict[str, Any]:
    """Where the controller shows instances, and which ones of the scaled workload it shows there."""
    inventory = await mesh.api.get("/inventory")
    status = await mesh.api.get("/status")
    node = next(node for node in (await mesh.api.get("/graph"))["nodes"] if node["id"] == str(WEB))
    workload = next(each for each in status["workloads"] if each["workload"] == str(WEB))
    return {
        "inventory": {each["name"] for each in inventory["instances"] if each["workload"] == str(WEB)},
        "sidecars": {each["instance"] for each in status["sidecars"] if each["workload"] == str(WEB)},
        "node": node["instances"],
        "workload": workload["instances"],
        "total": status["inventory"]["instances"],
    }


async def settled(mesh: LocalMesh, instances: int) -> None:
    """Wait until everything that the controller shows agrees with the pods that there are."""
    names = {pod.placed.name for pod in mesh.pods_of(WEB)}
    assert len(names) == instances
    expected = {
        "inventory": names,
        "sidecars": names,
        "node": instances,
        "workload": instances,
        "total": instances + 2,  # the client and the controller
    }
    last: dict[str, Any] = {}

    async def agrees() -> bool:
        nonlocal last
        last = await known(mesh)
        return last == expected

    try:
        await mesh.wait_for(agrees, f"the controller to know {instances} instances and no others")
    except Exception as error:
        error.add_note(f"it knows {last}")
        raise


async def tunnels(mesh: LocalMesh, pod: str) -> int:
    """How many tunnels a sidecar has to others."""
    done = await mesh.pod(pod).exec(["curl", "--silent", "--fail", "http://127.0.0.1:15021/stats"])
    assert done.code == 0, done.stderr
    return int(json.loads(done.stdout)["tunnels"]["outbound"])


async def test_one_becomes_five_becomes_one_under_load(closed: LocalMesh) -> None:
    mesh = closed
    before = await Counters.of(mesh, EDGE)
    await settled(mesh, 1)
    (first,) = mesh.pods_of(WEB)
    async with Load(mesh, "test/front-0", TARGET, fresh=3, kept=2) as load:
        await load.more(10)
        await mesh.scale(WEB, MANY)
        everybody = {pod.address for pod in mesh.pods_of(WEB)}
        await settled(mesh, MANY)

        async def all_answered() -> bool:
            load.check()
            return set(load.total().answered_by) == everybody

        await mesh.wait_for(all_answered, "every instance to answer")
        assert await tunnels(mesh, "test/front-0") == MANY

        await mesh.scale(WEB, 1)
        assert mesh.pods_of(WEB) == [first]
        await settled(mesh, 1)
        gone = load.total()
        await load.more(20)
        now = load.total()
        assert {address for address in everybody if now.answered_by[address] > gone.answered_by[address]} == {
            first.address
        }
        tallies = await load.end()

    # Kept clients had to move, at most once from each instance that went.
    assert 2 <= tallies["kept"].connections <= 2 * MANY
    made = sum(tally.connections for tally in tallies.values())
    added = await counted(mesh, EDGE, before, connections(made))
    assert (added.connections, added.verified, added.denied, added.failed) == (made, made, 0, 0)

    async def one_tunnel() -> bool:
        return await tunnels(mesh, "test/front-0") == 1

    await mesh.wait_for(one_tunnel, "the client's sidecar to let go of instances that went")
