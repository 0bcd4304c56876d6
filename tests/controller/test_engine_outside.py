"""Overrides about networks and names outside in a running engine: kept, shown at the edges they decide about, ended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from controller.errors import InvalidRequest
from controller.view import OverrideState
from graph.flow import EdgeKey
from graph.model import Connection, Direction, Mode, Peer, Verdict, WorkloadRef
from graph.outside import parse_end
from graph.policy import Reason, decide
from tests.controller.decisions import assert_as_if_compiled_whole, override
from tests.controller.mesh import CART, FRONT, HOST, NOW, Clock, edited, flow, instance, inventory, running

NETWORK, BELOW = parse_end("-/203.0.113.0/24"), parse_end("-/*.example.com")
INSIDE, ELSEWHERE = WorkloadRef.external("203.0.113.9"), WorkloadRef.external("198.51.100.9")


def out(view, address: str, workload: WorkloadRef | None = None):
    me = Peer(FRONT, "shop", "front", "10.0.0.1", verified=True)
    peer = Peer(workload, workload.namespace if workload else "", address=address)
    return decide(view.snapshots[FRONT], Connection(Direction.OUTBOUND, me, peer, 443), NOW)


async def test_a_network_is_opened_for_a_while_and_is_as_if_everything_were_compiled_anew(
    tmp_path: Path, clock: Clock
) -> None:
    async with running(tmp_path, clock) as engine:
        await engine.set_mode(FRONT, None, Mode.ENFORCE, None, "ann", "a test")
        assert out(engine.view, "203.0.113.9").reason is Reason.NO_RULE
        await override(engine, destination=NETWORK, port=443)
        assert out(engine.view, "203.0.113.9").reason is Reason.ALLOW_OVERRIDE
        assert not out(engine.view, "203.0.113.9", CART).allowed
        assert_as_if_compiled_whole(engine.view, clock.now)
        clock.now = NOW + 60
        await engine.tick()
        assert out(engine.view, "203.0.113.9").reason is Reason.NO_RULE
        assert_as_if_compiled_whole(engine.view, clock.now)


async def test_it_is_there_after_a_restart(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        made = [await override(engine, destination=end, port=443) for end in (NETWORK, BELOW)]
        made.append(await override(engine, source=parse_end("-/198.51.100.0/24"), destination=CART, port=443))
        before = dict(engine.view.snapshots)
    async with running(tmp_path, clock) as engine:
        assert [engine.view.overrides[each.id] for each in made] == made
        assert engine.view.snapshots == before


@pytest.mark.parametrize("effect", list(Verdict))
async def test_pods_that_come_into_a_network_and_go_change_no_policy_by_themselves(
    tmp_path: Path, clock: Clock, effect: Verdict
) -> None:
    async with running(tmp_path, clock) as engine:
        await override(engine, effect=effect, destination=NETWORK, port=443)
        await override(engine, effect=effect, source=NETWORK, destination=CART, port=443)
        await engine.set_inventory(edited(("address: 10.0.0.4}", "address: 203.0.113.9}")), "test")
        assert_as_if_compiled_whole(engine.view, clock.now)
        known = replace(inventory(), networks=("203.0.113.0/28", "10.0.0.0/8"))
        await engine.set_inventory(known, "test")
        assert_as_if_compiled_whole(engine.view, clock.now)
        held = [rule for rule in engine.view.snapshots[FRONT].rules if rule.id.startswith("override/")]
        assert len(held) == (4 if effect is Verdict.ALLOW else 1), "what is opened stops at the cluster's networks"


async def test_an_edge_shows_the_override_that_decides_about_it(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        calls = [
            flow(FRONT, end, 443, direction=Direction.OUTBOUND, verified=False) for end in (INSIDE, ELSEWHERE, HOST)
        ]
        await engine.ingest(instance("front-0"), "boot", 1, 0, calls)
        keys = {end: EdgeKey(FRONT, end, 443) for end in (INSIDE, ELSEWHERE, HOST)}

        def deciding(end: WorkloadRef) -> str:
            rule = engine.view.traffic[keys[end]].rule
            return rule.id if rule is not None and rule.id.startswith("override/") else ""

        assert [deciding(end) for end in keys] == ["", "", ""]
        network = await override(engine, destination=NETWORK, port=443)
        below = await override(engine, destination=BELOW, port=443)
        await override(engine, destination=NETWORK, port=80)
        assert [deciding(end) for end in keys] == [network.id, "", below.id]
        deny = await override(engine, effect=Verdict.DENY, destination=INSIDE, port=None)
        assert deciding(INSIDE) == deny.id
        for each in (deny, network):
            await engine.revoke_override(each.id, "ann", "done")
        assert [deciding(end) for end in keys] == ["", "", below.id]


async def test_a_workload_that_moves_into_a_network_that_is_let_in_ends_that(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        made = await override(engine, source=NETWORK, destination=CART, expires_in=None)
        kept = [
            await override(engine, source=parse_end("-/198.51.100.0/24"), destination=CART, expires_in=None),
            await override(engine, effect=Verdict.DENY, source=NETWORK, destination=CART, expires_in=None),
            await override(engine, destination=NETWORK, expires_in=None),
        ]
        moved = edited(("address: 10.0.0.4}", "address: 203.0.113.9}"))
        await engine.set_inventory(replace(moved, networks=("203.0.113.0/28",)), "test")
        assert made.id in engine.view.rules, "the cluster's own networks are left out as it is"
        await engine.set_inventory(moved, "test")  # and now nobody says which those are
        assert {each.id for each in kept} == {name for name in engine.view.rules if name.startswith("override/")}
        ended = engine.view.overrides[made.id]
        assert (ended.state(clock.now), ended.revoked_by) == (OverrideState.REVOKED, "controller")
        assert "data/redis has the address 203.0.113.9 now" in ended.revoke_reason
        entries = (await engine.audit(10)).entries
        assert ("override.withdraw", made.id) in {(each.action, each.subject) for each in entries}
        assert_as_if_compiled_whole(engine.view, clock.now)


async def test_a_network_in_which_workloads_are_lets_nobody_in(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        with pytest.raises(InvalidRequest, match=r"10\.0\.0\.\d in 10\.0\.0\.0/8"):
            await override(engine, source=parse_end("-/10.0.0.0/8"), destination=CART)
        assert not engine.view.overrides
        await engine.set_inventory(replace(inventory(), networks=("10.0.0.0/16", "10.1.0.0/16")), "test")
        made = await override(engine, source=parse_end("-/10.0.0.0/8"), destination=CART)
        sources = [rule.source.cidr for rule in engine.view.snapshots[CART].rules if rule.id.startswith(made.id)]
        assert "10.2.0.0/15" in sources
        assert not any(each.startswith(("10.0.", "10.1.")) for each in sources)
