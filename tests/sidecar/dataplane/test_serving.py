"""Which lane a connection to our application gets, and what becomes of the bytes that came before that was known."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import resource

import pytest

from graph.model import Mode, Origin, PortRange, Rule, Selector, Snapshot, WorkloadRef
from graph.policy import Reason
from sidecar.dataplane.frames import HEADER
from tests.sidecar.dataplane.stand_ins import TRUST_DOMAIN
from tests.sidecar.dataplane.test_frames import frame
from tests.sidecar.dataplane.world import ACK, DATA, FIN, RST, SYN, UPDATE, until_end

#: Long enough that a test which waits for it in vain fails.
NEVER = 60.0


def by_operation(world, *operations: str) -> Snapshot:
    """A policy that allows shop/front these operations and nothing else."""
    ref = WorkloadRef("shop", "cart")
    rule = Rule(
        "override/ops",
        Selector.of(WorkloadRef("shop", "front")),
        Selector.of(ref),
        ports=(PortRange.single(world.inbound),),
        operations=operations,
        origin=Origin.OVERRIDE,
        owner="test",
    )
    return Snapshot(ref, TRUST_DOMAIN, 2, Mode.ENFORCE, Mode.ENFORCE, rules=(rule,))


class Calls:
    """An application that notes who calls, and echoes."""

    def __init__(self, greeting: bytes = b"") -> None:
        self.count = 0
        self.called = asyncio.Event()
        self.heard = b""
        self._greeting = greeting

    async def __call__(self, reader, writer) -> None:
        self.count += 1
        self.called.set()
        writer.write(self._greeting)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                self.heard += data
                writer.write(data)
                await writer.drain()
        writer.close()


async def suppressed(work) -> None:
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        await work


async def test_an_opaque_port_is_not_waited_for(world):
    calls = Calls()
    await world.start(calls, opaque_ports=frozenset({world.inbound}), sniff_wait=NEVER)
    raw = await world.dial()
    raw.send(frame(UPDATE, SYN, 1, 0))
    assert await raw.receive() == (UPDATE, ACK, 1, 0, b"")
    await asyncio.wait_for(calls.called.wait(), 60)
    assert world.plane.detection.timeouts == 0


@pytest.mark.parametrize(("said", "waits"), [("redis", False), ("https", False), ("http", True), ("grpc", True)])
async def test_what_the_inventory_says_of_a_port_comes_before_its_number(world, said, waits):
    calls = Calls()
    await world.start(
        calls, opaque_ports=frozenset({world.inbound} if waits else ()), sniff_wait=NEVER, first_byte_wait=0.1
    )
    ref = WorkloadRef("shop", "cart")
    world.policy.apply(Snapshot(ref, TRUST_DOMAIN, 2, Mode.LEARN, Mode.LEARN, protocols=((world.inbound, said),)))
    raw = await world.dial()
    raw.send(frame(UPDATE, SYN, 1, 0))
    assert await raw.receive() == (UPDATE, ACK, 1, 0, b"")
    assert world.plane.detection.timeouts == waits


async def test_a_client_that_waits_for_the_server_gets_it_and_after_some_is_not_kept_waiting(world):
    calls = Calls(b"220 ready\r\n")
    await world.start(calls, sniff_wait=0.05)
    raw = await world.dial()
    for stream in (1, 3, 5, 7):
        raw.send(frame(UPDATE, SYN, stream, 0))
        assert await raw.receive() == (UPDATE, ACK, stream, 0, b"")
        assert (await raw.receive())[4] == b"220 ready\r\n"
    assert world.plane.detection.timeouts == 3
    assert calls.count == 4


@pytest.mark.parametrize("tunnelled", [True, False])
async def test_waiting_is_no_way_past_the_lane(world, tunnelled):
    """A client that lets its time pass and then speaks is told apart as if it had not waited."""
    calls = Calls()
    await world.start(calls, sniff_wait=0.05)
    text = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Client-Cert: By=me\r\n\r\n"
    if tunnelled:
        raw = await world.dial()
        raw.send(frame(UPDATE, SYN, 1, 0))
        assert await raw.receive() == (UPDATE, ACK, 1, 0, b"")
        raw.send(frame(DATA, 0, 1, 7, text[:7]), frame(DATA, 0, 1, len(text) - 7, text[7:]))
    else:
        _, writer = await asyncio.open_connection("127.0.0.1", world.inbound)
        await world.until(lambda: calls.count == 1)
        writer.write(text)
    await world.until(lambda: b"\r\n\r\n" in calls.heard)
    assert calls.heard.startswith(b"GET / HTTP/1.1\r\n")
    assert b"By=me" not in calls.heard
    await world.until(lambda: world.flows.opened_records[-1].protocol == "http")
    assert calls.count == 2, "nothing was said on the first connection, and it was given up"
    if not tunnelled:
        writer.close()


@pytest.mark.parametrize("tunnelled", [True, False])
async def test_what_is_asked_when_a_silent_server_has_hung_up_is_asked_of_nobody(world, tunnelled):
    """Found by a review: it was asked on another connection, and the answer had nobody to go to, whose end was told."""
    heard = []

    async def impatient(reader, writer):
        heard.append(b"")
        if len(heard) > 1:
            heard.append(await reader.read(65536))
        writer.close()

    await world.start(impatient, sniff_wait=0.05)
    text = b"POST /buy HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
    if tunnelled:
        raw = await world.dial()
        raw.send(frame(UPDATE, SYN, 1, 0))
        assert await raw.receive() == (UPDATE, ACK, 1, 0, b"")
        assert await raw.receive() == (UPDATE, FIN, 1, 0, b"")
        raw.send(frame(DATA, 0, 1, len(text), text))
    else:
        reader, writer = await asyncio.open_connection("127.0.0.1", world.inbound)
        assert await asyncio.wait_for(reader.read(), 60) == b""
        writer.write(text)
    await world.until(lambda: world.plane.live_connections == 0)
    assert heard == [b""]
    if not tunnelled:
        writer.close()


async def test_who_waits_and_is_no_client_of_http_is_passed_on_whole(world):
    calls = Calls()
    await world.start(calls, sniff_wait=0.05)
    raw = await world.dial()
    raw.send(frame(UPDATE, SYN, 1, 0))
    assert await raw.receive() == (UPDATE, ACK, 1, 0, b"")
    raw.send(frame(DATA, 0, 1, 4, b"GETX"), frame(DATA, 0, 1, 6, b" y\r\nz\n"), frame(UPDATE, FIN, 1, 0))
    got = b""
    while True:
        kind, flags, _, _, payload = await raw.receive()
        got += payload
        if kind == UPDATE and flags == FIN:
            break
    assert got == b"GETX y\r\nz\n"
    assert calls.count == 1


async def test_bytes_that_are_no_http_are_passed_on_whole_however_they_were_cut(world):
    await world.start(Calls(), sniff_wait=NEVER)
    raw = await world.dial()
    text = b"QUOTE me as you like\r\n" + bytes(range(256)) * 40
    whole = frame(DATA, SYN, 1, len(text), text)
    cut = HEADER.size + 7
    raw.send(whole[:cut])
    await raw.writer.drain()
    await world.until(lambda: world.plane.live_connections == 1)
    raw.send(whole[cut : cut + 100])
    await raw.writer.drain()
    assert await raw.receive() == (UPDATE, ACK, 1, 0, b"")
    raw.send(whole[cut + 100 :], frame(UPDATE, FIN, 1, 0))
    assert await until_end(raw) == text


async def test_half_a_frame_is_said_in_time_and_is_not_lost(world):
    """Found by a review: who had said half of a first frame counted as silent, and was carried on without that half."""
    await world.start(Calls(), sniff_wait=0.05)
    raw = await world.dial()
    text = b"GETX y\r\nz\n"
    whole = frame(DATA, SYN, 1, len(text), text)
    raw.send(whole[: HEADER.size + 3])
    await raw.writer.drain()
    await world.until(lambda: world.plane.live_connections == 1)
    silent = await world.dial()
    silent.send(frame(UPDATE, SYN, 1, 0))
    assert await silent.receive() == (UPDATE, ACK, 1, 0, b""), "whose time is over, which began later"
    raw.send(whole[HEADER.size + 3 :], frame(UPDATE, FIN, 1, 0))
    assert await until_end(raw) == text
    assert world.plane.detection.timeouts == 1, "of the silent one"


async def test_who_says_little_at_a_time_has_no_more_time_for_that(world):
    """Found by a review: each frame began the time of a handshake anew."""
    await world.start(Calls(), handshake_timeout=0.3)
    raw = await world.dial()
    raw.send(frame(DATA, SYN, 1, 5, b"GET /"))
    for _ in range(600):
        if world.flows.opened_records:
            break
        raw.send(frame(DATA, 0, 1, 1, b"a"))
        await asyncio.sleep(0.1)
    assert [record.protocol for record in world.flows.opened_records] == ["http"]


async def test_without_descriptors_streams_are_refused_and_the_log_is_not_filled(world, caplog):
    await world.start(Calls(), opaque_ports=frozenset({world.inbound}))
    raw = await world.dial()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, most[1]))  # there are more
    try:
        raw.send(*(frame(UPDATE, SYN, number, 0) for number in range(1, 101, 2)))
        await world.until(lambda: len(world.flows.closed_records) == 50)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, most)
    assert all(record.failed for record in world.flows.closed_records)
    assert 0 < sum("cannot open a socket" in record.getMessage() for record in caplog.records) < 10
    raw.send(frame(UPDATE, SYN, 101, 0))
    while (said := await raw.receive())[:3] != (UPDATE, ACK, 101):
        assert said[1:3] == (RST, said[2]), said


async def test_an_end_before_any_byte_reaches_the_application(world):
    calls = Calls()
    await world.start(calls, sniff_wait=NEVER)
    raw = await world.dial()
    raw.send(frame(UPDATE, SYN | FIN, 1, 0))
    assert await raw.receive() == (UPDATE, ACK, 1, 0, b"")
    assert await raw.receive() == (UPDATE, FIN, 1, 0, b"")
    await world.until(lambda: calls.count == 1)


async def test_a_reset_before_any_byte_leaves_nothing(world):
    calls = Calls()
    await world.start(calls, sniff_wait=NEVER)
    raw = await world.dial()
    raw.send(frame(UPDATE, SYN, 1, 0), frame(UPDATE, RST, 1, 0))
    await world.until(lambda: len(world.flows.closed_records) == 1)
    assert calls.count == 0
    assert world.plane.live_connections == 0
    assert not world.plane.inbound_tunnels[0].streams


async def test_opaque_connections_end_when_operations_are_judged_from_now_on(world):
    await world.start(Calls(), opaque_ports=frozenset({world.inbound}))
    raw = await world.dial()
    raw.send(frame(UPDATE, SYN, 1, 0))
    assert await raw.receive() == (UPDATE, ACK, 1, 0, b"")
    world.policy.apply(by_operation(world, "GET /"))
    assert await raw.receive() == (UPDATE, RST, 1, 0, b"")
    await world.until(lambda: world.plane.live_connections == 0)


async def test_requests_go_on_when_operations_are_judged_from_now_on(world):
    async def serve(reader, writer):
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    def respond(reader, writer):
        return suppressed(serve(reader, writer))

    await world.start(respond)
    raw = await world.dial()
    text = b"GET / HTTP/1.1\r\nHost: cart\r\n\r\n"
    raw.send(frame(DATA, SYN, 1, len(text), text))
    assert await raw.receive() == (UPDATE, ACK, 1, 0, b"")
    assert (await raw.receive())[4].startswith(b"HTTP/1.1 200 ")
    world.policy.apply(by_operation(world, "GET /"))
    raw.send(frame(DATA, 0, 1, len(text), text))
    assert (await raw.receive())[4].startswith(b"HTTP/1.1 200 ")
    world.policy.apply(by_operation(world, "POST /"))
    raw.send(frame(DATA, 0, 1, len(text), text))
    assert (await raw.receive())[4].startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize("first", [b"PING\r\n", b"\x16\x03\x01", b"GET key\r\n"])
async def test_where_operations_are_judged_bytes_that_are_none_never_reach_the_application(world, first):
    calls = Calls()
    await world.start(calls, opaque_ports=frozenset({world.inbound}), sniff_wait=NEVER)
    world.policy.apply(by_operation(world, "GET /"))
    raw = await world.dial()
    raw.send(frame(DATA, SYN, 1, len(first), first))
    assert await raw.receive() == (UPDATE, RST, 1, 0, b"")
    assert calls.count == 0
    assert [record.decision.reason for record in world.flows.opened_records] == [Reason.NO_RULE]
    assert world.plane.live_connections == 0


async def test_where_operations_are_judged_silence_is_no_operation(world):
    calls = Calls()
    await world.start(calls, sniff_wait=NEVER, first_byte_wait=0.05)  # its clients speak first, or not at all
    world.policy.apply(by_operation(world, "GET /"))
    raw = await world.dial()
    for stream in (1, 3, 5, 7):  # also after the port counts as one whose server speaks first
        raw.send(frame(UPDATE, SYN, stream, 0))
        assert await raw.receive() == (UPDATE, RST, stream, 0, b"")
    assert calls.count == 0


async def test_where_operations_are_judged_and_silence_is_allowed_a_client_may_wait_for_the_server(world):
    calls = Calls(b"220 ready\r\n")
    await world.start(calls, sniff_wait=0.05, first_byte_wait=NEVER)
    judged = by_operation(world, "GET /")
    all_else = dataclasses.replace(judged.rules[0], id="override/all", operations=())
    world.policy.apply(dataclasses.replace(judged, rules=(*judged.rules, all_else)))
    raw = await world.dial()
    raw.send(frame(UPDATE, SYN, 1, 0))
    assert await raw.receive() == (UPDATE, ACK, 1, 0, b"")
    assert (await raw.receive())[4] == b"220 ready\r\n"


async def test_a_client_without_a_sidecar_that_says_nothing_is_refused_where_operations_are_judged(world):
    calls = Calls()
    await world.start(calls, sniff_wait=NEVER, first_byte_wait=0.05)
    snapshot = by_operation(world, "GET /")
    rule = dataclasses.replace(snapshot.rules[0], source=Selector(cidr="127.0.0.0/8"))
    world.policy.apply(dataclasses.replace(snapshot, rules=(rule,)))
    reader, writer = await asyncio.open_connection("127.0.0.1", world.inbound)
    with contextlib.suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), 60) == b""
    writer.close()
    assert calls.count == 0


async def test_a_client_without_a_sidecar_is_told_apart_too(world):
    await world.start(Calls(), sniff_wait=NEVER)
    reader, writer = await asyncio.open_connection("127.0.0.1", world.inbound)
    writer.write(b"QUO")
    await world.until(lambda: world.plane.live_connections == 0 and world.plane.inbound_tunnels == [])
    writer.write(b"TE\r\n")
    async with asyncio.timeout(60):
        assert await reader.readexactly(7) == b"QUOTE\r\n"
    writer.close()
    await world.until(lambda: len(world.flows.closed_records) == 1)
    assert world.flows.closed_records[0].protocol == "tcp"


async def test_silent_clients_do_not_keep_us_from_looking_at_what_others_say(world):
    """Found by a Slowloris: three silent connections, and every head passed unread from then on."""
    calls = Calls()
    await world.start(calls, sniff_wait=0.05)
    silent = [await asyncio.open_connection("127.0.0.1", world.inbound) for _ in range(4)]
    await world.until(lambda: world.plane.detection.timeouts == 4)
    reader, writer = await asyncio.open_connection("127.0.0.1", world.inbound)
    writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Client-Cert: By=me\r\n\r\n")
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)  # what came, the application sends back
    assert b"GET / HTTP/1.1" in head or head.startswith(b"HTTP/1.1 502")
    assert b"By=me" not in head
    assert world.flows.opened_records[-1].protocol == "http"
    for _, one in (*silent, (reader, writer)):
        one.close()
