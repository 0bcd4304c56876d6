"""Certificates of seconds instead of an hour: renewals all the time, and no program notices."""

from __future__ import annotations

import json

import pytest
import pytest_asyncio
from cryptography import x509

from graph.flow import EdgeKey
from hedgerow.local.description import WorkloadSpec
from hedgerow.local.mesh import LocalMesh
from sidecar.state import SVID
from tests.mesh.running import Counters, client, close, counted
from tests.mesh.traffic import Held, Load, connections, reaches, web

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

LIFETIME = 6.0
CONTROLLER = {"svid_lifetime": LIFETIME}
#: Each comes after 45 % of a lifetime at least, so that so many, the first one not counted, are more than three.
RENEWALS = 9

WEB = "${service:web}:8080"
EDGE = EdgeKey.parse("test/front->test/web:8080/TCP")
PODS = ("test/front-0", "test/web-0")


def workloads() -> list[WorkloadSpec]:
    return [web("test/web", 8080), client("test/front")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def closed(mesh: LocalMesh) -> LocalMesh:
    """The mesh, enforced: there is mutual TLS or no connection."""
    assert await reaches(mesh, "test/front-0", WEB)
    await close(mesh, [EDGE])
    return mesh


async def renewals(mesh: LocalMesh, pod: str) -> int:
    """How often a sidecar has renewed its certificate, by its own account."""
    done = await mesh.pod(pod).exec(["curl", "--silent", "--fail", "http://127.0.0.1:15021/stats"])
    assert done.code == 0, done.stderr
    return int(json.loads(done.stdout)["certificate"]["renewals"])


async def live_through(mesh: LocalMesh, load: Load, times: int) -> None:
    """Wait until both sidecars have renewed so often; the load must go on all the while.

    :raises NotReady: when they do not renew
    """
    before = {pod: await renewals(mesh, pod) for pod in PODS}

    async def renewed() -> bool:
        load.check()
        return all([await renewals(mesh, pod) >= before[pod] + times for pod in PODS])

    await mesh.wait_for(renewed, f"{times} renewals", 2 * times * LIFETIME)


async def test_the_certificates_live_for_seconds(closed: LocalMesh) -> None:
    for pod in PODS:
        leaf = x509.load_pem_x509_certificates((closed.pod(pod).state_dir / SVID).read_bytes())[0]
        lifetime = (leaf.not_valid_after_utc - leaf.not_valid_before_utc).total_seconds()
        assert lifetime <= LIFETIME * 1.1 + 2  # predated by a tenth, and both ends are whole seconds


async def test_no_request_fails_through_many_renewals(closed: LocalMesh) -> None:
    mesh = closed
    before = await Counters.of(mesh, EDGE)
    async with Load(mesh, "test/front-0", WEB, fresh=3, kept=3, reuse=20) as load:
        await live_through(mesh, load, RENEWALS)
        tallies = await load.end()
    made = sum(tally.connections for tally in tallies.values())
    added = await counted(mesh, EDGE, before, connections(made))
    assert (added.connections, added.verified, added.denied, added.failed) == (made, made, 0, 0)


async def test_a_connection_outlives_the_certificates_that_it_began_with(closed: LocalMesh) -> None:
    mesh = closed
    async with Load(mesh, "test/front-0", WEB, fresh=0, kept=2) as load:
        await live_through(mesh, load, RENEWALS)
        await load.more(10)
        tallies = await load.end()
    assert tallies["kept"].connections == 2


async def test_without_renewal_connections_end_with_their_certificates(closed: LocalMesh) -> None:
    mesh = closed
    async with Held(mesh, "test/front-0", WEB) as held:
        await mesh.kill_controller()
        await held.cut(deadline=4 * LIFETIME)
    assert not await reaches(mesh, "test/front-0", WEB)
    # Who has no certificate any more needs a new token, and with it everything is as before.
    await mesh.start_controller()
    for pod in PODS:
        await mesh.kill_sidecar(pod)
        await mesh.start_sidecar(pod)
    assert await reaches(mesh, "test/front-0", WEB)
