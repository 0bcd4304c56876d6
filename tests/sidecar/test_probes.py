"""What the kubelet is told is what it would have found, and nothing more."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ssl

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from sidecar.admin.server import Refused, Request
from sidecar.fetch import FetchFailed
from sidecar.observation import GrpcProbe, HttpProbe, Probe, TcpProbe
from sidecar.probes import Prober, health_request, health_status
from tests.sidecar.fake_controller import until
from tests.sidecar.http_client import answer, application, free_port

PATH = "/app-health/web/livez"


def asked(agent="kube-probe/1.30"):
    return Request("GET", PATH, "10.0.0.9", {"user-agent": agent, "host": "10.0.0.2:15020"})


async def probe(action, *, timeout=10.0, closed_ports=frozenset()):
    prober = Prober([Probe("web", "livez", action, timeout)], "127.0.0.1", closed_ports)
    try:
        given = await prober.answer(asked())
    finally:
        await prober.stop()
    ((key, count),) = prober.results.items()
    assert (key[:2], count) == (("web", "livez"), 1)
    assert key[2] == ("success" if 200 <= given.status < 400 else "failure")
    return int(given.status), b"".join(given.body).decode()


@pytest.mark.parametrize(
    ("status", "told"),
    [
        ("200 OK", 200),
        ("204 No Content", 204),
        ("404 Not Found", 404),
        ("503 Service Unavailable", 503),
        ("599 Made Up", 500),
        ("299 Made Up", 200),
    ],
)
async def test_the_status_is_passed_on_and_nothing_else(status, told):
    async with application(lambda head: answer(status, b"a secret of the application")) as (port, heads):
        got, body = await probe(HttpProbe(port, "/healthz?full=1", headers=(("X-Token", "t"),)))
    assert got == told
    assert "secret" not in body
    assert heads[0].startswith("GET /healthz?full=1 HTTP/1.1\r\n")
    lines = heads[0].split("\r\n")
    for line in (f"Host: 127.0.0.1:{port}", "X-Token: t", "User-Agent: kube-probe/1.30", "Accept: */*"):
        assert lines.count(line) == 1, line


async def test_headers_of_the_probe_take_the_place_of_ours():
    headers = (("host", "web.example"), ("User-Agent", "own"), ("accept", "text/html"))
    async with application(lambda head: answer()) as (port, heads):
        assert (await probe(HttpProbe(port, headers=headers)))[0] == 200
    assert [line.lower() for line in heads[0].split("\r\n")[1:-2]] == [
        "host: web.example",
        "user-agent: own",
        "accept: text/html",
        "connection: close",
    ]


async def test_nobody_there_fails():
    port = free_port()
    for action in (HttpProbe(port), TcpProbe(port)):
        status, body = await probe(action)
        assert status == 500
        assert f"no connection to port {port}" in body


async def test_an_answer_that_does_not_come_in_time_fails():
    async with application(lambda head: None) as (port, _):
        assert await probe(HttpProbe(port), timeout=0.05) == (500, "no answer within 0.05 s\n")


@pytest.mark.parametrize("data", [b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", b""])
async def test_half_an_answer_fails(data):
    async with application(lambda head: data) as (port, _):
        assert (await probe(HttpProbe(port)))[0] == 500


async def test_of_a_long_answer_only_the_beginning_is_read():
    async with application(lambda head: answer(body=b"x" * (20 << 10))) as (port, _):
        assert (await probe(HttpProbe(port)))[0] == 200


# redirects, as the kubelet follows them


async def redirected(location, then=None, **how):
    async with application(then or (lambda head: answer())) as (other, followed):
        place = location.format(other=other)

        def first(head):
            return answer("302 Found", b"", f"Location: {place}") if "GET / " in head else answer("201 Created")

        async with application(first) as (port, heads):
            return await probe(HttpProbe(port), **how), heads, followed


async def test_a_redirect_on_the_same_port_is_followed():
    (status, _), heads, _ = await redirected("/there?x=1")
    assert status == 201
    assert [head.split()[1] for head in heads] == ["/", "/there?x=1"]


async def test_a_redirect_to_another_port_of_the_pod_is_followed():
    (status, _), _, followed = await redirected("http://127.0.0.1:{other}/x")
    assert status == 200
    assert len(followed) == 1


async def test_a_redirect_to_another_host_is_not_followed_and_healthy():
    (status, _), heads, _ = await redirected("https://login.example.com/")
    assert status == 200
    assert len(heads) == 1


async def test_a_redirect_to_a_port_of_ours_is_not_followed():
    async with application(lambda head: answer()) as (ours, reached):
        location = f"http://127.0.0.1:{ours}/config"
        async with application(lambda head: answer("302 Found", b"", f"Location: {location}")) as (port, _):
            status, body = await probe(HttpProbe(port), closed_ports=frozenset({ours}))
    assert status == 500
    assert "the sidecar's own" in body
    assert not reached


@pytest.mark.parametrize("location", ["", "http://127.0.0.1:99999/", "ftp://127.0.0.1/", "http://[::1", "/a\tb"])
async def test_a_redirect_that_leads_nowhere_fails(location):
    (status, _), _, _ = await redirected(location)
    assert status == 500


async def test_redirects_have_an_end():
    async with application(lambda head: answer("301 Moved Permanently", b"", "Location: /again")) as (port, heads):
        status, body = await probe(HttpProbe(port))
    assert (status, len(heads)) == (500, 10)
    assert "more than 10 redirects" in body


# TLS


def self_signed(directory):
    """A server's context that nobody has reason to trust: another name, and over since long."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "elsewhere")])
    then = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, then, then + datetime.timedelta(days=1))
    pem = directory / "self-signed.pem"
    pem.write_bytes(
        made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


async def test_https_is_probed_without_looking_at_the_certificate(tmp_path):
    async with application(lambda head: answer("202 Accepted"), ssl=self_signed(tmp_path)) as (port, heads):
        assert (await probe(HttpProbe(port, scheme="https")))[0] == 202
        assert (await probe(HttpProbe(port, scheme="http")))[0] == 500
    assert len(heads) == 1


# TCP and gRPC


async def test_tcp():
    async with application(lambda head: answer()) as (port, heads):
        assert (await probe(TcpProbe(port)))[0] == 200
    assert not heads


class Health(grpc.GenericRpcHandler):
    """``grpc.health.v1.Health`` of an application, as bytes on the wire."""

    def __init__(self, statuses):
        self.statuses = statuses
        self.agents = []

    def service(self, details):
        if details.method != "/grpc.health.v1.Health/Check":
            return None

        async def check(request, context):
            self.agents.append(dict(context.invocation_metadata())["user-agent"])
            status = self.statuses.get(request[2:].decode())
            if status is None:
                await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
            return b"\x08" + bytes([status]) if status else b""

        return grpc.unary_unary_rpc_method_handler(check)


@pytest.fixture
async def health():
    handler = Health({"": 1, "shop.Cart": 1, "shop.Down": 2, "shop.Unset": 0})
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handler,))
    handler.port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield handler
    await server.stop(None)


@pytest.mark.parametrize(
    ("service", "status", "why"),
    [
        ("", 200, "answered 200"),
        ("shop.Cart", 200, "answered 200"),
        ("shop.Down", 500, "does not serve (status 2)"),
        ("shop.Unset", 500, "does not serve (status 0)"),
        ("shop.Nobody", 500, "ended with NOT_FOUND"),
    ],
)
async def test_grpc(health, service, status, why):
    got, body = await probe(GrpcProbe(health.port, service))
    assert got == status
    assert why in body
    assert health.agents[0].startswith("kube-probe/1.30")


async def test_a_grpc_server_without_the_health_service_fails():
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        status, body = await probe(GrpcProbe(port))
    finally:
        await server.stop(None)
    assert status == 500
    assert "has no grpc.health.v1.Health" in body


@given(st.text(max_size=300))
def test_the_health_request_is_what_protobuf_reads(service):
    from google.protobuf.wrappers_pb2 import StringValue  # its only field is number 1, a text, as here

    assert StringValue.FromString(health_request(service)).value == service


@given(st.binary(max_size=40))
def test_no_answer_of_an_application_breaks_the_reading(message):
    with contextlib.suppress(FetchFailed):
        assert health_status(message) >= 0


@pytest.mark.parametrize(
    ("message", "status"),
    [
        (b"", 0),
        (b"\x08\x01", 1),
        (b"\x08\x03", 3),
        (b"\x12\x02hi\x08\x01\x1d1234\x219876543\x31", 1),
        (b"\x08\x02\x08\x01", 1),
    ],
)
def test_the_health_answer_as_protobuf_writes_it(message, status):
    assert health_status(message) == status


# who asks, and how often


async def test_there_are_only_the_probes_of_the_settings():
    prober = Prober([Probe("web", "livez", TcpProbe(1))], "127.0.0.1")
    for path in ("/app-health/web/readyz", "/app-health/other/livez", PATH + "?x", PATH + "/"):
        with pytest.raises(Refused, match="no such probe"):
            await prober.answer(Request("GET", path, "10.0.0.9"))


async def test_those_who_ask_at_once_share_one_probe_and_one_who_leaves_ends_nobodys():
    arrived, go = asyncio.Event(), asyncio.Event()
    connections = 0

    async def serve(reader, writer):
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        arrived.set()
        await go.wait()
        writer.write(answer("200 OK"))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    prober = Prober([Probe("web", "livez", HttpProbe(server.sockets[0].getsockname()[1]), 20.0)], "127.0.0.1")
    first = asyncio.create_task(prober.answer(asked()))
    await arrived.wait()
    others = [asyncio.create_task(prober.answer(asked())) for _ in range(20)]
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    go.set()
    assert {(await other).status for other in others} == {200}
    assert connections == 1
    server.close()
    await server.wait_closed()


async def test_the_end_gives_up_what_runs():
    async with application(lambda head: None) as (port, heads):
        prober = Prober([Probe("web", "livez", HttpProbe(port), 60.0)], "127.0.0.1")
        asking = asyncio.create_task(prober.answer(asked()))
        await until(lambda: heads)
        await prober.stop()
        with pytest.raises(asyncio.CancelledError):
            await asking
