"""A tunnel against a peer that speaks raw frames: what is permitted works, every breach ends it, nothing grows."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
import time

import pytest

from certs.keys import make_csr, new_key
from certs.spiffe import SpiffeId
from graph.policy import Reason
from sidecar.dataplane.complaints import FIRST
from sidecar.dataplane.records import SILENT_RECORDS
from tests.sidecar.dataplane.rekeying import Rekeying
from tests.sidecar.dataplane.stand_ins import ALPN, TRUST_DOMAIN
from tests.sidecar.dataplane.test_frames import frame
from tests.sidecar.dataplane.world import ACK, DATA, FIN, GO_AWAY, PING, RST, SYN, UPDATE, WINDOW, opened, ready


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
        assert await raw.receive() == (UPDATE, RST, stream, 0, b"")
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


async def hold(reader, writer):
    """An application that neither reads nor writes until the connection ends."""
    with contextlib.suppress(ConnectionError):
        await reader.read()
    writer.close()


async def test_streams_beyond_the_limit_are_reset_and_the_others_live(world):
    await world.start(streams_per_tunnel=3)
    raw = await world.dial()
    for stream in (1, 3, 5):
        await opened(raw, stream)
    raw.send(frame(UPDATE, SYN, 7, 0))
    assert await raw.receive() == (UPDATE, RST, 7, 0, b"")
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
        async with asyncio.timeout(30):
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
    assert await asyncio.wait_for(ends.get(), 20) == "reset"
    await world.until(lambda: world.plane.live_connections == 0)


# the data plane as the one that dials


async def client(world):
    return await asyncio.open_connection("127.0.0.1", world.outbound)


async def dialled(world):
    await world.start()
    arrived = await world.accept()
    reader, writer = await client(world)
    world.stack.callback(writer.close)
    raw = await ready(arrived)
    assert await raw.receive() == (UPDATE, SYN, 1, 0, b"")
    return raw, reader, writer


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
    await asyncio.wait_for(arrived.get(), 20)
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


async def test_a_tunnel_that_ends_as_soon_as_it_is_ready_is_not_used(world):
    await world.start()
    arrived = await world.accept()
    reader, writer = await client(world)
    first = await asyncio.wait_for(arrived.get(), 20)
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


# limits of half-closed connections, and of what is said about peers


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


# what TLS itself lets a peer ask for


def rekey(client: Rekeying, times: int, asking: bool) -> int:
    """How many new keys were taken before the tunnel was lost."""
    try:
        assert client.write(frame(PING, SYN, 0, 99))
        assert client.read() == frame(PING, ACK, 0, 99)
        for number in range(times):
            if not client.rekey(asking=asking):
                return number
        if times == 1:
            assert client.write(frame(PING, SYN, 0, 100))
            assert client.read() == frame(PING, ACK, 0, 100)
        return times
    finally:
        client.close()


async def rekeying(world, tmp_path):
    await world.start()
    own = world.authority
    key = new_key()
    identity = SpiffeId.for_workload(TRUST_DOMAIN, "shop", "default", "front")
    chain = own.sign_workload(make_csr(key), identity, time.time(), 3600.0, "front-0")
    return await asyncio.to_thread(Rekeying, world.inbound, chain.chain_der, key, tmp_path, ALPN)


@pytest.mark.parametrize("asking", [False, True])
async def test_new_keys_now_and_then_are_taken(world, tmp_path, asking):
    client = await rekeying(world, tmp_path)
    assert await asyncio.to_thread(rekey, client, 1, asking) == 1
    assert world.plane.counters.tunnels_broken == 0


@pytest.mark.parametrize("asking", [False, True])
async def test_new_keys_without_end_end_the_tunnel(world, tmp_path, caplog, asking):
    client = await rekeying(world, tmp_path)
    assert await asyncio.to_thread(rekey, client, 100_000, asking) < 100_000
    await world.until(lambda: not world.plane.inbound_tunnels)
    assert world.plane.counters.tunnels_broken == 1
    assert f"more than {SILENT_RECORDS} TLS records a second that carry nothing" in caplog.text


async def test_a_megabyte_comes_back_over_records_that_are_cut_anywhere(world):
    await world.start()
    raw = await world.dial()
    await opened(raw)
    raw.send(frame(DATA, 0, 1, 5, b"ECHO\n"))
    data = bytes(range(256)) * 4096
    received = bytearray()
    granted = WINDOW - 5
    sent = 0
    while len(received) < len(data):
        size = min(granted - sent, len(data) - sent, 50_001)
        if size:
            raw.send(frame(DATA, 0, 1, size, data[sent : sent + size]))
            sent += size
            continue
        kind, _, _, length, payload = await raw.receive()
        if kind == UPDATE:
            granted += length
        else:
            received += payload
            raw.send(frame(UPDATE, 0, 1, length))
    assert bytes(received) == data


async def test_thousands_of_frames_in_one_piece_are_all_read_in_order(world):
    await world.start()
    raw = await world.dial()
    await opened(raw)
    raw.send(frame(DATA, 0, 1, 5, b"ECHO\n"), *(frame(DATA, 0, 1, 2, b"%02d" % (n % 100)) for n in range(5000)))
    raw.send(frame(UPDATE, FIN, 1, 0))
    got = b""
    while len(got) < 10_000:
        payload = (await raw.receive())[4]
        got += payload
    assert got == b"".join(b"%02d" % (n % 100) for n in range(5000))


async def test_an_end_behind_thousands_of_frames_is_seen_after_them(world):
    await world.start(handler=hold, sniff_wait=0.01)
    raw = await world.dial()
    await opened(raw)
    raw.send(*(frame(DATA, 0, 1, 1, b"x") for _ in range(5000)))
    raw.writer.close()
    await world.until(lambda: not world.plane.inbound_tunnels)
    assert [record.bytes_sent for record in world.flows.closed_records] == [5000]


@pytest.mark.parametrize("wait", [60.0, 0.3], ids=["undecided", "about to be decided"])
async def test_thousands_of_streams_are_opened_at_once_and_end_with_their_tunnel(world, wait):
    await world.start(handler=hold, sniff_wait=wait)
    raw = await world.dial()
    raw.send(*(frame(UPDATE, SYN, 2 * n + 1, 0) for n in range(2000)), frame(PING, SYN, 0, 7))
    while await raw.receive() != (PING, ACK, 0, 7, b""):
        """Some may be accepted before."""
    assert world.plane.live_connections == 2000
    if wait < 1:  # their turn comes while they are being ended
        await world.until(lambda: world.plane.detection.timeouts)
    raw.writer.transport.abort()
    await world.until(lambda: world.plane.live_connections == 0)
    assert len(world.flows.closed_records) == 2000


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
