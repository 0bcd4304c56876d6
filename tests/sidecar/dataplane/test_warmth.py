"""Endpoints of a destination in use are dialled before a connection goes there."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

import pytest

from certs.spiffe import SpiffeId
from graph.directory import Destination, Endpoint, Transport
from graph.model import Mode, Origin, PortRange, Rule, Selector, Snapshot, WorkloadRef
from sidecar.dataplane.proxy import DataPlane
from sidecar.dataplane.settings import DataPlaneSettings, ExplicitInbound, ExplicitOutbound
from sidecar.dataplane.sockets import Address
from sidecar.dataplane.warmth import keep_warm, warm_ahead
from tests.ports import free_port
from tests.sidecar.dataplane.applications import until
from tests.sidecar.dataplane.stand_ins import TRUST_DOMAIN, FlowList, HeldDirectory, HeldPolicy, credentials

HOST = "127.0.0.1"
SERVICE = Address("192.0.2.1", 80)
FRONT, CART, CANARY = (WorkloadRef("shop", name) for name in ("front", "cart", "canary"))


def identity(workload):
    return str(SpiffeId.for_workload(TRUST_DOMAIN, workload.namespace, "default", workload.name))


class Shop:
    """front calls a service whose endpoints are data planes of their own, in front of one application."""

    def __init__(self, authority, stack):
        self._authority, self._stack = authority, stack
        self.entrance = free_port()

    async def start(self, count, **settings):
        async def application(reader, writer):
            writer.write(await reader.read(100))
            writer.close()

        server = await asyncio.start_server(application, HOST, 0)
        self._stack.callback(server.close)
        place = Address(HOST, server.sockets[0].getsockname()[1])
        self.endpoints = [Endpoint(HOST, free_port(), identity=identity(CART)) for _ in range(count)]
        inbound = tuple(ExplicitInbound(Address(HOST, one.port), place) for one in self.endpoints)
        self.back = await self._plane(CART, {"explicit_inbound": inbound}, HeldDirectory(), Mode.LEARN)
        self.directory = HeldDirectory()
        self.answer(*self.endpoints)
        outbound = (ExplicitOutbound(Address(HOST, self.entrance), SERVICE),)
        self.front = await self._plane(FRONT, {"explicit_outbound": outbound, **settings}, self.directory, Mode.ENFORCE)

    async def _plane(self, workload, settings, directory, mode):
        to = (PortRange(1, 65535),)
        allowed = Rule("static/1", Selector.of(FRONT), Selector.of(CART), to, origin=Origin.STATIC)
        plane = DataPlane(
            DataPlaneSettings(outbound_listen=(), inbound_listen=(), **settings),
            HeldPolicy(Snapshot(workload, TRUST_DOMAIN, 1, mode, mode, rules=(allowed,))),
            directory,
            credentials(self._authority, workload.namespace, workload.name),
            FlowList(),
        )
        await plane.start()
        self._stack.callback(plane.stop)
        return plane

    def answer(self, *endpoints):
        """What the directory says of the service from now on."""
        destination = Destination(*SERVICE, workload=CART, meshed=True, service="shop/cart", endpoints=endpoints)
        self.directory.known[SERVICE] = destination

    async def call(self):
        """One connection to the service, from its beginning to its end at our side."""
        reader, writer = await asyncio.open_connection(HOST, self.entrance)
        writer.write(b"hello")
        assert await reader.read() == b"hello"
        writer.close()
        await writer.wait_closed()
        await until(lambda: not self.front.live_connections and not self.front._outbound.waiting)

    @property
    def dialled(self):
        """The ports of those to whom there is a tunnel, or will be."""
        return {port for _, port, _ in self.front._pool._slots}

    async def ready(self, count):
        await until(lambda: sum(tunnel.usable for tunnel in self.front.outbound_tunnels) == count)


@pytest.fixture
async def shop(authority):
    async with contextlib.AsyncExitStack() as stack:
        yield Shop(authority, stack)


async def test_some_of_the_other_endpoints_are_dialled_behind_the_first_connection(shop):
    await shop.start(8, warm_endpoints=3)
    await shop.call()
    assert len(shop.dialled) == 4
    await shop.ready(4)


async def test_connections_behind_it_wait_for_no_handshake(shop):
    await shop.start(3)
    await shop.call()
    await shop.ready(3)
    for acceptor in shop.back._inbound._acceptors:
        acceptor.close()  # who has to make a handshake now is refused
    for _ in range(20):
        await shop.call()


async def test_who_joins_is_dialled_and_nobody_twice(shop):
    await shop.start(4, warm_endpoints=8)
    shop.answer(*shop.endpoints[:2])
    await shop.call()
    await shop.ready(2)
    await shop.call()
    shop.answer(*shop.endpoints)
    await shop.call()
    await shop.ready(4)
    assert len(shop.front.outbound_tunnels) == 4


async def test_tunnels_that_were_let_go_are_dialled_again_when_a_connection_had_to_wait(shop):
    await shop.start(3)
    await shop.call()
    await shop.ready(3)
    for tunnel in shop.front.outbound_tunnels:
        tunnel.close("nobody used it")
    await until(lambda: not shop.dialled)
    await shop.call()
    await shop.ready(3)


async def test_nobody_is_dialled_who_may_not_be_or_can_not_be(shop):
    await shop.start(3)
    first, second, third = shop.endpoints
    shop.answer(first)
    await shop.call()
    nobody = (
        replace(second, ready=False),
        replace(second, identity=""),
        replace(second, identity=identity(CANARY), workload=CANARY),
        replace(second, transport=Transport.MTLS),
    )
    for endpoints, dialled in (((first, *nobody), {first.port}), ((first, *nobody, third), {first.port, third.port})):
        shop.answer(*endpoints)
        keep_warm(shop.front._fabric, shop.front._pool, SERVICE, shop.directory.known[SERVICE])
        assert shop.dialled == dialled
    await shop.ready(2)


async def test_who_has_just_failed_is_left_alone(shop):
    await shop.start(2, backoff=60.0, backoff_max=60.0)
    dead = replace(shop.endpoints[1], port=free_port())
    shop.answer(shop.endpoints[0], dead)
    await shop.call()
    await until(lambda: shop.front._fabric.balancer.retry_at(dead) > 0)
    await until(lambda: shop.dialled == {shop.endpoints[0].port})
    shop.answer(dead, shop.endpoints[0])
    await shop.call()
    assert shop.dialled == {shop.endpoints[0].port}


async def test_it_can_be_switched_off(shop):
    await shop.start(4, warm_endpoints=0)
    await shop.call()
    assert len(shop.dialled) == 1


class Known(list):
    """What was dialled ahead, with what the directory said of it."""

    def __call__(self, place, destination):
        self.append((place, destination))


async def ahead(shop, *places):
    """Dial ahead, to the end."""
    known = Known()
    async with asyncio.timeout(60):
        await warm_ahead(shop.front._fabric, shop.front._pool, places, known)
    return [place for place, _ in known]


async def test_after_a_start_destinations_are_dialled_before_any_connection(shop):
    await shop.start(3)
    shop.front.warm_ahead([SERVICE])
    await shop.ready(3)
    for acceptor in shop.back._inbound._acceptors:
        acceptor.close()  # who has to make a handshake now is refused
    for _ in range(10):
        await shop.call()


async def test_a_destination_with_one_endpoint_is_dialled_too(shop):
    await shop.start(1)
    assert await ahead(shop, SERVICE) == [SERVICE]
    assert len(shop.front.outbound_tunnels) == 1


async def test_of_a_large_one_only_some_endpoints_are_dialled_ahead(shop):
    await shop.start(8, warm_endpoints=3)
    await ahead(shop, SERVICE)
    assert len(shop.dialled) == 3


async def test_nobody_is_dialled_ahead_whom_the_policy_does_not_allow(shop):
    await shop.start(3)
    forbidden = replace(shop.endpoints[1], identity=identity(CANARY), workload=CANARY)
    shop.answer(forbidden, shop.endpoints[2])
    await ahead(shop, SERVICE)
    assert shop.dialled == {shop.endpoints[2].port}


async def test_nobody_is_dialled_ahead_before_there_is_a_policy(shop):
    await shop.start(1)
    policy = shop.front._fabric.authority
    allowed, subscribed = policy._snapshot, len(policy._changed)
    policy.apply(replace(allowed, version=0))
    dialling = asyncio.ensure_future(ahead(shop, SERVICE))
    await until(lambda: len(policy._changed) > subscribed)
    assert not shop.dialled
    policy.apply(allowed)
    assert await dialling == [SERVICE]
    assert len(shop.front.outbound_tunnels) == 1


async def test_what_the_directory_does_not_know_yet_is_asked_for_again(shop):
    await shop.start(1)
    answer = shop.directory.known.pop(SERVICE)
    other = Address("192.0.2.2", 80)
    shop.directory.known[other] = replace(answer, address=other.host)
    dialling = asyncio.ensure_future(ahead(shop, SERVICE, other))
    await shop.ready(1)
    shop.directory.known[SERVICE] = answer
    assert await dialling == [other, SERVICE]


async def test_who_fails_keeps_nobody_else_from_being_dialled_ahead(shop):
    await shop.start(2)
    shop.answer(replace(shop.endpoints[0], port=free_port()), shop.endpoints[1])
    await ahead(shop, SERVICE)
    assert shop.dialled == {shop.endpoints[1].port}


@pytest.mark.parametrize("why", ["off", "draining", "memory"])
async def test_there_may_be_something_more_urgent(shop, why):
    await shop.start(2, warm_endpoints=0 if why == "off" else 4)
    if why == "draining":
        shop.front._guards.draining = True
    if why == "memory":
        shop.front._guards.shedding = True
    assert not await ahead(shop, SERVICE)
    assert not shop.dialled
