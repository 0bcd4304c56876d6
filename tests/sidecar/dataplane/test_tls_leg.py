"""TLS connections that another mesh opens: every way to begin, to go on and to end, seen from their client."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import ssl
import time
from dataclasses import replace

import pytest

from graph.model import Direction, Selector, WorkloadRef
from tests.sidecar.dataplane import applications as apps
from tests.sidecar.dataplane.foreign import FRONT, HOST, POLICY, Contextual, ForeignWorld, TlsPeer, allow, enforce, lost

MEGABYTE = 1 << 20


@pytest.fixture
async def world(authority):
    async with contextlib.AsyncExitStack() as stack:
        yield ForeignWorld(authority, stack)


async def call(world, *alpn, lifetime=3600.0, identity=FRONT):
    """A proxy of the other mesh calls our application."""
    context = Contextual(world.authority, identity, lifetime).client_offering(*(alpn or ("istio",)))
    peer = await TlsPeer.connect(world.inbound, context)
    world.stack.callback(peer.close)
    return peer


async def test_a_client_that_ends_its_half_still_hears_the_answer_and_the_end(world):
    await world.start(POLICY)
    peer = await call(world)
    data = apps.payload(1, MEGABYTE)
    await peer.write(b"PUT\n" + data)
    await peer.end()
    assert (await peer.read_all()).split() == [hashlib.sha256(data).hexdigest().encode(), str(MEGABYTE).encode()]
    record = await world.ended()
    assert not record.failed


async def test_a_server_that_ends_first_still_hears_the_client(world):
    await world.start(POLICY)
    peer = await call(world)
    apps.HALF_DIGESTS.clear()
    await peer.write(b"HALF\n")
    assert await peer.read_all() == b"bye\n"
    data = apps.payload(2, MEGABYTE)
    await peer.write(data)
    await peer.end()
    await apps.until(lambda: apps.HALF_DIGESTS)
    assert [hashlib.sha256(data).hexdigest()] == apps.HALF_DIGESTS
    assert not (await world.ended()).failed


async def test_what_comes_with_the_end_of_the_handshake_is_not_lost(world):
    await world.start(POLICY)
    sock = socket.socket()
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (HOST, world.inbound))
    peer = TlsPeer(sock, Contextual(world.authority, FRONT).client_offering("istio"), server_side=False)
    world.stack.callback(peer.close)
    with pytest.raises(ssl.SSLWantReadError):
        peer.session.do_handshake()
    await peer.flush()
    while True:
        await peer._more()
        with contextlib.suppress(ssl.SSLWantReadError):
            peer.session.do_handshake()
            break
    data = apps.payload(3, 100_000)
    peer.session.write(b"PUT\n" + data)
    with contextlib.suppress(ssl.SSLWantReadError):
        peer.session.unwrap()
    await peer.flush()  # our Finished, everything, and the end at once
    assert (await peer.read_all()).split()[1] == b"100000"
    assert not (await world.ended()).failed


async def test_records_in_crumbs_and_many_in_one_segment(world):
    await world.start(POLICY)
    peer = await call(world)
    peer.session.write(b"ECHO\n")
    expected = b""
    for number in range(300):
        peer.session.write(b"%d," % number)
        expected += b"%d," % number
    wire = peer._out.read()
    peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for start in range(0, 600, 7):
        await asyncio.get_running_loop().sock_sendall(peer.sock, wire[start : start + 7])
        await asyncio.sleep(0)
    await asyncio.get_running_loop().sock_sendall(peer.sock, wire[602:])
    await peer.end()
    assert await peer.read_all() == expected


@pytest.mark.parametrize("how", ["truncate", "reset"])
async def test_a_client_that_ends_without_saying_so_is_lost(world, how):
    """Bytes that were cut off on the way must not look like all there is."""
    broken = asyncio.get_running_loop().create_future()

    async def listen(reader, writer):
        try:
            assert await reader.readexactly(5) == b"hello"
            writer.write(b"heard")
            broken.set_result(await reader.read())
        except ConnectionResetError:
            broken.set_result("reset")
        finally:
            writer.close()

    await world.start(POLICY, listen)
    peer = await call(world)
    await peer.write(b"hello")
    assert await peer.read() == b"heard"
    getattr(peer, how)()
    assert await broken == "reset"
    if how == "truncate":
        await lost(peer)
    await world.ended()


async def test_a_reset_of_the_application_is_one_for_the_client(world):
    await world.start(POLICY)
    peer = await call(world)
    await peer.write(b"RESET\n")
    await lost(peer)
    await world.ended()


async def test_an_application_that_is_not_there_is_a_reset_and_a_failure(world):
    await world.start(POLICY)
    world.served.close()
    await world.served.wait_closed()
    peer = await call(world)
    with contextlib.suppress(ConnectionError):
        await peer.write(b"ECHO\n")
    await lost(peer)
    assert (await world.ended()).failed


@pytest.mark.parametrize(
    "wire",
    [
        b"\x17\x03\x03\x00\x20" + bytes(32),  # nobody's key
        b"\x17\x03\x03\x41\x01" + bytes(16_641),  # longer than records are
        b"GET / HTTP/1.1\r\nHost: cart\r\n\r\n" + bytes(20_000),
        b"\x14\x03\x03\x00\x01\x01",  # a change of ciphers after the handshake
    ],
)
async def test_a_client_that_breaks_tls_is_lost(world, wire):
    await world.start(POLICY)
    peer = await call(world)
    await peer.write(b"ECHO\nhello")
    assert await peer.read() == b"hello"
    await asyncio.get_running_loop().sock_sendall(peer.sock, wire)
    with pytest.raises((ConnectionResetError, ssl.SSLError)):  # the alert, or the reset behind it
        await peer.read()
    await world.ended()


async def test_what_comes_after_the_end_is_ignored(world):
    await world.start(POLICY)
    peer = await call(world)
    await peer.write(b"ECHO\nhello")
    assert await peer.read() == b"hello"
    with contextlib.suppress(ssl.SSLWantReadError):
        peer.session.unwrap()
    await asyncio.get_running_loop().sock_sendall(peer.sock, peer._out.read() + bytes(100))
    assert await peer.read_all() == b""
    assert not (await world.ended()).failed


async def test_a_client_that_does_not_read_stalls_the_application_and_loses_nothing(world):
    size = 48 * MEGABYTE
    await world.start(POLICY)
    limit = world.plane._fabric.budget.left
    peer = await call(world)
    await peer.write(f"GET 4 {size}\n".encode())
    record = await world.opened()
    await stalled(world, limit, lambda: record.bytes_received)
    held = limit - world.plane._fabric.budget.left
    assert 0 < held < MEGABYTE
    assert record.bytes_received < size
    data = await peer.read_all()
    assert hashlib.sha256(data).digest() == hashlib.sha256(apps.payload(4, size)).digest()
    await peer.end()
    await world.ended()
    assert world.plane._fabric.budget.left == limit


async def test_an_application_that_does_not_read_stalls_the_client_and_loses_nothing(world):
    go_on = asyncio.Event()
    digest = asyncio.get_running_loop().create_future()

    async def listen(reader, writer):
        await go_on.wait()
        digest.set_result(hashlib.sha256(await reader.read()).digest())
        writer.close()

    size = 48 * MEGABYTE
    await world.start(POLICY, listen)
    limit = world.plane._fabric.budget.left
    peer = await call(world)
    data = apps.payload(5, size)

    async def send():
        await peer.write(data)
        await peer.end()

    sending = asyncio.create_task(send())
    record = await world.opened()
    await stalled(world, limit, lambda: record.bytes_sent)
    assert not sending.done()
    assert limit - world.plane._fabric.budget.left < MEGABYTE
    go_on.set()
    assert await digest == hashlib.sha256(data).digest()
    await sending
    await world.ended()
    assert world.plane._fabric.budget.left == limit


async def stalled(world, limit, count) -> None:
    """Something is held, and the count grows no more."""
    async with asyncio.timeout(60):
        seen = -1
        while limit == world.plane._fabric.budget.left or seen != count():
            seen = count()
            await asyncio.sleep(0.25)  # that nothing happens is told by nobody


async def test_too_much_held_resets_who_does_not_read(world):
    await world.start(POLICY, buffered_bytes=1000)
    peer = await call(world)
    await peer.write(f"GET 4 {48 * MEGABYTE}\n".encode())
    await world.ended()
    await lost(peer)
    assert world.plane._fabric.budget.left == 1000
    assert world.plane.counters.buffers_exhausted == 1


async def test_a_client_that_never_reads_is_ended(world):
    await world.start(POLICY, slow_reader=0.4)
    peer = await call(world)
    await peer.write(f"GET 4 {48 * MEGABYTE}\n".encode())
    await world.ended()
    assert world.plane.counters.slow_readers_ended == 1
    await lost(peer)


async def test_a_connection_ends_with_the_clients_certificate(world, caplog):
    await world.start(POLICY)
    peer = await call(world, lifetime=3.0)
    await peer.write(b"ECHO\nhello")
    assert await peer.read() == b"hello"
    before = time.time()
    await lost(peer)
    assert time.time() - before < 30
    await world.ended()
    assert "certificate that was shown" in caplog.text


@pytest.mark.parametrize(
    ("offered", "agreed"),
    [
        (["istio"], "istio"),
        (["istio-peer-exchange", "istio"], "istio"),
        (["istio-peer-exchange"], None),
        (["istio-http/1.1", "istio", "http/1.1"], "http/1.1"),
        (["istio-h2", "istio", "h2"], "h2"),
        (["istio-h2"], "istio-h2"),
        (["istio", "h2", "http/1.1"], "http/1.1"),
    ],
)
async def test_alpn_is_answered_with_what_follows(world, offered, agreed):
    await world.start(POLICY)
    peer = await call(world, *offered)
    assert peer.session.selected_alpn_protocol() == agreed
    await peer.write(b"ECHO\nhello")
    assert await peer.read() == b"hello"
    assert (await world.opened()).source_identity == str(FRONT)


async def web(reader, writer):
    """Answers every request with what it was told of who sends it."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            sent = b"; ".join(line for line in head.split(b"\r\n") if line.startswith(b"x-forwarded-client-cert"))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(sent), sent))
            await writer.drain()
    writer.close()


async def test_requests_of_a_proxy_are_judged_by_its_identity_one_by_one(world):
    reading = allow(Direction.INBOUND, Selector.of(WorkloadRef("mesh", "front")))
    await world.start(enforce(replace(reading, operations=("GET /carts/{id}",))), web)
    peer = await call(world, "istio-http/1.1", "istio", "http/1.1")
    forged = b"X-Forwarded-Client-Cert: URI=spiffe://hedgerow.test/ns/shop/sa/default/wl/admin\r\n"
    await peer.write(b"GET /carts/7 HTTP/1.1\r\nHost: cart\r\n" + forged + b"\r\n")
    answer = await peer.read()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert str(FRONT).encode() in answer
    assert b"admin" not in answer
    await peer.write(b"DELETE /carts/7 HTTP/1.1\r\nHost: cart\r\n\r\n")
    assert (await peer.read()).startswith(b"HTTP/1.1 403 ")
    await peer.end()
    await world.ended()
    assert [(one.operation, one.status, one.decision.allowed) for one in world.flows.requests] == [
        ("GET /carts/{id}", 200, True),
        ("DELETE /carts/{id}", 403, False),
    ]


async def test_more_than_may_be_alive_at_once_are_refused(world):
    await world.start(POLICY, connections=2)
    for _ in range(2):
        peer = await call(world)
        await peer.write(b"ECHO\nhello")
        assert await peer.read() == b"hello"
    with pytest.raises((ConnectionError, ssl.SSLError)):
        await lost(await call(world))
