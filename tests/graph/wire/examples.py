"""A snapshot with something in every field, and what a refusal names."""

from __future__ import annotations

from collections.abc import Callable

from graph.errors import DecodeError
from graph.model import Mode, Origin, PortRange, Rule, Selector, Snapshot, WorkloadRef

RULE = Rule(
    "learned/1",
    Selector("shop", "front"),
    Selector("shop", "cart", cidr="10.0.0.0/8"),
    (PortRange(80, 90),),
    operations=("GET /",),
    evidence=("seen",),
)
EGRESS = Rule("override/1", Selector("shop", "cart"), Selector(host="api.example.com"), origin=Origin.OVERRIDE)
SNAPSHOT = Snapshot(
    WorkloadRef("shop", "cart"),
    "hedgerow.local",
    7,
    Mode.AUDIT,
    Mode.LEARN,
    rules=(RULE, EGRESS),
    protocols=((8080, "http"), (9090, "grpc")),
)


def refusal(read: Callable[[], object]) -> DecodeError | None:
    """The refusal that ``read`` ends in; None when it accepts. Any other exception is the test's failure."""
    try:
        read()
    except DecodeError as error:
        return error
    return None
