"""A server that the mesh does not look into: what comes goes back, and a line RESET is answered with a reset.

python store.py PORT...
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            if data == b"RESET\n":
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
                return
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass  # clients of ours break off
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def main() -> None:
    servers = [await asyncio.start_server(serve, "0.0.0.0", int(port), backlog=1024) for port in sys.argv[1:]]
    await asyncio.gather(*(server.serve_forever() for server in servers))


asyncio.run(main())
