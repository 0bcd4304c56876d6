"""Tunnels between sidecars are renewed, let go, given up and drained, and connections suffer by none of it."""

from __future__ import annotations

import asyncio

import pytest

from tests.sidecar.dataplane import applications as apps
from tests.sidecar.dataplane.mesh import meshed
from tests.sidecar.dataplane.netns import ip
from tests.sidecar.dataplane.shop import ALLOW, PORT, STRICT, ended, open_echo


@pytest.mark.parametrize("side", ["client", "server", "both"])
async def test_renewal_under_load_fails_nothing(pods, sidecars, side):
    client, server = pods
    front = sidecars(
        client, "shop/front", policy=ALLOW, directory=[meshed("shop/cart", [server], PORT)], renewal_spread=0.05
    )
    cart = sidecars(server, "shop/cart", policy=STRICT, renewal_spread=0.05)
    stop = asyncio.Event()
    done = 0

    async def load() -> None:
        nonlocal done
        while not stop.is_set():
            await apps.echo(client, server.address, PORT, times=3)
            done += 1

    async with apps.server(server, PORT):
        reader, writer = await open_echo(client, server.address)
        running = [asyncio.create_task(load()) for _ in range(8)]
        for _ in range(6):
            for sidecar in {"client": [front], "server": [cart], "both": [front, cart]}[side]:
                sidecar.do("renew", lifetime=3600.0)
            target = done + 40
            await apps.until(lambda target=target: done >= target)
        stop.set()
        await asyncio.gather(*running)
        writer.write(b"alive")
        assert await reader.readexactly(5) == b"alive"
        state = await front.until(lambda state: state["outbound"] == 2)
        assert state["streams"] == 1, "the old tunnel waits for its last stream, and one is warm"
        await apps.close(writer)
        await front.until(lambda state: state["outbound"] <= 1)  # the warm one may have been let go meanwhile
    assert front.flows(failed=True) == cart.flows(failed=True) == []
    assert front.flows(verdict="deny") == cart.flows(verdict="deny") == []


async def test_a_tunnel_ends_with_its_certificate(pods, sidecars):
    client, server = pods
    front = sidecars(client, "shop/front", policy=ALLOW, directory=[meshed("shop/cart", [server], PORT)])
    cart = sidecars(server, "shop/cart", policy=STRICT)
    async with apps.server(server, PORT):
        front.do("renew", lifetime=4.0)
        reader, writer = await open_echo(client, server.address)
        await ended(reader)
        await apps.close(writer)
        await front.until(lambda state: state["outbound"] == 0)
        await cart.until(lambda state: state["inbound"] == 0)
        await apps.refused(client, server.address, PORT)
        front.do("renew", lifetime=3600.0)
        await apps.echo(client, server.address, PORT)


async def test_an_idle_tunnel_is_let_go_and_comes_back(pods, sidecars):
    client, server = pods
    front = sidecars(
        client, "shop/front", policy=ALLOW, directory=[meshed("shop/cart", [server], PORT)], tunnel_idle=0.2
    )
    cart = sidecars(server, "shop/cart", policy=STRICT)
    async with apps.server(server, PORT):
        await apps.echo(client, server.address, PORT)
        await front.until(lambda state: state["outbound"] == 0)
        await cart.until(lambda state: state["inbound"] == 0)
        await apps.echo(client, server.address, PORT)


async def test_a_peer_that_vanishes_is_noticed(pods, sidecars):
    client, server = pods
    front = sidecars(
        client,
        "shop/front",
        policy=ALLOW,
        directory=[meshed("shop/cart", [server], PORT)],
        keepalive=0.3,
        keepalive_timeout=0.3,
    )
    sidecars(server, "shop/cart", policy=STRICT)
    async with apps.server(server, PORT):
        reader, writer = await open_echo(client, server.address)
        await front.until(lambda state: state["answers"] >= 4)
        writer.write(b"there?")
        assert await reader.readexactly(6) == b"there?"
        ip("-n", server.namespace.name, "link", "set", "eth0", "down")
        await ended(reader)
        await apps.close(writer)
    assert front.state()["outbound"] == 0


async def test_draining_finishes_what_is_alive(pods, sidecars):
    client, server = pods
    front = sidecars(client, "shop/front", policy=ALLOW, directory=[meshed("shop/cart", [server], PORT)])
    cart = sidecars(server, "shop/cart", policy=STRICT)
    async with apps.server(server, PORT):
        reader, writer = await open_echo(client, server.address)
        draining = asyncio.create_task(asyncio.to_thread(cart.do, "drain", deadline=20.0))
        writer.write(b"last words")
        assert await reader.readexactly(10) == b"last words"
        assert not draining.done()
        writer.write_eof()
        assert await reader.read() == b""
        await apps.close(writer)
        await draining
        await apps.refused(client, server.address, PORT)
    await front.until(lambda state: state["outbound"] == 0)


async def test_too_many_connections_are_refused_and_the_rest_goes_on(pods, sidecars):
    client, server = pods
    sidecars(client, "shop/front", policy=ALLOW, directory=[meshed("shop/cart", [server], PORT)], connections=3)
    sidecars(server, "shop/cart", policy=STRICT)
    async with apps.server(server, PORT):
        kept = [await open_echo(client, server.address) for _ in range(3)]
        await apps.refused(client, server.address, PORT)
        for reader, writer in kept:
            writer.write(b"on")
            assert await reader.readexactly(2) == b"on"
            await apps.close(writer)
