"""The parts of a cluster together: what the engine is given first when its store knows nothing. The API server is not
there; what its watches would say is said by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from controller.cluster_state import PartState
from controller.declarations import Kind
from controller.engine import Engine
from controller.keyring import Keyring
from controller.kube.client import WatchEvent
from controller.kube.cluster import Cluster
from controller.kube.settings import KubernetesSettings
from graph.model import InboundTls, Mode, Snapshot, Verdict
from tests.controller.kube.cluster import CART, IN_CART, TRUST_DOMAIN, deployment, made, pod, replica_set
from tests.controller.mesh import Clock, running
from tests.controller.running import eventually

META = {"namespace": "shop", "uid": "u", "generation": 1, "creationTimestamp": "2023-06-01T00:00:00Z"}
CLOSED = {"metadata": META | {"name": "default"}, "spec": {"ingress": "enforce"}}
OF_ONE = {"metadata": META | {"name": "one", "uid": "v"}, "spec": {"workload": "cart", "inboundTLS": "strict"}}
DENIED = {
    "metadata": META | {"name": "closed", "uid": "w"},
    "spec": {
        "effect": "deny",
        "from": {"workload": "cart"},
        "to": {"address": "192.0.2.9"},
        "port": 443,
        "owner": "anna",
        "reason": "closed",
    },
}


class Told(Cluster):
    """A cluster whose watches have read everything that its inventory is made from."""

    def __init__(self, engine: Engine, keyring: Keyring, clock: Clock) -> None:
        settings = KubernetesSettings(coalesce=0.01)
        super().__init__(settings, engine, keyring, TRUST_DOMAIN, lambda: None, clock)
        self._watches = {str(each.resource).partition(".")[0]: each for each in self.inventory.reflectors}
        for each in self._watches.values():
            each.ledger.begin()
            each._settled(each.ledger.complete("1"))
        self.tell("namespaces", made("Namespace", "shop"))
        self.tell("deployments", deployment())
        self.tell("replicasets", replica_set())
        self.tell("pods", pod("cart-1-a", "10.0.0.2", IN_CART))

    def tell(self, plural: str, document: dict[str, Any]) -> None:
        watch = self._watches[plural]
        change = watch.ledger.event(WatchEvent("ADDED", document))
        assert change is not None
        watch.changed([change])

    async def declare(self) -> None:
        """The custom resources are read at last."""
        modes, overrides = self.resources._held[Kind.MODE].ledger, self.resources._held[Kind.OVERRIDE].ledger
        modes.items = {("shop", each["metadata"]["name"]): each for each in (CLOSED, OF_ONE)}
        overrides.items = {("shop", "closed"): DENIED}
        await self.resources._take()

    @property
    def part(self) -> PartState:
        """How the inventory fares."""
        return next(each for each in self.state().parts if each.name == "inventory")


@asynccontextmanager
async def told(engine: Engine, clock: Clock, path: Path) -> AsyncIterator[Told]:
    ring = Keyring.open(path, TRUST_DOMAIN, 3600.0, clock, Random(1))
    cluster = Told(engine, ring, clock)
    task = asyncio.create_task(cluster.inventory.run())
    try:
        yield cluster
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def pushed(engine: Engine, take: Callable[[Snapshot], None]) -> None:
    """What cart's sidecar is sent."""
    async with engine.watch_snapshot(CART) as snapshots:
        async for each in snapshots:
            take(each)


async def test_a_store_that_knows_nothing_hears_of_modes_before_it_hears_of_workloads(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    sent: list[Snapshot] = []
    caplog.set_level("INFO", "hedgerow.kube")
    async with running(tmp_path, clock, with_inventory=False) as engine, told(engine, clock, tmp_path) as cluster:
        sidecar = asyncio.create_task(pushed(engine, sent.append))
        await eventually(lambda: "it waits for the custom resources" in caplog.text or cluster.inventory.synced)
        cluster.tell("pods", pod("cart-1-b", "10.0.0.3", IN_CART))
        await engine.record("anna", "look", "x", {})  # a change that declares nothing
        await asyncio.sleep(0.1)
        assert not engine.view.inventory.workloads
        assert not cluster.part.synced
        assert "no mode and no override is known yet" in cluster.part.problem
        assert {"inventory", "custom resources"} <= set(cluster.state().waiting)
        await cluster.declare()
        await eventually(lambda: cluster.inventory.synced)
        assert cluster.part.problem == ""
        await asyncio.sleep(0.1)  # what changed while it waited is in it, and is not put together once more
        assert cluster.state().inventories == 1, "the newest alone"
        assert {each.name for each in engine.view.inventory.instances.values()} == {"cart-1-a", "cart-1-b"}
        await eventually(lambda: sent)
        assert {(each.inbound_mode, each.inbound_tls) for each in sent} == {(Mode.ENFORCE, InboundTls.STRICT)}
        assert all(Verdict.DENY in {rule.effect for rule in each.rules} for each in sent)
        assert {key: each.accepted for key, each in engine.view.judgements.items()} == {
            "SegmentationMode/shop/default": True,
            "SegmentationMode/shop/one": True,
            "AccessOverride/shop/closed": True,
        }
        sidecar.cancel()
        await asyncio.gather(sidecar, return_exceptions=True)


async def test_a_store_that_knows_what_is_declared_waits_for_nobody(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock, with_inventory=False) as engine, told(engine, clock, tmp_path) as cluster:
        await cluster.declare()
    async with running(tmp_path, clock, with_inventory=False) as engine, told(engine, clock, tmp_path) as cluster:
        await eventually(lambda: cluster.inventory.synced)
        assert not cluster.resources.synced
        assert engine.view.snapshots[CART].inbound_mode is Mode.ENFORCE


async def test_an_engine_that_ends_is_not_waited_for(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock, with_inventory=False) as engine, told(engine, clock, tmp_path) as cluster:
        waiting = asyncio.create_task(cluster.inventory._permitted())  # type: ignore[arg-type]
        await asyncio.sleep(0)
        assert not waiting.done()
        await engine.stop()
        await asyncio.wait_for(waiting, 10)
