"""When the disk, an operation or the process fails, nothing half-done is shown, stored or acknowledged."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from controller.audit import verify
from controller.compiler import ProofFailed
from controller.engine import Engine
from controller.engine.policy import PolicyIndex
from controller.errors import ConfigError, NotReady
from controller.overrides import OverrideRequest
from controller.store import SqliteStore
from controller.view import View
from graph.model import Mode, Protocol, Snapshot, Verdict, WorkloadRef
from tests.controller.disks import Faulty
from tests.controller.mesh import (
    CART,
    FRONT,
    KEY,
    REDIS,
    SETTINGS,
    TRUST_DOMAIN,
    Clock,
    flow,
    instance,
    inventory,
    learned,
    running,
    without,
)


def shown(view: View) -> dict[str, Any]:
    """All that a view says of stored things, to compare two of them."""
    return {
        "generation": view.generation,
        "inventory": view.inventory,
        "modes": dict(view.modes),
        "rules": dict(view.rules),
        "edges": dict(view.edges),
        "edges_of": dict(view.edges_of),
        "snapshots": dict(view.snapshots),
        "overrides": dict(view.overrides),
        "nodes": dict(view.nodes),
        "traffic": dict(view.traffic),
        "audit_head": view.audit_head,
    }


async def test_a_restart_shows_everything_as_it_was(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        await learned(engine, clock)
        await engine.set_mode("shop", None, Mode.ENFORCE, None, "ann", "closing")
        await engine.create_override(OverrideRequest(Verdict.DENY, CART, REDIS, None, Protocol.TCP, "ann", "x", 600.0))
        before = shown(engine.view)
    async with running(tmp_path, clock, with_inventory=False) as engine:
        assert shown(engine.view) == before
        await engine.set_mode("shop", None, Mode.AUDIT, None, "ann", "opening")
        assert engine.view.snapshots[CART].version == before["snapshots"][CART].version + 1
        assert (await engine.audit()).intact


async def test_what_could_not_be_stored_was_not_done(tmp_path: Path, clock: Clock) -> None:
    store = Faulty(tmp_path / "controller.db")
    async with running(tmp_path, clock, store=store) as engine:
        await learned(engine, clock)
        await engine.sidecar_connected(instance("cart-0"), "boot", 1, "x")
        before = shown(engine.view)
        store.full = True
        failed = await asyncio.gather(
            engine.ingest(instance("cart-0"), "boot-a", 2, 0, [flow(FRONT, CART)]),
            engine.set_mode(CART, None, Mode.ENFORCE, None, "ann", "x"),
            engine.create_join_token(CART, "cart-0", 60.0, "ann"),
            return_exceptions=True,
        )
        assert [type(each) for each in failed] == [NotReady] * 3
        assert all("disk is full" in str(each) for each in failed)
        assert shown(engine.view) == before
        store.full = False
        assert await engine.ingest(instance("cart-0"), "boot-a", 2, 0, [flow(FRONT, CART)]) == 2
        assert engine.view.traffic[KEY].connections == 10  # once
        assert engine.view.sidecars["shop/cart-0"].connected  # what was not stored was not lost
        assert (await engine.audit()).intact


async def test_subscribers_look_again_after_a_failure(tmp_path: Path, clock: Clock) -> None:
    store = Faulty(tmp_path / "controller.db")
    async with running(tmp_path, clock, store=store) as engine, engine.subscribe() as changes:
        store.full = True
        with pytest.raises(NotReady):
            await engine.set_mode(CART, None, Mode.ENFORCE, None, "ann", "x")
        store.full = False
        await engine.set_mode(CART, None, Mode.ENFORCE, None, "ann", "x")
        assert (await anext(changes)).resync
        assert engine.view.nodes[CART].inbound_mode == "enforce"


async def test_an_inventory_that_was_in_force_before_it_was_stored_stays_in_force(tmp_path: Path, clock: Clock) -> None:
    """Who follows a cluster gave it once. The one on disk would serve and renew those who have gone."""
    store = Faulty(tmp_path / "controller.db")
    async with running(tmp_path, clock, store=store, with_inventory=False) as engine:
        await engine.follow_inventory(inventory(), "kubernetes")
        await engine.follow_inventory(without("cart-1"), "kubernetes")
        await engine.sidecar_connected(instance("cart-0"), "boot", 1, "x")
        before = shown(engine.view)
        async with engine.subscribe() as changes:
            store.full = True
            with pytest.raises(NotReady):
                await engine.record("ann", "look", "x", {})
            store.full = False
            await engine.tick()
            assert (await anext(changes)).resync
        assert shown(engine.view) == before | {"generation": engine.view.generation}
        assert "shop/cart-1" not in engine.view.inventory.instances
        assert engine.view.inventory.revision == before["inventory"].revision, "answers to sidecars never go back"
        assert engine.view.sidecars["shop/cart-0"].connected
    async with running(tmp_path, clock, with_inventory=False) as engine:
        assert engine.view.inventory == without("cart-1"), "and it is on disk"


async def test_an_inventory_that_was_in_force_outlives_a_fault_too(tmp_path: Path, clock: Clock) -> None:
    def breaks(state: Any, now: float) -> None:
        state.log(now, "ann", "half", "done")
        raise RuntimeError("a fault of ours")

    async with running(tmp_path, clock, with_inventory=False) as engine:
        await engine.follow_inventory(without("front-0"), "kubernetes")
        await engine.follow_inventory(inventory(), "kubernetes")
        with pytest.raises(NotReady):
            await engine._worker.ask(breaks)
        await learned(engine, clock)
        assert engine.view.inventory == inventory()
        assert KEY in engine.view.edges, "front-0 reports, and is known"


async def test_a_store_that_can_not_even_be_read_is_tried_again(tmp_path: Path, clock: Clock) -> None:
    store = Faulty(tmp_path / "controller.db")
    async with running(tmp_path, clock, store=store) as engine:
        await learned(engine, clock)
        store.full = store.unreadable = True
        for _ in range(2):
            with pytest.raises(NotReady):
                await engine.set_mode(CART, None, Mode.ENFORCE, None, "ann", "x")
        assert engine.view.snapshots[CART].inbound_mode is Mode.LEARN  # the last good view stays
        store.full = store.unreadable = False
        await engine.set_mode(CART, None, Mode.ENFORCE, None, "ann", "x")
        assert engine.view.snapshots[CART].inbound_mode is Mode.ENFORCE


async def test_an_operation_that_breaks_half_way_spoils_nothing_and_nobody(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        await learned(engine, clock)
        before = engine.view.generation

        def breaks(state: Any, now: float) -> None:
            state.log(now, "ann", "half", "done")
            state.put_mode(REDIS, state.mode_of(FRONT))
            raise RuntimeError("a fault of ours")

        worker = engine._worker
        good, bad, also_good = await asyncio.gather(
            engine.set_mode(CART, None, Mode.AUDIT, None, "ann", "x"),
            worker.ask(breaks),
            engine.set_mode(FRONT, None, Mode.AUDIT, None, "ann", "x"),
            return_exceptions=True,
        )
        assert isinstance(bad, NotReady)
        assert "RuntimeError" in str(bad)
        assert (good, also_good) == ((CART,), (FRONT,))
        assert {ref for ref, mode in engine.view.modes.items() if mode.inbound is Mode.AUDIT} == {CART, FRONT}
        assert engine.view.generation == before + 2
        page = await engine.audit()
        assert page.intact
        assert "half" not in {entry.action for entry in page.entries}


async def test_a_fault_in_the_first_moment_is_not_taken_for_the_end(tmp_path: Path, clock: Clock) -> None:
    """Whoever waits for the start must not hear that there is no engine, nor wait for one that serves to end."""

    def breaks(state: Any, now: float) -> None:
        raise RuntimeError("a fault of ours")

    engine = Engine(SqliteStore(tmp_path / "controller.db"), TRUST_DOMAIN, SETTINGS, clock)
    asked = asyncio.create_task(engine._worker.ask(breaks))
    await asyncio.sleep(0)  # it waits for the engine's first turn
    task = asyncio.create_task(engine.run())
    await asyncio.wait_for(engine.started(), 60)
    with pytest.raises(NotReady, match="RuntimeError"):
        await asked
    await engine.tick()
    await engine.stop()
    await task


async def test_a_sender_that_gives_up_before_its_turn_leaves_nothing(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        asked = asyncio.ensure_future(engine.set_mode(CART, None, Mode.AUDIT, None, "ann", "x"))
        await asyncio.sleep(0)  # it has posted its message, and the engine has not run
        asked.cancel()
        await engine.tick()
        assert engine.view.modes[CART].inbound is Mode.LEARN


async def test_a_database_of_another_trust_domain_is_refused(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock):
        pass
    engine = Engine(SqliteStore(tmp_path / "controller.db"), "other.test", SETTINGS, clock)
    with pytest.raises(ConfigError, match=r"trust_domain: .*'hedgerow\.test'"):
        await engine.run()
    with pytest.raises(NotReady):
        await engine.started()
    SqliteStore(tmp_path / "controller.db").close()  # and it was let go


async def test_a_cancelled_engine_answers_everybody_and_closes_its_store(tmp_path: Path, clock: Clock) -> None:
    engine = Engine(SqliteStore(tmp_path / "controller.db"), TRUST_DOMAIN, SETTINGS, clock)
    task = asyncio.create_task(engine.run())
    await engine.started()
    asked = [asyncio.ensure_future(engine.tick()) for _ in range(300)]
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    found = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 20)
    assert all(each is None or isinstance(each, NotReady) for each in found)
    SqliteStore(tmp_path / "controller.db").close()


# --- killed

#: Reports flows as fast as they are acknowledged, with changes by people between, and says what was acknowledged.
WRITER = """
import asyncio, sys
from pathlib import Path
from tests.controller.mesh import CART, FRONT, Clock, flow, instance, running
from controller.overrides import OverrideRequest
from graph.model import Mode, Protocol, Verdict

async def report(engine, name, say):
    sequence = 0
    while True:
        sequence += 1
        say(f"ack {name} {await engine.ingest(instance(name), 'boot', sequence, 0, [flow(FRONT, CART)])}")

async def change(engine, clock, say):
    number = 0
    while True:
        number += 1
        clock.now += 1
        made = await engine.create_override(
            OverrideRequest(Verdict.ALLOW, FRONT, CART, 8080, Protocol.TCP, "ann", f"number {number}", 3.0))
        say(f"override {made.id}")
        await engine.set_mode(CART, None, (Mode.LEARN, Mode.AUDIT)[number % 2], None, "ann", str(number))
        say(f"version {engine.view.snapshots[CART].version}")

async def main():
    clock = Clock()
    def say(text):
        sys.stdout.write(text + "\\n")
        sys.stdout.flush()
    async with running(Path(sys.argv[1]), clock) as engine:
        await asyncio.gather(report(engine, "cart-0", say), report(engine, "cart-1", say), change(engine, clock, say))

asyncio.run(main())
"""


def read_until_killed(path: Path, lines: int) -> list[list[str]]:
    """What a writing controller said until it was killed, ``lines`` lines after it began."""
    root = str(Path(__file__).parents[2])
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert child.stdout is not None
    said = []
    try:
        for _ in range(lines):
            line = child.stdout.readline()
            assert line, "the controller ended by itself"
            said.append(line.split())
    finally:
        child.kill()  # SIGKILL, while its next transaction is being written
    rest, _ = child.communicate()
    whole = rest.splitlines()
    return said + [line.split() for line in (whole if rest.endswith("\n") else whole[:-1])]


@pytest.mark.parametrize("lines", [random.Random(seed).randrange(40, 200) for seed in range(3)])
async def test_what_was_acknowledged_survives_kill_9(tmp_path: Path, lines: int) -> None:
    said = await asyncio.to_thread(read_until_killed, tmp_path, lines)
    acknowledged = {
        name: max(int(line[2]) for line in said if line[:2] == ["ack", name]) for name in ("cart-0", "cart-1")
    }
    overrides = [line[1] for line in said if line[0] == "override"]
    version = max(int(line[1]) for line in said if line[0] == "version")
    with SqliteStore(tmp_path / "controller.db") as store:
        stored = store.load()
        entries = tuple(reversed(store.audit_page(1_000_000)))
    assert verify(entries, stored.audit_head).intact
    assert {entry.subject for entry in entries if entry.action == "override.create"} >= set(overrides)
    # a transaction is there as a whole: what was counted is exactly what the positions say
    positions = {name: stored.positions[f"shop/{name}", "boot"].sequence for name in acknowledged}
    assert all(positions[name] >= acknowledged[name] for name in acknowledged)
    assert [totals.counts.connections for totals in stored.traffic] == [5 * sum(positions.values())]
    assert sum(window.connections for window in stored.windows.values()) == 5 * sum(positions.values())
    clock = Clock(entries[-1].at)
    async with running(tmp_path, clock, with_inventory=False) as engine:
        view = engine.view
        assert view.generation >= stored.generation
        assert view.snapshots[CART].version >= version
        assert view.edges[KEY].connections == 5 * sum(positions.values())
        for name, position in positions.items():  # a sidecar that sends the last batch again is not counted again
            assert await engine.ingest(instance(name), "boot", position, 0, [flow(FRONT, CART)]) == position
        assert engine.view.traffic[KEY].connections == 5 * sum(positions.values())
        assert (await engine.audit()).intact


class Unprovable(PolicyIndex):
    """A compiler with a fault: it can not prove the policy of one workload."""

    def compile(self, wanted: WorkloadRef, *others: Any) -> Snapshot | None:
        if wanted == CART:
            raise ProofFailed("the compiled policy does not say what the rules say", remedy="report this")
        return super().compile(wanted, *others)


async def test_a_policy_that_can_not_be_proved_is_not_pushed_and_stops_nobody_else(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path, clock) as engine:
        before = engine.view.snapshots
        state = engine._worker._state
        assert state is not None
        state.index.__class__ = Unprovable
        await learned(engine, clock)  # makes a rule between front and cart
        assert engine.view.snapshots[CART] == before[CART]
        assert engine.view.snapshots[FRONT].version > before[FRONT].version
        failed = [entry for entry in (await engine.audit()).entries if entry.action == "policy.fail"]
        assert [entry.subject for entry in failed] == ["shop/cart"]
        assert "shop/cart was not compiled" in caplog.text
        with pytest.raises(ProofFailed):  # who asks for it is told, and it is not done
            await engine.set_mode(CART, None, Mode.ENFORCE, None, "ann", "x")
        assert engine.view.modes[CART].inbound is Mode.LEARN
