"""Limits of a running data plane: each ends or refuses what goes beyond it, counts that, and leaves others alone."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from tests.sidecar.dataplane import applications as apps
from tests.sidecar.dataplane.world import ACK, DATA, PING, RST, SYN, UPDATE, WINDOW, frame, opened


class Deaf:
    """An application that reads nothing until it is told to."""

    def __init__(self):
        self.listen = asyncio.Event()

    async def __call__(self, reader, writer):
        writer.transport.pause_reading()
        await self.listen.wait()
        writer.transport.resume_reading()
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data[:1])
        writer.close()


@pytest.fixture
async def deaf():
    made = Deaf()
    yield made
    made.listen.set()


async def plain(world):
    return await asyncio.open_connection("127.0.0.1", world.inbound)


async def read_all(reader):
    async with asyncio.timeout(60):
        while await reader.read(1 << 16):
            pass


async def was_reset(reader):
    with pytest.raises(ConnectionResetError):
        await read_all(reader)


async def refused(port):
    """A connection to ``port`` is reset, at once or as soon as something is read."""

    async def attempt():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            await read_all(reader)
        finally:
            await apps.close(writer)

    with pytest.raises(ConnectionResetError):
        await attempt()


async def stalled(world, raw, stream=1):
    """Send to an application that reads nothing, until it grants nothing more."""
    await opened(raw, stream)
    sent, granted = 0, WINDOW
    while world.plane.counters.slow_readers_ended == 0:
        while sent < granted:
            size = min(granted - sent, 60_000)
            raw.send(frame(DATA, 0, stream, size, bytes(size)))
            sent += size
        kind, flags, _, length, _ = await raw.receive()
        if flags & RST:
            return
        assert (kind, flags) == (UPDATE, 0)
        granted += length


async def test_an_application_that_takes_nothing_loses_its_stream_alone(world, deaf):
    await world.start(handler=deaf, slow_reader=0.4)
    before = world.plane._fabric.budget.left
    raw = await world.dial()
    await stalled(world, raw)
    assert world.plane.counters.slow_readers_ended == 1
    assert world.plane._fabric.budget.left == before
    await opened(raw, 3)
    deaf.listen.set()
    raw.send(frame(DATA, 0, 3, 1, b"x"))
    assert await raw.receive() == (DATA, 0, 3, 1, b"x")


async def test_a_client_without_tls_that_takes_nothing_is_reset(world):
    await world.start(slow_reader=0.4)
    before = world.plane._fabric.budget.left
    reader, writer = await plain(world)
    writer.transport.pause_reading()
    writer.write(b"GET 7 100000000\n")
    await world.until(lambda: world.plane.counters.slow_readers_ended == 1)
    await world.until(lambda: world.plane.live_connections == 0)
    assert world.plane._fabric.budget.left == before
    writer.transport.resume_reading()
    await was_reset(reader)
    await apps.close(writer)


async def test_a_slow_client_that_takes_something_gets_everything(world):
    await world.start(slow_reader=0.2)
    reader, writer = await plain(world)
    writer.write(b"GET 7 20000000\n")
    got = 0
    while got < 20_000_000:
        got += len(await asyncio.wait_for(reader.read(1 << 18), 60))
        if got < 8_000_000 and got % 3 == 0:
            await asyncio.sleep(0.01)
    await apps.close(writer)
    assert world.plane.counters.slow_readers_ended == 0


async def test_plain_relays_share_the_budget(world):
    """Clients that read nothing can not make us hold more than is allowed, however many they are."""
    await world.start(buffered_bytes=200_000)
    clients = [await plain(world) for _ in range(6)]
    for _, writer in clients:
        writer.transport.pause_reading()
        writer.write(b"GET 7 100000000\n")
    await world.until(lambda: world.plane.counters.buffers_exhausted >= 3)
    assert world.plane._fabric.budget.left >= 0
    for _, writer in clients:
        writer.transport.abort()
    await world.until(lambda: world.plane.live_connections == 0)
    assert world.plane._fabric.budget.left == 200_000


async def test_idle_connections_end_and_used_ones_do_not(world):
    await world.start(connection_idle=1.2)
    raw = await world.dial()
    await opened(raw, 1)
    await opened(raw, 3)
    idle_reader, idle_writer = await plain(world)
    idle_writer.write(b"ECHO\n")
    used_reader, used_writer = await plain(world)
    used_writer.write(b"ECHO\nx")
    assert await used_reader.readexactly(1) == b"x"
    raw.send(frame(DATA, 0, 1, 5, b"ECHO\n"), frame(DATA, 0, 3, 5, b"ECHO\n"))
    while world.plane.counters.idle_ended < 2:
        raw.send(frame(DATA, 0, 3, 1, b"y"))
        assert (await raw.receive())[:3] in ((DATA, 0, 3), (UPDATE, RST, 1))
        used_writer.write(b"z")
        assert await used_reader.readexactly(1) == b"z"
        await asyncio.sleep(0.05)
    await was_reset(idle_reader)
    assert world.plane.counters.idle_ended == 2
    assert world.plane.live_connections == 2
    for writer in (idle_writer, used_writer):
        await apps.close(writer)


async def test_while_memory_is_short_what_runs_goes_on_and_nothing_new_begins(world, caplog):
    await world.start()
    guards = world.plane._fabric.guards
    raw = await world.dial()
    await opened(raw, 1)
    reader, writer = await plain(world)
    writer.write(b"ECHO\na")
    assert await reader.readexactly(1) == b"a"
    guards.shedding = True
    assert world.plane.shedding
    raw.send(frame(UPDATE, SYN, 3, 0))
    assert await raw.receive() == (DATA, RST, 3, 0, b""), "somebody else may take it"
    for port in (world.inbound, world.outbound):
        await refused(port)
    writer.write(b"b")
    assert await reader.readexactly(1) == b"b"
    raw.send(frame(DATA, 0, 1, 6, b"ECHO\nc"))
    assert (await raw.receive())[:3] == (DATA, 0, 1)
    counters = world.plane.counters
    assert (counters.connections_shed, counters.streams_shed) == (2, 1)
    assert "refused a connection: memory is short" in caplog.text
    guards.shedding = False
    await opened(raw, 5)
    second, second_writer = await plain(world)
    second_writer.write(b"ECHO\nd")
    assert await second.readexactly(1) == b"d"
    for one in (writer, second_writer):
        await apps.close(one)


async def test_who_only_begins_is_dropped_for_who_comes_later(world):
    await world.start(handshakes=2, sniff_wait=60)
    silent = [await plain(world) for _ in range(3)]
    await was_reset(silent[0][0])
    assert world.plane.counters.handshakes_dropped == 1
    raw = await world.dial()
    raw.send(frame(PING, SYN, 0, 5))
    assert await raw.receive() == (PING, ACK, 0, 5, b"")
    for _, writer in silent:
        await apps.close(writer)


async def test_tunnels_of_one_address_are_counted(world):
    await world.start(tunnels_per_source=1)
    raw = await world.dial()
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await world.dial()
    assert world.plane.counters.tunnels_refused == 1
    await opened(raw)


async def test_every_refusal_is_counted(world):
    await world.start(connections=2, streams_per_tunnel=1)
    raw = await world.dial()
    await opened(raw, 1)
    raw.send(frame(UPDATE, SYN, 3, 0))
    assert await raw.receive() == (DATA, RST, 3, 0, b""), "somebody else may take it"
    await refused(world.inbound)
    raw.send(frame(UPDATE, SYN, 1, 0))  # which is open already
    await raw.gone(1)
    counters = world.plane.counters
    assert (counters.streams_refused, counters.connections_refused, counters.tunnels_broken) == (1, 1, 1)
