"""Resources of a cluster as the truth: what is in force follows from them, the inventory and the time alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.declarations import (
    ModeDeclaration,
    Modes,
    NetworkPolicyMode,
    OverrideDeclaration,
    Source,
    declaration_of,
    document_of,
)
from controller.engine import Engine
from controller.engine.declared import Acting
from controller.errors import Conflict
from controller.learner import Gate
from controller.overrides import OverrideRequest
from controller.view import OverrideState, WorkloadMode
from graph.model import InboundTls, Mode, Protocol, Verdict, WorkloadRef
from graph.outside import parse_outside
from tests.controller.mesh import CART, FRONT, INVENTORY, NOW, REDIS, SETTINGS, Clock, inventory, running

#: Ends outside the mesh that are more than one.
WIDE = (parse_outside("203.0.113.0/24"), parse_outside("2001:db8:7::/48"), parse_outside("*.example.com"))


def source(name: str = "one", namespace: str = "shop", age: float = 0.0, uid: str = "") -> Source:
    return Source(namespace, name, uid or f"{name:0<8}-uid", 1, NOW - age)


def override(
    name: str = "one", *, ends: float | None = None, at: Source | None = None, **changes: Any
) -> OverrideDeclaration:
    asked: dict[str, Any] = {
        "effect": Verdict.ALLOW,
        "source": FRONT,
        "destination": CART,
        "port": 8080,
        "protocol": Protocol.TCP,
        "owner": "anna",
        "reason": "release 7",
        "expires_in": None,
    }
    return OverrideDeclaration(at or source(name), OverrideRequest(**(asked | changes)), ends)


def mode(name: str = "one", *, age: float = 0.0, **says: Any) -> ModeDeclaration:
    return ModeDeclaration(source(name, age=age), **says)


def active(engine: Engine) -> set[str]:
    now = engine.view.at
    return {each.id for each in engine.view.overrides.values() if each.state(now) is OverrideState.ACTIVE}


async def test_a_resource_comes_changes_and_goes(tmp_path: Path) -> None:
    async with running(tmp_path, Clock()) as engine:
        await engine.declare([override()])
        (rule_id,) = active(engine)
        assert rule_id == "override/shop.one.one00000"
        assert engine.view.judgements["AccessOverride/shop/one"].accepted
        await engine.declare([override(reason="release 8")], {"AccessOverride/shop/one": Acting("bert", "")})
        assert engine.view.rules[rule_id].reason == "release 8"
        await engine.declare([])
        assert rule_id not in engine.view.rules
        assert engine.view.judgements == {}
        page = await engine.audit(3)
        assert [(each.actor, each.action) for each in page.entries] == [
            ("kubernetes", "override.revoke"),
            ("bert", "override.change"),
            ("kubernetes", "override.create"),
        ]


async def test_one_that_was_made_anew_is_another_one(tmp_path: Path) -> None:
    async with running(tmp_path, Clock()) as engine:
        await engine.declare([override()])
        first = active(engine)
        await engine.declare([override(at=source(uid="another"))])
        assert len(active(engine)) == 1
        assert active(engine) != first


async def test_saying_the_same_again_writes_nothing(tmp_path: Path) -> None:
    async with running(tmp_path, Clock()) as engine:
        declared = [override(), mode(inbound=Mode.AUDIT)]
        await engine.declare(declared)
        generation = engine.view.generation
        await engine.declare([replace(each) for each in declared])
        assert engine.view.generation == generation


async def test_an_end_comes_is_put_off_and_comes_again(tmp_path: Path) -> None:
    clock = Clock()
    async with running(tmp_path, clock) as engine:
        await engine.declare([override(ends=NOW + 60)])
        assert len(active(engine)) == 1
        clock.now = NOW + 61
        await engine.tick()
        judgement = engine.view.judgements["AccessOverride/shop/one"]
        assert (judgement.accepted, judgement.ended) == (True, True)
        assert not [rule for rule in engine.view.rules if rule.startswith("override/")]
        await engine.declare([override(ends=NOW + 600)])
        assert len(active(engine)) == 1
        await engine.declare([override(ends=NOW + 1200)])
        clock.now = NOW + 700  # the timer of the earlier end has passed
        await engine.tick()
        assert len(active(engine)) == 1
        clock.now = NOW + 1201
        await engine.tick()
        assert active(engine) == set()
        clock.now = NOW + 3 * 86400  # long after: its resource is still there, and it is still shown
        await engine.tick()
        assert engine.view.judgements["AccessOverride/shop/one"].ended
        assert len(engine.view.overrides) == 1


async def test_what_can_not_be_is_refused_until_it_can(tmp_path: Path) -> None:
    clock = Clock()
    async with running(tmp_path, clock) as engine:
        elsewhere = override("two", destination=REDIS)  # of another namespace than its own
        deny = override("three", destination=REDIS, effect=Verdict.DENY)
        later = override("four", destination=WorkloadRef("shop", "later"))
        too_long = override("five", ends=NOW + 1e9)
        await engine.declare([elsewhere, deny, later, too_long])
        judged = {key.rpartition("/")[2]: each for key, each in engine.view.judgements.items()}
        assert {name: each.code for name, each in judged.items()} == {
            "two": "wrong-namespace",
            "three": "",
            "four": "unknown-workload",
            "five": "invalid",
        }
        assert "data" in judged["two"].remedy
        assert judged["five"].field == "expires_at"
        last = "{namespace: data, name: legacy,"
        named = INVENTORY.replace(last, f"{{namespace: shop, name: later, ports: []}}\n  - {last}")
        await engine.set_inventory(inventory(named), "test")
        assert engine.view.judgements["AccessOverride/shop/four"].accepted
        await engine.set_inventory(inventory(), "test")
        assert not engine.view.judgements["AccessOverride/shop/four"].accepted
        assert len(active(engine)) == 1


async def test_there_is_room_for_so_many_and_the_oldest_come_first(tmp_path: Path) -> None:
    async with running(tmp_path, Clock(), replace(SETTINGS, max_overrides=20)) as engine:
        several = [override(f"o{n}", at=source(f"o{n}", age=10.0 - n), port=1000 + n) for n in range(4)]
        await engine.declare(several)
        assert {each.port for each in engine.view.overrides.values()} == {1000, 1001}
        assert engine.view.judgements["AccessOverride/shop/o3"].code == "too-many"
        await engine.declare(several[1:])
        ports = {engine.view.overrides[each].port for each in active(engine)}
        assert ports == {1001, 1002}


async def test_one_namespace_leaves_room_for_the_others(tmp_path: Path) -> None:
    async with running(tmp_path, Clock(), replace(SETTINGS, max_overrides=20)) as engine:
        several = [override(f"o{n}", at=source(f"o{n}", age=100.0 - n), port=1000 + n) for n in range(40)]
        closing = override(
            "deny", at=source("deny", "data"), destination=REDIS, effect=Verdict.DENY, port=6379
        )  # younger than all of them
        await engine.declare([*several, closing])
        assert engine.view.judgements[closing.key].accepted, "a hole is closed, whatever others have made before"
        assert len(active(engine)) == 2 + 1
        assert "of shop" in engine.view.judgements["AccessOverride/shop/o5"].problem
        # the next in line come when some go, of whichever namespace
        also = [override(f"r{n}", at=source(f"r{n}", "data"), destination=REDIS, port=n) for n in (1, 2)]
        await engine.declare([*several[1:], closing, *also])
        ports = {engine.view.overrides[each].port for each in active(engine)}
        assert ports == {1001, 1002, 6379, 1}
        await engine.declare([*several[1:], *also])
        assert {engine.view.overrides[each].port for each in active(engine)} == {1001, 1002, 1, 2}


async def test_who_makes_and_deletes_without_end_has_the_last_of_them_remembered(tmp_path: Path) -> None:
    clock = Clock()
    async with running(tmp_path, clock, replace(SETTINGS, max_overrides=20)) as engine:
        other = override("other", at=source("other", "data"), destination=REDIS)
        await engine.declare([other])
        await engine.declare([])
        for n in range(30):
            clock.now += 1
            await engine.declare([override("same", at=source("same", uid=f"{n:08}-uid"), port=1000 + n)])
        await engine.declare([])
        assert len(engine.view.overrides) == 31
        clock.now += SETTINGS.housekeeping + 1
        await engine.tick()
        kept = {each.port for each in engine.view.overrides.values()}
        assert kept == {8080, 1028, 1029}, "what others ended is still shown"


async def test_what_people_set_in_the_store_ends_when_resources_are_the_truth(tmp_path: Path) -> None:
    async with running(tmp_path, Clock()) as engine:
        made = await engine.create_override(override().asked)
        await engine.set_mode(CART, None, Mode.ENFORCE, None, "anna", "before")
        await engine.declare([])
        assert engine.view.overrides[made.id].state(NOW) is OverrideState.REVOKED
        assert engine.view.modes[CART].inbound is Mode.LEARN
        for asking in (
            engine.create_override(override().asked),
            engine.revoke_override(made.id, "anna", "over"),
            engine.set_mode(CART, None, Mode.ENFORCE, None, "anna", "again"),
        ):
            with pytest.raises(Conflict, match="AccessOverrides"):
                await asking


async def test_a_restart_keeps_what_was_declared_until_resources_are_seen(tmp_path: Path) -> None:
    declared = [
        override(),
        mode(inbound=Mode.ENFORCE, network_policy=NetworkPolicyMode.APPLY, gate=(("min_connections", 9.0),)),
        mode("cart", workload="cart", outbound=Mode.AUDIT),
        *(override(f"wide-{at}", destination=end) for at, end in enumerate(WIDE)),
    ]
    async with running(tmp_path, Clock()) as engine:
        await engine.declare(declared)
        assert all(each.accepted for each in engine.view.judgements.values())
        before = (dict(engine.view.modes), dict(engine.view.gates), dict(engine.view.network_policies), active(engine))
        rules = dict(engine.view.rules)
    async with running(tmp_path, Clock(), with_inventory=False) as engine:
        view = engine.view
        assert view.declared
        assert (dict(view.modes), dict(view.gates), dict(view.network_policies), active(engine)) == before
        assert dict(view.rules) == rules
        assert view.namespace_modes["shop"].inbound is Mode.ENFORCE
        generation = view.generation
        await engine.declare(declared)
        assert engine.view.judgements["SegmentationMode/shop/cart"].accepted
        assert engine.view.generation <= generation + 1


async def test_modes_by_workload_by_namespace_and_quarantine_above_all(tmp_path: Path) -> None:
    async with running(tmp_path, Clock()) as engine:
        whole = mode("whole", age=10, inbound=Mode.ENFORCE, inbound_tls=InboundTls.STRICT)
        cart = mode("cart", workload="cart", inbound=Mode.AUDIT, gate=(("min_seconds", 3.0),))
        younger = mode("younger", inbound=Mode.LEARN, outbound=Mode.AUDIT)
        nobody = mode("nobody", workload="nobody", inbound=Mode.ENFORCE)
        await engine.declare([whole, cart, younger, nobody])
        view = engine.view
        assert view.modes[FRONT] == WorkloadMode(Mode.ENFORCE, Mode.AUDIT, InboundTls.STRICT)
        assert view.modes[CART] == WorkloadMode(Mode.AUDIT, Mode.AUDIT, InboundTls.STRICT)
        assert view.modes[REDIS] == WorkloadMode()
        assert view.gates == {CART: replace(SETTINGS.gate, min_seconds=3.0)}
        assert view.judgements["SegmentationMode/shop/younger"].shadowed == ("ingress",)
        assert view.judgements["SegmentationMode/shop/nobody"].code == "unknown-workload"
        assert view.snapshots[FRONT].inbound_mode is Mode.ENFORCE
        await engine.declare([whole, cart, younger, mode("stop", inbound=Mode.QUARANTINE)])
        assert engine.view.modes[CART].inbound is Mode.QUARANTINE
        assert engine.view.snapshots[CART].inbound_mode is Mode.QUARANTINE
        await engine.declare([])
        assert engine.view.modes[CART] == WorkloadMode()
        assert engine.view.gates == {}


async def test_sets_of_network_policies_are_kept_and_gone_back_to(tmp_path: Path) -> None:
    def manifest(port: int) -> dict[str, Any]:
        return {"metadata": {"name": "hedgerow-cart", "namespace": "shop"}, "spec": {"port": port}}

    async with running(tmp_path, Clock()) as engine:
        with pytest.raises(Exception, match="nothing was applied"):
            await engine.pin_network_policies("shop", "previous", "anna", "back")
        for port in (1, 2, 2, 3, 4, 5, 6, 7):
            await engine.network_policies_applied("shop", [manifest(port)], {})
        fence = engine.view.fences["shop"]
        assert [each.revision for each in fence.sets] == [3, 4, 5, 6, 7]
        fence = await engine.pin_network_policies("shop", "previous", "anna", "back")
        assert (fence.pinned, fence.pinned_by) == (6, "anna")
        fence = await engine.pin_network_policies("shop", "previous", "anna", "further back")
        assert fence.pinned == 5
        with pytest.raises(Exception, match="no revision 1 "):
            await engine.pin_network_policies("shop", 1, "anna", "back")
    async with running(tmp_path, Clock()) as engine:
        fence = engine.view.fences["shop"]
        kept = fence.found(5)
        assert kept is not None
        assert (fence.pinned, kept.manifests) == (5, [manifest(5)])
        assert (await engine.pin_network_policies("shop", "newest", "anna", "on")).pinned is None


names = st.sampled_from(["a", "b", "c"])
modes = st.sampled_from([None, *Mode])


@settings(max_examples=200)
@given(
    st.lists(
        st.builds(
            lambda name, age, workload, inbound: mode(name, age=age, workload=workload, inbound=inbound),
            names,
            st.integers(0, 3),
            st.sampled_from(["", "cart"]),
            modes,
        ),
        unique_by=lambda each: each.source.name,
    )
)
def test_the_mode_of_a_workload_does_not_depend_on_the_order_of_resources(declared: list[ModeDeclaration]) -> None:
    standard = WorkloadMode()
    found = {
        Modes.of(order).mode_of(CART, standard).inbound
        for order in (declared, declared[::-1], sorted(declared, key=str))
    }
    assert len(found) == 1
    (inbound,) = found
    if any(each.inbound is Mode.QUARANTINE for each in declared):
        assert inbound is Mode.QUARANTINE


@pytest.mark.parametrize(
    "declared",
    [
        override(),
        override(ends=NOW + 5, operations=("GET /",), port=None, effect=Verdict.DENY),
        override(destination=WorkloadRef.external_host("api.example.com")),
        *(override(destination=end) for end in WIDE),
        *(override(source=end, effect=Verdict.DENY) for end in WIDE if not end.name.startswith("*")),
        mode(workload="cart", inbound=Mode.LEARN, gate=(("min_seconds", 1.0),)),
        mode(outbound=Mode.QUARANTINE, inbound_tls=InboundTls.STRICT, network_policy=NetworkPolicyMode.OFF),
    ],
)
def test_a_declaration_comes_back_from_the_store(declared: OverrideDeclaration | ModeDeclaration) -> None:
    assert declaration_of(document_of(declared)) == declared


def test_a_gate_never_retires_an_edge_before_it_goes_stale() -> None:
    both = [mode("a", gate=(("stale_after", 1e7),)), mode("b", workload="cart", gate=(("retire_after", 5e6),))]
    gate = Modes.of(both).gate_of(CART, Gate())
    assert gate.retire_after >= gate.stale_after == 1e7
