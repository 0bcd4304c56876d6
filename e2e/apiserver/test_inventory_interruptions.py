"""What the inventory makes of an API server that goes away, comes back, forgets, and answers in parts.

The API server is started in this thread: it ends with the one that started it. It is stopped in another one: it says
farewell to its watches first, which has to be heard.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from controller.app import Controller
from controller.kube.client import Client
from controller.kube.kinds import PODS
from controller.settings import Settings
from e2e.apiserver.simulated import TRUST_DOMAIN, Kubelet, deploy, deployment, pod_spec, service, watching
from e2e.harness.apiserver import ApiServer
from graph.model import WorkloadRef


async def make_pods(client: Client, namespace: str, *names: str) -> None:
    for name in names:
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod_spec()}
        await client.create(PODS, body, namespace)


def pods_of(inventory: Any, namespace: str) -> set[str]:
    return {each.name for each in inventory.instances.values() if each.workload.namespace == namespace}


async def test_while_the_api_server_is_away_the_inventory_stays_and_then_goes_on(
    apiserver: ApiServer, client: Client, kubelet: Kubelet, namespace: str
) -> None:
    await make_pods(client, namespace, "before")
    await kubelet.run(namespace, "before")
    async with watching(apiserver.kubeconfig) as watcher:
        await watcher.until(lambda now: pods_of(now, namespace) == {"before"})
        taken = watcher.taken
        await asyncio.to_thread(apiserver.stop)
        try:
            watches = [each for each in watcher.supervision.parts if each.part.name.startswith("watch")]
            await watcher.until_true(lambda: all(each.problem for each in watches))
            assert watcher.taken == taken, "nothing changed"
            assert pods_of(watcher.inventory, namespace) == {"before"}
        finally:
            apiserver.start()
        await make_pods(client, namespace, "after")
        await kubelet.run(namespace, "after")
        await client.delete(PODS, "before", namespace, grace=0)
        await watcher.until(lambda now: pods_of(now, namespace) == {"after"})


async def test_after_a_forgotten_version_nothing_is_lost(
    apiserver: ApiServer, client: Client, kubelet: Kubelet, namespace: str
) -> None:
    """410 Gone: what came, went and changed while nobody watched, and the server has no history of it any more."""
    await make_pods(client, namespace, "stays", "goes", "moves")
    for name in ("stays", "goes", "moves"):
        await kubelet.run(namespace, name)
    async with watching(apiserver.kubeconfig) as watcher:
        known = await watcher.until(lambda now: pods_of(now, namespace) == {"stays", "goes", "moves"})
        stays = known.instances[f"{namespace}/stays"]
        await watcher.pause()
        await client.delete(PODS, "goes", namespace, grace=0)
        await client.delete(PODS, "moves", namespace, grace=0)
        await make_pods(client, namespace, "moves", "comes")
        moved, _ = await kubelet.run(namespace, "moves"), await kubelet.run(namespace, "comes")
        await deploy(client, namespace, deployment("cart", 0), service("cart", {"app": "cart"}))
        apiserver.compact()
        await asyncio.to_thread(apiserver.stop)
        apiserver.start()
        watcher.resume()
        known = await watcher.until(
            lambda now: (
                pods_of(now, namespace) == {"stays", "moves", "comes"}
                and WorkloadRef(namespace, "cart") in now.workloads
                and now.instances[f"{namespace}/moves"].address == moved
                and f"{namespace}/cart" in now.services
            )
        )
        assert known.instances[f"{namespace}/stays"] is stays, "what did not change is not made again"
        assert watcher.following.figures().counts["pods"].expired >= 1
    async with watching(apiserver.kubeconfig) as other:
        fresh = await other.until(lambda now: pods_of(now, namespace) == {"stays", "moves", "comes"})
    assert fresh.services[f"{namespace}/cart"] == known.services[f"{namespace}/cart"]


async def test_a_long_list_comes_in_pages_of_one_moment(apiserver: ApiServer, client: Client, namespace: str) -> None:
    await make_pods(client, namespace, *(f"p{number}" for number in range(5)))
    pages = [page async for page in client.pages(PODS, namespace, limit=2)]
    assert [len(page.items) for page in pages] == [2, 2, 1]
    assert len({page.resource_version for page in pages}) == 1
    assert not pages[-1].more


@contextlib.asynccontextmanager
async def controller(state: Path, kubeconfig: Path) -> AsyncIterator[Controller]:
    document = {
        "state_dir": str(state),
        "trust_domain": TRUST_DOMAIN,
        "grpc_listen": "127.0.0.1:0",
        "issuer_listen": "127.0.0.1:0",
        "web_listen": "127.0.0.1:0",
        "kubernetes": {"kubeconfig": str(kubeconfig), "coalesce": 0.02, "injector_certificate": "external"},
    }
    made = Controller(Settings.parse(document, state))
    started = asyncio.Event()
    task = asyncio.create_task(made.run(started.set))
    waiting = asyncio.create_task(started.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if task.done():
        task.result()
    try:
        yield made
    finally:
        made.stop()
        await task


async def until(made: Controller, condition: Any) -> Any:
    async with asyncio.timeout(120), made.engine.subscribe() as changes:
        while not condition(made.engine.view.inventory):
            await anext(changes)
    return made.engine.view.inventory


async def test_a_controller_that_starts_while_the_api_server_is_away_goes_on_from_what_it_stored(
    apiserver: ApiServer, client: Client, kubelet: Kubelet, namespace: str, tmp_path: Path
) -> None:
    await make_pods(client, namespace, "one")
    await kubelet.run(namespace, "one")
    async with controller(tmp_path / "state", apiserver.kubeconfig) as made:
        await until(made, lambda now: pods_of(now, namespace) == {"one"})
    await asyncio.to_thread(apiserver.stop)
    away = True
    try:
        async with controller(tmp_path / "state", apiserver.kubeconfig) as made:
            assert pods_of(made.engine.view.inventory, namespace) == {"one"}, "the doors are open, with what was known"
            apiserver.start()
            away = False
            await make_pods(client, namespace, "two")
            await kubelet.run(namespace, "two")
            await until(made, lambda now: pods_of(now, namespace) == {"one", "two"})
    finally:
        if away:
            apiserver.start()
