"""One inspected connection in memory: legs that remember, an application that a test plays, a policy that it writes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from certs.spiffe import SpiffeId
from graph.model import Direction, Mode, Origin, Peer, Rule, Selector, Snapshot, Verdict, WorkloadRef
from sidecar.authority import PolicyAuthority
from sidecar.dataplane.chores import Alarm, Chores
from sidecar.dataplane.complaints import Complaints
from sidecar.dataplane.contracts import Record, Request
from sidecar.dataplane.detect import Kind
from sidecar.dataplane.fabric import Shared
from sidecar.dataplane.guards import Counters
from sidecar.dataplane.live import Connections, new_record
from sidecar.dataplane.sockets import Address
from sidecar.http.settings import DEFAULTS as HTTP_DEFAULTS
from sidecar.inspect.hub import Inspection
from sidecar.inspect.settings import InspectSettings, Limits
from sidecar.settings import Unsynced

CART = WorkloadRef("shop", "cart")
FRONT = WorkloadRef("shop", "front")
IDENTITY = SpiffeId.parse("spiffe://example.org/ns/shop/sa/default/wl/cart")
FRONT_IDENTITY = "spiffe://example.org/ns/shop/sa/default/wl/front"
SOURCE = Peer(FRONT, "shop", "default", "10.0.0.7", verified=True)
PORT = 8080


class Memory:
    """A leg whose other end is the test. ``window``: bytes that it takes before they are held."""

    def __init__(self, lane: Any = None) -> None:
        self.lane = lane
        self.taken = bytearray()
        self.held = bytearray()
        self.blocked = False
        self.paused = False
        self.write_ended = False
        self.was_reset = False
        self.gone = self.lost = False
        self.gives_way = False
        self.reached = True

    @property
    def unsent(self) -> int:
        return len(self.held)

    @property
    def closed(self) -> bool:
        return self.was_reset or self.lost

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.closed or self.write_ended:
            return
        (self.held if self.blocked else self.taken).extend(data)

    def end(self) -> None:
        self.write_ended = True

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def give_way(self) -> None:
        self.gives_way = True

    def give_way_no_more(self) -> None:
        self.gives_way = False

    def reset(self) -> None:
        self.was_reset = True

    # the test's side

    def give(self, data: bytes, size: int = 0) -> None:
        """Send ``data`` to the lane, in pieces of ``size`` bytes where that is given."""
        for start in range(0, len(data), size or len(data) or 1):
            if self.closed:
                return
            self.lane.received(self, memoryview(data[start : start + (size or len(data))]))

    def finish(self) -> None:
        self.lane.ended(self)

    def lose(self) -> None:
        self.gone = self.lost = True
        self.lane.lost(self, "reset by peer")

    def unblock(self) -> None:
        self.blocked = False
        self.taken += self.held
        held, self.held = bool(self.held), bytearray()
        if held:
            self.lane.drained(self)

    def read(self) -> bytes:
        data = bytes(self.taken)
        self.taken.clear()
        return data


class Flows:
    """A flow sink that remembers."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.closed_records: list[Record] = []

    def opened(self, record: Record) -> None: ...

    def closed(self, record: Record) -> None:
        self.closed_records.append(record)

    def request(self, request: Request) -> None:
        self.requests.append(request)


def rule(*operations: str, name: str = "r", effect: Verdict = Verdict.ALLOW) -> Rule:
    origin = Origin.LEARNED if effect is Verdict.ALLOW else Origin.OVERRIDE
    return Rule(
        id=f"static/{name}",
        source=Selector.of(FRONT),
        destination=Selector.of(CART),
        operations=operations,
        effect=effect,
        origin=origin,
    )


def inspection(**limits: Any) -> Inspection:
    """One whose slices of time never end, so that a test does not depend on the machine's speed."""
    return Inspection(InspectSettings(limits=Limits(**{"slice": 60.0, **limits})))


class Turning:
    """A reactor that has nothing to do but its chores, one in each iteration of the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.batches = 0
        self._scheduled = False
        self.chores = Chores(self._schedule)

    def call_later(self, delay: float, call: Callable[..., object], *arguments: Any) -> Alarm:
        return self.chores.later(self.loop, delay, call, *arguments)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        self.batches += 1
        self.chores.work(0.0)
        if self.chores:
            self._schedule()


@dataclass
class World:
    """A sidecar's parts around one or more inspected connections."""

    rules: tuple[Rule, ...] = ()
    mode: Mode = Mode.ENFORCE
    hub: Inspection = field(default_factory=lambda: inspection())
    source: Peer = SOURCE

    def __post_init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.authority = PolicyAuthority(IDENTITY, Unsynced.DENY, ("10.0.0.9",), lambda: 1000.0, self.loop.call_later)
        self.version = 0
        self.flows = Flows()
        self.reactor = Turning(self.loop)
        self.connections = Connections(self.authority, self.flows)
        self.policy(*self.rules, mode=self.mode)
        self.fabric: Any = SimpleNamespace(
            authority=self.authority,
            connections=self.connections,
            credentials=SimpleNamespace(identity=IDENTITY),
            complaints=Complaints(logging.getLogger("tests.inspect"), self.loop.call_later),
            reactor=self.reactor,
            taps=self.hub,
            guards=SimpleNamespace(counters=Counters()),
            settings=SimpleNamespace(http=HTTP_DEFAULTS),
            shared=Shared(),
            draining=False,
        )

    def policy(self, *rules: Rule, mode: Mode | None = None) -> None:
        """Put a new snapshot in force."""
        self.version += 1
        mode = mode or self.mode
        self.authority.apply(Snapshot(CART, "example.org", self.version, mode, mode, rules=rules))

    def connect(self, kind: Kind = Kind.HTTP1, *, reachable: bool = True, by: Any = None) -> Inspected:
        """:param by: what makes its lane; None: it is inspected from the start"""
        return Inspected(self, kind, reachable, by)

    def close(self) -> None:
        self.fabric.complaints.stop()
        self.authority.close()


class Context(SimpleNamespace):
    """What the data path knows of a connection; ``source`` is whose it is."""

    @property
    def by_operation(self) -> bool:
        return self.fabric.authority.by_operation(self.source, PORT)


class Inspected:
    """One connection: ``client`` and ``server`` are what the client and the application see."""

    def __init__(self, world: World, kind: Kind, reachable: bool, by: Any = None) -> None:
        from sidecar.inspect.lane import InspectLane

        self.world = world
        me = Peer(CART, "shop", "default", "10.0.0.9", verified=True)
        record = new_record(Direction.INBOUND, world.source, me, PORT)
        record.source_identity = FRONT_IDENTITY if world.source.verified else ""
        self.record = record
        self.connection = world.connections.judge(record, lambda _: None)
        assert self.connection.allowed, record.decision
        self.connection.by_operation = True  # as whoever chooses the lane says
        self.client = Memory()
        self.server: Memory | None = None
        self.dials = 0
        self.reachable = reachable

        def dial(lane: Any) -> Memory | None:
            self.dials += 1
            self.server = Memory(lane) if reachable else None
            return self.server

        self.context: Any = Context(
            fabric=world.fabric,
            connection=self.connection,
            port=PORT,
            application=Address("127.0.0.1", PORT),
            accept=lambda: None,
            dial=dial,
            source=world.source,
        )
        self.lane = (by or InspectLane)(self.context, self.client, kind)
        self.client.lane = self.lane
        self.connection.announce()

    @property
    def application(self) -> Memory:
        assert self.server is not None, "nobody has called the application"
        return self.server


async def until(condition: Callable[[], object], rounds: int = 2000) -> None:
    """Let the loop run until ``condition``; it has to come within so many rounds."""
    for _ in range(rounds):
        if condition():
            return
        await asyncio.sleep(0)
    for _ in range(6000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the condition did not come true")
