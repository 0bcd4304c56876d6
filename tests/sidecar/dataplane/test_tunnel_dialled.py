"""The data plane as the one that dials, against a server that speaks raw frames."""

from __future__ import annotations

import asyncio
import socket

import pytest

from graph.policy import Reason
from tests.sidecar.dataplane.stand_ins import renew
from tests.sidecar.dataplane.test_frames import frame
from tests.sidecar.dataplane.tunnelling import client, dialled
from tests.sidecar.dataplane.world import ACK, DATA, FIN, GO_AWAY, PING, RST, SYN, UPDATE, WINDOW, ready


async def test_a_dialled_stream_by_the_book(world):
    raw, reader, writer = await dialled(world)
    writer.write(b"question")
    assert await raw.receive() == (DATA, 0, 1, 8, b"question")
    raw.send(frame(UPDATE, ACK, 1, 0), frame(DATA, 0, 1, 6, b"answer"))
    assert await reader.readexactly(6) == b"answer"
    writer.write_eof()
    assert await raw.receive() == (UPDATE, FIN, 1, 0, b"")
    raw.send(frame(DATA, FIN, 1, 3, b"bye"))
    assert await reader.read() == b"bye"
    await world.until(lambda: world.plane.live_connections == 0)
    (record,) = world.flows.closed_records
    assert (record.bytes_sent, record.bytes_received, record.failed) == (8, 9, False)


@pytest.mark.parametrize("size", [1, 60_000])
async def test_data_with_an_end_reach_a_client_that_is_not_reading_yet(world, size):
    raw, reader, writer = await dialled(world)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    writer.transport.pause_reading()
    raw.send(frame(UPDATE, ACK, 1, 0))
    sent = b""
    for part in range(4):
        payload = bytes([part]) * size
        raw.send(frame(DATA, FIN if part == 3 else 0, 1, size, payload))
        sent += payload
    await world.until(lambda: [record.bytes_received > 0 for record in world.flows.opened_records] == [True])
    writer.transport.resume_reading()
    assert await reader.read() == sent
    writer.close()
    while (await raw.receive())[:2] != (UPDATE, FIN):
        pass  # a window that was granted before
    await world.until(lambda: world.plane.live_connections == 0)
    assert [(record.bytes_received, record.failed) for record in world.flows.closed_records] == [(4 * size, False)]


async def test_a_stream_that_the_peer_refuses_is_a_reset_and_a_failure(world):
    raw, reader, _ = await dialled(world)
    raw.send(frame(UPDATE, RST, 1, 0))
    with pytest.raises(ConnectionResetError):
        await reader.read()
    await world.until(lambda: world.flows.closed_records)
    assert world.flows.closed_records[0].failed


async def test_a_peer_that_accepts_the_handshake_and_says_nothing_is_given_up(world):
    await world.start(connect_timeout=0.3)
    arrived = await world.accept()
    reader, _ = await client(world)
    await asyncio.wait_for(arrived.get(), 60)
    with pytest.raises(ConnectionResetError):
        await reader.read()
    assert world.flows.closed_records[0].failed
    assert world.plane.outbound_tunnels == []


@pytest.mark.parametrize("alpn", [(), ("h2",)])
async def test_a_server_that_does_not_agree_to_our_protocol_is_refused(world, alpn):
    await world.start()
    arrived = await world.accept(alpn=alpn)
    reader, _ = await client(world)
    with pytest.raises(ConnectionResetError):
        await reader.read()
    assert arrived.empty() or await arrived.get_nowait().reader.read() == b""
    await world.until(lambda: world.flows.opened_records)
    assert world.flows.opened_records[0].decision.reason is Reason.UNTRUSTED_PEER
    assert world.plane.outbound_tunnels == []


async def test_a_meshed_endpoint_without_a_name_is_not_connected_to(world):
    await world.start(identity="")
    arrived = await world.accept()
    reader, _ = await client(world)
    with pytest.raises(ConnectionResetError):
        await reader.read()
    assert arrived.empty()
    assert world.flows.closed_records[0].failed


async def test_streams_that_wait_share_one_dial(world):
    await world.start()
    arrived = await world.accept()
    clients = [await client(world) for _ in range(10)]
    raw = await ready(arrived)
    streams = {(await raw.receive())[2] for _ in range(10)}
    assert streams == set(range(1, 21, 2))
    for _, writer in clients:
        writer.close()


@pytest.mark.parametrize(
    "breach",
    [
        frame(UPDATE, SYN, 2, 0),
        frame(UPDATE, SYN, 3, 0),
        frame(DATA, 0, 3, 0),
        frame(UPDATE, ACK, 1, 0) * 2,
        frame(PING, ACK, 0, 1),
        frame(DATA, 0, 1, WINDOW + 1),
    ],
    ids=lambda breach: breach.hex()[:24],
)
async def test_a_server_that_breaks_the_protocol_is_left(world, breach):
    raw, reader, _ = await dialled(world)
    raw.send(breach)
    with pytest.raises(ConnectionResetError):
        await reader.read()
    await raw.gone(1)
    await world.until(lambda: world.plane.outbound_tunnels == [])


async def test_after_go_away_old_streams_go_on_and_new_ones_take_a_new_tunnel(world):
    await world.start()
    arrived = await world.accept()
    reader, writer = await client(world)
    old = await ready(arrived)
    assert (await old.receive())[:3] == (UPDATE, SYN, 1)
    old.send(frame(UPDATE, ACK, 1, 0), frame(GO_AWAY, 0, 0, 0))
    new = await ready(arrived)
    await world.until(lambda: any(tunnel.usable for tunnel in world.plane.outbound_tunnels))
    _, another = await client(world)
    assert (await new.receive())[:3] == (UPDATE, SYN, 1)
    old.send(frame(DATA, FIN, 1, 5, b"still"))
    assert await reader.read() == b"still"
    writer.close()
    assert await old.receive() == (UPDATE, FIN, 1, 0, b"")
    assert await old.receive() == (GO_AWAY, 0, 0, 0, b"")
    old.writer.close()
    await world.until(lambda: len(world.plane.outbound_tunnels) == 1)
    another.close()


async def test_after_a_renewal_the_old_tunnel_takes_streams_until_the_new_one_is_ready(world, authority):
    await world.start(connect_timeout=60.0)
    arrived = await world.accept()
    _, first = await client(world)
    old = await ready(arrived)
    assert (await old.receive())[:3] == (UPDATE, SYN, 1)
    renew(world.credentials, authority, 3600.0)
    new = await asyncio.wait_for(arrived.get(), 60)
    kind, flags, _, number, _ = await new.receive()
    assert (kind, flags) == (PING, SYN)
    _, second = await client(world)
    assert (await old.receive())[:3] == (UPDATE, SYN, 3), "nobody waits for the new one"
    new.send(frame(PING, ACK, 0, number))
    await world.until(lambda: len(world.plane.outbound_tunnels) == 2)
    _, third = await client(world)
    assert (await new.receive())[:3] == (UPDATE, SYN, 1)
    for writer in (first, second, third):
        writer.close()


async def test_a_tunnel_that_ends_as_soon_as_it_is_ready_is_not_used(world):
    await world.start()
    arrived = await world.accept()
    reader, writer = await client(world)
    first = await asyncio.wait_for(arrived.get(), 60)
    _, _, _, number, _ = await first.receive()
    first.send(frame(PING, ACK, 0, number), frame(GO_AWAY, 0, 0, 0))
    second = await ready(arrived)
    assert (await second.receive())[:3] == (UPDATE, SYN, 1)
    second.send(frame(UPDATE, ACK, 1, 0), frame(DATA, FIN, 1, 2, b"ok"))
    assert await reader.read() == b"ok"
    writer.close()
    first.writer.close()


async def test_streams_beyond_what_a_tunnel_takes_get_another_tunnel(world):
    await world.start(streams_per_tunnel=2)
    arrived = await world.accept()
    clients = [await client(world) for _ in range(3)]
    raw = await ready(arrived)
    assert [(await raw.receive())[2] for _ in range(2)] == [1, 3]
    another = await ready(arrived)
    assert (await another.receive())[:3] == (UPDATE, SYN, 1)
    for _, writer in clients:
        writer.close()


async def test_a_tunnel_is_closed_in_good_order_when_it_is_no_longer_needed(world):
    await world.start(tunnel_idle=0.1)
    arrived = await world.accept()
    reader, writer = await client(world)
    raw = await ready(arrived)
    assert (await raw.receive())[:2] == (UPDATE, SYN)
    raw.send(frame(UPDATE, ACK, 1, 0), frame(UPDATE, FIN, 1, 0))
    assert await reader.read() == b""
    writer.close()
    assert await raw.receive() == (UPDATE, FIN, 1, 0, b"")
    assert await raw.receive() == (GO_AWAY, 0, 0, 0, b"")
    assert await raw.reader.read() == b""
    raw.writer.close()
    await world.until(lambda: world.plane.outbound_tunnels == [])
