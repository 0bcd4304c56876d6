"""What a connection took is free when it ends: nothing is left to the collector of cycles, which comes late.

In a soak such cycles look like a leak: memory grows for minutes before the collector comes round to the oldest objects.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from collections import Counter

import pytest

from tests.sidecar.dataplane.leg_rigs import reset
from tests.sidecar.dataplane.misbehaviour import GET, HOST, LAST, WHOLE
from tests.sidecar.dataplane.planes import MESHED, Planes, Way

CONNECTIONS = 10


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers requests; ``/last`` ends the connection, ``/reset`` resets it."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if b"/reset" in head:
                writer.transport.abort()
                return
            writer.write(LAST if b"/last" in head else WHOLE)
            if b"/last" in head:
                return
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def use(port: int, how: str) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, (HOST, port))
        with contextlib.suppress(ConnectionError):
            if how in ("last", "reset"):
                await loop.sock_sendall(sock, GET.replace(b"/items/7", b"/" + how.encode()))
                while await loop.sock_recv(sock, 65536):
                    pass
                return
            for _ in range(3):
                await loop.sock_sendall(sock, GET)
                received = b""
                while len(received) < len(WHOLE):
                    received += await loop.sock_recv(sock, 65536)
            if how == "client resets":
                reset(sock)


@pytest.mark.parametrize("how", ["kept", "last", "reset", "client resets"])
@pytest.mark.parametrize("way", MESHED)
async def test_nothing_of_a_connection_is_left_to_the_collector(authority, way, how):
    async with await asyncio.start_server(serve, HOST, 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with Planes(authority, dict.fromkeys(Way, port)) as planes:
            await use(planes.entrances[way], how)
            await planes.settled()
            gc.collect()
            gc.disable()
            gc.set_debug(gc.DEBUG_SAVEALL)
            try:
                for _ in range(CONNECTIONS):
                    await use(planes.entrances[way], how)
                await planes.settled()
                for _ in range(5):
                    await asyncio.sleep(0)  # what was to be called soon has been
                gc.collect()
                left = Counter(type(each).__qualname__ for each in gc.garbage if _is_ours(each))
            finally:
                gc.set_debug(0)
                gc.garbage.clear()
                gc.enable()
    assert not left


def _is_ours(thing: object) -> bool:
    return type(thing).__module__.startswith("sidecar.")
