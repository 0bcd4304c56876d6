"""Egress inspection in one process: a real TLS client, our data plane, a real TLS server that it calls by its name."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time

import pytest

from certs.certificate import pem_text
from certs.inspection import HostSigner, InspectionAuthority
from certs.keys import make_csr, new_key
from graph.directory import Destination
from graph.model import InspectedHost, Mode, Origin, PortRange, Rule, Selector, Snapshot, Verdict, WorkloadRef
from sidecar.dataplane.proxy import DataPlane
from sidecar.dataplane.settings import DataPlaneSettings, ExplicitOutbound
from sidecar.dataplane.sockets import Address
from sidecar.inspect.certificates import Certificates
from sidecar.inspect.hub import Inspection
from sidecar.inspect.settings import InspectSettings
from sidecar.inspect.taps import Taps
from tests.sidecar.dataplane.applications import until
from tests.sidecar.dataplane.stand_ins import TRUST_DOMAIN, FlowList, HeldDirectory, HeldPolicy, credentials
from tests.sidecar.dataplane.two_pods import HOST, ports
from tests.sidecar.dataplane.web import WebAuthority

API, OTHER = "api.partner.example", "www.partner.example"
CART = WorkloadRef("shop", "cart")


class Bound:
    """DNS has bound these names to the host's address."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.users = 0

    def bound(self, address):
        return self.names if address == HOST else ()

    def began(self, address, host):
        self.users += 1

    def ended(self, address, host):
        self.users -= 1


class Outside:
    """The data plane of shop/cart, a host outside at ``port``, and what the application trusts."""

    def __init__(self, authority, stack, directory):
        self.authority, self.stack, self.directory = authority, stack, directory
        self.web = WebAuthority()
        self.flows = FlowList()
        self.names = Bound(API)
        self.seen: list[bytes] = []
        self.door, self.port = ports(2)
        self.version = 0

    async def start(self, *operations, inspects=True, settings=None, signed=True, names=(API,), **more):
        self.names = Bound(*names)
        loop = asyncio.get_running_loop()
        self.taps = Taps(loop)
        self.hub = Inspection(settings or InspectSettings(), self.taps)
        roots = self.directory / "web.pem"
        roots.write_bytes(self.web.pem)
        self.root = InspectionAuthority.create(TRUST_DOMAIN, time.time() - 172_800)
        self.certificates = self.hub.certificates = Certificates(roots, time.time)
        self.certificates.prepare()
        if signed:
            self.sign(API)
        self.policy = HeldPolicy(self.snapshot(operations, inspects=inspects, **more))
        self.plane = DataPlane(
            DataPlaneSettings(
                outbound_listen=(),
                inbound_listen=(),
                explicit_outbound=(ExplicitOutbound(Address(HOST, self.door), Address(HOST, self.port)),),
                sniff_wait=0.2,
                handshake_timeout=5.0,
            ),
            self.policy,
            HeldDirectory([Destination(HOST, self.port)]),
            credentials(self.authority, "shop", "cart"),
            self.flows,
            taps=self.hub,
            names=self.names,
        )
        await self.plane.start()
        self.stack.callback(self.plane.stop)
        return self

    def sign(self, *hosts, now=None):
        key = new_key()
        now = time.time() if now is None else now
        chain = self.root.sign(make_csr(key), str(CART), hosts, now)
        self.certificates.hold(HostSigner.checked(chain, key, hosts, now))

    def snapshot(self, operations, *, inspects=True, host=API, mode=Mode.ENFORCE, effect=Verdict.ALLOW):
        self.version += 1
        rule = Rule(
            "static/outside",
            Selector.of(CART),
            Selector(host=host),
            (PortRange.single(self.port),),
            operations=operations,
            origin=Origin.STATIC,
            effect=effect,
        )
        inspected = (InspectedHost(API, self.port),) if inspects else ()
        return Snapshot(CART, TRUST_DOMAIN, self.version, mode, mode, rules=(rule,), inspects=inspected)

    def allow(self, *operations, **more):
        self.policy.apply(self.snapshot(operations, **more))

    async def serve(self, handler=None, *, context=None, tls=True, host=API, alpn=("http/1.1",)):
        """Be the host outside."""
        if context is None and tls:
            context = self.web.server(host, self.directory, *alpn)
        server = await asyncio.start_server(handler or self.answer, HOST, self.port, ssl=context)
        self.stack.callback(server.close)

    async def answer(self, reader, writer):
        """HTTP/1.1: every request gets its own first line back."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.seen.append(head)
                body = head.split(b"\r\n")[0]
                for line in head.split(b"\r\n"):
                    if line.lower().startswith(b"content-length:"):
                        body += b"|" + await reader.readexactly(int(line.partition(b":")[2]))
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            pass
        finally:
            writer.close()

    def client(self, *alpn, trusts=True) -> ssl.SSLContext:
        """What the application trusts: the inspection's root and nothing else, or only the host's own."""
        context = ssl.create_default_context(cadata=pem_text([self.root.root_der]) if trusts else self.web.pem.decode())
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context

    async def connect(self, *alpn, host=API, trusts=True, tls=True):
        if not tls:
            reader, writer = await asyncio.open_connection(HOST, self.door)
        else:
            context = self.client(*alpn, trusts=trusts)
            reader, writer = await asyncio.open_connection(
                HOST, self.door, ssl=context, server_hostname=host, ssl_handshake_timeout=20
            )
        self.stack.callback(writer.close)
        return reader, writer

    async def ask(self, line, *fields, connection=None, host=API, body=b"", **options):
        """Status and body of one request."""
        reader, writer = connection or await self.connect(**options)
        lines = [line + " HTTP/1.1", f"Host: {host}", *fields]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        return await response(reader)

    def verdicts(self):
        return [(one.operation, str(one.decision.verdict), one.status) for one in self.flows.requests]


async def response(reader):
    async with asyncio.timeout(20):
        head = await reader.readuntil(b"\r\n\r\n")
        size = next(
            int(line.partition(b":")[2]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")
        )
        body = await reader.readexactly(size)
    return int(head.split()[1]), head, body


@pytest.fixture
async def outside(authority, tmp_path):
    async with contextlib.AsyncExitStack() as stack:
        yield Outside(authority, stack, tmp_path)


REFUSED = (ConnectionError, ssl.SSLError, asyncio.IncompleteReadError)


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
            assert await asyncio.wait_for(reader.read(), 20) == b""
        writer.close()
    assert not got.is_set()
    assert [record.decision.verdict for record in outside.flows.opened_records] == ["deny", "deny"]
    outside.allow()
    _, writer = await outside.connect(tls=False)
    writer.write(b"\0\1\2\3")
    await asyncio.wait_for(got.wait(), 20)


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
    assert b"400" in await asyncio.wait_for(reader.readline(), 20)
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
        await asyncio.wait_for(serving, 20)
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
    await asyncio.wait_for(asked.wait(), 20)
    outside.allow("GET /")
    with pytest.raises(REFUSED):
        await asyncio.wait_for(reader.readexactly(1), 20)


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
    assert (await asyncio.wait_for(reader.read(), 20)).endswith(b"until the end")
    await until(lambda: outside.plane.live_connections == 0)


async def test_an_idle_host_that_leaves_takes_its_client_along(outside):
    await outside.start()

    async def leave(reader, writer):
        writer.close()

    await outside.serve(leave)
    reader, _ = await outside.connect()
    assert await asyncio.wait_for(reader.read(), 20) == b""
    await until(lambda: outside.plane.live_connections == 0)


# --- versions and protocols


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
    assert b"HTTP/1.1 400" in await asyncio.wait_for(reader.readline(), 20)
    assert outside.seen == []


async def test_a_hello_in_pieces_is_read_when_it_is_whole(outside):
    await outside.start("GET /")
    await outside.serve()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = outside.client("http/1.1").wrap_bio(incoming, outgoing, server_hostname=API)
    reader, writer = await asyncio.open_connection(HOST, outside.door)
    outside.stack.callback(writer.close)
    async with asyncio.timeout(20):
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
        assert await asyncio.wait_for(reader.read(), 20) == b""
    assert [str(one.decision.verdict) for one in outside.flows.opened_records] == ["deny"]


async def test_pipelined_requests_are_judged_one_by_one(outside):
    await outside.start("GET /a", "GET /b")
    await outside.serve()
    reader, writer = await outside.connect()
    heads = [f"GET {path} HTTP/1.1\r\nHost: {API}\r\n\r\n" for path in ("/a", "/x", "/b", "/../x", "/a")]
    writer.write("".join(heads).encode())
    assert [(await response(reader))[0] for _ in heads] == [200, 403, 200, 403, 200]
    assert [head.split()[1] for head in outside.seen] == [b"/a", b"/b", b"/a"]


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
