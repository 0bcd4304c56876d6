"""Streams that end by halves or by a reset: nothing of them stays, and nobody fills the log."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

import pytest

from sidecar.dataplane.complaints import FIRST
from sidecar.dataplane.tunnel import Tunnel
from sidecar.dataplane.tunnel_leg import TunnelLeg
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


def faulty(monkeypatch):
    """Have whoever holds a stream raise when he is given bytes that begin with ``fault``."""
    deliver = TunnelLeg.deliver

    def raising(leg, payload, size):
        if bytes(payload[:5]) == b"fault":
            raise KeyError("a fault of ours")
        deliver(leg, payload, size)

    monkeypatch.setattr(TunnelLeg, "deliver", raising)


async def echo(reader, writer):
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def two_streams(world):
    """Two streams that carry something."""
    await world.start(handler=echo)
    raw = await world.dial()
    for stream in (1, 3):
        await opened(raw, stream)
        await answers(raw, stream, b"first")
    return raw


async def answers(raw, stream, said=b"well"):
    raw.send(frame(DATA, 0, stream, len(said)) + said)
    assert await raw.receive() == (DATA, 0, stream, len(said), said)


def faults(caplog):
    return [record.exc_info[0] for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("cut", [False, True], ids=["in one frame", "behind the beginning of a frame"])
@pytest.mark.parametrize("last", [False, True], ids=["goes on", "the last"])
async def test_a_fault_over_a_frame_ends_one_stream_and_not_the_tunnel(world, monkeypatch, caplog, cut, last):
    faulty(monkeypatch)
    raw = await two_streams(world)
    flags = FIN if last else 0
    if cut:  # what is left of the frame comes when its stream is there no more
        said = frame(DATA, flags, 1, 8) + b"fault"
        raw.send(said)
        assert await raw.receive() == (UPDATE, RST, 1, 0, b"")
        raw.send(b"..." + frame(DATA, 0, 3, 4) + b"well")
    else:
        raw.send(frame(DATA, flags, 1, 5) + b"fault" + frame(DATA, 0, 3, 4) + b"well")
        assert await raw.receive() == (UPDATE, RST, 1, 0, b"")
    assert await raw.receive() == (DATA, 0, 3, 4, b"well")
    assert faults(caplog) == [KeyError]
    await world.until(lambda: world.plane.live_connections == 1)


async def test_a_fault_over_the_rest_of_a_frame_ends_one_stream_and_not_the_tunnel(world, monkeypatch, caplog):
    faulty(monkeypatch)
    raw = await two_streams(world)
    raw.send(frame(DATA, 0, 1, 12) + b"a")
    assert await raw.receive() == (DATA, 0, 1, 1, b"a")
    raw.send(b"fault")
    assert await raw.receive() == (UPDATE, RST, 1, 0, b"")
    raw.send(b"behind" + frame(DATA, 0, 3, 4) + b"well")
    assert await raw.receive() == (DATA, 0, 3, 4, b"well")
    assert faults(caplog) == [KeyError]


async def test_a_fault_over_a_window_ends_one_stream_and_not_the_tunnel(world, monkeypatch, caplog):
    def granted(leg, length):
        raise KeyError("a fault of ours")

    raw = await two_streams(world)
    with monkeypatch.context() as patched:
        patched.setattr(TunnelLeg, "granted", granted)
        raw.send(frame(UPDATE, 0, 1, 100))
        assert await raw.receive() == (UPDATE, RST, 1, 0, b"")
    raw.send(frame(UPDATE, 0, 1, 100))
    await answers(raw, 3)
    assert faults(caplog) == [KeyError]
    await world.until(lambda: world.plane.live_connections == 1)


async def test_a_fault_over_a_stream_that_nobody_holds_is_told_to_its_peer(world, monkeypatch, caplog):
    def unheld(tunnel, stream_id):
        raise KeyError("a fault of ours")

    raw = await two_streams(world)
    with monkeypatch.context() as patched:
        patched.setattr(Tunnel, "_on_open", unheld)
        raw.send(frame(UPDATE, SYN, 5, 0))
        assert await raw.receive() == (UPDATE, RST, 5, 0, b"")
    await answers(raw, 1)
    await answers(raw, 3)
    assert faults(caplog) == [KeyError]
