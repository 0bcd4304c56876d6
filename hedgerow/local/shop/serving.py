"""What the shop's servers have in common: where they listen, how they start, and how they end on SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import ClientSession, ClientTimeout, web

#: A call to another service that takes longer than this has failed, seconds.
CALL_TIMEOUT = 10.0

SESSION: web.AppKey[ClientSession] = web.AppKey("session", ClientSession)


def listen() -> tuple[str, int]:
    return os.environ["LISTEN"], int(os.environ["PORT"])


def target(variable: str) -> tuple[str, int]:
    """A ``host:port`` from the environment."""
    host, _, port = os.environ[variable].rpartition(":")
    return host, int(port)


async def until_told_to_stop() -> None:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    await told.wait()


async def serve_http(app: web.Application) -> None:
    """Serve until SIGTERM. The application gets a client session of its own under ``SESSION``."""
    app.cleanup_ctx.append(_client)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    host, port = listen()
    await web.TCPSite(runner, host, port, backlog=1024).start()
    try:
        await until_told_to_stop()
    finally:
        await runner.cleanup()


async def _client(app: web.Application) -> AsyncIterator[None]:
    async with ClientSession(timeout=ClientTimeout(total=CALL_TIMEOUT), raise_for_status=True) as session:
        app[SESSION] = session
        yield


async def serve_tcp(handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> None:
    """Serve plain TCP until SIGTERM, one call of ``handle`` for each connection."""

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handle(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away in the middle of a command
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    host, port = listen()
    server = await asyncio.start_server(connection, host, port, backlog=1024)
    await until_told_to_stop()
    server.close()
    server.close_clients() if hasattr(server, "close_clients") else None
