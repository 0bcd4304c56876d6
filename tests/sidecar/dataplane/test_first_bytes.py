"""Clients whose first bytes are awaited, by a sidecar that is busy."""

from __future__ import annotations

import asyncio
import socket

import pytest

from graph.model import Mode, Snapshot, WorkloadRef
from tests.sidecar.dataplane import applications as apps
from tests.sidecar.dataplane.stand_ins import TRUST_DOMAIN, credentials


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\nHost: cart\r\n\r\n", b"GET / HT", b""])
async def test_who_has_spoken_in_time_is_heard_although_we_are_late(world, said):
    await world.start()
    plane = world.plane
    with socket.create_connection(("127.0.0.1", world.inbound)) as client:
        await apps.until(lambda: plane._inbound._arriving)
        (arrival,) = plane._inbound._arriving
        client.sendall(said)
        arrival._silent()  # its time is over before the loop has come round to what it said
        assert plane.detection.timeouts == (not said)


async def test_a_hello_may_be_as_late_as_a_handshake_where_nobody_is_let_in_without_one(world):
    """Found by a machine that did forty things at once: a tunnel's hello came after more than a fifth of a second."""
    await world.start(sniff_wait=0.02, handshake_timeout=60.0)
    cart = WorkloadRef("shop", "cart")
    world.policy.apply(Snapshot(cart, TRUST_DOMAIN, 2, Mode.ENFORCE, Mode.ENFORCE))
    loop = asyncio.get_running_loop()
    sock = socket.create_connection(("127.0.0.1", world.inbound))
    world.stack.callback(sock.close)
    sock.setblocking(False)
    await apps.until(lambda: world.plane._inbound._arriving)
    late = loop.time() + 0.2
    await apps.until(lambda: loop.time() > late)
    assert not world.flows.opened_records, "it was not refused"
    context = credentials(world.authority, "shop", "front").client_context
    _, writer = await asyncio.open_connection(sock=sock, ssl=context, server_hostname="x")
    await apps.until(lambda: len(world.plane.inbound_tunnels) == 1)
    writer.transport.abort()
    await apps.until(lambda: not world.plane.inbound_tunnels)


async def test_who_says_nothing_at_all_is_refused_then(world):
    await world.start(sniff_wait=0.02, handshake_timeout=0.1)
    cart = WorkloadRef("shop", "cart")
    world.policy.apply(Snapshot(cart, TRUST_DOMAIN, 2, Mode.ENFORCE, Mode.ENFORCE))
    reader, writer = await asyncio.open_connection("127.0.0.1", world.inbound)
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.read(), 20)
    writer.close()
    assert [record.decision.allowed for record in world.flows.opened_records] == [False]
    assert world.plane.detection.timeouts == 0
