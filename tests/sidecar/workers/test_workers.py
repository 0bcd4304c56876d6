"""Whole sidecars with several workers: real processes, a controller that speaks the real protocol."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal

import pytest

from graph.model import Direction, Verdict
from tests.sidecar.fake_controller import WORKLOAD, snapshot, until
from tests.sidecar.processes import Mesh, ask, echo

WORKERS = 2


@pytest.fixture
async def mesh(controller, tmp_path):
    """front → cart, both with two workers, and an echo service."""
    made = Mesh(controller, tmp_path)
    for process in (made.front, made.cart):
        process.document["workers"] = WORKERS
    made.allow(1)
    server = await asyncio.start_server(echo, "127.0.0.1", made.application)
    async with server, made.front, made.cart:
        await asyncio.gather(made.front.ready(), made.cart.ready())
        yield made
    for process in (made.front, made.cart):
        said = process.log.read_text()
        assert "Traceback" not in said, said
        assert "PRIVATE KEY" not in said


async def stats(process):
    return json.loads((await process.get("/stats"))[1])


async def test_both_workers_carry_and_every_connection_is_reported_once(mesh, controller):
    asked = 0
    for _ in range(8):
        assert set(await asyncio.gather(*(ask(mesh.entrance) for _ in range(10)))) == {b"hello"}
        asked += 10
    await until(lambda: sum(f.connections for f in controller.flows if f.direction is Direction.INBOUND) == asked)
    assert await mesh.front.terminate() == 0
    assert await mesh.cart.terminate() == 0
    for direction in Direction:
        flows = [flow for flow in controller.flows if flow.direction is direction]
        assert sum(flow.connections for flow in flows) == asked
        assert sum(flow.bytes_received for flow in flows) == asked * 5
        assert {(str(flow.edge), flow.verified, flow.rule_id, flow.verdict) for flow in flows} == {
            (f"shop/front->shop/cart:{mesh.service}/TCP", True, "learned/1", Verdict.ALLOW)
        }
