"""Modes and approvals: what they change, what they leave, and when it is compiled."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controller.engine import Engine
from controller.errors import Conflict, InvalidRequest, NotFound
from controller.learner import EdgeState
from controller.view import WorkloadMode
from graph.flow import EdgeKey
from graph.model import Direction, InboundTls, Mode, Verdict, WorkloadRef
from tests.controller.decisions import assert_as_if_compiled_whole, override, versions
from tests.controller.mesh import CART, FRONT, OUTSIDE, REDIS, SETTINGS, Clock, flow, instance, running

# --- modes


async def test_a_mode_is_set_for_one_direction_of_one_workload(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        before = versions(engine.view)
        assert await engine.set_mode(CART, Direction.INBOUND, Mode.ENFORCE, None, "ann", "closing") == (CART,)
        assert engine.view.modes[CART] == WorkloadMode(Mode.ENFORCE, Mode.LEARN)
        assert engine.view.snapshots[CART].inbound_mode is Mode.ENFORCE
        assert engine.view.nodes[CART].inbound_mode == "enforce"
        assert versions(engine.view) == before | {CART: before[CART] + 1}
        await engine.set_mode(CART, Direction.OUTBOUND, Mode.AUDIT, InboundTls.STRICT, "ann", "closing")
        assert engine.view.modes[CART] == WorkloadMode(Mode.ENFORCE, Mode.AUDIT, InboundTls.STRICT)
        await engine.set_mode(CART, None, Mode.QUARANTINE, None, "ann", "closing")
        assert engine.view.modes[CART] == WorkloadMode(Mode.QUARANTINE, Mode.QUARANTINE, InboundTls.STRICT)
    async with running(tmp_path, clock) as engine:
        assert engine.view.modes[CART] == WorkloadMode(Mode.QUARANTINE, Mode.QUARANTINE, InboundTls.STRICT)


async def test_a_mode_is_set_for_a_namespace(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        assert await engine.set_mode("shop", None, Mode.ENFORCE, None, "ann", "closing") == (CART, FRONT)
        assert {ref for ref, mode in engine.view.modes.items() if mode.inbound is Mode.ENFORCE} == {CART, FRONT}
        entry = engine.view.audit_head
        assert entry is not None
        assert (entry.actor, entry.action, entry.subject) == ("ann", "mode.set", "shop")
        assert json.loads(entry.detail)["changed"] == ["shop/cart", "shop/front"]


@pytest.mark.parametrize(
    ("target", "mode", "owner", "reason", "field", "remedy"),
    [
        ("shp", Mode.AUDIT, "ann", "x", "namespace", "shop"),
        (WorkloadRef("shop", "crt"), Mode.AUDIT, "ann", "x", "workload", "shop/cart"),
        (CART, None, "ann", "x", "mode", "inbound_tls"),
        (CART, Mode.AUDIT, "", "x", "owner", "--owner"),
        (CART, Mode.AUDIT, "ann", "", "reason", "--reason"),
    ],
)
async def test_a_mode_that_can_not_be_set_names_why(
    tmp_path: Path, clock: Clock, target: Any, mode: Any, owner: str, reason: str, field: str, remedy: str
) -> None:
    async with running(tmp_path, clock) as engine:
        before = engine.view
        with pytest.raises(InvalidRequest) as caught:
            await engine.set_mode(target, None, mode, None, owner, reason)
        assert caught.value.field == field
        assert remedy in caught.value.remedy
        assert engine.view is before


# --- approvals


async def waiting(engine: Engine, clock: Clock) -> EdgeKey:
    """An edge that needs a person: its source is outside."""
    await engine.ingest(instance("cart-0"), "boot-w", 1, 0, [flow(OUTSIDE, CART, verified=False, source_identity="")])
    clock.now += SETTINGS.gate.min_seconds
    await engine.tick()
    key = EdgeKey(OUTSIDE, CART, 8080)
    assert engine.view.edges[key].state is EdgeState.PROPOSED
    return key


async def test_an_approved_edge_is_a_rule_at_once(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        key = await waiting(engine, clock)
        assert await engine.approve([key, key], "ann", "known partner") == (key,)
        assert engine.view.rules[f"learned/{key}"].owner == "ann"
        entry = engine.view.audit_head
        assert entry is not None
        assert (entry.actor, entry.action, entry.subject) == ("ann", "edge.approve", str(key))
        assert json.loads(entry.detail) == {"reason": "known partner", "was": "proposed"}
        assert await engine.approve([key], "ann", "again") == ()
        assert_as_if_compiled_whole(engine.view, clock.now)
    async with running(tmp_path, clock) as engine:
        assert engine.view.edges[key].approved_by == "ann"
        assert f"learned/{key}" in engine.view.rules


async def test_all_that_wait_can_be_approved_and_what_was_refused_is_not_among_them(
    tmp_path: Path, clock: Clock
) -> None:
    async with running(tmp_path, clock) as engine:
        key = await waiting(engine, clock)
        attack = flow(FRONT, REDIS, 6379, verdict=Verdict.DENY, reason="no-rule")
        failing = flow(FRONT, REDIS, 22, failed=5)
        fresh = flow(CART, REDIS, 6379)
        await engine.ingest(instance("redis-0"), "boot", 1, 0, [attack, failing, fresh])
        assert await engine.approve(None, "ann", "all of it") == (key, fresh.edge)


async def test_an_edge_that_nobody_saw_is_not_approved(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        key = await waiting(engine, clock)
        before = engine.view
        with pytest.raises(NotFound, match="never observed"):
            await engine.approve([key, EdgeKey(FRONT, REDIS, 1)], "ann", "x")
        assert engine.view is before  # not even the one that was there


async def test_a_retired_edge_is_not_approved(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        key = await waiting(engine, clock)
        clock.now += SETTINGS.gate.retire_after
        await engine.tick()
        with pytest.raises(Conflict, match="retired"):
            await engine.approve([key], "ann", "x")


async def test_what_a_person_waits_for_is_compiled_before_the_answer(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock, replace(SETTINGS, compile_at_once=1)) as engine:
        for source, destination in ((FRONT, REDIS), (CART, REDIS), (FRONT, CART)):
            made = await override(engine, source=source, destination=destination)
            for ref in (source, destination):
                assert made.id in {rule.id for rule in engine.view.snapshots[ref].rules}


async def test_all_the_rest_is_compiled_in_the_end(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock, replace(SETTINGS, compile_at_once=1)) as engine, engine.subscribe() as changes:
        async with asyncio.timeout(20):
            while set(versions(engine.view)) != {FRONT, CART, REDIS}:
                await anext(changes)
        assert_as_if_compiled_whole(engine.view, clock.now)
