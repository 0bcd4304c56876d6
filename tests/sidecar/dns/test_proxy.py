"""The DNS proxy between an application and its resolvers, over real sockets.

Over 400 lines: UDP, TCP and what goes wrong ask one pair of proxy and resolver.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

import pytest
import uvloop

from sidecar.dataplane.sockets import Address
from sidecar.dns.names import NameTable
from sidecar.dns.proxy import DnsProxy, DnsSettings, default_upstreams
from sidecar.errors import CannotListen
from tests.sidecar.dns import packets as dns
from tests.sidecar.dns.resolver import Resolver

HOST = "api.example.com"
TIME = 1000.0


class Client(asyncio.DatagramProtocol):
    """An application that asks over UDP."""

    def __init__(self):
        self.replies = asyncio.Queue()

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, addr):
        self.replies.put_nowait(data)

    async def ask(self, data):
        self.transport.sendto(data)
        async with asyncio.timeout(10):
            return await self.replies.get()


class Served:
    def __init__(self, proxy, names, client):
        self.proxy, self.names, self.ask, self.client = proxy, names, client.ask, client
        self.address = proxy.listening[0]


@contextlib.asynccontextmanager
async def serving(*resolvers, permitted=lambda: True, host="127.0.0.1", **changes):
    upstreams = tuple(one if isinstance(one, Address) else one.address for one in resolvers)
    names = NameTable(0.0)
    settings = DnsSettings(
        **{"listen": (Address(host, 0),), "upstreams": upstreams, "patience": 0.05, "deadline": 2.0} | changes
    )
    proxy = DnsProxy(settings, names, permitted, lambda: TIME)
    await proxy.start()
    loop = asyncio.get_running_loop()
    transport, client = await loop.create_datagram_endpoint(Client, remote_addr=proxy.listening[0])
    try:
        yield Served(proxy, names, client)
    finally:
        transport.close()
        await proxy.stop()
        await proxy.stop()


def answering(*records, rcode=0, flags=0, **sections):
    def answers(data):
        number, asked = int.from_bytes(data[:2]), data[12 : data.index(b"\0", 12) + 5]
        return dns.message(number, dns.RESPONSE | rcode | flags, [asked], records, **sections)

    return answers


FOUND = answering(dns.address(HOST, "192.0.2.1"))


async def test_the_answer_is_passed_on_as_it_is_and_its_name_is_bound():
    answers = answering(dns.alias(HOST, "cdn.example"), dns.address("cdn.example", "192.0.2.1"), additional=[dns.opt()])
    async with Resolver(answers) as resolver, serving(resolver) as served:
        reply = await served.ask(dns.query(HOST, number=77, additional=[dns.opt()]))
        ((how, asked),) = resolver.asked
        assert how == "udp"
        assert asked[2:] == dns.query(HOST, additional=[dns.opt()])[2:]
        assert reply == struct.pack("!H", 77) + answers(asked)[2:]
        assert served.names.bound("192.0.2.1", TIME) == (HOST,)


async def test_over_ipv6():
    async with Resolver(FOUND, "::1") as resolver, serving(resolver, host="::1") as served:
        assert dns.rcode(await served.ask(dns.query(HOST))) == 0
        assert served.names.bound("192.0.2.1", TIME) == (HOST,)


async def test_ids_and_ports_are_those_of_nobody_else():
    async with Resolver(FOUND) as resolver, serving(resolver) as served:
        for _ in range(40):
            await served.ask(dns.query(HOST, number=5))
        ids = {data[:2] for _, data in resolver.asked}
        assert len(ids) >= 38
        assert len({port for _, port in resolver.sources}) >= 30


@pytest.mark.parametrize(
    "wrong",
    [
        lambda data: bytes([data[0] ^ 1]) + FOUND(data)[1:],
        lambda data: FOUND(data).replace(b"\x03api", b"\x03evl", 1),
        lambda data: data,
        lambda data: FOUND(data) + b"x",
    ],
    ids=["id", "question", "a query", "malformed"],
)
async def test_what_does_not_fit_the_question_is_passed_over(wrong):
    async with Resolver(lambda data: [wrong(data), FOUND(data)]) as resolver, serving(resolver) as served:
        reply = await served.ask(dns.query(HOST))
        assert reply == FOUND(dns.query(HOST))
        strange = served.proxy.counts.strangeness
        assert strange.strays + strange.malformed == 1


async def test_nobody_else_can_answer():
    """A datagram with the right id and question, to the right port, from another address."""
    async with Resolver(lambda data: None) as resolver, serving(resolver, deadline=0.5) as served:
        asking = asyncio.ensure_future(served.ask(dns.query(HOST)))
        await resolver.arrived.wait()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(Client, ("127.0.0.1", 0))
        transport.sendto(FOUND(resolver.asked[0][1]), resolver.sources[0])
        assert dns.rcode(await asking) == 2
        assert served.names.addresses == 0
        transport.close()


@pytest.mark.parametrize("rcode", [2, 4, 5])
async def test_another_resolver_is_asked_when_one_fails(rcode):
    async with (
        Resolver(answering(rcode=rcode)) as first,
        Resolver(FOUND) as second,
        serving(first, second, patience=60.0) as served,
    ):
        assert await served.ask(dns.query(HOST)) == FOUND(dns.query(HOST))


async def test_another_resolver_is_asked_when_one_is_silent_or_gone():
    async with Resolver(FOUND) as gone:
        pass
    async with (
        Resolver(lambda data: None) as silent,
        Resolver(FOUND) as good,
        serving(gone.address, silent, good) as served,
    ):
        assert await served.ask(dns.query(HOST)) == FOUND(dns.query(HOST))
        assert len(silent.asked) == 1


async def test_when_all_fail_the_last_failure_is_passed_on():
    async with (
        Resolver(answering(rcode=2)) as first,
        Resolver(answering(rcode=5)) as second,
        serving(first, second) as served,
    ):
        assert dns.rcode(await served.ask(dns.query(HOST))) == 5


async def test_a_name_that_does_not_exist_is_an_answer():
    soa = dns.record("example.com", dns.SOA, dns.name("a.example") * 2 + b"\0" * 20)
    async with Resolver(answering(rcode=3, authorities=[soa])) as first, serving(first) as served:
        assert dns.rcode(await served.ask(dns.query(HOST))) == 3
        assert served.names.addresses == 0


async def test_a_failure_binds_nothing_even_with_addresses_in_it():
    async with Resolver(answering(dns.address(HOST, "192.0.2.1"), rcode=3)) as first, serving(first) as served:
        await served.ask(dns.query(HOST))
        assert served.names.addresses == 0


@pytest.mark.parametrize("gone", ["none", "closed", "silent"])
async def test_without_a_resolver_the_answer_is_a_failure_that_says_why(gone):
    async with Resolver(lambda data: None) as resolver:
        where = [] if gone == "none" else [resolver.address]
        if gone == "closed":
            await resolver.__aexit__()
        async with serving(*where, deadline=0.3) as served:
            reply = await served.ask(dns.query(HOST, additional=[dns.opt()]))
            assert dns.rcode(reply) == 2
            assert b"no answer from the pod's resolvers" in reply
            assert served.proxy.counts.failed == 1


async def test_a_lost_question_is_sent_again():
    calls = []

    def second_time(data):
        calls.append(data)
        return FOUND(data) if len(calls) == 2 else None

    async with Resolver(second_time) as resolver, serving(resolver, deadline=10.0) as served:
        assert await served.ask(dns.query(HOST)) == FOUND(dns.query(HOST))
        assert calls[0] == calls[1]


async def test_in_quarantine_nothing_leaves():
    async with Resolver(FOUND) as resolver, serving(resolver, permitted=lambda: False) as served:
        reply = await served.ask(dns.query(HOST, additional=[dns.opt()]))
        assert dns.rcode(reply) == 5
        assert b"quarantine" in reply
        assert resolver.asked == []


async def test_malformed_questions_do_not_leave():
    async with Resolver(FOUND) as resolver, serving(resolver) as served:
        assert dns.rcode(await served.ask(dns.query(HOST) + b"x")) == 1
        assert dns.rcode(await served.ask(dns.query(HOST, 252))) == 5
        served.client.transport.sendto(b"x")
        served.client.transport.sendto(dns.response(HOST))
        assert await served.ask(dns.query(HOST)) == FOUND(dns.query(HOST)), "those before were not answered"
        assert len(resolver.asked) == 1
        assert served.proxy.counts.refused == 4


async def test_more_questions_than_may_be_asked_at_once_fail_at_once():
    async with Resolver(lambda data: None) as silent, serving(silent, in_flight=3, deadline=60.0) as served:
        for number in range(3):
            served.client.transport.sendto(dns.query(HOST, number=number))
        while len(silent.asked) < 3:
            silent.arrived.clear()
            await asyncio.wait_for(silent.arrived.wait(), 10)
        assert dns.rcode(await served.ask(dns.query(HOST))) == 2
        assert served.proxy.counts.shed == 1


# --- TCP


async def connect(served):
    reader, writer = await asyncio.open_connection(*served.address)

    def send(data):
        writer.write(struct.pack("!H", len(data)) + data)

    async def receive():
        async with asyncio.timeout(10):
            (size,) = struct.unpack("!H", await reader.readexactly(2))
            return await reader.readexactly(size)

    return send, receive, reader, writer


async def test_a_truncated_answer_brings_the_application_over_tcp():
    big = [dns.address(HOST, f"192.0.2.{n}") for n in range(1, 60)]
    answers = answering(*big)

    def by_size(data):
        whole = answers(data)
        return whole if resolver.asked[-1][0] == "tcp" else answering(flags=dns.TRUNCATED)(data)

    async with Resolver(by_size) as resolver, serving(resolver) as served:
        reply = await served.ask(dns.query(HOST))
        assert reply[2] & 0x02
        send, receive, _, writer = await connect(served)
        send(dns.query(HOST))
        assert await receive() == answers(dns.query(HOST))
        assert [how for how, _ in resolver.asked] == ["udp", "tcp"]
        assert served.names.bound("192.0.2.59", TIME) == (HOST,)
        writer.close()


async def test_many_questions_on_one_connection_do_not_wait_for_each_other():
    def slow_first(data):
        return None if data[12:].startswith(b"\x04slow") else FOUND(data)

    async with Resolver(slow_first) as resolver, serving(resolver, deadline=0.5) as served:
        send, receive, _, writer = await connect(served)
        send(dns.query("slow.example.com", number=1))
        for number in range(2, 60):
            send(dns.query(HOST, number=number))
        replies = [await receive() for _ in range(59)]
        assert sorted(int.from_bytes(reply[:2]) for reply in replies) == list(range(1, 60))
        assert [dns.rcode(reply) for reply in replies if reply[:2] == b"\0\1"] == [2]
        writer.close()


async def test_questions_beyond_those_that_may_be_asked_at_once_wait_for_their_turn():
    def slow_first(data):
        return None if data[12:].startswith(b"\x04slow") else FOUND(data)

    async with Resolver(slow_first) as resolver, serving(resolver, deadline=0.5, pipelined=1) as served:
        send, receive, _, writer = await connect(served)
        send(dns.query("slow.example.com", number=1))
        send(dns.query(HOST, number=2))
        assert [int.from_bytes((await receive())[:2]) for _ in range(2)] == [1, 2]
        writer.close()


async def test_the_end_of_questions_is_not_the_end_of_answers():
    async with Resolver(FOUND) as resolver, serving(resolver) as served:
        send, receive, reader, writer = await connect(served)
        send(dns.query(HOST))
        writer.write_eof()
        assert await receive() == FOUND(dns.query(HOST))
        assert await reader.read() == b""
        writer.close()


async def test_an_idle_or_half_said_connection_ends():
    async with Resolver(FOUND) as resolver, serving(resolver, idle=0.05) as served:
        for beginning in (b"", b"\0", b"\0\x20abc"):
            _, _, reader, writer = await connect(served)
            writer.write(beginning)
            async with asyncio.timeout(10):
                assert await reader.read() == b""
            writer.close()


async def test_whoever_does_not_read_the_last_answer_is_not_waited_for():
    text = b"".join(dns.record(HOST, dns.TXT, bytes([250]) + b"x" * 250) for _ in range(200))
    large = answering(*[text[at : at + len(text) // 200] for at in range(0, len(text), len(text) // 200)])
    async with Resolver(large) as resolver:
        proxy = DnsProxy(
            DnsSettings(listen=(Address("127.0.0.1", 0),), upstreams=(resolver.address,), idle=0.2),
            NameTable(0.0),
            lambda: True,
        )
        proxy.listen()
        for sock in proxy._sockets:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        await proxy.start()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, proxy.listening[0])
            asked = dns.query(HOST, dns.TXT)
            await loop.sock_sendall(client, struct.pack("!H", len(asked)) + asked)
            client.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(60):
                while not (resolver.asked and not proxy._connections):  # noqa: ASYNC110 - it has no event
                    await asyncio.sleep(0.01)
                data = b""
                with contextlib.suppress(ConnectionResetError):
                    while more := await loop.sock_recv(client, 65536):
                        data += more
        assert len(data) < len(large(asked))
        await proxy.stop()


async def test_the_number_of_connections_is_bounded():
    async with Resolver(FOUND) as resolver, serving(resolver, connections=1) as served:
        send, receive, _, writer = await connect(served)
        send(dns.query(HOST))
        await receive()
        _, _, reader, other = await connect(served)
        with contextlib.suppress(ConnectionResetError):
            async with asyncio.timeout(10):
                assert await reader.read() == b""
        send(dns.query(HOST))
        await receive()
        writer.close()
        other.close()


async def test_a_resolver_that_ends_early_over_tcp_is_a_failure():
    async with Resolver(FOUND) as resolver, serving(resolver) as served:
        resolver._server.close()
        send, receive, _, writer = await connect(served)
        send(dns.query(HOST))
        assert dns.rcode(await receive()) == 2
        writer.close()


# --- the rest


@pytest.mark.parametrize(
    "scenario",
    [
        test_the_answer_is_passed_on_as_it_is_and_its_name_is_bound,
        test_another_resolver_is_asked_when_one_is_silent_or_gone,
        test_a_lost_question_is_sent_again,
        test_a_truncated_answer_brings_the_application_over_tcp,
        test_many_questions_on_one_connection_do_not_wait_for_each_other,
        test_the_end_of_questions_is_not_the_end_of_answers,
        test_a_resolver_that_ends_early_over_tcp_is_a_failure,
    ],
)
def test_it_is_the_same_on_the_loop_that_the_sidecar_runs_on(scenario):
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())


async def test_a_successor_listens_beside_us():
    async with (
        Resolver(FOUND) as resolver,
        serving(resolver) as old,
        serving(resolver, listen=(old.address,)) as new,
    ):
        await old.proxy.stop()
        assert await new.ask(dns.query(HOST)) == FOUND(dns.query(HOST))


async def test_a_port_that_somebody_has_is_named():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as held:
        held.bind(("127.0.0.1", 0))
        listen = Address(*held.getsockname())
        with pytest.raises(CannotListen, match=r"another in dns\.listen") as caught:
            await DnsProxy(DnsSettings(listen=(listen,)), NameTable(0.0), lambda: True).start()
        assert (caught.value.host, caught.value.port) == listen


def test_the_pods_own_resolvers():
    text = """
# comment
search shop.svc.cluster.local
nameserver 10.96.0.10
nameserver
nameserver fe80::1%eth0
nameserver nonsense
nameserver 127.0.0.1
nameserver fd00::a extra
nameserver 192.0.2.4
options ndots:5
"""
    here = (Address("127.0.0.1", 53),)
    assert default_upstreams(text, ()) == (
        Address("10.96.0.10", 53),
        Address("127.0.0.1", 53),
        Address("fd00::a", 53),
    )
    assert default_upstreams(text, here) == (Address("10.96.0.10", 53), Address("fd00::a", 53))
    assert default_upstreams("", ()) == ()
