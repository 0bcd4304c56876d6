"""Connections outlive certificates as long as both ends go on proving themselves, and not a moment longer.

Certificates live for seconds here and end on whole seconds; nothing depends on how fast the machine is but that one
handshake fits into half of such a life.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from graph.directory import Destination, Endpoint
from graph.model import Mode, Snapshot, WorkloadRef
from sidecar.dataplane.proxy import DataPlane
from sidecar.dataplane.settings import DataPlaneSettings, ExplicitInbound, ExplicitOutbound
from sidecar.dataplane.sockets import Address
from tests.sidecar.dataplane import applications as apps
from tests.sidecar.dataplane.stand_ins import (
    LIFE,
    TRUST_DOMAIN,
    FlowList,
    HeldDirectory,
    HeldPolicy,
    credentials,
    renew,
)
from tests.sidecar.dataplane.world import free_port

#: When they are renewed, in parts of their life; different, so that the ends renew at different times.
EARLY, LATE = 0.4, 0.55


class Pair:
    """Two data planes in this process: shop/front dials shop/cart, behind which an application echoes."""

    def __init__(self, authority, stack, life=LIFE):
        self.authority, self.stack, self.life = authority, stack, life
        self.address = free_port()
        self.front = credentials(authority, "shop", "front", lifetime=life)
        self.cart = credentials(authority, "shop", "cart", lifetime=life)
        self.front_flows, self.cart_flows = FlowList(), FlowList()

    async def start(self, **settings):
        application, inbound = free_port(), free_port()
        self.inbound_port = inbound
        server = await asyncio.start_server(apps.serve, "127.0.0.1", application)
        self.stack.callback(server.close)
        endpoint = Endpoint("127.0.0.1", inbound, identity=str(self.cart.identity))
        cart = Destination("192.0.2.1", 80, workload=WorkloadRef("shop", "cart"), meshed=True, endpoints=(endpoint,))
        listen = {"outbound_listen": (), "inbound_listen": (), "renewal_spread": 0.1} | settings
        self.inbound = DataPlane(
            DataPlaneSettings(
                explicit_inbound=(ExplicitInbound(Address("127.0.0.1", inbound), Address("127.0.0.1", application)),),
                **listen,
            ),
            self._policy("cart"),
            HeldDirectory(),
            self.cart,
            self.cart_flows,
        )
        self.outbound = DataPlane(
            DataPlaneSettings(
                explicit_outbound=(ExplicitOutbound(Address("127.0.0.1", self.address), Address("192.0.2.1", 80)),),
                **listen,
            ),
            self._policy("front"),
            HeldDirectory([cart]),
            self.front,
            self.front_flows,
        )
        for plane in (self.inbound, self.outbound):
            await plane.start()
            self.stack.callback(plane.stop)
        return self

    def _policy(self, workload):
        return HeldPolicy(Snapshot(WorkloadRef("shop", workload), TRUST_DOMAIN, 1, Mode.LEARN, Mode.LEARN))

    def keep_renewing(self, held, part):
        """What the certificate agent does: a new certificate when that part of the old one's life is over."""

        async def go_on():
            while True:
                await asyncio.sleep(self.life * part)
                renew(held, self.authority, self.life)

        task = asyncio.create_task(go_on())
        self.stack.callback(task.cancel)
        return task

    async def connect(self):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.address)
        self.stack.callback(writer.close)
        writer.write(b"ECHO\n")
        connection = Echoed(reader, writer)
        await connection.exchange()
        return connection


class Echoed:
    """A connection whose other end sends everything back."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.exchanged = 0

    async def exchange(self):
        message = b"%08d" % self.exchanged
        self.writer.write(message)
        async with asyncio.timeout(60):
            assert await self.reader.readexactly(8) == message
        self.exchanged += 1

    async def until(self, moment):
        """Exchange data without a pause until that time of the clock."""
        while time.time() < moment:
            await self.exchange()
            await asyncio.sleep(0.02)

    async def cut(self):
        """Wait for the end; answers with when it came."""
        async with asyncio.timeout(60):
            with pytest.raises(ConnectionResetError):
                await self.reader.read()
        return time.time()


@pytest.fixture
async def stack():
    async with contextlib.AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def pair(authority, stack):
    return await Pair(authority, stack).start()


@pytest.mark.parametrize(("front", "cart"), [(EARLY, LATE), (LATE, EARLY)], ids=["client-first", "server-first"])
async def test_a_connection_outlives_many_certificates_of_both_ends(pair, front, cart):
    busy = await pair.connect()
    idle = await pair.connect()
    (original,) = pair.outbound.outbound_tunnels
    (accepted,) = pair.inbound.inbound_tunnels
    born_with = original.lease.proof.end
    pair.keep_renewing(pair.front, front)
    pair.keep_renewing(pair.cart, cart)
    await busy.until(born_with + 3 * LIFE)
    await idle.exchange()
    assert original in pair.outbound.outbound_tunnels
    assert accepted in pair.inbound.inbound_tunnels
    assert len(original.streams) == len(accepted.streams) == 2
    for tunnel in (original, accepted):
        assert tunnel.lease.proof.end == born_with
        assert tunnel.lease.end > time.time() >= born_with + 3 * LIFE
    assert original.lease.proof.place == f"127.0.0.1:{pair.inbound_port}"
    assert accepted.lease.proof.place == "127.0.0.1"

    another = await pair.connect()
    assert len(original.streams) == 2, "new streams go to a new tunnel"
    await apps.until(lambda: len(pair.outbound.outbound_tunnels) <= 3)  # and whom the newest just takes over from
    for connection in (busy, idle, another):
        connection.writer.close()
    await apps.until(lambda: len(pair.outbound.outbound_tunnels) == 1)
    assert original not in pair.outbound.outbound_tunnels, "it has drained"
    assert not any(record.failed for record in pair.front_flows.closed_records + pair.cart_flows.closed_records)


async def test_fresh_connections_never_fail_while_certificates_change(authority, stack):
    # All of it shares one loop with connections that come as fast as they can: a handshake needs more time here.
    pair = await Pair(authority, stack, 2 * LIFE).start()
    first = await pair.connect()
    (original,) = pair.outbound.outbound_tunnels
    end = original.lease.proof.end + LIFE  # by then it lives by a later proof
    pair.keep_renewing(pair.front, EARLY)
    pair.keep_renewing(pair.cart, LATE)

    async def come_and_go():
        done = 0
        while time.time() < end:
            connection = await pair.connect()
            connection.writer.write_eof()
            assert await connection.reader.read() == b""
            connection.writer.close()
            done += 1
        return done

    done = await asyncio.gather(*(come_and_go() for _ in range(4)), first.until(end))
    assert all(count for count in done[:4])
    assert not any(record.failed for record in pair.front_flows.closed_records + pair.cart_flows.closed_records)


@pytest.mark.parametrize("stopped", ["client", "server"])
async def test_without_the_renewal_of_one_end_connections_are_cut_when_its_certificate_ends(pair, stopped, caplog):
    connection = await pair.connect()
    silent, other = (pair.front, pair.cart) if stopped == "client" else (pair.cart, pair.front)
    pair.keep_renewing(other, EARLY)
    last = silent.not_after + LIFE / 2
    while silent.not_after < last:  # it renews at first
        await asyncio.sleep(LIFE * EARLY)
        renew(silent, pair.authority, LIFE)
        await connection.exchange()
    cut = asyncio.create_task(connection.cut())
    assert await cut >= silent.not_after, "not before it has to be"
    await apps.until(lambda: not pair.outbound.outbound_tunnels and not pair.inbound.inbound_tunnels)
    assert "did not prove itself again before a certificate ended" in caplog.text
    assert pair.outbound.live_connections == pair.inbound.live_connections == 0
    for leases in (pair.outbound._pool.leases, pair.inbound._inbound._leases):
        assert leases._groups == {}, "nothing is remembered of tunnels that are gone"

    renew(silent, pair.authority, LIFE)
    await pair.connect()


@pytest.mark.parametrize("draining", [DataPlaneSettings().draining_tunnels, 2])
async def test_connections_that_never_end_do_not_add_a_tunnel_with_every_renewal(authority, stack, draining):
    pair = await Pair(authority, stack).start(draining_tunnels=draining)
    renew(pair.cart, pair.authority, 3600.0)
    connections = []
    for _ in range(3 * draining):
        connections.append(await pair.connect())
        renew(pair.front, pair.authority, 3600.0)
        await apps.until(lambda: taken_over(pair.outbound._pool))
    # one that was only needed as a proof is let go in its own time, and the other end hears of it later
    await apps.until(lambda: len(pair.outbound.outbound_tunnels) <= draining + 1)
    await apps.until(lambda: len(pair.outbound.outbound_tunnels) == len(pair.inbound.inbound_tunnels))
    for connection in connections:
        await connection.exchange()
        connection.writer.close()
    await apps.until(lambda: len(pair.outbound.outbound_tunnels) == 1)


async def test_a_warm_tunnel_is_let_go_also_after_an_old_one_has_drained(authority, stack):
    pair = await Pair(authority, stack).start(tunnel_idle=0.2)
    for held in (pair.front, pair.cart):
        renew(held, authority, 3600.0)
    connection = await pair.connect()
    renew(pair.front, authority, 3600.0)
    await apps.until(lambda: taken_over(pair.outbound._pool))
    (slot,) = pair.outbound._pool._slots.values()
    await apps.until(lambda: slot._idle_timer is None)  # it came, and there was still a stream
    assert len(pair.outbound.outbound_tunnels) == 2
    connection.writer.close()
    await apps.until(lambda: not pair.outbound.outbound_tunnels and not pair.inbound.inbound_tunnels)


def taken_over(dialled):
    """New streams go to a tunnel that stands for the newest certificate, and nothing is under way."""
    (slot,) = dialled._slots.values()
    return slot._dialling is None and any(
        made == dialled.generation and tunnel.usable for tunnel, made in slot.tunnels.items()
    )
