"""The web API as docs/api.md has it, against a whole controller: what it answers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.engine import Engine
from controller.overrides import OverrideRequest
from graph.flow import Flow
from graph.model import Direction, Mode, Verdict, WorkloadRef
from tests.controller.mesh import CART, FRONT, INVENTORY, REDIS, flow, instance, used
from tests.controller.running import EDGE, PERSON, eventually, running


async def teach(engine: Engine, sequence: int = 1) -> None:
    """front -> cart:8080 was used and proved."""
    now = engine.view.at
    await used(engine, "boot-t", sequence, first_seen=now, last_seen=now)


async def knock(engine: Engine) -> None:
    """front -> redis:6379 was used without proof, and needs approval."""
    now = engine.view.at
    unproved = flow(FRONT, REDIS, 6379, verified=False, source_identity="", first_seen=now, last_seen=now)
    await engine.ingest(instance("redis-0"), "boot-t", 1, 0, [unproved])


ASKED = {"connections": 0, "bytes_sent": 0, "bytes_received": 0, "operation": "GET /cart/{id}", "requests": 7}


class TestLooking:
    async def test_status(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            await teach(run.controller.engine)
            status = await run.get("/status")
            assert status["trust_domain"] == "hedgerow.test"
            assert status["inventory"] == {"workloads": 4, "instances": 5, "services": 1}
            assert status["edges"] == {"candidate": 0, "proposed": 0, "active": 1, "stale": 0, "retired": 0}
            assert re.fullmatch("[0-9a-f]{64}", status["audit_head"])
            assert status["cluster"] is None
            workloads = {each["workload"]: each for each in status["workloads"]}
            assert workloads["shop/cart"] == {
                "workload": "shop/cart", "kind": "Deployment", "meshed": True, "transport": "", "instances": 2,
                "inbound_mode": "learn",
                "outbound_mode": "learn", "inbound_tls": "permissive", "ready_to_enforce": True, "waiting_for": [],
            }  # fmt: skip
            assert workloads["data/legacy"]["ready_to_enforce"] is False
            assert workloads["data/redis"]["waiting_for"]

    async def test_the_status_says_what_was_refused_lately(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            engine = run.controller.engine
            await teach(engine)
            before = await run.get("/status")
            nothing = {"connections": 0, "pairs": 0, "requests": 0, "request_pairs": 0}
            assert before["refused"] == {
                "seconds": 3600,
                **nothing,
                "since": before["refused"]["since"],
                "requests_since": before["started_at"],
            }
            now = engine.view.at
            assert now - 3700 < before["refused"]["since"] < now - 3500
            refused = [
                flow(FRONT, REDIS, port, verdict=Verdict.DENY, reason="no-rule", connections=2, first_seen=at,
                     last_seen=at)
                for port, at in ((6379, now), (6380, now - 1800), (6381, now - 7000))
            ]  # fmt: skip
            await engine.ingest(instance("redis-0"), "boot-r", 1, 0, refused)
            found = (await run.get("/status"))["refused"]
            assert found.items() >= {**nothing, "connections": 4, "pairs": 1}.items()

            def asked(port: int, **given: Any) -> Flow:
                given = {"verdict": Verdict.DENY, "first_seen": now, "last_seen": now, **ASKED, **given}
                return flow(FRONT, REDIS, port, reason="no-rule", **given)

            requests = [
                asked(6379, requests=3), asked(6380, requests=4), asked(6380, requests=50, last_seen=now - 7000),
                asked(6381, requests=60, verdict=Verdict.ALLOW), asked(1, requests=70),
            ]  # fmt: skip
            await engine.ingest(instance("redis-0"), "boot-r", 2, 0, requests)
            found = (await run.get("/status"))["refused"]
            assert found.items() >= {"connections": 4, "pairs": 1, "requests": 7, "request_pairs": 1}.items()

    async def test_the_graph_in_every_format_and_by_namespace(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            await teach(run.controller.engine)
            graph = await run.get("/graph")
            assert [node["id"] for node in graph["nodes"]] == ["data/legacy", "data/redis", "shop/cart", "shop/front"]
            (edge,) = graph["edges"]
            assert (edge["id"], edge["from"], edge["to"], edge["verified"]) == (EDGE, "shop/front", "shop/cart", 5)
            assert edge["rule"]["id"] == f"learned/{EDGE}"
            assert edge["evidence"]
            only = await run.get("/graph", namespace="data")
            assert ([node["id"] for node in only["nodes"]], only["edges"]) == (["data/legacy", "data/redis"], [])
            for form, type_, begins in (
                ("dot", "text/vnd.graphviz", "digraph"), ("graphml", "application/graphml+xml", "<?xml"),
                ("mermaid", "text/vnd.mermaid", "flowchart"), ("svg", "image/svg+xml", "<?xml"),
            ):  # fmt: skip
                async with run.http.get("/api/v1/graph", params={"format": form}) as response:
                    assert response.content_type == type_
                    assert (await response.text()).startswith(begins)

    async def test_flows_newest_first_and_filtered(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            await teach(run.controller.engine)
            await knock(run.controller.engine)
            flows = (await run.get("/flows"))["flows"]
            assert [each["destination"] for each in flows] == ["data/redis", "shop/cart", "shop/cart"]
            assert [each["destination"] for each in (await run.get("/flows", limit=1))["flows"]] == ["data/redis"]
            found = await run.get("/flows", workload="shop/cart", verdict="allow", since="")
            assert [each["direction"] for each in found["flows"]] == ["inbound", "outbound"]
            assert (await run.get("/flows", since=4_000_000_000))["flows"] == []
            assert (await run.get("/flows", namespace="data"))["flows"] == flows[:1]
            assert (await run.get("/flows", namespace="shop"))["flows"] == flows
            assert (await run.get("/flows", namespace="shp"))["flows"] == []

    async def test_policy_snapshot_diff_and_approval(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            await teach(run.controller.engine)
            await knock(run.controller.engine)
            policy = await run.get("/policy")
            assert [rule["id"] for rule in policy["rules"]] == [f"learned/{EDGE}"]
            assert set(policy["workloads"]) == {"shop/front", "shop/cart", "data/redis"}
            snapshot = (await run.get("/policy/shop/cart"))["snapshot"]
            assert snapshot["version"] == policy["workloads"]["shop/cart"]["version"]
            assert f"learned/{EDGE}" in [rule["id"] for rule in snapshot["rules"]]

            waiting = "shop/front->data/redis:6379/TCP"
            diff = await run.get("/policy/diff")
            assert [(each["edge"], each["state"]) for each in diff["edges"]] == [(waiting, "proposed")]
            assert [rule["id"] for rule in diff["added"]] == [f"learned/{waiting}"]
            assert diff["edges"][0]["waiting_for"]
            assert (await run.post("/policy/approve", {"edges": [waiting], **PERSON})) == {"approved": [waiting]}
            assert (await run.post("/policy/approve", {"edges": "all", **PERSON})) == {"approved": []}
            assert (await run.get("/policy/diff"))["edges"] == []

    async def test_what_is_asked_is_shown_with_its_edge_and_among_the_flows(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            engine = run.controller.engine
            await teach(engine)
            await engine.ingest(instance("cart-0"), "asked", 1, 0, [flow(FRONT, CART, **ASKED)])
            edge = next(edge for edge in (await run.get("/graph"))["edges"] if edge["id"] == EDGE)
            (operation,) = edge["operations"]
            assert (operation["operation"], operation["requests"], operation["denied"]) == ("GET /cart/{id}", 7, 0)
            assert (await run.get("/why", **{"from": "shop/front", "to": "shop/cart", "port": 8080}))["edge"] == edge
            found = (await run.get("/flows", limit=1))["flows"][0]
            assert (found["operation"], found["requests"], found["connections"]) == ("GET /cart/{id}", 7, 0)

    async def test_who_writes_a_services_port_is_told_the_pods(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            asked = {"from": "shop/front", "to": "shop/cart", "port": 80}
            await run.controller.engine.set_mode(CART, None, Mode.ENFORCE, None, "ann", "tested")
            said = (await run.get("/why", **asked))["explanation"]
            assert any("reached at 8080" in line for line in said)
            assert any("hedgerow allow shop/front shop/cart:8080 --for" in line for line in said)
            made = await run.post(
                "/overrides", {"effect": "allow", **asked, **PERSON, "expires_in": 60, "wait": 0}, 201
            )
            assert "reached at 8080" in made["note"]

    async def test_who_allows_an_operation_is_told_that_all_was_learned(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            asked = {"effect": "allow", "from": "shop/front", "to": "shop/cart", "port": 8080, "wait": 0}
            body = {**asked, "operations": ["GET /cart/{id}"], "expires_in": 60, **PERSON}
            assert (await run.post("/overrides", body, 201))["note"] == ""
            await teach(run.controller.engine)
            assert "the connection was learned as a whole" in (await run.post("/overrides", body, 201))["note"]

    async def test_why_and_drift_speak_of_operations(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            engine = run.controller.engine
            call = flow(FRONT, REDIS, 6379)
            await engine.ingest(instance("redis-0"), "boot", 1, 0, [call, flow(FRONT, REDIS, 6379, **ASKED)])
            body = {"effect": "allow", "from": "shop/front", "to": "data/redis", "port": 6379, "expires_in": 60}
            asked = {"operations": ["HEAD /cart/{id}", "PUT /"]}
            made = (await run.post("/overrides", {**body, **asked, **PERSON, "wait": 0}, 201))["override"]
            assert made["operations"] == asked["operations"]
            assert (await run.get("/overrides"))["overrides"] == [made]
            rule = next(each for each in (await run.get("/policy"))["rules"] if each["id"] == made["id"])
            assert rule["operations"] == asked["operations"]
            for ref in (FRONT, REDIS):
                await engine.set_mode(ref, None, Mode.ENFORCE, None, "anna", "test")

            wanted = {"from": "shop/front", "to": "data/redis", "port": 6379}
            why = await run.get("/why", **wanted)
            assert (why["verdict"], why["inbound"]["rule"]["id"]) == ("allow", made["id"])
            assert any("one by one" in line and "HEAD /cart/{id}, PUT /" in line for line in why["explanation"])
            why = await run.get("/why", **wanted, operation="PUT /")
            assert (why["verdict"], why["outbound"]["verdict"]) == ("allow", "allow")
            why = await run.get("/why", **wanted, operation="GET /cart/{id}")
            assert (why["verdict"], why["outbound"]["verdict"]) == ("deny", "allow")
            assert why["inbound"]["reason"] == "no-rule"
            advice = "hedgerow allow shop/front data/redis:6379 --operation 'GET /cart/{id}' --for 1h"
            assert any(advice in line for line in why["explanation"])
            why = await run.get("/why", **{**wanted, "to": "data/legacy"}, operation="PUT /")
            assert any("has no sidecar: nothing here sees or stops single" in line for line in why["explanation"])

            drift = await run.get("/drift")
            key = "shop/front->data/redis:6379/TCP"
            assert drift["unexpected_operations"] == [{"edge": key, "operation": "GET /cart/{id}"}]
            assert drift["unexpected"] == []
            assert [rule["id"] for rule in drift["unused"]] == [made["id"]], "allowed, and not what was asked"

    async def test_a_host_is_opened_explained_and_exported(self, tmp_path: Path) -> None:
        networks = INVENTORY.replace("kind: Inventory", "kind: Inventory\nclusterNetworks: [10.0.0.0/8, 192.0.2.0/24]")
        (tmp_path / "inventory.yaml").write_text(networks)
        async with running(tmp_path) as run:
            body = {"effect": "allow", "from": "shop/front", "to": "-/api.example.com", "port": 443, "expires_in": 60}
            made = (await run.post("/overrides", {**body, **PERSON, "wait": 0}, 201))["override"]
            assert (made["to"], made["operations"]) == ("-/api.example.com", [])
            await run.controller.engine.set_mode(FRONT, None, Mode.ENFORCE, None, "anna", "test")
            asked = {"from": "shop/front", "to": "-/api.example.com", "port": 443}
            why = await run.get("/why", **asked)
            assert why["verdict"] == "allow"
            assert why["outbound"]["rule"]["id"].startswith(f"{made['id']}@")
            why = await run.get("/why", **{**asked, "to": "-/www.example.com"})
            assert why["verdict"] == "deny"
            assert any("hedgerow allow shop/front www.example.com:443 --for" in line for line in why["explanation"])
            assert [rule["id"] for rule in (await run.get("/drift"))["unused"]] == [made["id"]], "once, not in parts"
            call = flow(FRONT, WorkloadRef.external_host("api.example.com"), 443, direction=Direction.OUTBOUND)
            await run.controller.engine.ingest(instance("front-0"), "boot", 1, 0, [call])
            drift = await run.get("/drift")
            assert (drift["unused"], drift["unexpected"]) == ([], [])

            exported = await run.get("/policy/export", format="json")
            (limit,) = (each for each in exported["proof"]["inexpressible"] if each["limit"] == "host")
            assert (limit["workload"], limit["rules"], limit["widens"]) == ("shop/front", [made["id"]], True)
            front = next(each for each in exported["policies"] if each["metadata"]["name"] == "hedgerow-front")
            (entry,) = (each for each in front["spec"]["egress"] if "ipBlock" in str(each))
            blocks = {peer["ipBlock"]["cidr"] for peer in entry["to"]}
            assert {"0.0.0.0/5", "::/0"} < blocks
            assert not {"0.0.0.0/0", "10.0.0.0/8", "192.0.2.0/24"} & blocks

    async def test_the_export_is_network_policies(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            await teach(run.controller.engine)
            exported = await run.get("/policy/export", format="json")
            policies, proof = exported["policies"], exported["proof"]
            assert {each["kind"] for each in policies} == {"NetworkPolicy"}
            # two workloads of this inventory carry no labels, so that a policy for one is a policy for the other
            twins = [limit for limit in proof["inexpressible"] if limit["widens"]]
            assert {limit["workload"] for limit in twins} == {"data/legacy", "data/redis"}
            assert not proof["equal"]
            assert proof["wider"]
            async with run.http.get("/api/v1/policy/export") as response:
                assert response.content_type == "application/yaml"
                text = await response.text()
                assert list(yaml.safe_load_all(text)) == policies
                assert all(f"# {limit['workload']}: {limit['detail']}\n" in text for limit in twins)

    async def test_why_asks_both_ends_and_says_what_to_do(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            engine = run.controller.engine
            await teach(engine)
            asked = {"from": "shop/front", "to": "shop/cart", "port": 8080}
            why = await run.get("/why", **asked)
            assert (why["verdict"], why["pending"], why["edge"]["id"]) == ("allow", "allow", EDGE)
            assert why["inbound"]["rule"]["id"] == f"learned/{EDGE}"
            assert why["inbound"]["mode"] == "learn"

            await engine.set_mode(CART, Direction.INBOUND, Mode.ENFORCE, None, "anna", "test")
            why = await run.get("/why", **{**asked, "port": 9090})
            assert (why["verdict"], why["outbound"]["verdict"], why["inbound"]["reason"]) == (
                "deny",
                "allow",
                "no-rule",
            )
            assert any("hedgerow allow shop/front shop/cart:9090" in line for line in why["explanation"])
            assert "It has never been observed." in why["explanation"]

            override = await engine.create_override(
                OverrideRequest(Verdict.DENY, FRONT, CART, 8080, flow(FRONT, CART).protocol, "anna", "incident 7", 3600)
            )
            why = await run.get("/why", **asked)
            assert why["verdict"] == "deny"
            assert any("an override by anna denies it until" in line for line in why["explanation"])
            assert any(f"hedgerow overrides revoke {override.id}" in line for line in why["explanation"])

            why = await run.get("/why", **{**asked, "to": "-/192.0.2.7"})
            assert (why["inbound"], why["outbound"]["verdict"]) == (None, "allow")
            assert any("192.0.2.7 is outside the inventory" in line for line in why["explanation"])
            why = await run.get("/why", **{**asked, "from": "data/legacy"})
            assert why["outbound"] is None
            assert why["inbound"]["verdict"] == "deny"

    async def test_drift_is_what_was_used_unallowed_and_allowed_unused(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            await teach(run.controller.engine)
            await knock(run.controller.engine)
            body = {
                "effect": "allow",
                "from": "shop/cart",
                "to": "data/redis",
                "port": 6379,
                "expires_in": None,
                "wait": 0,
            }
            made = await run.post("/overrides", {**body, **PERSON}, 201)
            drift = await run.get("/drift")
            assert [edge["id"] for edge in drift["unexpected"]] == ["shop/front->data/redis:6379/TCP"]
            assert [rule["id"] for rule in drift["unused"]] == [made["override"]["id"]]

    async def test_inventory_and_audit(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            inventory = await run.get("/inventory")
            assert set(inventory) == {"clusterNetworks", "namespaces", "workloads", "instances", "services"}
            assert {each["name"] for each in inventory["workloads"]} == {"front", "cart", "redis", "legacy"}
            audit = await run.get("/audit", limit=1)
            assert (len(audit["entries"]), audit["intact"]) == (1, True)
            assert audit["entries"][0]["action"] == "inventory.replace"
            assert audit["entries"][0]["hash"] == (await run.get("/status"))["audit_head"]


class TestChanging:
    async def test_overrides_live_and_end(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            body = {"effect": "allow", "from": "shop/cart", "to": "data/redis", "port": 6379, "expires_in": 3600}
            made = await run.post("/overrides", {**body, **PERSON}, 201)
            override = made["override"]
            assert made["pushed"] is True  # no sidecar is connected that it would concern
            assert (override["state"], override["owner"], override["port"]) == ("active", "anna", 6379)
            assert override["expires_at"] == pytest.approx(override["created_at"] + 3600)
            assert (await run.get("/overrides"))["overrides"] == [override]
            assert (await run.get("/status"))["overrides"] == 1

            async with run.http.delete(f"/api/v1/overrides/{override['id']}", params=PERSON) as response:
                assert (response.status, (await response.json())["override"]["state"]) == (200, "revoked")
            async with run.http.delete(f"/api/v1/overrides/{override['id']}", params=PERSON) as response:
                assert (response.status, (await response.json())["error"]["code"]) == (409, "conflict")
            async with run.http.delete("/api/v1/overrides/override/none", params=PERSON) as response:
                assert (response.status, (await response.json())["error"]["code"]) == (404, "not-found")
            assert (await run.get("/overrides"))["overrides"][0]["state"] == "revoked"

            short = await run.post("/overrides", {**body, **PERSON, "expires_in": 0.05}, 201)
            await eventually(lambda: short["override"]["id"] not in run.controller.engine.view.rules)
            states = [each["state"] for each in (await run.get("/overrides"))["overrides"]]
            assert states == ["revoked", "expired"]

    async def test_modes_of_a_workload_and_of_a_namespace(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            body = {
                "workload": "shop/cart",
                "direction": "inbound",
                "mode": "enforce",
                "inbound_tls": "strict",
                **PERSON,
            }
            changed = await run.post("/modes", body)
            assert (changed["workloads"], changed["pushed"]) == (["shop/cart"], True)
            held = (await run.get("/policy"))["workloads"]["shop/cart"]
            assert (held["inbound_mode"], held["outbound_mode"], held["inbound_tls"]) == ("enforce", "learn", "strict")
            changed = await run.post("/modes", {"namespace": "shop", "mode": "audit", **PERSON})
            assert changed["workloads"] == ["shop/cart", "shop/front"]
            held = (await run.get("/policy"))["workloads"]
            assert {
                (each["inbound_mode"], each["outbound_mode"]) for name, each in held.items() if "shop/" in name
            } == {("audit", "audit")}

    async def test_a_join_token_is_shown_once(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            body = {"workload": "shop/front", "instance": "front-0", "expires_in": 60}
            made = await run.post("/join-tokens", body, 201)
            assert made["token"].startswith("hedgerow-join.")
            assert (made["workload"], made["instance"]) == ("shop/front", "front-0")
            everything = json.dumps([await run.get(path) for path in ("/audit", "/status", "/inventory")])
            assert made["token"] not in everything
            stored = b"".join(path.read_bytes() for path in run.settings.state_dir.glob("controller.db*"))
            assert made["token"].rpartition(".")[2].encode() not in stored
