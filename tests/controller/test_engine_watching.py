"""Subscribers and sidecars: they hear of every change, and none of them can make the engine wait."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from controller.engine import Engine
from controller.errors import NotReady
from graph.model import Mode, WorkloadRef
from tests.controller.mesh import CART, FRONT, KEY, REDIS, Clock, flow, instance, learned, running


async def test_a_change_names_what_changed_and_the_view_is_there_already(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine, engine.subscribe() as changes:
        await engine.ingest(instance("cart-0"), "boot", 1, 0, [flow(FRONT, CART)])
        change = await anext(changes)
        assert change.generation == engine.view.generation
        assert change.edges == (KEY,)
        assert [each.edge for each in change.flows] == [KEY]
        assert change.sidecars == ("shop/cart-0",)
        assert change.snapshots == ()
        assert not change.resync


async def test_an_old_view_does_not_change(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        old = engine.view
        edges, rules, snapshots = dict(old.edges), dict(old.rules), dict(old.snapshots)
        await learned(engine, clock)
        assert engine.view.generation > old.generation
        assert (dict(old.edges), dict(old.rules), dict(old.snapshots)) == (edges, rules, snapshots)


async def test_a_slow_subscriber_is_told_to_look_again_and_nobody_waits_for_it(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine, engine.subscribe(limit=3) as slow, engine.subscribe() as quick:
        for number in range(1, 11):
            await engine.ingest(instance("cart-0"), "boot", number, 0, [flow(FRONT, CART)])
        change = await anext(slow)
        assert change.resync
        assert change.generation == engine.view.generation
        assert [(await anext(quick)).resync for _ in range(10)] == [False] * 10
        await engine.ingest(instance("cart-0"), "boot", 11, 0, [flow(FRONT, CART)])
        assert not (await anext(slow)).resync  # it has caught up


async def test_a_subscriber_that_left_is_forgotten(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        async with engine.subscribe():
            assert len(engine._worker._subscriptions) == 1
        assert len(engine._worker._subscriptions) == 0
        async with engine.watch_snapshot(CART):
            assert set(engine._worker._watches) == {CART}
        assert engine._worker._watches == {}


async def test_a_snapshot_watch_gives_the_present_one_and_then_only_the_newest(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine, engine.watch_snapshot(CART) as watch:
        first = await anext(watch)
        assert first == engine.view.snapshots[CART]
        await engine.set_mode(FRONT, None, Mode.AUDIT, None, "ann", "not for cart")
        for mode in (Mode.AUDIT, Mode.ENFORCE, Mode.QUARANTINE):
            await engine.set_mode(CART, None, mode, None, "ann", "x")
        newest = await anext(watch)
        assert newest.inbound_mode is Mode.QUARANTINE
        assert newest.version == first.version + 3
        waiting = asyncio.ensure_future(anext(watch))
        await engine.set_mode(FRONT, None, Mode.LEARN, None, "ann", "not for cart")
        assert not waiting.done()
        await engine.set_mode(CART, None, Mode.LEARN, None, "ann", "x")
        assert (await waiting).inbound_mode is Mode.LEARN


async def test_a_watch_of_an_unknown_workload_waits_for_it(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine, engine.watch_snapshot(WorkloadRef("shop", "later")) as watch:
        waiting = asyncio.ensure_future(anext(watch))
        await engine.set_mode(CART, None, Mode.AUDIT, None, "ann", "x")
        assert not waiting.done()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting


# --- sidecars


async def connect(engine: Engine, name: str, boot: str = "boot") -> None:
    await engine.sidecar_connected(instance(name), boot, 0, "hedgerow 0.1\x1b[31m")


async def test_what_a_sidecar_says_of_itself_is_shown_and_not_stored(tmp_path: Path, clock: Clock) -> None:
    cart = instance("cart-0")
    async with running(tmp_path, clock) as engine:
        generation = engine.view.generation
        await connect(engine, "cart-0")
        state = engine.view.sidecars["shop/cart-0"]
        assert (state.connected, state.held_version, state.software) == (True, 0, "hedgerow 0.1 [31m")
        await engine.sidecar_pushed(cart, "boot", 3)
        await engine.sidecar_nacked(cart, "boot", 3, "rule 7:\nbad")
        assert engine.view.sidecars["shop/cart-0"].nack == "version 3: rule 7: bad"
        await engine.sidecar_acked(cart, "boot", 4)
        state = engine.view.sidecars["shop/cart-0"]
        assert (state.pushed_version, state.held_version, state.nack) == (3, 4, "")
        await engine.sidecar_disconnected(cart, "boot")
        assert not engine.view.sidecars["shop/cart-0"].connected
        assert engine.view.generation == generation
    async with running(tmp_path, clock) as engine:
        assert engine.view.sidecars == {}


async def test_the_end_of_an_old_stream_does_not_disconnect_the_new_one(tmp_path: Path, clock: Clock) -> None:
    cart = instance("cart-0")
    async with running(tmp_path, clock) as engine:
        await connect(engine, "cart-0", "old")
        await connect(engine, "cart-0", "new")
        await engine.sidecar_acked(cart, "old", 99)
        await engine.sidecar_disconnected(cart, "old")
        state = engine.view.sidecars["shop/cart-0"]
        assert (state.connected, state.held_version, state.boot_id) == (True, 0, "new")


async def test_a_push_is_waited_for_until_every_connected_sidecar_holds_it(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        await connect(engine, "cart-0")
        await connect(engine, "cart-1")
        await connect(engine, "redis-0")
        version = engine.view.snapshots[CART].version
        waiting = asyncio.ensure_future(engine.wait_pushed([CART, WorkloadRef.external("192.0.2.1")], 20))
        await engine.sidecar_acked(instance("cart-0"), "boot", version)
        await engine.tick()
        assert not waiting.done()
        await engine.sidecar_acked(instance("cart-1"), "boot", version)
        assert await waiting


async def test_nobody_connected_has_nothing_to_wait_for(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        assert await engine.wait_pushed([CART, FRONT], 20)


async def test_a_refused_push_is_told_at_once_and_a_silent_one_after_the_timeout(tmp_path: Path, clock: Clock) -> None:
    cart = instance("cart-0")
    async with running(tmp_path, clock) as engine:
        await connect(engine, "cart-0")
        assert not await engine.wait_pushed([CART], 0.01)
        waiting = asyncio.ensure_future(engine.wait_pushed([CART], 60))
        await engine.sidecar_pushed(cart, "boot", engine.view.snapshots[CART].version)
        await engine.sidecar_nacked(cart, "boot", engine.view.snapshots[CART].version, "no")
        assert not await waiting


async def test_a_sidecar_that_goes_is_not_waited_for(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        await connect(engine, "cart-0")
        waiting = asyncio.ensure_future(engine.wait_pushed([CART], 60))
        await engine.sidecar_disconnected(instance("cart-0"), "boot")
        assert await waiting


async def test_a_version_can_be_named(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        await connect(engine, "cart-0")
        await engine.sidecar_acked(instance("cart-0"), "boot", 1)
        assert await engine.wait_pushed([CART], 20, {CART: 1})
        assert not await engine.wait_pushed([CART], 0.01, {CART: 2})


# --- the end


async def test_the_end_ends_everything_that_waits(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        await connect(engine, "redis-0")
        changes, watch = engine.subscribe(), engine.watch_snapshot(WorkloadRef("shop", "later"))
        iterating = asyncio.ensure_future(anext(watch, None))
        pushed = asyncio.ensure_future(engine.wait_pushed([REDIS], 60))
        await engine.tick()
        await engine.stop()
        assert [change.sidecars async for change in changes] == []
        assert await iterating is None
        with pytest.raises(NotReady):
            await pushed
        with pytest.raises(NotReady):
            await engine.tick()
        assert [change async for change in engine.subscribe()] == []
        assert engine.view.ready  # what was last known can still be read
