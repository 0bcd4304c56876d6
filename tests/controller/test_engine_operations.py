"""What is asked over connections: counted beside them, told by the destination alone, and bounded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from graph.flow import Flow
from graph.model import Direction, Verdict, WorkloadRef
from graph.operations import MAX_OPERATIONS
from tests.controller.mesh import CART, FRONT, INVENTORY, KEY, SETTINGS, Clock, flow, instance, inventory, running, used


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
