"""The readiness port: right answers, and no patience for anything that is not a request."""

from __future__ import annotations

import asyncio
import json

import pytest

from sidecar.admin.server import MAX_CONNECTIONS, MAX_HEAD
from sidecar.errors import ConfigError
from sidecar.readiness import ReadinessServer
from sidecar.settings import Address
from tests.sidecar.fake_controller import until


class Server:
    def __init__(self):
        self.missing = []
        self.server = ReadinessServer(Address("127.0.0.1", 0), lambda: self.missing, lambda: {"b": 1, "a": {"x": "y"}})

    async def send(self, data, more=()):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        try:
            writer.write(data)
            for part in more:
                await writer.drain()
                writer.write(part)
            response = await asyncio.wait_for(reader.read(), 10)
        finally:
            writer.close()
        head, _, body = response.partition(b"\r\n\r\n")
        return int(head.split()[1]), head.decode(), body.decode()


@pytest.fixture
async def served():
    made = Server()
    await made.server.start()
    yield made
    await made.server.stop()


def get(path, *fields, method="GET"):
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *fields, "", ""]).encode()


async def test_ready(served):
    status, head, body = await served.send(get("/healthz/ready"))
    assert (status, body) == (200, "ready\n")
    assert "Content-Length: 6" in head
    assert "Connection: close" in head


async def test_not_ready_says_everything_that_is_missing(served):
    served.missing = ["no certificate yet", "no policy snapshot yet"]
    status, _, body = await served.send(get("/healthz/ready"))
    assert (status, body) == (503, "no certificate yet\nno policy snapshot yet\n")


async def test_head_has_no_body(served):
    status, head, body = await served.send(get("/healthz/ready", method="HEAD"))
    assert (status, body) == (200, "")
    assert "Content-Length: 6" in head


async def test_stats_are_json(served):
    status, head, body = await served.send(get("/stats"))
    assert status == 200
    assert "application/json" in head
    assert json.loads(body) == {"a": {"x": "y"}, "b": 1}


async def test_stats_are_for_this_pod_alone():
    server = Server().server
    for peer, status in (
        ("127.0.0.1", 200),
        ("127.9.9.9", 200),
        ("::1", 200),
        ("::ffff:127.0.0.1", 200),
        ("10.0.0.1", 403),
        ("::ffff:10.0.0.1", 403),
        ("", 403),
    ):
        stats, ready = await server.respond(get("/stats"), peer), await server.respond(get("/healthz/ready"), peer)
        assert stats[0].startswith(f"HTTP/1.1 {status} ".encode()), peer
        assert ready[0].startswith(b"HTTP/1.1 200 ")


async def test_a_request_may_arrive_in_pieces(served):
    request = get("/healthz/ready")
    status, _, _ = await served.send(request[:7], [request[7:20], request[20:]])
    assert status == 200


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (get("/"), 404),
        (get("/healthz/ready/"), 404),
        (get("/healthz/ready?x=1"), 404),
        (get("/../stats"), 404),
        (get("/stats", method="POST"), 405),
        (get("/stats", method="BREW"), 405),
        (get("/stats", "Content-Length: 5") + b"hello", 400),
        (get("/stats", "Transfer-Encoding: chunked") + b"0\r\n\r\n", 400),
        (get("/stats", "Content-Length: 0"), 200),
        (b"GET /stats HTTP/2.0\r\n\r\n", 400),
        (b"GET /stats\r\n\r\n", 400),
        (b"get /stats HTTP/1.1\r\n\r\n", 400),
        (b"GET  /stats HTTP/1.1\r\n\r\n", 400),
        (b"GET http://x/stats HTTP/1.1\r\n\r\n", 400),
        (b"GET /stats HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET /stats HTTP/1.1\r\nHost : x\r\n\r\n", 400),
        (b"GET /stats HTTP/1.1\r\n folded: x\r\n\r\n", 400),
        (b"GET /stats HTTP/1.1\r\nA: \x00\r\n\r\n", 400),
        (b"GET /stats HTTP/1.1\nHost: x\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\n\r\n", 400),
        (b"GET /stats HTTP/1.1\r\n" + b"A: b\r\n" * MAX_HEAD, 431),
        (b"x" * (2 * MAX_HEAD), 431),
    ],
)
async def test_what_is_not_known_is_refused(served, request_, status):
    assert (await served.send(request_))[0] == status


async def test_a_slow_request_is_cut_off(served, monkeypatch):
    monkeypatch.setattr("sidecar.admin.server.DEADLINE", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", served.server.port)
    writer.write(b"GET /healthz")
    try:
        assert await asyncio.wait_for(reader.read(), 10) == b""
    except ConnectionResetError:
        pass
    finally:
        writer.close()


async def test_only_so_many_connections_at_once_and_silent_ones_keep_nobody_out(served):
    held = [await asyncio.open_connection("127.0.0.1", served.server.port) for _ in range(MAX_CONNECTIONS)]
    await until(lambda: served.server.connections == MAX_CONNECTIONS)
    assert (await served.send(get("/healthz/ready")))[0] == 200
    assert served.server.connections <= MAX_CONNECTIONS
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):  # the oldest one had to go
        await asyncio.wait_for(held[0][0].readexactly(1), 10)
    for _, other in held:
        other.close()
    await until(lambda: not served.server.connections)


async def test_a_taken_port_is_named(served):
    other = ReadinessServer(Address("127.0.0.1", served.server.port), list, dict)
    with pytest.raises(ConfigError, match=rf"ready_listen: cannot listen on 127\.0\.0\.1:{served.server.port}"):
        await other.start()
    await other.stop()
