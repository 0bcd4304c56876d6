"""HTTP/2 behind a real tunnel and without one: who may say who the client is, and what happens while we drain."""

from __future__ import annotations

import asyncio
import contextlib
import struct

import h2.config
import h2.connection
import h2.events
import pytest

from sidecar.http.frames import PREFACE
from sidecar.http.settings import HttpSettings
from sidecar.inspect.hub import Inspection
from sidecar.inspect.settings import InspectSettings, Limits

GET = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "cart")]
FORGED = ("x-forwarded-client-cert", "By=a;URI=spiffe://hedgerow.test/ns/shop/sa/default/wl/admin")


class Application:
    """Answers every request with its body; ``heads`` is what it was asked."""

    def __init__(self):
        self.heads = []
        self.calls = 0
        self.hold = asyncio.Event()
        self.hold.set()

    async def __call__(self, reader, writer):
        self.calls += 1
        end = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        end.initiate_connection()
        with contextlib.suppress(ConnectionError):
            writer.write(end.data_to_send())
            while data := await reader.read(65_536):
                for event in end.receive_data(data):
                    if isinstance(event, h2.events.RequestReceived | h2.events.TrailersReceived):
                        self.heads.append(dict(event.headers))
                    if isinstance(event, h2.events.StreamEnded):
                        await self.hold.wait()
                        end.send_headers(event.stream_id, [(":status", "200")])
                        end.send_data(event.stream_id, b"answer", end_stream=True)
                writer.write(end.data_to_send())
        writer.close()


class Client:
    """An h2 client that reads frames itself where that package would stop: behind a GOAWAY."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.end = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.end.initiate_connection()
        self.farewells = []
        self.reasons = []
        self.flush()

    def flush(self):
        self.writer.write(self.end.data_to_send())

    def ask(self, *fields, trailers=None):
        stream = self.end.get_next_available_stream_id()
        self.end.send_headers(stream, [*GET, *fields], end_stream=trailers is None)
        if trailers is not None:
            self.end.send_headers(stream, trailers, end_stream=True)
        self.flush()
        return stream

    async def until(self, stream):
        """Until that stream's answer is complete; the body."""
        body = b""
        while True:
            for event in await self.frame():
                if isinstance(event, h2.events.DataReceived) and event.stream_id == stream:
                    body += event.data
                if isinstance(event, h2.events.StreamEnded) and event.stream_id == stream:
                    return body

    async def ended(self):
        """Until the connection is over, which raises how."""
        while True:
            await self.frame()

    async def frame(self):
        head = await self.reader.readexactly(9)
        payload = await self.reader.readexactly(int.from_bytes(head[:3]))
        if head[3] == 7:
            self.farewells.append(struct.unpack("!II", payload[:8]))
            self.reasons.append(payload[8:].decode())
            return []
        events = self.end.receive_data(head + payload)
        self.flush()
        return events


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("where", ["head", "trailers"])
async def test_a_client_can_not_say_who_it_is(two_pods, plain, where):
    application = Application()
    await two_pods.serve(application)
    await two_pods.start()
    if plain:
        two_pods.allow_everybody()
    client = Client(*await (two_pods.connect_plainly() if plain else two_pods.connect()))
    async with asyncio.timeout(20):
        assert await client.until(client.ask(("x-forwarded-for", "me"))) == b"answer"
        if where == "head":
            client.ask(FORGED)
        else:
            client.ask(trailers=[FORGED])
        with pytest.raises(asyncio.IncompleteReadError):
            await client.ended()
        assert client.farewells == [(0x7FFFFFFF, 1)], "it was told"
        assert client.reasons == ["h2-forged-header"]
        client.writer.close()
    await two_pods.until(lambda: two_pods.cart.live_connections == 0)
    assert application.heads[0]["x-forwarded-for"] == "me"
    assert not any(FORGED[0] in head for head in application.heads)
    (record,) = two_pods.flows.closed_records
    assert record.protocol == "http2"


@pytest.mark.parametrize(("plain", "operations"), [(False, ()), (True, ()), (False, ("GET /",))])
async def test_half_a_head_ends_the_connection_in_every_lane(two_pods, plain, operations):
    application = Application()
    await two_pods.serve(application)
    limits = InspectSettings(limits=Limits(head_seconds=0.3))
    await two_pods.start(*operations, http=HttpSettings(head_timeout=0.3, sweep=0.05), taps=Inspection(limits))
    if plain:
        two_pods.allow_everybody()
    client = Client(*await (two_pods.connect_plainly() if plain else two_pods.connect()))
    async with asyncio.timeout(60):
        assert await client.until(client.ask()) == b"answer"
        stream = client.end.get_next_available_stream_id()
        client.end.send_headers(stream, [*GET, ("x", "y" * 100)], end_stream=True)
        client.writer.write(client.end.data_to_send()[:-1])
        with pytest.raises(asyncio.IncompleteReadError):
            await client.ended()
        assert [code for _, code in client.farewells] == [11]
        client.writer.close()
    await two_pods.until(lambda: two_pods.cart.live_connections == 0)
    assert len(application.heads) == 1


@pytest.mark.parametrize("plain", [False, True])
async def test_a_client_that_waits_for_settings_gets_them_and_half_a_beginning_calls_nobody(two_pods, plain):
    application = Application()
    await two_pods.serve(application)
    await two_pods.start(http=HttpSettings(head_timeout=0.3, sweep=0.05))
    if plain:
        two_pods.allow_everybody()
    connect = two_pods.connect_plainly if plain else two_pods.connect
    settings = b"\0\0\0\4\0\0\0\0\0"
    async with asyncio.timeout(60):
        for half in (PREFACE, PREFACE + settings[:-1], PREFACE + settings + b"\0\0\3\1\5\0\0\0\1\x82\x86"):
            reader, writer = await connect()
            writer.write(half)
            assert b"head-timeout" in await reader.read()
            writer.close()
        await two_pods.until(lambda: two_pods.cart.live_connections == 0)
        assert application.calls == 0
        client = Client(*await connect())
        while not any(isinstance(event, h2.events.RemoteSettingsChanged) for event in await client.frame()):
            pass
        assert not application.heads
        assert await client.until(client.ask()) == b"answer"
        assert application.calls == 1
        client.writer.close()
    await two_pods.until(lambda: two_pods.cart.live_connections == 0)
    assert not any(record.failed for record in two_pods.flows.closed_records)


@pytest.mark.parametrize("operations", [(), ("GET /",)])
async def test_while_draining_requests_are_finished_and_their_connection_ends(two_pods, operations):
    application = Application()
    await two_pods.serve(application)
    await two_pods.start(*operations, http=HttpSettings(sweep=0.05))
    client = Client(*await two_pods.connect())
    async with asyncio.timeout(20):
        assert await client.until(client.ask()) == b"answer"
        application.hold.clear()
        stream = client.ask()
        await two_pods.until(lambda: len(application.heads) == 2)
        draining = asyncio.create_task(two_pods.cart.drain(20))
        while not client.farewells:
            await client.frame()
        assert client.farewells == [(0x7FFFFFFF, 0)]
        crossed = client.ask()  # sent before the client knew
        application.hold.set()
        assert await client.until(stream) == b"answer"
        assert await client.until(crossed) == b"answer"
        with pytest.raises(asyncio.IncompleteReadError):
            await client.ended()
        client.writer.close()
        await draining
    assert [request.status for request in two_pods.flows.requests] == [200, 200, 200]
    assert not any(record.failed for record in two_pods.flows.closed_records)
