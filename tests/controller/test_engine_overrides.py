"""Overrides: whom they reach, how they end, and what they say of operations and hosts."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from controller.errors import Conflict, NotFound, UnknownWorkload
from controller.view import OverrideState
from graph.model import Connection, Direction, Mode, Peer, Selector, Verdict, WorkloadRef
from graph.policy import admit, decide
from tests.controller.decisions import assert_as_if_compiled_whole, override, versions
from tests.controller.mesh import (
    CART,
    FRONT,
    HOST,
    KEY,
    NOW,
    REDIS,
    SETTINGS,
    Clock,
    edited,
    flow,
    instance,
    learned,
    running,
)


async def test_an_override_reaches_both_ends_and_ends_at_its_time(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        before = versions(engine.view)
        made = await override(engine)
        assert versions(engine.view) == before | {FRONT: before[FRONT] + 1, REDIS: before[REDIS] + 1}
        for ref in (FRONT, REDIS):
            assert made.id in {rule.id for rule in engine.view.snapshots[ref].rules}
        clock.now = NOW + 59.9
        await engine.tick()
        assert made.id in engine.view.rules
        clock.now = NOW + 60
        await engine.tick()
        assert made.id not in engine.view.rules
        assert engine.view.overrides[made.id].state(clock.now) is OverrideState.EXPIRED
        for ref in (FRONT, REDIS):
            assert made.id not in {rule.id for rule in engine.view.snapshots[ref].rules}
        last = engine.view.audit_head
        assert last is not None
        assert (last.actor, last.action, last.subject) == ("controller", "override.expire", made.id)
        assert_as_if_compiled_whole(engine.view, clock.now)


async def test_an_override_ends_by_itself_when_its_moment_comes(tmp_path: Path) -> None:
    async with running(tmp_path, time.time) as engine, engine.subscribe() as changes:
        made = await override(engine, expires_in=0.2)
        async with asyncio.timeout(20):
            async for change in changes:
                if made.id not in engine.view.rules and made.id in change.overrides:
                    break
        assert engine.view.overrides[made.id].ended


async def test_an_override_that_ended_while_nobody_ran_ends_at_the_start(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        made = await override(engine)
        held = versions(engine.view)[FRONT]
    clock.now += 3600
    async with running(tmp_path, clock) as engine:
        assert made.id not in engine.view.rules
        assert versions(engine.view)[FRONT] == int(clock.now) > held
        actions = [entry.action for entry in (await engine.audit()).entries]
        assert actions.count("override.expire") == 1


async def test_a_revoked_override_ends_at_once_and_only_once(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        made = await override(engine)
        clock.now += 5
        ended = await engine.revoke_override(made.id, "bob", "a mistake")
        assert (ended.revoked_at, ended.revoked_by, ended.revoke_reason) == (clock.now, "bob", "a mistake")
        assert made.id not in engine.view.rules
        with pytest.raises(Conflict, match="revoked already"):
            await engine.revoke_override(made.id, "bob", "again")
        with pytest.raises(NotFound):
            await engine.revoke_override("override/none", "bob", "x")
        clock.now += 120
        await engine.tick()  # its timer comes, and says nothing more
        assert [e.action for e in (await engine.audit()).entries].count("override.expire") == 0


async def test_an_ended_override_is_shown_for_a_day(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        made = await override(engine)
        clock.now += 3600
        await engine.tick()
        assert made.id in engine.view.overrides
        clock.now = NOW + 60 + SETTINGS.override_kept + SETTINGS.housekeeping
        await engine.tick()
        assert made.id not in engine.view.overrides
    async with running(tmp_path, clock) as engine:
        assert made.id not in engine.view.overrides


async def test_an_edge_shows_the_override_that_decides_about_it(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        await learned(engine, clock)
        deny = await override(engine, effect=Verdict.DENY, destination=CART, port=None, expires_in=None)
        rule = engine.view.traffic[KEY].rule
        assert rule is not None
        assert rule.id == deny.id
        await engine.revoke_override(deny.id, "ann", "done")
        rule = engine.view.traffic[KEY].rule
        assert rule is not None
        assert rule.id == f"learned/{KEY}"


async def test_a_refused_override_changes_nothing(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        before = engine.view
        with pytest.raises(UnknownWorkload, match="shop/cart"):
            await override(engine, destination=WorkloadRef("shop", "crt"))
        assert engine.view is before


async def test_overrides_are_bounded(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock, replace(SETTINGS, max_overrides=2)) as engine:
        await override(engine)
        await override(engine, expires_in=None)
        with pytest.raises(Conflict, match="2 active"):
            await override(engine)
        clock.now += 60
        await override(engine)  # one of the two has ended


async def test_an_override_about_operations_is_both_ends_and_the_destination_judges(
    tmp_path: Path, clock: Clock
) -> None:
    async with running(tmp_path, clock) as engine:
        await engine.set_mode("shop", None, Mode.ENFORCE, None, "ann", "closing")
        made = await override(engine, destination=CART, port=8080, operations=("GET /cart/{id}",))
        source, me = Peer(FRONT, "shop", "front", "10.0.0.1", True), Peer(CART, "shop", "default", "10.0.0.2", True)
        going = Connection(Direction.OUTBOUND, source, me, 8080)
        coming = Connection(Direction.INBOUND, source, me, 8080)
        assert admit(engine.view.snapshots[FRONT], going, NOW)[0].allowed
        cart = engine.view.snapshots[CART]
        opened, by_operation = admit(cart, coming, NOW)
        assert (opened.allowed, by_operation) == (True, True)
        for operation, allowed in {"GET /cart/{id}": True, "PUT /cart/{id}": False, "": False}.items():
            assert decide(cart, replace(coming, operation=operation), NOW).allowed is allowed
        last = engine.view.audit_head
        assert last is not None
        assert json.loads(last.detail)["operations"] == ["GET /cart/{id}"]
        assert_as_if_compiled_whole(engine.view, clock.now)
    async with running(tmp_path, clock) as engine:
        assert engine.view.overrides[made.id].operations == ("GET /cart/{id}",)
        assert engine.view.rules[made.id].operations == ("GET /cart/{id}",)


async def test_an_edge_shows_what_was_learned_above_an_override_on_some_operations(
    tmp_path: Path, clock: Clock
) -> None:
    async with running(tmp_path, clock) as engine:
        some = await override(engine, effect=Verdict.DENY, destination=CART, port=8080, operations=("PUT /",))
        await engine.ingest(instance("cart-0"), "boot", 1, 0, [flow(FRONT, CART)])
        rule = engine.view.traffic[KEY].rule
        assert rule is not None
        assert rule.id == some.id
        await engine.approve([KEY], "ann", "known")
        rule = engine.view.traffic[KEY].rule
        assert rule is not None
        assert rule.id == f"learned/{KEY}"


async def test_when_the_destination_loses_its_sidecar_its_operations_are_closed(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        allow = await override(engine, destination=CART, port=8080, operations=("GET /",), expires_in=None)
        deny = await override(engine, destination=CART, port=8081, effect=Verdict.DENY, operations=("GET /",))
        await engine.set_inventory(edited(("name: cart, ports", "name: cart, meshed: false, ports")), "test")
        await engine.tick()
        held = {rule.id.partition("@")[0]: rule for rule in engine.view.snapshots[FRONT].rules}
        assert allow.id not in held
        assert held[deny.id].operations == ()
        assert CART not in engine.view.snapshots
        assert_as_if_compiled_whole(engine.view, clock.now)


async def test_an_override_may_open_a_host(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        before = versions(engine.view)
        made = await override(engine, destination=HOST, port=443)
        assert versions(engine.view) == before | {FRONT: before[FRONT] + 1}
        (rule,) = (rule for rule in engine.view.snapshots[FRONT].rules if rule.id == made.id)
        assert rule.destination == Selector(host="api.example.com")
        assert_as_if_compiled_whole(engine.view, clock.now)
        await engine.revoke_override(made.id, "ann", "done")
        assert made.id not in {rule.id for rule in engine.view.snapshots[FRONT].rules}
    async with running(tmp_path, clock) as engine:
        assert engine.view.overrides[made.id].destination == HOST
