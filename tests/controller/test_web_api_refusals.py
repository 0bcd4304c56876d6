"""What the web API refuses: every bad input names its field and the remedy, and changes nothing."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from tests.controller.disks import Faulty
from tests.controller.running import EDGE, PERSON, Running, running


def override(**changes: Any) -> dict[str, Any]:
    body = {
        "effect": "allow", "from": "shop/front", "to": "shop/cart", "port": 8080, "protocol": "TCP", "owner": "anna",
        "reason": "test", "expires_in": 60,
    }  # fmt: skip
    return {key: value for key, value in {**body, **changes}.items() if value is not ...}


MODE = {"workload": "shop/cart", "mode": "audit", **PERSON}
JOIN = {"workload": "shop/front", "instance": "front-0", "expires_in": 60}

#: path, body, status, code, field, and a part of the remedy
BAD_BODIES: list[tuple[str, Any, int, str, str, str]] = [
    ("/overrides", [], 400, "invalid", "", "by its name"),
    ("/overrides", override(effect="maybe"), 400, "invalid", "effect", "allow, deny"),
    ("/overrides", override(effect=...), 400, "invalid", "effect", "add"),
    ("/overrides", override(**{"from": "front"}), 400, "invalid", "from", "namespace/name"),
    ("/overrides", override(to="shop/Cart"), 400, "invalid", "to", "lower-case"),
    ("/overrides", override(to="shop/crat"), 400, "unknown-workload", "to", "shop/cart"),
    ("/overrides", override(**{"from": "store/front"}), 400, "unknown-workload", "from", "shop/front"),
    ("/overrides", override(to="-/elsewhere"), 400, "invalid", "to", "192.0.2.0/24"),
    ("/overrides", override(port=0), 400, "invalid", "port", "1 to 65535"),
    ("/overrides", override(port="8080"), 400, "invalid", "port", "1 to 65535"),
    ("/overrides", override(port=True), 400, "invalid", "port", "1 to 65535"),
    ("/overrides", override(protocol="QUIC"), 400, "invalid", "protocol", "TCP, UDP, SCTP"),
    ("/overrides", override(owner=""), 400, "invalid", "owner", "write something"),
    ("/overrides", override(owner=...), 400, "invalid", "owner", "add"),
    ("/overrides", override(reason="a\nb"), 400, "invalid", "reason", "one line"),
    ("/overrides", override(reason="x" * 1001), 400, "invalid", "reason", "at most 1000"),
    ("/overrides", override(expires_in=-1), 400, "invalid", "expires_in", "seconds from"),
    ("/overrides", override(expires_in="1h"), 400, "invalid", "expires_in", "seconds from"),
    ("/overrides", override(expires_in=1e9), 400, "invalid", "expires_in", ""),
    ("/overrides", override(wait=61), 400, "invalid", "wait", "from 0 to 60"),
    ("/overrides", override(operations="GET /"), 400, "invalid", "operations", "list"),
    ("/overrides", override(operations=["GET /", 1]), 400, "invalid", "operations[1]", "string"),
    ("/overrides", override(operations=["GET /", "GET cart"]), 400, "invalid", "operations[1]", "begin with '/'"),
    ("/overrides", override(operations=["GET /cart/{n}"]), 400, "invalid", "operations[0]", "{id}"),
    ("/overrides", override(operations=["GET /"] * 65), 400, "invalid", "operations", "0 to 64"),
    ("/overrides", override(operations=["GET /"], to="data/legacy"), 400, "invalid", "operations", "leave them out"),
    ("/overrides", override(operations=["GET /"], to="-/a.example"), 400, "invalid", "operations", "leave them out"),
    ("/overrides", override(to="-/api..example.com"), 400, "invalid", "to", "192.0.2.0/24"),
    ("/overrides", override(to="-/cart.shop.svc"), 400, "invalid", "to", "shop/cart"),
    ("/overrides", override(**{"from": "-/api.example.com"}), 400, "invalid", "from", "address"),
    ("/overrides", override(prot="TCP"), 400, "invalid", "prot", "did you mean 'port'"),
    ("/modes", {**MODE, "mode": "enforced"}, 400, "invalid", "mode", "learn, audit, enforce, quarantine"),
    ("/modes", {**MODE, "workload": "shop/crat"}, 400, "unknown-workload", "workload", "shop/cart"),
    ("/modes", {**MODE, "namespace": "shop"}, 400, "invalid", "workload", "one"),
    ("/modes", {"namespace": "shp", "mode": "audit", **PERSON}, 400, "invalid", "namespace", "shop"),
    ("/modes", {"namespace": "Shop", "mode": "audit", **PERSON}, 400, "invalid", "namespace", "lower-case"),
    ("/modes", {"workload": "shop/cart", **PERSON}, 400, "invalid", "mode", "give one"),
    ("/modes", {**MODE, "direction": "up"}, 400, "invalid", "direction", "inbound, outbound, both"),
    ("/modes", {**MODE, "inbound_tls": "none"}, 400, "invalid", "inbound_tls", "permissive, strict"),
    ("/policy/approve", {"edges": [], **PERSON}, 400, "invalid", "edges", "1 to"),
    ("/policy/approve", {"edges": "some", **PERSON}, 400, "invalid", "edges", "/policy/diff"),
    ("/policy/approve", {"edges": [EDGE, "x"], **PERSON}, 400, "invalid", "edges[1]", "shop/front->"),
    ("/policy/approve", {"edges": [EDGE], **PERSON}, 404, "not-found", "edges", "override"),
    ("/join-tokens", {**JOIN, "workload": "shop/fornt"}, 400, "unknown-workload", "workload", "shop/front"),
    ("/join-tokens", {**JOIN, "workload": "-/10.9.9.9"}, 400, "invalid", "workload", "inventory"),
    ("/join-tokens", {**JOIN, "workload": "data/legacy"}, 400, "invalid", "workload", "meshed: true"),
    ("/join-tokens", {**JOIN, "instance": "front-1"}, 400, "invalid", "instance", "front-0"),
    ("/join-tokens", {**JOIN, "expires_in": 0}, 400, "invalid", "expires_in", "seconds from 1"),
    ("/join-tokens", {**JOIN, "ttl": 1}, 400, "invalid", "ttl", "known are"),
]

#: path with query, status, code, field, and a part of the remedy
BAD_QUERIES: list[tuple[str, int, str, str, str]] = [
    ("/status?x=1", 400, "invalid", "x", "remove it"),
    ("/graph?format=png", 400, "invalid", "format", "mermaid"),
    ("/graph?format=json&format=dot", 400, "invalid", "format", "once"),
    ("/graph?namespace=Shop", 400, "invalid", "namespace", "lower-case"),
    ("/graph/live?since=1", 400, "invalid", "since", "remove it"),
    ("/flows?limit=0", 400, "invalid", "limit", "1 to 10000"),
    ("/flows?limit=1e3", 400, "invalid", "limit", "1 to 10000"),
    ("/flows?workload=cart", 400, "invalid", "workload", "namespace/name"),
    ("/flows?verdict=would-deny", 400, "invalid", "verdict", "allow, deny"),
    ("/flows?since=nan", 400, "invalid", "since", "epoch"),
    ("/flows/live?verdict=x", 400, "invalid", "verdict", "allow, deny"),
    ("/policy/shop/crat", 404, "unknown-workload", "workload", "shop/cart"),
    ("/policy/data/legacy", 404, "not-found", "workload", "/policy"),
    ("/policy/Shop/cart", 400, "invalid", "workload", "lower-case"),
    ("/policy/export?format=cilium", 400, "invalid", "format", "networkpolicy"),
    ("/why?from=shop/front&to=shop/cart", 400, "invalid", "port", "add"),
    ("/why?from=shop/front&to=shop/crat&port=1", 400, "unknown-workload", "to", "shop/cart"),
    ("/why?from=shop/frnt&to=shop/cart&port=1", 400, "unknown-workload", "from", "shop/front"),
    ("/why?from=shop/front&to=shop/cart&port=65536", 400, "invalid", "port", "1 to 65535"),
    ("/why?from=shop/front&to=shop/cart&port=1&protocol=tcp", 400, "invalid", "protocol", "TCP"),
    ("/why?from=shop/front&to=shop/cart&port=1&operation=GET", 400, "invalid", "operation", "GET /cart/{id}"),
    ("/audit?limit=-1", 400, "invalid", "limit", "1 to 10000"),
    ("/drift?all=1", 400, "invalid", "all", "remove it"),
]


async def refused(run: Running, method: str, path: str, **how: Any) -> tuple[int, str, str, str]:
    async with run.http.request(method, f"/api/v1{path}", **how) as response:
        assert response.content_type == "application/json", await response.text()
        error = (await response.json())["error"]
        assert set(error) == {"code", "field", "message", "remedy"}
        assert error["message"]
        return response.status, error["code"], error["field"], error["remedy"]


async def test_every_bad_input_names_the_field_and_the_remedy_and_changes_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        before = run.controller.engine.view.generation
        for path, body, status, code, field, remedy in BAD_BODIES:
            found = await refused(run, "POST", path, json=body)
            assert found[:3] == (status, code, field), (path, body, found)
            assert remedy in found[3], (path, body, found)
        for path, status, code, field, remedy in BAD_QUERIES:
            found = await refused(run, "GET", path)
            assert found[:3] == (status, code, field), (path, found)
            assert remedy in found[3], (path, found)
        assert run.controller.engine.view.generation == before


@pytest.mark.parametrize(
    ("data", "type_", "status", "field"),
    [
        (b"{}", "text/plain", 400, "Content-Type"),
        (b"", "application/json", 400, ""),
        (b"{'effect': 1}", "application/json", 400, ""),
        (b'{"port": NaN}', "application/json", 400, ""),
        (b'{"port": 1, "port": 2}', "application/json", 400, "port"),
        (b'{"effect": "\xff"}', "application/json", 400, ""),
        (b"[" * 200_000, "application/json", 400, ""),
        (b'{"port": ' + b"9" * 5000 + b"}", "application/json", 400, ""),
        (b" " * (1024 * 1024 + 1), "application/json", 413, ""),
    ],
)
async def test_a_body_that_is_no_json_object_of_ours(
    tmp_path: Path, data: bytes, type_: str, status: int, field: str
) -> None:
    async with running(tmp_path) as run:
        found = await refused(run, "POST", "/overrides", data=BytesIO(data), headers={"Content-Type": type_})
        assert (found[0], found[2]) == (status, field)


async def test_a_full_disk_is_told_as_not_ready_and_then_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.app.SqliteStore", Faulty)
    async with running(tmp_path) as run:
        with monkeypatch.context() as moment:
            moment.setattr(Faulty, "full", True)
            async with run.http.post("/api/v1/overrides", json=override()) as response:
                assert (response.status, response.headers["Retry-After"]) == (503, "1")
                error = (await response.json())["error"]
                assert (error["code"], "disk is full" in error["message"]) == ("not-ready", True)
        await run.post("/overrides", override(), 201)
