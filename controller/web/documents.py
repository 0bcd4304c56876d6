"""The values of the controller as the JSON of ``docs/api.md``. Pure: a view in, dictionaries out."""

from __future__ import annotations

import json
from typing import Any

from controller.view import AuditEntry, Override, SidecarState
from graph.model import Flow, Rule, Snapshot
from graph.policy import Decision
from graph.views import EdgeView, GraphView, NodeView


def rule_document(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.id,
        "from": str(rule.source),
        "to": str(rule.destination),
        "ports": [str(ports) for ports in rule.ports],
        "protocol": str(rule.protocol),
        "operations": list(rule.operations),
        "effect": str(rule.effect),
        "origin": str(rule.origin),
        "owner": rule.owner,
        "reason": rule.reason,
        "expires_at": rule.expires_at or None,
        "evidence": list(rule.evidence),
    }


def snapshot_document(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "workload": str(snapshot.workload),
        "trust_domain": snapshot.trust_domain,
        "version": snapshot.version,
        "inbound_mode": str(snapshot.inbound_mode),
        "outbound_mode": str(snapshot.outbound_mode),
        "inbound_tls": str(snapshot.inbound_tls),
        "issued_at": snapshot.issued_at,
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


def decision_document(decision: Decision | None, mode: str) -> dict[str, Any] | None:
    if decision is None:
        return None
    return {
        "verdict": str(decision.verdict),
        "pending": str(decision.pending),
        "reason": str(decision.reason),
        "mode": mode,
        "rule": rule_document(decision.rule) if decision.rule is not None else None,
    }


def node_document(node: NodeView) -> dict[str, Any]:
    return {
        "id": node.id,
        "namespace": node.ref.namespace,
        "name": node.ref.name,
        "kind": node.kind,
        "meshed": node.meshed,
        "instances": node.instances,
        "identity": node.identity,
        "inbound_mode": node.inbound_mode,
        "outbound_mode": node.outbound_mode,
        "external": node.external,
    }


def edge_document(edge: EdgeView) -> dict[str, Any]:
    return {
        "id": edge.id,
        "from": str(edge.source),
        "to": str(edge.destination),
        "port": edge.port,
        "protocol": str(edge.protocol),
        "app_protocol": edge.app_protocol,
        "state": edge.state,
        "verdict": str(edge.verdict),
        "connections": edge.connections,
        "denied": edge.denied,
        "would_deny": edge.would_deny,
        "failed": edge.failed,
        "bytes_sent": edge.bytes_sent,
        "bytes_received": edge.bytes_received,
        "verified": edge.verified,
        "first_seen": edge.first_seen,
        "last_seen": edge.last_seen,
        "source_identities": list(edge.source_identities),
        "destination_identities": list(edge.destination_identities),
        "replicas": edge.replicas,
        "evidence": list(edge.evidence),
        "rule": rule_document(edge.rule) if edge.rule is not None else None,
    }


def graph_document(graph: GraphView) -> dict[str, Any]:
    return {
        "generation": graph.generation,
        "at": graph.at,
        "nodes": [node_document(node) for node in graph.nodes],
        "edges": [edge_document(edge) for edge in graph.edges],
    }
