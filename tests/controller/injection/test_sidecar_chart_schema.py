"""What the charts' schemas say of a sidecar's settings is what a sidecar says of them.

Of a chart Helm knows the schema alone: a wrong value that the library chart's lets through is found by pods that do not
start, and one that the mesh's own lets through by an injector that does not. The library's is compared with the
sidecar's own reader, the mesh's with the library's: it is the same, but for what the injector makes pod by pod. What
Helm makes of a schema is tried in e2e/apiserver/test_sidecar_chart.py and test_chart.py.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controller.injection.settings import MADE, PASSED
from sidecar.errors import ConfigError
from sidecar.settings import Settings

CHARTS = Path(__file__).parents[3] / "charts"
SETTINGS = json.loads((CHARTS / "hedgerow-sidecar" / "values.schema.json").read_text())["properties"]["settings"]
MESH = CHARTS / "hedgerow" / "values.schema.json"

LEAST: dict[str, Any] = {
    "instance": "cart-0",
    "controller": "controller.example:15012",
    "issuer": "controller.example:15013",
    "trust_domain": "mesh.example",
    "trust_bundle": "/trust.pem",
    "state_dir": "/state",
    "addresses": ["10.0.0.7"],
    "stats_listen": "0.0.0.0:15020",
}
#: What else has to be said so that any value within the bounds of a setting is taken.
BESIDE: dict[str, dict[str, Any]] = {
    "merge_metrics.qqqqqqqq": {"port": 8080},
    "merge_metrics.max_bytes": {"port": 8080},
    "merge_metrics.timeout": {"port": 8080},
    "limits.backoff": {"backoff_max": 3600},
    "limits.backoff_max": {"backoff": 0.001},
    "limits.memory_high": {"memory_low": 0.1},
    "limits.memory_low": {"memory_high": 1},
    "inspect.limits.stream_window": {"connection_window": 256 << 20},
    "inspect.limits.connection_window": {"stream_window": 65535},
}
#: What lists of text hold; the form of text is the sidecar's to check.
TEXTS = {
    "dns.upstreams": "10.0.0.10:53",
    "exclude_cidrs": "10.0.0.0/8",
    "inspect.addons": "/addon.py",
    "inspect.visible": "x-name",
    "inspect.hidden": "x-name",
    "inspect.egress.hosts": "api.example.com:443",
    "mtls_alpn": "istio",
}
PROBE = {"container": "cart", "kind": "readyz", "http": {"port": 8080}}
RULE = {"operations": ["GET /"], "ports": [8080], "request": {"set": {"x-a": "1"}, "remove": ["x-b"]}}
NUMBERS = ("integer", "number")


def parse(name: str, value: object) -> Settings:
    """A sidecar's settings with one that is named as in the documentation."""
    *way, last = name.split(".")
    document = dict(LEAST)
    inner = document
    for section in way:
        inner[section] = {}
        inner = inner[section]
    inner.update({**BESIDE.get(name, {}), last: value})
    return Settings.parse(document)


def taken(name: str, value: object) -> bool:
    try:
        parse(name, value)
    except ConfigError as error:
        if not str(error).startswith(name.partition(".")[0]):
            raise  # another setting is refused
        return False
    return True


def leaves(schema: dict[str, Any], within: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for name, one in schema["properties"].items():
        if "properties" in one:
            yield from leaves(one, f"{within}{name}.")
        else:
            yield f"{within}{name}", one


def sections(schema: dict[str, Any], within: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for name, one in schema["properties"].items():
        if "properties" in one:
            yield f"{within}{name}", one
            yield from sections(one, f"{within}{name}.")


LEAVES = dict(leaves(SETTINGS))


def test_the_mesh_takes_for_every_pod_what_one_pod_may_say_but_for_what_the_injector_makes() -> None:
    expected = {**SETTINGS, "properties": {n: one for n, one in SETTINGS["properties"].items() if n not in MADE}}
    if os.environ.get("HEDGEROW_GOLDEN") == "write":
        document = json.loads(MESH.read_text())
        document["properties"]["sidecar"]["properties"]["settings"] = expected
        MESH.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    said = json.loads(MESH.read_text())["properties"]["sidecar"]["properties"]["settings"]
    assert said == expected, "the charts' schemas differ: run this with HEDGEROW_GOLDEN=write"
    assert said["properties"].keys() == PASSED


@pytest.mark.parametrize(
    ("name", "schema"), list(sections(SETTINGS)), ids=lambda each: each if isinstance(each, str) else ""
)
def test_every_setting_of_a_section_is_there_and_no_other(name: str, schema: dict[str, Any]) -> None:
    assert schema["additionalProperties"] is False
    with pytest.raises(ConfigError) as refused:
        parse(f"{name}.qqqqqqqq", 1)
    (known,) = re.findall(r"known are: ([\w, ]+)", str(refused.value))
    assert set(schema["properties"]) == set(known.split(", "))


@pytest.mark.parametrize("name", [name for name, one in LEAVES.items() if one.get("type") in NUMBERS or "anyOf" in one])
def test_numbers_have_the_bounds_that_hold(name: str) -> None:
    schema = LEAVES[name]
    if "anyOf" in schema:
        zero, schema = schema["anyOf"]
        assert zero == {"const": 0}
        assert taken(name, 0)
    low, high = schema["minimum"], schema["maximum"]
    assert taken(name, low)
    assert taken(name, high)
    whole = schema["type"] == "integer"
    for beyond in (low - 1, high + 1) if whole else (math.nextafter(low, -1), math.nextafter(high, math.inf)):
        assert not taken(name, beyond)
    assert taken(name, low + 0.5) is not whole or low + 0.5 > high
    for other in (str(low), True, None, [low]):
        assert not taken(name, other)


@pytest.mark.parametrize("name", [name for name, one in LEAVES.items() if "enum" in one])
def test_choices_are_those_that_there_are(name: str) -> None:
    for one in LEAVES[name]["enum"]:
        assert taken(name, one)
    for other in ("none of them", 7, None):
        assert not taken(name, other)
    assert taken(name, False) is any(one is False for one in LEAVES[name]["enum"])


@pytest.mark.parametrize("name", [name for name, one in LEAVES.items() if one.get("type") == "boolean"])
def test_true_and_false_are_written_plainly(name: str) -> None:
    assert taken(name, True)
    assert taken(name, False)
    assert not taken(name, "true")


@pytest.mark.parametrize(
    "name", [name for name, one in LEAVES.items() if one.get("type") == "array" and "properties" not in one["items"]]
)
def test_lists_hold_what_they_may_hold(name: str) -> None:
    schema = LEAVES[name]
    if schema["items"]["type"] == "integer":
        assert schema["items"] == {"type": "integer", "minimum": 1, "maximum": 65535}
        assert taken(name, [1, 65535])
        assert not taken(name, [0])
        assert not taken(name, ["8080"])
        entry: object = 8080
    else:
        entry = TEXTS[name]
        assert taken(name, [entry])
        assert not taken(name, [7])
    assert not taken(name, entry)
    if "maxItems" in schema:
        assert not taken(name, [entry] * (schema["maxItems"] + 1))


@pytest.mark.parametrize("name", [name for name, one in LEAVES.items() if one.get("type") == "string"])
def test_text_is_text(name: str) -> None:
    for other in (7, 1.2, True, [], {}):
        assert not taken(name, other)


def test_names_in_metrics_are_of_the_form_that_the_sidecar_takes() -> None:
    for name in ("app", "version", "cluster"):
        form = re.compile(LEAVES[f"metrics.{name}"]["pattern"])
        for text in ("", "a", "1.2", "A_b-c.d", "-a", "a-", "a b", "x" * 63, "x" * 64, "é"):
            assert taken(f"metrics.{name}", text) is bool(form.search(text)), text


def test_every_leaf_is_tried_above() -> None:
    assert {name for name, one in LEAVES.items() if one.get("type") == "array" and "properties" in one["items"]} == {
        "inspect.headers",
        "probes",
    }
    kinds = {"array", "boolean", "string", *NUMBERS}
    assert all("enum" in one or "anyOf" in one or one["type"] in kinds for one in LEAVES.values())


@pytest.mark.parametrize(
    ("name", "whole", "at"),
    [
        ("probes", PROBE, ()),
        ("probes", PROBE, ("http",)),
        ("probes", {**PROBE, "http": {"port": 1, "headers": [{"name": "a", "value": "b"}]}}, ("http", "headers", 0)),
        ("probes", {"container": "cart", "kind": "livez", "tcp": {"port": 1}}, ("tcp",)),
        ("probes", {"container": "cart", "kind": "livez", "grpc": {"port": 1}}, ("grpc",)),
        ("inspect.headers", RULE, ()),
        ("inspect.headers", RULE, ("request",)),
        ("merge_metrics", {"port": 1}, ()),
    ],
)
def test_what_lists_of_sections_may_say_is_what_the_schema_knows(
    name: str, whole: dict[str, Any], at: tuple[str | int, ...]
) -> None:
    listed = name != "merge_metrics"
    assert taken(name, [whole] if listed else whole)
    made = json.loads(json.dumps(whole))
    schema = LEAVES[name]["items"] if listed else {"properties": SETTINGS["properties"][name]["properties"]}
    inner = made
    for step in at:
        inner = inner[step]
        schema = schema["items"] if isinstance(step, int) else schema["properties"][step]
    inner["qqqqqqqq"] = 1
    with pytest.raises(ConfigError) as refused:
        parse(name, [made] if listed else made)
    (known,) = re.findall(r"known are: ([\w, ]+)", str(refused.value))
    assert set(schema["properties"]) == set(known.split(", "))
