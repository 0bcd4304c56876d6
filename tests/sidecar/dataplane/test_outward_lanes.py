"""What the inspect lane does for our application it does for hosts outside: gRPC by method, taps, addons. Clients are
those that people really use."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl

import grpc
import grpc.aio
import pytest

from certs.certificate import pem_text
from graph.tap import TapSpec
from sidecar.inspect.settings import InspectSettings
from sidecar.inspect.taps import Ended
from tests.sidecar.dataplane.applications import until
from tests.sidecar.dataplane.outside import API, OTHER
from tests.sidecar.dataplane.two_pods import HOST

SAY, COUNT = "/shop.Cart/Say", "/shop.Cart/Count"


class Partner:
    """A gRPC server outside."""

    def __init__(self):
        self.calls = []
        self.metadata = []

    async def start(self, outside, *, tls=True):
        handlers = {
            "Say": grpc.unary_unary_rpc_method_handler(self.say),
            "Count": grpc.unary_stream_rpc_method_handler(self.count),
        }
        key, _, certificate = outside.web.chain(API).partition(b"-----BEGIN CERTIFICATE-----")
        credentials = grpc.ssl_server_credentials([(key, b"-----BEGIN CERTIFICATE-----" + certificate)])
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.Cart", handlers),))
        place = f"{HOST}:{outside.port}"
        port = server.add_secure_port(place, credentials) if tls else server.add_insecure_port(place)
        assert port == outside.port
        await server.start()
        outside.stack.push_async_callback(server.stop, None)
        return self

    async def say(self, request, context):
        self.calls.append("Say")
        self.metadata.append(dict(context.invocation_metadata()))
        return request[::-1]

    async def count(self, request, context):
        self.calls.append("Count")
        for _ in range(int(request)):
            yield b"z" * 100_000


def channel(outside, host=API):
    credentials = grpc.ssl_channel_credentials(pem_text([outside.root.root_der]).encode())
    options = [("grpc.ssl_target_name_override", host), ("grpc.use_local_subchannel_pool", 1)]
    made = grpc.aio.secure_channel(f"{HOST}:{outside.door}", credentials, options)
    outside.stack.push_async_callback(made.close, None)
    return made


async def test_calls_are_judged_by_their_method_within_tls(outside):
    await outside.start(f"POST {SAY}")
    partner = await Partner().start(outside)
    client = channel(outside)
    async with asyncio.timeout(60):
        assert await client.unary_unary(SAY)(b"abc") == b"cba"
        assert await client.unary_unary(SAY)(b"x" * 300_000) == b"x" * 300_000
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async for _ in client.unary_stream(COUNT)(b"3"):
                pass
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        outside.allow(f"POST {SAY}", f"POST {COUNT}")
        assert [len(one) async for one in client.unary_stream(COUNT)(b"30")] == [100_000] * 30
    assert partner.calls == ["Say", "Say", "Count"]
    assert not {name for metadata in partner.metadata for name in metadata if name.startswith(("x-", "traceparent"))}
    await until(lambda: len(outside.flows.requests) == 4)
    assert {(one.operation, one.protocol, one.grpc_status) for one in outside.flows.requests} == {
        (f"POST {SAY}", "grpc", 0),
        (f"POST {COUNT}", "grpc", 7),
        (f"POST {COUNT}", "grpc", 0),
    }
    assert len(outside.flows.opened_records) == 1, "all on one connection"


async def test_calls_without_tls_are_judged_too(outside):
    await outside.start(f"POST {SAY}")
    partner = Partner()
    await partner.start(outside, tls=False)
    async with grpc.aio.insecure_channel(f"{HOST}:{outside.door}", [("grpc.default_authority", API)]) as client:
        assert await client.unary_unary(SAY)(b"abc", timeout=60) == b"cba"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.unary_unary("/shop.Cart/Other")(b"abc", timeout=60)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert partner.calls == ["Say"]


async def test_a_call_for_another_host_is_refused(outside):
    await outside.start()
    partner = await Partner().start(outside)
    credentials = grpc.ssl_channel_credentials(pem_text([outside.root.root_der]).encode())
    options = [("grpc.ssl_target_name_override", API), ("grpc.default_authority", OTHER)]
    async with grpc.aio.secure_channel(f"{HOST}:{outside.door}", credentials, options) as client:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.unary_unary(SAY)(b"abc", timeout=60)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert partner.calls == []


async def test_a_tap_shows_what_goes_out_without_its_secrets(outside):
    await outside.start()
    await outside.serve()
    outside.taps.start(TapSpec("t", 60, count=1, bodies=True))
    outside.stack.callback(outside.taps.stop_all)
    body = b'{"name": "x", "password": "hunter2"}'
    fields = ("Authorization: Bearer abcdef", "Content-Type: application/json")
    assert (await outside.ask("POST /v1/orders?token=abcdef", *fields, body=body))[0] == 200
    shown = await asyncio.wait_for(outside.taps.next(), 60)
    assert (shown.source, shown.destination, shown.operation) == ("shop/cart", f"-/{API}", "POST /v1/orders")
    assert (shown.host, shown.status, shown.port) == (API, 200, outside.port)
    everything = repr(shown)
    assert "abcdef" not in everything
    assert "hunter2" not in everything
    assert "abcdef" in repr(outside.seen), "only what people see is redacted"
    assert await asyncio.wait_for(outside.taps.next(), 60) == Ended("t")


async def test_an_addon_sees_the_whole_url_and_widens_nothing(outside, tmp_path):
    path = tmp_path / "addon.py"
    path.write_text(
        "def requestheaders(flow):\n"
        "    flow.request.headers['x-url'] = flow.request.url\n"
        "    if flow.request.path == '/v1/wider':\n"
        "        flow.request.path = '/admin'\n"
        "    if flow.request.path == '/v1/other':\n"
        f"        flow.request.headers['host'] = '{OTHER}'\n"
    )
    await outside.start("GET /v1/{id}", "GET /v1/wider", "GET /v1/other", settings=InspectSettings(addons=(path,)))
    await outside.serve()
    connection = await outside.connect()
    assert (await outside.ask("GET /v1/7", connection=connection))[0] == 200
    assert f"x-url: https://{API}:{outside.port}/v1/7".encode() in outside.seen[0]
    assert (await outside.ask("GET /v1/wider", connection=connection))[0] == 403
    assert (await outside.ask("GET /v1/other", connection=connection))[0] == 200
    assert f"Host: {API}".encode() in outside.seen[1], "where it goes is not theirs to change"
    assert len(outside.seen) == 2


@pytest.mark.parametrize("trusts", [True, False])
async def test_curl(outside, trusts):
    if shutil.which("curl") is None:
        pytest.fail("curl is needed: apt-get install curl")
    await outside.start("GET /v1/{id}")
    await outside.serve()
    roots = outside.directory / "roots.pem"
    roots.write_text(pem_text([outside.root.root_der]) if trusts else outside.web.pem.decode())

    async def curl(path):
        process = await asyncio.create_subprocess_exec(
            *("curl", "-sS", "-m", "20", "--resolve", f"{API}:{outside.door}:{HOST}", "-H", f"Host: {API}"),
            *("-o", "/dev/null", "-w", "%{http_code} %{ssl_verify_result}", f"https://{API}:{outside.door}{path}"),
            env={"SSL_CERT_FILE": str(roots), "CURL_CA_BUNDLE": str(roots), "PATH": "/usr/bin:/bin"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        return process.returncode, out.decode(), err.decode()

    code, out, err = await curl("/v1/17")
    if trusts:
        assert (code, out) == (0, "200 0"), err
        assert (await curl("/admin"))[1] == "403 0"
    else:
        assert code == 60, "curl's word for a certificate that is not trusted"
        await until(lambda: outside.hub.outward["client"] == 1)
    assert len(outside.seen) == (1 if trusts else 0)


async def test_what_goes_on_behind_101_stays_under_its_operation(outside):
    await outside.start("WEBSOCKET /chat")
    key = "dGhlIHNhbXBsZSBub25jZQ=="

    async def chat(reader, writer):
        outside.seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
        )
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while data := await reader.read(1000):
                writer.write(data)
        writer.close()

    await outside.serve(chat)
    reader, writer = await outside.connect("http/1.1")
    fields = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}"
    writer.write(f"GET /chat HTTP/1.1\r\nHost: {API}\r\n{fields}\r\n\r\n".encode())
    async with asyncio.timeout(60):
        assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        for _ in range(2):
            writer.write(b"\x81\x02hi")
            assert await reader.readexactly(4) == b"\x81\x02hi"
            outside.allow("WEBSOCKET /chat", "GET /")  # another policy that allows it too
        outside.allow("GET /")
        with pytest.raises((ConnectionError, ssl.SSLError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
    assert [one.operation for one in outside.flows.requests] == ["WEBSOCKET /chat"]


async def calling_a_silent_host(outside):
    """A client whose connection the host has taken; it never shakes hands."""
    arrived = asyncio.Event()

    async def silent(reader, writer):
        arrived.set()
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    await outside.serve(silent, tls=False)
    context = outside.client("http/1.1")
    connecting = asyncio.create_task(asyncio.open_connection(HOST, outside.door, ssl=context, server_hostname=API))
    await asyncio.wait_for(arrived.wait(), 60)
    return connecting


async def test_a_slow_host_and_a_client_that_goes_leave_nothing_behind(outside):
    await outside.start()
    connecting = await calling_a_silent_host(outside)
    connecting.cancel()
    await asyncio.gather(connecting, return_exceptions=True)
    await until(lambda: outside.plane.live_connections == 0)
    assert outside.hub.outward["handshake"] == 1
    assert outside.names.users == 0


async def test_a_policy_that_changes_during_the_handshakes_ends_them(outside):
    await outside.start()
    connecting = await calling_a_silent_host(outside)
    outside.allow(host=OTHER)
    with pytest.raises((ConnectionError, ssl.SSLError)):
        await asyncio.wait_for(connecting, 60)
    await until(lambda: outside.plane.live_connections == 0)


async def test_many_bytes_pass_in_both_directions_at_the_pace_of_the_slower(outside):
    await outside.start()
    size = 8 << 20

    async def echo(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        left = size
        while left:
            data = await reader.read(1 << 16)
            left -= len(data)
            writer.write(data)
            await writer.drain()
        outside.seen.append(head)
        await reader.read()
        writer.close()

    await outside.serve(echo)
    reader, writer = await outside.connect("http/1.1")
    body = bytes(range(256)) * (size // 256)
    writer.write(f"POST /v1 HTTP/1.1\r\nHost: {API}\r\nContent-Length: {size}\r\n\r\n".encode())

    async def send():
        for start in range(0, size, 1 << 18):
            writer.write(body[start : start + (1 << 18)])
            await writer.drain()

    async with asyncio.timeout(60):
        sending = asyncio.create_task(send())
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(size) == body
        await sending


async def test_a_host_does_not_have_its_clients_come_another_way(outside):
    await outside.start()

    async def elsewhere(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b'HTTP/1.1 200 OK\r\nAlt-Svc: h3=":443"\r\nX-Hedgerow-Reason: forged\r\nX-Kept: yes\r\n'
            b"Content-Length: 0\r\n\r\n"
        )
        await reader.read()
        writer.close()

    await outside.serve(elsewhere)
    status, head, _ = await outside.ask("GET /")
    assert status == 200
    assert b"x-kept: yes" in head.lower()
    assert b"alt-svc" not in head.lower()
    assert b"x-hedgerow-reason" not in head.lower()
