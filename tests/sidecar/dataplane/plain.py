"""The plain side of a connection in the test's own loop, without anything around its socket that could hide an end."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket

from tests.sidecar.dataplane import applications as apps
from tests.sidecar.dataplane.misbehaviour import HOST, PATIENCE, Seen


class Plain:
    """An application, or a client."""

    def __init__(self, sock: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self.sock = sock
        self.data = b""

    async def say(self, data: bytes) -> None:
        await self._loop.sock_sendall(self.sock, data)

    async def see(self, enough: int = 0) -> Seen:
        """Everything up to the end, or the first ``enough`` bytes."""
        async with asyncio.timeout(PATIENCE):
            while not enough or len(self.data) < enough:
                try:
                    data = await self._loop.sock_recv(self.sock, 65536)
                except ConnectionResetError:
                    return Seen(self.data, "reset")
                if not data:
                    return Seen(self.data, "end")
                self.data += data
        return Seen(self.data, "open")

    async def broken(self) -> None:
        """It has heard an end, and then the connection was reset."""
        poll = select.poll()
        poll.register(self.sock, 0)
        await apps.until(lambda: poll.poll(0))


async def accepted(listener: socket.socket) -> socket.socket:
    async with asyncio.timeout(PATIENCE):
        sock, _ = await asyncio.get_running_loop().sock_accept(listener)
    sock.setblocking(False)
    return sock


def listening(stack: contextlib.AsyncExitStack) -> socket.socket:
    listener = socket.create_server((HOST, 0))
    listener.setblocking(False)
    stack.callback(listener.close)
    return listener
