"""A tunnel that is cut on its way, as anybody on the way can: every connection in it is reset at both ends, as a table.

None of them ends in good order, however much of it had been said: a cut answer must not look like all there is.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from tests.sidecar.dataplane import applications as apps
from tests.sidecar.dataplane.misbehaviour import BODY, CHUNKS, GET, HALF, HOST, POST, UNTIL_END, Seen, reset
from tests.sidecar.dataplane.plain import Plain, accepted, listening
from tests.sidecar.dataplane.planes import TUNNELS, Planes, Way
from tests.sidecar.dataplane.test_frames import frame
from tests.sidecar.dataplane.world import ACK, DATA, SYN, UPDATE, ready


class Wire:
    """Passes TCP connections on byte by byte, until somebody cuts it."""

    def __init__(self, stack: contextlib.AsyncExitStack) -> None:
        self._stack = stack
        self._tasks: set[asyncio.Task[None]] = set()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._targets: list[tuple[socket.socket, int]] = []
        stack.push_async_callback(self._stop)

    def to(self, port: int) -> int:
        listener = listening(self._stack)
        self._targets.append((listener, port))
        own: int = listener.getsockname()[1]
        return own

    def start(self) -> None:
        for listener, port in self._targets:
            self._run(self._accept(listener, port))

    def _run(self, work) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)

    async def _accept(self, listener: socket.socket, port: int) -> None:
        loop = asyncio.get_running_loop()
        while True:
            near, _ = await loop.sock_accept(listener)
            far = socket.socket()
            self._stack.callback(near.close)
            self._stack.callback(far.close)
            for sock in (near, far):
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(far, (HOST, port))
            self._pairs.append((near, far))
            self._run(self._pass_on(near, far))
            self._run(self._pass_on(far, near))

    async def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(source, 65536):
            await loop.sock_sendall(target, data)

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            if not isinstance(outcome, ConnectionError | asyncio.CancelledError | None):
                raise outcome
        self._tasks.clear()

    async def cut(self, how: Callable[[socket.socket], None]) -> None:
        """Nothing that was not passed on yet ever will be, and both ends learn of it by ``how``."""
        assert self._pairs, "nobody came this way"
        await self._stop()
        for pair in self._pairs:
            for sock in pair:
                how(sock)


def fin(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the other end was quicker
        sock.shutdown(socket.SHUT_WR)


def record_in_half(sock: socket.socket) -> None:
    """The beginning of a record, and then a FIN."""
    with contextlib.suppress(OSError):
        sock.send(b"\x17\x03\x03\x10\x00" + bytes(100))
        sock.shutdown(socket.SHUT_WR)


def forged_end(sock: socket.socket) -> None:
    """A close_notify that nobody encrypted, and then a FIN."""
    with contextlib.suppress(OSError):
        sock.send(b"\x15\x03\x03\x00\x02\x01\x00")
        sock.shutdown(socket.SHUT_WR)


CUTS = [fin, reset, record_in_half, forged_end]


@dataclass(frozen=True, slots=True)
class Row:
    """One connection at the moment of the cut.

    :param opening: what its client says first, ``lead`` what brings it there from then on
    :param client: what its client has heard by then
    :param client_ended: the client has ended its direction, and the application has heard that; or the other way round
    """

    name: str
    opening: bytes
    lead: Callable[[Plain, Plain, Planes], Awaitable[None]]
    client: bytes
    client_ended: bool = False
    application_ended: bool = False


async def greeted(client: Plain, application: Plain, planes: Planes) -> None:
    assert await application.see(5) == Seen(b"hello", "open")
    await application.say(b"hello")
    assert await client.see(5) == Seen(b"hello", "open")


async def client_ended(client: Plain, application: Plain, planes: Planes) -> None:
    await greeted(client, application, planes)
    client.sock.shutdown(socket.SHUT_WR)
    assert (await application.see()).ending == "end"


async def application_ended(client: Plain, application: Plain, planes: Planes) -> None:
    await greeted(client, application, planes)
    application.sock.shutdown(socket.SHUT_WR)
    assert (await client.see()).ending == "end"


async def full(client: Plain, application: Plain, planes: Planes) -> None:
    """The client says more than its application, which does not read, and the way to it take."""

    async def push() -> None:
        while True:
            await client.say(bytes(1 << 16))

    await greeted(client, application, planes)
    before = planes.buffered  # for others
    pushing = asyncio.create_task(push())
    await apps.until(lambda: planes.buffered > before + 100_000)
    pushing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await pushing


async def ended_behind_much(client: Plain, application: Plain, planes: Planes) -> None:
    """The end is said already, and on its way behind what the application has not read."""
    await full(client, application, planes)
    client.sock.shutdown(socket.SHUT_WR)


def asked(answer: bytes) -> Callable[[Plain, Plain, Planes], Awaitable[None]]:
    async def lead(client: Plain, application: Plain, planes: Planes) -> None:
        while b"\r\n\r\n" not in application.data:
            await application.see(len(application.data) + 1)
        await application.say(answer)
        if answer:
            assert await client.see(len(answer)) == Seen(answer, "open")

    return lead


STREAMS = [
    Row("silent", b"hello", greeted, b"hello"),
    Row("its client has ended", b"hello", client_ended, b"hello", client_ended=True),
    Row("its application has ended", b"hello", application_ended, b"hello", application_ended=True),
    Row("its application does not read", b"hello", full, b"hello"),
    Row("its client has ended behind what is not read", b"hello", ended_behind_much, b"hello"),
]
REQUESTS = [
    Row("in the middle of an answer", GET, asked(HALF), HALF),
    Row("in the middle of an answer without length", GET, asked(UNTIL_END), UNTIL_END),
    Row("between chunks", GET, asked(CHUNKS), CHUNKS),
    Row("in the middle of a request", POST + BODY[:10], asked(b""), b""),
    Row("in the middle of both", POST + BODY[:10], asked(HALF), HALF),
]


@pytest.mark.parametrize("how", CUTS, ids=lambda how: how.__name__)
@pytest.mark.parametrize(
    ("way", "row"),
    [
        pytest.param(way, row, id=f"{way}, {row.name}")
        for way in TUNNELS
        for row in (STREAMS if way is Way.STREAM_TUNNEL else REQUESTS)
    ],
)
async def test_every_connection_of_a_tunnel_that_is_cut_is_reset_at_both_ends(authority, way, row, how):
    async with contextlib.AsyncExitStack() as stack:
        listener = listening(stack)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # or the kernel reads on for an application
        wire = Wire(stack)
        planes = Planes(authority, dict.fromkeys(Way, listener.getsockname()[1]), between=wire.to)
        await stack.enter_async_context(planes)
        wire.start()
        pairs = []
        for _ in range(3):
            sock = socket.socket()
            stack.callback(sock.close)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, (HOST, planes.entrances[way]))
            client = Plain(sock)
            await client.say(row.opening)
            application = Plain(await accepted(listener))
            stack.callback(application.sock.close)
            await row.lead(client, application, planes)
            pairs.append((client, application))
        await wire.cut(how)
        for client, application in pairs:
            if row.application_ended:
                await client.broken()
            else:
                assert await client.see() == Seen(row.client, "reset")
            if row.client_ended:
                await application.broken()
            else:
                assert (await application.see()).ending == "reset"
            client.sock.close()
            application.sock.close()
        await planes.settled()


# The other end itself ends the tunnel, in good order as far as TLS goes, with connections in it -----------------------


async def test_a_tunnel_that_its_client_ends_resets_what_is_in_it(world):
    listener = listening(world.stack)
    world.application = listener.getsockname()[1]
    await world.start(accepts=False)
    raw = await world.dial()
    raw.send(frame(UPDATE, SYN, 1, 0), frame(DATA, 0, 1, 5, b"hello"))
    application = Plain(await accepted(listener))
    world.stack.callback(application.sock.close)
    assert await application.see(5) == Seen(b"hello", "open")
    raw.writer.close()
    assert await application.see() == Seen(b"hello", "reset")
    await world.until(lambda: world.plane.live_connections == 0)


async def test_a_tunnel_that_its_server_ends_resets_what_is_in_it(world):
    await world.start()
    arrived = await world.accept()
    sock = socket.socket()
    world.stack.callback(sock.close)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (HOST, world.outbound))
    client = Plain(sock)
    raw = await ready(arrived)
    assert await raw.receive() == (UPDATE, SYN, 1, 0, b"")
    raw.send(frame(UPDATE, ACK, 1, 0), frame(DATA, 0, 1, 5, b"hello"))
    assert await client.see(5) == Seen(b"hello", "open")
    raw.writer.close()
    assert await client.see() == Seen(b"hello", "reset")
    await world.until(lambda: world.plane.live_connections == 0)
