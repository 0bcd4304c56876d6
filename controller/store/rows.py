"""Values to rows and back. A row that does not read back as a value is damage, never a guess."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from controller.errors import StoreError
from controller.join_tokens import JoinToken
from controller.learner import LearnedEdge
from controller.store.records import Mark, Position
from controller.view import AuditEntry, Override, WorkloadMode
from graph.accounts import EdgeTotals
from graph.flow import EdgeKey
from graph.model import Direction, InboundTls, Mode, Protocol, Verdict, WorkloadRef
from graph.outside import parse_end
from graph.views import EdgeVerdict, OperationView
from graph.windows import COUNT_NAMES, Counts

type Row = Mapping[str, Any]


def dumps(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def read[T](table: str, row: Row, reader: Callable[[Row], T]) -> T:
    """Read one row.

    :raises StoreError: naming the table and the row when it is not what was written
    """
    try:
        return reader(row)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        key = next(iter(row.values()), "")
        raise StoreError(
            f"the table {table} has a damaged row {key!r:.120}: {error}", remedy="restore the database from a backup"
        ) from None


def learned_row(edge: LearnedEdge) -> dict[str, Any]:
    return {"edge": str(edge.key), "state": str(edge.state), "learned": dumps(edge.to_dict())}


def learned_of(row: Row) -> LearnedEdge:
    edge = LearnedEdge.from_dict(json.loads(row["learned"]))
    if str(edge.key) != row["edge"]:
        raise ValueError(f"it speaks of {edge.key}")
    return edge


def counts_row(counts: Counts) -> dict[str, int]:
    return {name: getattr(counts, name) for name in COUNT_NAMES}


def counts_of(row: Row) -> Counts:
    return Counts(**{name: int(row[name]) for name in COUNT_NAMES})


def traffic_row(totals: EdgeTotals) -> dict[str, Any]:
    return {
        "edge": str(totals.key),
        "direction": str(totals.direction),
        **counts_row(totals.counts),
        "verdict": str(totals.verdict),
        "first_seen": totals.first_seen,
        "last_seen": totals.last_seen,
        "judged_at": totals.judged_at,
        "source_identities": dumps(totals.source_identities),
        "destination_identities": dumps(totals.destination_identities),
        "reporters": dumps(totals.reporters),
    }


def traffic_of(row: Row) -> EdgeTotals:
    return EdgeTotals(
        EdgeKey.parse(row["edge"]),
        Direction(row["direction"]),
        counts_of(row),
        EdgeVerdict(row["verdict"]),
        row["first_seen"],
        row["last_seen"],
        tuple(json.loads(row["source_identities"])),
        tuple(json.loads(row["destination_identities"])),
        tuple(json.loads(row["reporters"])),
        row["judged_at"],
    )


def window_row(key: tuple[EdgeKey, int, int], counts: Counts) -> dict[str, Any]:
    return {"edge": str(key[0]), "width": key[1], "start": key[2], **counts_row(counts)}


def window_of(row: Row) -> tuple[tuple[EdgeKey, int, int], Counts]:
    return (EdgeKey.parse(row["edge"]), int(row["width"]), int(row["start"])), counts_of(row)


def operations_row(key: EdgeKey, views: tuple[OperationView, ...]) -> dict[str, Any]:
    asked = [
        [view.name, view.requests, view.denied, view.would_deny, view.first_seen, view.last_seen] for view in views
    ]
    return {"edge": str(key), "asked": dumps(asked)}


def operations_of(row: Row) -> tuple[EdgeKey, tuple[OperationView, ...]]:
    views = tuple(
        OperationView(str(name), int(requests), int(denied), int(would_deny), float(first_seen), float(last_seen))
        for name, requests, denied, would_deny, first_seen, last_seen in json.loads(row["asked"])
    )
    return EdgeKey.parse(row["edge"]), views


def mode_row(ref: WorkloadRef, mode: WorkloadMode) -> dict[str, Any]:
    return {
        "workload": str(ref),
        "inbound": str(mode.inbound),
        "outbound": str(mode.outbound),
        "inbound_tls": str(mode.inbound_tls),
    }


def mode_of(row: Row) -> tuple[WorkloadRef, WorkloadMode]:
    mode = WorkloadMode(Mode(row["inbound"]), Mode(row["outbound"]), InboundTls(row["inbound_tls"]))
    return WorkloadRef.parse(row["workload"]), mode


def override_row(override: Override) -> dict[str, Any]:
    return {
        "id": override.id,
        "effect": str(override.effect),
        "source": str(override.source),
        "destination": str(override.destination),
        "port": override.port,
        "protocol": str(override.protocol),
        "owner": override.owner,
        "reason": override.reason,
        "created_at": override.created_at,
        "expires_at": override.expires_at,
        "revoked_at": override.revoked_at,
        "revoked_by": override.revoked_by,
        "revoke_reason": override.revoke_reason,
        "ended": int(override.ended),
        "operations": dumps(override.operations),
    }


def override_of(row: Row) -> Override:
    return Override(
        row["id"],
        Verdict(row["effect"]),
        parse_end(row["source"]),
        parse_end(row["destination"]),
        row["port"],
        Protocol(row["protocol"]),
        row["owner"],
        row["reason"],
        row["created_at"],
        row["expires_at"],
        row["revoked_at"],
        row["revoked_by"],
        row["revoke_reason"],
        bool(row["ended"]),
        tuple(json.loads(row["operations"])),
    )


def token_row(token: JoinToken) -> dict[str, Any]:
    return {
        "id": token.id,
        "digest": token.digest,
        "workload": str(token.workload),
        "instance": token.instance,
        "owner": token.owner,
        "created_at": token.created_at,
        "expires_at": token.expires_at,
        "used_at": token.used_at,
    }


def token_of(row: Row) -> JoinToken:
    return JoinToken(
        row["id"],
        row["digest"],
        WorkloadRef.parse(row["workload"]),
        row["instance"],
        row["owner"],
        row["created_at"],
        row["expires_at"],
        row["used_at"],
    )


def position_row(key: tuple[str, str], position: Position) -> dict[str, Any]:
    return {"instance": key[0], "boot_id": key[1], "sequence": position.sequence, "at": position.at}


def position_of(row: Row) -> tuple[tuple[str, str], Position]:
    return (row["instance"], row["boot_id"]), Position(int(row["sequence"]), float(row["at"]))


def mark_row(ref: WorkloadRef, mark: Mark) -> dict[str, Any]:
    return {"workload": str(ref), "version": mark.version, "digest": mark.digest, "issued_at": mark.issued_at}


def mark_of(row: Row) -> tuple[WorkloadRef, Mark]:
    return WorkloadRef.parse(row["workload"]), Mark(int(row["version"]), row["digest"], row["issued_at"])


def document_row(key: tuple[str, str], document: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": key[0], "key": key[1], "document": dumps(document)}


def document_of(row: Row) -> tuple[tuple[str, str], Mapping[str, Any]]:
    document = json.loads(row["document"])
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")
    return (row["kind"], row["key"]), document


def audit_row(entry: AuditEntry) -> dict[str, Any]:
    return {
        "sequence": entry.sequence,
        "at": entry.at,
        "actor": entry.actor,
        "action": entry.action,
        "subject": entry.subject,
        "detail": entry.detail,
        "previous": entry.previous,
        "hash": entry.hash,
    }


def audit_of(row: Row) -> AuditEntry:
    return AuditEntry(
        int(row["sequence"]),
        float(row["at"]),
        row["actor"],
        row["action"],
        row["subject"],
        row["detail"],
        row["previous"],
        row["hash"],
    )
