"""A graph view as JSON, DOT, GraphML, Mermaid or SVG.

Names come from inventories and from traffic; each format escapes them in its own way, so that no name can end a string,
open an element or add a statement. The JSON documents are those of ``docs/api.md``.
"""

from __future__ import annotations

import json
from typing import Any

import networkx as nx

from graph.model import Rule
from graph.svg import STYLES, to_svg
from graph.text import printable
from graph.views import EdgeVerdict, EdgeView, GraphView, NodeView, OperationView

__all__ = [
    "CONTENT_TYPES",
    "FORMATS",
    "edge_document",
    "graph_document",
    "node_document",
    "rule_document",
    "to_dot",
    "to_graphml",
    "to_json",
    "to_mermaid",
    "to_svg",
]

type Document = dict[str, Any]


# JSON -----------------------------------------------------------------------------------------------------------------


def rule_document(rule: Rule) -> Document:
    return {
        "id": rule.id,
        "from": str(rule.source),
        "to": str(rule.destination),
        "ports": [str(ports) for ports in rule.ports],
        "protocol": rule.protocol.value,
        "operations": list(rule.operations),
        "effect": rule.effect.value,
        "origin": rule.origin.value,
        "owner": rule.owner,
        "reason": rule.reason,
        "expires_at": rule.expires_at or None,
        "evidence": list(rule.evidence),
    }


def node_document(node: NodeView) -> Document:
    return {
        "id": node.id,
        "namespace": node.ref.namespace,
        "name": node.ref.name,
        "kind": node.kind,
        "meshed": node.meshed,
        "transport": node.transport.value,
        "instances": node.instances,
        "identity": node.identity,
        "inbound_mode": node.inbound_mode,
        "outbound_mode": node.outbound_mode,
        "external": node.external,
    }


def operation_document(operation: OperationView) -> Document:
    return {
        "operation": operation.name,
        "requests": operation.requests,
        "denied": operation.denied,
        "would_deny": operation.would_deny,
        "first_seen": operation.first_seen,
        "last_seen": operation.last_seen,
    }


def edge_document(edge: EdgeView) -> Document:
    return {
        "id": edge.id,
        "from": str(edge.source),
        "to": str(edge.destination),
        "port": edge.port,
        "protocol": edge.protocol.value,
        "app_protocol": edge.app_protocol,
        "state": edge.state,
        "verdict": edge.verdict.value,
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
        "operations": [operation_document(operation) for operation in edge.operations],
        "evidence": list(edge.evidence),
        "rule": rule_document(edge.rule) if edge.rule is not None else None,
    }


def graph_document(view: GraphView) -> Document:
    return {
        "generation": view.generation,
        "at": view.at,
        "nodes": [node_document(node) for node in view.nodes],
        "edges": [edge_document(edge) for edge in view.edges],
    }


def to_json(view: GraphView) -> str:
    return json.dumps(graph_document(view), indent=2) + "\n"


# DOT ------------------------------------------------------------------------------------------------------------------


def _quoted(text: str) -> str:
    """A DOT string. Graphviz reads backslash escapes and HTML entities in labels, also in quoted ones."""
    text = printable(text).replace("\\", "\\\\").replace('"', '\\"').replace("&", "&amp;")
    return f'"{text}"'


def to_dot(view: GraphView) -> str:
    """The graph in Graphviz' language, left to right, one cluster for each namespace."""
    lines = [
        "digraph hedgerow {",
        "  rankdir=LR;",
        '  node [shape=box, style=rounded, fontname="sans-serif"];',
        '  edge [fontname="sans-serif", fontsize=10];',
    ]
    for index, (namespace, nodes) in enumerate(_by_namespace(view)):
        indent = "  "
        if not nodes[0].external:
            lines += [f"  subgraph cluster_{index} {{", f"    label={_quoted(namespace)};"]
            indent = "    "
        for node in nodes:
            style = "rounded" if node.meshed else "rounded,dashed"
            lines.append(f'{indent}{_quoted(node.id)} [label={_quoted(node.ref.name)}, style="{style}"];')
        if not nodes[0].external:
            lines.append("  }")
    for edge in view.edges:
        colour, dash = STYLES[edge.verdict]
        style = "dashed" if dash else "solid"
        lines.append(
            f"  {_quoted(str(edge.source))} -> {_quoted(str(edge.destination))}"
            f' [label={_quoted(f"{edge.port}/{edge.protocol}")}, color="{colour}", style={style},'
            f" tooltip={_quoted(f'{edge.verdict}, {edge.connections} connections')}];"
        )
    return "\n".join([*lines, "}"]) + "\n"


# GraphML --------------------------------------------------------------------------------------------------------------


def to_graphml(view: GraphView) -> str:
    """The graph as GraphML; lists are joined by spaces, as identities and instance names hold none, and sentences and
    operations by a dot."""
    graph: nx.MultiDiGraph[str] = nx.MultiDiGraph()
    for node in view.nodes:
        graph.add_node(printable(node.id), **_scalars(node_document(node)))
    for edge in view.edges:
        document = edge_document(edge)
        document["rule"] = edge.rule.id if edge.rule is not None else ""
        document["evidence"] = " · ".join(edge.evidence)
        document["operations"] = " · ".join(operation.name for operation in edge.operations)
        graph.add_edge(
            printable(str(edge.source)), printable(str(edge.destination)), key=printable(edge.id), **_scalars(document)
        )
    text = "\n".join(nx.generate_graphml(graph))
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _scalars(document: Document) -> dict[str, str | int | float | bool]:
    scalars: dict[str, str | int | float | bool] = {}
    for name, value in document.items():
        if isinstance(value, list):
            value = " ".join(value)
        # "id", "source" and "target" are attributes of the format itself
        scalars["name_of" if name == "id" else name] = printable(value) if isinstance(value, str) else value
    return scalars


# Mermaid --------------------------------------------------------------------------------------------------------------


def _entities(text: str) -> str:
    """Mermaid text: everything but letters, digits and a few harmless marks as an entity code."""
    safe = " ./:_-×·"
    return "".join(mark if mark.isalnum() or mark in safe else f"#{ord(mark)};" for mark in printable(text))


def to_mermaid(view: GraphView) -> str:
    """The graph as a Mermaid flowchart, left to right, one subgraph for each namespace."""
    lines = ["flowchart LR"]
    names: dict[str, str] = {}
    for index, (namespace, nodes) in enumerate(_by_namespace(view)):
        if not nodes[0].external:
            lines.append(f'  subgraph ns{index}["{_entities(namespace)}"]')
        for node in nodes:
            names[node.id] = f"w{len(names)}"
            opening, closing = ("[", "]") if node.meshed else ("([", "])")
            lines.append(f'    {names[node.id]}{opening}"{_entities(node.ref.name)}"{closing}')
        if not nodes[0].external:
            lines.append("  end")
    for edge in view.edges:
        arrow = "-->" if edge.verdict is EdgeVerdict.ALLOW else "-.->"
        label = _entities(f"{edge.port}/{edge.protocol}")
        lines.append(f'  {names[str(edge.source)]} {arrow}|"{label}"| {names[str(edge.destination)]}')
    for verdict, (colour, _) in STYLES.items():
        numbers = [str(number) for number, edge in enumerate(view.edges) if edge.verdict is verdict]
        if numbers:
            lines.append(f"  linkStyle {','.join(numbers)} stroke:{colour}")
    return "\n".join(lines) + "\n"


def _by_namespace(view: GraphView) -> list[tuple[str, list[NodeView]]]:
    groups: dict[str, list[NodeView]] = {}
    for node in view.nodes:
        groups.setdefault(node.ref.namespace, []).append(node)
    return list(groups.items())


#: What ``GET /graph?format=`` answers.
FORMATS = {"json": to_json, "dot": to_dot, "graphml": to_graphml, "mermaid": to_mermaid, "svg": to_svg}
CONTENT_TYPES = {
    "json": "application/json",
    "dot": "text/vnd.graphviz; charset=utf-8",
    "graphml": "application/graphml+xml; charset=utf-8",
    "mermaid": "text/vnd.mermaid; charset=utf-8",
    "svg": "image/svg+xml; charset=utf-8",
}
