"""A denial that holds goes on when it can not be judged any more: nobody has decided that it ends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from controller.engine import Engine
from controller.inventory import Inventory, read_inventory
from graph.model import Verdict, WorkloadRef
from tests.controller.mesh import (
    CART,
    FRONT,
    INVENTORY,
    NOW,
    REDIS,
    SETTINGS,
    TRUST_DOMAIN,
    Clock,
    inventory,
    running,
)
from tests.controller.test_engine_declared import override, source

KEY = "AccessOverride/shop/one"
FRONT_LINE = "name: front, serviceAccount: front,"


def changed(old: str, new: str) -> Inventory:
    assert old in INVENTORY
    return read_inventory(INVENTORY.replace(old, new).encode(), TRUST_DOMAIN)


def without_front() -> Inventory:
    """As when a Deployment was deleted whose pods still run."""
    lines = [line for line in INVENTORY.splitlines() if "front" not in line]
    return read_inventory("\n".join(lines).encode(), TRUST_DOMAIN)


def denials(engine: Engine, ref: WorkloadRef) -> dict[str, tuple[str, ...]]:
    """The operations of each denial in a workload's policy, by the rule's id."""
    rules = engine.view.snapshots[ref].rules
    return {rule.id: rule.operations for rule in rules if rule.effect is Verdict.DENY}


async def test_an_end_that_leaves_is_denied_all_the_same(tmp_path: Path) -> None:
    async with running(tmp_path, Clock()) as engine:
        await engine.declare([override(effect=Verdict.DENY)])
        (rule,) = [each for each in denials(engine, CART) if "@" not in each]
        await engine.follow_inventory(without_front(), "test")
        await engine.tick()
        assert rule in denials(engine, CART)
        judgement = engine.view.judgements[KEY]
        assert judgement.accepted
        assert "goes on to deny" in judgement.note
        assert "there is no workload shop/front" in judgement.note
        await engine.follow_inventory(inventory(), "test")
        assert rule in denials(engine, CART)
        assert engine.view.judgements[KEY].note == ""


async def test_what_was_allowed_ends_with_its_end(tmp_path: Path) -> None:
    async with running(tmp_path, Clock()) as engine:
        await engine.declare([override()])
        assert engine.view.judgements[KEY].accepted
        await engine.follow_inventory(without_front(), "test")
        assert not engine.view.judgements[KEY].accepted
        assert not [each for each in engine.view.rules if each.startswith("override/")]


async def test_its_place_is_nobody_else_s_meanwhile(tmp_path: Path) -> None:
    async with running(tmp_path, Clock(), replace(SETTINGS, max_overrides=1)) as engine:
        waiting = override("two", source=REDIS)
        await engine.declare([override(effect=Verdict.DENY, at=source("one", age=100.0)), waiting])
        for known in (without_front(), inventory()):
            await engine.follow_inventory(known, "test")
            assert engine.view.judgements[KEY].accepted
            assert engine.view.judgements["AccessOverride/shop/two"].code == "too-many"


async def test_operations_that_nobody_reads_any_more_are_denied_with_all_others(tmp_path: Path) -> None:
    async with running(tmp_path, Clock()) as engine:
        await engine.declare([override(effect=Verdict.DENY, operations=("DELETE /cart",))])
        assert ("DELETE /cart",) in denials(engine, FRONT).values()
        await engine.follow_inventory(changed("name: cart, ports", "name: cart, meshed: false, ports"), "test")
        assert list(denials(engine, FRONT).values()) == [()]
        assert "no sidecar that could judge operations" in engine.view.judgements[KEY].note


async def test_operations_of_a_host_that_is_not_inspected_any_more_are_denied_with_all_others(tmp_path: Path) -> None:
    inspecting = changed(FRONT_LINE, f'{FRONT_LINE} inspects: ["api.example.com:443"],')
    async with running(tmp_path, Clock()) as engine:
        await engine.follow_inventory(inspecting, "test")
        host = WorkloadRef.external_host("api.example.com")
        await engine.declare([override(effect=Verdict.DENY, destination=host, port=443, operations=("POST /admin",))])
        assert list(denials(engine, FRONT).values()) == [("POST /admin",)]
        await engine.follow_inventory(inventory(), "test")
        assert list(denials(engine, FRONT).values()) == [()]


async def test_a_service_of_a_denied_host_s_name_opens_nothing(tmp_path: Path) -> None:
    evil = "  - {namespace: data, name: evil, address: 10.1.0.9, workload: data/redis, ports: [{port: 80}]}\n"
    async with running(tmp_path, Clock()) as engine:
        host = WorkloadRef.external_host("evil.data")
        await engine.declare([override(effect=Verdict.DENY, destination=host, port=443)])
        before = denials(engine, FRONT)
        assert before
        text = INVENTORY.rstrip() + "\n" + evil
        await engine.follow_inventory(read_inventory(text.encode(), TRUST_DOMAIN), "test")
        await engine.tick()
        assert denials(engine, FRONT) == before


async def test_after_a_restart_it_holds_before_the_inventory_is_there(tmp_path: Path) -> None:
    declared = [override(effect=Verdict.DENY)]
    async with running(tmp_path, Clock(), with_inventory=False) as engine:
        await engine.follow_inventory(without_front(), "test")  # what is stored
        await engine.follow_inventory(inventory(), "test")  # not yet, as it is so soon after
        await engine.declare(declared)
        (rule,) = [each for each in denials(engine, CART) if "@" not in each]
    async with running(tmp_path, Clock(), with_inventory=False) as engine:
        assert FRONT not in engine.view.inventory.workloads, "the inventory is older than what was declared"
        await engine.declare(declared)
        assert rule in denials(engine, CART)


async def test_it_ends_when_it_is_deleted_or_over_whoever_is_there(tmp_path: Path) -> None:
    clock = Clock()
    async with running(tmp_path, clock) as engine:
        declared = override(effect=Verdict.DENY)
        other = override("two", effect=Verdict.DENY, port=9090, ends=NOW + 100)
        await engine.declare([declared, other])
        await engine.follow_inventory(without_front(), "test")
        assert len(denials(engine, CART)) == 2
        put_off = replace(other, expires_at=NOW + 50, source=replace(other.source, generation=2))
        await engine.declare([put_off])
        assert list(denials(engine, CART)) == [put_off.id]
        clock.now = NOW + 60
        await engine.tick()
        assert denials(engine, CART) == {}
        assert engine.view.judgements["AccessOverride/shop/two"].ended
