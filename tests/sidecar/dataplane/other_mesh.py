"""Sidecars of another mesh, which know plain SPIFFE mutual TLS and nothing of our tunnels.

They pass on exactly what one side did to the other: bytes; the end of a direction, which is a close_notify in TLS and
a FIN in TCP; and a reset, which is one of the TCP connection on both sides. An end of the TCP connection below TLS
that no close_notify came before is no end, and is passed on as a reset.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Self

from certs.ca import CertificateAuthority
from tests.sidecar.dataplane.foreign import BACK, FRONT, HOST, Contextual, TlsPeer
from tests.sidecar.dataplane.misbehaviour import PATIENCE, reset

_SIZE = 1 << 16

type _PassOn = Callable[[socket.socket], Awaitable[None]]


class OtherMesh:
    """Both kinds of sidecars of another mesh: of clients and of servers. A context; each fault of theirs is raised."""

    def __init__(self, authority: CertificateAuthority) -> None:
        self._client = Contextual(authority, FRONT).client_offering("istio")
        self._server = Contextual(authority, BACK).server
        self._listeners: list[tuple[socket.socket, _PassOn]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._faults: list[BaseException] = []

    def calls(self, port: int) -> int:
        """The entrance of a sidecar that passes its clients on, by TLS, to ``port``."""

        async def pass_on(plain: socket.socket) -> None:
            try:
                peer = await TlsPeer.connect(port, self._client)
            except (ConnectionError, ssl.SSLError):
                reset(plain)
                return
            await _relay(plain, peer)

        return self._listen(pass_on)

    def serves(self, port: int) -> int:
        """The entrance of a sidecar that takes TLS clients for the application at ``port``."""

        async def pass_on(sock: socket.socket) -> None:
            peer = TlsPeer(sock, self._server, server_side=True)
            with socket.socket() as plain:
                plain.setblocking(False)
                with contextlib.suppress(ConnectionError, ssl.SSLError):
                    await peer.shake_hands()
                    try:
                        await asyncio.get_running_loop().sock_connect(plain, (HOST, port))
                    except ConnectionResetError:  # by an application that may have said something first
                        await _relay(plain, peer, deaf=True)
                    else:
                        await _relay(plain, peer)
                    return
                peer.reset()

        return self._listen(pass_on)

    def _listen(self, pass_on: _PassOn) -> int:
        listener = socket.create_server((HOST, 0))
        listener.setblocking(False)
        self._listeners.append((listener, pass_on))
        port: int = listener.getsockname()[1]
        return port

    async def _accept(self, listener: socket.socket, pass_on: _PassOn) -> None:
        async def carry(sock: socket.socket) -> None:
            with sock:
                await pass_on(sock)

        while True:
            sock, _ = await asyncio.get_running_loop().sock_accept(listener)
            sock.setblocking(False)
            self._start(carry(sock))

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (fault := task.exception()):
            self._faults.append(fault)

    async def __aenter__(self) -> Self:
        self._servers = [self._start(self._accept(listener, pass_on)) for listener, pass_on in self._listeners]
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self._servers:
            server.cancel()
        try:
            async with asyncio.timeout(PATIENCE):
                while self._tasks:
                    await asyncio.wait(self._tasks)
        finally:
            for task in self._tasks:
                task.cancel()
            for listener, _ in self._listeners:
                listener.close()
        if self._faults:
            raise self._faults[0]


class _Lost(Exception):
    """One of the two connections was reset, or ended where TLS says that nothing ended."""


class _Pair:
    """One connection of TCP and one of TLS, each passed on to the other."""

    def __init__(self, plain: socket.socket, peer: TlsPeer, deaf: bool) -> None:
        self._plain, self._peer = plain, peer
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._loop = asyncio.get_running_loop()
        #: Ends that take nothing any more. What they had said before that is passed on first.
        self._deaf: set[object] = {plain} if deaf else set()
        self._over: set[object] = set()

    async def outwards(self) -> None:
        """From TCP to TLS."""
        plain, peer = self._plain, self._peer
        while data := await self._heard(plain, self._loop.sock_recv(plain, _SIZE)):
            if not await self._told(peer, peer.write(data)):
                return
        await self._told(peer, peer.end())

    async def inwards(self) -> None:
        """From TLS to TCP."""
        plain, peer = self._plain, self._peer
        while data := await self._heard(peer, peer.read()):
            if not await self._told(plain, self._loop.sock_sendall(plain, data)):
                return
        with contextlib.suppress(OSError):  # a reset is found by reading
            plain.shutdown(socket.SHUT_WR)

    async def _heard(self, end: object, reading: Awaitable[bytes]) -> bytes:
        try:
            data = await reading
        except (ConnectionError, EOFError, ssl.SSLError):
            raise _Lost from None
        if not data:
            self._over.add(end)
            if end in self._deaf:
                raise _Lost
        return data

    async def _told(self, end: object, writing: Awaitable[None]) -> bool:
        try:
            await writing
        except (ConnectionError, ssl.SSLError):
            self._deaf.add(end)
            if end in self._over:
                raise _Lost from None
            return False
        return True


async def _relay(plain: socket.socket, peer: TlsPeer, *, deaf: bool = False) -> None:
    """Until both directions have ended, or one of the connections is lost, and then the other is, too.

    :param deaf: ``plain`` takes nothing any more
    """
    pair = _Pair(plain, peer, deaf)
    try:
        async with asyncio.TaskGroup() as both:
            both.create_task(pair.outwards())
            both.create_task(pair.inwards())
    except* _Lost:
        reset(plain)
        peer.reset()
    finally:
        peer.close()
