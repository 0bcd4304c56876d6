"""Whole sidecars with several workers, what is asked of them, and clients whose connections are held or counted."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import json
from collections import Counter
from pathlib import Path

import pytest

from tests.sidecar.processes import Mesh, echo
from tests.sidecar.processes import ask as ask_once

WORKERS = 2

#: So many connections that the kernel gives every worker some: all to one of two happens once in 2 ** 31.
MANY = 32


@contextlib.asynccontextmanager
async def running(controller, directory, workers=WORKERS, **settings):
    """front → cart, and an echo service behind cart's."""
    made = Mesh(controller, directory)
    for process in (made.front, made.cart):
        process.document |= {"workers": workers} | settings
    made.allow(1)
    server = await asyncio.start_server(echo, "127.0.0.1", made.application)
    async with server, made.front, made.cart:
        await asyncio.gather(made.front.ready(), made.cart.ready())
        yield made
    for process in (made.front, made.cart):
        said = process.log.read_text()
        assert "Traceback" not in said, said
        assert "PRIVATE KEY" not in said


async def stats(process):
    return json.loads((await process.get("/stats"))[1])


async def workers_of(process):
    return (await stats(process))["workers"]


async def settled(condition, *, seconds=20):
    """Wait until an awaited condition is true; its value."""
    async with asyncio.timeout(seconds):
        while not (value := await condition()):  # noqa: ASYNC110  # processes have no event for it
            await asyncio.sleep(0.02)
    return value


async def ask(port, text=b"hello"):
    """What comes back for ``text``; empty when the connection is refused, however early."""
    try:
        return await ask_once(port, text)
    except OSError as error:
        if error.errno not in (errno.ECONNRESET, errno.ENOTCONN):
            raise
        return b""


def children(process):
    """The processes that a sidecar has started, with their command lines."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((path / "stat").read_text().rpartition(")")[2].split()[1]) == process.child.pid:
                found[int(path.name)] = (path / "cmdline").read_bytes().split(b"\0")
    return found


class Held:
    """Connections that stay open, and are used."""

    def __init__(self, port, count=MANY):
        self._port = port
        self._count = count

    async def __aenter__(self):
        opened = (asyncio.open_connection("127.0.0.1", self._port) for _ in range(self._count))
        self._open = await asyncio.gather(*opened)
        await self.use()
        return self

    async def __aexit__(self, *_):
        for _, writer in self._open:
            writer.close()
        for _, writer in self._open:
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def use(self):
        """One request on each, which is answered."""
        assert all(await self.alive())

    async def alive(self):
        """One request on each; whether it was answered."""
        return await asyncio.gather(*(self._ask(*one) for one in self._open))

    @staticmethod
    async def _ask(reader, writer):
        try:
            writer.write(b"still there?")
            async with asyncio.timeout(10):
                return await reader.readexactly(12) == b"still there?"
        except (ConnectionError, asyncio.IncompleteReadError):
            return False

    async def ended(self):
        """Wait until every one is over."""

        async def one(reader):
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await asyncio.wait_for(reader.readexactly(1), 10)

        await asyncio.gather(*(one(reader) for reader, _ in self._open))


@contextlib.asynccontextmanager
async def load(port, rate=100):
    """Requests at a steady rate, each on a connection of its own; how many ended how."""
    outcomes: Counter[str] = Counter()
    asking: set[asyncio.Task[None]] = set()

    async def one():
        try:
            async with asyncio.timeout(30):
                answer = await ask(port, b"how are you?")
            outcomes["answered" if answer == b"how are you?" else f"wrong: {answer!r}"] += 1
        except OSError as error:
            outcomes[f"{type(error).__name__}: {error}"] += 1

    async def run():
        loop = asyncio.get_running_loop()
        begin = loop.time()
        for number in itertools.count():
            task = asyncio.ensure_future(one())
            asking.add(task)
            task.add_done_callback(asking.discard)
            await asyncio.sleep(max(0.0, begin + number / rate - loop.time()))

    running_ = asyncio.ensure_future(run())
    try:
        yield outcomes
    finally:
        running_.cancel()
        await asyncio.gather(running_, return_exceptions=True)
        await asyncio.gather(*asking)


def connections(controller, direction, reporter=""):
    flows = [one for one in controller.flows if one.direction is direction and one.reporter.startswith(reporter)]
    return sum(flow.connections for flow in flows)


async def told(process, records):
    """Whether workers have told of so many connections."""
    return sum(one["records"] for one in await workers_of(process)) == records


async def equal(measured, wanted):
    return await measured == wanted


async def spread(process):
    """Whether every worker carries connections, as of its last word."""
    return all(one["connections"] for one in await workers_of(process))


async def all_dead(held):
    return not any(await held.alive())


def boot_of(process, controller):
    """The run of the sidecar that reported for an instance."""
    (boot,) = {
        boot for (boot, _), batch in controller.batches.items() for flow in batch.flows if flow.reporter == "front-1"
    }
    assert process.instance == "front-1"
    return boot


async def back(process, gone):
    """Whether all workers listen, and ``gone`` is none of them."""
    workers = await workers_of(process)
    return len(workers) == WORKERS and all(one["listening"] and one["process"] != gone for one in workers)


async def grown(process, before):
    """Whether each has carried more than it had."""
    return all(one["records"] > before[one["worker"]] for one in await workers_of(process))


async def hello(mesh):
    return set(await asyncio.gather(*(ask(mesh.entrance) for _ in range(8)))) == {b"hello"}


async def all_of(process):
    workers = await workers_of(process)
    return workers if len(workers) == WORKERS and all(one["listening"] for one in workers) else None


async def one_missing(process):
    return len([one for one in await workers_of(process) if one["listening"]]) < WORKERS


def listening(port):
    """Of each socket that listens on ``port``: how many connections wait in it, by the kernel's word (proc(5))."""
    lines = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return [int(queues.split(":")[1], 16) for _, local, _, state, queues, *_ in lines if (
        state == "0A" and int(local.split(":")[1], 16) == port
    )]  # fmt: skip
