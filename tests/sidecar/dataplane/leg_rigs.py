"""A leg of a lane with a lane that notes what it is told, and the far end in the hands of the test."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Callable

from sidecar.dataplane import frames
from sidecar.dataplane.guards import Budget, Counters
from sidecar.dataplane.legs import Leg
from sidecar.dataplane.reactor import IN, OUT, Reactor
from sidecar.dataplane.sending import Sender
from sidecar.dataplane.socket_leg import SocketLeg
from sidecar.dataplane.tunnel_leg import TunnelLeg

DATA, UPDATE = 0, 1
ACK, FIN, RST = 2, 4, 8
STREAM = 1
#: Bytes that may be held in a rig, unless a test says otherwise.
BUDGET = 16 << 20
#: Seconds after which something that must happen counts as not happening.
PATIENCE = 60.0
#: A chunk that the far end writes or reads at once.
CHUNK = 65_536


class NotingLane:
    """Notes what a leg tells. What a leg tells within a call of :meth:`Rig.do` is a ``breach``."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.data = bytearray()
        self.in_call = False
        self.breaches: list[str] = []
        self.then: dict[str, Callable[[Leg], None]] = {}

    def _told(self, leg: Leg, event: str) -> None:
        if self.in_call:
            self.breaches.append(event)
        if not (event == "received" and self.events[-1:] == ["received"]):
            self.events.append(event)
        if event in self.then:
            self.then[event](leg)

    def received(self, leg: Leg, data: memoryview) -> None:
        self.data += data
        self._told(leg, "received")

    def ended(self, leg: Leg) -> None:
        self._told(leg, "ended")

    def drained(self, leg: Leg) -> None:
        if leg.unsent:
            self.breaches.append(f"drained with {leg.unsent} bytes unsent")
        self._told(leg, "drained")

    def lost(self, leg: Leg, why: str) -> None:
        if not leg.closed:
            self.breaches.append("lost and not closed")
        self._told(leg, "lost")


class Rig:
    """:param budget: bytes that may be held"""

    leg: SocketLeg | TunnelLeg

    def __init__(self, loop: asyncio.AbstractEventLoop, budget: int) -> None:
        self.loop = loop
        self.reactor = Reactor()
        self.reactor.start(loop)
        self.whole = budget
        self.budget = Budget(budget, Counters())
        self.lane = NotingLane()
        self.taken = bytearray()  # by the far end
        self.saw_end = False
        self.saw_reset = False

    def do(self, call: Callable[..., None], *arguments: object) -> None:
        """Call the leg as a lane does."""
        self.lane.in_call = True
        try:
            call(*arguments)
        finally:
            self.lane.in_call = False

    def write(self, data: bytes) -> None:
        """The bytes are spoilt afterwards: a leg may not keep them."""
        lent = bytearray(data)
        self.do(self.leg.write, lent)
        lent[:] = b"\xaa" * len(lent)

    # the far end

    def far_write(self, data: bytes) -> int:
        """Write what goes; how much that was."""
        raise NotImplementedError

    def far_end(self) -> None:
        raise NotImplementedError

    def far_reset(self) -> None:
        raise NotImplementedError

    def far_take(self, most: int = CHUNK) -> int:
        """Take up to ``most`` bytes that have come; how many there were."""
        raise NotImplementedError

    async def until(self, condition: Callable[[], object], what: str = "", *, take: bool = False) -> None:
        """Wait for ``condition``, taking all that comes at the far end if ``take``."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                moved = self.far_take() if take else 0
                await asyncio.sleep(0 if moved else 0.001)

    async def batch(self) -> None:
        """Let everything happen that has to happen soon."""
        for _ in range(5):
            await asyncio.sleep(0)

    @property
    def held(self) -> int:
        return self.whole - self.budget.left

    def stop(self) -> None:
        self.reactor.stop()

    def check(self) -> None:
        """What holds at all times."""
        assert self.lane.breaches == []
        assert self.leg.unsent >= 0
        assert self.held >= 0
        events = self.lane.events
        assert events.count("ended") <= 1
        assert events.count("lost") <= 1
        assert "lost" not in events[:-1], "told after it was lost"


def connected_pair(buffers: int = 0) -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection, not blocking.

    :param buffers: the kernel's, of both ends and each way, bytes; 0: as it likes
    """
    near = socket.socket()
    with socket.socket() as listener:
        for sock in (near, listener):
            for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF) if buffers else ():
                sock.setsockopt(socket.SOL_SOCKET, buffer, buffers)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        near.connect(listener.getsockname())
        far, _ = listener.accept()
    for sock in (near, far):
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class SocketRig(Rig):
    """A socket leg; the far end is the other end of its connection."""

    leg: SocketLeg

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        budget: int = BUDGET,
        buffers: int = 0,
        pair: tuple[socket.socket, socket.socket] | None = None,
        connecting: float = 0.0,
    ) -> None:
        super().__init__(loop, budget)
        self.near, self.far = pair or connected_pair(buffers)
        self.reached: list[bool] = []
        self.leg = SocketLeg(
            self.reactor,
            self.near,
            self.budget,
            self.lane,
            connecting=connecting,
            connected=lambda: self.reached.append(True),
        )

    def far_write(self, data: bytes) -> int:
        try:
            return self.far.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self.saw_reset = True
            return 0

    def far_end(self) -> None:
        with contextlib.suppress(OSError):
            self.far.shutdown(socket.SHUT_WR)

    def far_reset(self) -> None:
        reset(self.far)

    def far_take(self, most: int = CHUNK) -> int:
        if self.saw_end or self.saw_reset or self.far.fileno() < 0:
            return 0
        try:
            data = self.far.recv(most)
        except BlockingIOError:
            return 0
        except OSError:
            self.saw_reset = True
            return 0
        self.taken += data
        self.saw_end = not data
        return len(data)

    def stop(self) -> None:
        super().stop()
        self.far.close()
        self.near.close()


class PlainChannel:
    """What a sender needs of a TLS session, without the encryption."""

    def __init__(self) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.write = self.outgoing.write


class TunnelRig(Rig):
    """A leg that is a stream of a tunnel; the far end reads and writes its frames, and keeps to the windows.

    It carries the leg as a tunnel does: see :class:`sidecar.dataplane.carrier.Carrier`.
    """

    leg: TunnelLeg

    def __init__(self, loop: asyncio.AbstractEventLoop, *, budget: int = BUDGET, buffers: int = 0) -> None:
        super().__init__(loop, budget)
        self.near, self.far = connected_pair(buffers)
        self.sender = Sender(self.reactor, self.near, PlainChannel(), 1 << 20, self._failed)
        self.reactor.register(self.near, IN, self)
        self.detached = 0
        self.failures: list[str] = []
        self.told: list[tuple[int, int, int]] = []  # frames of the leg: type, flags, number
        self.credit = frames.WINDOW  # what the far end may still write
        self.grants = True  # the far end grants again what it takes
        self._arrived = bytearray()
        self.leg = TunnelLeg(self.reactor, self, STREAM, self.lane)

    # the carrier

    def attach(self, stream_id: int, stream: object) -> None:
        assert stream_id == STREAM

    def detach(self, stream_id: int) -> None:
        self.detached += 1

    def _failed(self, why: str) -> None:
        """The tunnel is gone, with all its streams."""
        if not self.failures:
            self.failures.append(why)
            self.sender.close()
            self.leg.abort(why)
            self.reactor.close(self.near)

    def on_event(self, events: int) -> None:
        if events & OUT and self.sender.blocked:
            self.sender.writable()

    def abort(self, why: str) -> None:
        self._failed(why)

    # the far end

    def far_write(self, data: bytes) -> int:
        size = min(len(data), self.credit, frames.PAYLOAD)
        if size and not self.leg.closed:
            self.credit -= size
            self.leg.expect(size)
            lent = bytearray(data[:size])
            self.leg.deliver(memoryview(lent), size)
            lent[:] = b"\xaa" * size
            return size
        return 0

    def far_end(self) -> None:
        if not self.leg.closed:
            self.leg.finish()

    def far_reset(self) -> None:
        self.leg.reset_by_peer()

    def far_take(self, most: int = CHUNK) -> int:
        if self.far.fileno() < 0:
            return 0
        with contextlib.suppress(BlockingIOError):
            self._arrived += self.far.recv(most)
        taken = 0
        while len(self._arrived) >= frames.HEADER_SIZE:
            _, kind, flags, stream, number = struct.unpack_from("!BBHII", self._arrived)
            size = frames.HEADER_SIZE + (number if kind == DATA else 0)
            if len(self._arrived) < size:
                break
            assert stream == STREAM
            assert not self.saw_end or kind != DATA, "data after the end"
            payload = self._arrived[frames.HEADER_SIZE : size]
            del self._arrived[:size]
            self._frame(kind, flags, number, payload)
            taken += size
        return taken

    def _frame(self, kind: int, flags: int, number: int, payload: bytearray) -> None:
        self.told.append((kind, flags, number))
        if kind == DATA:
            self.taken += payload
            if self.grants and not self.leg.closed:
                self.leg.granted(number)
        elif flags & FIN:
            self.saw_end = True
        elif flags & RST:
            self.saw_reset = True
        elif not flags & ACK:
            self.credit += number

    def stop(self) -> None:
        super().stop()
        self.far.close()
        self.near.close()
