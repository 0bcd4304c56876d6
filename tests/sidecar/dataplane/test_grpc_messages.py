"""What real gRPC clients and servers exchange is what Istio's metrics of messages say, in every lane that reads calls
and at whichever end of a connection that lane is."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
import pytest

from sidecar.inspect.hub import Inspection
from sidecar.inspect.settings import InspectSettings
from sidecar.metrics.fanout import Fanout
from sidecar.metrics.istio import IstioMetrics
from tests.sidecar.dataplane.outside import API, Outside
from tests.sidecar.dataplane.test_outward_lanes import channel as channel_to_outside
from tests.sidecar.dataplane.two_pods import HOST
from tests.sidecar.metrics.families import page

OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 1 << 24)]
NAMES = "Unary", "ServerStreams", "ClientStreams", "BothStream"
PATHS = tuple(f"/shop.Cart/{name}" for name in NAMES)
OPERATIONS = tuple(f"POST {path}" for path in PATHS)


class Told:
    """Messages that an application has sent and got, as itself says."""

    def __init__(self):
        self.got = self.sent = 0

    def take(self, data):
        self.got += 1
        return data

    def give(self, data):
        self.sent += 1
        return data


class Server(Told):
    """Has a method of each kind. Whoever asks for it is answered with so many messages, of so many bytes."""

    def __init__(self):
        super().__init__()
        handlers = {
            "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "ServerStreams": grpc.unary_stream_rpc_method_handler(self.server_streams),
            "ClientStreams": grpc.stream_unary_rpc_method_handler(self.client_streams),
            "BothStream": grpc.stream_stream_rpc_method_handler(self.both_stream),
        }
        self.server = grpc.aio.server(options=OPTIONS, compression=grpc.Compression.Gzip)
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.Cart", handlers),))

    async def start(self, stack):
        await self.server.start()
        stack.push_async_callback(self.server.stop, None)
        return self

    async def unary(self, asked, context):
        if self.take(asked) == b"fail":
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is none")
        return self.give(asked)

    async def server_streams(self, asked, context):
        for size in self.take(asked).split():
            yield self.give(b"z" * int(size))

    async def client_streams(self, asked, context):
        return self.give(b"%d" % sum([len(self.take(one)) async for one in asked]))

    async def both_stream(self, asked, context):
        async for one in asked:
            yield self.give(self.take(one))
            yield self.give(b"")


class Client(Told):
    """Makes calls of each kind."""

    def __init__(self, channel):
        super().__init__()
        self.unary, self.server_streams = channel.unary_unary(PATHS[0]), channel.unary_stream(PATHS[1])
        self.client_streams, self.both_stream = channel.stream_unary(PATHS[2]), channel.stream_stream(PATHS[3])

    async def every_kind(self):
        sizes = [0, 1, 5, 16_379, 16_384, 100_000] + [3] * 200
        for data in (b"", b"abc", b"x" * 3_000_000):
            assert self.take(await self.unary(self.give(data))) == data
        got = [
            len(self.take(one))
            async for one in self.server_streams(self.give(b" ".join(b"%d" % size for size in sizes)))
        ]
        assert got == sizes

        async def many():
            for size in sizes:
                yield self.give(b"q" * size)

        assert int(self.take(await self.client_streams(many()))) == sum(sizes)
        talk = self.both_stream()
        for size in sizes[:20]:
            await talk.write(self.give(b"t" * size))
            assert len(self.take(await talk.read())) == size
            assert self.take(await talk.read()) == b""
        await talk.done_writing()
        assert await talk.read() is grpc.aio.EOF
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await self.unary(self.give(b"fail"))
        assert failed.value.code() is grpc.StatusCode.NOT_FOUND

    async def together(self):
        """Calls of all kinds at once, on one connection."""
        await asyncio.gather(*(self.every_kind() for _ in range(4)))


def counted(metrics, reporter):
    """Messages of requests and of responses, of the one series that each of the two has."""
    values = []
    shown = page(metrics)
    for name in ("istio_request_messages", "istio_response_messages"):
        samples = shown[name].samples
        assert {sample.labels["reporter"] for sample in samples} <= {reporter}
        values.append(sum(sample.value for sample in samples))
    return tuple(values)


@pytest.mark.parametrize(
    ("lane", "plain"), [("http", False), ("http", True), ("inspect", False), ("inspect", True), ("judged", False)]
)
async def test_in_a_mesh_the_destination_counts_what_was_sent(two_pods, lane, plain):
    metrics = IstioMetrics()
    flows = two_pods.flows
    two_pods.flows = Fanout(flows, metrics)
    taps = Inspection(InspectSettings(ports=frozenset({two_pods.inbound}))) if lane == "inspect" else None
    await two_pods.start(*(OPERATIONS if lane == "judged" else ()), taps=taps)
    if plain:
        two_pods.allow_everybody()
    server = Server()
    assert server.server.add_insecure_port(f"{HOST}:{two_pods.application}") == two_pods.application
    await server.start(two_pods.stack)
    door = two_pods.inbound if plain else two_pods.door
    async with (
        asyncio.timeout(120),
        grpc.aio.insecure_channel(f"{HOST}:{door}", OPTIONS, grpc.Compression.Gzip) as channel,
    ):
        client = Client(channel)
        await client.together()
        assert (client.sent, client.got) == (server.got, server.sent)
        # the connection is open, and all of it went through us before it came to either end
        assert counted(metrics, "destination") == (client.sent, client.got)
    await two_pods.until(lambda: len(flows.requests) == 28)
    two_pods.forbid()
    await two_pods.until(lambda: all(one.closed for one in flows.opened_records))
    assert counted(metrics, "destination") == (client.sent, client.got)
    assert {request.protocol for request in flows.requests} == {"grpc"}


async def test_a_call_that_is_cancelled_in_the_middle(two_pods):
    metrics = IstioMetrics()
    two_pods.flows = Fanout(two_pods.flows, metrics)
    await two_pods.start()
    server = Server()
    assert server.server.add_insecure_port(f"{HOST}:{two_pods.application}") == two_pods.application
    await server.start(two_pods.stack)
    async with asyncio.timeout(60), grpc.aio.insecure_channel(f"{HOST}:{two_pods.door}", OPTIONS) as channel:
        client = Client(channel)
        talk = client.both_stream()
        for _ in range(3):
            await talk.write(client.give(b"abc"))
            client.take(await talk.read())
            client.take(await talk.read())
        talk.cancel()
        await two_pods.until(lambda: counted(metrics, "destination") == (3, 6))
        await client.unary(client.give(b"abc"))
    assert counted(metrics, "destination") == (4, 7)


async def test_outside_the_mesh_the_source_counts_what_was_sent(outside: Outside):
    metrics = IstioMetrics()
    flows = outside.flows
    outside.flows = Fanout(flows, metrics)
    await outside.start(*OPERATIONS)
    key, _, certificate = outside.web.chain(API).partition(b"-----BEGIN CERTIFICATE-----")
    credentials = grpc.ssl_server_credentials([(key, b"-----BEGIN CERTIFICATE-----" + certificate)])
    server = Server()
    assert server.server.add_secure_port(f"{HOST}:{outside.port}", credentials) == outside.port
    await server.start(outside.stack)
    async with asyncio.timeout(120):
        client = Client(channel_to_outside(outside))
        await client.together()
    assert (client.sent, client.got) == (server.got, server.sent)
    assert counted(metrics, "source") == (client.sent, client.got)
    assert len(flows.opened_records) == 1
