"""The register of live connections: judged when they open, judged again whenever the policy changes.

Rules:

1. Register first, then judge. A change of policy between the two finds the connection and ends it.
2. What a change denies is ended with a reset, at once.
3. What carries nothing for too long is ended with a reset; what has ended in one direction, with a limit of its own.
4. Who was a stranger and turns out to be of the inventory is judged as who it is, from then on.
5. The flow sink hears ``opened`` once for every connection and ``closed`` once for every one that was not refused.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from graph.model import Direction, Peer, Verdict
from graph.policy import Decision, Reason
from sidecar.dataplane.contracts import Authority, FlowSink, Record
from sidecar.dataplane.guards import Budget, Guards
from sidecar.dataplane.half_closed import HalfClosed
from sidecar.dataplane.settings import DataPlaneSettings

_log = logging.getLogger("sidecar.dataplane")

type _Key = tuple[Direction, Peer, int]
type Asked = tuple[str, int]
"""An address and a port, of which the directory says who answers there."""

#: Of a connection that was not judged yet.
UNDECIDED = Decision(Verdict.DENY, Verdict.DENY, Reason.UNRESOLVED)


def refusal(reason: Reason) -> Decision:
    """The decision on a connection of which too little is known to ask the policy."""
    return Decision(Verdict.DENY, Verdict.DENY, reason)


class Connection:
    """One connection's entry. Its owner calls :meth:`announce` when it runs and :meth:`finish` when it ended."""

    __slots__ = (
        "_after",
        "_announced",
        "_asked",
        "_end",
        "_group",
        "_key",
        "_owned",
        "_quiet",
        "_register",
        "_seen",
        "_watched",
        "by_operation",
        "record",
    )

    def __init__(
        self,
        register: Connections,
        key: _Key,
        group: set[Connection],
        record: Record,
        end: Callable[[Connection], None],
        asked: Asked | None,
    ) -> None:
        self._register = register
        self._asked = asked
        self._key = key
        self._group = group
        self._end: Callable[..., None] = end
        self._owned = False  # and so ended without being told which one it is
        self._watched = False
        self._announced = False
        self._after: Callable[[bool], None] | None = None
        self._seen = -1  # what it had carried at the last look
        self._quiet = 0  # looks since then that found nothing more
        self.record = record
        #: A lane judges its operations one by one. Everything else is one operation that nobody knows.
        self.by_operation = False

    @property
    def allowed(self) -> bool:
        return self.record.decision.allowed and not self.record.closed

    def regrouped(self, key: _Key, group: set[Connection]) -> None:
        """It is judged by ``key`` from now on. What its record says of the peer was reported and stays."""
        self._register.estranged(self._asked, self)
        self._register.leave(self._key, self._group, self)
        self._key, self._group, self._asked = key, group, None

    def owned_by(self, end: Callable[[], None]) -> None:
        """Have ``end`` called, instead of the present owner's, when the policy ends this connection."""
        self._end = end
        self._owned = True

    def after(self, over: Callable[[bool], None]) -> None:
        """Have ``over`` called when it has ended, with whether it failed."""
        self._after = over

    def half_closed(self, loop: asyncio.AbstractEventLoop) -> None:
        """One direction has ended; from now on the other must carry something, or the connection ends."""
        if not self.record.closed:
            self._watched = True
            self._register.half_closed.watch(self, loop)

    def quiet(self) -> int:
        """Look at it: how many looks, this one included, have found nothing carried since the one before."""
        carried = self.carried()
        if carried == self._seen:
            self._quiet += 1
        else:
            self._seen, self._quiet = carried, 0
        return self._quiet

    @property
    def budget(self) -> Budget:
        """Where its owner accounts for what a receiver does not take."""
        return self._register.guards.budget

    def carried(self) -> int:
        """Bytes so far, in both directions."""
        return self.record.bytes_sent + self.record.bytes_received

    def announce(self) -> None:
        """Tell the flow sink, with everything that is known of the peer by now."""
        if not self._announced:
            self._announced = True
            self._register.flows.opened(self.record)

    def finish(self, *, failed: bool = False) -> None:
        """The connection is over. Calling it again changes nothing.

        :param failed: it never reached the application
        """
        record = self.record
        if record.closed:
            return
        record.failed = failed
        register = self._register
        if not self._announced:
            self._announced = True
            register.flows.opened(record)
        self._leave()
        register.flows.closed(record)
        if self._after is not None:
            self._after(failed)

    def withdraw(self) -> None:
        """Take it out without a report: the same connection is entered again, to another endpoint."""
        if not self.record.closed and not self._announced:
            self._leave()
            if self._after is not None:
                self._after(True)

    def refuse(self, decision: Decision) -> None:
        """Report that it was refused, before it was announced; it is over."""
        record = self.record
        if record.closed or self._announced:
            self.finish()
            return
        record.decision = decision
        self._announced = True
        self._leave()
        self._register.flows.opened(record)

    def end(self) -> None:
        """Have the owner end it with a reset."""
        if self._owned:
            self._end()
        else:
            self._end(self)

    def _leave(self) -> None:
        """It is over."""
        self.record.closed = True
        self._end, self._owned = _nothing, True
        register = self._register
        if self._watched:
            register.half_closed.forget(self)
        if self._asked is not None:
            register.estranged(self._asked, self)
        register.remove(self._key, self._group, self)


class Connections:
    """Every live connection of the data path.

    :param half_closed_idle: as in :class:`~sidecar.dataplane.settings.DataPlaneSettings`
    """

    __slots__ = ("_authority", "_empty", "_groups", "_strangers", "count", "flows", "guards", "half_closed")

    def __init__(
        self, authority: Authority, flows: FlowSink, half_closed_idle: float = 0.0, guards: Guards | None = None
    ) -> None:
        self._authority = authority
        self.flows = flows
        self.guards = guards if guards is not None else Guards(DataPlaneSettings())
        self.half_closed: HalfClosed[Connection] = HalfClosed(half_closed_idle, self._half_closed_ended, self._soon)
        self._groups: dict[_Key, set[Connection]] = {}
        # with whom nobody knew, by what the directory was asked
        self._strangers: dict[Asked, set[Connection]] = {}
        self._empty: list[Callable[[], None]] = []
        #: How many there are.
        self.count = 0
        authority.subscribe(self.check_all)

    def judge(self, record: Record, end: Callable[[Connection], None], asked: Asked | None = None) -> Connection:
        """Enter a connection and ask the policy. A refused one is reported and out of the register again.

        :param record: its ``decision`` is set here
        :param end: ends the connection with a reset; called when a later policy denies it
        :param asked: of the directory, where our application has called
        """
        outbound = record.direction is Direction.OUTBOUND
        key = (record.direction, record.destination if outbound else record.source, record.port)
        record.decision = UNDECIDED
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = set()
        if key[1].workload is not None or not outbound:
            asked = None
        connection = Connection(self, key, group, record, end, asked)
        group.add(connection)
        if asked is not None:
            self._strangers.setdefault(asked, set()).add(connection)
        self.count += 1
        ask = self._authority.outbound if outbound else self._authority.inbound
        decision = ask(key[1], record.port)
        if not decision.allowed:
            connection.refuse(decision)
        elif not record.closed:  # a change of policy may have ended it already
            record.decision = decision
        return connection

    def remove(self, key: _Key, group: set[Connection], connection: Connection) -> None:
        """Take a connection out of its group; its end is reported."""
        self.leave(key, group, connection)
        self.count -= 1
        if not self.count and self._empty:
            waiting, self._empty = self._empty, []
            for callback in waiting:
                callback()

    def when_empty(self, callback: Callable[[], None]) -> None:
        """Call back once when there is no connection left; at once if so now."""
        if self.count:
            self._empty.append(callback)
        else:
            callback()

    def check_all(self) -> None:
        """Judge every connection again: end those that are denied now, and note of the others what allows them now."""
        for key, group in list(self._groups.items()):
            try:
                opening = self._ask(key)
                unknown = self._ask_unknown(key, opening)
            except Exception:
                _log.exception("a fault of ours while connections were judged again, which end; please report it")
                opening = unknown = UNDECIDED
            for connection in list(group):
                decision = opening if connection.by_operation else unknown
                if not decision.allowed:
                    _end(connection)
                elif connection.allowed:
                    connection.record.decision = decision

    def strange(self, asked: Asked) -> bool:
        """Whether our application has a connection there, to somebody whom nobody knew when it was made."""
        return asked in self._strangers

    def known(self, asked: Asked, ends: Mapping[tuple[str, int], Peer]) -> None:
        """The directory says something else: judge the connections to strangers again.

        A connection that was made to an end has reached whoever is there. One that was made to what the application
        asked for, when that was all that was known, may have reached each of them: where that is more than one, nobody
        knows whom, and it ends.

        :param ends: who answers now, by the address and port of each
        """
        anybody = {(peer, port) for (_, port), peer in ends.items()}
        for connection in tuple(self._strangers.get(asked, ())):
            record = connection.record
            place = record.destination.address, record.port
            there = {(ends[place], place[1])} if place in ends else set()
            reached = anybody if place == asked else there
            if record.closed or all(peer.workload is None for peer, _ in reached):
                continue
            peer, port = next(iter(reached))
            key = (Direction.OUTBOUND, peer, port)
            certain = len(reached) == 1 and not connection.by_operation  # operations were judged as a stranger's
            if certain and self._allows(key):
                group = self._groups.setdefault(key, set())
                group.add(connection)
                connection.regrouped(key, group)
            else:
                _end(connection)

    def estranged(self, asked: Asked | None, connection: Connection) -> None:
        """Somebody knows by now whom it has reached, or it is over."""
        if asked is None:
            return
        strangers = self._strangers[asked]
        strangers.remove(connection)
        if not strangers:
            del self._strangers[asked]

    def leave(self, key: _Key, group: set[Connection], connection: Connection) -> None:
        """Take a connection out of its group."""
        group.remove(connection)
        if not group:
            del self._groups[key]

    def _allows(self, key: _Key) -> bool:
        try:
            return self._ask(key).allowed
        except Exception:
            _log.exception("a fault of ours while a connection was judged again, which ends; please report it")
            return False

    def end_idle(self, looks: int) -> int:
        """End every connection that has carried nothing since this was called ``looks`` times before, one by one.

        :returns: how many
        """
        ended = 0
        for group in list(self._groups.values()):
            for connection in list(group):
                if connection.quiet() >= looks and not connection.record.closed:
                    ended += 1
                    self._soon(connection.end)
        return ended

    def end_all(self) -> None:
        """End every connection with a reset."""
        for group in list(self._groups.values()):
            for connection in list(group):
                _end(connection)

    def _soon(self, call: Callable[[], None]) -> None:
        self.guards.soon(call)

    def _half_closed_ended(self) -> None:
        self.guards.counters.half_closed_ended += 1

    def _ask(self, key: _Key) -> Decision:
        direction, peer, port = key
        if direction is Direction.OUTBOUND:
            return self._authority.outbound(peer, port)
        return self._authority.inbound(peer, port)

    def _ask_unknown(self, key: _Key, opening: Decision) -> Decision:
        """The decision on connections whose bytes are not looked at. An opening that only rules by operation allow is
        none of theirs."""
        direction, peer, port = key
        outbound = direction is Direction.OUTBOUND
        if outbound and peer.workload is not None:
            return opening  # the other end judges them
        if opening.allowed and self._authority.by_operation(peer, port, outbound=outbound):
            return self._authority.operation(peer, port, "", outbound=outbound)
        return opening


def new_record(
    direction: Direction, source: Peer, destination: Peer, port: int, decision: Decision = UNDECIDED
) -> Record:
    """A record that begins now."""
    return Record(direction, source, destination, port, decision, opened_at=time.time())


def report_refused(flows: FlowSink, record: Record) -> None:
    """Report a connection that was refused before there was anything to judge."""
    record.closed = True
    flows.opened(record)


def _end(connection: Connection) -> None:
    """End one of several: a fault at one of them is not the others'."""
    try:
        connection.end()
    except Exception:
        _log.exception("a fault of ours at the end of a connection; please report it")


def _nothing() -> None:
    """A connection that is over has no owner to call."""
