"""Opens many connections, holds all of them open at once, and compares what each one gets back with what it sent.

python echo_client.py HOST PORT CONNECTIONS BYTES
"""

from __future__ import annotations

import asyncio
import json
import os
import sys


async def main() -> None:
    host, port, many, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    all_open = asyncio.Barrier(many)

    async def one() -> bool:
        reader, writer = await asyncio.open_connection(host, port)
        try:
            first = os.urandom(16)
            writer.write(first)
            same = await reader.readexactly(len(first)) == first  # the other end is really there
            await all_open.wait()
            sent = os.urandom(size - len(first))
            writer.write(sent)
            writer.write_eof()
            return same and await reader.read(-1) == sent
        finally:
            writer.close()
            await writer.wait_closed()

    async with asyncio.timeout(60):
        same = await asyncio.gather(*(one() for _ in range(many)))
    print(json.dumps({"same": sum(same), "different": len(same) - sum(same)}))


asyncio.run(main())
