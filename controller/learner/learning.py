"""When an edge moves on: the stability gate, approval, the rule it becomes, and when a workload is ready.

What never teaches: a flow that was denied; one that only an override, a static rule or the baseline allowed; one that
a static rule would deny. Only what the mode's default let through can found an edge, and only use keeps it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from controller.learner.edge import LearnedEdge
from controller.learner.states import EdgeEvent, EdgeState, after
from graph.errors import InvalidValue
from graph.flow import Flow
from graph.model import Origin, PortRange, Rule, Selector, Verdict
from graph.policy import Reason

#: The mode's default let these through. With a rule's id beside it, that rule (a static deny) spoke against it.
_FOUND = frozenset({Reason.LEARNING, Reason.AUDIT})
_KEEP = frozenset({Reason.LEARNING, Reason.AUDIT, Reason.ALLOW_RULE, Reason.ALLOW_OVERRIDE})


@dataclass(frozen=True, slots=True)
class Gate:
    """When an edge is steady enough, and when it is no longer used. All times in seconds.

    :param min_connections: connections that must have reached the application
    :param min_seconds: how long ago it must first have been seen
    :param quiet_seconds: how long a workload must have shown no new edge before it is ready to be closed
    :param stale_after: unused for so long, it is marked ``stale``; it still holds
    :param retire_after: unused for so long, it stops to hold
    """

    min_connections: int = 3
    min_seconds: float = 10.0
    quiet_seconds: float = 10.0
    stale_after: float = 7 * 86400.0
    retire_after: float = 30 * 86400.0

    def __post_init__(self) -> None:
        if self.min_connections < 1:
            raise InvalidValue("learning.min_connections", f"{self.min_connections} is below 1", "use 1 or more")
        for name in ("min_seconds", "quiet_seconds"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InvalidValue(f"learning.{name}", f"{getattr(self, name)} is no duration", "use 0 or more seconds")
        if not 0 < self.stale_after <= self.retire_after:
            raise InvalidValue(
                "learning.retire_after",
                f"stale_after={self.stale_after}, retire_after={self.retire_after}",
                "let an edge go stale before it is retired, both after more than 0 seconds",
            )


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether a workload can be closed without cutting what it uses, and if not, what is missing, for people."""

    ready: bool
    waiting_for: tuple[str, ...] = ()


def observe(edge: LearnedEdge | None, flow: Flow, now: float, *, source_replicas: int = 0) -> LearnedEdge | None:
    """Take one flow report into account.

    The caller has checked that the reporter is an instance of the end that it speaks for.

    :param edge: what is known of ``flow.edge``, None when nothing is
    :param source_replicas: how many instances the source has now, 0 when that is not known
    :returns: what is known after it; ``edge`` itself when the flow teaches nothing
    """
    if edge is not None and edge.key != flow.edge:
        raise InvalidValue("flow", f"{flow.edge} is not {edge.key}", "pass the edge that the flow belongs to")
    holds = edge is not None and edge.allows
    if not _teaches(flow, holds=holds):
        return edge
    if edge is None or edge.state is EdgeState.RETIRED:
        state = EdgeState.CANDIDATE if edge is None else after(edge.state, EdgeEvent.SEEN)
        edge = LearnedEdge(flow.edge, state, first_seen=now, last_seen=now, state_since=now)
    edge = edge.counted(flow, now, source_replicas)
    return _moved(edge, EdgeEvent.SEEN, now) if edge.state is EdgeState.STALE else edge


def _teaches(flow: Flow, *, holds: bool) -> bool:
    if flow.verdict is not Verdict.ALLOW:
        return False
    if holds:  # it is a rule already: that something else allowed it too does not make it unused
        return flow.reason in _KEEP
    return flow.reason in _FOUND and not flow.rule_id


def step(edge: LearnedEdge, gate: Gate, now: float, *, destination_meshed: bool = True) -> LearnedEdge:
    """Let time and evidence move an edge. Returns ``edge`` itself when nothing changes.

    :param destination_meshed: whether the destination has a sidecar by the inventory. Where it has, only what both ends
        say counts; in doubt leave it True
    """
    idle = now - edge.last_seen
    if idle >= gate.retire_after:
        return _moved(edge, EdgeEvent.GONE, now)
    if idle >= gate.stale_after:
        return _moved(edge, EdgeEvent.IDLE, now)
    if now - edge.first_seen < gate.min_seconds:
        return edge
    if edge.proved(destination_meshed=destination_meshed) >= gate.min_connections:
        return _moved(edge, EdgeEvent.PROVED, now)
    if edge.reached >= gate.min_connections:
        return _moved(edge, EdgeEvent.STEADY, now)
    return edge


def approve(edge: LearnedEdge, owner: str, now: float) -> LearnedEdge:
    """Let a person vouch for an edge, which makes it active.

    :raises graph.errors.InvalidValue: without an owner, or for an edge that is retired: nobody has seen it lately, an
        allow override with an expiry is the way to open it
    """
    if not owner:
        raise InvalidValue("owner", "empty", "name who approves")
    if edge.state is EdgeState.RETIRED:
        raise InvalidValue("edges", f"{edge.key} is retired", "open it with an allow override, and it is learned anew")
    if edge.state is EdgeState.ACTIVE:
        return edge
    return replace(_moved(edge, EdgeEvent.APPROVED, now), approved_by=owner, approved_at=now)


def _moved(edge: LearnedEdge, event: EdgeEvent, now: float) -> LearnedEdge:
    state = after(edge.state, event)
    return edge if state is edge.state else replace(edge, state=state, state_since=now)


def rule_of(edge: LearnedEdge) -> Rule:
    """The rule that an edge is, or would become if it were approved. Ask ``edge.allows`` whether it is one now."""
    return Rule(
        id=f"learned/{edge.key}",
        source=Selector.of(edge.key.source),
        destination=Selector.of(edge.key.destination),
        ports=(PortRange.single(edge.key.port),),
        protocol=edge.key.protocol,
        origin=Origin.LEARNED,
        owner=edge.approved_by or "learner",
        reason="approved by a person" if edge.approved_by else "learned from traffic",
        evidence=edge.evidence(),
    )


def waiting_for(edge: LearnedEdge, gate: Gate, now: float) -> str:
    """What an edge still needs to become active, in one sentence; empty when it needs nothing."""
    if edge.allows:
        return ""
    if edge.state is EdgeState.RETIRED:
        return f"{edge.key} is retired and would be learned anew"
    if edge.state is EdgeState.PROPOSED:
        return f"{edge.key} {_unproved(edge)} and needs approval"
    if not edge.reached:
        return f"{edge.key} never reached an application ({edge.failed} attempts)"
    missing = []
    if edge.reached < gate.min_connections:
        missing.append(f"{gate.min_connections - edge.reached} more connections")
    if now - edge.first_seen < gate.min_seconds:
        missing.append(f"{gate.min_seconds - (now - edge.first_seen):.0f} s more")
    return f"{edge.key} needs {' and '.join(missing) or 'its next check'}"


def _unproved(edge: LearnedEdge) -> str:
    if edge.external:
        return "has an end outside the inventory"
    if edge.outbound.reached and not edge.inbound.reached:
        return "was reported by its source alone"
    if edge.inbound.verified and not edge.outbound.verified:
        return "was reported by its destination alone"
    return "was used by a source that proved no identity"


def readiness(edges: Iterable[LearnedEdge], gate: Gate, now: float) -> Readiness:
    """Whether one workload can be closed: nothing new for ``gate.quiet_seconds``, and every edge in use holds.

    A candidate that never reached an application does not hold it up once it is quiet: closing cuts nothing there, and
    otherwise anybody who knocks on closed doors could keep the fence open.

    :param edges: all edges of which the workload is an end; retired ones do not count
    """
    used = sorted((edge for edge in edges if edge.state is not EdgeState.RETIRED), key=lambda edge: edge.key)
    if not used:
        return Readiness(False, ("no connection of it was learned yet",))
    waiting = [
        waiting_for(edge, gate, now)
        for edge in used
        if not edge.allows and (edge.reached or edge.state is EdgeState.PROPOSED)
    ]
    newest = max(edge.first_seen for edge in used)
    if now - newest < gate.quiet_seconds:
        waiting.append(f"{gate.quiet_seconds - (now - newest):.0f} s more without a new edge")
    return Readiness(not waiting, tuple(waiting))
