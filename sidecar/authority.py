"""Holds the one snapshot in force and judges connections by it.

The governing rules:

1. Every verdict is :func:`graph.policy.decide`'s (of an opening, :func:`graph.policy.admit`'s). The index by port only
   leaves out rules that can not match.
2. Before the first snapshot the configured default holds, as a snapshot of version 0 without rules: enforcement, or
   learning where the settings say so. Never a silent allow.
3. A decision is made once for as long as it holds: until a new snapshot, or while the clock is between two expiries of
   rules. The clock may be set, back too: what had expired is then in force again.
4. A rule's expiry changes verdicts without any message: at that moment subscribers are told.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from certs.spiffe import SpiffeId
from graph.model import Connection, Direction, InboundTls, InspectedHost, Mode, Peer, Snapshot, WorkloadRef
from graph.policy import Decision, admit, decide
from sidecar.settings import Unsynced

log = logging.getLogger(__name__)

#: Ports whose rules are kept apart; beyond that (a port scan) the whole snapshot is searched.
MAX_INDEXED_PORTS = 256

#: Decisions of each kind that are kept; when there are more (a port scan) all are made anew.
MAX_DECISIONS = 4096

#: The longest sleep before an expiry is looked at again, seconds: the wall clock may be set meanwhile.
MAX_TIMER = 60.0


#: From when (inclusive) until when the same rules of a snapshot have expired, seconds since the epoch.
type _Span = tuple[float, float]
_NEVER: _Span = (math.inf, -math.inf)


class Timer(Protocol):
    """What :meth:`asyncio.AbstractEventLoop.call_later` returns."""

    def cancel(self) -> None: ...


class PolicyAuthority:
    """Implements :class:`sidecar.dataplane.contracts.Authority`.

    :param identity: our own SPIFFE ID, which must name a workload
    :param unsynced: what holds before the first snapshot
    :param clock: seconds since the epoch
    :param call_later: runs a function after so many seconds
    :param inspecting: of the hosts that a snapshot says we inspect, the only ones; None: all
    """

    def __init__(
        self,
        identity: SpiffeId,
        unsynced: Unsynced,
        addresses: tuple[str, ...],
        clock: Callable[[], float],
        call_later: Callable[[float, Callable[[], None]], Timer],
        inspecting: frozenset[InspectedHost] | None = None,
    ) -> None:
        self._clock = clock
        self._call_later = call_later
        self._inspecting = inspecting
        self._workload = WorkloadRef(identity.namespace, identity.workload)
        self._self = Peer(
            workload=self._workload,
            namespace=identity.namespace,
            service_account=identity.service_account,
            address=addresses[0] if addresses else "",
            verified=True,
        )
        mode = Mode.LEARN if unsynced is Unsynced.LEARN else Mode.ENFORCE
        self._snapshot = Snapshot(self._workload, identity.trust_domain, 0, mode, mode, InboundTls.PERMISSIVE)
        self._by_port: dict[int, Snapshot] = {}
        self._openings: dict[tuple[bool, Peer, int], tuple[Decision, bool]] = {}
        self._operations: dict[tuple[bool, Peer, int, str], Decision] = {}
        #: from when until when nothing but a new snapshot changes a decision, and what subscribers know of that
        self._holds = self._told = _NEVER
        self._protocols: dict[int, str] = {}
        self._inspected: frozenset[tuple[str, int]] = frozenset()
        self._subscribers: list[Callable[[], None]] = []
        self._timer: Timer | None = None

    @property
    def version(self) -> int:
        return self._snapshot.version

    @property
    def workload(self) -> WorkloadRef:
        return self._workload

    @property
    def snapshot(self) -> Snapshot:
        """The snapshot in force; version 0 is the configured default."""
        return self._snapshot

    def outbound(self, destination: Peer, port: int) -> Decision:
        return self._admit(Direction.OUTBOUND, destination, port)[0]

    def inbound(self, source: Peer, port: int) -> Decision:
        return self._admit(Direction.INBOUND, source, port)[0]

    def by_operation(self, peer: Peer, port: int, *, outbound: bool = False) -> bool:
        return self._admit(Direction.OUTBOUND if outbound else Direction.INBOUND, peer, port)[1]

    def operation(self, peer: Peer, port: int, operation: str, *, outbound: bool = False) -> Decision:
        now = self._clock()
        if not self._holds[0] <= now < self._holds[1]:
            self._forget(now)
        key = (outbound, peer, port, operation)
        decision = self._operations.get(key)
        if decision is None:
            direction = Direction.OUTBOUND if outbound else Direction.INBOUND
            connection = Connection(direction, *self._ends(direction, peer), port, operation=operation)
            decision = decide(self._for(port), connection, now)
            if len(self._operations) >= MAX_DECISIONS:
                self._operations.clear()
            self._operations[key] = decision
        return decision

    @property
    def inspected(self) -> tuple[InspectedHost, ...]:
        """The hosts outside that we inspect."""
        wanted = self._inspecting
        return tuple(one for one in self._snapshot.inspects if wanted is None or one in wanted)

    def inspects(self, host: str, port: int) -> bool:
        return (host, port) in self._inspected

    def protocol(self, port: int) -> str:
        return self._protocols.get(port, "")

    def subscribe(self, changed: Callable[[], None]) -> None:
        self._subscribers.append(changed)

    def apply(self, snapshot: Snapshot) -> None:
        """Put a snapshot in force. The caller has verified that it is authentic, ours and not older."""
        self._snapshot = snapshot
        self._by_port = {}
        now = self._clock()
        self._forget(now)
        self._protocols = dict(snapshot.protocols)
        self._inspected = frozenset((one.host, one.port) for one in self.inspected)
        self._told = self._holds
        self._arm(now)
        self._tell()

    def close(self) -> None:
        """Stop the expiry timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _admit(self, direction: Direction, peer: Peer, port: int) -> tuple[Decision, bool]:
        now = self._clock()
        if not self._holds[0] <= now < self._holds[1]:
            self._forget(now)
        key = (direction is Direction.INBOUND, peer, port)
        answer = self._openings.get(key)
        if answer is None:
            answer = admit(self._for(port), Connection(direction, *self._ends(direction, peer), port), now)
            if len(self._openings) >= MAX_DECISIONS:
                self._openings.clear()
            self._openings[key] = answer
        return answer

    def _ends(self, direction: Direction, peer: Peer) -> tuple[Peer, Peer]:
        return (peer, self._self) if direction is Direction.INBOUND else (self._self, peer)

    def _forget(self, now: float) -> None:
        """Drop decisions that were made under another snapshot, or while other rules had expired."""
        self._openings.clear()
        self._operations.clear()
        self._holds = self._span(now)

    def _span(self, now: float) -> _Span:
        past, coming = -math.inf, math.inf
        for rule in self._snapshot.rules:
            if rule.expires_at:
                if rule.expired(now):
                    past = max(past, rule.expires_at)
                else:
                    coming = min(coming, rule.expires_at)
        return past, coming

    def _for(self, port: int) -> Snapshot:
        """The snapshot, as far as it can matter to ``port``."""
        snapshot = self._by_port.get(port)
        if snapshot is None:
            snapshot = self._snapshot
            if len(self._by_port) < MAX_INDEXED_PORTS:
                rules = tuple(
                    rule for rule in snapshot.rules if not rule.ports or any(port in ports for ports in rule.ports)
                )
                snapshot = self._by_port[port] = replace(snapshot, rules=rules)
        return snapshot

    def _arm(self, now: float) -> None:
        """Look again at the next expiry, and every now and then while there is any, past or coming."""
        self.close()
        past, coming = self._span(now)
        if (past, coming) != (-math.inf, math.inf):
            self._timer = self._call_later(min(coming - now, MAX_TIMER), self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._clock()
        span = self._span(now)
        self._arm(now)
        if span != self._told:
            self._told = span
            self._tell()

    def _tell(self) -> None:
        for changed in tuple(self._subscribers):
            try:
                changed()
            except Exception:  # one subscriber's fault must not keep a new deny from the others
                log.exception("a subscriber failed on a policy change")
