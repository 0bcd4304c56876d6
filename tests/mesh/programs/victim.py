"""Echoes on one port of every address, IPv6 too, and has a secret on a port of its loopback alone.

python victim.py PORT LOOPBACK_PORT
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def main() -> None:
    everywhere = socket.create_server(
        ("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
    )
    await asyncio.start_server(echo, "127.0.0.1", int(sys.argv[2]))
    server = await asyncio.start_server(echo, sock=everywhere)
    await server.serve_forever()


asyncio.run(main())
