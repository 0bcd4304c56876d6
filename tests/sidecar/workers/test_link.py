"""One end of a real socket pair talks to the other."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from sidecar.workers.frames import FROM_WORKER, TO_WORKER, Broken, Kind, encode
from sidecar.workers.link import Link
from tests.sidecar.fake_controller import until


class End:
    """A link with what came."""

    def __init__(self, sock, allowed, **limits):
        self.frames = []
        self.descriptors = []
        self.lost = []
        self.link = Link(sock, allowed, self.take, self.lost.append, **limits)
        self.link.start()

    def take(self, frame, descriptors):
        if frame.head.get("broken"):
            raise Broken("as it was told")
        self.frames.append(frame)
        self.descriptors += descriptors


@pytest.fixture
async def pair():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ends = End(ours, FROM_WORKER), End(theirs, TO_WORKER)
    yield ends
    for end in ends:
        end.link.close()
        for descriptor in end.descriptors:
            os.close(descriptor)


async def test_frames_arrive_in_order_however_long_they_are(pair):
    supervisor, worker = pair
    for number in range(50):
        supervisor.link.send(Kind.HOLD, {"number": number}, (os.urandom(200_000),))
    await until(lambda: len(worker.frames) == 50)
    assert [frame.head["number"] for frame in worker.frames] == list(range(50))
    assert {len(frame.blobs[0]) for frame in worker.frames} == {200_000}


async def test_descriptors_come_with_their_frame(pair):
    """Behind a long frame, so that they wait; each is what it was."""
    supervisor, worker = pair
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(5)]
    names = [sock.getsockname() for sock in sockets]
    supervisor.link.send(Kind.HOLD, {"number": 1}, (bytes(4 << 20),))
    supervisor.link.send(Kind.LISTEN, {"of": 0}, (), [sock.fileno() for sock in sockets[:3]])
    supervisor.link.send(Kind.LISTEN, {"of": 1}, (), [sock.fileno() for sock in sockets[3:]])
    for sock in sockets:
        sock.close()  # they are the link's own by now
    await until(lambda: len(worker.frames) == 3)
    assert [frame.descriptors for frame in worker.frames] == [0, 3, 2]
    received = [socket.socket(fileno=one) for one in worker.descriptors]
    worker.descriptors.clear()
    assert [sock.getsockname() for sock in received] == names
    for sock in received:
        sock.close()


async def test_an_end_that_leaves_is_lost_once(pair):
    supervisor, worker = pair
    worker.link.close()
    await until(lambda: supervisor.lost)
    assert supervisor.lost == ["it has left"]
    assert worker.lost == []
    supervisor.link.send(Kind.STOP)
    assert not supervisor.link.open


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (encode(Kind.SVID), "a frame SVID of"),
        (encode(Kind.READY, {"broken": 1}), "as it was told"),
        (encode(Kind.READY, descriptors=1), "without the descriptors"),
    ],
)
async def test_what_may_not_be_said_ends_it(sent, why):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        end = End(ours, FROM_WORKER)
        theirs.sendall(encode(Kind.LISTENING) + sent + encode(Kind.LISTENING))
        await until(lambda: end.lost)
        assert why in end.lost[0]
        assert [frame.kind for frame in end.frames] == [Kind.LISTENING]
        assert theirs.recv(1) == b"", "the other end sees it"


async def test_who_takes_nothing_is_lost_and_takes_no_more_memory():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        end = End(ours, FROM_WORKER, max_waiting=4 << 20)
        for _ in range(100):
            end.link.send(Kind.HOLD, {}, (bytes(1 << 20),))
            await asyncio.sleep(0)
        assert end.lost == ["it takes nothing of what it is told"]


async def test_unclaimed_descriptors_are_closed():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    reading, writing = os.pipe()
    with theirs:
        end = End(ours, FROM_WORKER)
        socket.send_fds(theirs, [encode(Kind.READY)], [writing])
        os.close(writing)
        await until(lambda: end.frames)
        end.link.close()
    assert os.read(reading, 1) == b"", "nobody holds the other end any more"
    os.close(reading)
