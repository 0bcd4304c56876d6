"""Connections that reached no application are tried again, and nothing is said twice to anybody."""

from __future__ import annotations

import asyncio

import pytest

from graph.model import Mode, WorkloadRef
from graph.policy import Snapshot
from sidecar.dataplane.elsewhere import Early, replayed
from sidecar.dataplane.guards import Budget
from sidecar.dataplane.settings import DataPlaneSettings
from sidecar.http.frames import NO_SETTINGS
from tests.sidecar.dataplane import applications as apps
from tests.sidecar.dataplane.mesh import meshed
from tests.sidecar.dataplane.stand_ins import TRUST_DOMAIN
from tests.sidecar.dataplane.world import ACK, DATA, FIN, RST, SYN, UPDATE, frame, ready

UNREACHED = (DATA, RST)
EARLY = DataPlaneSettings().early_bytes


async def call(world, said=b"hello"):
    reader, writer = await asyncio.open_connection("127.0.0.1", world.outbound)
    world.stack.callback(writer.close)
    writer.write(said)
    return reader, writer


async def begun(raw, stream, said=b"hello"):
    """The data plane opens a stream and says what its client has said."""
    assert await raw.receive() == (UPDATE, SYN, stream, 0, b"")
    got = b""
    while len(got) < len(said):
        kind, _, number, _, payload = await raw.receive()
        assert (kind, number) == (DATA, stream)
        got += payload
    assert got == said


async def was_reset(reader):
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.read(), 60)


async def answering(world):
    """A peer whose application has answered before; streams 3, 5, … are next."""
    arrived = await world.accept()
    reader, writer = await call(world)
    raw = await ready(arrived)
    await begun(raw, 1)
    raw.send(frame(UPDATE, ACK, 1, 0), frame(DATA, 0, 1, 2), b"ok", frame(UPDATE, FIN, 1, 0))
    assert await reader.read() == b"ok"
    writer.close()
    assert await raw.receive() == (UPDATE, FIN, 1, 0, b"")
    return raw


async def test_a_connection_that_reached_nobody_is_begun_again_with_all_that_was_said(world):
    await world.start()
    raw = await answering(world)
    reader, writer = await call(world)
    await begun(raw, 3)
    raw.send(frame(*UNREACHED, 3, 0))
    await begun(raw, 5)
    raw.send(frame(*UNREACHED, 5, 0))
    await begun(raw, 7)
    raw.send(frame(UPDATE, ACK, 7, 0), frame(DATA, 0, 7, 2), b"hi")
    assert await reader.readexactly(2) == b"hi"
    writer.write(b"more")
    assert (await raw.receive())[3:] == (4, b"more")
    raw.send(frame(UPDATE, FIN, 7, 0))
    writer.close()
    await apps.until(lambda: world.plane.live_connections == 0)
    assert [flow.failed for flow in world.flows.closed_records] == [False, False], "it is one connection"
    assert world.flows.opened_records == world.flows.closed_records


async def test_the_end_of_what_a_client_says_is_said_again(world):
    await world.start()
    raw = await answering(world)
    reader, writer = await call(world)
    writer.write_eof()
    await begun(raw, 3)
    assert await raw.receive() == (UPDATE, FIN, 3, 0, b"")
    raw.send(frame(*UNREACHED, 3, 0))
    await begun(raw, 5)
    assert await raw.receive() == (UPDATE, FIN, 5, 0, b"")
    raw.send(frame(UPDATE, ACK, 5, 0), frame(DATA, 0, 5, 2), b"hi", frame(UPDATE, FIN, 5, 0))
    assert await reader.read() == b"hi"


async def test_a_destination_that_never_answered_is_not_waited_for(world):
    await world.start()
    arrived = await world.accept()
    reader, _ = await call(world)
    raw = await ready(arrived)
    await begun(raw, 1)
    raw.send(frame(*UNREACHED, 1, 0))
    await was_reset(reader)
    assert [flow.failed for flow in world.flows.closed_records] == [True]
    await call(world)  # whatever comes next is of the next connection
    await begun(raw, 3)


@pytest.mark.parametrize(
    "said",
    [
        [frame(UPDATE, RST, 3, 0)],
        [frame(UPDATE, ACK, 3, 0), frame(*UNREACHED, 3, 0)],
        [frame(DATA, 0, 3, 2), b"no", frame(*UNREACHED, 3, 0)],
    ],
    ids=["refused", "reached before", "answered before"],
)
async def test_what_may_have_been_delivered_is_not_said_again(world, said):
    await world.start()
    raw = await answering(world)
    reader, _ = await call(world)
    await begun(raw, 3)
    raw.send(*said)
    await was_reset(reader)
    await call(world, b"another")
    await begun(raw, 5, b"another")


async def test_a_tunnel_that_is_lost_says_nothing_of_what_was_delivered(world):
    await world.start()
    raw = await answering(world)
    reader, _ = await call(world)
    await begun(raw, 3)
    raw.writer.transport.abort()
    await was_reset(reader)


async def test_who_has_not_said_a_word_when_a_tunnel_is_lost_goes_on_over_another_one(world):
    await world.start()
    raw = await answering(world)
    reader, writer = await asyncio.open_connection("127.0.0.1", world.outbound)
    world.stack.callback(writer.close)
    await begun(raw, 3, b"")
    raw.writer.transport.abort()
    again = await ready(await world.accept())
    await begun(again, 1, b"")
    writer.write(b"hello")
    assert (await again.receive())[4] == b"hello"
    again.send(frame(UPDATE, ACK, 1, 0), frame(DATA, 0, 1, 2), b"hi", frame(UPDATE, FIN, 1, 0))
    assert await reader.read() == b"hi"
    writer.close()
    await apps.until(lambda: world.plane.live_connections == 0)
    assert [flow.failed for flow in world.flows.closed_records] == [False, False]


async def test_who_has_ended_what_it_says_does_not_go_on_when_a_tunnel_is_lost(world):
    await world.start()
    raw = await answering(world)
    reader, writer = await asyncio.open_connection("127.0.0.1", world.outbound)
    world.stack.callback(writer.close)
    writer.write_eof()
    await begun(raw, 3, b"")
    assert await raw.receive() == (UPDATE, FIN, 3, 0, b"")
    raw.writer.transport.abort()
    await was_reset(reader)


async def test_a_peer_is_told_that_one_stream_more_would_be_too_many(world):
    await world.start(streams_per_tunnel=1)
    raw = await world.dial()
    raw.send(frame(UPDATE, SYN, 1, 0), frame(UPDATE, SYN, 3, 0))
    assert await raw.receive() == (*UNREACHED, 3, 0, b"")


async def test_a_client_that_has_said_much_is_not_begun_again(world):
    await world.start()
    raw = await answering(world)
    said = bytes(EARLY + 1)
    reader, _ = await call(world, said)
    await begun(raw, 3, said)
    raw.send(frame(*UNREACHED, 3, 0))
    await was_reset(reader)
    await apps.until(lambda: world.plane.buffered == 0)


@pytest.mark.parametrize("most", [4, 5])
async def test_how_much_that_is_can_be_set(world, most):
    await world.start(early_bytes=most)
    raw = await answering(world)
    reader, _ = await call(world, b"hello")
    await begun(raw, 3)
    raw.send(frame(*UNREACHED, 3, 0))
    if most < len(b"hello"):
        await was_reset(reader)
    else:
        await begun(raw, 5)


async def test_who_has_said_too_much_has_reached_the_destination_all_the_same(world):
    await world.start(early_bytes=0)
    raw = await answering(world)  # its client spoke at once
    await call(world, b"")
    assert await raw.receive() == (UPDATE, SYN, 3, 0, b"")
    raw.send(frame(*UNREACHED, 3, 0))
    await begun(raw, 5, b"")  # waited for, because it has answered before


async def test_what_a_client_has_said_counts_as_held_while_it_waits_for_another_try(world):
    await world.start()
    raw = await answering(world)
    await call(world)
    await begun(raw, 3)
    raw.send(frame(*UNREACHED, 3, 0))
    again = asyncio.ensure_future(begun(raw, 5))
    held = set()
    while not again.done():
        held.add(world.plane.buffered)
        await asyncio.sleep(0.001)
    await again
    assert held == {len(b"hello")}, "not less between two tries, and not twice in one"
    raw.send(frame(UPDATE, ACK, 5, 0))
    await apps.until(lambda: world.plane.buffered == 0)


async def test_nobody_is_waited_for_without_end(world):
    await world.start()
    raw = await answering(world)
    reader, _ = await call(world)
    ended = asyncio.ensure_future(reader.read())
    stream = 3
    while not ended.done():
        next_frame = asyncio.ensure_future(raw.receive())
        await asyncio.wait([ended, next_frame], return_when=asyncio.FIRST_COMPLETED)
        if not next_frame.done():
            next_frame.cancel()
            break
        if next_frame.result() == (UPDATE, SYN, stream, 0, b""):
            raw.send(frame(*UNREACHED, stream, 0))
            stream += 2
    with pytest.raises(ConnectionResetError):
        await ended
    assert 5 <= stream < 3 + 2 * 20, "tried again, and not in a hurry"
    await apps.until(lambda: world.plane.buffered == 0 and world.plane.live_connections == 0)


@pytest.mark.parametrize(
    "said", [b"\x00opaque", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + NO_SETTINGS]
)
async def test_a_peer_is_told_that_our_application_could_not_be_called(world, said):
    await world.start()
    world.server.close()
    await world.server.wait_closed()
    raw = await world.dial()
    raw.send(frame(UPDATE, SYN, 1, 0), frame(DATA, 0, 1, len(said)), said)
    assert await raw.receive() == (*UNREACHED, 1, 0, b"")


async def test_a_peer_that_is_denied_is_not_told_to_go_elsewhere(world):
    await world.start()
    enforced = Snapshot(WorkloadRef("shop", "cart"), TRUST_DOMAIN, 2, Mode.ENFORCE, Mode.ENFORCE)
    world.policy.apply(enforced)
    raw = await world.dial()
    raw.send(frame(UPDATE, SYN, 1, 0))
    assert await raw.receive() == (UPDATE, RST, 1, 0, b"")


def test_what_is_kept_is_bounded_and_given_back():
    class Nowhere:
        def reached(self) -> None: ...
        def begin_again(self, sock, early) -> None: ...

    budget = Budget(100, early=1000)
    early = Early(Nowhere(), budget)
    assert early.add(memoryview(bytes(60)))
    assert budget.left == 40
    assert not early.add(memoryview(bytes(41)))
    assert budget.left == 100
    assert early.drop() == b""
    plenty = Early(Nowhere(), Budget(10 * EARLY, early=EARLY))
    assert plenty.add(memoryview(bytes(EARLY)))
    assert not plenty.add(memoryview(b"1"))


def test_what_was_said_is_read_before_what_comes():
    came = [b"later"]

    def recv_into(view):
        said = came.pop()
        view[: len(said)] = said
        return len(said)

    read, buffer = replayed(b"before", recv_into), bytearray(4)
    got = []
    for _ in range(2):
        size = read(memoryview(buffer))
        got.append(bytes(buffer[:size]))
    buffer = bytearray(10)
    got.append(bytes(buffer[: read(memoryview(buffer))]))
    assert got == [b"befo", b"re", b"later"]


PORT = 9300
ALLOW = {"rules": [{"from": "shop/front", "to": "shop/cart", "port": PORT}]}


async def test_connections_wait_while_an_application_begins_again(network, sidecars):
    client, pod = network.pod(), network.pod()
    front = sidecars(client, "shop/front", policy=ALLOW, directory=[meshed("shop/cart", [pod], PORT)])
    cart = sidecars(pod, "shop/cart", policy=ALLOW | {"tls": "strict"})
    async with apps.server(pod, PORT):
        await apps.echo(client, pod.address, PORT)
    calls = [asyncio.ensure_future(apps.echo(client, pod.address, PORT)) for _ in range(5)]
    await cart.until(lambda state: len(cart.flows(failed=True)) > 0)
    async with apps.server(pod, PORT):
        await asyncio.gather(*calls)
    await front.until(lambda state: len(front.flows()) == 6)
    assert front.flows(failed=True) == [], "each is one connection, and was served"
