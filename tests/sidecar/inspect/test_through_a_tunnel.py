"""gRPC behind a real tunnel: observed in the ``http`` lane, enforced by method in the ``inspect`` lane."""

from __future__ import annotations

import asyncio
import hashlib
import queue

import grpc
import grpc.aio
import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from h2.errors import ErrorCodes

from graph.tap import TapSpec
from sidecar.inspect.hub import Inspection
from sidecar.inspect.settings import InspectSettings
from sidecar.inspect.taps import Ended, Taps
from tests.sidecar.dataplane.two_pods import CART_ID, FRONT_ID, HOST

MIB = 1 << 20
SAY, COUNT, SUM, TALK = (f"/shop.Cart/{name}" for name in ("Say", "Count", "Sum", "Talk"))
ALL = tuple(f"POST {path}" for path in (SAY, COUNT, SUM, TALK))
OPTIONS = [("grpc.max_receive_message_length", 64 * MIB), ("grpc.use_local_subchannel_pool", 1)]


class Cart:
    """A gRPC server with one method of each kind; messages are bytes. ``seen`` is what metadata it was given."""

    def __init__(self):
        self.seen = []
        self.calls = []
        self.ended = []

    async def start(self, two_pods):
        handlers = {
            "Say": grpc.unary_unary_rpc_method_handler(self.say),
            "Count": grpc.unary_stream_rpc_method_handler(self.count),
            "Sum": grpc.stream_unary_rpc_method_handler(self.sum),
            "Talk": grpc.stream_stream_rpc_method_handler(self.talk),
        }
        server = grpc.aio.server(options=OPTIONS)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.Cart", handlers),))
        assert server.add_insecure_port(f"{HOST}:{two_pods.application}") == two_pods.application
        await server.start()
        two_pods.stack.push_async_callback(server.stop, None)
        return self

    def note(self, name, context):
        self.calls.append(name)
        self.seen.append(context.invocation_metadata())

    async def say(self, request, context):
        self.note("Say", context)
        if request == b"fail":
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is none")
        return request[::-1]

    async def count(self, request, context):
        self.note("Count", context)
        for _ in range(int(request)):
            yield b"z" * 100_000

    async def sum(self, requests, context):
        self.note("Sum", context)
        return b"%d" % sum([len(message) async for message in requests])

    async def talk(self, requests, context):
        self.note("Talk", context)
        try:
            async for message in requests:
                yield message[::-1]
        finally:
            self.ended.append("Talk")


@pytest.fixture
async def cart(two_pods):
    return await Cart().start(two_pods)


class Client:
    def __init__(self, two_pods, port):
        channel = self.channel = grpc.aio.insecure_channel(f"{HOST}:{port}", options=OPTIONS)
        two_pods.stack.push_async_callback(channel.close, None)
        self.say, self.count = channel.unary_unary(SAY), channel.unary_stream(COUNT)
        self.sum, self.talk = channel.stream_unary(SUM), channel.stream_stream(TALK)


async def every_kind(client):
    """One call of each kind; every byte is checked."""

    async def many():
        for _ in range(30):
            yield b"q" * 100_000

    assert await client.say(b"abc") == b"cba"
    assert await client.say(b"x" * 3 * MIB) == b"x" * 3 * MIB
    assert [len(message) async for message in client.count(b"50")] == [100_000] * 50
    assert await client.sum(many()) == b"3000000"
    talk = client.talk()
    for text in (b"one", b"two", b"t" * 300_000):
        await talk.write(text)
        assert await talk.read() == text[::-1]
    await talk.done_writing()
    assert await talk.read() is grpc.aio.EOF
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await client.say(b"fail")
    assert failed.value.code() is grpc.StatusCode.NOT_FOUND


def told(two_pods):
    return [(request.operation, request.protocol, request.grpc_status) for request in two_pods.flows.requests]


EVERY_KIND = sorted([
    (ALL[0], "grpc", 0), (ALL[0], "grpc", 0), (ALL[1], "grpc", 0), (ALL[2], "grpc", 0), (ALL[3], "grpc", 0),
    (ALL[0], "grpc", 5),
])  # fmt: skip


@pytest.mark.parametrize("plain", [False, True])
async def test_calls_of_every_kind_are_observed(two_pods, cart, plain):
    await two_pods.start()
    if plain:
        two_pods.allow_everybody()
    async with asyncio.timeout(60):
        await every_kind(Client(two_pods, two_pods.inbound if plain else two_pods.door))
    await two_pods.until(lambda: len(two_pods.flows.requests) == 6)
    assert sorted(told(two_pods)) == EVERY_KIND
    assert {record.protocol for record in two_pods.flows.opened_records} == {"grpc"}


async def test_calls_of_every_kind_are_judged_by_their_method(two_pods, cart):
    await two_pods.start(*ALL)
    async with asyncio.timeout(60):
        await every_kind(Client(two_pods, two_pods.door))
    await two_pods.until(lambda: len(two_pods.flows.requests) == 6)
    assert sorted(told(two_pods)) == EVERY_KIND
    for metadata in cart.seen:
        (line,) = [value for name, value in metadata if name == "x-forwarded-client-cert"]
        leaf = hashlib.sha256(two_pods.front_credentials.leaf).hexdigest()
        assert line == f"By={CART_ID};Hash={leaf};URI={FRONT_ID}"


FORGED = (("x-forwarded-client-cert", "URI=spiffe://hedgerow.test/ns/shop/sa/default/wl/admin"),)


@pytest.mark.parametrize("plain", [False, True])
async def test_a_caller_that_says_who_it_is_learns_why_its_call_failed_where_calls_are_only_observed(
    two_pods, cart, plain
):
    await two_pods.start()
    if plain:
        two_pods.allow_everybody()
    client = Client(two_pods, two_pods.inbound if plain else two_pods.door)
    async with asyncio.timeout(60):
        assert await client.say(b"abc") == b"cba"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.say(b"who am I?", metadata=FORGED)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "h2-forged-header" in f"{refused.value.details()} {refused.value.debug_error_string()}"
        assert await client.say(b"def", wait_for_ready=True) == b"fed"
    assert cart.calls == ["Say", "Say"]
    assert not [name for metadata in cart.seen for name, _ in metadata if name == FORGED[0][0]]


@pytest.mark.parametrize("plain", [False, True])
async def test_a_caller_that_says_who_it_is_is_contradicted_where_calls_are_inspected(two_pods, cart, plain):
    await two_pods.start(taps=Inspection(InspectSettings(ports=frozenset({two_pods.inbound}))))
    if plain:
        two_pods.allow_everybody()
    client = Client(two_pods, two_pods.inbound if plain else two_pods.door)
    async with asyncio.timeout(60):
        assert await client.say(b"who am I?", metadata=FORGED) == b"?I ma ohw"
    (metadata,) = cart.seen
    said = [value for name, value in metadata if name == FORGED[0][0]]
    if plain:
        assert said == [], "nobody proved anything"
    else:
        assert len(said) == 1
        assert said[0].endswith(f";URI={FRONT_ID}")


def refused_among_others(port):
    """What a client sees that keeps sending to a method it may not call, while its connection carries another call.

    gRPC's blocking client: the asynchronous one says INTERNAL in one of a hundred calls whose server answers while
    it sends, with no mesh between them (its failed sending is sometimes noticed before the status that came)."""
    codes = []
    words = queue.SimpleQueue()
    with grpc.insecure_channel(f"{HOST}:{port}", options=OPTIONS) as channel:
        talk = channel.stream_stream(TALK)(iter(words.get, None), timeout=60)
        words.put(b"before")
        assert next(talk) == b"erofeb"
        for _ in range(3):
            with pytest.raises(grpc.RpcError) as refused:
                channel.stream_unary(SUM)((b"q" * 100_000 for _ in range(100)), timeout=60)
            codes.append(refused.value.code())
            with pytest.raises(grpc.RpcError) as refused:
                list(channel.unary_stream(COUNT)(b"5", timeout=60))
            codes.append(refused.value.code())
            assert channel.unary_unary(SAY)(b"abc", timeout=60) == b"cba"
        words.put(b"after")
        assert next(talk) == b"retfa"
        words.put(None)
        assert list(talk) == []
    return codes


async def test_a_method_that_is_not_allowed_is_refused_and_the_others_go_on(two_pods, cart):
    await two_pods.start(ALL[0], ALL[3])
    codes = await asyncio.to_thread(refused_among_others, two_pods.door)
    assert codes == [grpc.StatusCode.PERMISSION_DENIED] * 6
    assert set(cart.calls) == {"Say", "Talk"}
    assert len(two_pods.flows.opened_records) == 1, "the connection is the same"
    await two_pods.until(lambda: len(two_pods.flows.requests) == 10)
    denied = [request for request in two_pods.flows.requests if not request.decision.allowed]
    assert sorted({request.operation for request in denied}) == [ALL[1], ALL[2]]
    assert {request.grpc_status for request in denied} == {7}


async def test_a_policy_that_changes_ends_what_it_denies_in_the_middle_and_nothing_else(two_pods, cart):
    await two_pods.start(*ALL)
    client = Client(two_pods, two_pods.door)
    async with asyncio.timeout(60):
        talk, running = client.talk(), client.sum()
        await talk.write(b"one")
        assert await talk.read() == b"eno"
        await running.write(b"1234")
        await two_pods.until(lambda: sorted(cart.calls) == ["Sum", "Talk"])
        two_pods.allow(ALL[0], ALL[2])
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await talk.read()
        assert ended.value.code() is grpc.StatusCode.CANCELLED
        await two_pods.until(lambda: cart.ended == ["Talk"])
        await running.write(b"5678")
        await running.done_writing()
        assert await running == b"8"
        assert await client.say(b"abc") == b"cba"
    assert len(two_pods.flows.opened_records) == 1, "the connection is the same"


async def test_rules_by_operation_that_come_later_end_what_was_only_observed_and_the_next_connection_is_judged(
    two_pods, cart
):
    await two_pods.start()
    client = Client(two_pods, two_pods.door)
    async with asyncio.timeout(60):
        talk = client.talk()
        await talk.write(b"one")
        assert await talk.read() == b"eno"
        two_pods.allow(*ALL)
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await talk.read()
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        assert await client.say(b"abc", wait_for_ready=True) == b"cba"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.channel.unary_unary("/shop.Cart/Other")(b"")
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_watching_begins_with_the_next_connection_and_shows_calls(two_pods, cart):
    taps = Taps(asyncio.get_running_loop())
    two_pods.stack.callback(taps.stop_all)
    await two_pods.start(taps=Inspection(InspectSettings(), taps))
    taps.start(TapSpec("t", 60, count=1))
    async with asyncio.timeout(60):
        assert await Client(two_pods, two_pods.door).say(b"abc") == b"cba"
        shown = await taps.next()
        assert (shown.operation, shown.protocol, shown.grpc_status, shown.source) == (ALL[0], "grpc", 0, "shop/front")
        assert await taps.next() == Ended("t")


AT_ONCE = 300
#: Of every lane how a connection comes into it: by the operations that the policy names.
LANES = {"observed": (), "inspected": ALL}


@pytest.mark.parametrize("lane", LANES)
async def test_hundreds_of_calls_at_once_all_succeed(two_pods, cart, lane):
    """On one connection, which allows fewer where it is inspected. The client is the blocking one."""
    await two_pods.start(*LANES[lane])

    def call() -> list[bytes]:
        with grpc.insecure_channel(f"{HOST}:{two_pods.door}", options=OPTIONS) as channel:
            say = channel.unary_unary(SAY)
            calls = [say.future(b"%d" % number, timeout=120) for number in range(AT_ONCE)]
            return [each.result() for each in calls]

    async with asyncio.timeout(150):
        answers = await asyncio.to_thread(call)
    assert answers == [(b"%d" % number)[::-1] for number in range(AT_ONCE)]
    await two_pods.until(lambda: len(two_pods.flows.requests) == AT_ONCE)
    assert set(told(two_pods)) == {(ALL[0], "grpc", 0)}
    assert cart.calls == ["Say"] * AT_ONCE
    assert two_pods.cart.counters.tunnels_broken == 0


_MOST = h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS


class Few:
    """A server of HTTP/2 that serves ``most`` requests at once and refuses each that is too many. It answers when it is
    told to."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.heard: list[int] = []
        self.refused: list[int] = []
        self.answer = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        end = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        end.local_settings = h2.settings.Settings(client=False, initial_values={_MOST: 1000})  # or h2 objects
        end.initiate_connection()
        answering = asyncio.create_task(self._answer(end, writer))
        try:
            writer.write(end.data_to_send())
            while data := await reader.read(65_536):
                for event in end.receive_data(data):
                    if isinstance(event, h2.events.RequestReceived):
                        if len(self.heard) < self.most:
                            self.heard.append(event.stream_id)
                        else:
                            self.refused.append(event.stream_id)
                            end.reset_stream(event.stream_id, ErrorCodes.REFUSED_STREAM)
                writer.write(end.data_to_send())
        except (ConnectionError, asyncio.CancelledError):
            pass  # the test is over
        finally:
            answering.cancel()
            writer.close()

    async def _answer(self, end: h2.connection.H2Connection, writer: asyncio.StreamWriter) -> None:
        await self.answer.wait()
        for stream in self.heard:
            end.send_headers(stream, [(":status", "200")], end_stream=True)
        writer.write(end.data_to_send())


@pytest.mark.parametrize(("lane", "plain"), [("observed", False), ("observed", True), ("inspected", False)])
async def test_each_request_too_many_is_refused_by_itself(two_pods, lane, plain):
    """Where requests are inspected by us, and by the application where they are only observed: a client that has not
    heard how many it may begin gets the same answer."""
    inspected = lane == "inspected"
    application = Few(1000 if inspected else 128)
    await two_pods.serve(application)
    await two_pods.start(*LANES[lane])
    if plain:
        two_pods.allow_everybody()
    reader, writer = await (two_pods.connect_plainly() if plain else two_pods.connect())
    end = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    end.initiate_connection()
    for number in range(AT_ONCE):
        head = [(":method", "POST"), (":scheme", "http"), (":authority", "cart"), (":path", SAY)]
        end.send_headers(2 * number + 1, head, end_stream=True)
    writer.write(end.data_to_send())  # before anything was read
    refused, served, codes = set(), set(), set()
    async with asyncio.timeout(60):
        while len(served) < 128:
            data = await reader.read(65_536)
            assert data, "the connection goes on"
            for event in end.receive_data(data):
                if isinstance(event, h2.events.StreamReset):
                    refused.add(event.stream_id)
                    codes.add(event.error_code)
                if isinstance(event, h2.events.StreamEnded):
                    served.add(event.stream_id)
            if len(refused) == AT_ONCE - 128 and len(application.heard) == 128:
                application.answer.set()
            writer.write(end.data_to_send())
    assert codes == {ErrorCodes.REFUSED_STREAM}
    assert served == {2 * number + 1 for number in range(128)}
    assert refused == {2 * number + 1 for number in range(128, AT_ONCE)}
    assert two_pods.cart.counters.requests_refused == (len(refused) if inspected else 0)
    assert len(application.refused) == (0 if inspected else len(refused))
    await two_pods.until(lambda: sum(request.status == 200 for request in two_pods.flows.requests) == 128)
    if inspected:
        assert len(two_pods.flows.requests) == 128, "what was refused is no request"
