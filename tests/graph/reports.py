"""What the two ends of one edge report, for the tests of the live graph."""

from __future__ import annotations

from dataclasses import replace

from graph.flow import EdgeKey, Flow
from graph.model import Direction, Protocol, Verdict, WorkloadRef
from graph.service_graph import ServiceGraph
from graph.views import EdgeView
from tests.graph.strategies import flows

FRONT, CART, DB = (WorkloadRef("shop", name) for name in ("front", "cart", "db"))
KEY = EdgeKey(FRONT, CART, 8080)
OUT = Flow(
    FRONT,
    CART,
    8080,
    Protocol.TCP,
    Direction.OUTBOUND,
    "front-0",
    True,
    Verdict.ALLOW,
    Verdict.ALLOW,
    "allow-rule",
    source_identity="spiffe://td/front",
    destination_identity="spiffe://td/cart",
    connections=3,
    bytes_sent=30,
    bytes_received=300,
    first_seen=10.0,
    last_seen=20.0,
)
IN = replace(OUT, direction=Direction.INBOUND, reporter="cart-0")
NOW = 100.0


def edge(graph: ServiceGraph, key: EdgeKey = KEY) -> EdgeView:
    view = graph.edge(key)
    assert view is not None
    return view


def outside(number: int) -> WorkloadRef:
    return WorkloadRef.external(f"192.0.2.{number}")


small_flows = flows.map(
    lambda flow: replace(flow, connections=flow.connections % 1000, bytes_sent=flow.bytes_sent % 99)
)
