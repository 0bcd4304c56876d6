"""What was applied to a namespace ends with it: a later one of the same name is somebody else's."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from controller.declarations import ModeDeclaration, NetworkPolicyMode, OverrideDeclaration, Source
from controller.engine import Engine
from controller.fences import Fence
from controller.inventory import read_inventory
from controller.kube import network_policy_applying
from controller.kube.client import FIELD_MANAGER
from controller.kube.errors import NoSuchObject, Unreachable
from controller.kube.kinds import NAMESPACES
from controller.kube.network_policies import NetworkPolicyKeeper
from controller.overrides import OverrideRequest
from graph.model import Mode, Protocol, Verdict
from tests.controller.mesh import CART, FRONT, INVENTORY, TRUST_DOMAIN, Clock, inventory, running

OLD, NEW = "2023-11-14T00:00:00Z", "2023-11-15T12:00:00Z"  # a day before the tests' clock begins, and after
DAY = 2 * 86400


class ApiServer:
    """Namespaces and NetworkPolicies, as far as the keeper asks for them."""

    def __init__(self) -> None:
        self.namespaces: dict[str, tuple[str, str]] = {}
        self.policies: dict[tuple[str, str], dict[str, Any]] = {}
        self.away = False
        self._numbers = itertools.count(1)

    def make(self, namespace: str, created: str = OLD) -> None:
        """A namespace, with nothing in it."""
        self.namespaces[namespace] = (f"uid-{next(self._numbers)}", created)
        for key in [key for key in self.policies if key[0] == namespace]:
            del self.policies[key]

    def remove(self, namespace: str) -> None:
        self.make(namespace)
        del self.namespaces[namespace]

    async def get(self, resource: Any, name: str, namespace: str = "", subresource: str = "") -> dict[str, Any]:
        assert resource is NAMESPACES
        if self.away:
            raise Unreachable("no answer")
        if name not in self.namespaces:
            raise NoSuchObject(f"namespace {name} is not there")
        uid, created = self.namespaces[name]
        return {"metadata": {"name": name, "uid": uid, "creationTimestamp": created}}

    async def every(self, resource: Any, namespace: str = "", **_: Any) -> list[dict[str, Any]]:
        return [held for (space, _), held in self.policies.items() if space == namespace]

    async def apply(
        self, resource: Any, name: str, body: Any, namespace: str, *, dry_run: bool = False, **_: Any
    ) -> dict[str, Any]:
        managed = [{"manager": FIELD_MANAGER, "operation": "Apply", "fieldsV1": {"f:spec": {}}}]
        meta = body["metadata"] | {"uid": name, "resourceVersion": "1", "managedFields": managed}
        made = {**body, "metadata": meta}
        if not dry_run:
            self.policies[namespace, name] = made
        return made

    async def delete(self, resource: Any, name: str, namespace: str = "", **_: Any) -> None:
        del self.policies[namespace, name]


class Resources:
    """No SegmentationMode is told anything."""

    synced = True

    def declarations(self) -> tuple[()]:
        return ()


class Mesh:
    def __init__(self, engine: Engine, server: ApiServer, clock: Clock) -> None:
        self.engine, self.server = engine, server
        resources: Any = Resources()
        client: Any = server
        self.keeper = NetworkPolicyKeeper(client, engine, resources, "hedgerow-system", clock, lambda: True)

    async def round(self) -> None:
        self.keeper._held.ledger.items = dict(self.server.policies)
        for each in self.keeper._known.values():
            each.stale = True
        await self.keeper._round()
        assert self.keeper.problems.shown() == ()

    @property
    def fence(self) -> Fence:
        return self.engine.view.fences.get("shop", Fence())

    def open(self) -> bool:
        """Whether what is applied lets front call cart."""
        return any(
            (peer.get("podSelector") or {}).get("matchLabels") == {"app": "cart"}
            for rule in self.server.policies["shop", "hedgerow-front"]["spec"]["egress"]
            for peer in rule.get("to") or ()
        )


def source(name: str) -> Source:
    return Source("shop", name, f"{name:0<8}-uid", 1, 0.0)


CLOSED = ModeDeclaration(
    source("mode"), inbound=Mode.ENFORCE, outbound=Mode.ENFORCE, network_policy=NetworkPolicyMode.APPLY
)
ALLOWED = OverrideDeclaration(
    source("allow"), OverrideRequest(Verdict.ALLOW, FRONT, CART, 8080, Protocol.TCP, "anna", "release 7", None)
)
LABELLED = INVENTORY.replace("name: cart, ports", "name: cart, labels: {app: cart}, ports")
GONE = "\n".join(line for line in LABELLED.splitlines() if "shop" not in line and line != "services:")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> ApiServer:
    monkeypatch.setattr(network_policy_applying, "BATCH_PAUSE", 0.0)
    made = ApiServer()
    made.make("shop")
    return made


@asynccontextmanager
async def pinned(path: Path, clock: Clock, server: ApiServer) -> AsyncIterator[Mesh]:
    """Somebody went back to the set that lets front call cart; the policy of today does not."""
    async with running(path, clock, with_inventory=False) as engine:
        mesh = Mesh(engine, server, clock)
        await engine.follow_inventory(inventory(LABELLED), "k")
        await engine.declare([CLOSED, ALLOWED])
        await mesh.round()
        assert mesh.open()
        await engine.declare([CLOSED])
        await mesh.round()
        assert not mesh.open()
        await engine.pin_network_policies("shop", 1, "anna", "cart is needed")
        await mesh.round()
        assert mesh.open()
        yield mesh


async def forgotten(engine: Engine) -> list[dict[str, Any]]:
    found = (await engine.audit(1000)).entries
    return [json.loads(each.detail) for each in found if each.action == "network-policies.forget"]


async def test_a_pin_stays_with_its_namespace_also_when_the_inventory_loses_it_and_over_restarts(
    tmp_path: Path, clock: Clock, server: ApiServer
) -> None:
    async with pinned(tmp_path, clock, server) as mesh:
        await mesh.engine.follow_inventory(read_inventory(GONE.encode(), TRUST_DOMAIN), "k")
        await mesh.engine.declare([])
        await mesh.round()  # ours are taken out, and then nothing concerns us there
        await mesh.round()
        assert ("shop", "hedgerow-front") not in server.policies
        server.away = True
        await mesh.round()
        server.away = False
    async with running(tmp_path, clock, with_inventory=False) as engine:
        mesh = Mesh(engine, server, clock)
        await mesh.round()
        await engine.follow_inventory(inventory(LABELLED), "k")
        await engine.declare([CLOSED])
        await mesh.round()
        assert (mesh.fence.pinned, mesh.open()) == (1, True)
        assert await forgotten(engine) == []


async def test_a_namespace_that_is_gone_takes_its_sets_and_its_pin_along(
    tmp_path: Path, clock: Clock, server: ApiServer
) -> None:
    async with pinned(tmp_path, clock, server) as mesh:
        server.remove("shop")
        await mesh.engine.follow_inventory(read_inventory(GONE.encode(), TRUST_DOMAIN), "k")
        await mesh.engine.declare([])
        await mesh.round()
        assert "shop" not in mesh.engine.view.fences
        assert await forgotten(mesh.engine) == [{"revisions": [1, 2], "pinned": 1, "pinned_by": "anna"}]
    async with running(tmp_path, clock, with_inventory=False) as engine:
        assert "shop" not in engine.view.fences


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_namespace_that_is_made_anew_under_the_name_begins_anew(
    tmp_path: Path, clock: Clock, server: ApiServer, restarted: bool
) -> None:
    """So quickly that neither the inventory nor the modes were ever without it."""
    async with pinned(tmp_path, clock, server) as mesh:
        server.make("shop", NEW)
        if not restarted:
            await mesh.round()
            assert (mesh.fence.pinned, mesh.open()) == (None, False)
            assert [each.revision for each in mesh.fence.sets] == [1]
    clock.now += DAY
    async with running(tmp_path, clock, with_inventory=False) as engine:
        mesh = Mesh(engine, server, clock)
        await mesh.round()
        assert (mesh.fence.pinned, mesh.open()) == (None, False)
        assert len(await forgotten(engine)) == 1
        assert mesh.fence.uid == server.namespaces["shop"][0]


async def test_sets_without_a_pin_are_not_left_to_the_next_namespace_either(
    tmp_path: Path, clock: Clock, server: ApiServer
) -> None:
    async with pinned(tmp_path, clock, server) as mesh:
        await mesh.engine.pin_network_policies("shop", "newest", "anna", "no longer")
        await mesh.round()
        server.make("shop", NEW)
        await mesh.round()
        assert [each.revision for each in mesh.fence.sets] == [1], "there is nothing to go back to"


async def test_sets_of_which_no_uid_was_written_down_are_judged_by_the_namespaces_age(
    tmp_path: Path, clock: Clock, server: ApiServer
) -> None:
    async with pinned(tmp_path, clock, server) as mesh:
        state = mesh.engine._worker._state
        assert state is not None
        document = {key: value for key, value in mesh.fence.to_dict().items() if key != "uid"}
        state.fences.put("shop", Fence.from_dict(document))  # as an earlier release stored it
        state.changed()
        await mesh.engine.tick()
        server.make("shop", OLD)
        await mesh.round()
        assert mesh.fence.pinned == 1
        server.make("shop", NEW)
        await mesh.round()
        assert mesh.fence.pinned is None
