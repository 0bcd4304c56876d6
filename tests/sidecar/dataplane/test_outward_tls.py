"""TLS to hosts outside: versions, protocols, and hellos and requests that come in pieces or all at once."""

from __future__ import annotations

import asyncio
import contextlib
import ssl

import pytest

from tests.sidecar.dataplane.applications import until
from tests.sidecar.dataplane.outside import API, REFUSED, response
from tests.sidecar.dataplane.two_pods import HOST


@pytest.mark.parametrize("old", ["client", "host"])
async def test_tls_1_2_is_the_least_on_both_sides(outside, old):
    await outside.start("GET /")
    server, client = outside.web.server(API, outside.directory, "http/1.1"), outside.client("http/1.1")
    (client if old == "client" else server).maximum_version = ssl.TLSVersion.TLSv1_2
    await outside.serve(context=server)
    connection = await asyncio.open_connection(HOST, outside.door, ssl=client, server_hostname=API)
    outside.stack.callback(connection[1].close)
    version = connection[1].get_extra_info("ssl_object").version()
    assert version == ("TLSv1.2" if old == "client" else "TLSv1.3")
    for _ in range(3):
        assert (await outside.ask("GET /", connection=connection))[0] == 200
    assert (await outside.ask("DELETE /", connection=connection))[0] == 403
    assert len(outside.seen) == 3


@pytest.mark.parametrize("side", ["client", "host"])
async def test_older_versions_and_weak_ciphers_are_refused(outside, side):
    await outside.start()
    server, client = outside.web.server(API, outside.directory), outside.client()
    weak = client if side == "client" else server
    weak.maximum_version = ssl.TLSVersion.TLSv1_2
    weak.set_ciphers("AES128-SHA256:ECDHE-ECDSA-AES128-SHA256:ECDHE-RSA-AES128-SHA256:@SECLEVEL=0")
    await outside.serve(context=server)
    with pytest.raises(REFUSED):
        await asyncio.open_connection(HOST, outside.door, ssl=client, server_hostname=API)
    await until(lambda: outside.plane.live_connections == 0)
    assert outside.hub.outward["client" if side == "client" else "handshake"] == 1


@pytest.mark.parametrize(
    ("client", "host", "agreed"),
    [
        (("h2", "http/1.1"), ("http/1.1",), "http/1.1"),
        (("http/1.1", "h2"), ("h2", "http/1.1"), "h2"),
        (("h2", "http/1.1"), ("h2",), "h2"),
        (("http/1.1", "mqtt"), ("mqtt", "http/1.1"), "http/1.1"),
        (("h2", "http/1.1"), (), None),
    ],
)
async def test_the_client_gets_the_protocol_that_the_host_agreed_on(outside, client, host, agreed):
    await outside.start()
    await outside.serve(alpn=host)
    _, writer = await outside.connect(*client)
    assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == agreed


async def test_http2_without_alpn_is_refused_within_tls(outside):
    await outside.start()
    await outside.serve(alpn=())
    reader, writer = await outside.connect()
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
    assert b"HTTP/1.1 400" in await asyncio.wait_for(reader.readline(), 60)
    assert outside.seen == []


async def test_a_hello_in_pieces_is_read_when_it_is_whole(outside):
    await outside.start("GET /")
    await outside.serve()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = outside.client("http/1.1").wrap_bio(incoming, outgoing, server_hostname=API)
    reader, writer = await asyncio.open_connection(HOST, outside.door)
    outside.stack.callback(writer.close)
    async with asyncio.timeout(60):
        while True:
            try:
                session.do_handshake()
                break
            except ssl.SSLWantReadError:
                for byte in outgoing.read():
                    writer.write(bytes([byte]))
                    await writer.drain()
                incoming.write(await reader.read(65_536))
        session.write(f"GET / HTTP/1.1\r\nHost: {API}\r\n\r\n".encode())  # with the end of the handshake
        writer.write(outgoing.read())
        while True:
            try:
                assert session.read(12) == b"HTTP/1.1 200"
                break
            except ssl.SSLWantReadError:
                incoming.write(await reader.read(65_536))


async def test_half_a_hello_is_no_way_past(outside):
    await outside.start("GET /")
    await outside.serve()
    outgoing = ssl.MemoryBIO()
    session = outside.client().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=API)
    with pytest.raises(ssl.SSLWantReadError):
        session.do_handshake()
    reader, writer = await asyncio.open_connection(HOST, outside.door)
    outside.stack.callback(writer.close)
    writer.write(outgoing.read()[:60])
    writer.write_eof()
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 60) == b""
    assert [str(one.decision.verdict) for one in outside.flows.opened_records] == ["deny"]


async def test_pipelined_requests_are_judged_one_by_one(outside):
    await outside.start("GET /a", "GET /b")
    await outside.serve()
    reader, writer = await outside.connect()
    heads = [f"GET {path} HTTP/1.1\r\nHost: {API}\r\n\r\n" for path in ("/a", "/x", "/b", "/../x", "/a")]
    writer.write("".join(heads).encode())
    assert [(await response(reader))[0] for _ in heads] == [200, 403, 200, 403, 200]
    assert [head.split()[1] for head in outside.seen] == [b"/a", b"/b", b"/a"]
