"""What sidecars report counts once, only for their own end, and is on disk before it is acknowledged."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controller.engine import Engine
from controller.engine.ingest import MAX_FLOWS
from controller.errors import IngestError
from controller.learner import EdgeState
from controller.store import SqliteStore
from graph.flow import EdgeKey, Flow
from graph.model import Direction, Mode, Selector, Verdict, WorkloadRef
from graph.operations import MAX_OPERATIONS
from graph.views import EdgeVerdict
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
    running,
    sent,
    used,
)

KEY = EdgeKey(FRONT, CART, 8080)
OUTSIDE = WorkloadRef.external("192.0.2.9")


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def actions(engine: Engine) -> list[str]:
    page = await engine.audit(1000)
    assert page.intact, page.problem
    return [entry.action for entry in reversed(page.entries)]


async def test_a_batch_counts_and_is_on_disk_when_it_is_acknowledged(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        assert await engine.ingest(instance("cart-0"), "boot", 1, 0, [flow(FRONT, CART)]) == 1
        stored = engine._worker.store.load()
        assert stored.positions["shop/cart-0", "boot"].sequence == 1
        assert [totals.counts.connections for totals in stored.traffic] == [5]
        assert [edge.key for edge in stored.edges] == [KEY]
        assert engine.view.traffic[KEY].connections == 5
        assert engine.view.traffic[KEY].state == "candidate"
        assert engine.view.edges_of[FRONT] == {KEY} == engine.view.edges_of[CART]


async def test_a_batch_that_comes_twice_is_acknowledged_and_counts_once(tmp_path: Path, clock: Clock) -> None:
    cart = instance("cart-0")
    async with running(tmp_path, clock) as engine:
        assert await engine.ingest(cart, "boot", 1, 0, [flow(FRONT, CART)]) == 1
        assert await engine.ingest(cart, "boot", 2, 0, [flow(FRONT, CART)]) == 2
        assert await engine.ingest(cart, "boot", 1, 0, [flow(FRONT, CART)]) == 2
        assert await engine.ingest(cart, "boot", 2, 0, [flow(FRONT, CART)]) == 2
        assert engine.view.traffic[KEY].connections == 10
    async with running(tmp_path, clock) as engine:  # and the same after a restart
        assert await engine.ingest(cart, "boot", 2, 0, [flow(FRONT, CART)]) == 2
        assert engine.view.traffic[KEY].connections == 10


async def test_another_boot_and_another_replica_count_on_their_own(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        for name, boot in (("cart-0", "a"), ("cart-0", "b"), ("cart-1", "a")):
            assert await engine.ingest(instance(name), boot, 1, 0, [flow(FRONT, CART)]) == 1
        assert engine.view.traffic[KEY].connections == 15
        assert engine.view.edges[KEY].destination_reporters == {"cart-0", "cart-1"}


async def test_batches_that_wait_together_are_one_transaction_and_each_counts(tmp_path: Path, clock: Clock) -> None:
    commits = 0

    class Counting(SqliteStore):
        def commit(self, writes: Any) -> None:
            nonlocal commits
            commits += 1
            super().commit(writes)

    async with running(tmp_path, clock, store=Counting(tmp_path / "controller.db")) as engine:
        commits = 0
        acks = await asyncio.gather(
            *(engine.ingest(instance("cart-0"), "boot", number, 0, [flow(FRONT, CART)]) for number in range(1, 61))
        )
        assert acks == list(range(1, 61))
        assert engine.view.traffic[KEY].connections == 300
        assert commits < 10


async def test_both_ends_reports_are_one_edge_and_not_added(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        await engine.ingest(instance("cart-0"), "boot", 1, 0, [flow(FRONT, CART)])
        await engine.ingest(instance("front-0"), "boot", 1, 0, [flow(FRONT, CART, direction=Direction.OUTBOUND)])
        assert engine.view.traffic[KEY].connections == 5


# --- whose word counts


@pytest.mark.parametrize(
    ("reporter", "made", "why"),
    [
        ("redis-0", flow(FRONT, CART), "not-its-end"),
        ("front-0", flow(FRONT, CART), "not-its-end"),  # the source does not speak as the destination
        ("cart-0", flow(FRONT, CART, direction=Direction.OUTBOUND), "not-its-end"),
        ("cart-0", flow(FRONT, REDIS), "not-its-end"),
        ("cart-0", flow(WorkloadRef("shop", "ghost"), CART), "unknown-workload"),
        ("cart-0", flow(FRONT, CART, port=0), "out-of-range"),
        ("cart-0", flow(FRONT, CART, port=70000), "out-of-range"),
        ("cart-0", flow(FRONT, CART, connections=-1), "out-of-range"),
        ("cart-0", flow(FRONT, CART, bytes_sent=2**63), "out-of-range"),
        ("cart-0", flow(FRONT, CART, last_seen=float("nan")), "out-of-range"),
        ("cart-0", flow(FRONT, CART, first_seen=float("inf")), "out-of-range"),
    ],
)
async def test_a_report_that_is_not_its_own_is_refused_counted_and_audited(
    tmp_path: Path, clock: Clock, reporter: str, made: Any, why: str
) -> None:
    async with running(tmp_path, clock) as engine:
        good = flow(CART, CART)
        sender = instance(reporter)
        own = flow(FRONT, sender.workload) if sender.workload != FRONT else good
        batch = [made] if sender.workload == FRONT else [own, made]
        assert await engine.ingest(sender, "boot", 1, 0, batch) == 1  # acknowledged: sending it again would not help
        await engine.tick()
        state = engine.view.sidecars[f"{sender.workload.namespace}/{reporter}"]
        assert state.refused == 1
        assert len(engine.flows()) == len(batch) - 1  # what was right in the batch counted
        entry = next(entry for entry in (await engine.audit()).entries if entry.action == "flows.refuse")
        assert json.loads(entry.detail) == {"refused": 1, "reasons": {why: 1}}
        assert entry.subject.endswith(reporter)


async def test_refusals_can_not_fill_the_audit_log(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        for number in range(1, 21):
            await engine.ingest(instance("redis-0"), "boot", number, 0, [flow(FRONT, CART)] * 3)
            clock.now += 1
            await engine.tick()
        assert (await actions(engine)).count("flows.refuse") == 1
        clock.now += SETTINGS.refusal_pause
        await engine.tick()
        entries = [entry for entry in (await engine.audit()).entries if entry.action == "flows.refuse"]
        assert [json.loads(entry.detail)["refused"] for entry in entries] == [57, 3]
        assert engine.view.sidecars["data/redis-0"].refused == 60


async def test_the_reporter_is_who_proved_it_and_not_who_is_named(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        await engine.ingest(instance("cart-0"), "boot", 1, 0, [flow(FRONT, CART, reporter="cart-1")])
        assert engine.flows()[0].reporter == "cart-0"
        assert engine.view.edges[KEY].destination_reporters == {"cart-0"}


async def test_addresses_become_the_workloads_that_have_them(tmp_path: Path, clock: Clock) -> None:
    by_address = WorkloadRef.external("10.0.0.5")
    by_service = WorkloadRef.external("10.1.0.1")
    async with running(tmp_path, clock) as engine:
        unproved: dict[str, Any] = {"verified": False, "source_identity": ""}
        await engine.ingest(instance("cart-0"), "boot", 1, 0, [flow(by_address, CART, **unproved)])
        outbound = flow(FRONT, by_service, 80, direction=Direction.OUTBOUND, destination_identity="")
        await engine.ingest(instance("front-0"), "boot", 1, 0, [outbound])
        assert set(engine.view.traffic) == {EdgeKey(LEGACY, CART, 8080), KEY}  # the service's port 80 is 8080 behind it


async def test_an_address_outside_stays_an_address(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        await engine.ingest(instance("cart-0"), "boot", 1, 0, [flow(OUTSIDE, CART, verified=False)])
        assert set(engine.view.traffic) == {EdgeKey(OUTSIDE, CART, 8080)}
        assert engine.view.nodes[OUTSIDE].external


async def test_a_sidecars_clock_is_not_believed(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        old, early = flow(FRONT, CART, first_seen=1.0, last_seen=NOW + 1e6), flow(FRONT, CART, first_seen=2e12)
        await engine.ingest(instance("cart-0"), "boot", 1, 0, [old, early])
        assert [(each.first_seen, each.last_seen) for each in engine.flows()] == [
            (NOW, NOW),
            (NOW - SETTINGS.oldest_flow, NOW),
        ]
        assert engine.view.edges[KEY].state is EdgeState.CANDIDATE  # a claimed past does not skip the gate


# --- batches


@pytest.mark.parametrize(
    ("boot", "sequence", "version", "shed", "field"),
    [
        ("", 1, 0, 0, "boot_id"),
        ("x" * 129, 1, 0, 0, "boot_id"),
        ("a\nb", 1, 0, 0, "boot_id"),
        ("boot", 0, 0, 0, "sequence"),
        ("boot", 2**63, 0, 0, "sequence"),
        ("boot", 1, -1, 0, "policy_version"),
        ("boot", 1, 0, -1, "shed_flows"),
    ],
)
async def test_a_malformed_batch_is_refused_as_a_whole(
    tmp_path: Path, clock: Clock, boot: str, sequence: int, version: int, shed: int, field: str
) -> None:
    async with running(tmp_path, clock) as engine:
        before = engine.view
        with pytest.raises(IngestError) as caught:
            await engine.ingest(instance("cart-0"), boot, sequence, version, [flow(FRONT, CART)], shed)
        assert caught.value.field == field
        assert engine.view is before


async def test_too_many_flows_in_one_batch_are_refused(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        with pytest.raises(IngestError, match="flows"):
            await engine.ingest(instance("cart-0"), "boot", 1, 0, [flow(FRONT, CART)] * (MAX_FLOWS + 1))


async def test_only_the_last_boots_of_an_instance_are_remembered(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        for number in range(10):
            clock.now += 1
            await engine.ingest(instance("cart-0"), f"boot-{number}", 1, 0, [])
        boots = {boot for _, boot in engine._worker.store.load().positions}
        assert boots == {"boot-6", "boot-7", "boot-8", "boot-9"}


async def test_what_a_sidecar_shed_is_shown(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        await engine.ingest(instance("cart-0"), "boot", 1, 0, [], 7)
        await engine.ingest(instance("cart-0"), "boot", 2, 0, [], 2)
        assert engine.view.sidecars["shop/cart-0"].shed == 9


# --- learning


async def test_an_edge_ripens_by_time_alone_and_reaches_both_ends_policies(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        before = {ref: snapshot.version for ref, snapshot in engine.view.snapshots.items()}
        await used(engine)
        assert engine.view.rules == {}
        clock.now += SETTINGS.gate.min_seconds
        await engine.tick()
        assert list(engine.view.rules) == [f"learned/{KEY}"]
        rule = engine.view.rules[f"learned/{KEY}"]
        after = {ref: snapshot.version for ref, snapshot in engine.view.snapshots.items()}
        assert after == {FRONT: before[FRONT] + 1, CART: before[CART] + 1, REDIS: before[REDIS]}
        for ref in (FRONT, CART):
            assert rule.id in {each.id for each in engine.view.snapshots[ref].rules}
            assert engine.view.snapshots[ref].issued_at == clock.now
        assert engine.view.traffic[KEY].rule == rule
        assert (await actions(engine))[1:] == ["edge.candidate", "edge.active"]


@pytest.mark.parametrize("end", Direction)
async def test_one_end_alone_opens_nothing(tmp_path: Path, clock: Clock, end: Direction) -> None:
    """Its sidecar may be broken into: front's would open cart to itself, cart's the way out of front."""
    async with running(tmp_path, clock) as engine:
        for sequence in (1, 2):
            told = ("front-0", sent(FRONT, CART)) if end is Direction.OUTBOUND else ("cart-0", flow(FRONT, CART))
            await engine.ingest(instance(told[0]), "boot", sequence, 0, [told[1]])
            clock.now += SETTINGS.gate.min_seconds
            await engine.tick()
        assert engine.view.edges[KEY].state is EdgeState.PROPOSED
        assert engine.view.rules == {}


@pytest.mark.parametrize("mode", [Mode.ENFORCE, Mode.QUARANTINE])
@pytest.mark.parametrize("reason", ["learning", "audit"])
async def test_a_closed_end_teaches_nothing_whatever_it_says(
    tmp_path: Path, clock: Clock, mode: Mode, reason: str
) -> None:
    """Where the destination has no sidecar the source's word is enough, so a closed source must not have one."""
    smuggled = sent(FRONT, LEGACY, 25, verified=False, reason=reason)
    async with running(tmp_path, clock) as engine:
        await engine.set_mode(FRONT, Direction.OUTBOUND, mode, None, "ann", "closed")
        await engine.ingest(instance("front-0"), "boot", 1, 0, [smuggled])
        clock.now += SETTINGS.gate.min_seconds
        await engine.tick()
        assert engine.view.edges == {}
        assert EdgeKey(FRONT, LEGACY, 25) in engine.view.traffic  # shown to people all the same
        await engine.set_mode(FRONT, Direction.OUTBOUND, Mode.LEARN, None, "ann", "open again")
        await engine.ingest(instance("front-0"), "boot", 2, 0, [smuggled])
        clock.now += SETTINGS.gate.min_seconds
        await engine.tick()
        assert engine.view.edges[EdgeKey(FRONT, LEGACY, 25)].state is EdgeState.ACTIVE


async def test_more_of_the_same_changes_no_policy(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        await used(engine)
        clock.now += SETTINGS.gate.min_seconds
        await engine.tick()
        snapshots = engine.view.snapshots
        allowed = flow(FRONT, CART, pending=Verdict.ALLOW, reason="allow-rule", rule_id=f"learned/{KEY}")
        await engine.ingest(instance("cart-0"), "boot", 2, 0, [allowed])
        assert engine.view.snapshots is snapshots
        assert engine.view.edges[KEY].connections == 10


async def test_an_edge_goes_stale_retires_and_is_forgotten(tmp_path: Path, clock: Clock) -> None:
    gate = SETTINGS.gate
    async with running(tmp_path, clock) as engine:
        await used(engine)
        clock.now += gate.min_seconds
        await engine.tick()
        seen = engine.view.edges[KEY].last_seen
        learned = engine.view.snapshots[CART].version
        clock.now = seen + gate.stale_after
        await engine.tick()
        assert engine.view.edges[KEY].state is EdgeState.STALE
        assert len(engine.view.rules) == 1
        clock.now = seen + gate.retire_after
        await engine.tick()
        assert engine.view.edges[KEY].state is EdgeState.RETIRED
        assert len(engine.view.rules) == 0
        assert engine.view.snapshots[CART].version == learned + 1
        clock.now = seen + 2 * gate.retire_after
        async with engine.subscribe() as changes:
            await engine.tick()
            change = await anext(changes)
        assert change.removed_edges == (KEY,)
        assert KEY not in engine.view.edges
        assert KEY not in engine.view.traffic
        assert engine.view.edges_of == {}
    async with running(tmp_path, clock) as engine:
        assert engine.view.edges == {}
        assert engine.view.traffic == {}


async def test_what_was_refused_is_shown_and_never_learned(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        denied = flow(FRONT, CART, verdict=Verdict.DENY, reason="no-rule")
        await engine.ingest(instance("cart-0"), "boot", 1, 0, [denied] * 9)
        clock.now += SETTINGS.gate.min_seconds
        await engine.tick()
        assert engine.view.traffic[KEY].verdict is EdgeVerdict.DENY
        assert engine.view.traffic[KEY].denied == 45
        assert engine.view.traffic[KEY].state == ""
        assert KEY not in engine.view.edges


async def test_strangers_can_not_make_the_controller_remember_without_end(tmp_path: Path, clock: Clock) -> None:
    settings = replace(SETTINGS, max_external=10)
    async with running(tmp_path, clock, settings) as engine:
        strangers = [flow(WorkloadRef.external(f"192.0.2.{n}"), CART, verified=False) for n in range(1, 100)]
        await engine.ingest(instance("cart-0"), "boot", 1, 0, strangers)
        assert len(engine.view.edges) == 10
        assert len(engine.view.traffic) == 11  # and one for all the rest


# --- looking at flows


async def test_flows_are_found_newest_first_and_filtered(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        await engine.ingest(instance("cart-0"), "boot", 1, 0, [flow(FRONT, CART)])
        clock.now += 10
        late = flow(REDIS, CART, verdict=Verdict.DENY, first_seen=clock.now, last_seen=clock.now)
        await engine.ingest(instance("cart-0"), "boot", 2, 0, [late])
        assert [each.source for each in engine.flows()] == [REDIS, FRONT]
        assert [each.source for each in engine.flows(limit=1)] == [REDIS]
        assert [each.source for each in engine.flows(workload=FRONT)] == [FRONT]
        assert [each.source for each in engine.flows(verdict=Verdict.DENY)] == [REDIS]
        assert [each.source for each in engine.flows(since=NOW + 5)] == [REDIS]


# --- what is asked over connections


def asked(source: WorkloadRef = FRONT, destination: WorkloadRef = CART, **changes: Any) -> Flow:
    """A report of requests, as the destination's sidecar makes it."""
    given = {"operation": "GET /cart/{id}", "requests": 7, "connections": 0, "bytes_sent": 0, "bytes_received": 0}
    return flow(source, destination, **(given | changes))


async def test_operations_are_counted_beside_their_connections_and_teach_nothing(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        await used(engine)
        traffic, edge, snapshots = engine.view.traffic[KEY], engine.view.edges[KEY], engine.view.snapshots
        clock.now += 5
        denied = asked(verdict=Verdict.DENY, reason="deny-override", requests=2)
        await engine.ingest(instance("cart-0"), "boot", 2, 0, [asked(), denied, asked(operation="GET /")])
        view = engine.view
        assert [(each.name, each.requests, each.denied, each.would_deny) for each in view.traffic[KEY].operations] == [
            ("GET /", 7, 0, 7),
            ("GET /cart/{id}", 7, 2, 7),
        ]
        assert replace(view.traffic[KEY], operations=()) == traffic
        assert view.edges[KEY] == edge, "not even that it was used"
        assert view.snapshots == snapshots
        assert [each.operation for each in engine.flows(3)] == ["GET /", "GET /cart/{id}", "GET /cart/{id}"]
        stored = view.traffic[KEY].operations
    async with running(tmp_path, clock) as engine:
        assert engine.view.traffic[KEY].operations == stored
        await engine.ingest(instance("cart-0"), "boot", 3, 0, [asked()])
        assert [each.requests for each in engine.view.traffic[KEY].operations] == [7, 14]


async def test_operations_make_no_edge_and_are_forgotten_with_theirs(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        await engine.ingest(instance("cart-0"), "boot", 1, 0, [asked()])
        assert (dict(engine.view.traffic), dict(engine.view.edges)) == ({}, {})
        await engine.ingest(instance("cart-0"), "boot", 2, 0, [asked(), flow(FRONT, CART)])
        assert len(engine.view.traffic[KEY].operations) == 1
        without = "\n".join(line for line in INVENTORY.splitlines() if "front" not in line)
        await engine.set_inventory(inventory(without), "test")
        assert engine._worker.store.load().operations == {}


@pytest.mark.parametrize(
    ("reporter", "made", "why"),
    [
        ("front-0", asked(direction=Direction.OUTBOUND), "operation-of-another-end"),
        ("redis-0", asked(), "not-its-end"),
        ("cart-0", asked(connections=1), "mixed-counters"),
        ("cart-0", asked(failed=1), "mixed-counters"),
        ("cart-0", asked(bytes_sent=1), "mixed-counters"),
        ("cart-0", asked(bytes_received=1), "mixed-counters"),
        ("cart-0", asked(requests=0), "mixed-counters"),
        ("cart-0", asked(requests=2**63), "out-of-range"),
        ("cart-0", asked(operation=""), "bad-operation"),
        ("cart-0", flow(FRONT, CART, requests=1), "bad-operation"),
        ("cart-0", asked(operation="GET /" + "a" * 512), "bad-operation"),
        ("cart-0", asked(operation="GET /\x1b[31m"), "bad-operation"),
        ("cart-0", asked(operation="GET /\u202egpj"), "bad-operation"),
        ("cart-0", asked(operation=" GET /"), "bad-operation"),
        ("cart-0", flow(WorkloadRef.external_host("api.example.com"), CART), "source-is-a-host"),
    ],
)
async def test_who_may_say_what_was_asked(tmp_path: Path, clock: Clock, reporter: str, made: Flow, why: str) -> None:
    async with running(tmp_path, clock) as engine:
        await used(engine)
        before = engine.view.traffic[KEY]
        await engine.ingest(instance(reporter), "other", 1, 0, [made])
        await engine.tick()
        assert engine.view.traffic[KEY] == before
        page = await engine.audit(1)
        assert page.entries[0].action == "flows.refuse"
        assert json.loads(page.entries[0].detail)["reasons"] == {why: 1}


async def test_one_who_makes_up_operations_crowds_nobody_out(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock, replace(SETTINGS, max_operations=200)) as engine:
        await used(engine)
        await engine.ingest(instance("cart-0"), "boot", 2, 0, [asked()])
        flood = [asked(operation=f"GET /{number}", verdict=Verdict.DENY, requests=1) for number in range(5000)]
        await engine.ingest(instance("cart-0"), "boot", 3, 0, flood)
        operations = {each.name: each for each in engine.view.traffic[KEY].operations}
        assert len(operations) <= MAX_OPERATIONS + 1
        assert operations["GET /cart/{id}"].requests == 7
        assert sum(each.denied for each in operations.values()) == 5000


# --- names outside


HOST = WorkloadRef.external_host("api.example.com")


async def test_a_host_is_an_end_and_waits_for_a_person(tmp_path: Path, clock: Clock) -> None:
    key = EdgeKey(FRONT, HOST, 443)
    async with running(tmp_path, clock) as engine:
        call = sent(FRONT, HOST, 443, verified=False, destination_identity="")
        await engine.ingest(instance("front-0"), "boot", 1, 0, [call])
        clock.now += 100
        await engine.tick()
        assert engine.view.edges[key].state is EdgeState.PROPOSED
        assert engine.view.nodes[HOST].kind == "External"
        assert "api.example.com is outside the inventory" in engine.view.edges[key].evidence()
        assert not engine.view.rules
        assert await engine.approve([key], "ann", "the bank") == (key,)
        (rule,) = (each for each in engine.view.snapshots[FRONT].rules if "api.example.com" in each.id)
        assert (rule.id, rule.destination) == (f"learned/{key}", Selector(host="api.example.com"))
        traffic = engine.view.traffic[key].rule
        assert traffic is not None
        assert traffic.id == f"learned/{key}"
    async with running(tmp_path, clock) as engine:
        assert f"learned/{key}" in engine.view.rules
