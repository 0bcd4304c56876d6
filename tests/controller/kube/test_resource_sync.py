"""What the engine is given of resources that are edited, deleted, or taken along; a real API server is in e2e."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from controller.declarations import Kind
from controller.engine import Engine
from controller.engine.declared import Acting
from controller.inventory import Inventory
from controller.kube.client import Client, Document
from controller.kube.errors import Forbidden, NoSuchObject, Unreachable
from controller.kube.kinds import CUSTOM_RESOURCES, Resource
from controller.kube.resources.sync import ResourceSync
from graph.model import InboundTls, Mode
from tests.controller.mesh import CART, TRUST_DOMAIN, Clock, running

MODE = "SegmentationMode/shop/default"
OVERRIDE = "AccessOverride/shop/default"
CLOSED = {"ingress": "enforce", "inboundTLS": "strict", "networkPolicy": "apply"}
DENIED = {
    "effect": "deny",
    "from": {"workload": "front"},
    "to": {"workload": "cart"},
    "port": 8080,
    "owner": "anna",
    "reason": "closed",
}


class Server(Client):
    """Knows a definition of each kind and a namespace, as far as it is let."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.definition: Document | Exception = {"metadata": {"uid": "d", "creationTimestamp": "2023-01-01T00:00:00Z"}}
        self.namespace: Document | Exception = {"metadata": {"uid": "n"}}

    async def get(self, resource: Resource, name: str, namespace: str = "", subresource: str = "") -> Document:
        self.asked.append(name)
        found = self.definition if resource is CUSTOM_RESOURCES else self.namespace
        if isinstance(found, Exception):
            raise found
        return found


class Cluster:
    """An engine, and resources by hand."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self.engine = engine
        self.server = Server()
        self.sync = ResourceSync(self.server, engine, clock)

    async def put(self, kind: Kind, generation: int = 1, **spec: Any) -> None:
        meta = {"uid": "u", "generation": generation, "creationTimestamp": "2023-06-01T00:00:00Z"}
        document = {"metadata": {"name": "default", "namespace": "shop", **meta}, "spec": spec}
        self.sync._held[kind].ledger.items["shop", "default"] = document
        await self.sync._take()

    async def drop(self, kind: Kind) -> None:
        del self.sync._held[kind].ledger.items["shop", "default"]
        await self.sync._take()

    @property
    def closed(self) -> tuple[bool, bool, bool]:
        """Whether it enforces, is strict, and has NetworkPolicies."""
        view = self.engine.view
        mode = view.modes[CART]
        return mode.inbound is Mode.ENFORCE, mode.inbound_tls is InboundTls.STRICT, "shop" in view.network_policies

    @property
    def denied(self) -> bool:
        return any(each.startswith("override/") for each in self.engine.view.rules)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    clock = Clock()
    async with running(tmp_path, clock) as engine:
        yield Cluster(engine, clock)


@pytest.mark.parametrize(
    "edit",
    [
        {"reason": "closing\u00a0the shop"},
        {"learning": {"staleAfter": "7d", "retireAfter": "1d"}},
        {"learning": {"minConnections": 0}},
        {"somethingNew": True},
    ],
    ids=["a-blank-that-is-none", "gate", "number", "a-field-of-another-version"],
)
async def test_an_edit_that_can_not_be_read_opens_nothing(cluster: Cluster, edit: dict[str, Any]) -> None:
    await cluster.put(Kind.MODE, **CLOSED)
    assert cluster.closed == (True, True, True)
    await cluster.put(Kind.MODE, 2, **CLOSED, **edit)
    assert cluster.closed == (True, True, True)
    told = cluster.sync.judgement(MODE)
    assert told is not None
    assert (told.accepted, told.generation) == (False, 2)
    assert "what it said before stays in force" in told.problem
    # and one that can be is taken
    await cluster.put(Kind.MODE, 3, ingress="audit")
    assert cluster.closed == (False, False, False)


async def test_what_was_never_read_is_refused_and_says_nothing_of_before(cluster: Cluster) -> None:
    await cluster.put(Kind.MODE, **CLOSED, somethingNew=True)
    assert cluster.closed == (False, False, False)
    told = cluster.sync.judgement(MODE)
    assert told is not None
    assert "stays in force" not in told.problem


async def test_a_denial_goes_on_through_an_edit_that_can_not_be_read_and_an_allow_does_not(cluster: Cluster) -> None:
    await cluster.put(Kind.OVERRIDE, **DENIED)
    await cluster.put(Kind.OVERRIDE, 2, **DENIED, somethingNew=True)
    assert cluster.denied
    await cluster.drop(Kind.OVERRIDE)
    assert not cluster.denied
    await cluster.put(Kind.OVERRIDE, **DENIED | {"effect": "allow"})
    assert cluster.denied, "it is in force"
    await cluster.put(Kind.OVERRIDE, 2, **DENIED | {"effect": "allow"}, somethingNew=True)
    assert not cluster.denied


async def test_who_deletes_one_has_decided_it(cluster: Cluster) -> None:
    await cluster.put(Kind.MODE, **CLOSED)
    await cluster.drop(Kind.MODE)
    assert cluster.closed == (False, False, False)
    assert cluster.server.asked == ["segmentationmodes.hedgerow.dev", "shop"]


@pytest.mark.parametrize(
    "definition",
    [
        {"metadata": {"uid": "d", "deletionTimestamp": "now", "creationTimestamp": "2023-01-01T00:00:00Z"}},
        {"metadata": {"uid": "e", "creationTimestamp": "2023-07-01T00:00:00Z"}},
        NoSuchObject("it is gone"),
        Forbidden("who asks"),
    ],
    ids=["ending", "made-anew", "gone", "unseen"],
)
async def test_what_goes_with_its_definition_stays_in_force(cluster: Cluster, definition: Any) -> None:
    await cluster.put(Kind.MODE, **CLOSED)
    await cluster.put(Kind.OVERRIDE, **DENIED | {"effect": "allow"})
    cluster.server.definition = definition
    await cluster.drop(Kind.MODE)
    await cluster.drop(Kind.OVERRIDE)
    assert cluster.closed == (True, True, True)
    assert cluster.denied


async def test_whoever_changes_it_meanwhile_has_not_deleted_it(cluster: Cluster) -> None:
    await cluster.put(Kind.MODE, **CLOSED)
    cluster.server.definition = NoSuchObject("it is gone")
    with cluster.sync.acting(MODE, Acting("anna", "closes more")):
        await cluster.drop(Kind.MODE)
    assert cluster.closed == (True, True, True)


async def test_whoever_ends_it_is_heard_whatever_ends_beside(cluster: Cluster) -> None:
    await cluster.put(Kind.OVERRIDE, **DENIED)
    cluster.server.definition = cluster.server.namespace = Forbidden("who asks")
    with cluster.sync.acting(OVERRIDE, Acting("anna", "no longer needed"), ends=True):
        await cluster.drop(Kind.OVERRIDE)
    assert not cluster.denied


@pytest.mark.parametrize(
    "namespace",
    [{"metadata": {"deletionTimestamp": "now"}}, NoSuchObject("it is gone"), Forbidden("who asks")],
    ids=["ending", "gone", "unseen"],
)
async def test_what_goes_with_its_namespace_closes_it_to_the_end(cluster: Cluster, namespace: Any) -> None:
    await cluster.put(Kind.MODE, **CLOSED)
    await cluster.put(Kind.OVERRIDE, **DENIED)
    cluster.server.namespace = namespace
    await cluster.drop(Kind.MODE)
    await cluster.drop(Kind.OVERRIDE)
    assert cluster.closed == (True, True, True)
    assert cluster.denied


async def test_a_namespace_that_nobody_is_in_ends_with_its_resources(cluster: Cluster) -> None:
    await cluster.put(Kind.MODE, **CLOSED)
    cluster.server.namespace = NoSuchObject("it is gone")
    await cluster.engine.follow_inventory(Inventory(trust_domain=TRUST_DOMAIN), "test")
    await cluster.drop(Kind.MODE)
    assert not cluster.engine.view.declarations


async def test_an_api_server_that_is_away_ends_nothing(cluster: Cluster) -> None:
    await cluster.put(Kind.MODE, **CLOSED)
    cluster.server.definition = Unreachable("no answer")
    with pytest.raises(Unreachable):
        await cluster.drop(Kind.MODE)
    assert cluster.closed == (True, True, True)
    cluster.server.definition = {"metadata": {"uid": "d", "creationTimestamp": "2023-01-01T00:00:00Z"}}
    await cluster.sync._take()
    assert cluster.closed == (False, False, False)
