"""Draws a graph view as an SVG picture of its own: no script, no font and no program from elsewhere.

Callers are left of what they call. Verdicts differ by colour and by dash, to be told apart without colour too.
Everything that came from outside goes through :mod:`xml.etree.ElementTree`, which escapes it.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET  # only written here, never parsed
from collections import defaultdict
from itertools import pairwise

from graph.layout import Placement, place
from graph.text import printable
from graph.views import EdgeVerdict, EdgeView, GraphView, NodeView

#: Colour and dash of each verdict.
STYLES = {
    EdgeVerdict.ALLOW: ("#2e7d32", ""),
    EdgeVerdict.WOULD_DENY: ("#b26a00", "7 4"),
    EdgeVerdict.DENY: ("#c62828", "2 4"),
}
MEANINGS = {
    EdgeVerdict.ALLOW: "allowed by a rule",
    EdgeVerdict.WOULD_DENY: "allowed by the mode only; would be denied",
    EdgeVerdict.DENY: "denied",
}
_BOX_HEIGHT, _ROW, _GAP, _MARGIN, _LEGEND = 46, 78, 170, 32, 92
_FONT = "system-ui, -apple-system, 'Segoe UI', sans-serif"
_MAX_LABEL = 34

type _Point = tuple[float, float]


def to_svg(view: GraphView, title: str = "Service graph") -> str:
    """The picture, as a whole XML document.

    :param title: shown above it
    """
    placement = place(
        [node.id for node in view.nodes], [(str(edge.source), str(edge.destination)) for edge in view.edges]
    )
    labels = {node.id: _shorten(node.ref.name) for node in view.nodes}
    box = max((len(label) for label in labels.values()), default=8) * 8 + 28
    width = max(2 * _MARGIN + placement.layers * box + max(0, placement.layers - 1) * _GAP, 640)
    height = 2 * _MARGIN + 40 + max(1, placement.rows) * _ROW + _LEGEND
    root = ET.Element(
        "svg",
        xmlns="http://www.w3.org/2000/svg",
        width=f"{width:.0f}",
        height=f"{height:.0f}",
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        role="img",
    )
    root.set("font-family", _FONT)
    ET.SubElement(root, "title").text = printable(title)
    ET.SubElement(root, "desc").text = f"{len(view.nodes)} workloads, {len(view.edges)} edges"
    _arrows(root)
    ET.SubElement(root, "rect", width="100%", height="100%", fill="#ffffff")
    _text(root, _MARGIN, _MARGIN + 4, title, size=17, weight="600")
    page = _Page(root, placement, box)
    routes: defaultdict[tuple[str, str], list[EdgeView]] = defaultdict(list)
    for edge in view.edges:
        routes[str(edge.source), str(edge.destination)].append(edge)
    for pair, edges in routes.items():
        for index, edge in enumerate(edges):
            lane = index - (len(edges) - 1) / 2
            if pair[::-1] in routes and pair[0] != pair[1]:  # keep clear of the way back
                lane += 0.6 * len(edges) * (1 if pair[0] < pair[1] else -1)
            page.edge(edge, lane)
    for node in view.nodes:
        page.node(node, labels[node.id])
    page.labels()
    _legend(root, height - _LEGEND)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


class _Page:
    """Turns layers and rows into points, and draws."""

    def __init__(self, root: ET.Element, placement: Placement, box: float) -> None:
        self._root = root
        self._placement = placement
        self._box = box
        self._labels: list[tuple[_Point, str, str]] = []

    def _left(self, spot: tuple[int, float]) -> _Point:
        layer, row = spot
        return _MARGIN + layer * (self._box + _GAP), _MARGIN + 40 + (row + 0.5) * _ROW

    def node(self, node: NodeView, label: str) -> None:
        x, y = self._left(self._placement.nodes[node.id])
        group = ET.SubElement(self._root, "g")
        kind = node.kind or "not in the inventory"
        ET.SubElement(group, "title").text = printable(f"{node.id} · {kind} · {node.identity or 'no identity'}")
        shape = ET.SubElement(
            group,
            "rect",
            x=f"{x:.1f}",
            y=f"{y - _BOX_HEIGHT / 2:.1f}",
            width=f"{self._box:.1f}",
            height=str(_BOX_HEIGHT),
            rx="8",
            fill="#f4f6f4" if node.meshed else "#ffffff",
            stroke="#37473f",
        )
        shape.set("stroke-width", "1.6" if node.meshed else "1.2")
        if not node.meshed:
            shape.set("stroke-dasharray", "4 3")
        _text(group, x + self._box / 2, y - 2, label, size=13, weight="600", anchor="middle")
        replicas = f" ×{node.instances}" if node.instances else ""
        where = "outside" if node.external else _shorten(node.ref.namespace)
        _text(group, x + self._box / 2, y + 14, where + replicas, size=11, anchor="middle", fill="#5a6a62")

    def edge(self, edge: EdgeView, lane: float) -> None:
        """Draw one edge; ``lane`` moves it aside from others between the same ends."""
        source, destination = str(edge.source), str(edge.destination)
        start, end = self._placement.nodes[source], self._placement.nodes[destination]
        aside = lane * 16
        if start[0] == end[0]:
            path, middle = self._beside(start, end, aside)
        else:
            path, middle = self._across(start, self._placement.routes[source, destination], end, aside)
        colour, dash = STYLES[edge.verdict]
        group = ET.SubElement(self._root, "g")
        ET.SubElement(group, "title").text = printable(_describe(edge))
        line = ET.SubElement(group, "path", d=path, fill="none", stroke=colour)
        line.set("stroke-width", "1.8")
        line.set("marker-end", f"url(#arrow-{edge.verdict})")
        if dash:
            line.set("stroke-dasharray", dash)
        label = f"{edge.port}/{edge.protocol}" + (f" {edge.app_protocol}" if edge.app_protocol else "")
        self._labels.append((middle, label, colour))

    def labels(self) -> None:
        """Write the edges' labels, above everything that is drawn by now."""
        for (x, y), label, colour in self._labels:
            text = _text(self._root, x, y - 4, _shorten(label), size=11, anchor="middle", fill=colour)
            for name, value in (("paint-order", "stroke"), ("stroke", "#ffffff"), ("stroke-width", "4")):
                text.set(name, value)

    def _across(
        self, start: tuple[int, float], waypoints: tuple[tuple[int, float], ...], end: tuple[int, float], aside: float
    ) -> tuple[str, _Point]:
        forward = start[0] < end[0]
        points = [self._left(start)]
        points[0] = (points[0][0] + (self._box if forward else 0), points[0][1] + aside)
        for waypoint in waypoints:
            x, y = self._left(waypoint)
            near, far = (x, y + aside), (x + self._box, y + aside)
            points += [near, far] if forward else [far, near]
        x, y = self._left(end)
        points.append((x if forward else x + self._box, y + aside))
        path = f"M{points[0][0]:.1f},{points[0][1]:.1f}"
        for index, (before, after) in enumerate(pairwise(points)):
            if index % 2:  # straight through a layer, where the waypoint keeps the way free
                path += f" L{after[0]:.1f},{after[1]:.1f}"
            else:
                bend = (before[0] + after[0]) / 2
                path += f" C{bend:.1f},{before[1]:.1f} {bend:.1f},{after[1]:.1f} {after[0]:.1f},{after[1]:.1f}"
        first, second = points[0], points[1]
        return path, ((first[0] + second[0]) / 2, (first[1] + second[1]) / 2)

    def _beside(self, start: tuple[int, float], end: tuple[int, float], aside: float) -> tuple[str, _Point]:
        """Between two nodes of one layer, or from a node to itself: a bow on their right."""
        x, top = self._left(start)
        _, bottom = self._left(end)
        x += self._box
        if start == end:
            top, bottom = top - 12, bottom + 12
        out = x + 48 + abs(aside)
        path = f"M{x:.1f},{top:.1f} C{out:.1f},{top:.1f} {out:.1f},{bottom:.1f} {x:.1f},{bottom:.1f}"
        return path, (x + 0.75 * (out - x), (top + bottom) / 2)


def _describe(edge: EdgeView) -> str:
    parts = [edge.id, edge.verdict, f"{edge.connections} connections, {edge.verified} verified"]
    parts += [f"{count} {what}" for count, what in ((edge.denied, "denied"), (edge.failed, "failed")) if count]
    if edge.rule is not None:
        parts.append(f"rule {edge.rule.id}")
    return " · ".join(parts)


def _arrows(root: ET.Element) -> None:
    definitions = ET.SubElement(root, "defs")
    for verdict, (colour, _) in STYLES.items():
        marker = ET.SubElement(
            definitions,
            "marker",
            id=f"arrow-{verdict}",
            viewBox="0 0 10 10",
            refX="9",
            refY="5",
            markerWidth="7",
            markerHeight="7",
            orient="auto-start-reverse",
        )
        ET.SubElement(marker, "path", d="M0,0 L10,5 L0,10 z", fill=colour)


def _legend(root: ET.Element, top: float) -> None:
    for index, (verdict, (colour, dash)) in enumerate(STYLES.items()):
        y = top + 16 + index * 20
        line = ET.SubElement(
            root, "line", x1=str(_MARGIN), y1=f"{y:.0f}", x2=str(_MARGIN + 38), y2=f"{y:.0f}", stroke=colour
        )
        line.set("stroke-width", "2")
        if dash:
            line.set("stroke-dasharray", dash)
        _text(root, _MARGIN + 48, y + 4, MEANINGS[verdict], size=12)
    _text(root, _MARGIN + 340, top + 20, "Solid box: has a sidecar. Dashed box: has none.", size=12)


def _text(
    parent: ET.Element,
    x: float,
    y: float,
    text: str,
    *,
    size: int,
    weight: str = "400",
    anchor: str = "start",
    fill: str = "#1c2621",
) -> ET.Element:
    element = ET.SubElement(parent, "text", x=f"{x:.1f}", y=f"{y:.1f}", fill=fill)
    element.set("font-size", str(size))
    element.set("font-weight", weight)
    element.set("text-anchor", anchor)
    element.text = printable(text)
    return element


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_LABEL else text[: _MAX_LABEL - 1] + "…"
