"""Echoes every connection until its client ends its direction, then ends its own.

python echo_server.py PORT
"""

from __future__ import annotations

import asyncio
import contextlib
import sys


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def main() -> None:
    server = await asyncio.start_server(echo, "0.0.0.0", int(sys.argv[1]), backlog=1024)
    await server.serve_forever()


asyncio.run(main())
