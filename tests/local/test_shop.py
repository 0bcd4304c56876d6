"""The shop works by itself, without any mesh, and makes every call that its table says."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from random import Random

import aiohttp
import pytest

from graph.flow import EdgeKey
from hedgerow.local.description import PlacedPod, fill
from hedgerow.local.pod import _listens
from hedgerow.local.processes import Process
from hedgerow.local.shop import cache, database, shopper
from hedgerow.local.shop.layout import CLIENTS, EXPECTED, SHOP, SHOPPER
from hedgerow.local.shop.tally import Tally


class Wire:
    """A relay in front of one service for one client, which counts connections: an observer that is no mesh."""

    def __init__(self, target: tuple[str, int], counted: Counter[EdgeKey], edge: EdgeKey) -> None:
        self._target = target
        self._counted = counted
        self._edge = edge
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> int:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._counted[self._edge] += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        there_reader, there_writer = await asyncio.open_connection(*self._target)
        try:
            await asyncio.gather(pump(reader, there_writer), pump(there_reader, writer))
        finally:
            there_writer.close()
            writer.close()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except (ConnectionError, OSError):
        writer.close()


@contextmanager
def reserved() -> Iterator[int]:
    """A port that is free, kept from others (but not from a server with SO_REUSEPORT off) until it is used."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield probe.getsockname()[1]


class Shop:
    """The shop's programs on loopback ports, every call through a counting wire."""

    def __init__(self, directory: Path) -> None:
        self.calls: Counter[EdgeKey] = Counter()
        self.processes: dict[str, Process] = {}
        self.ports: dict[str, int] = {}
        self._directory = directory
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Shop:
        try:
            for spec in (*SHOP, *CLIENTS):
                await self._start(spec)
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def _start(self, spec) -> None:
        name = spec.ref.name
        assert spec.program is not None
        env = dict(spec.program.env)
        if spec.ports:
            with reserved() as port:
                self.ports[name] = port
            env |= {"LISTEN": "127.0.0.1", "PORT": str(self.ports[name])}
        for variable, value in env.items():
            for callee in (*SHOP, *CLIENTS):
                for service in callee.services:
                    for spelling in {service.name, f"{service.name}.{callee.ref.namespace}"}:
                        asked = f"${{service:{spelling}}}:{service.ports[0][0]}"
                        if asked in value:
                            edge = EdgeKey(spec.ref, callee.ref, service.ports[0][1])
                            wire = Wire(("127.0.0.1", self.ports[callee.ref.name]), self.calls, edge)
                            there = await self._stack.enter_async_context(wire)
                            env[variable] = value.replace(asked, f"127.0.0.1:{there}")
        process = Process(name, self._directory / f"{name}.log")
        self._stack.push_async_callback(process.stop)
        await process.start(spec.program.argv, env)
        self.processes[name] = process
        if spec.ports:
            async with asyncio.timeout(30):
                while not _listens(process.pid, "127.0.0.1", self.ports[name]):
                    assert process.running, process.tail()
                    await asyncio.sleep(0.05)

    def tally(self, name: str) -> Tally:
        for line in reversed(self.processes[name].tail(3).splitlines()):
            if tally := Tally.read(line):
                return tally
        return Tally()


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    async with Shop(tmp_path) as running:
        yield running


async def until(condition: Callable[[], object]) -> None:
    """Look at a condition until it holds; the caller sets the limit."""
    while not condition():  # noqa: ASYNC110 - another process changes it
        await asyncio.sleep(0.05)


async def test_every_call_in_the_table_is_made_and_no_other(shop: Shop) -> None:
    async with asyncio.timeout(60):
        await until(lambda: shop.tally("shopper").requests >= 40 and shop.tally("report").requests >= 2)
    assert set(shop.calls) == EXPECTED
    assert shop.tally("shopper").failed == 0, shop.tally("shopper").errors
    assert shop.tally("report").failed == 0, shop.tally("report").errors


async def test_a_service_that_is_gone_is_counted_as_failures_and_named(shop: Shop) -> None:
    await shop.processes["payment"].kill()
    async with aiohttp.ClientSession() as session:
        front = f"http://127.0.0.1:{shop.ports['front']}"
        async with session.post(f"{front}/checkout/somebody") as response:
            assert response.status == 502
            assert "500" in await response.text()
    async with asyncio.timeout(60):
        await until(lambda: shop.tally("shopper").failed)
    assert "checkout" in shop.tally("shopper").errors[-1]


async def test_programs_end_on_sigterm_by_themselves(shop: Shop) -> None:
    async with asyncio.timeout(60):
        await until(lambda: shop.tally("shopper").requests and shop.tally("report").requests)
    for process in reversed(list(shop.processes.values())):
        await process.stop(grace=30.0)
        assert process.returncode == 0, f"{process.name}: {process.returncode}\n{process.tail()}"


def test_every_shopper_soon_uses_everything() -> None:
    """Else the demo could close an edge before it was first used."""
    for number in range(int(SHOPPER.program.env["SHOPPERS"])):
        random = Random(number)
        first = [shopper.plan(random, "u")[:2] for _ in range(30)]
        assert {path.split("/")[1] for _, path in first} == {"", "items", "carts", "checkout"}


def test_programs_run_this_interpreter_and_nothing_of_the_mesh() -> None:
    for spec in (*SHOP, *CLIENTS):
        assert spec.program is not None
        assert spec.program.argv[0] == sys.executable
        source = Path(sys.modules["hedgerow.local.shop"].__path__[0]) / f"{spec.ref.name}.py"
        assert "sidecar" not in source.read_text()
        assert "15001" not in source.read_text()


def test_the_cache_answers_as_redis_does() -> None:
    assert cache.answer([b"PING"]) == b"+PONG\r\n"
    assert cache.answer([b"SET", b"k", b"v1"]) == b"+OK\r\n"
    assert cache.answer([b"GET", b"k"]) == b"$2\r\nv1\r\n"
    assert cache.answer([b"DEL", b"k"]) == b":1\r\n"
    assert cache.answer([b"GET", b"k"]) == b"$-1\r\n"
    assert cache.answer([b"FLUSHALL"]).startswith(b"-ERR")


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n", b"*99\r\n", b"*1\r\n$999999999\r\n", b"*1\r\n$-1\r\n"])
async def test_the_cache_refuses_what_is_no_command(sent: bytes) -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(sent)
    reader.feed_eof()
    with pytest.raises(ConnectionError):
        await cache.read_command(reader)


def test_the_database_answers() -> None:
    assert database.answer("GET 1\n") == database.ITEMS[0]
    assert database.answer("GET 99\n") is None
    assert database.answer("TOTAL\n") == sum(item["stock"] for item in database.ITEMS)
    assert "unknown" in str(database.answer("DROP\n"))


def test_a_tally_reads_what_it_wrote_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally()
    tally.succeeded()
    tally.failed_with("GET /: 502")
    last = capsys.readouterr().out.splitlines()[-1]
    assert Tally.read(last) == Tally(2, 1, ["GET /: 502"])
    assert Tally.read("Traceback (most recent call last):") is None


def test_placeholders_are_filled_and_other_braces_left_alone() -> None:
    text = "${listen}|${address}|${service:cart}|${service:db.data}|${HOME}|{listen}"
    filled = fill(text, listen="0.0.0.0", address="10.77.1.1", host_of=lambda name: f"<{name}>")
    assert filled == "0.0.0.0|10.77.1.1|<cart>|<db.data>|${HOME}|{listen}"


def test_an_instance_is_named_in_its_namespace() -> None:
    assert PlacedPod("cart-0", SHOP[3], 1, "10.77.1.1").instance == "shop/cart-0"
