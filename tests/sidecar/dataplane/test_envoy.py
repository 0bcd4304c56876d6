"""Plain SPIFFE mutual TLS with a real Envoy at the other end, as a client of our application and as its server."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import time

import pytest

from certs.ca import CertificateAuthority
from certs.spiffe import SpiffeId
from graph.model import Direction, Selector, Verdict, WorkloadRef
from graph.policy import Reason
from tests.sidecar.dataplane import applications as apps
from tests.sidecar.dataplane.foreign import (
    BACK,
    CART,
    FRONT,
    HERE,
    HOST,
    Contextual,
    Envoy,
    ForeignWorld,
    allow,
    cluster,
    enforce,
    free_port,
    tcp_listener,
    tls_context,
)
from tests.sidecar.dataplane.stand_ins import TRUST_DOMAIN, renew

MEGABYTE = 1 << 20
FRONT_ACCOUNT = SpiffeId.for_account(TRUST_DOMAIN, "mesh", "front")
BACK_ACCOUNT = SpiffeId.for_account(TRUST_DOMAIN, "mesh", "back")
OTHER = SpiffeId.for_workload(TRUST_DOMAIN, "mesh", "other", "other")
OTHER_ACCOUNT = SpiffeId.for_account(TRUST_DOMAIN, "mesh", "other")

FROM_FRONT = allow(Direction.INBOUND, Selector.of(WorkloadRef("mesh", "front")))
FROM_ACCOUNT = allow(Direction.INBOUND, Selector(namespace="mesh", service_account="front"))
TO_BACK = allow(Direction.OUTBOUND, Selector.of(WorkloadRef("mesh", "back")))


class Others:
    """One Envoy for all tests. Its listeners named ``to-…`` call our data plane, those named ``as-…`` are servers.

    :ivar inbound: where our data plane has to listen; ``application`` where Envoy's own application has to
    """

    def __init__(self, authority: CertificateAuthority, folder) -> None:
        self.inbound, self.application = free_port(), free_port()
        foreign = CertificateAuthority.create(TRUST_DOMAIN, time.time())
        front = Contextual(authority, FRONT)
        clients = {
            "istio": tls_context(front, authority, CART, "istio-peer-exchange", "istio"),
            "plain": tls_context(front, authority, CART),
            "tls12": tls_context(front, authority, CART, "istio", most="TLSv1_2"),
            "nobody": tls_context(None, authority, CART, "istio"),
            "foreign": tls_context(Contextual(foreign, FRONT), authority, CART, "istio"),
            "account": tls_context(Contextual(authority, FRONT_ACCOUNT), authority, CART, "istio"),
            "doubting": tls_context(front, authority, OTHER, "istio"),
        }
        servers = {
            "back": tls_context(Contextual(authority, BACK), authority, CART),
            "istio": tls_context(Contextual(authority, BACK), authority, CART, "istio"),
            "http": tls_context(Contextual(authority, BACK), authority, CART, "h2", "http/1.1"),
            "foreign": tls_context(Contextual(foreign, BACK), authority, CART),
            "other": tls_context(Contextual(authority, OTHER), authority, CART),
            "account": tls_context(Contextual(authority, BACK_ACCOUNT), authority, CART),
            "other-account": tls_context(Contextual(authority, OTHER_ACCOUNT), authority, CART),
            "tls12": tls_context(Contextual(authority, BACK), authority, CART, most="TLSv1_2"),
            "doubting": tls_context(Contextual(authority, BACK), authority, OTHER),
        }
        self.envoy = Envoy(
            folder,
            {f"to-{name}": tcp_listener(f"to-{name}") for name in clients}
            | {f"as-{name}": tcp_listener("application", tls) for name, tls in servers.items()},
            [cluster(f"to-{name}", self.inbound, tls) for name, tls in clients.items()]
            + [cluster("application", self.application)],
        )

    def port(self, name: str) -> int:
        return self.envoy.ports[name]


@pytest.fixture(scope="module")
def others(authority, tmp_path_factory):
    others = Others(authority, tmp_path_factory.mktemp("envoy"))
    yield others
    others.envoy.stop()


@pytest.fixture
async def world(authority, others):
    async with contextlib.AsyncExitStack() as stack:
        yield ForeignWorld(authority, stack, inbound=others.inbound)


@contextlib.asynccontextmanager
async def behind_envoy(others, handler=apps.serve):
    """Envoy's own application."""
    server = await asyncio.start_server(handler, HOST, others.application)
    try:
        yield
    finally:
        server.close()


async def gone(reader) -> None:
    """The connection ends before a byte arrives."""
    with contextlib.suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(100), 60) == b""


async def refused(port: int) -> None:
    """Nothing of an application is heard. Envoy accepts first and sees later, so the end need not be a reset."""
    reader, writer = await apps.connect(HERE, HOST, port)
    with contextlib.suppress(ConnectionError):
        writer.write(b"ECHO\nhello")
        await writer.drain()
    await gone(reader)
    await apps.close(writer)


async def broken_off(port: int) -> None:
    """The application resets the connection, which nobody on the way takes for an end."""
    reader, writer = await apps.connect(HERE, HOST, port)
    writer.write(b"RESET\n")
    with pytest.raises(ConnectionResetError):
        await reader.read()
    await apps.close(writer)


async def both_ways(port: int) -> None:
    """A megabyte each way, the one up ended by a half-close of the client, then a server that ends first."""
    await apps.get(HERE, HOST, port, 1, MEGABYTE)
    await apps.put(HERE, HOST, port, 2, MEGABYTE)
    apps.HALF_DIGESTS.clear()
    reader, writer = await apps.connect(HERE, HOST, port)
    writer.write(b"HALF\n")
    assert await reader.read() == b"bye\n"
    data = apps.payload(3, MEGABYTE)
    writer.write(data)
    await writer.drain()
    writer.write_eof()
    await apps.until(lambda: apps.HALF_DIGESTS)
    assert [hashlib.sha256(data).hexdigest()] == apps.HALF_DIGESTS
    await apps.close(writer)


def summary(record):
    source, destination = record.source.ref(), record.destination.ref()
    return str(source), str(destination), record.decision.verdict, record.decision.reason, record.failed


def recorded_both_ways(world, source, destination):
    """What :func:`both_ways` leaves: three connections between two ends, each its name and its proved identity."""
    records = world.flows.opened_records
    assert [(record.bytes_sent, record.bytes_received) for record in records] == [
        (len(f"GET 1 {MEGABYTE}\n"), MEGABYTE),
        (len("PUT\n") + MEGABYTE, len(f"{'0' * 64} {MEGABYTE}\n")),
        (len("HALF\n") + MEGABYTE, len("bye\n")),
    ]
    for record in records:
        assert summary(record) == (source[0], destination[0], Verdict.ALLOW, Reason.ALLOW_RULE, False)
        assert (record.source.verified, record.destination.verified, record.closed) == (True, True, True)
        assert (record.source_identity, record.destination_identity) == (str(source[1]), str(destination[1]))


# Envoy is the client --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("client", "settings"), [("istio", {}), ("plain", {"mtls_ports": True})])
async def test_an_envoy_calls_our_application(world, others, client, settings):
    if settings:
        settings = {"mtls_ports": frozenset({world.inbound})}
    await world.start(enforce(FROM_FRONT), **settings)
    await both_ways(others.port(f"to-{client}"))
    await apps.until(lambda: world.plane.live_connections == 0)
    recorded_both_ways(world, ("mesh/front", FRONT), ("shop/cart", CART))


async def test_an_envoy_passes_our_reset_on(world, others):
    await world.start(enforce(FROM_FRONT))
    await broken_off(others.port("to-istio"))


async def test_an_envoy_calls_a_server_that_speaks_first(world, others):
    await world.start(enforce(FROM_FRONT), apps.greet)
    reader, writer = await apps.connect(HERE, HOST, others.port("to-istio"))
    assert await reader.readline() == b"220 ready\r\n"
    assert world.plane.detection.timeouts == 1
    writer.write(b"HELO\r\n")
    assert await reader.readline() == b"250 HELO\r\n"
    await apps.close(writer)


async def test_a_hundred_connections_of_an_envoy_at_once(world, others):
    await world.start(enforce(FROM_FRONT), handshake_timeout=60.0, connect_timeout=60.0)
    port = others.port("to-istio")
    await asyncio.gather(
        *(apps.get(HERE, HOST, port, seed, 20_000 + seed * 997) for seed in range(50)),
        *(apps.echo(HERE, HOST, port, times=3) for _ in range(50)),
    )
    await apps.until(lambda: world.plane.live_connections == 0)
    assert len(world.flows.closed_records) == 100
    assert not any(record.failed for record in world.flows.closed_records)


@pytest.mark.parametrize("client", ["nobody", "foreign"])
async def test_an_envoy_without_a_proper_certificate_is_refused(world, others, client):
    await world.start(enforce(FROM_FRONT))
    await refused(others.port(f"to-{client}"))
    record = await world.ended()
    assert summary(record) == (f"-/{HOST}", "shop/cart", Verdict.DENY, Reason.UNTRUSTED_PEER, False)
    assert not record.source.verified


@pytest.mark.parametrize("client", ["tls12", "doubting"])
async def test_an_envoy_that_can_not_agree_with_us_gets_nothing(world, others, client):
    """It speaks no TLS 1.3, or expects somebody else: no identity was proved or disproved, so there is no flow."""
    await world.start(enforce(FROM_FRONT))
    before = others.envoy.statistics(f"cluster.to-{client}.ssl")
    await refused(others.port(f"to-{client}"))
    after = others.envoy.statistics(f"cluster.to-{client}.ssl")
    assert sum(after.values()) > sum(before.values()), "Envoy tells of a failed handshake"
    assert world.flows.opened_records == []
    assert world.plane.live_connections == 0


async def test_an_envoy_whose_identity_no_rule_allows_is_refused(world, others):
    await world.start(enforce(allow(Direction.INBOUND, Selector.of(WorkloadRef("mesh", "other")))))
    await refused(others.port("to-istio"))
    record = await world.ended()
    assert summary(record) == ("mesh/front", "shop/cart", Verdict.DENY, Reason.NO_RULE, False)
    assert record.source_identity == str(FRONT)


async def test_a_new_deny_ends_an_envoys_live_connection(world, others):
    await world.start(enforce(FROM_FRONT))
    reader, writer = await apps.connect(HERE, HOST, others.port("to-istio"))
    writer.write(b"ECHO\nalive")
    assert await reader.readexactly(5) == b"alive"
    deny = allow(Direction.INBOUND, Selector.of(WorkloadRef("mesh", "front")), Verdict.DENY)
    world.policy.apply(enforce(FROM_FRONT, deny, version=2))
    await gone(reader)
    await apps.close(writer)
    await world.ended()
    await refused(others.port("to-istio"))
    assert [record.decision.reason for record in world.flows.opened_records] == [
        Reason.ALLOW_RULE,
        Reason.DENY_OVERRIDE,
    ]


async def test_an_identity_that_stops_at_the_account_counts_as_that_account(world, others):
    await world.start(enforce(FROM_ACCOUNT))
    await apps.echo(HERE, HOST, others.port("to-account"))
    record = await world.ended()
    assert (record.source.workload, record.source.namespace) == (None, "mesh")
    assert (record.source.service_account, record.source.verified) == ("front", True)
    assert record.source_identity == str(FRONT_ACCOUNT)
    assert record.decision.allowed


async def test_an_identity_that_stops_at_the_account_is_no_workload(world, others):
    await world.start(enforce(FROM_FRONT))
    await refused(others.port("to-account"))
    record = await world.ended()
    assert record.decision.reason is Reason.NO_RULE


async def test_tls_without_a_meshs_mark_is_the_applications_own(world, others):
    """Its first bytes reach an application that is open to everybody as they are, and nobody is verified."""
    heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def listen(reader, writer):
        heard.set_result(await reader.readexactly(3))
        writer.close()

    anybody = allow(Direction.INBOUND, Selector())
    await world.start(enforce(anybody), listen)
    await refused(others.port("to-plain"))
    assert await heard == b"\x16\x03\x01"
    record = await world.ended()
    assert (record.source.verified, record.source_identity, record.protocol) == (False, "", "tls")


# Envoy is the server --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", ["back", "istio", "http"])
async def test_our_application_calls_an_envoy(world, others, server):
    await world.start(enforce(TO_BACK), server=others.port(f"as-{server}"))
    async with behind_envoy(others):
        await both_ways(world.outbound)
        await apps.until(lambda: world.plane.live_connections == 0)
    recorded_both_ways(world, ("shop/cart", CART), ("mesh/back", BACK))


async def test_our_application_sees_the_reset_of_an_envoy(world, others):
    await world.start(enforce(TO_BACK), server=others.port("as-back"))
    async with behind_envoy(others):
        await broken_off(world.outbound)


async def test_our_application_waits_for_a_server_that_speaks_first(world, others):
    await world.start(enforce(TO_BACK), server=others.port("as-back"))
    async with behind_envoy(others, apps.greet):
        reader, writer = await apps.connect(HERE, HOST, world.outbound)
        assert await reader.readline() == b"220 ready\r\n"
        await apps.close(writer)


@pytest.mark.parametrize("server", ["foreign", "other", "other-account"])
async def test_an_envoy_that_is_not_whom_the_directory_names_hears_nothing(world, others, server):
    await world.start(enforce(TO_BACK), server=others.port(f"as-{server}"))
    heard = asyncio.Queue()  # Envoy calls its application before it knows who calls

    async def listen(reader, writer):
        heard.put_nowait(await reader.read())
        writer.close()

    async with behind_envoy(others, listen):
        await apps.refused(HERE, HOST, world.outbound)
        record = await world.ended()
        assert await asyncio.wait_for(heard.get(), 60) == b""
    assert summary(record) == ("shop/cart", "mesh/back", Verdict.DENY, Reason.UNTRUSTED_PEER, False)
    assert not record.destination.verified


async def test_an_envoy_that_speaks_no_tls_1_3_hears_nothing(world, others):
    await world.start(enforce(TO_BACK), server=others.port("as-tls12"))
    await apps.refused(HERE, HOST, world.outbound)
    record = await world.ended()
    assert summary(record) == ("shop/cart", "mesh/back", Verdict.ALLOW, Reason.ALLOW_RULE, True)


async def test_an_envoy_that_does_not_accept_us_is_a_failed_connection(world, others):
    """In TLS 1.3 it says so only after our handshake is complete."""
    await world.start(enforce(TO_BACK), server=others.port("as-doubting"))
    await apps.refused(HERE, HOST, world.outbound)
    record = await world.ended()
    assert summary(record) == ("shop/cart", "mesh/back", Verdict.ALLOW, Reason.ALLOW_RULE, True)


@pytest.mark.parametrize(("rules", "identity"), [((), str(BACK)), ((TO_BACK,), "")])
async def test_without_a_rule_or_an_expected_identity_nobody_is_even_dialled(world, rules, identity):
    with socket.create_server((HOST, 0)) as server:
        server.setblocking(False)
        await world.start(enforce(*rules), server=server.getsockname()[1], identity=identity)
        await apps.refused(HERE, HOST, world.outbound)
        with pytest.raises(BlockingIOError):
            server.accept()
    record = await world.ended()
    reason = Reason.ALLOW_RULE if rules else Reason.NO_RULE
    assert (record.decision.reason, record.failed) == (reason, bool(rules))


async def test_a_new_deny_ends_our_live_connection_with_an_envoy(world, others):
    await world.start(enforce(TO_BACK), server=others.port("as-back"))
    async with behind_envoy(others):
        reader, writer = await apps.connect(HERE, HOST, world.outbound)
        writer.write(b"ECHO\nalive")
        assert await reader.readexactly(5) == b"alive"
        world.policy.apply(enforce(version=2))
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(1), 60)
        await apps.close(writer)
    await world.ended()


async def test_an_envoy_may_prove_its_account_alone(world, others):
    await world.start(enforce(TO_BACK), server=others.port("as-account"))
    async with behind_envoy(others):
        await apps.echo(HERE, HOST, world.outbound)
        record = await world.ended()
    assert summary(record) == ("shop/cart", "mesh/back", Verdict.ALLOW, Reason.ALLOW_RULE, False)
    assert record.destination_identity == str(BACK_ACCOUNT)
    assert not record.destination.verified, "which workload it is, only the directory says"


async def test_a_connection_ends_with_the_certificate_that_was_shown(world, others):
    """A renewal does not help: there is no second handshake in which anybody could prove himself again."""
    await world.start(enforce(TO_BACK), server=others.port("as-back"), lifetime=3.0)
    async with behind_envoy(others):
        reader, writer = await apps.connect(HERE, HOST, world.outbound)
        writer.write(b"ECHO\nalive")
        assert await reader.readexactly(5) == b"alive"
        ends = world.credentials.not_after
        renew(world.credentials, world.authority, 3600.0)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(1), 60)
        assert time.time() >= ends
        await apps.close(writer)
        await apps.echo(HERE, HOST, world.outbound)
