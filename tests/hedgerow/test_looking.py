"""The commands that look, run as a user runs them, against a controller with traffic in its graph."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.hedgerow.served import Served
from tests.hedgerow.zygote import Zygote

LOOKING: dict[str, tuple[str, tuple[str, ...]]] = {
    # the line: (the API's path for the same, what the table must say)
    "status": (
        "/status",
        (
            "trust domain hedgerow.test",
            "shop/cart",
            "no sidecar",
            "needs approval",
            "3 known",
            "refused in the last 1h: 2 connections of 1 pair of workloads, 2 requests of 1 pair of workloads "
            "(since the controller began, ",
            " ago); see `hedgerow drift`, or `hedgerow flows --verdict deny`",
        ),
    ),
    "graph": ("/graph", ("shop/front → shop/cart:8080", "192.0.2.7 → shop/front:8080", "deny", "100 %", "proposed")),
    "graph --namespace data": ("/graph?namespace=data", ("shop/cart → data/redis:6379",)),
    "flows": ("/flows?limit=50", ("shop/front → data/redis:6379", "no-rule", "would-deny", "redis-0", "learning")),
    "flows --verdict deny --workload data/redis --limit 5": (
        "/flows?limit=5&verdict=deny&workload=data/redis",
        ("shop/front → data/redis:6379",),
    ),
    "why shop/front shop/cart:8080": (
        "/why?from=shop/front&to=shop/cart&port=8080",
        ("allow (when everything is enforced: allow too)", "a learned rule allows it"),
    ),
    "flows --workload shop/cart": (
        "/flows?limit=50&workload=shop/cart",
        ("OPERATION", "GET /cart/{id}", "DELETE /cart/{id}", "REQUESTS"),
    ),
    "why shop/front api.example.com:443": (
        "/why?from=shop/front&to=-/api.example.com&port=443",
        ("allow (when everything is enforced: deny)", "-/api.example.com is outside the inventory"),
    ),
    "why 192.0.2.7 shop/front:8080": (
        "/why?from=-/192.0.2.7&to=shop/front&port=8080",
        ("allow (when everything is enforced: deny)", "is outside the inventory"),
    ),
    "why -/192.0.2.7 shop/front:8080 --protocol udp": (
        "/why?from=-/192.0.2.7&to=shop/front&port=8080&protocol=UDP",
        ("It has never been observed.",),
    ),
    "drift": ("/drift", ("OBSERVED BUT NOT ALLOWED", "192.0.2.7 → shop/front:8080", "has been observed")),
    "audit --limit 7": ("/audit?limit=7", ("learner  edge.active", "evidence: ", "verified by mutual TLS")),
    "policy show": ("/policy", ("EFFECT", "shop/front", "8080/TCP", "learned")),
    "policy show shop/cart": ("/policy/shop/cart", ("shop/cart, version", "inbound learn (permissive)", "baseline")),
    "policy diff": (
        "/policy/diff",
        ("+ allow 192.0.2.7/32 → shop/front:8080/TCP", "hedgerow policy approve '-/192.0.2.7->shop/front:8080/TCP'"),
    ),
    "overrides": ("/overrides", ("There are no overrides.",)),
}


def test_minus_n_is_the_namespace_of_whatever_is_listed(controller: Served, command: Zygote) -> None:
    def asked(line: str) -> Any:
        return still(command(*line.split(), "-o", "json", env=controller.access).json())

    def of(namespace: str, found: list[Any]) -> list[Any]:
        return [each for each in found if any(each[at].startswith(f"{namespace}/") for at in ("from", "to"))]

    whole, part = asked("status"), asked("status -n data")
    assert {each["workload"] for each in part["workloads"]} == {"data/redis", "data/legacy"}
    assert {each["workload"] for each in part["sidecars"]} == {"data/redis"}
    assert part["edges"] == whole["edges"], "the figures are the mesh's"
    assert asked("graph -n data") == still(controller.get("/graph?namespace=data"))
    for line, list_name in (("drift", "unexpected"), ("drift", "unused"), ("policy show", "rules")):
        everything = asked(line)[list_name]
        assert asked(f"{line} -n shop")[list_name] == of("shop", everything)
        assert asked(f"{line} -n data")[list_name] == of("data", everything)
    assert len(of("data", asked("policy show")["rules"])) < len(asked("policy show")["rules"])
    assert list(asked("policy show -n data")["workloads"]) == ["data/redis"]
    flows = asked("flows --limit 1000")["flows"]
    ours = [each for each in flows if "data/redis" in (each["source"], each["destination"])]
    assert 0 < len(ours) < len(flows)
    assert asked("flows --limit 1000 -n data")["flows"] == ours
    assert asked("flows --limit 1 -n data")["flows"] == ours[:1], "the last of those, not those of the last"
    waiting = asked("policy diff")
    assert waiting["edges"]
    assert asked("policy diff -n shop") == waiting
    assert asked("policy diff -n data") == {"added": [], "removed": [], "edges": []}
    exported = asked("policy export")
    assert asked("policy export -n data") == [each for each in exported if each["metadata"]["namespace"] == "data"]
    assert asked("overrides -n data") == {"overrides": []}
    for line in ("status", "graph", "flows", "drift", "policy show", "policy diff", "overrides"):
        assert " of the namespace shp" in command(*line.split(), "-n", "shp", env=controller.access).out, line


def test_minus_n_is_the_namespace_of_names_without_one(controller: Served, command: Zygote) -> None:
    for short, long in (
        ("why front cart:8080 -n shop", "why shop/front shop/cart:8080"),
        ("why front data/redis:6379 -n shop", "why shop/front data/redis:6379"),
        ("why 192.0.2.7 front:8080 -n shop", "why 192.0.2.7 shop/front:8080"),
        ("why front api.example.com:443 -n shop", "why shop/front api.example.com:443"),
        ("policy show cart -n shop", "policy show shop/cart"),
        ("policy show shop/cart -n shop", "policy show shop/cart"),
        ("flows --workload cart -n shop", "flows --workload shop/cart"),
    ):
        answers = [command(*line.split(), "-o", "json", env=controller.access).json() for line in (short, long)]
        assert still(answers[0]) == still(answers[1]), short


def still(answer: Any) -> Any:
    """An answer without what moves with the clock."""
    if isinstance(answer, dict):
        return {key: still(value) for key, value in answer.items() if key not in ("at", "issued_at", "since")}
    return [still(value) for value in answer] if isinstance(answer, list) else answer


@pytest.mark.parametrize("line", LOOKING)
def test_the_same_as_a_table_as_json_and_as_yaml(controller: Served, command: Zygote, line: str) -> None:
    path, words = LOOKING[line]
    expected = still(controller.get(path))
    arguments = line.split()
    as_json = command(*arguments, "-o", "json", env=controller.access)
    assert (as_json.code, as_json.err) == (0, "")
    assert still(as_json.json()) == expected
    as_yaml = command(*arguments, "--output", "yaml", env=controller.access)
    assert (as_yaml.code, as_yaml.err) == (0, "")
    assert still(yaml.safe_load(as_yaml.out)) == expected
    table = command(*arguments, env=controller.access)
    assert (table.code, table.err) == (0, "")
    for word in words:
        assert word in table.out
    assert "\x1b" not in table.out  # no colours into a pipe


@pytest.mark.parametrize("form", ["dot", "graphml", "mermaid", "svg"])
def test_the_graph_as_a_picture(controller: Served, command: Zygote, form: str, tmp_path: Path) -> None:
    printed = command("graph", "--format", form, env=controller.access)
    assert printed.code == 0
    if form in ("graphml", "svg"):
        root = ET.fromstring(printed.out)
        assert root.tag.endswith(form)
    assert {"dot": "digraph", "graphml": "<graphml", "mermaid": "flowchart", "svg": "<svg"}[form] in printed.out
    assert "redis" in printed.out
    # the same into a file, whose name says the format
    file = tmp_path / f"graph.{'mmd' if form == 'mermaid' else form}"
    written = command("graph", "--out", str(file), env=controller.access)
    assert written.code == 0
    assert str(file) in written.out
    assert re.sub(r"\d{6,}(\.\d+)?|\d+ s ago", "", file.read_text()) == re.sub(
        r"\d{6,}(\.\d+)?|\d+ s ago", "", printed.out
    )


def test_the_graph_as_data_into_a_file(controller: Served, command: Zygote, tmp_path: Path) -> None:
    expected = still(controller.get("/graph"))
    assert command("graph", "--out", "graph.json", env=controller.access, cwd=str(tmp_path)).code == 0
    assert still(json.loads((tmp_path / "graph.json").read_text())) == expected
    assert command("graph", "-o", "yaml", "--out", "any.txt", env=controller.access, cwd=str(tmp_path)).code == 0
    assert still(yaml.safe_load((tmp_path / "any.txt").read_text())) == expected


def test_an_out_that_cannot_be(controller: Served, command: Zygote, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    for arguments, words in (
        (["--out", str(tmp_path / "file" / "x.svg")], "cannot be written: Not a directory"),
        (["--out", str(tmp_path / "graph.pdf")], "does not say which format"),
        (["--out", str(tmp_path / "graph.svg"), "-o", "table"], "a table is for people"),
    ):
        ended = command("graph", *arguments, env=controller.access)
        assert ended.code == 2
        assert f"error: --out: {words}" in ended.err or words in ended.err
        assert "  try: " in ended.err
    assert (tmp_path / "file").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_network_policies_are_exported_alike_in_every_form(controller: Served, command: Zygote, tmp_path: Path) -> None:
    documents = list(yaml.safe_load_all(command("policy", "export", env=controller.access).out))
    assert {(item["apiVersion"], item["kind"]) for item in documents} == {("networking.k8s.io/v1", "NetworkPolicy")}
    assert command("policy", "export", "-o", "json", env=controller.access).json() == documents
    table = command("policy", "export", "-o", "table", env=controller.access).out
    assert len(table.splitlines()) == 1 + len(documents)
    (tmp_path / "old.yaml").write_text("kind: Old")
    for form in ("yaml", "json"):
        written = command("policy", "export", "--out", str(tmp_path), "-o", form, env=controller.access)
        assert written.code == 0
        assert f"{len(documents)} NetworkPolicies" in written.out
        assert ("old.yaml" in written.out) == (form == "yaml")  # kubectl would apply it too
        names = [f"{item['metadata']['namespace']}.{item['metadata']['name']}.{form}" for item in documents]
        assert [yaml.safe_load((tmp_path / name).read_text()) for name in names] == documents
    refused = command("policy", "export", "--out", str(tmp_path / "old.yaml"), env=controller.access)
    assert (refused.code, "--out" in refused.err) == (2, True)


def test_the_audit_log_shows_times_as_times(controller: Served, command: Zygote) -> None:
    entries = controller.get("/audit?limit=1000")["entries"]
    ends = [each["detail"]["not_after"] for each in entries if each["action"].startswith("certificate.")]
    assert ends, {each["action"] for each in entries}
    said = command("audit", "--limit", "1000", env=controller.access).out
    for end in ends:
        text = datetime.fromtimestamp(end).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        assert f"not after: {text};" in said
    assert not re.search(r"\b1[0-9]{9}\b", said), "seconds since the epoch"


def test_version(command: Zygote) -> None:
    bare = command("version")
    assert bare.out == command("--version").out
    assert command("version", "--json").json()["version"] == bare.out.strip()
