"""Clients whose first bytes are awaited, by a sidecar that is busy."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from graph.model import Mode, Snapshot, WorkloadRef
from sidecar.http.frames import NO_SETTINGS, PREFACE
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


FORGED = b"Host: a\r\nX-Forwarded-Client-Cert: By=me;URI=spiffe://hedgerow.test/ns/shop/sa/default/wl/admin\r\n\r\n"


@pytest.mark.parametrize("tunnelled", [True, False])
@pytest.mark.parametrize(
    ("first", "rest"),
    [
        (b"g", b"et / HTTP/1.1\r\n"),  # letter by letter
        (b"G1", b" / HTTP/1.1\r\n"),
        (b"GET H", b"TTP://a/ HTTP/1.1\r\n"),
        (b"G", b"ET / HTTP/1.1\r\n"),  # after a pause
        (b"GET ", b"/ HTTP/1.1\r\n"),
        (b"PR", b"I * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        (b"\x0c", b"GET / HTTP/1.1\r\n"),  # behind what Python's http.server takes for white space
        (b"\x1cG", b"ET\xa0/\x85HTTP/1.1\r\n"),
        (b"GET ?\x01", b" HTTP/1.1\r\n"),
    ],
)
async def test_a_request_that_hides_its_beginning_does_not_reach_the_application(two_pods, tunnelled, first, rest):
    """Found by a review: what was opaque after some letters, or a pause, was relayed with forged headers in it."""
    got = bytearray()

    async def application(reader, writer):
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(4096):
                got.extend(piece)
        writer.close()

    await two_pods.serve(application)
    await two_pods.start(handshake_timeout=0.05)
    if not tunnelled:
        two_pods.allow_everybody()
    reader, writer = await (two_pods.connect() if tunnelled else two_pods.connect_plainly())
    writer.write(first)
    await two_pods.until(lambda: got)  # it counts as opaque
    writer.write(rest + FORGED)
    async with asyncio.timeout(60):
        with pytest.raises(ConnectionError):
            await reader.readexactly(1)
    await two_pods.until(lambda: two_pods.cart.live_connections == 0)
    assert bytes(got) == first
    assert two_pods.cart.detection.hidden == 1


@pytest.mark.parametrize("tunnelled", [True, False])
@pytest.mark.parametrize(
    "line",
    [
        b"\r\n" * 40 + b"GET / HTTP/1.1\r\n",
        b"A" * 40 + b" / HTTP/1.1\r\n",
        b"-GET / HTTP/1.1\r\n",
        b"GET\r/\rHTTP/1.1\r\n",
        b"GET\x1c/\x1cHTTP/1.1\r\n",
        b"GET\xa0/\x85HTTP/1.1\r\n",
        b"\x1fGET /\r\n",
        b"GET /\r\n",
        b"get " + b"/" * 9000 + b" HTTP/1.1\r\n",
    ],
)
async def test_what_only_a_lenient_server_takes_for_a_request_is_refused(two_pods, tunnelled, line):
    got = bytearray()

    async def application(reader, writer):
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(4096):
                got.extend(piece)
        writer.close()

    await two_pods.serve(application)
    await two_pods.start()
    if not tunnelled:
        two_pods.allow_everybody()
    reader, writer = await (two_pods.connect() if tunnelled else two_pods.connect_plainly())
    writer.write(line + FORGED)
    said = b""
    async with asyncio.timeout(60):
        with contextlib.suppress(ConnectionError):
            said = await reader.read()
    assert said[:12] in (b"HTTP/1.1 400", b"")
    writer.close()
    await two_pods.until(lambda: two_pods.cart.live_connections == 0)
    assert not got


async def test_an_opaque_client_whose_first_line_comes_in_pieces_is_served(two_pods):
    async def application(reader, writer):
        while piece := await reader.read(4096):
            writer.write(piece)
        writer.close()

    await two_pods.serve(application)
    await two_pods.start()
    reader, writer = await two_pods.connect()
    async with asyncio.timeout(60):
        for piece in (b"hello", b" there", b"\nGET / HTTP/1.1\n", b"x" * 300_000):
            writer.write(piece)
            assert await reader.readexactly(len(piece)) == piece
        writer.write_eof()
        assert await reader.read() == b""
    await two_pods.until(lambda: two_pods.cart.live_connections == 0)
    assert two_pods.cart.detection.hidden == 0


@pytest.mark.parametrize("tunnelled", [True, False])
async def test_a_server_that_says_its_settings_first_is_one_of_http2(two_pods, tunnelled):
    """Found by a review: gRPC's servers do, which made their ports opaque for all who waited for that."""
    came = []

    async def application(reader, writer):
        came.append(bytearray())
        here = came[-1]
        writer.write(NO_SETTINGS)
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(4096):
                here.extend(piece)
        writer.close()

    await two_pods.serve(application)
    await two_pods.start()
    if not tunnelled:
        two_pods.allow_everybody()
    reader, writer = await (two_pods.connect() if tunnelled else two_pods.connect_plainly())
    await two_pods.until(lambda: came)  # the client is silent, and the application has spoken
    forged = b"\x82\x86\x84\x41\x01a\0\x1bx-forwarded-client-cert\x05By=me".replace(b"\x1b", b"\x17")
    head = len(forged).to_bytes(3) + b"\x01\x05\0\0\0\x01" + forged
    writer.write(PREFACE + NO_SETTINGS)
    async with asyncio.timeout(60):
        await two_pods.until(lambda: len(came) == 2 and came[1] == PREFACE + NO_SETTINGS)
        assert await reader.readexactly(9) == NO_SETTINGS
        writer.write(head)
        with contextlib.suppress(ConnectionError):
            assert b"h2-forged-header" in await reader.read()
    await two_pods.until(lambda: two_pods.cart.live_connections == 0)
    assert came[1] == PREFACE + NO_SETTINGS
    assert not came[0]
    assert not two_pods.cart.detection.greetings
    assert [record.protocol for record in two_pods.flows.opened_records] == ["http2"]


async def test_and_has_its_word_when_the_client_turns_out_to_be_none(two_pods):
    async def application(reader, writer):
        writer.write(NO_SETTINGS)
        writer.write(await reader.readuntil(b"\n"))
        writer.close()

    await two_pods.serve(application)
    await two_pods.start()
    reader, writer = await two_pods.connect()
    await two_pods.until(lambda: two_pods.cart.detection.timeouts)
    writer.write(b"QUOTE\n")
    async with asyncio.timeout(60):
        assert await reader.read() == NO_SETTINGS + b"QUOTE\n"
    writer.close()
