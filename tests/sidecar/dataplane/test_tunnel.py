"""A tunnel against a client that speaks raw frames: what is permitted works, every breach ends it, nothing grows."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket

import pytest

from tests.sidecar.dataplane.test_frames import frame
from tests.sidecar.dataplane.tunnelling import hold
from tests.sidecar.dataplane.world import ACK, DATA, FIN, PING, RST, SYN, UPDATE, WINDOW, opened


async def test_a_stream_by_the_book(world):
    await world.start()
    raw = await world.dial()
    await opened(raw)
    raw.send(frame(DATA, 0, 1, 9, b"ECHO\nabcd"))
    assert await raw.receive() == (DATA, 0, 1, 4, b"abcd")
    raw.send(frame(DATA, FIN, 1, 4, b"last"))
    assert await raw.receive() == (DATA, 0, 1, 4, b"last")
    assert await raw.receive() == (UPDATE, FIN, 1, 0, b"")
    await world.until(lambda: world.plane.live_connections == 0)
    assert [(record.bytes_sent, record.bytes_received, record.failed) for record in world.flows.closed_records] == [
        (13, 8, False)
    ]


async def test_an_open_with_data_and_end_in_one_frame(world):
    await world.start()
    raw = await world.dial()
    raw.send(frame(DATA, SYN | FIN, 1, 4, b"PUT\n"))
    assert await raw.receive() == (UPDATE, ACK, 1, 0, b"")
    kind, flags, stream, _, payload = await raw.receive()
    assert (kind, flags, stream) == (DATA, 0, 1)
    assert payload.endswith(b" 0\n")
    assert await raw.receive() == (UPDATE, FIN, 1, 0, b"")


async def test_an_end_that_is_read_with_data_goes_in_their_frame(world):
    sockets = []

    async def application(reader, writer):
        sockets.append(writer.get_extra_info("socket"))
        await hold(reader, writer)

    await world.start(handler=application)
    raw = await world.dial()
    raw.send(frame(DATA, SYN, 1, 4, b"\0abc"))  # no protocol that is looked at
    assert await raw.receive() == (UPDATE, ACK, 1, 0, b"")
    await world.until(lambda: sockets)
    os.write(sockets[0].fileno(), b"last words")
    sockets[0].shutdown(socket.SHUT_WR)  # nobody else had a turn since
    assert await raw.receive_as_it_is() == (DATA, FIN, 1, 10, b"last words")
    raw.send(frame(UPDATE, FIN, 1, 0))
    await world.until(lambda: world.plane.live_connections == 0)
    assert [record.bytes_received for record in world.flows.closed_records] == [10]


async def test_a_ping_is_answered(world):
    await world.start()
    raw = await world.dial()
    raw.send(frame(PING, SYN, 0, 4711))
    assert await raw.receive() == (PING, ACK, 0, 4711, b"")


async def test_an_application_that_does_not_listen_resets_the_stream_alone(world):
    await world.start()
    world.server.close()
    raw = await world.dial()
    for stream in (1, 3):
        raw.send(frame(UPDATE, SYN, stream, 0))
        assert await raw.receive() == (DATA, RST, stream, 0, b""), "a reset that says: it reached nobody"
    await world.until(lambda: len(world.flows.closed_records) == 2)
    assert all(record.failed for record in world.flows.closed_records)


@pytest.mark.parametrize(
    "breach",
    [
        [frame(UPDATE, SYN, 2, 0)],
        [frame(UPDATE, SYN, 1, 0), frame(UPDATE, SYN, 1, 0)],
        [frame(UPDATE, SYN, 5, 0), frame(UPDATE, SYN, 3, 0)],
        [frame(DATA, 0, 1, 1, b"x")],
        [frame(UPDATE, 0, 7, 1)],
        [frame(UPDATE, 0, 2, 1)],
        [frame(UPDATE, RST, 9, 0)],
        [frame(UPDATE, SYN, 1, 0), frame(UPDATE, ACK, 1, 0)],
        [frame(UPDATE, SYN, 1, 0), frame(DATA, 0, 1, WINDOW + 1)],
        [frame(UPDATE, SYN, 1, 0), frame(UPDATE, FIN, 1, 0), frame(DATA, 0, 1, 1, b"x")],
        [frame(UPDATE, SYN, 1, 0), frame(UPDATE, FIN, 1, 0), frame(UPDATE, FIN, 1, 0)],
        [frame(UPDATE, SYN, 1, 0), frame(UPDATE, 0, 1, 0xFFFFFFFF)],
        [frame(PING, ACK, 0, 1)],
        [frame(PING, SYN, 0, 1)] * 1000,
        [frame(DATA, 0, 1, 0, version=1)],
        [b"GET / HTTP/1.1\r\n\r\n"],
    ],
    ids=lambda breach: breach[-1].hex()[:24],
)
async def test_every_breach_ends_the_tunnel_with_a_protocol_error(world, breach):
    await world.start(handler=hold)
    raw = await world.dial()
    honest = await world.dial()
    await opened(honest)
    raw.send(*breach)
    await raw.gone(1)
    await world.until(lambda: len(world.plane.inbound_tunnels) == 1)
    honest.send(frame(PING, SYN, 0, 1))
    assert (await honest.receive())[0] == PING


async def test_streams_beyond_the_limit_are_reset_and_the_others_live(world):
    await world.start(streams_per_tunnel=3)
    raw = await world.dial()
    for stream in (1, 3, 5):
        await opened(raw, stream)
    raw.send(frame(UPDATE, SYN, 7, 0))
    assert await raw.receive() == (DATA, RST, 7, 0, b""), "it reached nobody, and may go elsewhere"
    raw.send(frame(UPDATE, RST, 3, 0))
    await world.until(lambda: world.plane.live_connections == 2)
    await opened(raw, 9)


async def test_rapid_resets_end_the_tunnel(world):
    await world.start(resets_per_second=50)
    raw = await world.dial()
    for number in range(200):
        raw.send(frame(UPDATE, SYN, 2 * number + 1, 0), frame(UPDATE, RST, 2 * number + 1, 0))
    await world.until(lambda: not world.plane.inbound_tunnels)
    assert world.plane.live_connections == 0


async def test_too_many_opens_end_the_tunnel(world):
    await world.start(opens_per_second=50)
    raw = await world.dial()
    raw.send(*(frame(UPDATE, SYN, 2 * number + 1, 0) for number in range(200)))
    await world.until(lambda: not world.plane.inbound_tunnels)


async def test_what_the_application_does_not_read_is_held_up_to_the_window(world):
    async def deaf(reader, writer):
        writer.transport.pause_reading()
        await done.wait()
        writer.close()

    done = asyncio.Event()
    await world.start(handler=deaf)
    raw = await world.dial()
    await opened(raw)
    sent = 0
    granted = WINDOW
    with contextlib.suppress(TimeoutError):
        while True:
            while sent < granted:
                size = min(granted - sent, 60_000)
                raw.send(frame(DATA, 0, 1, size, bytes(size)))
                sent += size
            await raw.writer.drain()
            async with asyncio.timeout(0.5):
                kind, flags, _, length, _ = await raw.receive()
            assert (kind, flags) == (UPDATE, 0)
            granted += length
    held = (256 << 20) - world.plane._fabric.budget.left
    assert 0 < held <= 1 << 20
    done.set()


async def test_a_stream_beyond_the_budget_is_reset(world):
    async def deaf(reader, writer):
        writer.transport.pause_reading()
        await done.wait()
        writer.close()

    done = asyncio.Event()
    await world.start(handler=deaf, buffered_bytes=1000)
    raw = await world.dial()
    await opened(raw)
    frames = []
    with contextlib.suppress(ConnectionError):
        for _ in range(200):
            raw.send(frame(DATA, 0, 1, 1000, bytes(1000)))
        granted = WINDOW - 200_000
        while True:
            frames.append(await raw.receive())
            _, flags, _, length, _ = frames[-1]
            if flags & RST:
                break
            granted += length
            while granted >= 1000:
                raw.send(frame(DATA, 0, 1, 1000, bytes(1000)))
                granted -= 1000
    assert frames[-1][:3] == (UPDATE, RST, 1)
    assert world.plane._fabric.budget.left == 1000
    done.set()


async def test_the_application_sends_no_more_than_the_peer_grants(world):
    await world.start()
    raw = await world.dial()
    await opened(raw)
    raw.send(frame(DATA, 0, 1, 14, b"GET 1 1000000\n"))
    received = 0
    while received < WINDOW:
        received += (await raw.receive())[3]
    assert received == WINDOW
    raw.send(frame(UPDATE, 0, 1, 1))
    assert (await raw.receive())[3] == 1
    raw.send(frame(PING, SYN, 0, 5))
    assert (await raw.receive())[0] == PING, "nothing but the answer comes"


async def test_a_peer_that_asks_and_does_not_read_is_cut_off(world, caplog):
    caplog.set_level(logging.DEBUG, "sidecar.dataplane")
    await world.start(pings_per_second=10_000_000, control_bytes=65_536)
    raw = await world.dial(receive_buffer=4096)
    raw.writer.transport.pause_reading()
    pings = frame(PING, SYN, 0, 1) * 1000
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(60):
            while world.plane.inbound_tunnels:
                raw.send(pings)
                await raw.writer.drain()
                await asyncio.sleep(0)
    assert not world.plane.inbound_tunnels
    assert "the peer does not read" in caplog.text


async def test_a_peer_that_leaves_without_a_word_resets_its_streams(world):
    ends = asyncio.Queue()

    async def watch(reader, writer):
        try:
            await reader.read()
            await ends.put("end")
        except ConnectionResetError:
            await ends.put("reset")
        writer.close()

    await world.start(handler=watch)
    raw = await world.dial()
    await opened(raw)
    raw.writer.transport.abort()
    assert await asyncio.wait_for(ends.get(), 60) == "reset"
    await world.until(lambda: world.plane.live_connections == 0)
