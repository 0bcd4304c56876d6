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

MAX_FLOWS = 4096


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


@dataclass(slots=True)
class _Live:
    """A connection that is still open, and how much of it was already added."""

    record: Record
    decision: Decision
    key: FlowKey
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

    def __init__(self, reporter: str, max_flows: int = MAX_FLOWS) -> None:
        self._reporter = reporter
        self._max_flows = max_flows
        self._sums: dict[FlowKey, _Sum] = {}
        self._keys: dict[tuple[object, ...], tuple[FlowKey, Decision]] = {}
        self._live: dict[int, _Live] = {}
        self._shed = 0
        self._harvested_at = 0.0
        self.total_records = 0
        self.total_shed = 0

    @property
    def live(self) -> int:
        """How many connections are open."""
        return len(self._live)

    def opened(self, record: Record) -> None:
        self.total_records += 1
        try:
            live = _Live(record, record.decision, self._key(record, record.decision))
        except InvalidValue:  # an end without workload and address can not be reported as anybody's
            self._count_shed()
            return
        if record.closed:
            self._finish(live)
            return
        self._live[id(record)] = live  # the entry holds the record, so its id is nobody else's
        self._add(live)

    def closed(self, record: Record) -> None:
        live = self._live.pop(id(record), None)
        if live is not None:
            self._finish(live)

    def request(self, request: Request) -> None:
        """Count one operation. Its time is its end, as far as anybody can tell: the clock is the harvest's."""
        try:
            key = self._key(request.record, request.decision, request.operation)
        except InvalidValue:
            self._count_shed()
            return
        added = self._sums.get(key)
        if added is None:
            if len(self._sums) >= self._max_flows:
                self._count_shed()
                return
            since = max(request.record.opened_at, self._harvested_at)
            added = self._sums[key] = _Sum(since, since, moved=True)
        added.requests += 1

    def harvest(self, now: float) -> list[Flow]:
        """Take what was added since the last harvest.

        :param now: seconds since the epoch
        """
        for live in self._live.values():
            self._add(live)
        sums, self._sums = self._sums, {}
        self._harvested_at = now
        return [self._flow(key, added, now) for key, added in sums.items()]

    def take_shed(self) -> int:
        """How many connections' accounts were dropped since the last call."""
        shed, self._shed = self._shed, 0
        return shed

    def _finish(self, live: _Live) -> None:
        if not self._add(live):
            self._count_shed()

    def _count_shed(self) -> None:
        self._shed += 1
        self.total_shed += 1

    def _add(self, live: _Live) -> bool:
        """Add what is new of a connection; False when it does not fit, and then it stays new."""
        record = live.record
        if record.decision is not live.decision:  # judged again under a newer snapshot
            live.decision = record.decision
            live.key = self._key(record, record.decision)
        sent = record.bytes_sent - live.bytes_sent
        received = record.bytes_received - live.bytes_received
        failed = record.failed and not live.failed
        if live.counted and not (sent or received or failed):
            return True
        added = self._sums.get(live.key)
        since = max(record.opened_at, self._harvested_at) if live.counted else record.opened_at
        if added is None:
            if len(self._sums) >= self._max_flows:
                return False
            added = self._sums[live.key] = _Sum(since, record.opened_at)
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

    def _key(self, record: Record, decision: Decision, operation: str = "") -> FlowKey:
        source, destination = record.source, record.destination
        inbound = record.direction is Direction.INBOUND
        other = source if inbound else destination
        # everything that the key is made of; a decision by its identity, which the entry keeps from being reused
        short = (
            id(decision), operation, inbound, record.port, other.verified,
            source.workload, source.address, source.host, record.source_identity,
            destination.workload, destination.address, destination.host, record.destination_identity,
        )  # fmt: skip
        known = self._keys.get(short)
        if known is None:
            if len(self._keys) >= self._max_flows:
                self._keys.clear()
            key = self._new_key(record, decision, operation, verified=other.verified)
            known = self._keys[short] = (key, decision)
        return known[0]

    def _new_key(self, record: Record, decision: Decision, operation: str, *, verified: bool) -> FlowKey:
        return FlowKey(
            source=record.source.ref(),
            destination=record.destination.ref(),
            port=record.port,
            protocol=Protocol.TCP,
            direction=record.direction,
            reporter=self._reporter,
            verified=verified,
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
