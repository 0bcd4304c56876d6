"""The audit log of a cluster on which one namespace changes its resources in a loop."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from controller.audit import MAX_DETAIL
from controller.engine import Engine
from controller.engine.declared import Acting
from controller.engine.gathering import MAX_LAST, Gathered, Shares
from controller.view import AuditEntry
from graph.model import Mode
from tests.controller.mesh import CART, REDIS, SETTINGS, Clock, inventory, running
from tests.controller.test_engine_declared import mode, override, source

SHARED = replace(SETTINGS, audit_share=10, audit_pause=100.0)


async def entries(engine: Engine) -> list[AuditEntry]:
    page = await engine.audit(10_000)
    assert page.intact, page.problem
    return list(reversed(page.entries))


def gathered(found: list[AuditEntry]) -> list[dict[str, Any]]:
    return [json.loads(each.detail) for each in found if each.action == "changes.gathered"]


async def edit(engine: Engine, clock: Clock, times: int) -> None:
    """What a tenant of ``shop`` does in a loop."""
    for n in range(times):
        clock.now += 0.1
        await engine.declare([override("same", at=source("same", uid=f"{n:08}-uid"), port=1000 + n)])


async def test_who_edits_in_a_loop_has_a_share_and_the_rest_is_told_together(tmp_path: Path) -> None:
    clock = Clock()
    async with running(tmp_path, clock, SHARED) as engine:
        await engine.declare([])
        began, first = clock.now, len(await entries(engine))
        await edit(engine, clock, 200)
        found = await entries(engine)
        assert len(found) == first + SHARED.audit_share
        assert not gathered(found)
        # what others do is told all the same, and who acts through us also there
        other = override("other", at=source("other", "data"), destination=REDIS)
        await engine.declare([other])
        mine = {"AccessOverride/shop/mine": Acting("anna", "release 7")}
        await engine.declare([other, override("mine")], mine)
        told = (await entries(engine))[len(found) :]
        assert [(each.actor, each.action) for each in told] == [
            ("kubernetes", "override.create"),
            ("anna", "override.create"),
        ]
        clock.now += SHARED.audit_pause
        await engine.tick()
        (whole,) = gathered(await entries(engine))
        # 200 made, 200 ended (the last by leaving), of which 10 have entries
        assert sum(whole["actions"].values()) == 400 - SHARED.audit_share
        assert began < whole["since"] < whole["until"] < clock.now
        assert len(whole["last"]) == MAX_LAST
        newest = whole["last"][-1]
        assert (newest["action"], newest["subject"]) == ("override.revoke", "override/shop.same.00000199")
        assert len(await entries(engine)) == len(found) + 3
        clock.now += SHARED.audit_pause
        await engine.tick()
        assert len(await entries(engine)) == len(found) + 3, "nothing more to tell"


async def test_a_loop_that_never_ends_grows_the_log_by_two_entries_a_pause(tmp_path: Path) -> None:
    clock = Clock()
    async with running(tmp_path, clock, SHARED) as engine:
        await engine.declare([])
        for n in range(400):
            clock.now += SHARED.audit_pause / 20
            said = {"inbound": Mode.ENFORCE if n % 2 else Mode.AUDIT}
            await engine.declare([mode("same", reason=f"r{n}", **said)])
            await engine.tick()
        found = await entries(engine)
        assert len(found) < SHARED.audit_share + 2 * 400 / 20 + 10
        modes = [each for each in found if each.action == "mode.set"]
        counted = sum(each["actions"].get("mode.set", 0) for each in gathered(found))
        held = 400 - len(modes) - counted
        assert 0 <= held <= 20, "each is counted, or will be"


async def test_what_was_gathered_is_told_though_the_controller_ends_meanwhile(tmp_path: Path) -> None:
    clock = Clock()
    async with running(tmp_path, clock, SHARED) as engine:
        await engine.declare([])
        await edit(engine, clock, 20)
        before = await entries(engine)
    async with running(tmp_path, clock, SHARED, with_inventory=False) as engine:
        assert len(await entries(engine)) == len(before)
        clock.now += 0.1
        await engine.declare([])  # beginning anew is no new share
        assert len(await entries(engine)) == len(before)
        clock.now += SHARED.audit_pause
        await engine.tick()
        (whole,) = gathered(await entries(engine))
        assert sum(whole["actions"].values()) == 40 - SHARED.audit_share
    async with running(tmp_path, clock, SHARED, with_inventory=False) as engine:
        clock.now += 2 * SHARED.audit_pause
        await engine.tick()
        assert len(gathered(await entries(engine))) == 1, "told once"


async def test_workloads_that_come_and_go_in_a_loop_are_told_together_and_those_of_others_by_name(
    tmp_path: Path,
) -> None:
    clock = Clock()
    async with running(tmp_path, clock, SHARED) as engine:
        whole_one = inventory()
        without = {ref: each for ref, each in whole_one.workloads.items() if ref != CART}
        instances = {key: each for key, each in whole_one.instances.items() if each.workload != CART}
        fewer = replace(whole_one, workloads=without, instances=instances, services={})
        bare = replace(whole_one, services={})
        for n in range(50):
            clock.now += 0.1
            await engine.follow_inventory(bare if n % 2 else fewer, "kubernetes")
        found = [each for each in await entries(engine) if each.action == "inventory.replace"]
        assert len(found) <= SHARED.audit_share + 2
        last = without | {REDIS: replace(without[REDIS], labels=(("app", "other"),))}
        await engine.follow_inventory(replace(fewer, workloads=last), "kubernetes")
        newest = (await entries(engine))[-1]
        assert newest.action == "inventory.replace"
        assert json.loads(newest.detail)["changed"] == [str(REDIS)]
        assert json.loads(newest.detail)["removed"] == []
        clock.now += SHARED.audit_pause
        await engine.tick()
        (whole,) = gathered(await entries(engine))
        assert set(whole["actions"]) == {"workload.add", "workload.remove"}
        assert whole["last"][-1]["subject"] == str(CART)


def test_a_gathered_entry_is_never_too_long_to_be_kept_whole() -> None:
    held = Gathered(0.0, 0.0)
    for n in range(50):
        held = held.also(
            float(n), "k" * 64, "override.change", f"override/{'n' * 63}.{'x' * 253}.{n:08}", {"a": '"\\' * 9999}
        )
    assert len(held.last) == MAX_LAST
    assert len(json.dumps(held.to_dict())) < MAX_DETAIL
    assert Gathered.from_dict(json.loads(json.dumps(held.to_dict()))) == held


def test_a_share_comes_back_with_time_and_a_clock_that_goes_back_gives_none() -> None:
    shares = Shares(2, 10.0)
    assert [shares.take("a", 100.0) for _ in range(3)] == [True, True, False]
    assert shares.take("b", 100.0)
    assert not shares.take("a", 50.0)
    assert shares.take("a", 110.0)
    assert not shares.take("a", 110.0)
    shares.forget(1000.0)
    assert [shares.take("a", 1000.0) for _ in range(3)] == [True, True, False]
