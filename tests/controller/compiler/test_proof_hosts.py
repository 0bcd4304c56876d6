"""The proof where hosts, operations and other meshes are: what it finds wrong, and what it names as a limit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.compiler import CompileError, Limit, compile_policy, prove
from graph.model import Direction, Selector, Transport, Verdict
from tests.controller.compiler.meshes import override, ref, shop
from tests.controller.compiler.trial import CART, FRONT, tried

API = Selector(host="api.example.com")


def test_a_host_opens_its_port_to_all_addresses_and_that_is_named():
    proof = prove(shop(override(Verdict.ALLOW, CART, API, 443)))
    assert proof.holds
    assert not proof.equal
    assert {(str(f.workload), f.limit, f.rules) for f in proof.inexpressible if f.widens} == {
        ("shop/cart", Limit.HOST, ("override/1",))
    }
    (finding,) = (f for f in proof.inexpressible if f.widens)
    assert "clusterNetworks" in finding.detail
    assert {(str(a.workload), a.direction, a.first_port, a.last_port) for a in proof.wider} == {
        ("shop/cart", Direction.OUTBOUND, 443, 443)
    }
    assert "shop/front@10.0.0.1" in {a.peer for a in proof.wider}, "the network layer alone lets it go there"


def test_where_the_clusters_networks_are_known_a_host_does_not_lead_there():
    proof = prove(shop(override(Verdict.ALLOW, CART, API, 443), networks=("10.0.0.0/8", "fd00::/8")))
    assert proof.holds
    assert not any(a.peer.endswith(("@10.0.0.1", "/10.0.0.0")) for a in proof.wider)
    (finding,) = (f for f in proof.inexpressible if f.widens)
    assert finding.limit is Limit.HOST
    assert "outside the cluster's networks" in finding.detail


def test_a_denied_host_inside_an_allowed_network_is_named():
    wide = override(Verdict.ALLOW, CART, Selector(cidr="0.0.0.0/0"), 443, name="wide")
    proof = prove(shop(wide, override(Verdict.DENY, CART, API, 443, name="hole")))
    assert proof.holds
    assert {(f.limit, f.rules) for f in proof.inexpressible if f.widens} == {(Limit.DENY, ("override/hole",))}
    assert all(a.peer.startswith("-/api.example.com@") for a in proof.wider)


def host_forgotten(snapshots, specs, policies):
    """The name is lost on the way, so that the sidecar lets its workload out to everybody."""
    snapshot = snapshots[ref("shop/cart")]
    rules = tuple(
        replace(r, destination=Selector(cidr=r.destination.cidr)) if r.destination.host else r for r in snapshot.rules
    )
    snapshots[ref("shop/cart")] = replace(snapshot, rules=rules)


def host_widened(snapshots, specs, policies):
    snapshot = snapshots[ref("shop/cart")]
    wider = replace(API, host="*.example.com")
    rules = tuple(
        replace(r, destination=replace(wider, cidr=r.destination.cidr)) if r.destination.host else r
        for r in snapshot.rules
    )
    snapshots[ref("shop/cart")] = replace(snapshot, rules=rules)


def host_into_the_cluster(snapshots, specs, policies):
    """A name that leads to an address of the cluster's."""
    snapshot = snapshots[ref("shop/cart")]
    inside = override(Verdict.ALLOW, CART, Selector(host="api.example.com", cidr="10.0.0.0/8"), 443, name="1@inside")
    snapshots[ref("shop/cart")] = replace(snapshot, rules=(*snapshot.rules, inside))


def no_way_out(snapshots, specs, policies):
    """The application could not reach what its sidecar allows."""
    specs["hedgerow-cart"]["egress"] = [e for e in specs["hedgerow-cart"]["egress"] if "ipBlock" not in str(e)]


def half_a_way_out(snapshots, specs, policies):
    for entry in specs["hedgerow-cart"]["egress"]:
        entry["to"] = [peer for peer in entry["to"] if "::" not in str(peer)]


def way_into_the_cluster(snapshots, specs, policies):
    for entry in specs["hedgerow-cart"]["egress"]:
        if "ipBlock" in str(entry):
            entry["to"].append({"ipBlock": {"cidr": "10.0.0.0/8"}})


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (host_forgotten, "the snapshot says allow"),
        (host_widened, "the snapshot says allow"),
        (host_into_the_cluster, "the snapshot says allow"),
        (no_way_out, "narrower"),
        (half_a_way_out, "narrower"),
        (way_into_the_cluster, "wider without a reason"),
    ],
)
def test_a_spoiled_way_to_a_host_does_not_pass(spoil, said):
    policy = shop(override(Verdict.ALLOW, CART, API, 443), networks=("10.0.0.0/8",))
    assert tried(policy, lambda *_: None).holds
    proof = tried(policy, spoil)
    assert any(said in fault for fault in proof.faults), proof.faults


def test_nobody_is_called_from_a_name():
    with pytest.raises(CompileError, match="source"):
        prove(shop(override(Verdict.ALLOW, API, CART, 443)))


@pytest.mark.parametrize("change", [{"meshed": False}, {"transport": Transport.MTLS}])
def test_operations_that_nobody_would_judge_allow_nothing_and_deny_everything(change):
    asked = {"operations": ("GET /",)}
    to_db = Selector.of(ref("shop/db"))
    rules = (
        override(Verdict.ALLOW, CART, to_db, 80, name="allow", **asked),
        override(Verdict.DENY, FRONT, to_db, 80, name="deny", **asked),
        override(Verdict.ALLOW, FRONT, to_db, 80, name="under"),
    )
    workloads = tuple(replace(w, **change) if w.ref == ref("shop/db") else w for w in shop().workloads)
    policy = shop(*rules, workloads=workloads)
    compiled = compile_policy(policy)
    assert compiled.proof.equal
    assert {(f.limit, f.rules) for f in compiled.proof.inexpressible if f.limit is Limit.OPERATIONS} == {
        (Limit.OPERATIONS, ("override/allow",)),
        (Limit.OPERATIONS, ("override/deny",)),
    }
    assert "override/allow" not in {rule.id for rule in compiled.snapshots[ref("shop/cart")].rules}
    (deny,) = (rule for rule in compiled.snapshots[ref("shop/front")].rules if rule.id == "override/deny")
    assert deny.operations == ()


def test_another_meshs_workload_has_a_policy_and_no_snapshot():
    workloads = tuple(
        replace(w, transport=Transport.MTLS, account_identity=True) if w.ref == ref("shop/cart") else w
        for w in shop().workloads
    )
    compiled = compile_policy(shop(workloads=workloads))
    assert compiled.proof.equal
    assert set(compiled.snapshots) == {ref("shop/front")}
    named = {p["metadata"]["annotations"]["hedgerow.dev/workload"]: p["spec"] for p in compiled.network_policies}
    assert "8080" in str(named["shop/cart"]["ingress"])
    assert "15020" not in str(named["shop/cart"]), "it has no sidecar that would be probed"


def test_two_who_prove_one_account_can_not_be_told_apart():
    workloads = tuple(
        replace(w, transport=Transport.MTLS, account_identity=True, service_account="default")
        if w.ref == ref("shop/cart")
        else w
        for w in shop().workloads
    )
    with pytest.raises(CompileError, match="told apart"):
        prove(shop(workloads=workloads))
