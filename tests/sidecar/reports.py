"""What a sidecar reports of one connection."""

from __future__ import annotations

from graph.flow import Flow
from graph.model import Direction, Protocol, Verdict, WorkloadRef

FLOW = Flow(
    source=WorkloadRef("shop", "front"),
    destination=WorkloadRef("shop", "cart"),
    port=8080,
    protocol=Protocol.TCP,
    direction=Direction.INBOUND,
    reporter="cart-1",
    verified=True,
    verdict=Verdict.ALLOW,
    pending=Verdict.ALLOW,
    reason="allow-rule",
    rule_id="learned/1",
    connections=1,
    bytes_sent=10,
    bytes_received=20,
    first_seen=100.0,
    last_seen=101.0,
)
