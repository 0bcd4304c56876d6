"""The proof finds what is wrong, and names what NetworkPolicy can not say. The proof itself is on trial here."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.compiler import CompileError, Limit, ProofFailed, compile_policy, prove
from controller.compiler.compiling import accepted
from controller.view import WorkloadMode
from graph.model import Direction, InboundTls, Mode, Origin, Protocol, Rule, Selector, Verdict
from tests.controller.compiler.meshes import instance, learned, override, ref, shop, workload
from tests.controller.compiler.trial import CART, FRONT, tried


def test_a_plain_mesh_is_proved_equal():
    proof = prove(shop())
    assert (proof.equal, proof.holds, proof.wider, proof.faults) == (True, True, (), ())


def test_unchanged_it_holds():
    assert tried(shop(), lambda *_: None).equal


def drop_rule(snapshots, specs, policies):
    snapshot = snapshots[ref("shop/cart")]
    snapshots[ref("shop/cart")] = replace(snapshot, rules=tuple(r for r in snapshot.rules if "front" not in r.id))


def add_rule(snapshots, specs, policies):
    snapshot = snapshots[ref("shop/cart")]
    extra = Rule("static/x", Selector(cidr="198.51.100.0/24"), CART, origin=Origin.STATIC)
    snapshots[ref("shop/cart")] = replace(snapshot, rules=(*snapshot.rules, extra))


def strict_lost(snapshots, specs, policies):
    snapshots[ref("shop/front")] = replace(snapshots[ref("shop/front")], inbound_tls=InboundTls.PERMISSIVE)


def narrow(snapshots, specs, policies):
    specs["hedgerow-cart"]["ingress"] = [e for e in specs["hedgerow-cart"]["ingress"] if "front" not in str(e)]


def other_port(snapshots, specs, policies):
    for entry in specs["hedgerow-cart"]["ingress"]:
        if "front" in str(entry):
            entry["ports"] = [{"protocol": "TCP", "port": 8081}]


def other_protocol(snapshots, specs, policies):
    for entry in specs["hedgerow-cart"]["ingress"]:
        if "front" in str(entry):
            entry["ports"] = [{"protocol": "SCTP", "port": 8080}]


def one_port_more(snapshots, specs, policies):
    for entry in specs["hedgerow-cart"]["ingress"]:
        for port in entry["ports"]:
            port["endPort"] = port.get("endPort", port["port"]) + 1


def namespace_or_pods(snapshots, specs, policies):
    """The classic mistake: two entries mean "or"."""
    for entry in specs["hedgerow-cart"]["ingress"]:
        entry["from"] = [{key: value} for peer in entry.get("from", ()) for key, value in peer.items()]


def whole_namespace(snapshots, specs, policies):
    for entry in specs["hedgerow-cart"]["ingress"]:
        for peer in entry.get("from", ()):
            peer.pop("podSelector")


def block(snapshots, specs, policies):
    ports = [{"protocol": "TCP", "port": 1}]
    specs["hedgerow-cart"]["egress"].append({"to": [{"ipBlock": {"cidr": "198.51.100.0/24"}}], "ports": ports})


def no_peers(snapshots, specs, policies):
    for entry in specs["hedgerow-cart"]["ingress"]:
        entry.pop("from", None)


def no_egress_type(snapshots, specs, policies):
    specs["hedgerow-cart"]["policyTypes"] = ["Ingress"]


def wrong_subject(snapshots, specs, policies):
    specs["hedgerow-cart"]["podSelector"] = {"matchLabels": {"app": "front"}}


def lost_policy(snapshots, specs, policies):
    policies[:] = [p for p in policies if p["metadata"]["name"] != "hedgerow-cart"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (drop_rule, "the snapshot says deny"),
        (add_rule, "the snapshot says allow"),
        (strict_lost, "the snapshot says allow"),
        (narrow, "narrower"),
        (other_port, "narrower"),
        (other_protocol, "narrower"),
        (other_protocol, "wider without a reason"),
        (one_port_more, "wider without a reason"),
        (namespace_or_pods, "wider without a reason"),
        (whole_namespace, "wider without a reason"),
        (block, "wider without a reason"),
        (no_peers, "wider without a reason"),
        (no_egress_type, "wider without a reason"),
        (wrong_subject, "wider without a reason"),
        (lost_policy, "wider without a reason"),
    ],
)
def test_a_spoiled_policy_does_not_pass(spoil, said):
    strict = WorkloadMode(Mode.ENFORCE, Mode.ENFORCE, InboundTls.STRICT)
    policy = shop(learned("legacy/client", "shop/front", 8080), modes={ref("shop/front"): strict})
    proof = tried(policy, spoil)
    assert not proof.holds
    assert not proof.equal
    assert any(said in fault for fault in proof.faults), proof.faults


def test_one_forgotten_address_does_not_pass():
    """Peers that the rules treat alike are judged once only when the snapshot treats them alike too."""
    policy = shop(
        learned("legacy/client", "shop/cart", 8080),
        instances=tuple(
            instance("legacy/client", address, number=n) for n, address in enumerate(("10.0.1.1", "10.0.3.1"))
        ),
    )

    def forget(snapshots, specs, policies):
        snapshot = snapshots[ref("shop/cart")]
        rules = tuple(rule for rule in snapshot.rules if rule.source.cidr != "10.0.3.1/32")
        assert len(rules) == len(snapshot.rules) - 1
        snapshots[ref("shop/cart")] = replace(snapshot, rules=rules)

    assert any("10.0.3.1" in fault for fault in tried(policy, forget).faults)


def test_nothing_is_let_through_whose_proof_does_not_hold():
    proof = tried(shop(), drop_rule)
    good = compile_policy(shop())
    assert accepted(good) is good
    with pytest.raises(ProofFailed, match="the policy before it stays in force") as caught:
        accepted(replace(good, proof=proof))
    assert proof.faults[0] in str(caught.value)


def widening(policy):
    return {finding.limit: finding for finding in prove(policy).inexpressible if finding.widens}


def test_a_deny_that_can_be_left_out_widens_nothing_and_is_named():
    deny = override(Verdict.DENY, FRONT, CART, 8080)
    proof = prove(shop(deny))
    assert proof.equal
    assert {(str(f.workload), f.limit, f.rules, f.widens) for f in proof.inexpressible} == {
        ("shop/cart", Limit.DENY, ("override/1",), False),
        ("shop/front", Limit.DENY, ("override/1",), False),
    }


def test_a_deny_inside_a_wider_allow_is_named():
    policy = shop(
        override(Verdict.ALLOW, Selector(), CART, 9, name="wide"), override(Verdict.DENY, FRONT, CART, 9, name="hole")
    )
    proof = prove(policy)
    assert proof.holds
    assert not proof.equal
    assert {
        (str(a.workload), a.direction, a.peer.partition("@")[0], a.first_port, a.last_port) for a in proof.wider
    } == {("shop/cart", Direction.INBOUND, "shop/front", 9, 9)}
    assert widening(policy)[Limit.DENY].rules == ("override/hole",)


def test_an_operation_is_named():
    rule = Rule("static/get", FRONT, CART, origin=Origin.STATIC, operations=("GET /",))
    found = widening(shop(rule))
    assert found[Limit.OPERATIONS].rules == ("static/get",)
    proof = prove(shop(rule))
    assert proof.holds
    assert {atom.protocol for atom in proof.wider} == {Protocol.TCP}


def test_an_account_is_named_and_widens_nothing():
    proof = prove(shop(override(Verdict.ALLOW, Selector("shop", service_account="cart"), FRONT, 9)))
    assert proof.equal
    assert {f.limit for f in proof.inexpressible} == {Limit.ACCOUNT}


def test_an_unknown_workload_is_named():
    proof = prove(shop(learned("shop/gone", "shop/cart", 9)))
    assert proof.equal
    assert {(f.limit, f.rules) for f in proof.inexpressible} == {
        (Limit.UNKNOWN, ("learned/shop/gone->shop/cart:9/TCP",))
    }


def test_twins_are_named():
    twin = workload("shop/twin", labels={"app": "front"})
    policy = shop(workloads=(*shop().workloads, twin))
    proof = prove(policy)
    assert proof.holds
    assert not proof.equal
    assert {f.limit for f in proof.inexpressible if f.widens} == {Limit.LABELS}
    named = {str(f.workload) for f in proof.inexpressible}
    assert {"shop/cart", "shop/twin"} <= named
    assert {atom.peer for atom in proof.wider if atom.workload == ref("shop/cart")} == {"shop/twin"}


def test_a_workload_at_certain_addresses_is_named():
    rule = override(Verdict.ALLOW, Selector("shop", "front", cidr="10.0.0.1/32"), CART, 9)
    found = widening(shop(rule))
    assert found[Limit.ADDRESS].rules == ("override/1",)
    assert {atom.peer for atom in prove(shop(rule)).wider} == {"shop/front@10.0.0.2"}


def test_a_shared_address_is_named():
    policy = shop(learned("legacy/client", "shop/cart", 8080))
    policy = replace(
        policy,
        instances=(
            *policy.instances,
            instance("shop/db", "10.0.1.1", number=8),
            instance("legacy/client", "10.0.1.2", number=8),
        ),
    )
    assert Limit.ADDRESS in widening(policy)


def test_the_proof_of_one_workload_speaks_of_it_alone():
    rule = Rule("static/get", FRONT, CART, origin=Origin.STATIC, operations=("GET /",))
    proof = prove(shop(rule), only={ref("shop/cart")})
    assert {str(atom.workload) for atom in proof.wider} == {"shop/cart"}
    with pytest.raises(CompileError, match="not in the inventory"):
        prove(shop(), only={ref("shop/gone")})


def test_an_atom_reads_well():
    rule = Rule(
        "static/get",
        FRONT,
        CART,
        learned("shop/front", "shop/cart", 9).ports,
        origin=Origin.STATIC,
        operations=("GET /",),
    )
    assert str(prove(shop(rule)).wider[0]) == "shop/cart inbound from shop/front@10.0.0.1, 9/TCP"
