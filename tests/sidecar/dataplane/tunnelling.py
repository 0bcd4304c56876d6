"""An application that only holds on, a client of the data plane, and the tunnel that is dialled for it."""

from __future__ import annotations

import asyncio
import contextlib

from tests.sidecar.dataplane.world import SYN, UPDATE, ready


async def hold(reader, writer):
    """An application that neither reads nor writes until the connection ends."""
    with contextlib.suppress(ConnectionError):
        await reader.read()
    writer.close()


async def client(world):
    return await asyncio.open_connection("127.0.0.1", world.outbound)


async def dialled(world):
    await world.start()
    arrived = await world.accept()
    reader, writer = await client(world)
    world.stack.callback(writer.close)
    raw = await ready(arrived)
    assert await raw.receive() == (UPDATE, SYN, 1, 0, b"")
    return raw, reader, writer
