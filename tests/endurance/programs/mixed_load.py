"""Everything that applications do to a sidecar, mixed, at a steady part of the rate that this machine is able to.

python mixed_load.py WEB RULED STORE DENIED --measure SECONDS --part PART [--most RATE]

The four are ``HOST:PORT``: an HTTP server, the same where single operations are denied, a store.py, and an address
that the mesh refuses. First as many operations as go are done for SECONDS; then PART of that rate is kept up, evenly,
until SIGTERM. Every operation checks all that comes back; what was not as it should be has failed, and nothing is tried
again. A line of JSON a few times a second says the counts so far; after SIGTERM everything in hand is finished, and the
last line has ``"ended": true``.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import signal
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

#: Seconds after which an answer counts as not given.
PATIENCE = 20.0
INTERVAL = 0.25
#: Operations at once; when so many are in hand those that are due are left out.
AT_ONCE = 48
#: Requests on one kept connection, and messages on one kept stream.
REUSE = 200
MESSAGE = b"0123456789abcdef" * 64
#: Errors whose words are kept.
_ERRORS = 20

type Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Failed(Exception):
    """The answer was not right."""


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        host, _, port = text.rpartition(":")
        return cls(host, int(port))

    async def connect(self) -> Connection:
        return await asyncio.open_connection(self.host, self.port)


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


def reset(writer: asyncio.StreamWriter) -> None:
    """Break the connection off."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@dataclass
class Kept:
    """Connections to one address that wait for their next use."""

    address: Address
    idle: list[tuple[Connection, int]] = field(default_factory=list)

    async def take(self) -> tuple[Connection, int]:
        return self.idle.pop() if self.idle else (await self.address.connect(), 0)

    async def give(self, connection: Connection, used: int) -> None:
        if used < REUSE:
            self.idle.append((connection, used))
        else:
            await close(connection[1])

    async def clear(self) -> list[str]:
        """End all; what was wrong with those that were."""
        wrong = []
        for (_, writer), used in self.idle:
            try:
                await close(writer)
            except OSError as error:
                wrong.append(f"an idle connection to port {self.address.port}, used {used} times: {error!r}")
        self.idle.clear()
        return wrong


@dataclass
class Mix:
    web: Address
    ruled: Address
    store: Address
    denied: Address

    def __post_init__(self) -> None:
        self.numbers = itertools.count()
        self.kept = {address: Kept(address) for address in (self.web, self.ruled, self.store)}

    def shares(self) -> dict[str, tuple[int, Callable[[], Awaitable[None]]]]:
        """What is done, with how many of a hundred operations."""
        return {
            "http kept": (32, lambda: self.request(self.web, "GET", keep=True)),
            "http fresh": (12, lambda: self.request(self.web, "GET", keep=False)),
            "http large": (1, self.large),
            "ruled kept": (20, lambda: self.request(self.ruled, "GET", keep=True)),
            "ruled refused": (5, lambda: self.request(self.ruled, "DELETE", keep=True)),
            "stream kept": (16, lambda: self.echo(keep=True)),
            "stream fresh": (8, lambda: self.echo(keep=False)),
            "client resets": (2, self.client_resets),
            "server resets": (2, self.server_resets),
            "denied": (2, self.refused),
        }

    async def end(self) -> list[str]:
        """End every kept connection; what was wrong with those that were."""
        return [wrong for kept in self.kept.values() for wrong in await kept.clear()]

    async def request(self, address: Address, method: str, *, keep: bool) -> None:
        kept = self.kept[address]
        connection, used = await kept.take() if keep else (await address.connect(), 0)
        reader, writer = connection
        try:
            target = f"/items/{next(self.numbers)}"
            ending = "" if keep else "Connection: close\r\n"
            writer.write(f"{method} {target} HTTP/1.1\r\nHost: {address.host}\r\n{ending}\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            status, *fields = head.split("\r\n")
            length = next(int(line.split(":")[1]) for line in fields if line.startswith("content-length:"))
            body = (await reader.readexactly(length)).decode()
            if method == "DELETE":
                if not status.startswith("http/1.1 403 ") or not any("x-hedgerow-" in line for line in fields):
                    raise Failed(f"{method} {target}: {head}")
            elif not status.startswith("http/1.1 200 ") or body != f"{method} {target}\n":
                raise Failed(f"{method} {target}: {head}{body}")
        except BaseException:
            writer.transport.abort()
            raise
        if keep and "connection: close" not in fields:
            await kept.give(connection, used + 1)
        else:
            await close(writer)

    async def large(self) -> None:
        """A file that is read slower than it comes."""
        reader, writer = await self.web.connect()
        try:
            writer.write(f"GET /large HTTP/1.1\r\nHost: {self.web.host}\r\nConnection: close\r\n\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = next(int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length:"))
            read = 0
            while data := await reader.read(65536):
                read += len(data)
                await asyncio.sleep(0.002)
            if read != length:
                raise Failed(f"{read} of {length} bytes")
        except BaseException:
            writer.transport.abort()
            raise
        await close(writer)

    async def echo(self, *, keep: bool) -> None:
        kept = self.kept[self.store]
        connection, used = await kept.take() if keep else (await self.store.connect(), 0)
        reader, writer = connection
        try:
            writer.write(MESSAGE)
            if await reader.readexactly(len(MESSAGE)) != MESSAGE:
                raise Failed("not what was sent")
            if not keep:
                writer.write_eof()
                if await reader.read():
                    raise Failed("more than was sent")
        except BaseException:
            writer.transport.abort()
            raise
        if keep:
            await kept.give(connection, used + 1)
        else:
            await close(writer)

    async def client_resets(self) -> None:
        reader, writer = await self.store.connect()
        writer.write(MESSAGE)
        await reader.read(10)
        reset(writer)

    async def server_resets(self) -> None:
        await self._must_be_reset(self.store, b"RESET\n")

    async def refused(self) -> None:
        await self._must_be_reset(self.denied, MESSAGE)

    async def _must_be_reset(self, address: Address, say: bytes) -> None:
        try:
            reader, writer = await address.connect()
        except ConnectionError:
            return
        try:
            writer.write(say)
            data = await reader.read(100)
        except ConnectionError:
            return
        finally:
            writer.transport.abort()
        raise Failed(f"{address.port} answered {data!r}")


class Load:
    """Does operations and counts what comes of them."""

    def __init__(self, mix: Mix) -> None:
        self._mix = mix
        self._shares = mix.shares()
        assert sum(share for share, _ in self._shares.values()) == 100
        self._random = random.Random(7)
        self._running: set[asyncio.Task[None]] = set()
        self.stopping = asyncio.Event()
        self.done = dict.fromkeys(self._shares, 0)
        self.failed = dict.fromkeys(self._shares, 0)
        self.errors: list[str] = []
        self.left_out = 0
        self.rate = 0.0

    def say(self, *, ended: bool = False) -> None:
        said = {"rate": self.rate, "done": self.done, "failed": self.failed, "errors": self.errors}
        print(json.dumps(said | {"left_out": self.left_out, "ended": ended}), flush=True)

    def _next(self) -> str:
        return self._random.choices(list(self._shares), [share for share, _ in self._shares.values()])[0]

    async def _one(self, kind: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                await self._shares[kind][1]()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, Failed) as error:
            self.failed[kind] += 1
            if len(self.errors) < _ERRORS:
                self.errors.append(f"{kind}: {error!r}")
        else:
            self.done[kind] += 1

    async def measure(self, seconds: float) -> float:
        """Operations a second when nobody waits."""
        end = time.monotonic() + seconds
        before = sum(self.done.values())

        async def work() -> None:
            while time.monotonic() < end and not self.stopping.is_set():
                await self._one(self._next())

        await asyncio.gather(*(work() for _ in range(16)))
        return (sum(self.done.values()) - before) / seconds

    async def keep_up(self, rate: float) -> None:
        """Begin ``rate`` operations a second until told to stop."""
        self.rate = rate
        due = time.monotonic()
        while not self.stopping.is_set():
            due = max(due + 1 / rate, time.monotonic() - 0.1)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if len(self._running) >= AT_ONCE:
                self.left_out += 1
                continue
            task = asyncio.create_task(self._one(self._next()))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        await asyncio.gather(*self._running)


async def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("web", "ruled", "store", "denied"):
        parser.add_argument(name, type=Address.parse)
    parser.add_argument("--measure", type=float, required=True)
    parser.add_argument("--part", type=float, required=True)
    parser.add_argument("--most", type=float, default=1e9)
    given = parser.parse_args()
    mix = Mix(given.web, given.ruled, given.store, given.denied)
    load = Load(mix)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, load.stopping.set)

    async def report() -> None:
        while True:
            load.say()
            await asyncio.sleep(INTERVAL)

    reporting = asyncio.create_task(report())
    rate = await load.measure(given.measure)
    await load.keep_up(max(1.0, min(given.most, given.part * rate)))
    load.errors += await mix.end()
    reporting.cancel()
    await asyncio.wait([reporting])
    load.say(ended=True)


asyncio.run(main())
