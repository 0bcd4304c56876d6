"""Adds connections up to flows: what a sidecar reports is one line per kind of connection, not one per connection.

The governing rules:

1. Every byte and every connection is counted once. A long-lived connection is reported as the difference since the
   last harvest; what moved after that is taken when it closes.
2. Memory is bounded by ``max_flows`` plus the live connections. What does not fit is shed and counted; nothing waits.
3. No clock and no I/O: the time is an argument, or stands in the record.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol as Interface

from graph.errors import InvalidValue
from graph.flow import Flow
from graph.model import Direction, Protocol, Verdict, WorkloadRef
from graph.policy import Decision
from sidecar.dataplane.contracts import Record, Request


@dataclass(frozen=True, slots=True)
class FlowKey:
    """What two connections must share to be one flow."""

    source: WorkloadRef
    destination: WorkloadRef
    port: int
    protocol: Protocol
    direction: Direction
    reporter: str
    verified: bool
    verdict: Verdict
    pending: Verdict
    reason: str
    rule_id: str
    operation: str
    source_identity: str
    destination_identity: str
    _hash: int = field(init=False, repr=False, compare=False, default=0)

    def __post_init__(self) -> None:
        ends = (self.source, self.destination, self.port, self.source_identity, self.destination_identity)
        judged = (self.verdict, self.pending, self.reason, self.rule_id, self.operation)
        object.__setattr__(self, "_hash", hash((ends, judged, self.verified, self.direction, self.reporter)))

    def __hash__(self) -> int:
        return self._hash  # a key is looked up for every request

    @classmethod
    def of(cls, flow: Flow) -> FlowKey:
        return cls(
            flow.source,
            flow.destination,
            flow.port,
            flow.protocol,
            flow.direction,
            flow.reporter,
            flow.verified,
            flow.verdict,
            flow.pending,
            flow.reason,
            flow.rule_id,
            flow.operation,
            flow.source_identity,
            flow.destination_identity,
        )


def merge(first: Flow, second: Flow) -> Flow:
    """Add two reports of one flow. Both must have the same :class:`FlowKey`."""
    return replace(
        first,
        connections=first.connections + second.connections,
        failed=first.failed + second.failed,
        bytes_sent=first.bytes_sent + second.bytes_sent,
        bytes_received=first.bytes_received + second.bytes_received,
        first_seen=min(first.first_seen, second.first_seen),
        last_seen=max(first.last_seen, second.last_seen),
        requests=first.requests + second.requests,
    )


@dataclass(slots=True)
class _Sum:
    """What was added to one flow since the last harvest. ``moved``: up to an unknown moment between the harvests."""

    first_seen: float
    last_seen: float
    connections: int = 0
    failed: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    requests: int = 0
    moved: bool = False


class _Kind:
    """The flow of many connections, what was added to it since the last harvest, and since which one that counts.

    :ivar decision: the one that makes it this flow, kept so that its identity is nobody else's
    """

    __slots__ = ("added", "decision", "harvest", "key")

    def __init__(self, key: FlowKey, decision: Decision) -> None:
        self.key = key
        self.decision = decision
        self.added: _Sum | None = None
        self.harvest = -1


@dataclass(slots=True)
class _Live:
    """A connection that is still open, and how much of it was already added."""

    record: Record
    kind: _Kind
    bytes_sent: int = 0
    bytes_received: int = 0
    counted: bool = False
    failed: bool = False


class FlowSource(Interface):
    """Has flows to report."""

    @property
    def live(self) -> int:
        """How many connections are open."""

    @property
    def total_records(self) -> int:
        """Connections that were heard of since the start."""

    def harvest(self, now: float) -> list[Flow]:
        """Take what was added since the last harvest.

        :param now: seconds since the epoch
        """

    def take_shed(self) -> int:
        """How many connections' accounts were dropped since the last call."""


class FlowTracker:
    """Implements :class:`sidecar.dataplane.contracts.FlowSink`.

    :param reporter: the name of our instance
    :param max_flows: how many flows are kept between two harvests
    """

    def __init__(self, reporter: str, max_flows: int = 4096) -> None:
        self._reporter = reporter
        self._max_flows = max_flows
        self._sums: dict[FlowKey, _Sum] = {}
        self._kinds: dict[tuple[object, ...], _Kind] = {}
        self._live: dict[int, _Live] = {}
        self._fresh: dict[int, tuple[Record, _Kind]] = {}  # opened since the last harvest: most end before the next
        self._harvests = 0
        self._shed = 0
        self._harvested_at = 0.0
        self.total_records = 0
        self.total_shed = 0

    @property
    def live(self) -> int:
        """How many connections are open."""
        return len(self._live) + len(self._fresh)

    def opened(self, record: Record) -> None:
        self.total_records += 1
        try:
            kind = self._kind(record, record.decision)
        except InvalidValue:  # an end without workload and address can not be reported as anybody's
            self._count_shed()
            return
        if record.closed:
            self._add_whole(record, kind)
        else:
            self._fresh[id(record)] = (record, kind)  # the entry holds the record, so its id is nobody else's

    def closed(self, record: Record) -> None:
        fresh = self._fresh.pop(id(record), None)
        if fresh is not None:
            kind = fresh[1]
            if record.decision is kind.decision:
                self._add_whole(record, kind)
                return
            live = _Live(record, kind)
            self._begin(live)
        else:
            known = self._live.pop(id(record), None)
            if known is None:
                return
            live = known
        if not self._add(live):
            self._count_shed()

    def request(self, request: Request) -> None:
        """Count one operation. Its time is its end, as far as anybody can tell: the clock is the harvest's."""
        try:
            kind = self._kind(request.record, request.decision, request.operation)
        except InvalidValue:
            self._count_shed()
            return
        added = kind.added if kind.harvest == self._harvests else self._find(kind)
        if added is None:
            since = max(request.record.opened_at, self._harvested_at)
            added = self._make(kind, _Sum(since, since, moved=True))
            if added is None:
                self._count_shed()
                return
        added.requests += 1

    def harvest(self, now: float) -> list[Flow]:
        """Take what was added since the last harvest.

        :param now: seconds since the epoch
        """
        for key, (record, kind) in self._fresh.items():
            live = self._live[key] = _Live(record, kind)
            if record.decision is not kind.decision:
                self._begin(live)
        self._fresh.clear()
        for live in self._live.values():
            self._add(live)
        sums, self._sums = self._sums, {}
        self._harvests += 1
        self._harvested_at = now
        return [self._flow(key, added, now) for key, added in sums.items()]

    def take_shed(self) -> int:
        """How many connections' accounts were dropped since the last call."""
        shed, self._shed = self._shed, 0
        return shed

    def _count_shed(self) -> None:
        self._shed += 1
        self.total_shed += 1

    def _find(self, kind: _Kind) -> _Sum | None:
        """What was added to a flow since the last harvest, where there is something already."""
        added = self._sums.get(kind.key)
        if added is not None:
            kind.added, kind.harvest = added, self._harvests
        return added

    def _make(self, kind: _Kind, empty: _Sum) -> _Sum | None:
        """Begin to add to a flow; None when there are too many."""
        if len(self._sums) >= self._max_flows:
            return None
        self._sums[kind.key] = kind.added = empty
        kind.harvest = self._harvests
        return empty

    def _add_whole(self, record: Record, kind: _Kind) -> None:
        """Add a connection of which nothing was added before, and which has ended: all but a few are such."""
        opened_at = record.opened_at
        added = kind.added if kind.harvest == self._harvests else self._find(kind)
        if added is None:
            added = self._make(kind, _Sum(opened_at, opened_at))
            if added is None:
                self._count_shed()
                return
        if opened_at < added.first_seen:
            added.first_seen = opened_at
        elif opened_at > added.last_seen:
            added.last_seen = opened_at
        added.connections += 1
        if record.failed:
            added.failed += 1
        if record.bytes_sent or record.bytes_received:
            added.bytes_sent += record.bytes_sent
            added.bytes_received += record.bytes_received
            added.moved = True

    def _begin(self, live: _Live) -> None:
        """Add a connection that was judged again since, to the flow that it was when it was opened."""
        opened_at = live.record.opened_at
        added = self._find(live.kind) or self._make(live.kind, _Sum(opened_at, opened_at))
        if added is not None:
            added.first_seen = min(added.first_seen, opened_at)
            added.last_seen = max(added.last_seen, opened_at)
            added.connections += 1
            live.counted = True

    def _add(self, live: _Live) -> bool:
        """Add what is new of a connection; False when it does not fit, and then it stays new."""
        record = live.record
        if record.decision is not live.kind.decision:  # judged again under a newer snapshot
            live.kind = self._kind(record, record.decision)
        sent = record.bytes_sent - live.bytes_sent
        received = record.bytes_received - live.bytes_received
        failed = record.failed and not live.failed
        if live.counted and not (sent or received or failed):
            return True
        since = max(record.opened_at, self._harvested_at) if live.counted else record.opened_at
        added = self._find(live.kind) or self._make(live.kind, _Sum(since, record.opened_at))
        if added is None:
            return False
        added.first_seen = min(added.first_seen, since)
        added.last_seen = max(added.last_seen, record.opened_at)
        added.connections += not live.counted
        added.failed += failed
        added.bytes_sent += sent
        added.bytes_received += received
        added.moved = added.moved or live.counted or bool(sent or received)
        live.counted = True
        live.failed = live.failed or failed
        live.bytes_sent = record.bytes_sent
        live.bytes_received = record.bytes_received
        return True

    def _kind(self, record: Record, decision: Decision, operation: str = "") -> _Kind:
        # everything that a flow is told by; a decision by its identity, which the entry keeps from being reused
        short = (
            id(decision), operation, record.direction is Direction.INBOUND, record.port,
            record.source, record.source_identity, record.destination, record.destination_identity,
        )  # fmt: skip
        known = self._kinds.get(short)
        if known is None:
            if len(self._kinds) >= self._max_flows:
                self._kinds.clear()
            known = self._kinds[short] = _Kind(self._new_key(record, decision, operation), decision)
        return known

    def _new_key(self, record: Record, decision: Decision, operation: str) -> FlowKey:
        other = record.source if record.direction is Direction.INBOUND else record.destination
        return FlowKey(
            source=record.source.ref(),
            destination=record.destination.ref(),
            port=record.port,
            protocol=Protocol.TCP,
            direction=record.direction,
            reporter=self._reporter,
            verified=other.verified,
            verdict=decision.verdict,
            pending=decision.pending,
            reason=str(decision.reason),
            rule_id=decision.rule_id,
            operation=operation,
            source_identity=record.source_identity,
            destination_identity=record.destination_identity,
        )

    @staticmethod
    def _flow(key: FlowKey, added: _Sum, now: float) -> Flow:
        return Flow(
            source=key.source,
            destination=key.destination,
            port=key.port,
            protocol=key.protocol,
            direction=key.direction,
            reporter=key.reporter,
            verified=key.verified,
            verdict=key.verdict,
            pending=key.pending,
            reason=key.reason,
            rule_id=key.rule_id,
            operation=key.operation,
            source_identity=key.source_identity,
            destination_identity=key.destination_identity,
            connections=added.connections,
            failed=added.failed,
            bytes_sent=added.bytes_sent,
            bytes_received=added.bytes_received,
            requests=added.requests,
            first_seen=added.first_seen,
            last_seen=max(added.last_seen, now) if added.moved else added.last_seen,
        )


def connections_in(flows: Iterable[Flow]) -> int:
    """How many connections these flows speak of, for counting what is lost with them."""
    return sum(max(flow.connections, 1) for flow in flows)
