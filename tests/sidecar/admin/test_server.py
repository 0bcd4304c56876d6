"""The shared server, beyond what the readiness port's tests hold it to: slow pages, handing over, who asks."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from sidecar.admin.server import (
    MAX_CONNECTIONS,
    Answer,
    HttpServer,
    Refused,
    Request,
    document,
    from_this_pod,
    text,
)
from sidecar.errors import ConfigError
from sidecar.settings import Address
from tests.sidecar.fake_controller import until
from tests.sidecar.http_client import get, request, send

ANY = Address("127.0.0.1", 0)


@contextlib.asynccontextmanager
async def serving(handler, *methods, listen=ANY):
    server = HttpServer(listen, "some_listen", handler, *([methods] if methods else []))
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def echo(asked):
    return document({"method": asked.method, "target": asked.target, "fields": dict(asked.fields), "peer": asked.peer})


async def test_a_page_sees_what_was_asked():
    async with serving(echo) as server:
        status, fields, body = await get(server.port, "/a?b=c", "X-A:  1 ", "x-a: 2")
    assert status == 200
    assert fields["connection"] == "close"
    for part in (b'"target": "/a?b=c"', b'"x-a": "1, 2"', b'"peer": "127.0.0.1"', b'"host": "localhost"'):
        assert part in body


async def test_a_page_may_take_its_time_and_others_do_not_wait():
    go = asyncio.Event()

    async def slow(asked):
        if asked.target == "/slow":
            await go.wait()
        return text(200, asked.target)

    async with serving(slow) as server:
        waiting = asyncio.create_task(get(server.port, "/slow"))
        assert (await get(server.port, "/fast"))[2] == b"/fast\n"
        assert not waiting.done()
        go.set()
        assert (await waiting)[2] == b"/slow\n"


async def test_a_fault_of_a_page_is_not_shown(caplog):
    def broken(asked):
        raise RuntimeError("a secret")

    async with serving(broken) as server:
        status, _, body = await get(server.port, "/")
    assert status == 500
    assert b"secret" not in body
    assert "a secret" in caplog.text


async def test_methods_that_no_page_takes_are_named():
    async with serving(echo) as server:
        status, fields, _ = await get(server.port, "/", method="POST")
        assert (status, fields["allow"]) == (405, "get, head")
    async with serving(echo, "GET", "POST") as server:
        assert (await get(server.port, "/", method="POST"))[0] == 200
        assert (await get(server.port, "/", "Content-Length: 3", method="POST"))[0] == 400
        assert (await get(server.port, "/", "Content-Length: 0", method="POST"))[0] == 200
        assert (await get(server.port, "/", "Content-Length: 0, 5", method="POST"))[0] == 400
        assert (await get(server.port, "/", method="PUT"))[0] == 405


async def test_a_big_page_arrives_whole_and_a_reader_that_stops_is_cut_off(monkeypatch):
    page = Answer(200, "text/plain", tuple(bytes([65 + index % 26]) * 100_003 for index in range(100)))
    asked = []

    def answer(one):
        asked.append(one)
        return page

    async with serving(answer) as server:
        assert (await get(server.port, "/"))[2] == b"".join(page.body)
        monkeypatch.setattr("sidecar.admin.server.DEADLINE", 0.2)
        _, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
        writer.write(request("/"))
        await until(lambda: len(asked) == 2 and server.connections == 0)
        writer.close()


async def test_a_flood_of_slow_pages_keeps_nobody_out():
    go = asyncio.Event()

    async def page(asked):
        if asked.target == "/slow":
            await go.wait()
        return text(200, "ok")

    async with serving(page) as server:
        flood = [asyncio.create_task(get(server.port, "/slow")) for _ in range(MAX_CONNECTIONS)]
        await until(lambda: server.connections == MAX_CONNECTIONS)
        assert (await get(server.port, "/"))[0] == 200
        go.set()
        results = await asyncio.gather(*flood, return_exceptions=True)
        assert sum(not isinstance(result, BaseException) for result in results) == MAX_CONNECTIONS - 1


async def test_a_socket_is_handed_over_without_a_refused_connection():
    async with serving(lambda asked: text(200, "old")) as old:
        port = old.port
        handed = old.listener.dup()
        assert (await get(port, "/"))[2] == b"old\n"
        old.release()
        assert old.listener is None
        waiting = asyncio.create_task(get(port, "/"))  # nobody accepts for a moment; the kernel keeps it
        await asyncio.sleep(0)
        new = HttpServer(ANY, "some_listen", lambda asked: text(200, "new"))
        await new.start(handed)
        try:
            assert (await waiting)[2] == b"new\n"
        finally:
            await new.stop()


async def test_a_taken_port_is_named_with_its_setting():
    async with serving(echo) as server:
        other = HttpServer(Address("127.0.0.1", server.port), "admin_listen", echo)
        with pytest.raises(ConfigError, match=rf"^admin_listen: cannot listen on 127\.0\.0\.1:{server.port}"):
            await other.start()
        await other.stop()


async def test_ipv6():
    async with serving(echo, listen=Address("::1", 0)) as server:
        assert (await send(server.port, request("/"), host="::1"))[0] == 200


@pytest.mark.parametrize(
    ("host", "peer", "fields", "ours"),
    [
        ("localhost", "127.0.0.1", {}, True),
        ("localhost:15000", "127.0.0.1", {}, True),
        ("LOCALHOST:15000", "127.0.0.1", {}, True),
        ("127.0.0.1:15000", "127.0.0.1", {}, True),
        ("127.0.0.1", "::1", {}, True),
        ("[::1]:15000", "::1", {}, True),
        ("[::1]", "::1", {}, True),
        ("localhost", "::ffff:127.0.0.1", {}, True),
        ("localhost", "10.0.0.9", {}, False),
        ("localhost", "", {}, False),
        ("", "127.0.0.1", {}, False),
        ("rebound.example.com", "127.0.0.1", {}, False),
        ("rebound.example.com:15000", "127.0.0.1", {}, False),
        ("localhost.example.com", "127.0.0.1", {}, False),
        ("127.0.0.1.example.com", "127.0.0.1", {}, False),
        ("10.0.0.2:15000", "127.0.0.1", {}, False),
        ("localhost, evil.example.com", "127.0.0.1", {}, False),
        ("localhost@evil.example.com", "127.0.0.1", {}, False),
        ("localhost:15000", "127.0.0.1", {"origin": "http://evil.example.com"}, False),
        ("localhost:15000", "127.0.0.1", {"origin": "null"}, False),
        ("localhost:15000", "127.0.0.1", {"sec-fetch-site": "cross-site"}, False),
        ("localhost:15000", "127.0.0.1", {"sec-fetch-site": "same-site"}, False),
        ("localhost:15000", "127.0.0.1", {"sec-fetch-site": "none"}, True),
    ],
)
def test_a_program_of_this_pod_is_told_from_a_web_page(host, peer, fields, ours):
    assert from_this_pod(Request("GET", "/", peer, {"host": host, **fields})) is ours


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("/x", {}),
        ("/x?a=1", {"a": "1"}),
        ("/x?a=1&b=two.three", {"a": "1", "b": "two.three"}),
        ("/x?", None),
        ("/x?a=1&a=2", None),
        ("/x?c=1", None),
        ("/x?a=%20", None),
        ("/x?a", None),
        ("/x?a=1&", None),
    ],
)
def test_parameters_are_known_and_there_once(target, found):
    asked = Request("GET", target, "")
    if found is None:
        with pytest.raises(Refused, match="a=…, b=…"):
            asked.parameters("a", "b")
    else:
        assert asked.parameters("a", "b") == found
