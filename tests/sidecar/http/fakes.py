"""Legs in memory, an authority over one snapshot, and a lane between them: what the tests of the lane share."""

from __future__ import annotations

import logging
import time
from types import SimpleNamespace

from graph.model import Connection as Asked
from graph.model import Direction, InboundTls, Mode, Peer, PortRange, Rule, Selector, Snapshot, Verdict, WorkloadRef
from graph.policy import admit, decide
from sidecar.dataplane.complaints import Complaints
from sidecar.dataplane.guards import Counters
from sidecar.dataplane.live import Connections, new_record
from sidecar.dataplane.sockets import Address
from sidecar.http.lane import HttpLane
from sidecar.http.settings import HttpSettings
from sidecar.http.site import HttpSite

PORT = 8080
CART = WorkloadRef("shop", "cart")
FRONT = Peer(WorkloadRef("shop", "front"), "shop", "default", "192.0.2.1", True)
FRONT_ID = "spiffe://hedgerow.test/ns/shop/sa/default/wl/front"
CART_ID = "spiffe://hedgerow.test/ns/shop/sa/default/wl/cart"


class MemoryLeg:
    """Implements :class:`sidecar.dataplane.legs.Leg`; ``sent`` is what the other end got."""

    def __init__(self, lane=None, *, connecting=False):
        self.lane = lane
        self.sent = bytearray()
        self.unsent = 0
        self.stuck = False
        self.paused = self.closed = self.was_reset = self.did_end = self.did_peer_end = False
        self.reached = not connecting
        self.waiting = []

    def write(self, data):
        if self.closed or self.did_end:
            return
        assert len(data), "an empty write costs a system call"
        self.sent += data
        if self.stuck or not self.reached:
            self.unsent += len(data)

    def end(self):
        self.did_end = True
        if self.did_peer_end:
            self.closed = True

    def pause(self):
        self.paused = True

    def resume(self):
        self.paused = False
        waiting, self.waiting = self.waiting, []
        for data in waiting:
            self.feed(data)

    def reset(self):
        if not self.closed:
            self.closed = self.was_reset = True

    # the other end

    def feed(self, data):
        if self.closed or self.did_peer_end:
            return
        if self.paused:
            self.waiting.append(data)
            return
        buffer = bytearray(data)  # bytes are valid during the call only
        self.lane.received(self, memoryview(buffer))
        buffer[:] = b"\xaa" * len(buffer)

    def finish(self):
        if not self.closed:
            self.did_peer_end = True
            self.lane.ended(self)
            if self.did_end:
                self.closed = True

    def break_off(self, why="reset by the test"):
        if not self.closed:
            self.closed = True
            self.lane.lost(self, why)

    def take(self):
        """What was sent since the last call."""
        data = bytes(self.sent)
        self.sent.clear()
        return data

    def unblock(self):
        self.stuck = False
        self.reached = True
        if self.unsent:
            self.unsent = 0
            self.lane.drained(self)


class Policy:
    """An authority over one snapshot that can be exchanged."""

    def __init__(self, *rules, mode=Mode.ENFORCE):
        self.asked = 0
        self.workload = CART
        self._subscribers = []
        self.version = 0
        self._hold(rules, mode)

    def _hold(self, rules, mode):
        self.version += 1
        self.snapshot = Snapshot(CART, "hedgerow.test", self.version, mode, mode, InboundTls.PERMISSIVE, tuple(rules))

    def change(self, *rules, mode=Mode.ENFORCE):
        self._hold(rules, mode)
        for tell in self._subscribers:
            tell()

    def subscribe(self, changed):
        self._subscribers.append(changed)

    def inbound(self, source, port):
        return admit(self.snapshot, self._ask(source, port), 0.0)[0]

    def by_operation(self, source, port, *, outbound=False):
        assert not outbound, "these lanes are inbound"
        return admit(self.snapshot, self._ask(source, port), 0.0)[1]

    def operation(self, source, port, operation, *, outbound=False):
        assert not outbound, "these lanes are inbound"
        self.asked += 1
        return decide(self.snapshot, self._ask(source, port, operation), 0.0)

    def _ask(self, source, port, operation=""):
        return Asked(Direction.INBOUND, source, Peer(CART, "shop", verified=True), port, operation=operation)


def allow(*operations, rule="static/allow", effect=Verdict.ALLOW, **kwargs):
    from graph.model import Origin

    return Rule(
        rule,
        Selector.of(FRONT.workload),
        Selector.of(CART),
        (PortRange.single(PORT),),
        operations=operations,
        effect=effect,
        origin=kwargs.pop("origin", Origin.STATIC),
        **kwargs,
    )


class Flows:
    def __init__(self):
        self.requests = []
        self.closed_records = []

    def opened(self, record): ...

    def closed(self, record):
        self.closed_records.append(record)

    def request(self, request):
        self.requests.append(request)


class Loop:
    """Timers that the test fires."""

    def __init__(self):
        self.timers = []

    def call_later(self, delay, callback, *arguments):
        handle = SimpleNamespace(cancelled=False)
        handle.cancel = lambda: setattr(handle, "cancelled", True)
        self.timers.append((delay, callback, arguments, handle))
        return handle


class Bench:
    """One site, its policy, and the connections of its application."""

    def __init__(self, *rules, mode=Mode.ENFORCE, **settings):
        self.policy = Policy(*(rules or (allow(),)), mode=mode)
        self.flows = Flows()
        self.loop = Loop()
        self.now = 1000.0
        self.draining = False
        self.tapped = set()
        self.refuse_dials = False
        self.connecting = False
        self.apps = []
        connections = Connections(self.policy, self.flows)
        complaints = Complaints(
            logging.getLogger("tests.http"), lambda delay, callback: self.loop.call_later(delay, callback)
        )
        bench = self

        class Fabric:
            authority = self.policy
            reactor = SimpleNamespace(loop=self.loop)
            settings = SimpleNamespace()
            guards = SimpleNamespace(counters=Counters())
            taps = SimpleNamespace(wants=lambda port: port in bench.tapped)

            @property
            def draining(self):
                return bench.draining

        self.fabric = Fabric()
        self.fabric.connections = connections
        self.fabric.complaints = complaints
        self.site = HttpSite(self.fabric, HttpSettings(**settings), lambda: self.now)

    def dial(self, lane):
        if self.refuse_dials:
            return None
        leg = MemoryLeg(lane, connecting=self.connecting)
        self.apps.append(leg)
        return leg

    def context(self, source=FRONT, identity=FRONT_ID):
        record = new_record(Direction.INBOUND, source, Peer(CART, "shop", verified=source.verified), PORT)
        record.source_identity = identity if source.verified else ""
        record.destination_identity = CART_ID if source.verified else ""
        connection = self.fabric.connections.judge(record, lambda connection: connection.finish())
        assert connection.allowed
        connection.by_operation = True  # as whoever chooses the lane says
        connection.announce()
        return SimpleNamespace(
            fabric=self.fabric,
            connection=connection,
            port=PORT,
            application=Address("127.0.0.1", 80),
            accept=lambda: None,
            dial=self.dial,
        )

    def client(self, make=HttpLane, **kwargs):
        """A client's leg with its lane; ``record`` is its account."""
        leg = MemoryLeg()
        context = self.context(**kwargs)
        leg.record = context.connection.record
        leg.lane = make(context, leg, self.site)
        return leg

    @property
    def app(self):
        """The connection of the application that was opened last."""
        return self.apps[-1]

    def heard(self):
        """What has reached the application since the last call: nothing, if it was not called."""
        return self.app.take() if self.apps else b""

    @property
    def left_alone(self):
        """Whether the application has nothing to do with any client: it was not called, or has got a reset."""
        return all(app.was_reset for app in self.apps)

    def later(self, seconds):
        """Let time pass, and have the site look."""
        self.now += seconds
        self.site.sweep(self.now)


def real_time():
    return time.monotonic()
