"""What a store is given in its tests, and a row that a program of ours would have written."""

from __future__ import annotations

from dataclasses import replace

from controller import audit, join_tokens
from controller.learner import LearnedEdge, observe, step
from controller.store import Mark, Position, SqliteStore, Writes, schema
from controller.view import Override, WorkloadMode
from graph.accounts import EdgeTotals
from graph.flow import EdgeKey
from graph.model import Direction, InboundTls, Mode, Protocol, Verdict
from graph.views import EdgeVerdict, OperationView
from graph.windows import Counts
from tests.controller.mesh import CART, FRONT, GATE, NOW, REDIS, flow, instance, inventory

KEY = EdgeKey(FRONT, CART, 8080)


def learned() -> LearnedEdge:
    edge = observe(None, flow(FRONT, CART, reporter="cart-0"), NOW, source_replicas=1)
    assert edge is not None
    return step(edge, GATE, NOW + 20)


def override() -> Override:
    return Override(
        "override/1",
        Verdict.DENY,
        FRONT,
        REDIS,
        None,
        Protocol.TCP,
        "ann",
        "why",
        NOW,
        NOW + 60,
        NOW + 1,
        "bob",
        "x",
        True,
        ("DELETE /cart/{id}", "PUT /"),
    )


def everything() -> Writes:
    entry = audit.append(None, NOW, "ann", "mode.set", "shop/cart", {"reason": "ä"})
    totals = EdgeTotals(
        KEY,
        Direction.INBOUND,
        Counts(5, 5, 1, 2, 3, 4, 2**63 - 1),
        EdgeVerdict.WOULD_DENY,
        NOW,
        NOW + 1,
        ("a",),
        ("b",),
    )
    return Writes(
        generation=7,
        trust_domain="hedgerow.test",
        inventory=inventory().to_dict(),
        inventory_revision=3,
        edges={KEY: learned()},
        traffic={(KEY, Direction.INBOUND): replace(totals, reporters=("cart-1", "cart-0"), judged_at=NOW)},
        windows={(KEY, 10, 1_700_000_000): Counts(1, 2, 3, 4, 5, 6, 7)},
        operations={KEY: (OperationView("GET /ä/{id}", 1, 2, 3, NOW, NOW + 1), OperationView("other", 2**63 - 1))},
        modes={CART: WorkloadMode(Mode.ENFORCE, Mode.AUDIT, InboundTls.STRICT)},
        overrides={"override/1": override()},
        tokens={token.id: token for _, token in [join_tokens.make(instance("cart-0"), 60.0, "ann", NOW)]},
        positions={("shop/cart-0", "boot"): Position(12, NOW)},
        marks={CART: Mark(4, "d" * 64, NOW)},
        documents={("declaration", "AccessOverride/shop/a"): {"ä": [1, None]}, ("fence", "shop"): {}},
        audit=[entry, audit.append(entry, NOW + 1, "learner", "edge.active", str(KEY), {})],
    )


def rechecked(store: SqliteStore, table: str, column: str, value: object) -> None:
    """Put a value into every row of a table, with the checksum of it: what a program of ours would have written."""
    found = schema.metadata.tables[table]
    names = ", ".join(each.name for each in found.columns[:-1])
    with store._open().begin():
        store._open().exec_driver_sql(f"UPDATE {table} SET {column} = ?", (value,))
        store._open().exec_driver_sql(f"UPDATE {table} SET checksum = hedgerow_checksum('{table}', {names})")
