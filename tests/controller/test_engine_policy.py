"""Inventory, modes, approvals, overrides and join tokens: what they change, what they leave, and how they end."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controller.compiler import PolicyInput, compile_snapshots
from controller.engine import Engine
from controller.engine.policy import same_policy
from controller.errors import (
    Conflict,
    InvalidRequest,
    InventoryError,
    JoinTokenError,
    NotFound,
    UnknownWorkload,
)
from controller.inventory import Inventory, read_inventory
from controller.learner import EdgeState
from controller.overrides import OverrideRequest
from controller.view import Override, OverrideState, View, WorkloadMode
from graph.flow import EdgeKey
from graph.model import (
    Connection,
    Direction,
    InboundTls,
    Mode,
    Peer,
    Protocol,
    Selector,
    Transport,
    Verdict,
    WorkloadRef,
)
from graph.policy import admit, decide
from tests.controller.mesh import (
    CART,
    FRONT,
    INVENTORY,
    LEGACY,
    NOW,
    REDIS,
    SETTINGS,
    Clock,
    flow,
    instance,
    inventory,
    learned,
    running,
)

KEY = EdgeKey(FRONT, CART, 8080)
OUTSIDE = WorkloadRef.external("192.0.2.9")


@pytest.fixture
def clock() -> Clock:
    return Clock()


def versions(view: View) -> dict[WorkloadRef, int]:
    return {ref: snapshot.version for ref, snapshot in view.snapshots.items()}


def assert_as_if_compiled_whole(view: View, now: float) -> None:
    """What was compiled piece by piece is what a compilation of everything gives."""
    policy = PolicyInput(
        view.trust_domain,
        tuple(view.inventory.workloads.values()),
        tuple(view.inventory.instances.values()),
        modes=view.modes,
        rules=tuple(view.rules.values()),
        networks=view.inventory.networks,
    )
    whole = compile_snapshots(policy, now)
    assert set(whole) == set(view.snapshots)
    for ref, snapshot in whole.items():
        assert same_policy(snapshot, view.snapshots[ref]), ref


async def override(engine: Engine, **changes: Any) -> Override:
    asked: dict[str, Any] = {
        "effect": Verdict.ALLOW,
        "source": FRONT,
        "destination": REDIS,
        "port": 6379,
        "protocol": Protocol.TCP,
        "owner": "ann",
        "reason": "release 7",
        "expires_in": 60.0,
    }
    return await engine.create_override(OverrideRequest(**(asked | changes)))


# --- overrides


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
        assert versions(engine.view)[FRONT] == held + 1
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


# --- inventory


def without(name: str) -> Inventory:
    """The inventory without one instance."""
    lines = [line for line in INVENTORY.splitlines() if f"{{name: {name}," not in line]
    return read_inventory("\n".join(lines).encode(), inventory().trust_domain)


def reduced() -> Inventory:
    """The inventory without the workload cart and all that belongs to it."""
    text = INVENTORY[: INVENTORY.index("services:")]
    lines = [line for line in text.splitlines() if "cart" not in line]
    return read_inventory("\n".join(lines).encode(), inventory().trust_domain)


async def test_the_same_inventory_again_changes_nothing(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        before = engine.view
        assert await engine.set_inventory(inventory(), "test") == before.generation
        assert engine.view is before
    async with running(tmp_path, clock, with_inventory=False) as engine:
        assert engine.view.inventory == inventory()
        assert engine.view.inventory.revision == before.inventory.revision
        assert await engine.set_inventory(inventory(), "test") == before.generation


async def test_a_replica_that_goes_changes_the_directory_and_no_policy(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        await learned(engine, clock)
        before = engine.view
        async with engine.subscribe() as changes:
            await engine.set_inventory(without("cart-1"), "test")
            change = await anext(changes)
        assert change.inventory
        assert CART in change.nodes
        assert engine.view.nodes[CART].instances == 1
        assert engine.view.inventory.revision == before.inventory.revision + 1
        assert engine.view.inventory.resolve("10.1.0.1", 80).version == engine.view.inventory.revision
        assert versions(engine.view) == versions(before)


async def test_a_quarantine_is_in_the_peers_policies_too_and_ends_there(tmp_path: Path, clock: Clock) -> None:
    """The sidecar of a workload that was broken into does not hold itself to it."""
    async with running(tmp_path, clock) as engine:
        await learned(engine, clock)
        before = versions(engine.view)
        await engine.set_mode(FRONT, Direction.OUTBOUND, Mode.QUARANTINE, None, "ann", "it was broken into")
        assert f"learned/{KEY}" not in {rule.id for rule in engine.view.snapshots[CART].rules}
        assert f"learned/{KEY}" in engine.view.rules  # nothing is forgotten
        assert versions(engine.view)[REDIS] == before[REDIS]
        assert_as_if_compiled_whole(engine.view, clock.now)
        await engine.set_mode(FRONT, Direction.OUTBOUND, Mode.ENFORCE, None, "ann", "it is well again")
        assert f"learned/{KEY}" in {rule.id for rule in engine.view.snapshots[CART].rules}
        await engine.set_mode(CART, Direction.OUTBOUND, Mode.QUARANTINE, None, "ann", "the other way")
        assert f"learned/{KEY}" in {rule.id for rule in engine.view.snapshots[FRONT].rules}
        assert_as_if_compiled_whole(engine.view, clock.now)


async def test_a_workload_that_goes_takes_its_policy_and_comes_back_with_it(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        await learned(engine, clock)
        await engine.set_mode(CART, None, Mode.ENFORCE, None, "ann", "x")
        before = engine.view
        async with engine.subscribe() as changes:
            await engine.set_inventory(reduced(), "test")
            change = await anext(changes)
        assert change.removed_nodes == (CART,)
        assert change.removed_edges == (KEY,)
        assert CART not in engine.view.snapshots
        assert CART not in engine.view.modes
        assert engine.view.rules == {}
        assert KEY in engine.view.edges  # what was learned is kept
        assert versions(engine.view)[FRONT] == versions(before)[FRONT] + 1
        assert_as_if_compiled_whole(engine.view, clock.now)
        await engine.set_inventory(inventory(), "test")
        assert engine.view.modes[CART].inbound is Mode.ENFORCE
        assert list(engine.view.rules) == [f"learned/{KEY}"]
        assert versions(engine.view)[CART] >= versions(before)[CART]
        assert versions(engine.view)[FRONT] == versions(before)[FRONT] + 2
        assert_as_if_compiled_whole(engine.view, clock.now)


async def test_addresses_of_an_unmeshed_source_follow_its_instances(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        await override(engine, source=LEGACY, destination=CART, port=8080, expires_in=None)
        before = versions(engine.view)[CART]
        moved = INVENTORY.replace("10.0.0.5", "10.0.0.77")
        await engine.set_inventory(read_inventory(moved.encode(), inventory().trust_domain), "test")
        assert versions(engine.view)[CART] == before + 1
        assert any(rule.source.cidr == "10.0.0.77/32" for rule in engine.view.snapshots[CART].rules)
        assert_as_if_compiled_whole(engine.view, clock.now)


async def test_a_rule_about_an_address_follows_the_instance_that_takes_it(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        await override(engine, source=FRONT, destination=OUTSIDE, port=443, expires_in=None)
        moved = INVENTORY.replace("10.0.0.4", OUTSIDE.name)
        await engine.set_inventory(read_inventory(moved.encode(), inventory().trust_domain), "test")
        assert_as_if_compiled_whole(engine.view, clock.now)
        await engine.set_inventory(inventory(), "test")
        assert_as_if_compiled_whole(engine.view, clock.now)


async def test_a_new_dns_server_reaches_everybody(tmp_path: Path, clock: Clock) -> None:
    dns = (
        "  - {namespace: kube-system, name: coredns, labels: {k8s-app: kube-dns}, ports: [{port: 53, protocol: UDP}]}\n"
    )
    text = INVENTORY.replace("workloads:\n", "workloads:\n" + dns).replace(
        "  - {name: data}\n", "  - {name: data}\n  - {name: kube-system}\n"
    )
    async with running(tmp_path, clock) as engine:
        before = versions(engine.view)
        await engine.set_inventory(read_inventory(text.encode(), inventory().trust_domain), "test")
        after = versions(engine.view)
        assert all(after[ref] == before[ref] + 1 for ref in before)
        assert_as_if_compiled_whole(engine.view, clock.now)


async def test_an_inventory_of_another_trust_domain_is_refused(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        with pytest.raises(InventoryError, match="trust_domain"):
            await engine.set_inventory(read_inventory(INVENTORY.encode(), "other.test"), "test")


# --- join tokens


async def test_a_join_token_works_once_also_over_a_restart(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        text = await engine.create_join_token(CART, "cart-0", 600.0, "ann")
        assert text.encode() not in (tmp_path / "controller.db-wal").read_bytes()
        assert text.rpartition(".")[2].encode() not in (tmp_path / "controller.db-wal").read_bytes()
    async with running(tmp_path, clock) as engine:
        assert await engine.redeem_join_token(text) == instance("cart-0")
        with pytest.raises(JoinTokenError) as caught:
            await engine.redeem_join_token(text)
        assert caught.value.code == "join-token-used"
    async with running(tmp_path, clock) as engine:
        with pytest.raises(JoinTokenError, match="used before"):
            await engine.redeem_join_token(text)
        assert [e.action for e in (await engine.audit()).entries][:2] == ["join-token.redeem", "join-token.create"]


async def test_of_many_who_redeem_a_token_at_once_one_succeeds(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        text = await engine.create_join_token(CART, "shop/cart-0", 600.0, "ann")
        found = await asyncio.gather(*(engine.redeem_join_token(text) for _ in range(50)), return_exceptions=True)
        assert [each for each in found if not isinstance(each, JoinTokenError)] == [instance("cart-0")]


async def test_an_expired_and_an_orphaned_token_say_so(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        expired = await engine.create_join_token(CART, "cart-0", 10.0, "ann")
        orphan = await engine.create_join_token(CART, "cart-1", 600.0, "ann")
        clock.now += 10
        await engine.set_inventory(without("cart-1"), "test")
        for text, code in (
            (expired, "join-token-expired"),
            (orphan, "join-token-orphaned"),
            ("x", "join-token-unknown"),
        ):
            with pytest.raises(JoinTokenError) as caught:
                await engine.redeem_join_token(text)
            assert caught.value.code == code
        clock.now += 3600 * 24 * 30
        await engine.tick()
        with pytest.raises(JoinTokenError, match="not one of"):  # long gone: forgotten
            await engine.redeem_join_token(expired)


@pytest.mark.parametrize(
    ("workload", "name", "field", "remedy"),
    [
        (WorkloadRef("shop", "crt"), "cart-0", "workload", "shop/cart"),
        (CART, "cart-7", "instance", "cart-"),
        (CART, "front-0", "instance", "cart-"),
        (LEGACY, "legacy-0", "workload", "meshed"),
    ],
)
async def test_a_token_for_nobody_is_refused(
    tmp_path: Path, clock: Clock, workload: WorkloadRef, name: str, field: str, remedy: str
) -> None:
    async with running(tmp_path, clock) as engine:
        with pytest.raises(InvalidRequest) as caught:
            await engine.create_join_token(workload, name, 60.0, "ann")
        assert caught.value.field == field
        assert remedy in caught.value.remedy


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


# --- operations, hosts, other meshes, ports


HOST = WorkloadRef.external_host("api.example.com")


def edited(*changes: tuple[str, str]) -> Inventory:
    text = INVENTORY
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return inventory(text)


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


async def test_the_clusters_networks_close_every_hosts_way_into_the_cluster(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        made = await override(engine, destination=HOST, port=443)
        await engine.set_inventory(edited(("kind: Inventory", "kind: Inventory\nclusterNetworks: [10.0.0.0/8]")), "t")
        await engine.tick()
        rules = [rule for rule in engine.view.snapshots[FRONT].rules if rule.id.startswith(made.id)]
        assert len(rules) == 9
        assert not any(rule.destination.matches(Peer(address="10.1.2.3", host="api.example.com")) for rule in rules)
        assert any(rule.destination.matches(Peer(address="192.0.2.7", host="api.example.com")) for rule in rules)
        assert_as_if_compiled_whole(engine.view, clock.now)


async def test_another_meshs_workload_has_no_policy_and_its_peers_know_it(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        await learned(engine, clock)
        await engine.set_inventory(edited(("serviceAccount: front,", "serviceAccount: front, transport: mtls,")), "t")
        await engine.tick()
        assert set(engine.view.snapshots) == {CART, REDIS}
        account = Peer(None, "shop", "front", "10.0.0.1", verified=True)
        coming = Connection(Direction.INBOUND, account, Peer(CART, "shop", "default", "10.0.0.2", True), 8080)
        assert decide(engine.view.snapshots[CART], coming, clock.now).rule_id.startswith(f"learned/{KEY}")
        assert_as_if_compiled_whole(engine.view, clock.now)
        with pytest.raises(InvalidRequest, match="another mesh's proxy"):
            await engine.create_join_token(FRONT, "front-0", 60.0, "ann")
        with pytest.raises(InvalidRequest, match="has a sidecar"):
            await override(engine, destination=WorkloadRef.external("192.0.2.7"))


async def test_what_is_spoken_on_a_port_is_part_of_the_policy(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        before = versions(engine.view)
        assert engine.view.snapshots[CART].protocols == ((8080, "http"),)
        await engine.set_inventory(edited(("appProtocol: http", "appProtocol: grpc")), "test")
        await engine.tick()
        assert engine.view.snapshots[CART].protocols == ((8080, "grpc"),)
        assert versions(engine.view) == before | {CART: before[CART] + 1}
        await engine.set_inventory(edited((", appProtocol: http}]}", "}], opaquePorts: [8080, 9000]}")), "test")
        await engine.tick()
        assert engine.view.snapshots[CART].protocols == ((8080, "tcp"), (9000, "tcp"))


async def test_what_another_meshs_workload_is_called_by_is_learned_from_its_callers_alone(
    tmp_path: Path, clock: Clock
) -> None:
    async with running(tmp_path, clock, with_inventory=False) as engine:
        await engine.set_inventory(edited(("kind: StatefulSet,", "kind: StatefulSet, transport: mtls,")), "test")
        out = flow(FRONT, REDIS, 6379, direction=Direction.OUTBOUND)
        await engine.ingest(instance("front-0"), "boot", 1, 0, [out])
        clock.now += 60
        await engine.tick()
        assert engine.view.edges[EdgeKey(FRONT, REDIS, 6379)].state is EdgeState.ACTIVE
        assert engine.view.nodes[REDIS].transport is Transport.MTLS
        back = flow(REDIS, FRONT, 8080, source_identity=engine.view.inventory.identity_of(REDIS))
        await engine.ingest(instance("front-0"), "boot", 2, 0, [back])
        clock.now += 60
        await engine.tick()
        assert engine.view.edges[EdgeKey(REDIS, FRONT, 8080)].state is EdgeState.PROPOSED, "one end alone, an account"
