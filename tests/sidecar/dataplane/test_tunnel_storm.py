"""Tunnels under frames in any order, at both ends, while the policy changes: whatever comes, nothing fails in our code,
and nothing is left when everybody has gone.

What a peer says is drawn by chance from a seed: mostly permitted, sometimes not. What arrives when is the machine's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
import struct

import pytest
import uvloop

from graph.model import Mode, Snapshot, WorkloadRef
from tests.sidecar.dataplane.stand_ins import TRUST_DOMAIN
from tests.sidecar.dataplane.test_frames import frame
from tests.sidecar.dataplane.world import ACK, DATA, FIN, GO_AWAY, PING, RST, SYN, UPDATE, WINDOW, RawPeer, World

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SAID = [
    b"\0abc",
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    *(b"GET /", b"G", b"\r", b"\r\n", b"foo bar", b"x / HTTP/1.1\r\n", b"0\r\n\r\n", b"\x16\x03\x01"),
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    PREFACE,
    PREFACE + b"\0\0\0\4\0\0\0\0\0",
]
#: What the other end's being gone looks like, on whatever side and at whatever moment.
GONE = (OSError, EOFError, RuntimeError, AttributeError)


class Peer:
    """Speaks frames by chance.

    :param dialled: whether it opened the tunnel, and so opens the streams
    """

    def __init__(self, raw: RawPeer, chance: random.Random, *, dialled: bool) -> None:
        self.raw, self.chance, self.dialled = raw, chance, dialled
        self.live: list[int] = []
        self.ended: list[int] = []
        self.unanswered: set[int] = set()
        self.windows: dict[int, int] = {}
        self.next = 1
        self.breaks = chance.choice([0.0, 0.0, 0.001, 0.02])
        self.reads = chance.random() < 0.85

    async def run(self, rounds: int) -> None:
        reading = asyncio.ensure_future(self.read()) if self.reads else None
        chance, writer = self.chance, self.raw.writer
        try:
            for _ in range(rounds):
                said = b"".join(self.something() for _ in range(chance.randint(1, 30)))
                while said:
                    size = chance.choice([1, 11, 12, 13, 100, len(said), len(said)])
                    writer.write(said[:size])
                    said = said[size:]
                if self.reads:
                    await writer.drain()
                await asyncio.sleep(0)
        except GONE:
            pass
        finally:
            writer.transport.abort()
            if reading is not None:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    async def read(self) -> None:
        with contextlib.suppress(*GONE):
            while True:
                _, kind, flags, stream, length = struct.unpack("!BBHII", await self.raw.reader.readexactly(12))
                if kind == DATA and length:
                    await self.raw.reader.readexactly(length)
                    if stream in self.live and self.chance.random() < 0.7:
                        self.raw.send(frame(UPDATE, 0, stream, length))
                elif kind == UPDATE and flags & SYN:
                    self.live.append(stream)
                    self.windows[stream] = WINDOW
                    self.unanswered.add(stream)
                elif kind == UPDATE and stream in self.windows:
                    self.windows[stream] += length
                elif kind == PING and flags & SYN:
                    self.raw.send(frame(PING, ACK, 0, length))
                if flags & RST and stream in self.live:
                    self.live.remove(stream)

    def something(self) -> bytes:
        """One frame, or none."""
        chance = self.chance
        what = chance.random()
        if chance.random() < self.breaks:
            flags, stream = chance.choice([0, SYN, ACK, FIN, RST, SYN | FIN, FIN | RST]), chance.choice([0, 1, 2, 9999])
            return frame(chance.choice([DATA, UPDATE, PING, GO_AWAY, 7]), flags, stream, chance.choice([0, 1, 1 << 31]))
        if self.dialled and (what < 0.25 or not self.live):
            return self.begin()
        if not self.live:
            return b""
        stream = chance.choice(self.live)
        answer = ACK if stream in self.unanswered else 0
        self.unanswered.discard(stream)
        if what < 0.65:
            said = self.words()[: max(0, self.windows[stream])]
            self.windows[stream] -= len(said)
            end = FIN if chance.random() < 0.08 else 0
            if end:
                self.end(stream)
            return frame(DATA, answer | end, stream, len(said), said)
        if what < 0.85:
            return frame(UPDATE, answer, stream, chance.choice([0, 1, 100, 65_536, WINDOW]))
        if what < 0.9:
            self.end(stream)
            return frame(UPDATE, FIN, stream, 0)
        if what < 0.97:
            stream = chance.choice([*self.live, *self.ended[-3:]])
            for among in (self.live, self.ended):
                if stream in among:
                    among.remove(stream)
            return frame(chance.choice([UPDATE, DATA]), RST, stream, 0)
        return frame(GO_AWAY, 0, 0, chance.choice([0, 0, 0, 1])) if what > 0.998 else b""

    def begin(self) -> bytes:
        stream, self.next = self.next, self.next + 2
        self.live.append(stream)
        self.windows[stream] = WINDOW
        if self.chance.random() < 0.5:
            return frame(UPDATE, SYN, stream, self.chance.choice([0, 0, 70_000]))
        said = self.words()
        self.windows[stream] -= len(said)
        return frame(DATA, SYN, stream, len(said), said)

    def end(self, stream: int) -> None:
        self.live.remove(stream)
        self.ended.append(stream)

    def words(self) -> bytes:
        chance = self.chance
        return chance.choice(SAID) if chance.random() < 0.6 else chance.randbytes(chance.choice([0, 9, 3000, 70_000]))


def application(chance: random.Random, serving: set[asyncio.Task[None] | None]):
    """What is behind the data plane; whom it serves at the moment stands in ``serving``."""

    async def serve(reader, writer):
        serving.add(asyncio.current_task())
        try:
            await answer(reader, writer)
        finally:
            writer.transport.abort()
            serving.discard(asyncio.current_task())

    async def answer(reader, writer):
        with contextlib.suppress(*GONE):
            while data := await reader.read(65_536):
                what = chance.random()
                if what < 0.02:
                    sock = writer.get_extra_info("socket")
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    writer.transport.abort()
                elif what < 0.05:
                    writer.write_eof()
                elif what < 0.2:
                    await asyncio.sleep(0.02)  # what comes meanwhile is held for us
                elif what > 0.95:
                    writer.write(os.urandom(200_000))
                elif data.startswith((b"GET", b"POST")):
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc")
                else:
                    writer.write(data)
                await writer.drain()

    return serve


async def calls(chance: random.Random, port: int) -> None:
    """A client of our application's, which says something and goes."""
    with contextlib.suppress(*GONE):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(chance.randint(0, 4)):
            writer.write(chance.choice(SAID))
            await asyncio.sleep(0)
        writer.transport.abort()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("loop", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
@pytest.mark.usefixtures("small_buffers")
def test_frames_in_any_order_leave_nothing(authority, caplog, loop, seed):
    caplog.set_level(logging.WARNING)

    async def whole() -> None:
        async with contextlib.AsyncExitStack() as stack:
            world = World(authority, stack)
            await storm(world, random.Random(seed), opaque=seed % 2 == 1)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(whole())
    faults = [one for one in caplog.records if one.name.startswith("sidecar") and one.exc_info]
    assert not faults, caplog.text


async def storm(world: World, chance: random.Random, *, opaque: bool) -> None:
    """A data plane among all of them, until everybody has gone."""
    serving: set[asyncio.Task[None] | None] = set()
    await world.start(
        handler=application(chance, serving),
        opaque_ports=frozenset({world.inbound} if opaque else ()),
        sniff_wait=chance.choice([0.01, 0.2]),
        handshake_timeout=chance.choice([0.5, 5.0]) if opaque else 5.0,
        opens_per_second=chance.choice([200, 20_000]),
        resets_per_second=chance.choice([50, 2_000]),
        streams_per_tunnel=chance.choice([5, 4096]),
        buffered_bytes=chance.choice([100_000, 256 << 20]),
        control_bytes=chance.choice([4096, 1 << 20]),
    )
    arrived = await world.accept()
    peers = [Peer(await world.dial(), chance, dialled=True).run(chance.randint(1, 40)) for _ in range(6)]
    modes = list(Mode)

    async def answers() -> None:
        with contextlib.suppress(*GONE):
            while True:
                raw = await arrived.get()
                world.stack.callback(raw.writer.transport.abort)
                raw.send(frame(PING, ACK, 0, (await raw.receive())[3]))
                await Peer(raw, chance, dialled=False).run(30)

    async def decides() -> None:
        for version in range(2, 8):
            await asyncio.sleep(0.02)
            held = WorkloadRef("shop", "cart")
            snapshot = Snapshot(held, TRUST_DOMAIN, version, chance.choice(modes), chance.choice(modes))
            world.policy.apply(snapshot)

    answering = asyncio.ensure_future(answers())
    await asyncio.gather(*peers, decides(), *(calls(chance, world.outbound) for _ in range(20)))
    answering.cancel()
    await asyncio.gather(answering, return_exceptions=True)
    world.accepting.close()
    while not arrived.empty():
        arrived.get_nowait().writer.transport.abort()
    plane = world.plane
    await world.until(lambda: not (plane.live_connections or plane.inbound_tunnels or plane.outbound_tunnels))
    await world.until(lambda: plane.buffered == 0)  # what was held for somebody was given back
    assert all(record.closed for record in world.flows.opened_records)
    plane.stop()
    await world.until(lambda: not serving)  # connections kept for the next request ended too
