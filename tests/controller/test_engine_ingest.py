"""What sidecars report counts once, only for their own end, and is on disk before it is acknowledged."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from controller.engine.ingest import MAX_FLOWS
from controller.errors import IngestError
from controller.learner import EdgeState
from controller.store import SqliteStore
from graph.flow import EdgeKey
from graph.model import Direction, Verdict, WorkloadRef
from tests.controller.mesh import (
    CART,
    FRONT,
    KEY,
    LEGACY,
    NOW,
    OUTSIDE,
    REDIS,
    SETTINGS,
    Clock,
    actions,
    flow,
    instance,
    running,
)


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
