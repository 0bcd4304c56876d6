"""The controller's values as the JSON of ``docs/api.md``; nodes, edges and rules are written by :mod:`graph.export`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from controller.cluster_state import PROBLEM_KINDS, ClusterState
from controller.view import AuditEntry, Override, SidecarState
from graph.export import rule_document
from graph.flow import Flow
from graph.model import Snapshot
from graph.policy import Decision


def snapshot_document(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "workload": str(snapshot.workload),
        "trust_domain": snapshot.trust_domain,
        "version": snapshot.version,
        "inbound_mode": str(snapshot.inbound_mode),
        "outbound_mode": str(snapshot.outbound_mode),
        "inbound_tls": str(snapshot.inbound_tls),
        "issued_at": snapshot.issued_at,
        "protocols": {str(port): protocol for port, protocol in snapshot.protocols},
        "inspects": [str(one) for one in snapshot.inspects],
        "rules": [rule_document(rule) for rule in snapshot.rules],
    }


def flow_document(flow: Flow) -> dict[str, Any]:
    return {
        "source": str(flow.source),
        "destination": str(flow.destination),
        "port": flow.port,
        "protocol": str(flow.protocol),
        "direction": str(flow.direction),
        "reporter": flow.reporter,
        "verified": flow.verified,
        "verdict": str(flow.verdict),
        "pending": str(flow.pending),
        "reason": flow.reason,
        "rule_id": flow.rule_id,
        "operation": flow.operation,
        "requests": flow.requests,
        "connections": flow.connections,
        "failed": flow.failed,
        "bytes_sent": flow.bytes_sent,
        "bytes_received": flow.bytes_received,
        "first_seen": flow.first_seen,
        "last_seen": flow.last_seen,
    }


def override_document(override: Override, now: float) -> dict[str, Any]:
    return {
        "id": override.id,
        "effect": str(override.effect),
        "from": str(override.source),
        "to": str(override.destination),
        "port": override.port,
        "protocol": str(override.protocol),
        "operations": list(override.operations),
        "owner": override.owner,
        "reason": override.reason,
        "created_at": override.created_at,
        "expires_at": override.expires_at,
        "state": str(override.state(now)),
    }


def audit_document(entry: AuditEntry) -> dict[str, Any]:
    return {
        "sequence": entry.sequence,
        "at": entry.at,
        "actor": entry.actor,
        "action": entry.action,
        "subject": entry.subject,
        "detail": json.loads(entry.detail or "{}"),
        "hash": entry.hash,
    }


def sidecar_document(sidecar: SidecarState) -> dict[str, Any]:
    return {
        "instance": sidecar.instance,
        "workload": str(sidecar.workload),
        "connected": sidecar.connected,
        "held_version": sidecar.held_version,
        "pushed_version": sidecar.pushed_version,
        "nack": sidecar.nack,
        "last_seen": sidecar.last_seen,
        "software": sidecar.software,
        "shed": sidecar.shed,
        "refused": sidecar.refused,
    }


def cluster_document(cluster: ClusterState | None) -> dict[str, Any] | None:
    """How the controller fares on its cluster; None without one."""
    if cluster is None:
        return None
    return {
        "ready": not cluster.waiting,
        "parts": [asdict(part) for part in cluster.parts],
        "watches": [asdict(watch) for watch in cluster.watches],
        "inventories": cluster.inventories,
        "seconds": cluster.seconds,
        "troubles": {kind: cluster.troubles.get(kind, 0) for kind in PROBLEM_KINDS},
        "problems": list(cluster.problems),
    }


def decision_document(decision: Decision | None, mode: str) -> dict[str, Any] | None:
    """What one end decides; None where it has no sidecar. :param mode: of that end"""
    if decision is None:
        return None
    return {
        "verdict": str(decision.verdict),
        "pending": str(decision.pending),
        "reason": str(decision.reason),
        "mode": mode,
        "rule": rule_document(decision.rule) if decision.rule is not None else None,
    }
