"""Hosts outside that a workload inspects: from the inventory to the snapshot, to what is signed, and to rules."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from certs.inspection import HostSigner
from certs.keys import make_csr, new_key
from controller import overrides
from controller.compiler import PolicyInput, compile_policy
from controller.engine import ingest
from controller.errors import InvalidRequest, InventoryError
from controller.inspection import ROOT_FILE
from graph.flow import EdgeKey
from graph.model import (
    Connection,
    Direction,
    InspectedHost,
    Mode,
    Origin,
    Peer,
    PortRange,
    Protocol,
    Rule,
    Selector,
    Verdict,
    WorkloadRef,
)
from graph.policy import admit, decide
from graph.wire import hedgerow_pb2 as pb
from graph.wire import hedgerow_pb2_grpc as rpc
from tests.controller.mesh import CART, FRONT, INVENTORY, NOW, flow, instance, inventory
from tests.controller.running import running

API = "api.partner.example"
HOST = WorkloadRef.external_host(API)
INSPECTING = INVENTORY.replace("labels: {app: front},", f"labels: {{app: front}}, inspects: ['{API}:443', {API}],")
READ = "GET /v1/{id}"


# --- the inventory


def test_hosts_are_named_there_each_once() -> None:
    read = inventory(INSPECTING)
    assert read.workloads[FRONT].inspects == (InspectedHost(API, 443),)
    assert read.workloads[CART].inspects == ()
    assert read.to_dict()["workloads"][-1]["inspects"] == [f"{API}:443"]


@pytest.mark.parametrize(
    "written", ["'*.partner.example'", "192.0.2.1", "localhost", "API.partner.example", "'api.partner.example:x'",
                "'api.partner.example:0'", "_x.partner.example"],
)  # fmt: skip
def test_what_is_no_host_is_refused(written: str) -> None:
    with pytest.raises(InventoryError, match="inspects"):
        inventory(INVENTORY.replace("labels: {app: front},", f"labels: {{app: front}}, inspects: [{written}],"))


def test_who_has_no_sidecar_inspects_nothing() -> None:
    with pytest.raises(InventoryError, match="inspects"):
        inventory(INVENTORY.replace("meshed: false,", f"meshed: false, inspects: [{API}],"))


# --- overrides and the compiler


def override(text: str = INSPECTING, **changes: Any) -> Rule:
    asked: dict[str, Any] = {
        "effect": Verdict.ALLOW, "source": FRONT, "destination": HOST, "port": 443, "protocol": Protocol.TCP,
        "owner": "ann", "reason": "the bank", "expires_in": None, "operations": (READ,),
    }  # fmt: skip
    request = overrides.OverrideRequest(**(asked | changes))
    return overrides.rule_of(overrides.make(inventory(text), request, now=NOW, longest=1000.0))


@pytest.mark.parametrize(
    ("changes", "field", "remedy"),
    [
        ({"port": 8443}, "operations", f"inspects: [{API}:8443]"),
        ({"port": None}, "port", "443"),
        ({"destination": WorkloadRef.external_host("www.partner.example")}, "operations", "www.partner.example:443"),
        ({"source": CART}, "operations", "shop/cart"),
    ],
)
def test_operations_are_a_rule_only_where_somebody_reads(changes: dict[str, Any], field: str, remedy: str) -> None:
    assert override().operations == (READ,)
    with pytest.raises(InvalidRequest) as refused:
        override(**changes)
    assert refused.value.field == field
    assert remedy in refused.value.remedy


def compiled(text: str, *rules: Rule) -> Any:
    read = inventory(text)
    return compile_policy(
        PolicyInput(
            read.trust_domain,
            tuple(read.workloads.values()),
            tuple(read.instances.values()),
            tuple(read.services.values()),
            rules=rules,
            networks=("10.0.0.0/8",),
        )
    )


def asked(operation: str = "") -> Connection:
    there = Peer(address="192.0.2.1", host=API)
    return Connection(Direction.OUTBOUND, Peer(FRONT, "shop", verified=True), there, 443, operation=operation)


def rule(effect: Verdict = Verdict.ALLOW, *ports: int) -> Rule:
    ranges = tuple(PortRange.single(port) for port in ports or (443,))
    return Rule(
        "static/x",
        Selector.of(FRONT),
        Selector(host=API),
        ranges,
        operations=(READ,),
        effect=effect,
        origin=Origin.STATIC,
    )


def test_the_snapshot_says_what_is_read_and_holds_the_rules_for_it() -> None:
    snapshot = compiled(INSPECTING, rule()).snapshots[FRONT]  # with its proof, or it would have raised
    assert snapshot.inspects == (InspectedHost(API, 443),)
    assert snapshot.outbound_mode is Mode.ENFORCE
    opening, by_operation = admit(snapshot, asked(), NOW)
    assert (opening.allowed, by_operation) == (True, True)
    verdicts = [decide(snapshot, asked(operation), NOW).allowed for operation in (READ, "DELETE /v1/{id}", "")]
    assert verdicts == [True, False, False]


@pytest.mark.parametrize(("text", "ports"), [(INVENTORY, (443,)), (INSPECTING, (8443,)), (INSPECTING, (443, 8443))])
def test_where_nobody_reads_an_allow_of_operations_opens_nothing(text: str, ports: tuple[int, ...]) -> None:
    snapshot = compiled(text, rule(Verdict.ALLOW, *ports)).snapshots[FRONT]
    assert not admit(snapshot, asked(), NOW)[0].allowed


@pytest.mark.parametrize(("text", "open_still"), [(INVENTORY, False), (INSPECTING, True)])
def test_where_nobody_reads_a_deny_of_operations_is_one_of_everything(text: str, open_still: bool) -> None:
    whole = replace(rule(), id="static/all", operations=())
    snapshot = compiled(text, whole, rule(Verdict.DENY)).snapshots[FRONT]
    assert decide(snapshot, asked("DELETE /v1/{id}"), NOW).allowed is open_still
    assert not decide(snapshot, asked(READ), NOW).allowed


# --- reports


def test_the_source_reports_what_it_judged_outside_and_nothing_else() -> None:
    out = {"direction": Direction.OUTBOUND, "verified": False, "destination_identity": ""}
    request = {"operation": READ, "requests": 3, "connections": 0, "bytes_sent": 0, "bytes_received": 0}
    judged = ingest.judge(flow(FRONT, HOST, 443, **out, **request), instance("front-0"), inventory(), NOW, 600.0)
    assert not isinstance(judged, str)
    assert judged.edge == EdgeKey(FRONT, HOST, 443)
    inside = flow(FRONT, CART, 8080, **out, **request)
    assert ingest.judge(inside, instance("front-0"), inventory(), NOW, 600.0) == "operation-of-another-end"


# --- signatures


async def test_a_sidecar_gets_a_certificate_for_its_workloads_hosts_alone(tmp_path: Path) -> None:
    (tmp_path / "inventory.yaml").write_text(INSPECTING)
    async with running(tmp_path) as run:
        assert not (tmp_path / "state" / ROOT_FILE).exists(), "nothing is made before it is needed"
        key = new_key()
        stub = rpc.InspectionStub(run.mutual(await run.join()))
        answer = await stub.Sign(pb.InspectionRequest(csr_der=make_csr(key)))
        held = HostSigner.checked(tuple(answer.chain_der), key, [API], time.time())
        assert (held.hosts, list(answer.hosts)) == ({API}, [API])
        root = (tmp_path / "state" / ROOT_FILE).read_text()
        assert (tmp_path / "state" / "ca" / "inspection.pem").stat().st_mode & 0o077 == 0
        entries = (await run.get("/audit"))["entries"]
        (entry,) = [each for each in entries if each["action"] == "certificate.inspection"]
        assert (entry["actor"], entry["detail"]["hosts"]) == ("sidecar:shop/front-0", [API])

        for csr, message in ((b"nonsense", "csr"), (make_csr(key)[:-4] + b"\0\0\0\0", "csr")):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.Sign(pb.InspectionRequest(csr_der=csr))
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert message in (refused.value.details() or "")

        other = rpc.InspectionStub(run.mutual(await run.join("shop/cart", "cart-0")))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await other.Sign(pb.InspectionRequest(csr_der=make_csr(key)))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "inspects nothing" in (refused.value.details() or "")

        stranger = rpc.InspectionStub(run.attesting())
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stranger.Sign(pb.InspectionRequest(csr_der=make_csr(key)))
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED, "not on the port for those without a certificate"
    async with running(tmp_path) as run:
        stub = rpc.InspectionStub(run.mutual(await run.join("shop/front", "front-0")))
        await stub.Sign(pb.InspectionRequest(csr_der=make_csr(key)))
        assert (tmp_path / "state" / ROOT_FILE).read_text() == root, "a restart keeps what applications trust"


async def test_a_person_allows_an_operation_and_is_told_who_judges_it(tmp_path: Path) -> None:
    (tmp_path / "inventory.yaml").write_text(INSPECTING)
    async with running(tmp_path) as run:
        body = {
            "effect": "allow", "from": "shop/front", "to": f"-/{API}", "port": 443, "operations": [READ],
            "owner": "ann", "reason": "the bank", "expires_in": None,
        }  # fmt: skip
        made = (await run.post("/overrides", {**body, "wait": 0}, 201))["override"]
        engine = run.controller.engine
        await engine.set_mode(FRONT, None, Mode.ENFORCE, None, "ann", "close it")
        wanted = {"from": "shop/front", "to": f"-/{API}", "port": 443}
        why = await run.get("/why", **wanted)
        assert (why["verdict"], why["outbound"]["rule"]["id"]) == ("allow", made["id"])
        assert any(line.startswith("shop/front judges what is asked one by one") for line in why["explanation"])
        assert (await run.get("/why", **wanted, operation=READ))["verdict"] == "allow"
        why = await run.get("/why", **wanted, operation="DELETE /v1/{id}")
        assert why["verdict"] == "deny"
        advice = f"hedgerow allow shop/front {API}:443 --operation 'DELETE /v1/{{id}}'"
        assert any(advice in line for line in why["explanation"]), why["explanation"]

        out = {"direction": Direction.OUTBOUND, "verified": False, "destination_identity": ""}
        request = {
            "operation": "DELETE /v1/{id}",
            "requests": 3,
            "connections": 0,
            "bytes_sent": 0,
            "bytes_received": 0,
        }
        calls = [flow(FRONT, HOST, 443, **out), flow(FRONT, HOST, 443, **out, **request)]
        await engine.ingest(instance("front-0"), "boot", 1, 0, calls)
        edge = next(edge for edge in (await run.get("/graph"))["edges"] if edge["to"] == f"-/{API}")
        assert [(one["operation"], one["requests"]) for one in edge["operations"]] == [("DELETE /v1/{id}", 3)]
        drift = await run.get("/drift")
        assert drift["unexpected_operations"] == [{"edge": edge["id"], "operation": "DELETE /v1/{id}"}]
        refused = await run.post("/overrides", {**body, "to": "-/www.partner.example"}, 400)
        assert "does not inspect" in str(refused)
        assert "inspects: [www.partner.example:443]" in str(refused)
