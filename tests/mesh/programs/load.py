"""Asks a web_server.py again and again, checks every answer, and counts requests, failures and connections.

python load.py HOST PORT --fresh N --kept N [--reuse R] [--pause SECONDS]

N clients make a connection for every request (``fresh``), N keep theirs (``kept``) for R requests, or for ever when R
is 0, as long as the server does. A request that was not answered rightly has failed; nothing is tried again. A line of
JSON says the counts so far, about ten times a second; after SIGTERM every client finishes its request, and the last
line has ``"ended": true``.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import signal
from collections import Counter
from dataclasses import dataclass, field

#: Seconds after which an answer counts as not given.
PATIENCE = 20.0
INTERVAL = 0.1


@dataclass
class Tally:
    requests: int = 0
    failed: int = 0
    connections: int = 0
    answered_by: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)


class Failed(Exception):
    """The answer was not right."""


class Client:
    """One user of the server; ``requests`` on one connection, 0 for as many as the server takes."""

    _numbers = itertools.count()

    def __init__(self, host: str, port: int, requests: int, tally: Tally) -> None:
        self._host, self._port = host, port
        self._limit = requests
        self._tally = tally
        self._asked = 0
        self._connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self) -> None:
        self._tally.requests += 1
        try:
            async with asyncio.timeout(PATIENCE):
                name, last = await self._ask(f"/{next(self._numbers)}")
        except (OSError, TimeoutError, asyncio.IncompleteReadError, Failed) as error:
            self._tally.failed += 1
            self._tally.errors.append(f"request {self._asked + 1} on its connection: {error!r}")
            await self.close(abort=True)
            return
        self._tally.answered_by[name] += 1
        self._asked += 1
        if last or self._asked == self._limit:
            await self.close()

    async def _ask(self, target: str) -> tuple[str, bool]:
        """Who answered, and whether that was the last answer on this connection."""
        if self._connection is None:
            self._tally.connections += 1
            self._connection = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._connection
        writer.write(f"GET {target} HTTP/1.1\r\nHost: {self._host}\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        status, *fields = head.split("\r\n")
        length = next((int(line.split(":")[1]) for line in fields if line.startswith("content-length:")), -1)
        if not status.startswith("http/1.1 200 ") or length < 0:
            raise Failed(head)
        name, _, asked = (await reader.readexactly(length)).decode().split()
        if asked != target:
            raise Failed(f"asked for {target}, answered for {asked}")
        return name, "connection: close" in fields

    async def close(self, *, abort: bool = False) -> None:
        connection, self._connection, self._asked = self._connection, None, 0
        if connection is None:
            return
        _, writer = connection
        if abort:
            writer.transport.abort()
        writer.close()
        try:
            await writer.wait_closed()
        except OSError as error:
            if not abort:
                self._tally.errors.append(f"after its last request: {error!r}")


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--fresh", type=int, default=0)
    parser.add_argument("--kept", type=int, default=0)
    parser.add_argument("--reuse", type=int, default=0)
    parser.add_argument("--pause", type=float, default=0.03)
    given = parser.parse_args()
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    tallies = {"fresh": Tally(), "kept": Tally()}

    def say(*, ended: bool = False) -> None:
        print(json.dumps({name: vars(tally) for name, tally in tallies.items()} | {"ended": ended}), flush=True)

    async def use(client: Client) -> None:
        while not stopping.is_set():
            await client.ask()
            await asyncio.sleep(given.pause)
        await client.close()

    async def report() -> None:
        while True:
            say()
            await asyncio.sleep(INTERVAL)

    reporting = asyncio.create_task(report())
    fresh = [Client(given.host, given.port, 1, tallies["fresh"]) for _ in range(given.fresh)]
    kept = [Client(given.host, given.port, given.reuse, tallies["kept"]) for _ in range(given.kept)]
    await asyncio.gather(*(use(client) for client in (*fresh, *kept)))
    reporting.cancel()
    await asyncio.wait([reporting])
    say(ended=True)


asyncio.run(main())
