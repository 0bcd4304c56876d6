"""Networks and names outside: what is opened there, and that it is never a way to a workload."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.compiler import Limit, compile_policy, compile_snapshot, prove
from controller.compiler.baseline import form_of
from controller.compiler.labels import pod_selectors
from controller.compiler.proof import compare
from controller.view import WorkloadMode
from graph.model import Connection, Direction, InboundTls, Mode, Peer, Selector, Verdict
from graph.policy import Reason, decide
from tests.controller.compiler.meshes import instance, override, ref, shop, workload

ALLOW, DENY = Verdict.ALLOW, Verdict.DENY
CART = Selector.of(ref("shop/cart"))
ENFORCE = WorkloadMode(Mode.ENFORCE, Mode.ENFORCE)
STRICT = WorkloadMode(Mode.ENFORCE, Mode.ENFORCE, InboundTls.STRICT)
CLUSTER = ("10.0.0.0/16", "fd00::/8")


def outside(cidr: str) -> Selector:
    return Selector(cidr=cidr, outside=True)


def egress(policy, peer, port=443):
    snapshot = compile_snapshot(replace(policy, modes={ref("shop/cart"): ENFORCE}), ref("shop/cart"))
    me = Peer(ref("shop/cart"), "shop", "cart", "10.0.0.3", verified=True)
    return decide(snapshot, Connection(Direction.OUTBOUND, me, peer, port), 0.0)


def ingress(policy, peer, port=8080, mode=ENFORCE):
    snapshot = compile_snapshot(replace(policy, modes={ref("shop/cart"): mode}), ref("shop/cart"))
    me = Peer(ref("shop/cart"), "shop", "cart", "10.0.0.3", verified=True)
    return decide(snapshot, Connection(Direction.INBOUND, peer, me, port), 0.0)


def entries(policy, way):
    made = {p["metadata"]["annotations"]["hedgerow.dev/workload"]: p for p in compile_policy(policy).network_policies}
    return made["shop/cart"]["spec"][way]


def opened(policy, way):
    """The networks that the NetworkPolicy of the cart opens."""
    peers = (peer for entry in entries(policy, way) for peer in entry.get("to", entry.get("from", ())))
    return sorted(peer["ipBlock"]["cidr"] for peer in peers if "ipBlock" in peer)


def test_a_network_outside_is_opened_on_its_port_alone():
    policy = shop(override(ALLOW, CART, outside("203.0.113.0/24"), 443))
    assert egress(policy, Peer(address="203.0.113.9")).reason is Reason.ALLOW_OVERRIDE
    assert not egress(policy, Peer(address="203.0.114.9")).allowed
    assert not egress(policy, Peer(address="203.0.113.9"), 80).allowed
    ports = [{"protocol": "TCP", "port": 443}]
    assert {"to": [{"ipBlock": {"cidr": "203.0.113.0/24"}}], "ports": ports} in entries(policy, "egress")
    assert prove(policy).equal


@pytest.mark.parametrize("target", ["shop/db", "legacy/client", "shop/front"])
def test_an_address_is_no_way_to_a_workload(target):
    """With a sidecar or without one: the directory knows whose address it is."""
    policy = shop(override(ALLOW, CART, outside("10.0.0.0/8"), 443))
    name = ref(target)
    address = next(each.address for each in policy.instances if each.workload == name)
    assert not egress(policy, Peer(name, name.namespace, address=address)).allowed
    assert egress(policy, Peer(address="10.9.9.9")).allowed
    owner = replace(policy, modes={name: ENFORCE})
    if target == "shop/front":
        snapshot = compile_snapshot(owner, name)
        assert not any(rule.id.startswith("override/") for rule in snapshot.rules), "it is nobody's way in either"


def test_what_comes_from_a_network_is_let_in_and_who_proves_to_be_a_workload_is_judged_as_one():
    policy = shop(override(ALLOW, outside("198.51.100.0/24"), CART, 9000), networks=CLUSTER)
    assert ingress(policy, Peer(address="198.51.100.7"), 9000).reason is Reason.ALLOW_OVERRIDE
    assert not ingress(policy, Peer(address="198.51.101.7"), 9000).allowed
    proved = Peer(ref("shop/front"), "shop", "default", "198.51.100.7", verified=True)
    assert ingress(policy, proved, 9000).reason is Reason.NO_RULE
    account = Peer(None, "shop", "default", "198.51.100.7", verified=True)
    assert ingress(policy, account, 9000).reason is Reason.NO_RULE
    assert ingress(policy, Peer(address="198.51.100.7"), 9000, STRICT).reason is Reason.PLAINTEXT_REFUSED
    assert opened(policy, "ingress") == ["198.51.100.0/24"]


@pytest.mark.parametrize("way", ["egress", "ingress"])
def test_a_wide_network_stops_at_the_clusters_own(way):
    ends = (CART, outside("0.0.0.0/0")) if way == "egress" else (outside("0.0.0.0/0"), CART)
    policy = shop(override(ALLOW, *ends, 443), networks=CLUSTER)
    ask = egress if way == "egress" else ingress
    assert ask(policy, Peer(address="203.0.113.9"), 443).allowed
    assert not ask(policy, Peer(address="10.0.200.9"), 443).allowed, "nobody that the inventory knows"
    assert not ask(policy, Peer(address="fd00::9"), 443).allowed
    blocks = opened(policy, way)
    assert "10.1.0.0/16" in blocks
    assert not any(block.startswith("10.0.") for block in blocks)
    assert prove(policy).equal


def test_one_address_inside_the_clusters_networks_is_what_somebody_meant():
    policy = shop(override(ALLOW, CART, outside("10.0.200.9/32"), 9100), networks=CLUSTER)
    assert egress(policy, Peer(address="10.0.200.9"), 9100).allowed
    assert not egress(policy, Peer(ref("legacy/client"), "legacy", address="10.0.200.9"), 9100).allowed


def test_where_the_clusters_networks_are_not_known_the_network_layer_opens_workloads_too_and_that_is_named():
    proof = prove(shop(override(ALLOW, CART, outside("10.0.0.0/8"), 443)))
    assert proof.holds
    assert not proof.equal
    (finding,) = (f for f in proof.inexpressible if f.widens)
    assert (str(finding.workload), finding.limit, finding.rules) == ("shop/cart", Limit.NETWORK, ("override/1",))
    assert "clusterNetworks" in finding.detail
    assert "shop/front@10.0.0.1" in {atom.peer for atom in proof.wider}
    assert not any(atom.peer.startswith("-/") for atom in proof.wider)


def test_a_denied_network_is_denied_to_everybody_at_its_addresses():
    opened = override(ALLOW, CART, Selector.of(ref("shop/db")), name="opened")
    policy = shop(opened, override(DENY, CART, outside("10.0.0.0/24"), name="closed"))
    assert egress(policy, Peer(ref("shop/db"), "shop", address="10.0.0.4"), 5432).reason is Reason.DENY_OVERRIDE
    assert prove(policy).holds
    front = compile_snapshot(policy, ref("shop/front"))
    assert not any(rule.id.startswith("override/closed") for rule in front.rules), "it is about what the cart calls"


def test_a_deny_goes_above_an_allow_however_narrow_that_is():
    narrow = override(ALLOW, CART, outside("203.0.113.9/32"), 443, name="a")
    for wide in ("203.0.113.0/24", "0.0.0.0/0"):
        policy = shop(narrow, override(DENY, CART, outside(wide), name="z"))
        assert egress(policy, Peer(address="203.0.113.9")).reason is Reason.DENY_OVERRIDE
    host = override(ALLOW, CART, Selector(host="api.example.com"), 443, name="a")
    policy = shop(host, override(DENY, CART, Selector(host="*.example.com"), name="z"))
    assert egress(policy, Peer(address="203.0.113.9", host="api.example.com")).reason is Reason.DENY_OVERRIDE
    hole = shop(
        override(ALLOW, CART, outside("203.0.113.0/30"), 443, name="a"),
        override(DENY, CART, outside("203.0.113.1/32"), name="z"),
    )
    blocks = opened(hole, "egress")
    assert blocks == ["203.0.113.0/32", "203.0.113.2/31"]


def test_names_below_a_domain_are_named_as_a_limit_of_networkpolicy():
    proof = prove(shop(override(ALLOW, CART, Selector(host="*.example.com"), 443), networks=CLUSTER))
    assert proof.holds
    (finding,) = (f for f in proof.inexpressible if f.widens)
    assert finding.limit is Limit.HOST


def said_of_names(policy) -> set[str]:
    annotations = (made["metadata"]["annotations"] for made in compile_policy(policy).network_policies)
    return {each["hedgerow.dev/names"] for each in annotations if "hedgerow.dev/names" in each}


@pytest.mark.parametrize(("networks", "where"), [((), "every address there is"), (CLUSTER, "outside the cluster's")])
def test_a_policy_says_itself_of_which_names_it_knows_nothing(networks, where):
    rules = [override(ALLOW, CART, Selector(host=host), 443, name=host) for host in ("*.example.com", "a.example.net")]
    denied = override(DENY, CART, Selector(host="b.example.net"), name="deny")
    (said,) = said_of_names(shop(*rules, denied, networks=networks))
    assert said.startswith("*.example.com, a.example.net: a NetworkPolicy knows no names")
    assert where in said
    assert said_of_names(shop(denied, networks=networks)) == set()
    many = shop(*(override(ALLOW, CART, Selector(host=f"a{n}.example.com"), 1, name=f"{n}") for n in range(30)))
    (said,) = said_of_names(many)
    assert "and 10 more: " in said
    assert len(said) < 1000


def test_a_snapshot_that_lost_the_mark_is_found_out():
    policy = shop(override(ALLOW, CART, outside("10.0.0.0/8"), 443))
    compiled, form = compile_policy(policy), form_of(policy, 0.0)
    held = compiled.snapshots[ref("shop/cart")]
    rules = tuple(replace(r, destination=replace(r.destination, outside=False)) for r in held.rules)
    snapshots = {**compiled.snapshots, ref("shop/cart"): replace(held, rules=rules)}
    subjects = [subject for subject in form.subjects.values() if subject.listed]
    proof = compare(form, subjects, snapshots, compiled.network_policies, pod_selectors(form.subjects.values()))
    assert any("the snapshot says allow" in fault and "shop/front" in fault for fault in proof.faults)


def test_an_address_that_becomes_a_workloads_opens_nothing_any_more():
    rule = override(ALLOW, CART, outside("10.0.7.7/32"), 443)
    before = shop(rule)
    after = shop(
        rule,
        workloads=(*before.workloads, workload("shop/new")),
        instances=(*before.instances, instance("shop/new", "10.0.7.7")),
    )
    assert egress(before, Peer(address="10.0.7.7")).allowed
    assert not egress(after, Peer(ref("shop/new"), "shop", address="10.0.7.7")).allowed
    modes = {ref("shop/new"): ENFORCE}
    snapshot = compile_snapshot(replace(after, modes=modes), ref("shop/new"))
    cart = Peer(ref("shop/cart"), "shop", "cart", "10.0.0.3", verified=True)
    me = Peer(ref("shop/new"), "shop", "default", "10.0.7.7", verified=True)
    assert not decide(snapshot, Connection(Direction.INBOUND, cart, me, 443), 0.0).allowed
