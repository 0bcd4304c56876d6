"""What is said to a host outside is judged before it leaves; who proves nothing is not called."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time

import pytest

from graph.model import Mode
from tests.sidecar.dataplane.applications import until
from tests.sidecar.dataplane.outside import API, OTHER, REFUSED
from tests.sidecar.dataplane.two_pods import HOST
from tests.sidecar.dataplane.web import WebAuthority

# --- plaintext


async def test_plaintext_operations_are_judged_before_they_leave(outside):
    await outside.start("GET /v1/{id}")
    await outside.serve(tls=False)
    connection = await outside.connect(tls=False)
    assert (await outside.ask("GET /v1/17", connection=connection))[::2] == (200, b"GET /v1/17 HTTP/1.1")
    status, head, _ = await outside.ask("DELETE /v1/17", connection=connection)
    assert status == 403
    assert b"x-hedgerow-reason: no-rule" in head
    assert len(outside.seen) == 1, "nothing of the refused request has left"
    assert outside.verdicts() == [("GET /v1/{id}", "allow", 200), ("DELETE /v1/{id}", "deny", 403)]
    record = outside.flows.requests[0].record
    assert (str(record.destination.ref()), record.port, str(record.direction)) == (f"-/{API}", outside.port, "outbound")


async def test_a_later_request_for_another_host_is_refused(outside):
    await outside.start()
    await outside.serve(tls=False)
    connection = await outside.connect(tls=False)
    assert (await outside.ask("GET /", connection=connection, host=f"{API}:{outside.port}"))[0] == 200
    status, head, _ = await outside.ask("GET /", connection=connection, host=OTHER)
    assert status == 421
    assert b"other-host" in head
    assert (await outside.ask("GET /", connection=connection, host=API + ":1"))[0] == 421
    assert len(outside.seen) == 1
    assert [(one.status, one.detail) for one in outside.flows.requests] == [(200, ""), *[(421, "other-host")] * 2]


async def test_our_own_headers_stay_here(outside):
    await outside.start()
    await outside.serve(tls=False)
    assert (await outside.ask("GET /", "X-Forwarded-Client-Cert: forged", "X-Request-Id: mine", tls=False))[0] == 200
    (head,) = outside.seen
    assert b"forwarded-client-cert" not in head.lower()
    assert b"traceparent" not in head.lower()
    assert b"X-Request-Id: mine" in head


async def test_bytes_that_are_no_operation_are_judged_as_such(outside):
    await outside.start("GET /v1/{id}")
    got = asyncio.Event()

    async def record(reader, writer):
        if await reader.read(1):
            got.set()
        writer.close()

    await outside.serve(record, tls=False)
    for data in (b"\0\1\2\3", b""):
        reader, writer = await outside.connect(tls=False)
        writer.write(data)
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 60) == b""
        writer.close()
    assert not got.is_set()
    assert [record.decision.verdict for record in outside.flows.opened_records] == ["deny", "deny"]
    outside.allow()
    _, writer = await outside.connect(tls=False)
    writer.write(b"\0\1\2\3")
    await asyncio.wait_for(got.wait(), 60)


# --- TLS


async def test_a_request_within_tls_is_judged_and_reported(outside):
    await outside.start("GET /v1/{id}", "POST /v1/orders")
    await outside.serve()
    connection = await outside.connect("http/1.1")
    assert connection[1].get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
    assert (await outside.ask("GET /v1/17?x=1", connection=connection))[0] == 200
    status, _, body = await outside.ask("POST /v1/orders", connection=connection, body=b"x" * 70_000)
    assert (status, len(body)) == (200, 70_000 + len(b"POST /v1/orders HTTP/1.1|"))
    assert (await outside.ask("GET /v2/17", connection=connection))[0] == 403
    assert (await outside.ask("GET /v1/18", connection=connection, host=OTHER))[0] == 421
    assert len(outside.seen) == 2
    assert [one[:2] for one in outside.verdicts()] == [
        ("GET /v1/{id}", "allow"),
        ("POST /v1/orders", "allow"),
        ("GET /v2/{id}", "deny"),
        ("GET /v1/{id}", "deny"),
    ]
    assert outside.names.users == 1
    connection[1].close()
    await until(lambda: outside.plane.live_connections == 0)
    assert outside.names.users == 0
    assert outside.flows.requests[0].record.bytes_sent > 70_000


async def test_a_client_without_alpn_gets_none(outside):
    await outside.start("GET /")
    await outside.serve(alpn=())
    connection = await outside.connect()
    assert connection[1].get_extra_info("ssl_object").selected_alpn_protocol() is None
    assert (await outside.ask("GET /", connection=connection))[0] == 200


@pytest.mark.parametrize("wrong", ["name", "root"])
async def test_a_host_that_does_not_prove_its_name_is_not_called(outside, wrong):
    await outside.start()
    if wrong == "name":
        await outside.serve(host=OTHER)
    else:
        await outside.serve(context=WebAuthority().server(API, outside.directory, "http/1.1"))
    with pytest.raises(REFUSED):
        await outside.ask("GET /")
    await until(lambda: outside.plane.live_connections == 0)
    assert outside.seen == []
    assert outside.hub.outward["untrusted"] == 1
    assert [str(record.decision.reason) for record in outside.flows.opened_records] == ["untrusted-peer"]


async def test_a_client_that_does_not_trust_us_refuses_by_itself(outside, caplog):
    await outside.start()
    await outside.serve()
    with pytest.raises(REFUSED):
        await outside.ask("GET /", trusts=False)
    await until(lambda: outside.hub.outward["client"] == 1 and outside.plane.live_connections == 0)
    assert outside.seen == []
    assert "SSL_CERT_FILE" in caplog.text
    assert outside.flows.closed_records[0].failed


async def test_nothing_passes_unread_where_nothing_was_signed(outside, caplog):
    await outside.start(signed=False)
    await outside.serve()
    for sign, why in ((None, "has not signed"), (OTHER, "other hosts"), (API, "has ended")):
        if sign is not None:
            outside.sign(sign, now=time.time() - 90_000 if sign == API else None)
        with pytest.raises(REFUSED):
            await outside.ask("GET /")
        assert certificates_say(outside, why)
    assert outside.hub.outward["unsigned"] == 3
    assert {str(record.decision.reason) for record in outside.flows.opened_records} == {"uninspected"}
    assert outside.seen == []


def certificates_say(outside, why):
    return why in outside.certificates.why_not(API)


async def test_a_host_that_is_not_inspected_is_passed_through(outside):
    await outside.start(inspects=False)
    await outside.serve()
    context = outside.client("http/1.1", trusts=False)
    reader, writer = await asyncio.open_connection(HOST, outside.door, ssl=context, server_hostname=API)
    outside.stack.callback(writer.close)
    assert (await outside.ask("GET /", connection=(reader, writer)))[0] == 200
    assert outside.flows.requests == []


@pytest.mark.parametrize("operations", [(), ("GET /",)])
async def test_a_client_without_a_server_name_is_not_inspected(outside, operations):
    """It has the name that DNS bound; whole hosts pass, operations can not be told."""
    await outside.start(*operations)
    context = outside.web.server(HOST, outside.directory, "http/1.1")
    await outside.serve(context=context)
    client = outside.client("http/1.1", trusts=False)
    connecting = asyncio.open_connection(HOST, outside.door, ssl=client, server_hostname=HOST)
    if operations:
        with pytest.raises(REFUSED):
            await connecting
    else:
        connection = await connecting
        outside.stack.callback(connection[1].close)
        assert (await outside.ask("GET /", connection=connection))[0] == 200
    assert outside.hub.outward["unread"] == 1
    assert outside.flows.requests == []


async def test_a_client_that_speaks_something_else_within_tls_is_refused(outside):
    await outside.start()
    await outside.serve(alpn=("mqtt", "http/1.1"))
    with pytest.raises(REFUSED):
        await outside.connect("mqtt")
    assert outside.hub.outward["protocol"] == 1
    reader, writer = await outside.connect()
    writer.write(b"\x10\x0c\0\4MQTT\r\n\r\n")
    assert b"400" in await asyncio.wait_for(reader.readline(), 60)
    assert outside.seen == []


async def test_a_host_that_wants_the_clients_certificate_gets_none(outside, caplog):
    await outside.start()
    context = outside.web.server(API, outside.directory, "http/1.1")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=outside.web.pem.decode())

    def refuse(listener):
        """One handshake over a socket, because asyncio's servers end without an alert."""
        sock, _ = listener.accept()
        with sock, contextlib.suppress(ssl.SSLError), context.wrap_socket(sock, server_side=True) as session:
            outside.seen.append(session.recv(1))

    with socket.create_server((HOST, outside.port)) as listener:
        serving = asyncio.create_task(asyncio.to_thread(refuse, listener))
        with pytest.raises(REFUSED):
            await outside.ask("GET /")
        await asyncio.wait_for(serving, 60)
    await until(lambda: outside.hub.outward["client-certificate"] == 1)
    assert outside.seen == []
    assert "wants a certificate" in caplog.text


async def test_a_new_policy_ends_what_it_denies(outside):
    await outside.start("GET /slow", "GET /")
    asked = asyncio.Event()

    async def slow(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await reader.read()
        writer.close()

    await outside.serve(slow)
    reader, writer = await outside.connect()
    writer.write(f"GET /slow HTTP/1.1\r\nHost: {API}\r\n\r\n".encode())
    await asyncio.wait_for(asked.wait(), 60)
    outside.allow("GET /")
    with pytest.raises(REFUSED):
        await asyncio.wait_for(reader.readexactly(1), 60)


async def test_what_the_host_does_happens_to_the_client(outside):
    await outside.start()

    async def once(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nuntil the end")
        await writer.drain()
        writer.close()

    await outside.serve(once)
    reader, writer = await outside.connect()
    writer.write(f"GET / HTTP/1.1\r\nHost: {API}\r\n\r\n".encode())
    assert (await asyncio.wait_for(reader.read(), 60)).endswith(b"until the end")
    await until(lambda: outside.plane.live_connections == 0)


async def test_an_idle_host_that_leaves_takes_its_client_along(outside):
    await outside.start()

    async def leave(reader, writer):
        writer.close()

    await outside.serve(leave)
    reader, _ = await outside.connect()
    assert await asyncio.wait_for(reader.read(), 60) == b""
    await until(lambda: outside.plane.live_connections == 0)


async def test_in_learning_everything_passes_and_is_told(outside):
    await outside.start("GET /a", mode=Mode.LEARN)
    await outside.serve()
    connection = await outside.connect()
    for path in ("/a", "/b"):
        assert (await outside.ask(f"GET {path}", connection=connection))[0] == 200
    assert [(one.operation, str(one.decision.pending)) for one in outside.flows.requests] == [
        ("GET /a", "allow"),
        ("GET /b", "deny"),
    ]
