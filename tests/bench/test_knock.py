"""Every connection is made, and one without a whole answer is counted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from bench.dataplane.knock import knock
from bench.dataplane.network import BODY_BYTES

WHOLE = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"x" * BODY_BYTES


async def knocked(answers: Callable[[int], bytes], count: int) -> tuple[int, int]:
    """(failures that were counted, connections that came) at a server that answers the n-th with ``answers(n)``."""
    came = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal came
        number, came = came, came + 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answers(number))
        writer.close()

    server: asyncio.Server = await _start(serve)
    async with server:
        host, port = server.sockets[0].getsockname()
        return await knock(host, port, count), came


def _start(serve: Callable[..., Awaitable[None]]) -> Awaitable[asyncio.Server]:
    return asyncio.start_server(serve, "127.0.0.1", 0)


async def test_so_many_connections_are_made() -> None:
    assert await knocked(lambda _: WHOLE, 100) == (0, 100)


async def test_answers_that_are_not_whole_are_counted() -> None:
    spoilt = [WHOLE[:-1], b"", WHOLE.replace(b"200", b"503", 1)]
    assert await knocked(lambda number: spoilt[number] if number < 3 else WHOLE, 50) == (3, 50)


async def test_a_server_that_is_not_there_is_counted() -> None:
    server = await _start(lambda *_: asyncio.sleep(0))
    host, port = server.sockets[0].getsockname()
    server.close()
    await server.wait_closed()
    assert await knock(host, port, 5) == 5
