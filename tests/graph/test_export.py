"""Every format holds the whole graph, is read by its own readers, and no name breaks out of it."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph.export import (
    CONTENT_TYPES,
    FORMATS,
    edge_document,
    graph_document,
    node_document,
    rule_document,
    to_dot,
    to_graphml,
    to_json,
    to_mermaid,
    to_svg,
)
from graph.flow import EdgeKey
from graph.model import Origin, PortRange, Rule, Selector, WorkloadRef
from graph.text import printable
from graph.views import EdgeVerdict, EdgeView, GraphView, NodeView, OperationView

SVG = "{http://www.w3.org/2000/svg}"
RULE = Rule(
    "learned/1",
    Selector("shop", "front"),
    Selector("shop", "cart"),
    (PortRange.single(8080), PortRange(9000, 9010)),
    owner="learner",
    evidence=("seen 40 times",),
)


def graph_of(*names: str) -> GraphView:
    """A ring over ``names`` in one namespace, an outside address, and an edge of each verdict."""
    refs = [WorkloadRef("shop", name) for name in names]
    outside = WorkloadRef.external("192.0.2.7")
    nodes = [NodeView(ref, "Deployment", True, 2, f"spiffe://td/ns/shop/wl/{ref.name}") for ref in refs]
    nodes.append(NodeView(outside, "External"))
    pairs = [*zip(refs, refs[1:] + refs[:1], strict=True), (refs[0], outside)]
    verdicts = list(EdgeVerdict)
    edges = [
        EdgeView(
            EdgeKey(source, destination, 8000 + index),
            verdicts[index % 3],
            connections=5,
            verified=4,
            denied=index,
            first_seen=1.5,
            last_seen=2.5,
            app_protocol="http",
            source_identities=("spiffe://td/a", "spiffe://td/b"),
            evidence=("seen",),
            operations=(OperationView(f"GET /{source.name}" if index else "GET /cart/{id}", 7, 1, 2, 1.0, 2.0),),
            rule=RULE if index == 0 else None,
        )
        for index, (source, destination) in enumerate(pairs)
    ]
    return GraphView(7, 100.0, tuple(nodes), tuple(edges))


SHOP = graph_of("front", "cart", "db")
HOSTILE = [
    '"];evil[label="',
    "<script>alert(1)</script>",
    "]]>&lt;&#0;",
    "a\\",
    '\\"',
    "end",
    "line\nbreak\r\x00\x1b[31m\x85\u2028",
    "--> x; click x href",
    "`%%{init: {}}%%`",
    "\ud800\ufffe\u202e",
    "&amp;\\N\\G",
    "",
    "x" * 500,
]
EVIL = graph_of(*HOSTILE)
names = st.lists(st.text(max_size=20), min_size=1, max_size=5, unique=True)


def test_the_documents_are_those_of_the_api() -> None:
    assert node_document(SHOP.nodes[0]) == {
        "id": "shop/front",
        "namespace": "shop",
        "name": "front",
        "kind": "Deployment",
        "meshed": True,
        "transport": "",
        "instances": 2,
        "identity": "spiffe://td/ns/shop/wl/front",
        "inbound_mode": "",
        "outbound_mode": "",
        "external": False,
    }
    assert edge_document(SHOP.edges[0]) == {
        "id": "shop/front->shop/cart:8000/TCP",
        "from": "shop/front",
        "to": "shop/cart",
        "port": 8000,
        "protocol": "TCP",
        "app_protocol": "http",
        "state": "",
        "verdict": "allow",
        "connections": 5,
        "denied": 0,
        "would_deny": 0,
        "failed": 0,
        "bytes_sent": 0,
        "bytes_received": 0,
        "verified": 4,
        "first_seen": 1.5,
        "last_seen": 2.5,
        "source_identities": ["spiffe://td/a", "spiffe://td/b"],
        "destination_identities": [],
        "replicas": 0,
        "operations": [
            {
                "operation": "GET /cart/{id}",
                "requests": 7,
                "denied": 1,
                "would_deny": 2,
                "first_seen": 1.0,
                "last_seen": 2.0,
            }
        ],
        "evidence": ["seen"],
        "rule": rule_document(RULE),
    }
    assert rule_document(RULE) == {
        "id": "learned/1",
        "from": "shop/front",
        "to": "shop/cart",
        "ports": ["8080", "9000-9010"],
        "protocol": "TCP",
        "operations": [],
        "effect": "allow",
        "origin": "learned",
        "owner": "learner",
        "reason": "",
        "expires_at": None,
        "evidence": ["seen 40 times"],
    }
    assert rule_document(replace(RULE, origin=Origin.OVERRIDE, expires_at=9.5))["expires_at"] == 9.5


def test_the_controllers_own_columns_are_shown() -> None:
    node = replace(SHOP.nodes[0], inbound_mode="enforce", outbound_mode="audit")
    assert node_document(node)["inbound_mode"] == "enforce"
    assert edge_document(replace(SHOP.edges[1], state="active"))["state"] == "active"


@pytest.mark.parametrize("view", [SHOP, EVIL, GraphView(0, 0.0)], ids=["shop", "hostile", "empty"])
def test_json_reads_back(view: GraphView) -> None:
    assert json.loads(to_json(view)) == json.loads(json.dumps(graph_document(view)))
    assert len(json.loads(to_json(view))["edges"]) == len(view.edges)


# DOT ------------------------------------------------------------------------------------------------------------------


def dot(text: str, form: str) -> str:
    program = shutil.which("dot")
    if program is None:
        pytest.fail("graphviz' dot is not installed: apt-get install graphviz")
    ran = subprocess.run([program, f"-T{form}"], input=text.encode(), capture_output=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr.decode()
    assert not ran.stderr, ran.stderr.decode()
    return ran.stdout.decode()


def dot_graph(view: GraphView) -> tuple[set[str], list[tuple[str, str, str]]]:
    """Nodes and edges as graphviz itself understood them."""
    read = json.loads(dot(to_dot(view), "dot_json"))
    objects = {each["_gvid"]: each for each in read["objects"]}
    nodes = {
        each["name"] for each in objects.values() if "nodes" not in each and not each["name"].startswith("cluster")
    }
    edges = [(objects[e["tail"]]["name"], objects[e["head"]]["name"], e["label"]) for e in read.get("edges", [])]
    return nodes, edges


def test_graphviz_reads_the_graph() -> None:
    nodes, edges = dot_graph(SHOP)
    assert nodes == {"shop/front", "shop/cart", "shop/db", "-/192.0.2.7"}
    assert ("shop/front", "shop/cart", "8000/TCP") in edges
    assert len(edges) == 4
    picture = ET.fromstring(dot(to_dot(SHOP), "svg"))
    assert len(picture.findall(f".//{SVG}g[@class='node']")) == 4
    assert len(picture.findall(f".//{SVG}g[@class='edge']")) == 4


def test_graphviz_reads_hostile_names_as_names() -> None:
    nodes, edges = dot_graph(EVIL)
    assert len(nodes) == len(EVIL.nodes)
    assert len(edges) == len(EVIL.edges)
    picture = ET.fromstring(dot(to_dot(EVIL), "svg"))
    assert picture.find(f".//{SVG}script") is None
    shown = {"".join(each.itertext()) for each in picture.findall(f".//{SVG}g[@class='node']/{SVG}text")}
    assert "<script>alert(1)</script>" in shown
    assert '"];evil[label="' in shown
    assert "a\\" in shown


@given(names)
@settings(max_examples=15)  # each starts a program
def test_graphviz_reads_any_names(some: list[str]) -> None:
    view = graph_of(*some)
    nodes, edges = dot_graph(view)
    # names that differ in unprintable characters alone are shown alike
    assert len(nodes) == len({printable(node.id) for node in view.nodes})
    assert len(edges) == len(view.edges)


# GraphML --------------------------------------------------------------------------------------------------------------


def test_networkx_reads_the_graphml() -> None:
    read = nx.parse_graphml(to_graphml(SHOP), force_multigraph=True)
    assert set(read.nodes) == {node.id for node in SHOP.nodes}
    assert read.nodes["shop/front"]["instances"] == 2
    assert read.nodes["shop/front"]["meshed"] is True
    data = read.edges["shop/front", "shop/cart", SHOP.edges[0].id]
    assert (data["port"], data["verdict"], data["rule"], data["last_seen"]) == (8000, "allow", "learned/1", 2.5)
    assert data["source_identities"] == "spiffe://td/a spiffe://td/b"
    assert data["operations"] == "GET /cart/{id}"
    assert read.number_of_edges() == 4


@given(names)
def test_graphml_of_any_names_is_read(some: list[str]) -> None:
    for view in (graph_of(*some), EVIL):
        read = nx.parse_graphml(to_graphml(view), force_multigraph=True)
        # names that differ in unprintable characters alone are shown alike
        assert read.number_of_nodes() == len({printable(node.id) for node in view.nodes})


# SVG ------------------------------------------------------------------------------------------------------------------


def svg_texts(root: ET.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def test_the_picture_shows_every_node_edge_and_the_legend() -> None:
    root = ET.fromstring(to_svg(SHOP, title="The shop"))
    texts = svg_texts(root)
    for expected in ("front", "cart", "db", "192.0.2.7", "shop ×2", "outside", "8000/TCP http", "The shop", "denied"):
        assert expected in texts
    strokes = [path.get("stroke") for path in root.iter(f"{SVG}path") if path.get("marker-end")]
    assert len(strokes) == len(SHOP.edges)
    assert len(set(strokes)) == 3, "one colour for each verdict"
    dashes = {
        (path.get("stroke"), path.get("stroke-dasharray")) for path in root.iter(f"{SVG}path") if path.get("stroke")
    }
    assert len({dash for _, dash in dashes}) == 3, "told apart without colour too"
    arrows = {marker.get("id") for marker in root.iter(f"{SVG}marker")}
    used = {str(path.get("marker-end"))[5:-1] for path in root.iter(f"{SVG}path") if path.get("marker-end")}
    assert used <= arrows
    titles = [title.text or "" for title in root.iter(f"{SVG}title")]
    assert any("rule learned/1" in title for title in titles)


def test_callers_are_drawn_left_of_what_they_call_and_boxes_do_not_overlap() -> None:
    refs = [WorkloadRef("shop", name) for name in ("db", "cart", "front", "report")]
    pairs = [(2, 1), (1, 0), (2, 0), (3, 0)]
    view = GraphView(
        1,
        0.0,
        tuple(NodeView(ref) for ref in refs),
        tuple(EdgeView(EdgeKey(refs[a], refs[b], 80), EdgeVerdict.ALLOW) for a, b in pairs),
    )
    boxes: dict[str, tuple[float, float, float, float]] = {}
    for group in ET.fromstring(to_svg(view)).iter(f"{SVG}g"):
        rect, text = group.find(f"{SVG}rect"), group.find(f"{SVG}text")
        if rect is not None and text is not None:
            x, y, width, height = (float(rect.get(name, "nan")) for name in ("x", "y", "width", "height"))
            boxes[text.text or ""] = (x, y, x + width, y + height)
    for a, b in pairs:
        assert boxes[refs[a].name][2] < boxes[refs[b].name][0]
    places = list(boxes.values())
    assert len(places) == 4
    for index, (left, top, right, bottom) in enumerate(places):
        for other in places[index + 1 :]:
            assert right < other[0] or other[2] < left or bottom < other[1] or other[3] < top


def test_the_picture_stays_inside_its_frame() -> None:
    root = ET.fromstring(to_svg(EVIL))
    width, height = float(root.get("width", "0")), float(root.get("height", "0"))
    for rect in root.iter(f"{SVG}rect"):
        if rect.get("x"):
            assert float(rect.get("x", "nan")) >= 0
            assert float(rect.get("x", "nan")) + float(rect.get("width", "nan")) <= width
    for path in root.iter(f"{SVG}path"):
        if path.get("marker-end"):
            numbers = [float(each) for each in re.findall(r"-?\d+\.\d+", path.get("d", ""))]
            assert all(0 <= x <= width for x in numbers[::2])
            assert all(0 <= y <= height for y in numbers[1::2])


@pytest.mark.parametrize("view", [EVIL, GraphView(0, 0.0)], ids=["hostile", "empty"])
def test_hostile_and_empty_graphs_are_valid_pictures_without_script(view: GraphView) -> None:
    text = to_svg(view, title="</title><script>")
    root = ET.fromstring(text)
    known = {"svg", "title", "desc", "defs", "marker", "path", "rect", "g", "text", "line"}
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= known
    assert not [name for element in root.iter() for name in element.attrib if name.lower().startswith("on")]
    assert "href" not in {name for element in root.iter() for name in element.attrib}
    text.encode("utf-8")


@given(names)
def test_pictures_of_any_names_are_valid(some: list[str]) -> None:
    root = ET.fromstring(to_svg(graph_of(*some)))
    assert len([path for path in root.iter(f"{SVG}path") if path.get("marker-end")]) == len(some) + 1


# Mermaid --------------------------------------------------------------------------------------------------------------

MERMAID_LINES = [
    r"flowchart LR",
    r'  subgraph ns\d+\["[^"]*"\]',
    r"  end",
    r'    w\d+(\["[^"]*"\]|\(\["[^"]*"\]\))',
    r'  w\d+ (-->|-\.->)\|"[^"]*"\| w\d+',
    r"  linkStyle \d+(,\d+)* stroke:#[0-9a-f]{6}",
]


@given(names)
def test_mermaid_has_only_lines_of_known_shape_whatever_the_names(some: list[str]) -> None:
    for view in (graph_of(*some), EVIL):
        lines = to_mermaid(view).splitlines()
        for line in lines:
            assert any(re.fullmatch(shape, line) for shape in MERMAID_LINES), line
        assert sum("-->" in line or "-.->" in line for line in lines) == len(view.edges)
        assert all(not set(label) & set("<>`%\\&{}") for label in re.findall(r'"([^"]*)"', "\n".join(lines)))


def test_mermaid_shows_names_and_colours() -> None:
    text = to_mermaid(SHOP)
    assert '["front"]' in text
    assert '(["192.0.2.7"])' in text
    assert 'subgraph ns0["shop"]' in text
    assert '|"8001/TCP"|' in text
    assert "linkStyle 0,3 stroke:#2e7d32" in text
    evil = to_mermaid(graph_of('"; click'))
    assert "#34;#59; click" in evil


# All ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", list(FORMATS))
@pytest.mark.parametrize("view", [SHOP, EVIL, GraphView(0, 0.0)], ids=["shop", "hostile", "empty"])
def test_every_format_is_text_without_control_characters(form: str, view: GraphView) -> None:
    export: Callable[[GraphView], str] = FORMATS[form]
    text = export(view)
    assert text.endswith("\n")
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    io.BytesIO().write(text.encode("utf-8"))
    assert form in CONTENT_TYPES
