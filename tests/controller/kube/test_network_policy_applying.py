"""Which policy of a workload that left the inventory is deleted, and when."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from controller.compiler.networkpolicy import WORKLOAD_ANNOTATION
from controller.compiler.reading import select
from controller.inventory import Inventory, read_inventory
from controller.kube import network_policy_applying
from controller.kube.answered import Page
from controller.kube.kinds import NETWORK_POLICIES, PODS
from controller.kube.network_policy_applying import Applier, Known
from tests.controller.mesh import TRUST_DOMAIN, Clock

AFTER = 30.0
EMPTY = read_inventory(
    b"apiVersion: hedgerow.dev/v1alpha1\nkind: Inventory\nnamespaces: [{name: shop}]\n", TRUST_DOMAIN
)
POLICY: dict[str, Any] = {
    "metadata": {
        "name": "hedgerow-cart",
        "namespace": "shop",
        "uid": "u",
        "resourceVersion": "1",
        "annotations": {WORKLOAD_ANNOTATION: "shop/cart"},
    },
    "spec": {
        "podSelector": {
            "matchLabels": {"app": "cart"},
            "matchExpressions": [{"key": "canary", "operator": "DoesNotExist"}],
        }
    },
}


def pod(**labels: str) -> dict[str, Any]:
    return {"metadata": {"name": "cart-1", "uid": "1", "labels": labels}, "spec": {}}


class ApiServer:
    def __init__(self) -> None:
        self.pods: list[dict[str, Any]] = []
        self.deleted: list[str] = []
        self.asked = 0

    async def pages(self, resource: Any, namespace: str, *, labels: str, fields: str) -> AsyncIterator[Page]:
        assert (resource, namespace, fields) == (PODS, "shop", "status.phase!=Succeeded,status.phase!=Failed")
        self.asked += 1
        wanted = {"matchLabels": dict(each.split("=") for each in labels.split(","))}
        for each in self.pods:  # each on a page of its own
            if select(wanted, each["metadata"]["labels"]):
                yield Page((each,), "1", "")

    async def delete(self, resource: Any, name: str, namespace: str, **_: Any) -> None:
        assert (resource, namespace) == (NETWORK_POLICIES, "shop")
        self.deleted.append(name)


class Pruning:
    def __init__(self) -> None:
        self.server, self.clock, self.inventory = ApiServer(), Clock(), EMPTY
        client: Any = self.server
        engine: Any = None
        self.applier = Applier(client, engine, self.clock, lambda: None, AFTER)
        self.known = Known()

    async def round(self) -> list[str]:
        view: Any = View(self.inventory)
        await self.applier._prune(self.known, [POLICY], view)
        return self.server.deleted


class View:
    def __init__(self, inventory: Inventory) -> None:
        self.inventory = inventory


@pytest.fixture
def pruning(monkeypatch: pytest.MonkeyPatch) -> Pruning:
    monkeypatch.setattr(network_policy_applying, "BATCH_PAUSE", 0.0)
    return Pruning()


def knowing(uid: str) -> Inventory:
    """An inventory in which a pod of that name is another workload's."""
    found = read_inventory(
        b"apiVersion: hedgerow.dev/v1alpha1\nkind: Inventory\nnamespaces: [{name: shop}]\n"
        b"workloads: [{namespace: shop, name: basket}]\n"
        b"instances: [{name: cart-1, workload: shop/basket, address: 10.0.0.1}]\n",
        TRUST_DOMAIN,
    )
    return replace(found, instances={key: replace(instance, uid=uid) for key, instance in found.instances.items()})


async def test_the_policy_of_what_has_left_is_deleted_after_a_while(pruning: Pruning) -> None:
    assert await pruning.round() == []
    assert pruning.server.asked == 0
    pruning.clock.now += AFTER
    assert await pruning.round() == ["hedgerow-cart"]


async def test_a_policy_stays_while_a_pod_runs_that_it_selects_and_that_is_nobodys(pruning: Pruning) -> None:
    pruning.server.pods = [pod(app="front"), pod(app="cart", canary="yes"), pod(app="cart")]
    await pruning.round()
    for _ in range(3):
        pruning.clock.now += AFTER
        assert await pruning.round() == []
        await pruning.round()
    assert pruning.server.asked == 3, "no more often than there is time to wait"
    pruning.server.pods = []
    pruning.clock.now += AFTER
    assert await pruning.round() == ["hedgerow-cart"]


@pytest.mark.parametrize(("uid", "deleted"), [("1", ["hedgerow-cart"]), ("2", [])], ids=["that one", "another"])
async def test_a_pod_that_is_another_workloads_by_now_holds_nothing(
    pruning: Pruning, uid: str, deleted: list[str]
) -> None:
    pruning.server.pods = [pod(app="cart")]
    pruning.inventory = knowing(uid)
    await pruning.round()
    pruning.clock.now += AFTER
    assert await pruning.round() == deleted


@pytest.mark.parametrize(
    "unreached", [pod(app="cart") | {"spec": {"hostNetwork": True}}, pod(app="cart", canary="yes"), pod(app="front")]
)
async def test_a_pod_that_the_policy_does_not_reach_holds_nothing(pruning: Pruning, unreached: dict[str, Any]) -> None:
    pruning.server.pods = [unreached]
    await pruning.round()
    pruning.clock.now += AFTER
    assert await pruning.round() == ["hedgerow-cart"]
