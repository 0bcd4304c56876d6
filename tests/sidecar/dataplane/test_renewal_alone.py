"""One end alone cuts who does not prove itself again, against a peer that enforces nothing.

Certificates live for seconds here and end on whole seconds; nothing depends on how fast the machine is but that one
handshake fits into half of such a life.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time

import pytest

from sidecar.dataplane.lease import Lease
from sidecar.dataplane.term import Term
from tests.sidecar.dataplane import applications as apps
from tests.sidecar.dataplane.stand_ins import LIFE, credentials, renew
from tests.sidecar.dataplane.test_frames import frame
from tests.sidecar.dataplane.test_lease import proof
from tests.sidecar.dataplane.timers import Loop
from tests.sidecar.dataplane.world import ACK, DATA, GO_AWAY, PING, RST, SYN, UPDATE, opened, ready


async def alive(raw, stream=1):
    """The tunnel is there and its stream reaches the application, which echoes."""
    raw.send(frame(DATA, 0, stream, 4, b"ping"))
    while True:
        kind, flags, number, _, payload = await raw.receive()
        assert not flags & RST
        if (kind, number) == (DATA, stream):
            assert payload == b"ping"
            return


async def echoing(raw, stream=1):
    await opened(raw, stream)
    raw.send(frame(DATA, 0, stream, 5, b"ECHO\n"))
    await alive(raw, stream)


async def gone_after(raw, moment):
    """The tunnel ends without a word, and not before ``moment``."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionResetError):
        while True:
            kind, _, _, _, _ = await raw.receive()
            assert kind == GO_AWAY, "nothing else comes: the server was renewed at the most"
    assert time.time() >= moment
    raw.writer.close()


async def clock_passes(moment):
    await apps.until(lambda: time.time() >= moment)


async def test_a_server_cuts_a_client_that_does_not_prove_itself_again(world, authority):
    await world.start()
    front = credentials(authority, "shop", "front", lifetime=LIFE)
    raw = await world.dial(front)
    await echoing(raw)
    await gone_after(raw, front.not_after)
    assert world.plane.inbound_tunnels == []
    assert world.plane.live_connections == 0


async def test_a_server_cuts_its_clients_when_its_own_certificate_ends(world, authority):
    await world.start(lifetime=LIFE)
    end = world.credentials.not_after
    raw = await world.dial()
    await echoing(raw)
    renew(world.credentials, authority, 3600.0)
    await gone_after(raw, end)


@pytest.mark.parametrize("renewed", ["client", "server"])
async def test_a_fresh_handshake_of_the_same_instance_extends_what_it_has_at_a_server(world, authority, renewed):
    await world.start(lifetime=LIFE if renewed == "server" else 3600.0)
    front = credentials(authority, "shop", "front", lifetime=LIFE if renewed == "client" else 3600.0)
    end = min(front.not_after, world.credentials.not_after)
    raw = await world.dial(front)
    await echoing(raw)
    renew(front if renewed == "client" else world.credentials, authority, 3600.0)
    proved = await world.dial(front)
    proved.writer.close()
    await world.until(lambda: len(world.plane.inbound_tunnels) == 1)
    await clock_passes(end + 0.5)
    await alive(raw)
    await opened(raw, 3)


@pytest.mark.parametrize(
    ("workload", "instance", "own"),
    [("front", "front-1", "front-0"), ("back", "front-0", "front-0"), ("front", "", "front-0"), ("front", "", "")],
    ids=["another-instance", "another-identity", "no-instance", "neither-names-an-instance"],
)
async def test_a_fresh_handshake_of_anybody_else_extends_nothing_at_a_server(world, authority, workload, instance, own):
    await world.start()
    front = credentials(authority, "shop", "front", instance=own, lifetime=LIFE)
    raw = await world.dial(front)
    await echoing(raw)
    other = await world.dial(credentials(authority, "shop", workload, instance=instance))
    await echoing(other)
    await gone_after(raw, front.not_after)
    await alive(other)


async def test_a_handshake_counts_for_what_was_shown_in_it_not_for_what_came_into_force_meanwhile(world, authority):
    await world.start(lifetime=60.0)
    old = world.credentials.not_after
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    front = credentials(authority, "shop", "front")
    session = front.client_context.wrap_bio(incoming, outgoing)
    reader, writer = await asyncio.open_connection("127.0.0.1", world.inbound)
    world.stack.callback(writer.close)
    with pytest.raises(ssl.SSLWantReadError):
        session.do_handshake()
    writer.write(outgoing.read())
    while True:
        incoming.write(await reader.read(4096))
        try:
            session.do_handshake()
            break
        except ssl.SSLWantReadError:
            continue
    renew(world.credentials, authority, 3600.0)
    writer.write(outgoing.read())
    await world.until(lambda: world.plane.inbound_tunnels)
    assert world.plane.inbound_tunnels[0].lease.end == old


async def dialled(world, own):
    """The data plane's tunnel to us as ``own``, with one stream."""
    arrived = await world.accept(own)
    reader, writer = await asyncio.open_connection("127.0.0.1", world.outbound)
    world.stack.callback(writer.close)
    raw = await ready(arrived)
    assert await raw.receive() == (UPDATE, SYN, 1, 0, b"")
    raw.send(frame(UPDATE, ACK, 1, 0))
    return raw, reader, writer


async def exchange(raw, reader, writer):
    writer.write(b"question")
    while (received := await raw.receive())[0] != DATA:
        assert not received[1] & RST
    assert received == (DATA, 0, 1, 8, b"question")
    raw.send(frame(DATA, 0, 1, 6, b"answer"))
    assert await reader.readexactly(6) == b"answer"


async def test_a_client_proves_itself_again_by_itself_and_then_keeps_what_it_has(world, authority):
    await world.start()
    back = credentials(authority, "shop", "back", lifetime=LIFE)
    end = back.not_after
    raw, reader, writer = await dialled(world, back)
    renew(back, authority, 3600.0)
    arrived = await world.accept(back)
    fresh = await ready(arrived)
    assert time.time() < end, "in time, and without a new stream"
    await world.until(lambda: len(world.plane.outbound_tunnels) == 2)
    await clock_passes(end + 0.5)
    await exchange(raw, reader, writer)
    fresh.writer.close()
    await world.until(lambda: len(world.plane.outbound_tunnels) == 1)
    await exchange(raw, reader, writer)


@pytest.mark.parametrize(
    ("instance", "lifetime"), [("back-1", 3600.0), ("", 3600.0)], ids=["another-instance", "no-instance"]
)
async def test_a_server_that_is_another_now_extends_nothing_at_a_client(world, authority, instance, lifetime):
    await world.start()
    back = credentials(authority, "shop", "back", lifetime=LIFE)
    raw, reader, _ = await dialled(world, back)
    arrived = await world.accept(credentials(authority, "shop", "back", instance=instance, lifetime=lifetime))
    fresh = await ready(arrived)
    with pytest.raises(ConnectionResetError):
        await reader.read()
    assert time.time() >= back.not_after
    assert await raw.reader.read() == b""
    raw.writer.close()
    await world.until(lambda: len(world.plane.outbound_tunnels) == 1)
    fresh.send(frame(PING, SYN, 0, 7))
    assert await fresh.receive() == (PING, ACK, 0, 7, b""), "the other's own tunnel is there"


async def test_a_client_cuts_a_server_that_is_not_renewed_and_tries_until_then(world, authority):
    await world.start()
    back = credentials(authority, "shop", "back", lifetime=LIFE)
    raw, reader, _ = await dialled(world, back)
    arrived = await world.accept(back)
    with pytest.raises(ConnectionResetError):
        await reader.read()
    assert time.time() >= back.not_after
    assert await raw.reader.read() == b""
    raw.writer.close()
    assert arrived.qsize() >= 1
    while not arrived.empty():
        arrived.get_nowait().writer.close()
    await world.until(lambda: world.plane.outbound_tunnels == [])


async def test_a_peer_that_leaves_again_and_again_does_not_keep_us_busy(world, authority):
    """Its first tunnel carries something, so there is always something to prove."""
    await world.start()
    raw, reader, writer = await dialled(world, credentials(authority, "shop", "back"))
    arrived = await world.accept(credentials(authority, "shop", "back"))
    raw.send(frame(GO_AWAY, 0, 0, 0))
    fresh = await asyncio.wait_for(arrived.get(), 60)
    _, _, _, number, _ = await fresh.receive()
    fresh.send(frame(PING, ACK, 0, number), frame(GO_AWAY, 0, 0, 0))
    assert await fresh.receive() == (GO_AWAY, 0, 0, 0, b"")
    fresh.writer.close()
    await world.until(lambda: len(world.plane.outbound_tunnels) == 1)
    (slot,) = world.plane._pool._slots.values()
    await world.until(lambda: slot._dialling is None)
    assert slot._proof_timer.when() > asyncio.get_running_loop().time() + 10
    assert arrived.empty()
    await exchange(raw, reader, writer)


async def test_a_client_that_gets_no_answer_to_its_proof_tries_again(world, authority):
    await world.start(connect_timeout=0.2)
    back = credentials(authority, "shop", "back", lifetime=LIFE)
    end = back.not_after
    raw, reader, writer = await dialled(world, back)
    renew(back, authority, 3600.0)
    arrived = await world.accept(back)
    deaf = await asyncio.wait_for(arrived.get(), 60)  # and says nothing
    fresh = await ready(arrived)
    deaf.writer.close()
    assert time.time() < end
    await world.until(lambda: len(world.plane.outbound_tunnels) == 2)
    await clock_passes(end + 0.2)
    await exchange(raw, reader, writer)
    fresh.writer.close()


def test_a_clock_that_was_set_is_noticed():
    loop, ended, now = Loop(), [], 1000.0
    term = Term(loop, Lease.of(proof(5000.0, 5000.0)), lambda: ended.append(now), clock=lambda: now)
    assert loop.timers[0].delay < 60.0
    loop.fire()
    assert not ended
    now = 6000.0
    loop.fire()
    assert ended == [6000.0]
    assert not loop.timers
    term.extend(Lease.of(proof(9000.0, 9000.0)))
    assert not loop.timers, "what is over stays over"


def test_a_timer_that_comes_early_ends_nothing():
    loop, ended, now = Loop(), [], 1000.0
    Term(loop, Lease.of(proof(1001.0, 1001.0)), lambda: ended.append(now), clock=lambda: now)
    assert loop.timers[0].delay == 1.0
    now = 1000.9
    loop.fire()
    assert not ended
    assert loop.timers[0].delay == pytest.approx(0.1)
