"""A client that opens so many connections, one request on each, and counts what failed: ``knock HOST PORT COUNT``.

wrk can be told how long to go on, not how often.
"""

from __future__ import annotations

import asyncio
import sys

from bench.dataplane.load import PATH
from bench.dataplane.network import BODY_BYTES

_AT_ONCE = 32
_DEADLINE = 20.0


async def knock(host: str, port: int, count: int) -> int:
    """How many of ``count`` connections did not bring the whole answer."""
    request = f"GET {PATH} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n".encode()
    left = iter(range(count))
    failed = 0

    async def work() -> None:
        nonlocal failed
        for _ in left:
            try:
                async with asyncio.timeout(_DEADLINE):
                    reader, writer = await asyncio.open_connection(host, port)
                    writer.write(request)
                    answer = await reader.read(-1)
                    writer.close()
            except (OSError, TimeoutError):
                answer = b""
            head, _, body = answer.partition(b"\r\n\r\n")
            failed += not head.startswith(b"HTTP/1.1 200 ") or len(body) != BODY_BYTES

    await asyncio.gather(*(work() for _ in range(_AT_ONCE)))
    return failed


def main() -> int:
    host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    failed = asyncio.run(knock(host, port, count))
    if failed:
        print(f"{failed} of {count} connections to {host}:{port} failed", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
