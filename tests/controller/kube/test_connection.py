"""What is left of a client's connections when it is closed, with a server that does not do its part."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from controller.kube.client import Client
from controller.kube.kinds import PODS
from controller.kube.settings import KubernetesSettings
from controller.kube.webhook_keys import make

NAME = "api.test.svc"


class SilentServer:
    """Takes TLS connections and hears what comes. It answers nothing, not even a farewell.

    :param handshakes: None: it does not even take up TLS
    """

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port = int(self._listener.getsockname()[1])
        self.asked = asyncio.Event()
        self._open: list[Any] = []

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            while True:
                taken, _ = await loop.sock_accept(self._listener)
                self._open.append(taken)
                group.create_task(self._hear(taken))

    async def _hear(self, taken: socket.socket) -> None:
        """TLS by hand, so that nothing is closed that nobody closes here."""
        loop = asyncio.get_running_loop()
        if self._tls is None:
            await loop.sock_recv(taken, 1)
            self.asked.set()
            return
        inward, outward = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = self._tls.wrap_bio(inward, outward, server_side=True)
        shaken = False
        while not self.asked.is_set():
            try:
                if not shaken:
                    tls.do_handshake()
                    shaken = True
                if tls.read(65536):
                    self.asked.set()
            except ssl.SSLWantReadError:
                await loop.sock_sendall(taken, outward.read())
                inward.write(await loop.sock_recv(taken, 65536))

    def close(self) -> None:
        for each in (self._listener, *self._open):
            each.close()


@asynccontextmanager
async def serving(folder: Path, *, tls: bool = True) -> AsyncIterator[tuple[SilentServer, Client]]:
    pair = make(NAME, time.time(), 3600)
    for file, content in (("cert.pem", pair.certificate), ("key.pem", pair.key), ("ca.pem", pair.authority)):
        (folder / file).write_bytes(content)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    server = SilentServer(context if tls else None)
    cluster = {
        "server": f"https://127.0.0.1:{server.port}",
        "certificate-authority": str(folder / "ca.pem"),
        "tls-server-name": NAME,
    }
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    (folder / "config").write_text(json.dumps(config))
    task = asyncio.create_task(server.serve())
    try:
        yield server, Client(KubernetesSettings(kubeconfig=folder / "config"))
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        server.close()


def left(port: int) -> list[socket.socket]:
    """Sockets of this process that are connected to this port."""
    found = []
    for each in gc.get_objects():
        if isinstance(each, socket.socket) and each.fileno() >= 0:
            try:
                peer = each.getpeername()
            except OSError:
                continue
            if peer[:2] == ("127.0.0.1", port):
                found.append(each)
    return found


async def watching(client: Client) -> None:
    async for _ in client.watch(PODS, "1"):
        pass


async def listing(client: Client) -> None:
    await client.every(PODS)


@pytest.mark.parametrize("work", [watching, listing])
@pytest.mark.parametrize("tls", [True, False], ids=["asked", "during the handshake"])
async def test_a_request_that_is_given_up_before_its_answer_leaves_no_socket(
    tmp_path: Path, work: Any, tls: bool
) -> None:
    async with serving(tmp_path, tls=tls) as (server, client):
        tasks = [asyncio.create_task(work(client)) for _ in range(3)]
        async with asyncio.timeout(60):
            await server.asked.wait()
        assert left(server.port)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await client.close()
        assert left(server.port) == []


async def test_whoever_is_cancelled_while_closing_does_not_keep_it_open(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, client):
        task = asyncio.create_task(listing(client))
        async with asyncio.timeout(60):
            await server.asked.wait()
        closing = asyncio.create_task(client.close())
        await asyncio.sleep(0)
        task.cancel()
        closing.cancel()
        await asyncio.gather(task, closing, return_exceptions=True)
        async with asyncio.timeout(60):
            while left(server.port):  # noqa: ASYNC110  # nobody announces it
                await asyncio.sleep(0.01)
