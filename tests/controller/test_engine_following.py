"""An inventory that follows a cluster: replicas come and go all the time, and cost what they change."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from controller.inventory import read_inventory
from graph.model import Verdict, WorkloadRef
from tests.controller.decisions import assert_as_if_compiled_whole, override
from tests.controller.mesh import (
    CART,
    FRONT,
    INVENTORY,
    LEGACY,
    REDIS,
    SETTINGS,
    TRUST_DOMAIN,
    Clock,
    actions,
    inventory,
    learned,
    running,
)

ACTOR = "kubernetes"


def changed(*replacements):
    text = INVENTORY
    for before, after in replacements:
        assert before in text
        text = text.replace(before, after)
    return read_inventory(text.encode(), TRUST_DOMAIN)


MOVED = ("10.0.0.3", "10.0.0.33")


async def test_another_replica_changes_the_view_and_compiles_nothing(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        await learned(engine, clock)
        before, told = engine.view, await actions(engine)
        async with engine.subscribe() as changes:
            await engine.follow_inventory(changed(MOVED), ACTOR)
            change = await anext(changes)
        assert change.inventory
        assert engine.view.inventory.instance_at("10.0.0.33") is not None
        assert all(engine.view.snapshots[ref] is snapshot for ref, snapshot in before.snapshots.items())
        assert await actions(engine) == told, "the audit log does not tell of every replica"
        assert_as_if_compiled_whole(engine.view, clock.now)


async def test_a_workload_that_changes_is_told_and_compiled(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        await engine.follow_inventory(changed(("name: cart, ports", "name: cart, meshed: false, ports")), ACTOR)
        assert CART not in engine.view.snapshots
        assert (await actions(engine))[-1] == "inventory.replace"
        assert_as_if_compiled_whole(engine.view, clock.now)


async def test_it_is_on_disk_at_once_at_first_and_then_now_and_then(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock, with_inventory=False) as engine:
        await engine.follow_inventory(inventory(), ACTOR)
        await engine.follow_inventory(changed(MOVED), ACTOR)
    async with running(tmp_path, clock, with_inventory=False) as engine:
        assert engine.view.inventory == inventory()
        await engine.follow_inventory(changed(MOVED), ACTOR)
        await engine.follow_inventory(changed(MOVED, ("10.0.0.2", "10.0.0.22")), ACTOR)
        clock.now += SETTINGS.inventory_pause
        await engine.tick()
    async with running(tmp_path, clock, with_inventory=False) as engine:
        assert engine.view.inventory == changed(MOVED, ("10.0.0.2", "10.0.0.22"))


async def test_what_is_what_it_was_changes_nothing(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        before = engine.view
        await engine.follow_inventory(changed(), ACTOR)
        assert engine.view is before


@pytest.mark.parametrize("seed", range(12))
async def test_policies_are_what_they_would_be_if_everything_was_compiled(
    tmp_path: Path, clock: Clock, seed: int
) -> None:
    """Addresses wander between workloads with sidecars and without, and to those that rules name."""
    chosen = random.Random(seed)
    addresses = [f"10.0.0.{number}" for number in range(1, 6)]
    spare = [*addresses, "192.0.2.7", "192.0.2.8", "10.0.0.77"]
    async with running(tmp_path, clock) as engine:
        await learned(engine, clock)
        ends = [FRONT, CART, REDIS, LEGACY, WorkloadRef("-", "192.0.2.7"), WorkloadRef("-", "10.0.0.77")]
        for _ in range(6):
            source, destination = chosen.sample(ends, 2)
            if not {source, destination} & {FRONT, CART, REDIS}:
                continue  # nobody could hold it
            effect = chosen.choice([Verdict.ALLOW, Verdict.DENY])
            port = chosen.choice([8080, 443])
            await override(engine, source=source, destination=destination, port=port, effect=effect, expires_in=None)
        for _ in range(6):
            given = dict(zip(addresses, chosen.sample(spare, len(addresses)), strict=True))
            text = INVENTORY
            for before, after in given.items():
                text = text.replace(f"address: {before}}}", f"address: ={after}}}")
            await engine.follow_inventory(read_inventory(text.replace("=", "").encode(), TRUST_DOMAIN), ACTOR)
            await engine.tick()
            assert_as_if_compiled_whole(engine.view, clock.now)
