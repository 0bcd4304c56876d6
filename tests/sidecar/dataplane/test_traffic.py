"""Two pods with sidecars and programs that know nothing of them: bytes arrive whole, in order, and never in clear."""

from __future__ import annotations

import asyncio
import hashlib
import socket

import pytest

from tests.sidecar.dataplane import applications as apps
from tests.sidecar.dataplane.mesh import identity, meshed

PORT = 9300
ALLOW = {"rules": [{"from": "shop/front", "to": "shop/cart", "port": PORT}]}


class Pair:
    def __init__(self, client, server, front, cart):
        self.client, self.server, self.front, self.cart = client, server, front, cart


@pytest.fixture(params=["uvloop", "asyncio"])
def loop_kind(request):
    return request.param == "uvloop"


def make_pair(network, sidecars, **options):
    client, server = network.pod(), network.pod()
    directory = [
        meshed("shop/cart", [server], PORT),
        meshed("shop/cart", [server], PORT, address=server.address6),
    ]
    front = sidecars(client, "shop/front", policy=ALLOW, directory=directory, **options)
    cart = sidecars(server, "shop/cart", policy=ALLOW | {"tls": "strict"}, **options)
    return Pair(client, server, front, cart)


@pytest.fixture
def pair(network, sidecars):
    return make_pair(network, sidecars)


async def test_an_echo_goes_over_a_tunnel_and_both_ends_report_the_proved_identities(network, sidecars, loop_kind):
    pair = make_pair(network, sidecars, uvloop=loop_kind)
    async with apps.server(pair.server, PORT):
        await apps.echo(pair.client, pair.server.address, PORT, b"x" * 1000)
        await pair.front.until(lambda state: state["live"] == 0)
        await pair.cart.until(lambda state: state["live"] == 0)
    identities = [identity("shop/front"), identity("shop/cart")]
    for flows in (pair.front.flows(), pair.cart.flows()):
        assert len(flows) == 1
        (flow,) = flows
        assert (flow["source"], flow["destination"], flow["port"]) == ("shop/front", "shop/cart", PORT)
        assert (flow["verdict"], flow["failed"], flow["closed"]) == ("allow", False, True)
        assert flow["identities"] == identities
        assert flow["verified"] == [True, True]
        assert (flow["sent"], flow["received"]) == (1005, 1000)


async def test_hundreds_of_megabytes_arrive_whole_in_both_directions(pair):
    async with apps.server(pair.server, PORT):
        await apps.get(pair.client, pair.server.address, PORT, 1, 64 << 20)
        await apps.put(pair.client, pair.server.address, PORT, 2, 64 << 20)
        await asyncio.gather(
            apps.get(pair.client, pair.server.address, PORT, 3, 16 << 20),
            apps.put(pair.client, pair.server.address, PORT, 4, 16 << 20),
        )
    assert (await pair.front.until(lambda state: state["live"] == 0))["outbound"] == 1
    assert pair.front.state()["budget"] == 256 << 20


async def test_either_side_may_end_first_and_go_on_reading(pair):
    async with apps.server(pair.server, PORT):
        await apps.put(pair.client, pair.server.address, PORT, 5, 3_000_000)
        reader, writer = await apps.connect(pair.client, pair.server.address, PORT)
        writer.write(b"HALF\n")
        assert await reader.read() == b"bye\n"
        data = apps.payload(6, 3_000_000)
        apps.HALF_DIGESTS.clear()
        writer.write(data)
        await writer.drain()
        await apps.close(writer)
        await pair.cart.until(lambda state: state["live"] == 0)
        await apps.until(lambda: apps.HALF_DIGESTS)
        assert [hashlib.sha256(data).hexdigest()] == apps.HALF_DIGESTS


async def test_five_hundred_connections_at_once(pair):
    async with apps.server(pair.server, PORT):
        await asyncio.gather(
            *(apps.get(pair.client, pair.server.address, PORT, seed, 20_000 + seed * 997) for seed in range(250)),
            *(apps.echo(pair.client, pair.server.address, PORT, times=3) for _ in range(250)),
        )
    state = await pair.front.until(lambda state: state["live"] == 0)
    assert state["outbound"] == 1, "they share one tunnel"
    assert len(pair.cart.flows(verdict="allow", failed=False, closed=True)) == 500


async def test_ipv6(pair):
    async with apps.server(pair.server, PORT, address=pair.server.address6):
        await apps.get(pair.client, pair.server.address6, PORT, 7, 1_000_000)
    assert pair.cart.flows()[0]["source"] == "shop/front"


async def test_a_server_that_speaks_first(pair):
    async with apps.server(pair.server, PORT, apps.greet):
        reader, writer = await apps.connect(pair.client, pair.server.address, PORT)
        assert await reader.readline() == b"220 ready\r\n"
        writer.write(b"HELO\r\n")
        assert await reader.readline() == b"250 HELO\r\n"
        await apps.close(writer)


async def test_a_slow_reader_slows_its_sender_and_nobody_else_and_memory_stays_bounded(pair):
    async with apps.server(pair.server, PORT):
        await apps.echo(pair.client, pair.server.address, PORT)
        before = [pair.front.state()["rss"], pair.cart.state()["rss"]]
        reader, writer = await apps.connect(pair.client, pair.server.address, PORT)
        writer.transport.pause_reading()
        writer.write(b"GET 8 50000000\n")
        await asyncio.gather(*(apps.get(pair.client, pair.server.address, PORT, seed, 2_000_000) for seed in range(10)))
        after = [pair.front.state()["rss"], pair.cart.state()["rss"]]
        assert all(late - early < 40 << 20 for late, early in zip(after, before, strict=True)), (before, after)
        held = (256 << 20) - pair.front.state()["budget"]
        assert 0 < held <= 1 << 20, "the window, and no more, waits for the slow reader"
        writer.transport.resume_reading()
        data = bytearray()
        while chunk := await reader.read(1 << 20):
            data += chunk
        assert bytes(data) == apps.payload(8, 50_000_000)
        await apps.close(writer)


async def test_small_messages_are_not_stuck_behind_a_download(pair):
    async with apps.server(pair.server, PORT):
        bulk = asyncio.gather(*(apps.get(pair.client, pair.server.address, PORT, seed, 32 << 20) for seed in range(2)))
        await apps.until(lambda: pair.front.state()["streams"] >= 2)
        done = 0
        while not bulk.done():
            await apps.echo(pair.client, pair.server.address, PORT)
            done += 1
        await bulk
        assert done >= 5


async def test_resets_pass_through_in_both_directions(pair):
    async with apps.server(pair.server, PORT):
        reader, writer = await apps.connect(pair.client, pair.server.address, PORT)
        writer.write(b"RESET\n")
        with pytest.raises(ConnectionResetError):
            await reader.read()
        await apps.close(writer)
        for _ in range(20):
            reader, writer = await apps.connect(pair.client, pair.server.address, PORT)
            writer.write(b"GET 9 5000000\n")
            await reader.readexactly(1000)
            writer.transport.abort()
        await pair.front.until(lambda state: state["live"] == 0)
        await pair.cart.until(lambda state: state["live"] == 0)
        await apps.echo(pair.client, pair.server.address, PORT)
    assert pair.front.state()["budget"] == pair.cart.state()["budget"] == 256 << 20


async def test_a_port_that_nobody_listens_on_is_a_reset_and_a_failure(pair):
    await apps.refused(pair.client, pair.server.address, PORT)
    await pair.front.until(lambda state: state["live"] == 0)
    assert [flow["failed"] for flow in pair.front.flows(verdict="allow")] == [True]
    assert [flow["failed"] for flow in pair.cart.flows(verdict="allow")] == [True]


async def test_no_descriptor_or_connection_is_left_behind(pair):
    async with apps.server(pair.server, PORT):
        await apps.echo(pair.client, pair.server.address, PORT)
        await pair.front.until(lambda state: state["live"] == 0)
        before = pair.front.state()["descriptors"], pair.cart.state()["descriptors"]
        await asyncio.gather(*(apps.echo(pair.client, pair.server.address, PORT) for _ in range(100)))
        await pair.front.until(lambda state: state["live"] == 0)
        await pair.cart.until(lambda state: state["live"] == 0)
    assert (pair.front.state()["descriptors"], pair.cart.state()["descriptors"]) == before


async def test_no_byte_of_the_application_is_on_the_wire(pair):
    marker = b"a sentence that must never be seen on any wire"
    wire = pair.server.namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    wire.bind(("eth0", 0))
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    wire.setblocking(False)
    seen = bytearray()
    asyncio.get_running_loop().add_reader(wire.fileno(), lambda: seen.extend(wire.recv(65536)))
    async with apps.server(pair.server, PORT):
        await apps.echo(pair.client, pair.server.address, PORT, marker * 20, times=5)
        await pair.cart.until(lambda state: state["live"] == 0)
        await asyncio.sleep(0)
    asyncio.get_running_loop().remove_reader(wire.fileno())
    wire.close()
    assert len(seen) > 5 * 20 * len(marker), "the connection was seen"
    assert b"\x16\x03" in seen, "as TLS"
    assert marker not in seen
    assert b"ECHO" not in seen
