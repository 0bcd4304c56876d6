"""The application behind the attacked sidecar: one port that answers HTTP/1 and HTTP/2, one that throws all away.

``GET /big`` is answered with a mebibyte, ``/huge`` with 16 of them, and the name of a flood with that flood, while
nothing more is read; everything else with a few bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from tests.attacks import http1_answers, http2_frames
from tests.attacks.http2_frames import PREFACE
from tests.attacks.sending import Pieces

BIG, HUGE = bytes(1 << 20), bytes(1 << 24)
BODIES = {b"/big": BIG, b"/huge": HUGE}
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"
FLOODS = http2_frames.floods(b"", http2_frames.block((":status", "200")), answers=True)


async def flood(writer: asyncio.StreamWriter, pieces: Pieces) -> None:
    for piece in pieces():
        writer.write(piece)
        await writer.drain()
        # where it is taken as fast as it is sent, a drain waits for nothing, and nobody else would be served
        await asyncio.sleep(0)


async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, h2.exceptions.ProtocolError):
        first = await reader.readexactly(4)
        if first == PREFACE[:4]:
            await http2(first, reader, writer)
        else:
            await http1(first, reader, writer)
    writer.close()


async def http1(held: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Requests without bodies are answered; a body is thrown away, and answered when the connection ends."""
    while True:
        while b"\r\n\r\n" not in held:
            data = await reader.read(65_536)
            if not data:
                return
            held += data
        head, _, held = held.partition(b"\r\n\r\n")
        if b"\r\nContent-Length:" in head or b"\r\nTransfer-Encoding:" in head:
            while await reader.read(65_536):
                pass
            return
        path = head.split(b" ", 2)[1]
        if answer := http1_answers.ANSWERS.get(path[1:].decode()):
            await flood(writer, answer)
            return
        body = BODIES.get(path, b"")
        if body:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        else:
            writer.write(ANSWER)
        await writer.drain()


async def http2(held: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
    connection.initiate_connection()
    waiting: dict[int, int] = {}  # bytes still to be sent
    data = held
    while data:
        events = connection.receive_data(data)
        gone = {event.stream_id for event in events if isinstance(event, h2.events.StreamReset)}
        for event in events:
            if isinstance(event, h2.events.RequestReceived) and event.stream_id not in gone:
                big = (":path", "/big") in event.headers
                if answer := FLOODS.get(dict(event.headers)[":path"][1:]):
                    writer.write(connection.data_to_send())
                    await flood(writer, answer)
                    return
                connection.send_headers(event.stream_id, [(":status", "200")])
                waiting[event.stream_id] = len(BIG) if big else 3
            elif isinstance(event, h2.events.StreamReset):
                waiting.pop(event.stream_id, None)
        for stream in list(waiting):
            while waiting[stream] and (room := _room(connection, stream)):
                size = min(room, waiting[stream], 16_384)
                waiting[stream] -= size
                connection.send_data(stream, bytes(size), end_stream=not waiting[stream])
            if not waiting[stream]:
                del waiting[stream]
        writer.write(connection.data_to_send())
        await writer.drain()
        data = await reader.read(65_536)


def _room(connection: h2.connection.H2Connection, stream: int) -> int:
    return max(0, connection.local_flow_control_window(stream))


async def sink(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while await reader.read(1 << 18):
            pass
    writer.close()


def quietly(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A client's reset may come when we end and nobody waits for it any more; all else is a fault."""
    if not isinstance(context.get("exception"), ConnectionError):
        loop.default_exception_handler(context)


async def main() -> None:
    with contextlib.suppress(PermissionError):
        os.nice(-5)
    servers = [await asyncio.start_server(each, "127.0.0.1", 0, backlog=4096) for each in (web, sink)]
    print(*(server.sockets[0].getsockname()[1] for server in servers), flush=True)
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.set_exception_handler(quietly)
    loop.add_reader(sys.stdin.fileno(), ended.set)
    await ended.wait()
    for server in servers:
        server.close()


if __name__ == "__main__":
    asyncio.run(main())
