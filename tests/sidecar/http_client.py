"""One HTTP request over a real connection, as bytes; and a server that answers with prepared bytes."""

from __future__ import annotations

import asyncio
import contextlib
import socket


async def send(port, data, host="127.0.0.1", within=20):
    """:return: status, fields by lower-case name, body; the connection is read to its end"""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(data)
        response = await asyncio.wait_for(reader.read(), within)
    finally:
        writer.close()
    head, _, body = response.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = dict(line.lower().split(": ", 1) for line in lines)
    return int(first.split()[1]), fields, body


def request(target, *fields, method="GET", host="localhost"):
    return "\r\n".join([f"{method} {target} HTTP/1.1", f"Host: {host}", *fields, "", ""]).encode("latin-1")


async def get(port, target, *fields, method="GET", host="localhost"):
    return await send(port, request(target, *fields, method=method, host=host))


@contextlib.asynccontextmanager
async def application(answer, ssl=None, host="127.0.0.1"):
    """A server of one address.

    :param answer: takes a request head, and gives the bytes of an answer or None for none at all
    :return: its port, and the heads that it has got
    """
    heads = []
    tasks = set()

    async def serve(reader, writer):
        tasks.add(asyncio.current_task())
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                head = await reader.readuntil(b"\r\n\r\n")
                heads.append(head.decode("latin-1"))
                data = answer(head.decode("latin-1"))
                if data is None:
                    await reader.read()
                else:
                    writer.write(data)
                    await writer.drain()
        finally:
            writer.close()
            tasks.discard(asyncio.current_task())

    server = await asyncio.start_server(serve, host, 0, ssl=ssl)
    try:
        yield server.sockets[0].getsockname()[1], heads
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


def answer(status="200 OK", body=b"", *fields):
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *fields, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
