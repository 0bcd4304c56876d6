"""The controller dies, also in the middle of everything: traffic does not notice, and nothing is forgotten."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest
import pytest_asyncio

from graph.flow import EdgeKey
from graph.model import WorkloadRef
from hedgerow.local.description import WorkloadSpec
from hedgerow.local.mesh import LocalMesh
from hedgerow.local.processes import run
from sidecar.state import DIRECTORY
from tests.mesh.running import Counters, client, close, counted, refusals
from tests.mesh.traffic import Held, Load, connections, reaches, web

pytestmark = pytest.mark.asyncio(loop_scope="module")

WEB = "${service:web}:8080"
#: Its sidecars alone can refuse the intruder, which has none.
INTRUDER = "test/intruder-0"
FRONT_TO_WEB = EdgeKey.parse("test/front->test/web:8080/TCP")
GUEST_TO_WEB = EdgeKey.parse("test/guest->test/web:8080/TCP")
STRANGER_ELSEWHERE = EdgeKey.parse("test/stranger->test/web:9090/TCP")


def workloads() -> list[WorkloadSpec]:
    return [
        web("test/web", 8080, 9090),
        client("test/front"),  # learned
        client("test/guest"),  # allowed by an override
        client("test/stranger"),  # neither
        WorkloadSpec(WorkloadRef.parse("test/intruder"), meshed=False, listed=False),
    ]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def closed(mesh: LocalMesh) -> LocalMesh:
    """The mesh, enforced, with one edge learned and one opened by a person."""
    assert await reaches(mesh, "test/front-0", WEB)
    await close(mesh, [FRONT_TO_WEB])
    made = await mesh.api.post("/overrides", {**_override("allow", "test/guest"), "port": 8080})
    assert made["pushed"]
    made = await mesh.api.post("/overrides", {**_override("deny", "test/stranger"), "port": None, "expires_in": 3600})
    assert made["pushed"]
    return mesh


def _override(effect: str, source: str) -> dict[str, Any]:
    return {"effect": effect, "from": source, "to": "test/web", "owner": "tests", "reason": "to be remembered",
            "expires_in": None}  # fmt: skip


@pytest_asyncio.fixture(loop_scope="module")
async def steady(closed: LocalMesh) -> AsyncIterator[LocalMesh]:
    """The closed mesh with everybody connected, before and after the test."""
    await check_verdicts(closed)
    yield closed
    if not closed.controller.running:
        await closed.start_controller()
    await in_touch(closed)


async def check_verdicts(mesh: LocalMesh) -> None:
    for pod, allowed in (("front", True), ("guest", True), ("stranger", False)):
        assert await reaches(mesh, f"test/{pod}-0", WEB) is allowed, pod
    address = mesh.pod("test/web-0").address
    assert not await reaches(mesh, INTRUDER, f"{address}:8080")


async def in_touch(mesh: LocalMesh, pods: Iterable[str] = ("web-0", "front-0", "guest-0", "stranger-0")) -> None:
    """Wait until every sidecar is connected and holds what the controller has for it."""

    async def connected() -> bool:
        sidecars = {one["instance"]: one for one in (await mesh.api.get("/status"))["sidecars"]}
        held = [sidecars.get(name) for name in pods]
        return all(one and one["connected"] and 0 < one["pushed_version"] == one["held_version"] for one in held)

    await mesh.wait_for(connected, "every sidecar to come back")


async def memory(mesh: LocalMesh) -> dict[str, Any]:
    """What the controller has to know after a restart as it did before, traffic or no traffic."""
    policy = await mesh.api.get("/policy")
    for rule in policy["rules"]:
        del rule["evidence"]  # it counts, and there is traffic
    workloads = (await mesh.api.get("/status"))["workloads"]
    return {
        "rules": policy["rules"],
        "modes": {
            one["workload"]: (one["inbound_mode"], one["outbound_mode"], one["inbound_tls"]) for one in workloads
        },
        "versions": {name: one["version"] for name, one in policy["workloads"].items()},
        "overrides": (await mesh.api.get("/overrides"))["overrides"],
        "inventory": await mesh.api.get("/inventory"),
        "edges": {edge["id"]: edge["state"] for edge in (await mesh.api.get("/graph"))["edges"]},
    }


async def audit_log(mesh: LocalMesh) -> list[dict[str, Any]]:
    """Oldest first; it must be intact."""
    page = await mesh.api.get("/audit", {"limit": 10_000})
    assert page["intact"], page["problem"]
    entries: list[dict[str, Any]] = page["entries"][::-1]
    assert [entry["sequence"] for entry in entries] == list(range(1, len(entries) + 1))
    return entries


async def edges(mesh: LocalMesh) -> dict[str, dict[str, Any]]:
    return {edge["id"]: edge for edge in (await mesh.api.get("/graph"))["edges"]}


async def stored(mesh: LocalMesh, pod: str) -> None:
    """Wait until a sidecar has written down whom it talks to; it does so every few seconds."""
    file = mesh.pod(pod).state_dir / DIRECTORY
    service = next(service for service in mesh.services if service.name == "web")

    async def written() -> bool:
        return file.exists() and service.address.encode() in file.read_bytes()

    await mesh.wait_for(written, f"{pod} to keep its directory")


async def restart_sidecar(mesh: LocalMesh, pod: str) -> None:
    """``kill -9`` and a new start, which has nobody to ask while the controller is away."""
    old = mesh.pod(pod).sidecar.pid
    await mesh.kill_sidecar(pod)
    await mesh.start_sidecar(pod)
    assert mesh.pod(pod).sidecar.pid != old


async def test_nothing_fails_and_no_verdict_changes_while_the_controller_is_dead(steady: LocalMesh) -> None:
    mesh = steady
    for pod in ("test/guest-0", "test/stranger-0"):
        await stored(mesh, pod)
    before = {edge: await Counters.of(mesh, edge) for edge in (FRONT_TO_WEB, GUEST_TO_WEB)}
    async with Load(mesh, "test/front-0", WEB, fresh=2, kept=2) as load:
        await load.more(20)
        remembered, audited, counters = await memory(mesh), await audit_log(mesh), await edges(mesh)
        await mesh.kill_controller()

        await load.more(50)
        await check_verdicts(mesh)
        for pod in ("test/guest-0", "test/stranger-0"):
            await restart_sidecar(mesh, pod)
        await check_verdicts(mesh)
        await load.more(50)

        await mesh.start_controller()
        assert await memory(mesh) == remembered
        now = await edges(mesh)
        for name, edge in counters.items():
            for counter in ("connections", "verified", "denied", "bytes_sent", "bytes_received"):
                assert now[name][counter] >= edge[counter], f"{counter} of {name} went back"
            assert now[name]["first_seen"] == edge["first_seen"]
            assert now[name]["rule"] is None or now[name]["rule"]["id"] == edge["rule"]["id"]
        assert (await audit_log(mesh))[: len(audited)] == audited

        await in_touch(mesh)
        await load.more(20)
        tallies = await load.end()
    await check_verdicts(mesh)

    # Every kept client had one connection all the time, and the other connections are all accounted for.
    assert tallies["kept"].connections == 2
    made = tallies["fresh"].connections + tallies["kept"].connections + 3
    added = await counted(mesh, FRONT_TO_WEB, before[FRONT_TO_WEB], connections(made))
    assert (added.connections, added.verified, added.denied, added.failed) == (made, made, 0, 0)
    # What the guest's sidecar had not reported when it was killed, the other end has.
    added = await counted(mesh, GUEST_TO_WEB, before[GUEST_TO_WEB], connections(3))
    assert (added.connections, added.verified, added.denied) == (3, 3, 0)


async def test_what_was_refused_while_the_controller_was_dead_is_reported_later(steady: LocalMesh) -> None:
    mesh = steady
    target = "${service:web}:9090"  # where nobody else in this module has the stranger try
    assert not await reaches(mesh, "test/stranger-0", target)

    async def denied() -> int:
        return (await Counters.of(mesh, STRANGER_ELSEWHERE)).denied

    async def reported(number: int) -> None:
        async def known() -> bool:
            return await denied() >= number

        await mesh.wait_for(known, f"{number} refusals")

    await reported(1)
    await mesh.kill_controller()
    for _ in range(5):
        assert not await reaches(mesh, "test/stranger-0", target)
    await mesh.start_controller()
    await reported(6)
    await in_touch(mesh)
    assert await denied() == 6
    said = await refusals(mesh, STRANGER_ELSEWHERE, "outbound")
    assert {flow["reason"] for flow in said} == {"deny-override"}
    assert {flow["reporter"] for flow in said} == {"stranger-0"}


async def test_an_override_expires_also_when_nobody_is_there_to_say_so(steady: LocalMesh) -> None:
    mesh = steady
    target = "${service:web}:9090"
    assert not await reaches(mesh, "test/front-0", target)
    asked = {**_override("allow", "test/front"), "port": 9090, "expires_in": 8}
    made = await mesh.api.post("/overrides", asked)
    assert made["pushed"]
    async with Held(mesh, "test/front-0", target) as held:
        await mesh.kill_controller()
        assert await held.cut() >= made["override"]["expires_at"]
    assert not await reaches(mesh, "test/front-0", target)


async def test_a_server_that_restarts_without_a_controller_keeps_its_door_closed(steady: LocalMesh) -> None:
    mesh = steady
    await mesh.kill_controller()
    await restart_sidecar(mesh, "test/web-0")
    await check_verdicts(mesh)
    await mesh.start_controller()
    await in_touch(mesh)
    await check_verdicts(mesh)


@contextlib.asynccontextmanager
async def deaf_to_the_controller(mesh: LocalMesh, pod: str) -> AsyncIterator[None]:
    """What a pod's sidecar says arrives at the controller, and no answer comes back."""
    enter = ("nsenter", f"--net=/run/netns/{pod.replace('/', '--')}", "nft")
    chain = "type filter hook input priority 0; policy accept;"
    rules = f"table inet deaf {{ chain input {{ {chain} ip saddr {mesh.controller_address} drop; }}; }}"
    await run([*enter, "-f", "-"], stdin=rules.encode(), check=True)
    try:
        yield
    finally:
        await run([*enter, "delete", "table", "inet", "deaf"], check=True)


async def test_a_report_that_was_stored_and_never_acknowledged_counts_once(steady: LocalMesh) -> None:
    mesh = steady
    before, since = await Counters.of(mesh, FRONT_TO_WEB), time.time()

    async def stored_by_the_controller() -> bool:
        # The first report at least: TCP does not send another while this one is not acknowledged.
        flows = (await mesh.api.get("/flows", {"since": since, "limit": 1000}))["flows"]
        return any(flow["reporter"] == "front-0" and flow["first_seen"] >= since for flow in flows)

    async with deaf_to_the_controller(mesh, "test/front-0"):
        async with Load(mesh, "test/front-0", WEB, fresh=2, kept=0) as load:
            await load.more(20)
            made = (await load.end())["fresh"].connections
        await mesh.wait_for(stored_by_the_controller, "reports of front-0")
        await mesh.kill_controller()
    await mesh.start_controller()
    await in_touch(mesh)  # and it repeats what it was never told to have arrived
    added = await counted(mesh, FRONT_TO_WEB, before, connections(made))
    assert (added.connections, added.verified, added.denied, added.failed) == (made, made, 0, 0)


async def test_every_connection_is_counted_once_however_often_the_controller_dies(steady: LocalMesh) -> None:
    mesh = steady
    before = await Counters.of(mesh, FRONT_TO_WEB)
    async with Load(mesh, "test/front-0", WEB, fresh=4, kept=1) as load:
        for requests in (1, 13):  # at different moments of reports and their acknowledgements
            await load.more(requests)
            await mesh.kill_controller()
            await mesh.start_controller()
        await in_touch(mesh)
        tallies = await load.end()
    made = sum(tally.connections for tally in tallies.values())
    added = await counted(mesh, FRONT_TO_WEB, before, connections(made))
    assert (added.connections, added.verified, added.denied, added.failed) == (made, made, 0, 0)
    await audit_log(mesh)
