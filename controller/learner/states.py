"""The life of a learned edge, as a table. The governing rules:

1. An edge becomes ``active`` by itself only when it is proved: both ends are workloads, connections reached the
   application, and the sidecars of both ends, which the controller authenticated, say that they were mutual TLS (or the
   destination has no sidecar, and the source's own reported them). A sidecar that was broken into can claim anything of
   its own end, and must not open another's with it.
2. Everything else that looks steady is ``proposed`` and waits for a person: an end outside the inventory, a source
   that never proved who it is, an edge that one end alone speaks of. What never reached anything stays a
   ``candidate``.
3. Only ``active`` and ``stale`` edges are rules. A ``retired`` one is not, and when it is seen again it starts from
   nothing: old evidence and old approvals do not count.
4. A pair that is not in the table changes nothing.
"""

from __future__ import annotations

from enum import StrEnum


class EdgeState(StrEnum):
    """Where an edge is in its life."""

    CANDIDATE = "candidate"
    PROPOSED = "proposed"
    ACTIVE = "active"
    STALE = "stale"
    RETIRED = "retired"


class EdgeEvent(StrEnum):
    """What can happen to an edge."""

    SEEN = "seen"  #: it was used, after it was thought unused
    STEADY = "steady"  #: it passed the gate, but somebody has to vouch for it
    PROVED = "proved"  #: it passed the gate on proved connections alone
    APPROVED = "approved"  #: a person vouched for it
    IDLE = "idle"  #: it was not used for ``Gate.stale_after``
    GONE = "gone"  #: it was not used for ``Gate.retire_after``


TRANSITIONS: dict[EdgeState, dict[EdgeEvent, EdgeState]] = {
    EdgeState.CANDIDATE: {
        EdgeEvent.STEADY: EdgeState.PROPOSED,
        EdgeEvent.PROVED: EdgeState.ACTIVE,
        EdgeEvent.APPROVED: EdgeState.ACTIVE,
        EdgeEvent.GONE: EdgeState.RETIRED,
    },
    EdgeState.PROPOSED: {
        EdgeEvent.PROVED: EdgeState.ACTIVE,
        EdgeEvent.APPROVED: EdgeState.ACTIVE,
        EdgeEvent.GONE: EdgeState.RETIRED,
    },
    EdgeState.ACTIVE: {
        EdgeEvent.IDLE: EdgeState.STALE,
        EdgeEvent.GONE: EdgeState.RETIRED,
    },
    EdgeState.STALE: {
        EdgeEvent.SEEN: EdgeState.ACTIVE,
        EdgeEvent.APPROVED: EdgeState.ACTIVE,
        EdgeEvent.GONE: EdgeState.RETIRED,
    },
    EdgeState.RETIRED: {
        EdgeEvent.SEEN: EdgeState.CANDIDATE,
    },
}


def after(state: EdgeState, event: EdgeEvent) -> EdgeState:
    """The state that follows; the same one when the table says nothing."""
    return TRANSITIONS[state].get(event, state)
