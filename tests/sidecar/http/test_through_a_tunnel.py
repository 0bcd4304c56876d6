"""The ``http`` lane behind a real tunnel: two data planes, real TLS, real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import os

import aiohttp
import pytest
from aiohttp import web

from tests.sidecar.dataplane.two_pods import CART_ID, FRONT_ID, HOST

MIB = 1 << 20


class Shop:
    """An aiohttp application; ``seen`` is what it was asked."""

    def __init__(self):
        self.seen = []
        self.headers = []
        self.body = os.urandom(5 * MIB)

    async def start(self, two_pods):
        app = web.Application(client_max_size=64 * MIB)
        app.router.add_get("/chat", self.chat)
        app.router.add_get("/large", self.large)
        app.router.add_route("*", "/{rest:.*}", self.any)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, HOST, two_pods.application).start()
        two_pods.stack.push_async_callback(runner.cleanup)
        return self

    def note(self, request):
        self.seen.append(f"{request.method} {request.raw_path}")
        self.headers.append(request.headers)

    async def any(self, request):
        self.note(request)
        digest = hashlib.sha256()
        async for piece in request.content.iter_chunked(MIB):
            digest.update(piece)
        return web.Response(text=digest.hexdigest())

    async def large(self, request):
        self.note(request)
        response = web.StreamResponse()
        if "sized" in request.query:
            response.content_length = len(self.body)
        await response.prepare(request)
        for start in range(0, len(self.body), 100_000):
            await response.write(self.body[start : start + 100_000])
        await response.write_eof()
        return response

    async def chat(self, request):
        self.note(request)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data[::-1])
        return socket


async def read_response(reader):
    """Status and body of a response whose body has a length."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return int(head.split()[1]), await reader.readexactly(length), head


@pytest.fixture
async def shop(two_pods):
    return await Shop().start(two_pods)


async def test_one_connection_serves_many_requests_each_judged(two_pods, shop):
    await two_pods.start("GET /cart/{id}", "POST /cart")
    async with asyncio.timeout(30), aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
        for number in range(20):
            async with session.get(f"http://{HOST}:{two_pods.door}/cart/{number}") as response:
                assert response.status == 200
            async with session.get(f"http://{HOST}:{two_pods.door}/admin") as response:
                assert response.status == 403
                assert response.headers["x-hedgerow-reason"] == "no-rule"
            async with session.post(f"http://{HOST}:{two_pods.door}/cart", data=b"x" * 100) as response:
                assert response.status == 200
    assert len(shop.seen) == 40
    assert not [line for line in shop.seen if "admin" in line]
    await two_pods.until(lambda: len(two_pods.flows.requests) == 60)
    (record,) = two_pods.flows.opened_records
    assert record.protocol == "http"
    assert record.source_identity == FRONT_ID


async def test_pipelined_requests_are_answered_in_order(two_pods, shop):
    await two_pods.start("GET /a", "GET /b")
    reader, writer = await two_pods.connect()
    paths = [b"/a", b"/no", b"/b", b"/no", b"/a"] * 10
    writer.write(b"".join(b"GET %b HTTP/1.1\r\nHost: cart\r\n\r\n" % path for path in paths))
    async with asyncio.timeout(30):
        statuses = [(await read_response(reader))[0] for _ in paths]
    assert statuses == [403 if path == b"/no" else 200 for path in paths]
    assert [line.split()[1] for line in shop.seen] == [path.decode() for path in paths if path != b"/no"]


@pytest.mark.parametrize("chunked", [True, False])
async def test_five_megabytes_go_up_whole(two_pods, shop, chunked):
    await two_pods.start("PUT /file")
    body = os.urandom(5 * MIB)

    async def pieces():
        for start in range(0, len(body), 77_777):
            yield body[start : start + 77_777]

    async with asyncio.timeout(60), aiohttp.ClientSession() as session:
        for _ in range(2):
            data = pieces() if chunked else io.BytesIO(body)
            async with session.put(f"http://{HOST}:{two_pods.door}/file", data=data) as response:
                assert await response.text() == hashlib.sha256(body).hexdigest()
    await two_pods.until(lambda: len(two_pods.flows.requests) == 2)
    assert all(request.request_bytes > 5 * MIB for request in two_pods.flows.requests)


@pytest.mark.parametrize("query", ["", "?sized"])
async def test_five_megabytes_come_down_whole(two_pods, shop, query):
    await two_pods.start("GET /large")
    async with asyncio.timeout(60), aiohttp.ClientSession() as session:
        for _ in range(2):
            async with session.get(f"http://{HOST}:{two_pods.door}/large{query}") as response:
                assert await response.read() == shop.body
    assert two_pods.cart.buffered == 0


async def test_a_slow_client_holds_no_more_than_windows(two_pods, shop):
    """The application is not read for a client that does not read; so its five megabytes are not in our memory."""
    await two_pods.start("GET /large")
    reader, writer = await two_pods.connect()
    writer.transport.pause_reading()
    writer.write(b"GET /large HTTP/1.1\r\nHost: cart\r\n\r\n")
    await two_pods.until(lambda: shop.seen)
    record = two_pods.flows.opened_records[0]
    before = -1
    while record.bytes_received != before:  # until nothing moves any more
        before = record.bytes_received
        for _ in range(20):
            await asyncio.sleep(0.01)
    assert two_pods.cart.buffered + two_pods.front.buffered < 2 * MIB
    writer.transport.resume_reading()
    async with asyncio.timeout(30):
        await reader.readuntil(b"\r\n\r\n")
        size = 0
        while size < 5 * MIB:
            size += len(await reader.read(MIB))


async def test_a_client_that_has_ended_its_direction_gets_its_answer(two_pods):
    asked = []

    async def answer(reader, writer):
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        asked.append(await reader.read())  # until the end
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone")
        writer.close()

    await two_pods.serve(answer)
    await two_pods.start("GET /")
    reader, writer = await two_pods.connect()
    writer.write(b"GET / HTTP/1.1\r\nHost: cart\r\n\r\n")
    writer.write_eof()
    async with asyncio.timeout(20):
        assert (await reader.read()).endswith(b"\r\n\r\ndone")
    assert asked[1] == b""
    await two_pods.until(lambda: two_pods.cart.live_connections == 0)
    assert [request.status for request in two_pods.flows.requests] == [200]


async def test_a_websocket_passes_until_the_policy_says_no(two_pods, shop):
    await two_pods.start("WEBSOCKET /chat")
    async with asyncio.timeout(30), aiohttp.ClientSession() as session:
        async with session.ws_connect(f"http://{HOST}:{two_pods.door}/chat") as socket:
            for text in ("hello", "x" * 300_000):
                await socket.send_str(text)
                assert await socket.receive_str() == text[::-1]
            two_pods.allow("WEBSOCKET /chat", "GET /")
            await socket.send_str("still")
            assert await socket.receive_str() == "llits"
            two_pods.allow("GET /")
            assert (await socket.receive()).type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect(f"http://{HOST}:{two_pods.door}/chat")
        assert refused.value.status == 403
    assert shop.seen == ["GET /chat"]


async def test_a_policy_that_denies_what_runs_resets_it(two_pods):
    running = asyncio.Event()

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        running.set()
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    await two_pods.serve(answer)
    await two_pods.start("GET /slow")
    reader, writer = await two_pods.connect()
    writer.write(b"GET /slow HTTP/1.1\r\nHost: cart\r\n\r\n")
    async with asyncio.timeout(20):
        await running.wait()
        two_pods.allow("GET /fast")
        with pytest.raises(ConnectionError):
            await reader.readexactly(1)
    assert not two_pods.flows.requests[-1].decision.allowed


async def test_the_application_learns_who_the_client_is_and_nobody_else_may_say(two_pods, shop):
    await two_pods.start()
    headers = {"X-Forwarded-Client-Cert": "By=a;URI=b", "x_forwarded_client_cert": "c", "X-Hedgerow-Reason": "d"}
    url = f"http://{HOST}:{two_pods.door}/"
    async with asyncio.timeout(20), aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
        assert response.status == 200
    (seen,) = shop.headers
    (line,) = seen.getall("x-forwarded-client-cert")
    leaf = hashlib.sha256(two_pods.front_credentials.leaf).hexdigest()
    assert line == f"By={CART_ID};Hash={leaf};URI={FRONT_ID}"
    assert "x_forwarded_client_cert" not in seen
    assert "x-hedgerow-reason" not in seen
