"""Connections and requests as the data path reports them."""

from __future__ import annotations

from graph.model import Direction, Peer, Verdict, WorkloadRef
from graph.policy import Decision, Reason
from sidecar.dataplane.contracts import Record, Request

ALLOWED = Decision(Verdict.ALLOW, Verdict.ALLOW, Reason.ALLOW_RULE)
LEARNING = Decision(Verdict.ALLOW, Verdict.DENY, Reason.LEARNING)
DENIED = Decision(Verdict.DENY, Verdict.DENY, Reason.NO_RULE)
FRONT = Peer(WorkloadRef("shop", "front"), "shop", "default", "10.0.0.1", True)
CART = Peer(WorkloadRef("shop", "cart"), "shop", "default", "10.0.0.2", True)
FRONT_ID = "spiffe://mesh/ns/shop/sa/default/wl/front"
CART_ID = "spiffe://mesh/ns/shop/sa/default/wl/cart"


def record(direction=Direction.INBOUND, source=FRONT, destination=CART, decision=ALLOWED, **changes):
    identities = {
        "source_identity": FRONT_ID if source.verified else "",
        "destination_identity": CART_ID if destination.verified else "",
    }
    return Record(direction, source, destination, 8080, decision, 1000.0, **(identities | changes))


def refused(decision=DENIED, **changes):
    return record(decision=decision, closed=True, **changes)


def request(on, status=200, protocol="http", decision=ALLOWED, **changes):
    values = {"operation": "GET /cart/{id}", "seconds": 0.012, "request_bytes": 300, "response_bytes": 4000} | changes
    return Request(record=on, decision=decision, protocol=protocol, status=status, **values)
