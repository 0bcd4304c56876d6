"""Egress inspection in one process: a real TLS client, our data plane, a real TLS server that it calls by its name."""

from __future__ import annotations

import asyncio
import ssl
import time

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
                HOST, self.door, ssl=context, server_hostname=host, ssl_handshake_timeout=60
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
    async with asyncio.timeout(60):
        head = await reader.readuntil(b"\r\n\r\n")
        size = next(
            int(line.partition(b":")[2]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")
        )
        body = await reader.readexactly(size)
    return int(head.split()[1]), head, body


REFUSED = (ConnectionError, ssl.SSLError, asyncio.IncompleteReadError)
