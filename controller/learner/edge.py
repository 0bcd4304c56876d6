"""One learned edge and its evidence: the value, its sentences for people, and its form for the store.

Both ends report the same connections, so the two accounts are kept apart and never added: what both say is proved, the
larger one is how often the edge was used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Self

from certs.errors import CertError
from certs.spiffe import SpiffeId
from controller.learner.states import EdgeState
from graph.errors import InvalidValue
from graph.flow import EdgeKey, Flow
from graph.model import Direction, WorkloadRef

#: How many instance names and identities an edge remembers. More are not evidence, only memory.
MAX_REPORTERS = 64
MAX_IDENTITIES = 16


@dataclass(frozen=True, slots=True)
class Tally:
    """What the sidecars of one end counted.

    :param connections: connections that were allowed
    :param failed: those of them that did not reach the application
    :param verified: those of them that reached it over mutual TLS
    """

    connections: int = 0
    failed: int = 0
    verified: int = 0

    @property
    def reached(self) -> int:
        return self.connections - self.failed

    def plus(self, connections: int, failed: int, *, verified: bool) -> Tally:
        """Add one report. A failure may be reported later than the connection that failed, but never beyond them."""
        total = self.connections + connections
        failures = min(self.failed + failed, total)
        proved = self.verified + (connections - failed if verified else 0)
        return Tally(total, failures, min(max(proved, 0), total - failures))


@dataclass(frozen=True, slots=True)
class LearnedEdge:
    """An edge, how far it has come, and why. Times are seconds since the epoch, by the controller's clock: a
    sidecar's word on when something was first seen would let it skip the gate.

    :param outbound: what the source's sidecars counted; ``inbound``: what the destination's did
    :param source_reporters: instances of the source that reported it; ``destination_reporters``: of the destination
    :param source_replicas: how many instances the source had when it was last seen; 0 when that is not known
    :param identities: SPIFFE IDs that the source proved to the destination
    :param approved_by: the person who vouched for it, empty when nobody had to
    :param state_since: when it came into ``state``
    """

    key: EdgeKey
    state: EdgeState
    first_seen: float
    last_seen: float
    state_since: float
    outbound: Tally = Tally()
    inbound: Tally = Tally()
    source_reporters: frozenset[str] = frozenset()
    destination_reporters: frozenset[str] = frozenset()
    source_replicas: int = 0
    identities: frozenset[str] = frozenset()
    approved_by: str = ""
    approved_at: float = 0.0

    @property
    def allows(self) -> bool:
        """Whether it is a rule now."""
        return self.state in (EdgeState.ACTIVE, EdgeState.STALE)

    @property
    def connections(self) -> int:
        return max(self.outbound.connections, self.inbound.connections)

    @property
    def failed(self) -> int:
        return max(self.outbound.failed, self.inbound.failed)

    @property
    def verified(self) -> int:
        """How many connections were mutual TLS, by the account of the end that saw more of them."""
        return max(self.outbound.verified, self.inbound.verified)

    @property
    def reached(self) -> int:
        """How many connections reached the application."""
        return max(self.outbound.reached, self.inbound.reached)

    @property
    def reporters(self) -> frozenset[str]:
        return self.source_reporters | self.destination_reporters

    @property
    def replicas(self) -> int:
        """How many replicas of the source used it, as far as they report themselves."""
        return len(self.source_reporters)

    @property
    def external(self) -> bool:
        return self.key.source.is_external or self.key.destination.is_external

    def proved(self, *, destination_meshed: bool) -> int:
        """How many connections prove the edge: see rule 1 of :mod:`controller.learner.states`."""
        if self.external:
            return 0
        # One end alone could be lying, to open a way in or out of a workload that is not its own.
        return min(self.inbound.verified, self.outbound.verified) if destination_meshed else self.outbound.reached

    def counted(self, flow: Flow, now: float, source_replicas: int) -> LearnedEdge:
        """Add one flow report, which was already found worth counting."""
        inbound = flow.direction is Direction.INBOUND
        proved = flow.verified and (not inbound or proves(flow.source_identity, flow.source))
        mine = self.inbound if inbound else self.outbound
        tally = mine.plus(flow.connections, flow.failed, verified=proved)
        identities = self.identities
        if inbound and proved:
            identities = _bounded(identities, flow.source_identity, MAX_IDENTITIES)
        return replace(
            self,
            last_seen=max(self.last_seen, now),
            outbound=self.outbound if inbound else tally,
            inbound=tally if inbound else self.inbound,
            source_reporters=self.source_reporters
            if inbound
            else _bounded(self.source_reporters, flow.reporter, MAX_REPORTERS),
            destination_reporters=_bounded(self.destination_reporters, flow.reporter, MAX_REPORTERS)
            if inbound
            else self.destination_reporters,
            source_replicas=source_replicas or self.source_replicas,
            identities=identities,
        )

    def evidence(self) -> tuple[str, ...]:
        """Why this edge is what it is, in short sentences: how often, by whom, since when, as whom, vouched by whom."""
        times = f"{self.connections} connection{_s(self.connections)} since {_day(self.first_seen)}"
        said = [times + (f", {self.failed} of them failed" if self.failed else "")]
        if self.source_reporters:
            many = f"{self.replicas}{'+' if self.replicas >= MAX_REPORTERS else ''}"
            said.append(
                f"used by {many} of {max(self.source_replicas, self.replicas)} replicas of {self.key.source}"
                if self.source_replicas
                else f"used by {many} replica{_s(self.replicas)} of {self.key.source}"
            )
        if self.identities:
            said.append(f"verified by mutual TLS as {' and '.join(sorted(self.identities))}")
        elif not self.external and self.inbound.connections:
            said.append(f"{self.key.source} never proved its identity to {self.key.destination}")
        if self.key.source.is_external:
            said.append(f"{self.key.source.name} is outside the inventory")
        if self.key.destination.is_external:
            said.append(f"{self.key.destination.name} is outside the inventory")
        if self.approved_by:
            said.append(f"approved by {self.approved_by} on {_day(self.approved_at)}")
        if self.state is EdgeState.STALE:
            said.append(f"not used since {_day(self.last_seen)}")
        return tuple(said)

    def to_dict(self) -> dict[str, object]:
        """Its form for the store, JSON types only."""
        return {
            "edge": str(self.key),
            "state": str(self.state),
            "first_seen": self.first_seen,
            "last_seen": self.last_seen,
            "state_since": self.state_since,
            "outbound": _tally_list(self.outbound),
            "inbound": _tally_list(self.inbound),
            "source_reporters": sorted(self.source_reporters),
            "destination_reporters": sorted(self.destination_reporters),
            "source_replicas": self.source_replicas,
            "identities": sorted(self.identities),
            "approved_by": self.approved_by,
            "approved_at": self.approved_at,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Self:
        """Read what :meth:`to_dict` wrote, and nothing else.

        :raises graph.errors.InvalidValue: naming the field that is missing, unknown or of the wrong type
        """
        stored = _Fields(data)
        stored.only(_STORED)
        state = stored.text("state")
        if state not in EdgeState:
            raise InvalidValue("learned.state", f"{state!r} is not a state", f"use one of {', '.join(EdgeState)}")
        return cls(
            key=EdgeKey.parse(stored.text("edge")),
            state=EdgeState(state),
            first_seen=stored.time("first_seen"),
            last_seen=stored.time("last_seen"),
            state_since=stored.time("state_since"),
            outbound=stored.tally("outbound"),
            inbound=stored.tally("inbound"),
            source_reporters=stored.names("source_reporters", MAX_REPORTERS),
            destination_reporters=stored.names("destination_reporters", MAX_REPORTERS),
            source_replicas=stored.count("source_replicas"),
            identities=stored.names("identities", MAX_IDENTITIES),
            approved_by=stored.text("approved_by"),
            approved_at=stored.time("approved_at"),
        )


_STORED = frozenset({field.name for field in fields(LearnedEdge)} - {"key"} | {"edge"})


def proves(identity: str, ref: WorkloadRef) -> bool:
    """Whether a SPIFFE ID names this workload. One that stops at the account proves an account, not a workload."""
    try:
        spiffe_id = SpiffeId.parse(identity)
    except CertError:
        return False
    return bool(spiffe_id.workload) and (spiffe_id.namespace, spiffe_id.workload) == (ref.namespace, ref.name)


class _Fields:
    """Reads a stored edge strictly: what we did not write ourselves, we do not guess at."""

    def __init__(self, data: Mapping[str, object]) -> None:
        self._data = data

    def only(self, known: frozenset[str]) -> None:
        for name in sorted(known.symmetric_difference(map(str, self._data))):
            problem = "missing" if name in known else "not a field of a learned edge"
            raise InvalidValue(f"learned.{name}", problem, "restore the database from a backup of this version")

    def _wrong(self, name: str, wanted: str) -> InvalidValue:
        return InvalidValue(f"learned.{name}", f"{self._data[name]!r:.80} is not {wanted}", "restore it from a backup")

    def text(self, name: str) -> str:
        value = self._data[name]
        if not isinstance(value, str):
            raise self._wrong(name, "text")
        return value

    def count(self, name: str) -> int:
        return self._natural(name, self._data[name])

    def _natural(self, name: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self._wrong(name, "a number from 0")
        return value

    def time(self, name: str) -> float:
        value = self._data[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
            raise self._wrong(name, "a time in seconds since the epoch")
        return float(value)

    def names(self, name: str, limit: int) -> frozenset[str]:
        value = self._data[name]
        if not isinstance(value, list) or len(value) > limit or not all(isinstance(item, str) for item in value):
            raise self._wrong(name, f"a list of at most {limit} names")
        return frozenset(value)

    def tally(self, name: str) -> Tally:
        value = self._data[name]
        if not isinstance(value, list) or len(value) != 3:
            raise self._wrong(name, "connections, failed and verified")
        tally = Tally(*(self._natural(name, item) for item in value))
        if tally.failed + tally.verified > tally.connections:
            raise self._wrong(name, "a tally that adds up")
        return tally


def _tally_list(tally: Tally) -> list[int]:
    return [tally.connections, tally.failed, tally.verified]


def _bounded(names: frozenset[str], name: str, limit: int) -> frozenset[str]:
    return names if not name or name in names or len(names) >= limit else names | {name}


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")
