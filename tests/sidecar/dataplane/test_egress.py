"""What leaves the mesh is judged by the name that DNS bound to its address, which the client's claims only choose."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.dataplane.egress import MAX_HEAD, Claim, Egress, claim_of
from sidecar.dataplane.sockets import Address
from tests.sidecar.dataplane import applications as apps
from tests.sidecar.dns import packets as dns

API, OTHER, EVIL = "api.example.com", "www.example.com", "evil.example.net"
HERE = "192.0.2.1"


def hello(host: str | None) -> bytes:
    """The first flight of a real TLS client."""
    outgoing = ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.check_hostname = False
    channel = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=host)
    with pytest.raises(ssl.SSLWantReadError):
        channel.do_handshake()
    return outgoing.read()


def renamed(old: str, new: str) -> bytes:
    """A hello with a server name that no client of ours would write; of the same length."""
    assert len(old) == len(new)
    return hello(old).replace(old.encode(), new.encode("latin-1"))


def get(host: str, target: str = "/", *more: str) -> bytes:
    return "\r\n".join([f"GET {target} HTTP/1.1", f"Host: {host}", *more, "", ""]).encode("latin-1")


@pytest.mark.parametrize(
    ("data", "claim"),
    [
        (hello(API), API),
        (hello(None), Claim.NOTHING),
        (hello(API)[:100], Claim.MORE),
        (renamed(API, "api.example.co."), Claim.DOUBTFUL),
        (renamed(API, "api example com"), Claim.DOUBTFUL),
        (b"\x16\x03\x01\x00\x05\x02abcd", Claim.DOUBTFUL),
        (get(API), API),
        (get("API.Example.COM:8080"), API),
        (get(API + "."), API),
        (get(f"\t {API} \t"), API),
        (get(API)[:-1], Claim.MORE),
        (b"GET / HTTP/1.1\r\n", Claim.MORE),
        (b"GE", Claim.MORE),
        (b"GET / HTTP/1.0\r\n\r\n", Claim.NOTHING),
        (b"GET / HTTP/1.1\r\nAccept: x\r\n\r\n", Claim.DOUBTFUL),
        (get(""), Claim.NOTHING),
        (get(API, "/", f"Host: {API}"), Claim.DOUBTFUL),
        (get(API, "/", f"host: {EVIL}"), Claim.DOUBTFUL),
        (get(API, "/", f"Host : {EVIL}"), Claim.DOUBTFUL),
        (get(API, "/", f" {EVIL}"), Claim.DOUBTFUL),
        (get(API, "/", f"X: a\nHost: {EVIL}"), Claim.DOUBTFUL),
        (get(API, "/", f"X: a\rHost: {EVIL}"), Claim.DOUBTFUL),
        (get(API, "/", "X: a\0b"), Claim.DOUBTFUL),
        (get(f"{API}@{EVIL}"), Claim.DOUBTFUL),
        (get(f"{API}, {EVIL}"), Claim.DOUBTFUL),
        (get(f"{API}/x"), Claim.DOUBTFUL),
        (get("."), Claim.DOUBTFUL),
        (get(API, f"http://{API}/x"), API),
        (get(API, f"HTTP://{API}"), API),
        (get(API, f"http://{EVIL}/x"), Claim.DOUBTFUL),
        (get(API, f"http://{API}@{EVIL}/"), Claim.DOUBTFUL),
        (get(API, "ftp://x/"), Claim.DOUBTFUL),
        (get(API, "*"), API),
        (f"CONNECT {EVIL}:443 HTTP/1.1\r\nHost: {EVIL}:443\r\n\r\n".encode(), Claim.NOTHING),
        (get(HERE), Claim.NOTHING),
        (get(f"{HERE}:80"), Claim.NOTHING),
        (get("192.0.2.2"), Claim.DOUBTFUL),
        (get("[2001:db8::1]:80"), Claim.DOUBTFUL),
        (b"\r\n" + get(EVIL), Claim.DOUBTFUL),
        (b"get / HTTP/1.1\nHost: evil\n\n", Claim.DOUBTFUL),
        (b"GET / HTTP/1.1\nHost: evil\n\n", Claim.DOUBTFUL),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Claim.NOTHING),
        (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", Claim.NOTHING),
        (b"SSH-2.0-x\r\n", Claim.NOTHING),
        (b"g", Claim.MORE),  # et / HTTP/1.1, to a server that takes that
        (b"GET H", Claim.MORE),  # TTP://evil/ HTTP/1.1
        (get(API, "/", "X: " + "a" * MAX_HEAD), Claim.DOUBTFUL),
        (get(API, "/", "X: " + "a" * MAX_HEAD)[:-4], Claim.DOUBTFUL),
    ],
)
def test_what_a_client_claims(data, claim):
    assert claim_of(data, HERE) == claim


@given(st.binary(max_size=300))
def test_no_bytes_are_too_strange(data):
    assert isinstance(claim_of(data, HERE), str | Claim)


@given(st.integers(0, 400), st.integers(0, 255))
def test_no_damage_makes_a_name_that_is_not_there(at, byte):
    for whole in (bytearray(hello(API)), bytearray(get(API))):
        whole[at % len(whole)] = byte
        claim = claim_of(bytes(whole), HERE)
        assert isinstance(claim, Claim) or claim.encode() in bytes(whole).lower()


# --- pods

PORT, OPAQUE = 8443, 5432


def outside(pod, port=PORT):
    """A directory entry for what the inventory does not know."""
    return [{"address": address, "port": port} for address in (pod.address, pod.address6)]


def allow(*hosts, **more):
    return {"rules": [{"from": "shop/front", "to": f"-/{host}", "effect": "allow"} for host in hosts], **more}


async def echo(reader, writer):
    """A server that sends back what it gets, from the first byte."""
    try:
        while data := await reader.read(apps.LIMIT):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def answered(pod, address, data, port=PORT, *, pieces=1):
    """Whether every byte came back: a connection that was carried, from its first byte."""
    try:
        reader, writer = await apps.connect(pod, address, port)
    except ConnectionError:
        return False
    try:
        step = -(-len(data) // pieces)
        for start in range(0, len(data), step):
            writer.write(data[start : start + step])
            await writer.drain()
            await asyncio.sleep(0)
        async with asyncio.timeout(60):
            return await reader.readexactly(len(data)) == data
    except (ConnectionError, asyncio.IncompleteReadError):
        return False
    finally:
        await apps.close(writer)


async def test_a_rule_by_name_allows_what_dns_bound_and_the_client_means(pods, sidecars):
    client, server = pods
    front = sidecars(
        client,
        "shop/front",
        policy=allow(API),
        directory=outside(server),
        names={server.address: [API, OTHER], server.address6: [API]},
    )
    async with apps.server(server, PORT, echo), apps.server(server, PORT, echo, address=server.address6):
        assert await answered(client, server.address, hello(API))
        assert await answered(client, server.address, hello(API), pieces=20)
        assert await answered(client, server.address, get(API))
        assert await answered(client, server.address6, hello(API))
        assert not await answered(client, server.address, hello(OTHER)), "bound, and not allowed"
        assert not await answered(client, server.address, get(OTHER))
        assert front.state()["unbound"] == 0
        assert not await answered(client, server.address, hello(EVIL)), "not bound"
        assert not await answered(client, server.address6, hello(OTHER)), "bound to another address"
        assert not await answered(client, server.address, get(API, "/", f"Host: {EVIL}"))
    await front.until(lambda state: state["live"] == 0)
    assert front.state()["unbound"] == 3
    assert "claims 'evil.example.net', which DNS has not bound" in front.log
    flows = front.flows()
    assert [(flow["destination"], flow["verdict"]) for flow in flows] == [
        *[(f"-/{API}", "allow")] * 4,
        *[(f"-/{OTHER}", "deny")] * 2,
        (f"-/{server.address}", "deny"),
        (f"-/{server.address6}", "deny"),
        (f"-/{server.address}", "deny"),
    ]
    assert all(flow["port"] == PORT and flow["identities"][1] == "" for flow in flows)


async def test_a_name_that_nobody_asked_dns_for_opens_nothing(pods, sidecars):
    client, server = pods
    front = sidecars(client, "shop/front", policy=allow(API), directory=outside(server))
    async with apps.server(server, PORT, echo):
        assert not await answered(client, server.address, hello(API))
    assert front.flows()[0]["destination"] == f"-/{server.address}"
    assert front.state()["unbound"] == 0


async def test_rules_by_address_hold_with_and_without_a_name(pods, sidecars):
    client, server = pods
    names = {server.address: [OTHER]}
    front = sidecars(client, "shop/front", policy=allow(server.address), directory=outside(server), names=names)
    async with apps.server(server, PORT, echo):
        assert await answered(client, server.address, hello(OTHER))
        assert await answered(client, server.address, hello(EVIL))
        assert await answered(client, server.address, b"\0\1\2")
    assert [flow["destination"] for flow in front.flows()] == [f"-/{OTHER}", f"-/{server.address}", f"-/{OTHER}"]


async def test_the_default_is_audited_as_everything_else(pods, sidecars):
    client, server = pods
    names = {server.address: [API]}
    front = sidecars(client, "shop/front", policy={"outbound": "audit"}, directory=outside(server), names=names)
    async with apps.server(server, PORT, echo):
        assert await answered(client, server.address, hello(API))
    (flow,) = front.flows()
    assert (flow["destination"], flow["verdict"], flow["reason"]) == (f"-/{API}", "allow", "audit")


async def test_a_server_that_speaks_first_and_an_opaque_port(pods, sidecars):
    client, server = pods
    front = sidecars(
        client,
        "shop/front",
        policy=allow(API),
        directory=outside(server) + outside(server, OPAQUE),
        names={server.address: [OTHER, API]},
        sniff_wait=0.05,
    )
    async with apps.server(server, PORT, apps.greet), apps.server(server, OPAQUE, echo):
        reader, writer = await apps.connect(client, server.address, PORT)
        assert await reader.readline() == b"220 ready\r\n"
        await apps.close(writer)
        assert await answered(client, server.address, b"\0\1\2", OPAQUE)
        assert await answered(client, server.address, hello(OTHER), OPAQUE), "nobody looks at it"
    assert {flow["destination"] for flow in front.flows()} == {f"-/{API}"}


async def test_half_a_claim_is_no_claim(pods, sidecars):
    client, server = pods
    names = {server.address: [API]}
    options = {"sniff_wait": 0.05, "handshake_timeout": 0.2}
    front = sidecars(client, "shop/front", policy=allow(API), directory=outside(server), names=names, **options)
    async with apps.server(server, PORT, echo):
        for beginning in (hello(API)[:50], b"GET / HTTP/1.1\r\n"):
            assert not await answered(client, server.address, beginning)
        reader, writer = await apps.connect(client, server.address, PORT)
        writer.write(b"GET / HT")
        writer.write_eof()
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(reader.readexactly(1), 60)
        await apps.close(writer)
    assert {flow["destination"] for flow in front.flows()} == {f"-/{server.address}"}


async def test_clients_that_go_while_they_are_looked_at_leave_nothing_behind(pods, sidecars):
    client, server = pods
    names = {server.address: [API]}
    front = sidecars(client, "shop/front", policy=allow(API), directory=outside(server), names=names, sniff_wait=5.0)
    async with apps.server(server, PORT, echo):
        assert await answered(client, server.address, hello(API))
        await front.until(lambda state: state["live"] == 0)
        before = front.state()["descriptors"]
        for kind in ("reset", "end"):
            for _ in range(20):
                _, writer = await apps.connect(client, server.address, PORT)
                sock = writer.get_extra_info("socket")
                if kind == "reset":
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                writer.transport.abort()
        await front.until(lambda state: state["live"] == 0 and state["descriptors"] <= before)


async def test_a_new_policy_ends_what_is_open_by_name(pods, sidecars):
    client, server = pods
    names = {server.address: [API]}
    front = sidecars(client, "shop/front", policy=allow(API), directory=outside(server), names=names)
    async with apps.server(server, PORT, echo):
        reader, writer = await apps.connect(client, server.address, PORT)
        writer.write(get(API))
        await reader.readexactly(len(get(API)))
        front.do("policy", policy=allow(OTHER))
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(reader.readexactly(1), 60)
        await apps.close(writer)


# --- with DNS


def ask(pod, host, server=("10.96.0.10", 53), kind=dns.A):
    """Ask DNS as an application does; the answer's code, or None when none came."""

    def asking():
        with socket.socket(socket.AF_INET6 if ":" in server[0] else socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(60)
            sock.sendto(dns.query(host, kind), server)
            data, source = sock.recvfrom(4096)
            assert source[:2] == server
            return dns.rcode(data)

    return asyncio.to_thread(pod.namespace.call, asking)


class _Zone(asyncio.DatagramProtocol):
    """A resolver that knows some names."""

    def __init__(self, known):
        self.known = known

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, addr):
        labels, at = [], 12
        while data[at]:
            labels.append(data[at + 1 : at + 1 + data[at]].decode())
            at += 1 + data[at]
        host = ".".join(labels)
        records = [dns.address(host, value, 0) for value in self.known.get(host, [])]
        flags = dns.RESPONSE | (0 if records else 3)
        self.transport.sendto(dns.message(int.from_bytes(data[:2]), flags, [data[12 : at + 5]], records), addr)


async def resolver(pod, known):
    sock = pod.namespace.socket(kind=socket.SOCK_DGRAM)
    sock.bind((pod.address, 53))
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: _Zone(known), sock=sock)
    return transport


async def test_from_the_question_to_the_connection(network, sidecars):
    client, server, names = network.pod(), network.pod(), network.pod()
    zone = await resolver(names, {API: [server.address], EVIL: [server.address, "169.254.169.254"]})
    front = sidecars(
        client, "shop/front", policy=allow(API), directory=outside(server), resolvers=[(names.address, 53)]
    )
    async with apps.server(server, PORT, echo):
        assert not await answered(client, server.address, hello(API)), "not asked yet"
        assert await ask(client, API) == 0
        assert await answered(client, server.address, hello(API))
        assert await ask(client, API, ("fd00:213:7::99", 53)) == 0, "whomever it asks, and over what"
        assert await ask(client, OTHER) == 3
        assert await ask(client, EVIL) == 0
        assert await answered(client, server.address, hello(API)), "another name of the same address changes nothing"
        assert not await answered(client, server.address, hello(EVIL))

        await front.until(lambda state: state["live"] == 0 and state["held"] == 0)
        reader, writer = await apps.connect(client, server.address, PORT)
        writer.write(get(API))
        await reader.readexactly(len(get(API)))
        await front.until(lambda state: state["held"] == 1)  # its name stays bound as long as it lives
        await apps.close(writer)
        await front.until(lambda state: state["held"] == 0)
    zone.close()


async def test_clients_that_say_nothing_wait_with_one_timer_for_all(reactor, monkeypatch):
    """And get their turns of the reactor when the time is over: a thousand may come at once."""
    timers = []
    later = reactor.loop.call_later

    def counted(delay, call, *arguments, **options):
        timers.append(delay)
        return later(delay, call, *arguments, **options)

    monkeypatch.setattr(reactor.loop, "call_later", counted)
    settings = SimpleNamespace(sniff_wait=0.05, handshake_timeout=0.2, opaque_ports=frozenset())
    fabric = SimpleNamespace(
        reactor=reactor,
        settings=settings,
        names=SimpleNamespace(bound=lambda address: (API, OTHER)),
        authority=SimpleNamespace(inspects=lambda name, port: False),
        complaints=SimpleNamespace(say=lambda *said: None),
    )
    egress, target = Egress(fabric), Address(HERE, 80)
    with contextlib.ExitStack() as stack:
        pairs = [socket.socketpair() for _ in range(100)]
        for pair in pairs:
            for sock in pair:
                stack.enter_context(sock)
                sock.setblocking(False)
        for _, client in pairs[:50]:
            client.send(get(OTHER)[:-1])  # these begin to, and wait for longer
        hosts = await asyncio.gather(*(egress.host(sock, target) for sock, _ in pairs))
    assert hosts == [""] * 50 + [API] * 50
    assert egress.unbound == 50
    assert timers.count(0.05) == timers.count(0.2) == 1, "others look again for those who came a moment later"
