"""The books of one edge: what its source's sidecars say, what its destination's say, and the figures drawn from both.

Both ends of a meshed edge report every connection. The two accounts are kept apart, and a figure is the larger of the
two: the same connection seen by two witnesses is one connection, and what one witness missed the other one saw.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from graph.flow import EdgeKey, Flow
from graph.model import Direction
from graph.operations import OperationBook
from graph.views import EdgeVerdict, EdgeView, OperationView
from graph.windows import COUNT_NAMES, Counts

MAX_IDENTITIES = 16
MAX_REPORTERS = 64
#: Seconds after which a verdict that the other end's reports have overtaken no longer speaks for the edge.
VERDICT_MEMORY = 60.0


@dataclass(frozen=True, slots=True)
class EdgeTotals:
    """What one end of an edge has reported so far; the form in which a graph is kept on disk.

    :param direction: ``outbound`` for what the source's sidecars reported, ``inbound`` for the destination's
    :param verdict: what the last connections met at this end, at ``judged_at``
    :param last_seen: also moved by bytes on connections that were judged before
    :param reporters: instances, the one that reported last at the end
    """

    key: EdgeKey
    direction: Direction
    counts: Counts
    verdict: EdgeVerdict
    first_seen: float
    last_seen: float
    source_identities: tuple[str, ...] = ()
    destination_identities: tuple[str, ...] = ()
    reporters: tuple[str, ...] = ()
    judged_at: float = 0.0


def flow_counts(flow: Flow, verdict: EdgeVerdict) -> Counts:
    """What ``flow`` adds to its edge's counters."""
    if verdict is EdgeVerdict.DENY:
        return Counts(denied=flow.connections, bytes_sent=flow.bytes_sent, bytes_received=flow.bytes_received)
    return Counts(
        connections=flow.connections,
        verified=flow.connections if flow.verified else 0,
        failed=flow.failed,
        would_deny=flow.connections if verdict is EdgeVerdict.WOULD_DENY else 0,
        bytes_sent=flow.bytes_sent,
        bytes_received=flow.bytes_received,
    )


class _Recent:
    """A bounded set of names that forgets the one not mentioned for longest."""

    __slots__ = ("_limit", "_names")

    def __init__(self, limit: int, names: tuple[str, ...] = ()) -> None:
        self._limit = limit
        self._names = dict.fromkeys(names[-limit:])

    def mention(self, name: str) -> None:
        if not name:
            return
        self._names.pop(name, None)
        self._names[name] = None
        if len(self._names) > self._limit:
            del self._names[next(iter(self._names))]

    def __len__(self) -> int:
        return len(self._names)

    def names(self) -> tuple[str, ...]:
        return tuple(self._names)


class _Account:
    """One end's reports."""

    __slots__ = ("counts", "destinations", "first_seen", "judged_at", "last_seen", "reporters", "sources", "verdict")

    def __init__(self, totals: EdgeTotals) -> None:
        self.counts = totals.counts
        self.verdict = totals.verdict
        self.first_seen = totals.first_seen
        self.last_seen = totals.last_seen
        self.judged_at = totals.judged_at
        self.sources = _Recent(MAX_IDENTITIES, totals.source_identities)
        self.destinations = _Recent(MAX_IDENTITIES, totals.destination_identities)
        self.reporters = _Recent(MAX_REPORTERS, totals.reporters)

    def totals(self, key: EdgeKey, direction: Direction) -> EdgeTotals:
        return EdgeTotals(
            key,
            direction,
            self.counts,
            self.verdict,
            self.first_seen,
            self.last_seen,
            self.sources.names(),
            self.destinations.names(),
            self.reporters.names(),
            self.judged_at,
        )


class EdgeAccounts:
    """Both ends' reports of one edge, and its view."""

    __slots__ = ("_accounts", "_figures", "_operations", "_view", "key")

    def __init__(self, key: EdgeKey) -> None:
        self.key = key
        self._accounts: dict[Direction, _Account] = {}
        self._figures = Counts()
        self._operations: OperationBook | None = None  # most edges have none
        self._view: EdgeView | None = None

    def add(self, flow: Flow, now: float) -> Counts:
        """Enter one report and return what it adds to the edge's figures.

        :param now: reported times after it (a sidecar's clock is ahead) count as now
        """
        first, last = sorted((min(flow.first_seen, now), min(flow.last_seen, now)))
        verdict = EdgeVerdict.of(flow)
        account = self._accounts.get(flow.direction)
        if account is None:
            account = _Account(EdgeTotals(self.key, flow.direction, Counts(), verdict, first, last))
            self._accounts[flow.direction] = account
        account.counts += flow_counts(flow, verdict)
        account.first_seen = min(account.first_seen, first)
        if flow.connections:
            if last > account.judged_at:
                account.verdict, account.judged_at = verdict, last
            elif last == account.judged_at:
                account.verdict = max(account.verdict, verdict, key=lambda each: each.strictness)
        elif last >= account.last_seen and EdgeVerdict.DENY not in (verdict, account.verdict):
            account.verdict = verdict  # bytes alone: a connection that was judged again, which hides no refusal
        account.last_seen = max(account.last_seen, last)
        account.sources.mention(flow.source_identity)
        account.destinations.mention(flow.destination_identity)
        account.reporters.mention(flow.reporter)
        return self._refresh()

    def add_operation(self, flow: Flow, now: float, *, room: bool) -> int:
        """Enter a report of requests, which touches no other figure; see :class:`graph.operations.OperationBook`.

        :returns: how many places more than before are taken
        """
        if self._operations is None:
            self._operations = OperationBook()
        before = len(self._operations)
        self._operations.add(flow, now, room=room)
        self._view = None
        return len(self._operations) - before

    @property
    def operations(self) -> tuple[OperationView, ...]:
        return self._operations.views() if self._operations is not None else ()

    def load_operations(self, views: Iterable[OperationView]) -> None:
        """Take back operations as :attr:`operations` gave them out, in place of what is here."""
        self._operations = OperationBook(views)
        self._view = None

    def load(self, totals: EdgeTotals) -> None:
        """Take back one end's account as it was dumped, in place of what is here."""
        self._accounts[totals.direction] = _Account(totals)
        self._refresh()

    def totals(self) -> tuple[EdgeTotals, ...]:
        return tuple(account.totals(self.key, direction) for direction, account in self._accounts.items())

    def invalidate(self) -> None:
        """Have the view made anew, because something around the edge changed."""
        self._view = None

    def view(self, app_protocol: str) -> EdgeView:
        if self._view is None:
            accounts = self._accounts
            outbound, inbound = accounts.get(Direction.OUTBOUND), accounts.get(Direction.INBOUND)
            replicas = outbound or inbound
            self._view = EdgeView(
                key=self.key,
                verdict=self._verdict(),
                **{name: getattr(self._figures, name) for name in COUNT_NAMES},
                first_seen=min(account.first_seen for account in accounts.values()),
                last_seen=max(account.last_seen for account in accounts.values()),
                app_protocol=app_protocol,
                source_identities=_union(account.sources for account in accounts.values()),
                destination_identities=_union(account.destinations for account in accounts.values()),
                reporters=_union(account.reporters for account in accounts.values()),
                replicas=len(replicas.reporters) if replicas is not None else 0,
                operations=self.operations,
            )
        return self._view

    def _refresh(self) -> Counts:
        before, figures = self._figures, Counts()
        for account in self._accounts.values():
            figures = figures.larger(account.counts)
        self._figures = figures
        self._view = None
        return figures - before

    def _verdict(self) -> EdgeVerdict:
        """The stricter of both ends' last verdicts: one refusal stops a connection."""
        latest = max(account.last_seen for account in self._accounts.values())
        recent = [
            account.verdict for account in self._accounts.values() if account.last_seen >= latest - VERDICT_MEMORY
        ]
        return max(recent, key=lambda verdict: verdict.strictness)


def _union(sets: Iterable[_Recent]) -> tuple[str, ...]:
    return tuple(sorted({name for each in sets for name in each.names()}))
