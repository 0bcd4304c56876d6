"""A small mesh for the engine's tests: an inventory file, flows as sidecars report them, a clock that tests move."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from controller.engine import Engine, EngineSettings
from controller.inventory import Inventory, read_inventory
from controller.learner import Gate
from controller.store import SqliteStore, Store
from graph.flow import EdgeKey, Flow
from graph.model import Direction, Instance, Protocol, Verdict, WorkloadRef

TRUST_DOMAIN = "hedgerow.test"
NOW = 1_700_000_000.0

INVENTORY = """
apiVersion: hedgerow.dev/v1alpha1
kind: Inventory
namespaces:
  - {name: shop, labels: {team: green}}
  - {name: data}
workloads:
  - {namespace: shop, name: front, serviceAccount: front, labels: {app: front}, ports: [{name: http, port: 8080}]}
  - {namespace: shop, name: cart, ports: [{name: http, port: 8080, protocol: TCP, appProtocol: http}]}
  - {namespace: data, name: redis, kind: StatefulSet, ports: [{name: redis, port: 6379}]}
  - {namespace: data, name: legacy, meshed: false, ports: [{port: 25}]}
instances:
  - {name: front-0, workload: shop/front, address: 10.0.0.1}
  - {name: cart-0, workload: shop/cart, address: 10.0.0.2}
  - {name: cart-1, workload: shop/cart, address: 10.0.0.3}
  - {name: redis-0, workload: data/redis, address: 10.0.0.4}
  - {name: legacy-0, workload: data/legacy, address: 10.0.0.5}
services:
  - {namespace: shop, name: cart, address: 10.1.0.1, workload: shop/cart, ports: [{port: 80, targetPort: http}]}
"""

FRONT, CART = WorkloadRef("shop", "front"), WorkloadRef("shop", "cart")
REDIS, LEGACY = WorkloadRef("data", "redis"), WorkloadRef("data", "legacy")
OUTSIDE, HOST = WorkloadRef.external("192.0.2.9"), WorkloadRef.external_host("api.example.com")
KEY = EdgeKey(FRONT, CART, 8080)


class Clock:
    """Seconds since the epoch, moved by hand."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@cache
def inventory(text: str = INVENTORY) -> Inventory:
    return read_inventory(text.encode(), TRUST_DOMAIN)


def edited(*changes: tuple[str, str]) -> Inventory:
    """The inventory with some of its text replaced."""
    text = INVENTORY
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return inventory(text)


def without(name: str) -> Inventory:
    """The inventory without one instance."""
    lines = [line for line in INVENTORY.splitlines() if f"{{name: {name}," not in line]
    return inventory("\n".join(lines))


def instance(name: str) -> Instance:
    return next(each for each in inventory().instances.values() if each.name == name)


def identity(ref: WorkloadRef) -> str:
    return inventory().identity_of(ref)


def flow(source: WorkloadRef, destination: WorkloadRef, port: int = 8080, **changes: Any) -> Flow:
    """A flow that a learning mesh sees, as the destination reports it."""
    made = Flow(
        source=source,
        destination=destination,
        port=port,
        protocol=Protocol.TCP,
        direction=Direction.INBOUND,
        reporter="",
        verified=True,
        verdict=Verdict.ALLOW,
        pending=Verdict.DENY,
        reason="learning",
        source_identity=identity(source),
        destination_identity=identity(destination),
        connections=5,
        bytes_sent=100,
        bytes_received=1000,
        first_seen=NOW,
        last_seen=NOW,
    )
    return replace(made, **changes)


GATE = Gate(min_connections=3, min_seconds=10.0, quiet_seconds=10.0, stale_after=1000.0, retire_after=3000.0)
SETTINGS = EngineSettings(gate=GATE)


@asynccontextmanager
async def running(
    path: Path,
    clock: Callable[[], float],
    settings: EngineSettings = SETTINGS,
    store: Store | None = None,
    *,
    with_inventory: bool = True,
) -> AsyncIterator[Engine]:
    """An engine on a database in ``path``; the second one on the same path is a restart."""
    engine = Engine(store or SqliteStore(path / "controller.db"), TRUST_DOMAIN, settings, clock)
    task = asyncio.create_task(engine.run())
    try:
        await asyncio.wait_for(engine.started(), 20)
        if with_inventory:
            await engine.set_inventory(inventory(), "test")
        yield engine
    finally:
        await engine.stop()
        await task


def sent(source: WorkloadRef, destination: WorkloadRef, port: int = 8080, **changes: Any) -> Flow:
    """The same flow as its source's own sidecar reports it."""
    return flow(source, destination, port, direction=Direction.OUTBOUND, **changes)


async def used(engine: Engine, boot_id: str = "boot", sequence: int = 1, **changes: Any) -> None:
    """front -> cart:8080 was used, as both ends say."""
    await engine.ingest(instance("front-0"), boot_id, sequence, 0, [sent(FRONT, CART, **changes)])
    await engine.ingest(instance("cart-0"), boot_id, sequence, 0, [flow(FRONT, CART, **changes)])


async def learned(engine: Engine, clock: Clock, *, sequence: int = 1) -> None:
    """Teach the engine front -> cart:8080 until it is a rule."""
    await used(engine, "boot-a", sequence)
    clock.now += GATE.min_seconds + 1
    await engine.tick()


async def actions(engine: Engine) -> list[str]:
    """What the audit log tells, from the first to the last, once its chain was found whole."""
    page = await engine.audit(1000)
    assert page.intact, page.problem
    return [entry.action for entry in reversed(page.entries)]
