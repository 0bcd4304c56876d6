"""Watches of a real API server through a network that breaks off, falls silent, and has nothing to say for long."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from controller.kube.client import Client
from controller.kube.errors import KubernetesError, Unreachable
from controller.kube.kinds import CONFIG_MAPS
from controller.kube.reflector import Ledger, Reflector, Selection
from e2e.apiserver.simulated import settings
from e2e.harness.apiserver import ApiServer

#: How long anything may take on a machine that does ten other things, seconds.
PATIENCE = 120.0
#: Selects nothing.
NOBODY = "metadata.name=nobody"


class Network:
    """What lies between a client and the API server: it carries bytes, swallows them, or cuts every connection.

    :ivar silent: whether it swallows what the server says
    :ivar cuts: how many connections it has cut
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._open: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self.silent = False
        self.cuts = 0

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        writers = [writer]
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
            writers.append(far_writer)
            self._open.update(writers)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass_on(reader, far_writer, answers=False))
                both.create_task(self._pass_on(far_reader, writer, answers=True))
        except* OSError:
            pass  # cut, or the server is away: the client finds out by itself
        finally:
            for each in writers:
                self._open.discard(each)
                each.transport.abort()
                with contextlib.suppress(OSError):
                    await each.wait_closed()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool) -> None:
        while data := await reader.read(65536):
            if not (answers and self.silent):
                writer.write(data)
                await writer.drain()
        raise ConnectionResetError("one end has closed; so does the other")

    def cut(self) -> None:
        """Reset every connection."""
        self.cuts += len(self._open)
        for each in self._open:
            each.transport.abort()

    async def end(self) -> None:
        for each in self._serving:
            each.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)


@pytest.fixture
async def network(apiserver: ApiServer, tmp_path: Path) -> AsyncIterator[tuple[Network, Path]]:
    """A network, and a kubeconfig whose way leads through it."""
    made = Network(urlsplit(apiserver.url).port or 0)
    server = await asyncio.start_server(made.carry, "127.0.0.1", 0)
    document = yaml.safe_load(apiserver.kubeconfig.read_text())
    port = server.sockets[0].getsockname()[1]
    document["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{port}"
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump(document))
    try:
        yield made, path
    finally:
        server.close()
        await made.end()
        await server.wait_closed()


def config_map(name: str, value: int) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"value": str(value)}}


async def version_of(client: Client, namespace: str) -> str:
    return [page async for page in client.pages(CONFIG_MAPS, namespace)][-1].resource_version


async def test_a_watch_that_sees_nothing_is_told_how_far_it_is(apiserver: ApiServer, namespace: str) -> None:
    """Bookmarks: without them a quiet watch would have to begin with a list again after others were busy."""
    elsewhere = apiserver.create_namespace()
    async with Client(settings(apiserver.kubeconfig)) as client:
        before = await version_of(client, namespace)
        ledger = Ledger(str)
        ledger.begin()
        ledger.complete(before)
        told: list[str] = []

        async def listen() -> None:
            while not told:
                # the server says it two seconds before it ends a watch, and else once a minute
                async for group in client.watch(CONFIG_MAPS, before, namespace, fields=NOBODY, seconds=10):
                    told.extend(event.kind for event in group)
                    for event in group:
                        assert ledger.event(event) is None

        async with asyncio.timeout(PATIENCE):
            listening = asyncio.create_task(listen())
            busy = 0
            while not listening.done():
                busy += 1
                await client.create(CONFIG_MAPS, config_map(f"m{busy}", busy), elsewhere)
                await asyncio.wait([listening], timeout=0.5)
            await listening
        assert set(told) == {"BOOKMARK"}
        assert int(ledger.version) > int(before)
    apiserver.delete_namespace(elsewhere)


async def test_a_network_that_falls_silent_is_noticed(network: tuple[Network, Path], namespace: str) -> None:
    """Neither end of a connection hears that the other has gone; bookmarks should come, and do not."""
    between, kubeconfig = network
    async with Client(settings(kubeconfig)) as client:
        version = await version_of(client, namespace)

        async def watch() -> None:
            async for _ in client.watch(CONFIG_MAPS, version, namespace, seconds=3600, silence=1.0):
                between.silent = True

        with pytest.raises(Unreachable) as noticed:
            await asyncio.wait_for(watch(), PATIENCE)
        assert between.silent, "it was taken before"
        assert noticed.value.passing
        between.silent = False
        assert await version_of(client, namespace), "and it goes on"


async def test_connections_that_break_off_again_and_again_lose_nothing(
    network: tuple[Network, Path], apiserver: ApiServer, namespace: str
) -> None:
    between, kubeconfig = network
    dice = random.Random(7)
    async with Client(settings(kubeconfig)) as client, Client(settings(apiserver.kubeconfig)) as direct:
        told: dict[tuple[str, str], str] = {}

        def tell(changes: list[Any]) -> None:
            for change in changes:
                assert told.get(change.key) == change.before, "a change begins where the last one ended"
                if change.after is None:
                    del told[change.key]
                else:
                    told[change.key] = change.after

        reflector = Reflector(
            client, CONFIG_MAPS, Ledger(lambda each: str(each.get("data"))), tell, Selection(namespace=namespace)
        )

        async def follow() -> None:
            while True:
                with contextlib.suppress(KubernetesError):
                    await reflector.run()
                await asyncio.sleep(0.01)

        following = asyncio.create_task(follow())
        try:
            there: set[str] = set()
            for number in range(120):
                name = f"m{dice.randrange(12)}"
                if name not in there:
                    await direct.create(CONFIG_MAPS, config_map(name, number), namespace)
                    there.add(name)
                elif dice.random() < 0.5:
                    await direct.delete(CONFIG_MAPS, name, namespace)
                    there.discard(name)
                else:
                    await direct.replace(CONFIG_MAPS, name, config_map(name, number), namespace)
                if number % 10 == 9:
                    async with asyncio.timeout(PATIENCE):
                        while reflector.watching is None:  # noqa: ASYNC110  # nobody announces it
                            await asyncio.sleep(0.01)
                    between.cut()
            wanted = {
                (namespace, each["metadata"]["name"]): str(each.get("data"))
                for each in await direct.every(CONFIG_MAPS, namespace)
            }
            async with asyncio.timeout(PATIENCE):
                while told != wanted:  # which change is the last one nobody says
                    assert not following.done()
                    await asyncio.sleep(0.05)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        counts = reflector.ledger.counts
        assert between.cuts >= 12
        assert counts.watches >= 12
        assert counts.lists <= 2, "a watch goes on where it was: it does not begin with a list again"
