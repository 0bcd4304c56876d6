"""However bytes come: new keys, records that are cut anywhere, thousands of frames and streams in one piece."""

from __future__ import annotations

import asyncio
import time

import pytest

from certs.keys import make_csr, new_key
from certs.spiffe import SpiffeId
from sidecar.dataplane.records import SILENT_RECORDS
from tests.sidecar.dataplane.rekeying import Rekeying
from tests.sidecar.dataplane.stand_ins import ALPN, TRUST_DOMAIN
from tests.sidecar.dataplane.test_frames import frame
from tests.sidecar.dataplane.tunnelling import hold
from tests.sidecar.dataplane.world import ACK, DATA, FIN, PING, SYN, UPDATE, WINDOW, opened


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
