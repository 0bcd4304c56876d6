"""Streams that end by halves or by a reset: nothing of them stays, and nobody fills the log."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

import pytest

from sidecar.dataplane.complaints import FIRST
from tests.sidecar.dataplane.test_frames import frame
from tests.sidecar.dataplane.tunnelling import client, dialled
from tests.sidecar.dataplane.world import ACK, DATA, FIN, RST, SYN, UPDATE, WINDOW, opened, ready


class Half:
    """An application that goes on after the other side has ended, until the connection is gone.

    :param saying: what it says every now and then
    """

    def __init__(self, saying=b""):
        self.saying = saying
        self.running = 0

    async def __call__(self, reader, writer):
        self.running += 1
        sock = writer.get_extra_info("socket")
        with contextlib.suppress(ConnectionError):
            await reader.read()
            while not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) and not writer.transport.is_closing():
                writer.write(self.saying)
                await writer.drain()
                await asyncio.sleep(0.02)
        writer.close()
        self.running -= 1


async def test_a_half_closed_stream_that_carries_nothing_is_reset(world):
    half = Half()
    await world.start(handler=half, half_closed_idle=0.2)
    raw = await world.dial()
    await opened(raw)
    await opened(raw, 3)
    raw.send(frame(UPDATE, FIN, 1, 0))
    assert await raw.receive() == (UPDATE, RST, 1, 0, b"")
    await world.until(lambda: world.plane.live_connections == half.running == 1)
    raw.send(frame(UPDATE, RST, 3, 0))
    await world.until(lambda: not half.running)


async def test_a_half_closed_stream_that_carries_something_goes_on(world):
    half = Half(b".")
    await world.start(handler=half, half_closed_idle=1.0)
    raw = await world.dial()
    raw.send(frame(UPDATE, SYN | FIN, 1, 0))
    assert await raw.receive() == (UPDATE, ACK, 1, 0, b"")
    for _ in range(120):
        kind, flags, stream, _, _ = await raw.receive()
        assert (kind, flags, stream) == (DATA, 0, 1)
    raw.send(frame(UPDATE, RST, 1, 0))
    await world.until(lambda: not half.running)


async def test_a_half_closed_stream_that_we_dialled_is_reset(world):
    await world.start(half_closed_idle=0.2)
    arrived = await world.accept()
    reader, writer = await client(world)
    raw = await ready(arrived)
    assert (await raw.receive())[:3] == (UPDATE, SYN, 1)
    raw.send(frame(UPDATE, ACK, 1, 0))
    writer.write_eof()
    assert await raw.receive() == (UPDATE, FIN, 1, 0, b"")
    assert await raw.receive() == (UPDATE, RST, 1, 0, b"")
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    assert not world.flows.closed_records[0].failed


async def test_a_half_closed_plain_connection_that_carries_nothing_is_reset(world):
    half = Half()
    await world.start(handler=half, half_closed_idle=0.2, sniff_wait=0.01)
    reader, writer = await asyncio.open_connection("127.0.0.1", world.inbound)
    writer.write(b"plain")
    writer.write_eof()
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    await world.until(lambda: world.plane.live_connections == half.running == 0)


async def test_a_hostile_peer_does_not_fill_the_log(world, caplog):
    await world.start()
    for _ in range(20):
        raw = await world.dial()
        raw.send(b"GET / HTTP/1.1\r\n\r\n")
        await raw.gone(1)
    await world.until(lambda: not world.plane.inbound_tunnels)

    def warnings():
        return [record.getMessage() for record in caplog.records if "broke the tunnel protocol" in record.getMessage()]

    assert len(warnings()) == FIRST
    assert "wl/front at 127.0.0.1, a client of port" in warnings()[0]
    world.plane.stop()
    assert warnings()[FIRST:]
    assert warnings()[FIRST].startswith(f"{20 - FIRST} more of this kind")


def break_off(writer):
    """Reset the connection."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def until_reset(raw):
    """How many bytes of stream 1 came before its reset."""
    size = 0
    while True:
        kind, flags, stream, length, _ = await raw.receive()
        assert stream == 1
        if flags & RST:
            return size
        size += length if kind == DATA else 0


async def test_a_client_that_resets_is_noticed_although_its_peer_takes_nothing(world):
    """Found by pipelining without end: who resets with both windows used up was never heard of again."""
    raw, _, writer = await dialled(world)
    raw.send(frame(UPDATE, ACK, 1, 0))
    writer.write(bytes(2 * WINDOW))
    size = 0
    while size < WINDOW:
        size += (await raw.receive())[3]
    break_off(writer)
    assert await until_reset(raw) == 0
    await world.until(lambda: world.plane.live_connections == 0)


async def test_a_client_that_resets_before_its_answer_is_noticed_although_its_peer_takes_nothing(world):
    raw, _, writer = await dialled(world)
    writer.transport.pause_reading()
    raw.send(frame(UPDATE, ACK, 1, 0))
    writer.write(bytes(2 * WINDOW))
    size = 0
    while size < WINDOW:
        size += (await raw.receive())[3]
    raw.send(frame(DATA, 0, 1, 1000, bytes(1000)))
    break_off(writer)
    raw.send(*(frame(DATA, 0, 1, 1000, bytes(1000)) for _ in range(200)))
    assert await until_reset(raw) == 0
    await world.until(lambda: world.plane.live_connections == 0)
    assert world.plane.buffered == 0
