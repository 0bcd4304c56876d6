"""Whatever happens in whatever order, what was compiled and published piece by piece is what the whole would give."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import suppress
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller.engine import Engine
from controller.errors import ControllerError
from controller.inventory import read_inventory
from controller.overrides import OverrideRequest
from controller.view import View
from graph.flow import EdgeKey
from graph.model import Direction, Mode, Protocol, Verdict, WorkloadRef
from tests.controller.decisions import assert_as_if_compiled_whole
from tests.controller.mesh import (
    CART,
    FRONT,
    INVENTORY,
    LEGACY,
    OUTSIDE,
    REDIS,
    TRUST_DOMAIN,
    Clock,
    flow,
    instance,
    running,
)

ENDS = st.sampled_from([FRONT, CART, REDIS, LEGACY, OUTSIDE])
DNS = "  - {namespace: data, name: dns, labels: {k8s-app: kube-dns}, ports: [{port: 53, protocol: UDP}]}\n"
INVENTORIES = (
    INVENTORY,
    INVENTORY.replace("10.0.0.5", "10.0.0.55"),
    INVENTORY.replace("10.0.0.4", OUTSIDE.name),
    INVENTORY.replace("name: legacy, meshed: false", "name: legacy, meshed: true"),
    INVENTORY.replace("name: redis, kind", "name: redis, meshed: false, kind"),
    "\n".join(line for line in INVENTORY[: INVENTORY.index("services:")].splitlines() if "cart" not in line),
    INVENTORY.replace("workloads:\n", "workloads:\n" + DNS).replace(
        "namespace: data, name: dns", "namespace: shop, name: dns"
    ),
)

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("flow"), ENDS, ENDS, st.sampled_from([8080, 6379]), st.booleans()),
        st.tuples(st.just("override"), ENDS, ENDS, st.sampled_from([None, 8080]), st.sampled_from(list(Verdict))),
        st.tuples(st.just("revoke")),
        st.tuples(st.just("mode"), st.sampled_from([FRONT, CART, "data"]), st.sampled_from(list(Mode))),
        st.tuples(st.just("inventory"), st.integers(0, len(INVENTORIES) - 1)),
        st.tuples(st.just("approve")),
        st.tuples(st.just("later"), st.sampled_from([11.0, 61.0, 1100.0, 3100.0])),
    ),
    max_size=14,
)


async def do(engine: Engine, clock: Clock, number: int, step: tuple) -> None:
    match step:
        case "flow", source, destination, port, outbound:
            reporter = source if outbound else destination
            name = {FRONT: "front-0", CART: "cart-0", REDIS: "redis-0"}.get(reporter)
            if name is not None:
                direction = Direction.OUTBOUND if outbound else Direction.INBOUND
                seen = flow(source, destination, port, direction=direction, verified=source not in (LEGACY, OUTSIDE))
                await engine.ingest(instance(name), "boot", number, 0, [seen])
        case "override", source, destination, port, effect:
            await engine.create_override(
                OverrideRequest(effect, source, destination, port, Protocol.TCP, "ann", "x", 60.0)
            )
        case ("revoke",):
            for override_id in list(engine.view.overrides)[:1]:
                await engine.revoke_override(override_id, "ann", "x")
        case "mode", target, mode:
            await engine.set_mode(target, None, mode, None, "ann", "x")
        case "inventory", which:
            await engine.set_inventory(read_inventory(INVENTORIES[which].encode(), TRUST_DOMAIN), "test")
        case ("approve",):
            await engine.approve(None, "ann", "x")
        case "later", seconds:
            clock.now += seconds
            await engine.tick()


def assert_whole(view: View, now: float) -> None:
    assert_as_if_compiled_whole(view, now)
    known = set(view.inventory.workloads)
    allowed = {
        f"learned/{key}"
        for key, edge in view.edges.items()
        if edge.allows and all(ref.is_external or ref in known for ref in (key.source, key.destination))
    }
    active = {each.id for each in view.overrides.values() if each.state(now) == "active"}
    assert set(view.rules) == allowed | active
    by_end: dict[WorkloadRef, set[EdgeKey]] = {}
    for key in view.edges:
        for ref in (key.source, key.destination):
            by_end.setdefault(ref, set()).add(key)
    assert dict(view.edges_of) == by_end
    for key, edge in view.traffic.items():
        assert edge.state == (view.edges[key].state if key in view.edges else "")


def stable(view: View) -> tuple[object, ...]:
    return (
        dict(view.rules),
        dict(view.snapshots),
        dict(view.edges),
        dict(view.traffic),
        dict(view.modes),
        dict(view.overrides),
        dict(view.nodes),
    )


async def play(path: Path, steps: list[tuple]) -> None:
    clock = Clock()
    versions: dict[WorkloadRef, int] = {}
    async with running(path, clock) as engine:
        for number, step in enumerate(steps, 1):
            with suppress(ControllerError):  # some of it makes no sense, and must leave everything as it is
                await do(engine, clock, number, step)
            await engine.tick()
            assert_whole(engine.view, clock.now)
            for ref, snapshot in engine.view.snapshots.items():
                assert snapshot.version >= versions.get(ref, 0)
                versions[ref] = snapshot.version
        before, generation = stable(engine.view), engine.view.generation
        assert (await engine.audit()).intact
    async with running(path, clock, with_inventory=False) as engine:
        assert stable(engine.view) == before
        assert engine.view.generation >= generation  # windows that ended meanwhile are cleared away, which counts


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_the_parts_are_the_whole(steps: list[tuple]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(play(Path(folder), steps))
