"""What reports teach an engine: edges that ripen, go stale and are forgotten, and what never teaches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from controller.learner import EdgeState
from graph.flow import EdgeKey
from graph.model import Direction, Mode, Selector, Verdict, WorkloadRef
from graph.views import EdgeVerdict
from tests.controller.mesh import (
    CART,
    FRONT,
    HOST,
    KEY,
    LEGACY,
    REDIS,
    SETTINGS,
    Clock,
    actions,
    flow,
    instance,
    running,
    sent,
    used,
)


async def test_an_edge_ripens_by_time_alone_and_reaches_both_ends_policies(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        before = {ref: snapshot.version for ref, snapshot in engine.view.snapshots.items()}
        await used(engine)
        assert engine.view.rules == {}
        clock.now += SETTINGS.gate.min_seconds
        await engine.tick()
        assert list(engine.view.rules) == [f"learned/{KEY}"]
        rule = engine.view.rules[f"learned/{KEY}"]
        after = {ref: snapshot.version for ref, snapshot in engine.view.snapshots.items()}
        assert after == {FRONT: int(clock.now), CART: int(clock.now), REDIS: before[REDIS]}
        for ref in (FRONT, CART):
            assert rule.id in {each.id for each in engine.view.snapshots[ref].rules}
            assert engine.view.snapshots[ref].issued_at == clock.now
        assert engine.view.traffic[KEY].rule == rule
        assert (await actions(engine))[1:] == ["edge.candidate", "edge.active"]


@pytest.mark.parametrize("end", Direction)
async def test_one_end_alone_opens_nothing(tmp_path: Path, clock: Clock, end: Direction) -> None:
    """Its sidecar may be broken into: front's would open cart to itself, cart's the way out of front."""
    async with running(tmp_path, clock) as engine:
        for sequence in (1, 2):
            told = ("front-0", sent(FRONT, CART)) if end is Direction.OUTBOUND else ("cart-0", flow(FRONT, CART))
            await engine.ingest(instance(told[0]), "boot", sequence, 0, [told[1]])
            clock.now += SETTINGS.gate.min_seconds
            await engine.tick()
        assert engine.view.edges[KEY].state is EdgeState.PROPOSED
        assert engine.view.rules == {}


@pytest.mark.parametrize("mode", [Mode.ENFORCE, Mode.QUARANTINE])
@pytest.mark.parametrize("reason", ["learning", "audit"])
async def test_a_closed_end_teaches_nothing_whatever_it_says(
    tmp_path: Path, clock: Clock, mode: Mode, reason: str
) -> None:
    """Where the destination has no sidecar the source's word is enough, so a closed source must not have one."""
    smuggled = sent(FRONT, LEGACY, 25, verified=False, reason=reason)
    async with running(tmp_path, clock) as engine:
        await engine.set_mode(FRONT, Direction.OUTBOUND, mode, None, "ann", "closed")
        await engine.ingest(instance("front-0"), "boot", 1, 0, [smuggled])
        clock.now += SETTINGS.gate.min_seconds
        await engine.tick()
        assert engine.view.edges == {}
        assert EdgeKey(FRONT, LEGACY, 25) in engine.view.traffic  # shown to people all the same
        await engine.set_mode(FRONT, Direction.OUTBOUND, Mode.LEARN, None, "ann", "open again")
        await engine.ingest(instance("front-0"), "boot", 2, 0, [smuggled])
        clock.now += SETTINGS.gate.min_seconds
        await engine.tick()
        assert engine.view.edges[EdgeKey(FRONT, LEGACY, 25)].state is EdgeState.ACTIVE


async def test_more_of_the_same_changes_no_policy(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        await used(engine)
        clock.now += SETTINGS.gate.min_seconds
        await engine.tick()
        snapshots = engine.view.snapshots
        allowed = flow(FRONT, CART, pending=Verdict.ALLOW, reason="allow-rule", rule_id=f"learned/{KEY}")
        await engine.ingest(instance("cart-0"), "boot", 2, 0, [allowed])
        assert engine.view.snapshots is snapshots
        assert engine.view.edges[KEY].connections == 10


async def test_an_edge_goes_stale_retires_and_is_forgotten(tmp_path: Path, clock: Clock) -> None:
    gate = SETTINGS.gate
    async with running(tmp_path, clock) as engine:
        await used(engine)
        clock.now += gate.min_seconds
        await engine.tick()
        seen = engine.view.edges[KEY].last_seen
        learned = engine.view.snapshots[CART].version
        clock.now = seen + gate.stale_after
        await engine.tick()
        assert engine.view.edges[KEY].state is EdgeState.STALE
        assert len(engine.view.rules) == 1
        clock.now = seen + gate.retire_after
        await engine.tick()
        assert engine.view.edges[KEY].state is EdgeState.RETIRED
        assert len(engine.view.rules) == 0
        assert engine.view.snapshots[CART].version == int(clock.now) > learned
        clock.now = seen + 2 * gate.retire_after
        async with engine.subscribe() as changes:
            await engine.tick()
            change = await anext(changes)
        assert change.removed_edges == (KEY,)
        assert KEY not in engine.view.edges
        assert KEY not in engine.view.traffic
        assert engine.view.edges_of == {}
    async with running(tmp_path, clock) as engine:
        assert engine.view.edges == {}
        assert engine.view.traffic == {}


async def test_what_was_refused_is_shown_and_never_learned(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        denied = flow(FRONT, CART, verdict=Verdict.DENY, reason="no-rule")
        await engine.ingest(instance("cart-0"), "boot", 1, 0, [denied] * 9)
        clock.now += SETTINGS.gate.min_seconds
        await engine.tick()
        assert engine.view.traffic[KEY].verdict is EdgeVerdict.DENY
        assert engine.view.traffic[KEY].denied == 45
        assert engine.view.traffic[KEY].state == ""
        assert KEY not in engine.view.edges


async def test_strangers_can_not_make_the_controller_remember_without_end(tmp_path: Path, clock: Clock) -> None:
    settings = replace(SETTINGS, max_external=40)  # a quarter of it for one workload
    async with running(tmp_path, clock, settings) as engine:
        strangers = [flow(WorkloadRef.external(f"192.0.2.{n}"), CART, verified=False) for n in range(1, 100)]
        await engine.ingest(instance("cart-0"), "boot", 1, 0, strangers)
        assert len(engine.view.edges) == 10
        assert len(engine.view.traffic) == 11  # and one for all the rest


async def test_a_host_is_an_end_and_waits_for_a_person(tmp_path: Path, clock: Clock) -> None:
    key = EdgeKey(FRONT, HOST, 443)
    async with running(tmp_path, clock) as engine:
        call = sent(FRONT, HOST, 443, verified=False, destination_identity="")
        await engine.ingest(instance("front-0"), "boot", 1, 0, [call])
        clock.now += 100
        await engine.tick()
        assert engine.view.edges[key].state is EdgeState.PROPOSED
        assert engine.view.nodes[HOST].kind == "External"
        assert "api.example.com is outside the inventory" in engine.view.edges[key].evidence()
        assert not engine.view.rules
        assert await engine.approve([key], "ann", "the bank") == (key,)
        (rule,) = (each for each in engine.view.snapshots[FRONT].rules if "api.example.com" in each.id)
        assert (rule.id, rule.destination) == (f"learned/{key}", Selector(host="api.example.com"))
        traffic = engine.view.traffic[key].rule
        assert traffic is not None
        assert traffic.id == f"learned/{key}"
    async with running(tmp_path, clock) as engine:
        assert f"learned/{key}" in engine.view.rules
