"""Programs that know nothing of the mesh: a server with a few commands, and clients that check every byte."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from tests.sidecar.dataplane.netns import Pod

LIMIT = 1 << 18


async def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for a condition that nobody announces."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what it looks at is in another process, or has no event
            await asyncio.sleep(0.01)


def payload(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """ECHO · GET seed size · PUT · HALF: the first line says what this connection is about."""
    try:
        command = (await reader.readline()).split()
        if not command:
            return
        if command[0] == b"ECHO":
            while data := await reader.read(LIMIT):
                writer.write(data)
                await writer.drain()
        elif command[0] == b"GET":
            data = payload(int(command[1]), int(command[2]))
            for start in range(0, len(data), LIMIT):
                writer.write(data[start : start + LIMIT])
                await writer.drain()
        elif command[0] == b"PUT":
            digest, size = hashlib.sha256(), 0
            while data := await reader.read(LIMIT):
                digest.update(data)
                size += len(data)
            writer.write(f"{digest.hexdigest()} {size}\n".encode())
            await writer.drain()
        elif command[0] == b"HALF":  # the server ends first and goes on reading
            writer.write(b"bye\n")
            writer.write_eof()
            digest = hashlib.sha256()
            while data := await reader.read(LIMIT):
                digest.update(data)
            HALF_DIGESTS.append(digest.hexdigest())
        elif command[0] == b"RESET":
            writer.transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            writer.transport.abort()
    except ConnectionError:
        pass
    finally:
        writer.close()


HALF_DIGESTS: list[str] = []


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that speaks first."""
    try:
        writer.write(b"220 ready\r\n")
        while line := await reader.readline():
            writer.write(b"250 " + line)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


@asynccontextmanager
async def server(pod: Pod, port: int, handler=serve, *, address: str = "") -> AsyncIterator[None]:
    host = address or pod.address
    listener = pod.namespace.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    running = await asyncio.start_server(handler, sock=listener, backlog=2048)
    try:
        yield
    finally:
        running.close()


async def connect(pod: Pod, address: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    sock = pod.namespace.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, (address, port))
        return await asyncio.open_connection(sock=sock, limit=LIMIT)
    except BaseException:
        sock.close()
        raise


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


async def get(pod: Pod, address: str, port: int, seed: int, size: int) -> None:
    reader, writer = await connect(pod, address, port)
    try:
        writer.write(f"GET {seed} {size}\n".encode())
        digest, count = hashlib.sha256(), 0
        while data := await reader.read(LIMIT):
            digest.update(data)
            count += len(data)
        assert count == size, (count, size)
        assert digest.hexdigest() == hashlib.sha256(payload(seed, size)).hexdigest()
    finally:
        await close(writer)


async def put(pod: Pod, address: str, port: int, seed: int, size: int) -> None:
    reader, writer = await connect(pod, address, port)
    try:
        writer.write(b"PUT\n")
        data = payload(seed, size)
        for start in range(0, size, LIMIT):
            writer.write(data[start : start + LIMIT])
            await writer.drain()
        writer.write_eof()
        digest, count = (await reader.read()).decode().split()
        assert int(count) == size
        assert digest == hashlib.sha256(data).hexdigest()
    finally:
        await close(writer)


async def echo(pod: Pod, address: str, port: int, message: bytes | None = None, *, times: int = 1) -> None:
    message = message or os.urandom(1000)
    reader, writer = await connect(pod, address, port)
    try:
        writer.write(b"ECHO\n")
        for _ in range(times):
            writer.write(message)
            assert await reader.readexactly(len(message)) == message
        writer.write_eof()
        assert await reader.read() == b""
    finally:
        await close(writer)


async def refused(pod: Pod, address: str, port: int) -> None:
    """The connection must end in a reset, before a byte of the application arrives."""
    try:
        reader, writer = await connect(pod, address, port)
    except ConnectionError:
        return
    try:
        writer.write(b"ECHO\nhello")
        data = await asyncio.wait_for(reader.read(100), 60)
    except ConnectionResetError:
        return
    finally:
        await close(writer)
    raise AssertionError(f"it was not refused: {data!r}")
