"""The database: plain TCP, one line a command, and the server speaks first.

It greets with ``SHOPDB 1 ready``. ``ALL`` and ``GET id`` answer with JSON, ``TOTAL`` counts the stock, ``PING`` says
``PONG``.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from hedgerow.local.shop.serving import serve_tcp

GREETING = b"SHOPDB 1 ready\n"

ITEMS: list[dict[str, Any]] = [
    {"id": number, "name": name, "price": price, "stock": 10 * number}
    for number, (name, price) in enumerate(
        [
            ("hawthorn", 390),
            ("blackthorn", 420),
            ("hazel", 510),
            ("holly", 880),
            ("dog rose", 350),
            ("field maple", 640),
        ],
        1,
    )
]


def answer(line: str) -> object:
    """What a command line is answered with."""
    command, _, argument = line.strip().partition(" ")
    if command == "PING":
        return "PONG"
    if command == "ALL":
        return ITEMS
    if command == "GET":
        return next((item for item in ITEMS if str(item["id"]) == argument), None)
    if command == "TOTAL":
        return sum(item["stock"] for item in ITEMS)
    return {"error": f"unknown command {command!r}"}


async def _session(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(GREETING)
    while line := await reader.readline():
        writer.write(json.dumps(answer(line.decode(errors="replace"))).encode() + b"\n")
        await writer.drain()


async def ask(host: str, port: int, command: str) -> object:
    """One command on a connection of its own.

    :raises ConnectionError: when the other end is no database
    """
    reader, writer = await asyncio.open_connection(host, port)
    try:
        if await reader.readline() != GREETING:
            raise ConnectionError(f"{host}:{port} did not greet as the database does")
        writer.write(command.encode() + b"\n")
        line = await reader.readline()
        if not line:
            raise ConnectionError(f"{host}:{port} hung up")
        return json.loads(line)
    finally:
        writer.close()
        await writer.wait_closed()


if __name__ == "__main__":
    asyncio.run(serve_tcp(_session))
