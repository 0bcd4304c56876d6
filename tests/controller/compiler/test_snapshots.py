"""Snapshots: what a sidecar is told, and that it decides by it as people meant."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.compiler import CompileError, baseline_rules, compile_snapshot, compile_snapshots, rule_id
from controller.view import WorkloadMode
from graph.model import (
    Connection,
    Direction,
    InboundTls,
    Mode,
    Origin,
    Peer,
    Port,
    Protocol,
    Rule,
    Selector,
    Transport,
    Verdict,
    WorkloadRef,
)
from graph.policy import Reason, decide
from tests.controller.compiler.meshes import instance, learned, override, ref, shop, workload

ENFORCE = WorkloadMode(Mode.ENFORCE, Mode.ENFORCE)
FRONT = Peer(ref("shop/front"), "shop", "default", "10.0.0.1", verified=True)
CLIENT = Peer(address="10.0.1.1")


def closed(policy, name):
    target = ref(name)
    return compile_snapshot(replace(policy, modes={**policy.modes, target: ENFORCE}), target)


def inbound(policy, name, source, port, *, protocol=Protocol.TCP, now=0.0, operation=""):
    me = Peer(ref(name), verified=True)
    connection = Connection(Direction.INBOUND, source, me, port, protocol, operation)
    return decide(closed(policy, name), connection, now)


def outbound(policy, name, destination, port, *, protocol=Protocol.TCP):
    me = Peer(ref(name), verified=True)
    return decide(closed(policy, name), Connection(Direction.OUTBOUND, me, destination, port, protocol), 0.0)


def test_every_workload_with_a_sidecar_has_one_and_only_it():
    assert sorted(map(str, compile_snapshots(shop()))) == ["shop/cart", "shop/front"]


def test_only_the_rules_that_concern_a_workload_are_in_it():
    extra = learned("shop/x", "shop/y", 1)
    names = [rule.id for rule in compile_snapshot(shop(extra), ref("shop/front")).rules]
    assert names == [
        "baseline/control-plane",
        "baseline/dns/tcp/kube-system/kube-dns",
        "baseline/dns/udp/kube-system/kube-dns",
        "baseline/probes",
        "learned/shop/front->shop/cart:8080/TCP",
    ]


def test_what_was_learned_is_allowed_at_both_ends_and_nothing_else():
    policy = shop()
    cart = Peer(ref("shop/cart"), "shop", "cart", "10.0.0.3", verified=True)
    assert inbound(policy, "shop/cart", FRONT, 8080).allowed
    assert outbound(policy, "shop/front", cart, 8080).allowed
    assert not inbound(policy, "shop/cart", FRONT, 8081).allowed
    assert not inbound(policy, "shop/cart", replace(FRONT, verified=False), 8080).allowed
    assert not outbound(policy, "shop/cart", FRONT, 8080).allowed
    assert outbound(policy, "shop/cart", Peer(ref("shop/db"), "shop", address="10.0.0.4"), 5432).allowed


def test_the_mode_and_an_unknown_workload_is_closed():
    policy = shop(modes={ref("shop/front"): WorkloadMode(Mode.LEARN, Mode.AUDIT, InboundTls.STRICT)})
    snapshots = compile_snapshots(policy)
    front, cart = snapshots[ref("shop/front")], snapshots[ref("shop/cart")]
    assert (front.inbound_mode, front.outbound_mode, front.inbound_tls) == (Mode.LEARN, Mode.AUDIT, InboundTls.STRICT)
    assert (cart.inbound_mode, cart.outbound_mode) == (Mode.ENFORCE, Mode.ENFORCE)
    assert (front.version, front.issued_at, front.trust_domain) == (0, 0.0, "hedgerow.local")


def test_evidence_stays_in_the_controller():
    rule = replace(learned("shop/front", "shop/cart", 1), evidence=("seen",))
    assert all(not known.evidence for known in compile_snapshot(shop(rule), ref("shop/cart")).rules)


def test_the_order_of_the_input_does_not_matter():
    policy = shop(learned("shop/front", "shop/cart", 1), learned("shop/cart", "shop/front", 2))
    turned = replace(
        policy,
        rules=policy.rules[::-1],
        workloads=policy.workloads[::-1],
        instances=policy.instances[::-1],
    )
    assert compile_snapshots(policy) == compile_snapshots(turned)


def test_one_compiled_alone_is_the_one_of_all():
    policy = shop()
    for target, snapshot in compile_snapshots(policy).items():
        assert compile_snapshot(policy, target) == snapshot
        assert compile_snapshots(policy, only={target}) == {target: snapshot}


def test_an_expired_rule_is_left_out():
    allow = override(Verdict.ALLOW, Selector.of(ref("shop/cart")), Selector.of(ref("shop/front")), 1, expires_at=50.0)
    assert allow.id in {rule.id for rule in compile_snapshot(shop(allow), ref("shop/front"), 49.9).rules}
    assert allow.id not in {rule.id for rule in compile_snapshot(shop(allow), ref("shop/front"), 50.0).rules}


# Sources that prove nothing


def test_a_source_without_a_sidecar_is_known_by_its_address():
    policy = shop(learned("legacy/client", "shop/cart", 8080))
    assert inbound(policy, "shop/cart", CLIENT, 8080).allowed
    assert not inbound(policy, "shop/cart", CLIENT, 8081).allowed
    assert not inbound(policy, "shop/cart", Peer(address="10.0.1.2"), 8080).allowed
    names = [rule.id for rule in compile_snapshot(policy, ref("shop/cart")).rules]
    written = [name for name in names if rule_id(name) == "learned/legacy/client->shop/cart:8080/TCP"]
    assert len(written) == 2
    assert "learned/legacy/client->shop/cart:8080/TCP@10.0.1.1/32->shop/cart" in written


def test_strict_tls_refuses_it_all_the_same():
    policy = shop(
        learned("legacy/client", "shop/cart", 8080),
        modes={ref("shop/cart"): WorkloadMode(Mode.ENFORCE, Mode.ENFORCE, InboundTls.STRICT)},
    )
    snapshot = compile_snapshot(policy, ref("shop/cart"))
    connection = Connection(Direction.INBOUND, CLIENT, Peer(ref("shop/cart"), verified=True), 8080)
    assert decide(snapshot, connection, 0.0).reason is Reason.PLAINTEXT_REFUSED


@pytest.mark.parametrize(
    "other", [instance("shop/db", "10.0.1.1", number=7), instance("shop/front", "10.0.1.1", number=7)]
)
def test_an_address_that_two_workloads_share_is_nobodys(other):
    policy = shop(learned("legacy/client", "shop/cart", 8080))
    policy = replace(policy, instances=(*policy.instances, other))
    assert not inbound(policy, "shop/cart", CLIENT, 8080).allowed


@pytest.mark.parametrize("address", ["127.0.0.9", "::1", "0.0.0.0", "224.0.0.1"])
def test_loopback_and_its_like_are_nobodys(address):
    policy = shop(learned("legacy/client", "shop/cart", 8080), instances=(instance("legacy/client", address),))
    assert not inbound(policy, "shop/cart", Peer(address=address), 8080).allowed


def test_a_denied_workload_can_not_go_round_its_own_sidecar():
    """In learn mode everything is open; a deny override holds there too, also for plaintext from the same pod."""
    deny = override(Verdict.DENY, Selector.of(ref("shop/front")), Selector.of(ref("shop/cart")))
    policy = shop(deny, modes={ref("shop/cart"): WorkloadMode()})
    snapshot = compile_snapshot(policy, ref("shop/cart"))
    me = Peer(ref("shop/cart"), verified=True)
    for source in (FRONT, Peer(address="10.0.0.1"), Peer(address="10.0.0.2")):
        decision = decide(snapshot, Connection(Direction.INBOUND, source, me, 8080), 0.0)
        assert decision.reason is Reason.DENY_OVERRIDE
        assert rule_id(decision.rule_id) == "override/1"
    assert decide(snapshot, Connection(Direction.INBOUND, CLIENT, me, 8080), 0.0).allowed


def test_neighbouring_addresses_are_written_as_one_network():
    instances = tuple(instance("legacy/client", f"10.0.1.{n}", number=n) for n in range(8))
    policy = shop(learned("legacy/client", "shop/cart", 8080), instances=instances)
    cidrs = [rule.source.cidr for rule in compile_snapshot(policy, ref("shop/cart")).rules if rule.source.cidr]
    assert cidrs == ["10.0.1.0/29"]


# Wide selectors


def test_a_service_account_means_its_workloads():
    allow = override(Verdict.ALLOW, Selector("shop", service_account="cart"), Selector.of(ref("shop/front")), 9)
    policy = shop(allow)
    cart = Peer(ref("shop/cart"), "shop", "", "10.0.0.3")  # the account of a destination is not always known
    assert outbound(policy, "shop/cart", Peer(ref("shop/front"), "shop"), 9).allowed
    assert inbound(policy, "shop/front", Peer(ref("shop/cart"), "shop", "cart", verified=True), 9).allowed
    back = override(Verdict.ALLOW, Selector.of(ref("shop/front")), Selector("shop", service_account="cart"), 9)
    assert outbound(shop(back), "shop/front", cart, 9).allowed
    assert not outbound(shop(back), "shop/front", Peer(ref("shop/db"), "shop"), 9).allowed


def test_a_network_at_the_own_end_holds_for_allow_when_all_instances_are_inside():
    client = Selector.of(ref("legacy/client"))
    inside = override(Verdict.ALLOW, client, Selector(cidr="10.0.0.0/30"), 9)
    partly = override(Verdict.ALLOW, client, Selector(cidr="10.0.0.1/32"), 9)
    assert inbound(shop(inside), "shop/front", CLIENT, 9).allowed
    assert not inbound(shop(partly), "shop/front", CLIENT, 9).allowed


def test_and_for_deny_when_any_is():
    deny = override(Verdict.DENY, Selector(), Selector(cidr="10.0.0.3/32"), name="deny")
    policy = shop(
        deny,
        instances=(*shop().instances, instance("shop/cart", "10.0.0.30", number=2), instance("shop/cart", "10.9.9.9")),
    )
    assert inbound(policy, "shop/cart", FRONT, 8080).reason is Reason.DENY_OVERRIDE


# Baseline


def test_dns_is_the_labelled_workload_where_there_is_one():
    dns = workload("kube-system/coredns", labels={"k8s-app": "kube-dns"}, meshed=False)
    policy = shop(workloads=(*shop().workloads, dns))
    resolver = Peer(ref("kube-system/coredns"), "kube-system")
    for protocol in (Protocol.TCP, Protocol.UDP):
        assert outbound(policy, "shop/front", resolver, 53, protocol=protocol).reason is Reason.BASELINE
    assert not outbound(policy, "shop/front", Peer(address="192.0.2.53"), 53, protocol=Protocol.UDP).allowed
    assert not outbound(policy, "shop/front", resolver, 80).allowed


def test_a_resolver_outside_the_inventory_has_to_be_named():
    policy = shop(resolvers=("192.0.2.53", "10.0.0.4"))
    assert outbound(policy, "shop/front", Peer(address="192.0.2.53"), 53, protocol=Protocol.UDP).allowed
    database = Peer(ref("shop/db"), "shop", address="10.0.0.4")
    assert not outbound(policy, "shop/front", database, 53, protocol=Protocol.UDP).allowed


@pytest.mark.parametrize("controller", [None, ref("ops/hedgerow")])
def test_quarantine_leaves_the_control_plane_only(controller):
    mode = WorkloadMode(Mode.QUARANTINE, Mode.QUARANTINE)
    allow = override(Verdict.ALLOW, Selector(), Selector())
    policy = shop(allow, modes={ref("shop/front"): mode}, control_plane=controller)
    snapshot = compile_snapshot(policy, ref("shop/front"))
    me = Peer(ref("shop/front"), verified=True)
    place = controller or ref("hedgerow-system/hedgerow-controller")

    def allowed(destination: WorkloadRef, port: int, protocol: Protocol = Protocol.TCP) -> bool:
        peer = Peer(destination, destination.namespace)
        return decide(snapshot, Connection(Direction.OUTBOUND, me, peer, port, protocol), 0.0).allowed

    assert allowed(place, 15012)
    assert allowed(place, 15013)
    assert not allowed(place, 15014)
    assert not allowed(ref("shop/cart"), 8080)
    assert not allowed(ref("kube-system/kube-dns"), 53, Protocol.UDP)
    assert not decide(snapshot, Connection(Direction.INBOUND, FRONT, me, 15021), 0.0).allowed


def test_probes_come_in_from_anywhere_also_under_strict_tls():
    policy = shop(modes={ref("shop/front"): WorkloadMode(Mode.ENFORCE, Mode.ENFORCE, InboundTls.STRICT)})
    snapshot = compile_snapshot(policy, ref("shop/front"))
    me = Peer(ref("shop/front"), verified=True)
    node = Peer(address="192.0.2.1")
    for port, expected in ((15019, False), (15020, True), (15021, True), (15022, False)):
        assert decide(snapshot, Connection(Direction.INBOUND, node, me, port), 0.0).allowed is expected


def test_baseline_rules_are_listed_for_every_workload():
    rules = baseline_rules(shop())
    assert all(rule.origin is Origin.BASELINE for rule in rules)
    assert {rule.id for rule in rules if rule.essential} == {"baseline/control-plane"}
    assert sum(rule.id == "baseline/probes" for rule in rules) == 2
    assert sum(rule.protocol is Protocol.UDP for rule in rules) == 4


# Refusals


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (shop(replace(learned("shop/front", "shop/cart", 8080), reason="other")), "two rules are called"),
        (shop(Rule("static/a@b", Selector(), Selector(), origin=Origin.STATIC)), "'@'"),
        (shop(Rule("baseline/x", Selector(), Selector(), origin=Origin.BASELINE)), "baseline"),
        (shop(workloads=(*shop().workloads, workload("shop/cart"))), "listed twice"),
        (shop(instances=(instance("shop/gone", "10.0.0.9"),)), "not a workload of the inventory"),
    ],
)
def test_an_input_that_contradicts_itself_is_refused(policy, said):
    with pytest.raises(CompileError, match=said) as caught:
        compile_snapshots(policy)
    assert caught.value.field
    assert caught.value.remedy


def test_the_same_rule_twice_is_one_rule():
    rule = learned("shop/front", "shop/cart", 8080)
    assert compile_snapshots(shop(rule)) == compile_snapshots(shop())


@pytest.mark.parametrize(("name", "said"), [("shop/gone", "not in the inventory"), ("shop/db", "no sidecar")])
def test_a_workload_without_a_snapshot_is_refused(name, said):
    with pytest.raises(CompileError, match=said):
        compile_snapshot(shop(), ref(name))


def test_many_rules_of_others_cost_nothing_here():
    others = tuple(learned("shop/db", "legacy/client", port) for port in range(1, 400))
    wide = shop(*others)
    assert compile_snapshot(wide, ref("shop/front")) == compile_snapshot(shop(), ref("shop/front"))


# What the inventory says of ports, hosts, other meshes


def test_a_snapshot_says_what_is_spoken_on_the_workloads_own_ports():
    ports = (
        Port(9090, app_protocol="grpc"),
        Port(8080, app_protocol="http"),
        Port(8080, Protocol.UDP, app_protocol="quic"),
        Port(5432),
    )
    policy = shop()
    cart = replace(policy.workloads[1], ports=ports)
    policy = replace(policy, workloads=(policy.workloads[0], cart, *policy.workloads[2:]))
    assert compile_snapshot(policy, ref("shop/cart")).protocols == ((8080, "http"), (9090, "grpc"))
    assert compile_snapshot(policy, ref("shop/front")).protocols == ()


API = Selector(host="api.example.com")


def test_a_host_is_told_as_it_is_where_the_clusters_networks_are_not_known():
    rule = override(Verdict.ALLOW, Selector.of(ref("shop/cart")), API, 443)
    assert rule in compile_snapshot(shop(rule), ref("shop/cart")).rules
    for address in ("192.0.2.7", "10.9.9.9", "2001:db8::7"):
        assert outbound(shop(rule), "shop/cart", Peer(address=address, host="api.example.com"), 443).allowed
    assert not outbound(shop(rule), "shop/cart", Peer(address="192.0.2.7"), 443).allowed
    assert not outbound(shop(rule), "shop/cart", Peer(address="192.0.2.7", host="www.example.com"), 443).allowed
    assert not outbound(shop(rule), "shop/cart", Peer(address="192.0.2.7", host="api.example.com"), 80).allowed


def test_a_host_that_leads_into_the_cluster_is_not_the_host_that_was_meant():
    rule = override(Verdict.ALLOW, Selector.of(ref("shop/cart")), API, 443)
    policy = shop(rule, networks=("10.0.0.0/8", "10.96.0.0/12", "fd00::/8"))
    made = [r for r in compile_snapshot(policy, ref("shop/cart")).rules if rule_id(r.id) == rule.id]
    assert {r.destination.host for r in made} == {"api.example.com"}
    assert len(made) == 8 + 8, "all but one of 256 networks, of each version"
    for address, allowed in {
        "192.0.2.7": True,
        "9.255.255.255": True,
        "11.0.0.0": True,
        "2001:db8::7": True,
        "10.0.0.0": False,
        "10.96.0.1": False,
        "10.255.255.255": False,
        "fd00::1": False,
    }.items():
        peer = Peer(address=address, host="api.example.com")
        assert outbound(policy, "shop/cart", peer, 443).allowed is allowed, address


def test_a_denied_host_is_denied_wherever_it_leads():
    wide = override(Verdict.ALLOW, Selector.of(ref("shop/cart")), Selector(cidr="0.0.0.0/0"), 443, name="2")
    deny = override(Verdict.DENY, Selector.of(ref("shop/cart")), API, 443)
    policy = shop(wide, deny, networks=("10.0.0.0/8",))
    for address in ("192.0.2.7", "10.9.9.9"):
        assert not outbound(policy, "shop/cart", Peer(address=address, host="api.example.com"), 443).allowed
        assert outbound(policy, "shop/cart", Peer(address=address, host="www.example.com"), 443).allowed


def test_a_rule_tied_to_networks_keeps_them():
    tied = replace(API, cidr="10.1.0.0/16")
    rule = override(Verdict.ALLOW, Selector.of(ref("shop/cart")), tied, 443)
    policy = shop(rule, networks=("10.1.2.0/24",))
    for address, allowed in {"10.1.1.1": True, "10.1.2.1": False, "10.2.0.1": False, "192.0.2.7": False}.items():
        peer = Peer(address=address, host="api.example.com")
        assert outbound(policy, "shop/cart", peer, 443).allowed is allowed, address
    inside = shop(override(Verdict.ALLOW, Selector.of(ref("shop/cart")), replace(API, cidr="192.0.2.0/24"), 443),
                  networks=("10.0.0.0/8",))  # fmt: skip
    assert outbound(inside, "shop/cart", Peer(address="192.0.2.7", host="api.example.com"), 443).allowed


def foreign(**changes):
    """The shop where front has another mesh's proxy."""
    policy = shop()
    front = replace(policy.workloads[0], transport=Transport.MTLS, **changes)
    return replace(policy, workloads=(front, *policy.workloads[1:]))


ACCOUNT = Peer(None, "shop", "default", "10.0.0.1", verified=True)


def test_who_proves_an_account_alone_is_known_by_it():
    policy = foreign(account_identity=True)
    assert inbound(policy, "shop/cart", ACCOUNT, 8080).allowed
    assert not inbound(policy, "shop/cart", replace(ACCOUNT, verified=False), 8080).allowed
    assert not inbound(policy, "shop/cart", replace(ACCOUNT, service_account="other"), 8080).allowed
    assert not inbound(policy, "shop/cart", replace(ACCOUNT, namespace="legacy"), 8080).allowed
    assert not inbound(foreign(), "shop/cart", ACCOUNT, 8080).allowed, "that one proves its workload"
    assert inbound(foreign(), "shop/cart", FRONT, 8080).allowed


def test_who_proves_an_account_alone_is_denied_by_it_and_by_its_address():
    deny = override(Verdict.DENY, Selector.of(ref("shop/front")), Selector.of(ref("shop/cart")), 8080)
    policy = foreign(account_identity=True)
    policy = replace(policy, rules=(*policy.rules, deny))
    assert inbound(policy, "shop/cart", replace(ACCOUNT, address="10.0.9.9"), 8080).reason is Reason.DENY_OVERRIDE
    assert inbound(policy, "shop/cart", Peer(address="10.0.0.2"), 8080).reason is Reason.DENY_OVERRIDE
