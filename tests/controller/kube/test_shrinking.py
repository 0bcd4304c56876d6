"""A cluster that has become much smaller: nothing of the pods that are gone is held by anybody."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from controller.engine import Engine
from controller.inventory import Inventory
from controller.kube.client import WatchEvent
from controller.kube.inventory import following
from controller.kube.inventory.following import ACTOR, Following
from controller.kube.inventory.objects import PodFacts
from controller.kube.settings import KubernetesSettings
from controller.memory import give_back
from graph.model import Instance
from tests.controller.kube.cluster import TRUST_DOMAIN, made, owned_by, pod
from tests.controller.running import running

#: Fewer objects are not worth giving anything back (`controller.kube.inventory.following`).
WORKLOADS, PODS_EACH = 90, 10
#: Of what the pods and their services added to the blocks in use: what may be left when nine tenths of both are gone.
#: Measured: 0.17. While somebody holds one inventory of before: 0.35; when nothing remembered is forgotten: 0.32.
LEFT = 0.25


class Fed:
    """What follows a cluster, told of it by hand."""

    def __init__(self, engine: Engine, shrunk: Callable[[float], None] = lambda _: None) -> None:
        async def take(inventory: Inventory) -> None:
            await engine.follow_inventory(inventory, ACTOR)

        # never asked for anything: no reflector runs
        self.following = Following(None, KubernetesSettings(), TRUST_DOMAIN, take, shrunk)
        self._by_kind = {str(each.resource).partition(".")[0]: each for each in self.following.reflectors}
        for name, reflector in self._by_kind.items():
            reflector.ledger.begin()
            if name == "nodes":
                reflector.ledger.page([made("Node", "one", spec={"podCIDRs": ["10.0.0.0/8"]})])
            reflector._settled(reflector.ledger.complete("1"))

    def tell(self, plural: str, kind: str, document: dict[str, Any]) -> None:
        change = self._by_kind[plural].ledger.event(WatchEvent(kind, document))
        assert change is not None
        self._by_kind[plural].changed([change])

    async def build(self) -> None:
        await self.following._put_together()


def members(number: int) -> list[dict[str, Any]]:
    """The pods of a workload, whose owner is of a kind that nobody follows."""
    owner = owned_by("ConfigMap", f"w{number}", api="v1")
    return [pod(f"w{number}-{each}", f"10.9.{number}.{each + 1}", owner) for each in range(PODS_EACH)]


def behind(number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A service, and its endpoints."""
    name = f"w{number}"
    endpoints = [{"addresses": [each["status"]["podIPs"][0]["ip"]]} for each in members(number)]
    service = {"clusterIP": f"10.8.0.{number + 1}", "ports": [{"name": "web", "port": 80, "targetPort": 8080}]}
    found = made("EndpointSlice", name, labels={"kubernetes.io/service-name": name}, endpoints=endpoints)
    return made("Service", name, spec=service), found | {"ports": [{"name": "web", "port": 8080}]}


async def say(fed: Fed, kind: str, numbers: Iterable[int]) -> None:
    for count, number in enumerate(numbers):
        service, found = behind(number)
        for plural, document in [("services", service), ("endpointslices", found)]:
            fed.tell(plural, kind, document)
        for document in members(number):
            fed.tell("pods", kind, document)
        if count % 5 == 4:
            await fed.build()
    await fed.build()


def held() -> int:
    gc.collect()
    return sys.getallocatedblocks()


async def test_nothing_of_pods_that_are_gone_is_held(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        fed = Fed(run.controller.engine)
        await say(fed, "ADDED", [WORKLOADS])  # whatever the first of them needs stays
        give_back()
        before = held()
        await say(fed, "ADDED", range(WORKLOADS))
        everybody = {each.name for each in run.controller.engine.view.inventory.instances.values()}
        assert len(everybody) > WORKLOADS * PODS_EACH
        grown = held() - before
        await say(fed, "DELETED", (each for each in range(WORKLOADS) if each % 10))
        remaining = {each.name for each in run.controller.engine.view.inventory.instances.values()}
        assert len(remaining) < len(everybody) / 8
        give_back()
        found = [each for each in gc.get_objects() if isinstance(each, Instance | PodFacts)]
        assert sorted({each.name for each in found if each.name in everybody - remaining}) == []
        left = held() - before
        assert left <= LEFT * grown, f"{left} of {grown} blocks are left"


async def test_memory_is_given_back_a_while_after_half_has_gone_and_again_while_more_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    async with running(tmp_path) as run:
        fed = Fed(run.controller.engine)
        follower = fed.following
        monkeypatch.setattr(following, "give_back", lambda: given.append(follower._count()))

        def due() -> asyncio.TimerHandle:
            handle = follower._giving
            assert handle is not None
            return handle

        def let_it_be_due() -> None:
            handle = due()
            given_to = tuple(handle._args or ())
            handle.cancel()
            follower._give_back(*given_to)  # as the timer would

        monkeypatch.setattr(following, "_PAUSE", 3600.0)
        await say(fed, "ADDED", range(WORKLOADS))
        assert follower._giving is None
        await say(fed, "DELETED", range(WORKLOADS * 2 // 3))
        first = due()
        await say(fed, "DELETED", range(WORKLOADS * 2 // 3, WORKLOADS * 9 // 10))
        assert due() is first, "what goes meanwhile is waited for"
        assert given == []
        least = follower._count()
        let_it_be_due()
        assert given == [least]
        let_it_be_due()  # much went after the first was decided: more may have been on its way
        assert given == [least, least]
        assert follower._giving is None
        # what was packed is as it was
        assert follower._assembly.build().instances == run.controller.engine.view.inventory.instances
        await say(fed, "ADDED", range(WORKLOADS * 9 // 10))
        assert len(run.controller.engine.view.inventory.instances) >= WORKLOADS * PODS_EACH


async def test_nothing_is_given_back_after_the_following_has_ended(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        fed = Fed(run.controller.engine)
        task = asyncio.create_task(fed.following.run())
        fed.following._changed.set()
        await say(fed, "ADDED", range(WORKLOADS))
        await say(fed, "DELETED", range(WORKLOADS))
        handle = fed.following._giving
        assert handle is not None
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert handle.cancelled()
        assert fed.following._giving is None


async def test_what_is_left_is_told_when_it_stayed_so_and_not_when_it_grew_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[float] = []
    monkeypatch.setattr(following, "_PAUSE", 3600.0)
    monkeypatch.setattr(following, "_STAYS", 3600.0)

    async with running(tmp_path) as run:
        fed = Fed(run.controller.engine, told.append)
        follower = fed.following

        def due(handle: asyncio.TimerHandle | None) -> None:
            assert handle is not None
            call, given_to = handle._callback, tuple(handle._args or ())
            handle.cancel()
            assert call is not None
            call(*given_to)  # as the timer would

        async def goes() -> None:
            await say(fed, "DELETED", range(WORKLOADS * 9 // 10))
            while follower._giving is not None:
                due(follower._giving)

        await say(fed, "ADDED", range(WORKLOADS))
        assert follower._staying is None
        await goes()
        await say(fed, "ADDED", range(WORKLOADS * 9 // 10))
        due(follower._staying)
        assert told == [], "it is as large as it was"
        assert follower._staying is None
        await goes()
        due(follower._staying)
        (left,) = told
        assert 0.05 < left < 0.2, "a tenth, and what is not of a pod"
