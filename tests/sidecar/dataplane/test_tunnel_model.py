"""Two data planes and the tunnel between them against a model of what TCP would have done without them.

Hypothesis opens connections, writes at both ends, stops and goes on reading, half-closes and resets, with amounts that
pass every window. The model: what one end wrote arrives at the other in order and whole; an end arrives after it and
once; a reset ends both directions; one connection never disturbs another.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import struct
import time

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from certs.ca import CertificateAuthority
from certs.spiffe import SpiffeId
from graph.directory import Destination, Endpoint
from graph.model import Mode, Snapshot, WorkloadRef
from sidecar.dataplane.proxy import DataPlane
from sidecar.dataplane.settings import DataPlaneSettings, ExplicitInbound, ExplicitOutbound
from sidecar.dataplane.sockets import Address
from tests.sidecar.dataplane.stand_ins import TRUST_DOMAIN, FlowList, HeldDirectory, HeldPolicy, credentials
from tests.sidecar.dataplane.world import SEND_BUFFERS, SMALL, free_port

#: Seconds after which something that must happen counts as not happening.
PATIENCE = 60.0
CHOICE = st.integers(0, 5)


def pattern(seed: int, size: int) -> bytes:
    """Bytes that are nowhere the same, so that a piece in the wrong place is seen."""
    block = hashlib.sha512(seed.to_bytes(8)).digest()
    return b"".join((number.to_bytes(4) + block)[:64] for number in range(size // 64 + 1))[:size]


class End:
    """One end of a connection: what it was given to write, and what it has read."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.written = bytearray()  # by the application; the kernel may not have taken all of it
        self.taken = 0
        self.read = bytearray()
        self.reads = True
        self.finishes = False
        self.finished = False
        self.saw_end = False
        self.lost = False  # the kernel reported a reset

    def step(self) -> bool:
        """Let the kernel take and give what it can; whether anything moved."""
        moved = False
        if self.lost:
            return False
        try:
            while self.taken < len(self.written):
                self.taken += self.sock.send(memoryview(self.written)[self.taken : self.taken + 65536])
                moved = True
            if self.finishes and not self.finished:
                self.sock.shutdown(socket.SHUT_WR)
                self.finished = moved = True
        except BlockingIOError:
            pass
        except OSError:
            self.lost = True
            return True
        try:
            while self.reads and not self.saw_end:
                data = self.sock.recv(65536)
                self.saw_end = not data
                self.read += data
                moved = True
        except BlockingIOError:
            pass
        except OSError:
            self.lost = moved = True
        return moved


class Link:
    """A connection through both data planes, seen from its two ends."""

    def __init__(self, client: End, server: End) -> None:
        self.client, self.server = client, server
        self.reset = False

    def ends(self) -> tuple[tuple[End, End], tuple[End, End]]:
        return (self.client, self.server), (self.server, self.client)


class TunnelModel(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.buffers = SEND_BUFFERS.read_text()
        SEND_BUFFERS.write_text(f"4096 {SMALL} {SMALL}")
        self.loop = asyncio.new_event_loop()
        self.all: list[Link] = []
        self.seed = 0
        authority = CertificateAuthority.create(TRUST_DOMAIN, time.time())
        self.application = socket.socket()
        self.application.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        self.application.bind(("127.0.0.1", 0))
        self.application.listen()
        self.application.setblocking(False)
        self.entrance, inbound = free_port(), free_port()
        identity = str(SpiffeId.for_workload(TRUST_DOMAIN, "shop", "default", "cart"))
        cart = Destination(
            "192.0.2.1", 80, workload=WorkloadRef("shop", "cart"), meshed=True,
            endpoints=(Endpoint("127.0.0.1", inbound, identity=identity),),
        )  # fmt: skip
        outside = ExplicitOutbound(Address("127.0.0.1", self.entrance), Address("192.0.2.1", 80))
        inside = ExplicitInbound(Address("127.0.0.1", inbound), Address(*self.application.getsockname()))
        self.flows = FlowList(), FlowList()
        self.planes = (
            self.plane(authority, "front", self.flows[0], [cart], explicit_outbound=(outside,)),
            self.plane(
                authority, "cart", self.flows[1], [], explicit_inbound=(inside,), opaque_ports=frozenset({inbound})
            ),
        )
        for plane in self.planes:
            self.loop.run_until_complete(plane.start())
        self.connect()

    def plane(self, authority, name, flows, directory, **explicit) -> DataPlane:
        snapshot = Snapshot(WorkloadRef("shop", name), TRUST_DOMAIN, 1, Mode.LEARN, Mode.LEARN)
        return DataPlane(
            DataPlaneSettings(outbound_listen=(), inbound_listen=(), **explicit),
            HeldPolicy(snapshot),
            HeldDirectory(directory),
            credentials(authority, "shop", name),
            flows,
        )

    def turn(self) -> bool:
        """One turn of the loop and of every end; whether anything moved."""
        self.loop.run_until_complete(asyncio.sleep(0))
        return sum(end.step() for link in self.all if not link.reset for end in (link.client, link.server)) > 0

    def until(self, condition, what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, what
            if not self.turn():
                self.loop.run_until_complete(asyncio.sleep(0.0005))

    def arrived(self, source: End, target: End) -> bool:
        """Whether all that ``source`` wrote has come to ``target``, where that reads."""
        if not target.reads:
            return True
        return bytes(target.read) == bytes(source.written) and target.saw_end == source.finishes

    # what happens

    def link(self, choice: int) -> Link:
        """One of the connections that live."""
        live = [link for link in self.all if not link.reset]
        return live[choice % len(live)]

    def some_live(self) -> bool:
        return any(not link.reset for link in getattr(self, "all", ()))

    @precondition(lambda self: len(self.all) < 6)
    @rule()
    def connect(self) -> None:
        accepted: list[socket.socket] = []

        def called() -> bool:
            with contextlib.suppress(BlockingIOError):
                accepted.append(self.application.accept()[0])
            return bool(accepted)

        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        client.setblocking(False)
        client.connect_ex(("127.0.0.1", self.entrance))
        self.until(called, "the application was not called")
        link = Link(End(client), End(accepted[0]))
        self.all.append(link)

    @precondition(some_live)
    @rule(choice=CHOICE, from_client=st.booleans(), size=st.sampled_from([1, 100, 5_000, 65_536, 300_000, 1_500_000]))
    def write(self, choice: int, from_client: bool, size: int) -> None:
        link = self.link(choice)
        end = link.client if from_client else link.server
        if not end.finishes and not link.reset and len(end.written) < 4_000_000:
            self.seed += 1
            end.written += pattern(self.seed, size)
            self.turn()

    @precondition(some_live)
    @rule(choice=CHOICE, of_client=st.booleans())
    def stop_or_go_on_reading(self, choice: int, of_client: bool) -> None:
        link = self.link(choice)
        end = link.client if of_client else link.server
        end.reads = not end.reads
        self.turn()

    @precondition(some_live)
    @rule(choice=CHOICE, from_client=st.booleans())
    def finish(self, choice: int, from_client: bool) -> None:
        link = self.link(choice)
        (link.client if from_client else link.server).finishes = True
        self.turn()

    @precondition(some_live)
    @rule(choice=CHOICE, from_client=st.booleans())
    def reset(self, choice: int, from_client: bool) -> None:
        link = self.link(choice)
        here, there = (link.client, link.server) if from_client else (link.server, link.client)
        over = link.client.saw_end and link.server.saw_end
        link.reset = True
        here.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        here.sock.close()

        def heard() -> bool:
            there.reads = True
            there.step()
            return there.lost or there.saw_end

        self.until(heard, "the other end never heard of the reset")
        assert over or here.finishes or there.lost, "a reset arrived as an orderly end"
        assert bytes(here.written).startswith(bytes(there.read))
        there.sock.close()

    @rule()
    def settle(self) -> None:
        """Everything that was written arrives where it is read."""
        live = [link for link in self.all if not link.reset]
        self.until(
            lambda: all(self.arrived(*pair) for link in live for pair in link.ends()), "something did not arrive"
        )

    @invariant()
    def what_arrived_is_what_was_written(self) -> None:
        for link in getattr(self, "all", ()):
            for source, target in link.ends():
                assert bytes(source.written).startswith(bytes(target.read))
                assert not target.saw_end or (link.reset or source.finishes)
                assert not target.lost or link.reset, "a connection was reset that nobody reset"

    def teardown(self) -> None:
        if not hasattr(self, "planes"):
            return
        try:
            for link in self.all:
                for end in (link.client, link.server):
                    end.reads = end.finishes = True
            self.settle()
            self.until(lambda: not any(plane.live_connections for plane in self.planes), "connections were left")
            for flows in self.flows:
                assert len(flows.opened_records) == len(flows.closed_records) == len(self.all)
            for link, record in zip(self.all, self.flows[0].opened_records, strict=True):
                if not link.reset:
                    assert (record.bytes_sent, record.bytes_received) == (len(link.server.read), len(link.client.read))
            for plane in self.planes:
                assert plane.buffered == 0, "memory that was held for readers was not given back"
        finally:
            for link in self.all:
                link.client.sock.close()
                link.server.sock.close()
            for plane in self.planes:
                plane.stop()
            self.loop.run_until_complete(asyncio.sleep(0))
            self.application.close()
            self.loop.close()
            SEND_BUFFERS.write_text(self.buffers)


TunnelModel.TestCase.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
TestTunnelModel = TunnelModel.TestCase
