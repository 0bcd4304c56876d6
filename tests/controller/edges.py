"""An edge of two workloads, as a learner sees it through reports."""

from __future__ import annotations

from controller.learner import EdgeState, Gate, LearnedEdge, Tally
from graph.flow import EdgeKey, Flow
from graph.model import Direction, Protocol, Verdict, WorkloadRef
from graph.policy import Reason

FRONT, CART = WorkloadRef("shop", "front"), WorkloadRef("shop", "cart")
OUTSIDE = WorkloadRef.external("192.0.2.7")
FRONT_ID = "spiffe://hedgerow.local/ns/shop/sa/default/wl/front"
GATE = Gate(min_connections=3, min_seconds=10, quiet_seconds=20, stale_after=1000, retire_after=2000)
START = 1_000_000.0


def flow(**changes: object) -> Flow:
    """Three connections that cart took from front, whose identity was proved."""
    fields: dict[str, object] = {
        "source": FRONT,
        "destination": CART,
        "port": 8080,
        "protocol": Protocol.TCP,
        "direction": Direction.INBOUND,
        "reporter": "cart-1",
        "verified": True,
        "verdict": Verdict.ALLOW,
        "pending": Verdict.DENY,
        "reason": Reason.LEARNING,
        "source_identity": FRONT_ID,
        "connections": 3,
    }
    return Flow(**{**fields, **changes})


def sent(**changes: object) -> Flow:
    """The same as front's own sidecar tells it."""
    return flow(**{"direction": Direction.OUTBOUND, "reporter": "front-1", "source_identity": "", **changes})


def edge_in(state: EdgeState, **changes: object) -> LearnedEdge:
    fields: dict[str, object] = {
        "key": EdgeKey(FRONT, CART, 8080),
        "state": state,
        "first_seen": START,
        "last_seen": START,
        "state_since": START,
        "inbound": Tally(5, 0, 5),
    }
    return LearnedEdge(**{**fields, **changes})


C, P, A, S, R = EdgeState
