"""Sidecars with captured traffic are replaced by new processes under load: nothing fails, nothing is counted wrongly.

``HEDGEROW_RESTARTS`` sets how many restarts are tried.
"""

from __future__ import annotations

import os

import pytest

from graph.flow import EdgeKey
from hedgerow.local.description import WorkloadSpec
from hedgerow.local.mesh import LocalMesh
from hedgerow.local.processes import Process
from tests.mesh.running import Counters, client, close, counted
from tests.mesh.traffic import Load, connections, reaches, web

pytestmark = pytest.mark.asyncio(loop_scope="module")

RESTARTS = int(os.environ.get("HEDGEROW_RESTARTS", "4"))
FRONT, WEB = "test/front-0", "test/web-0"
EDGE = EdgeKey.parse("test/front->test/web:8080/TCP")


def workloads() -> list[WorkloadSpec]:
    return [web("test/web", 8080), client("test/front")]


async def restart(mesh: LocalMesh, name: str) -> None:
    """Start a second sidecar in the pod, which takes over from the first."""
    pod = mesh.pod(name)
    before = pod.sidecar
    pod.sidecar = Process(before.name, before.log)
    try:
        await pod.start_sidecar()

        async def ended() -> bool:
            assert pod.sidecar.running, pod.sidecar.tail()
            return not before.running

        await mesh.wait_for(ended, f"the end of the old sidecar of {name}")
    finally:
        await before.kill()
    assert before.returncode == 0, before.tail()
    await pod.wait_ready()


async def test_captured_connections_survive_restarts_of_either_sidecar(mesh: LocalMesh) -> None:
    target = "${service:web}:8080"
    assert await reaches(mesh, FRONT, target)
    await close(mesh, [EDGE])
    async with Load(mesh, FRONT, target, fresh=2, kept=2, reuse=20) as load:
        for number in range(RESTARTS):
            await restart(mesh, (FRONT, WEB)[number % 2])
            await load.more(20)
        await load.end()


async def test_every_connection_is_counted_once(mesh: LocalMesh) -> None:
    target = "${service:web}:8080"
    before = await Counters.of(mesh, EDGE)
    assert await reaches(mesh, FRONT, target)
    await counted(mesh, EDGE, before, connections(1))  # with it, all that was before has been reported
    before = await Counters.of(mesh, EDGE)
    async with Load(mesh, FRONT, target, fresh=1, kept=1, reuse=5) as load:
        for name in (WEB, FRONT):
            await restart(mesh, name)
            await load.more(5)
        tallies = await load.end()
    made = sum(tally.connections for tally in tallies.values())
    added = await counted(mesh, EDGE, before, connections(made))
    assert (added.connections, added.denied, added.failed) == (made, 0, 0)
