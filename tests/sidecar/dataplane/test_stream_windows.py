"""Windows of streams that are relayed, and how streams share their tunnel, as a raw peer sees them."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from sidecar.dataplane.frames import PAYLOAD
from sidecar.dataplane.stream import MAX_WINDOW
from tests.sidecar.dataplane.test_frames import frame
from tests.sidecar.dataplane.world import ACK, DATA, PING, SMALL, SYN, UPDATE, WINDOW

#: Frames that each stream has to send when it may.
FRAMES = 10
#: Frames of one stream in a row while another has some too: what it had begun, and what was marked before.
IN_A_ROW = 3


async def open_stream(raw, stream):
    raw.send(frame(UPDATE, SYN, stream, 0))
    assert await raw.receive() == (UPDATE, ACK, stream, 0, b"")


async def granted_until_ping(raw, stream):
    """What was granted to ``stream`` before the data plane answered, which it does after all that came before."""
    raw.send(frame(PING, SYN, 0, 5))
    total = 0
    while True:
        kind, flags, at, number, _ = await raw.receive()
        if (kind, flags) == (PING, ACK):
            return total
        assert (kind, flags, at) == (UPDATE, 0, stream)
        total += number


async def test_bulk_streams_take_turns_frame_by_frame(world):
    """What two applications have to send goes out by turns, so that a small message waits for a frame, not a window."""
    writers = []
    over = asyncio.Event()

    async def bulk(reader, writer):
        writers.append(writer)
        writer.write(bytes(WINDOW + FRAMES * PAYLOAD))
        await over.wait()
        writer.close()

    await world.start(handler=bulk, opaque_ports=frozenset({world.inbound}))
    raw = await world.dial()
    for stream in (1, 3):
        await open_stream(raw, stream)
        came = 0
        while came < WINDOW:
            kind, _, at, size, _ = await raw.receive()
            assert (kind, at) == (DATA, stream)
            came += size
    # all the rest is in the kernel's buffers, ready to be read
    await world.until(lambda: not any(writer.transport.get_write_buffer_size() for writer in writers))
    raw.send(frame(UPDATE, 0, 1, FRAMES * PAYLOAD), frame(UPDATE, 0, 3, FRAMES * PAYLOAD))
    left = {1: FRAMES * PAYLOAD, 3: FRAMES * PAYLOAD}
    last, row = 0, 0
    while all(left.values()):
        kind, _, at, size, _ = await raw.receive()
        assert kind == DATA
        row = row + size if at == last else size
        last = at
        left[at] -= size
        assert row <= IN_A_ROW * PAYLOAD, f"{row} bytes of one stream before the other had its turn: {left}"
    over.set()


async def test_windows_widen_while_the_application_takes_all(world):
    taken = 0

    async def sink(reader, writer):
        nonlocal taken
        while data := await reader.read(1 << 20):
            taken += len(data)
        writer.close()

    await world.start(handler=sink, opaque_ports=frozenset({world.inbound}), pings_per_second=10_000)
    raw = await world.dial()
    await open_stream(raw, 1)
    window, sent = WINDOW, 0
    while sent < 4 * MAX_WINDOW:
        piece = min(window, WINDOW // 4)
        raw.send(frame(DATA, 0, 1, piece, bytes(piece)))
        sent += piece
        await world.until(lambda sent=sent: taken == sent)  # so that the next piece finds room in the kernel
        window += await granted_until_ping(raw, 1) - piece
        assert window <= MAX_WINDOW
    assert window > MAX_WINDOW // 2, "what is not granted yet is less than half a window"


async def test_a_window_does_not_widen_for_an_application_that_is_slower_than_its_client(world, small_buffers):
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listening_with_little_room(world.application))
        await world.start(accepts=False, opaque_ports=frozenset({world.inbound}), pings_per_second=10_000)
        raw = await world.dial()
        raw.send(frame(UPDATE, SYN, 1, 0))
        application, _ = await asyncio.get_running_loop().sock_accept(listener)
        stack.enter_context(application)
        assert await raw.receive() == (UPDATE, ACK, 1, 0, b"")
        window, read = WINDOW, 0
        while read < 2 * MAX_WINDOW:
            if window:
                raw.send(frame(DATA, 0, 1, window, bytes(window)))
            window = await granted_until_ping(raw, 1)
            assert world.plane.buffered <= WINDOW
            read += len(await asyncio.get_running_loop().sock_recv(application, SMALL))
    await world.until(lambda: world.plane.buffered == 0)


def listening_with_little_room(port):
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    listener.setblocking(False)
    return listener
