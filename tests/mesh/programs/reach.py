"""Asks each of several addresses once, all at the same time, and says who answered.

python reach.py HOST:PORT...

Prints one JSON object: for every address the name of the web_server.py that answered on that port, ``refused`` when
the connection was refused or ended without a byte, ``silent`` when nothing at all came of it in time.
"""

from __future__ import annotations

import asyncio
import json
import sys

PATIENCE = 10.0


async def reach(address: str) -> str:
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                writer.write(b"GET /reach HTTP/1.1\r\nHost: reach\r\nConnection: close\r\n\r\n")
                said = (await reader.read(-1)).decode()
            finally:
                writer.transport.abort()
    except TimeoutError:
        return "silent"
    except OSError:
        return "refused"
    if not said:
        return "refused"
    name, listened, _ = said.partition("\r\n\r\n")[2].split()
    return name if said.startswith("HTTP/1.1 200 ") and listened == port else said


async def main() -> None:
    addresses = sys.argv[1:]
    print(json.dumps(dict(zip(addresses, await asyncio.gather(*map(reach, addresses)), strict=True))))


asyncio.run(main())
