"""NetworkPolicies: their shape, their names, and what they say of a small shop, word for word."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from controller.compiler import compile_policy, network_policies, network_policy_files, to_yaml
from controller.compiler.networkpolicy import policy_name
from controller.view import WorkloadMode
from graph.model import InboundTls, Mode, PortRange, Protocol, Selector, Verdict
from tests.controller.compiler.meshes import instance, learned, override, ref, shop, workload

GOLDEN = Path(__file__).parent / "golden"
VERSION = kubernetes_validate.latest_version()


def spec(policy, name):
    """The spec of one workload's policy."""
    found = [
        p["spec"] for p in network_policies(policy) if p["metadata"]["annotations"]["hedgerow.dev/workload"] == name
    ]
    assert len(found) == 1
    return found[0]


def pods(name: str) -> dict[str, object]:
    target = ref(name)
    return {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": target.namespace}},
        "podSelector": {"matchLabels": {"app": target.name}},
    }


def opened(entries, key, peer):
    """The ports that one entry opens to exactly this peer."""
    return [entry["ports"] for entry in entries if peer in entry.get(key, ())]


def test_a_small_shop_word_for_word():
    text = to_yaml(network_policies(shop(learned("legacy/client", "shop/front", 8080))))
    assert text == (GOLDEN / "shop.yaml").read_text(encoding="utf-8")


def test_every_policy_is_what_kubernetes_takes():
    policies = network_policies(
        shop(
            override(Verdict.ALLOW, Selector(cidr="192.0.2.0/24"), Selector.of(ref("shop/front")), 1),
            override(Verdict.ALLOW, Selector(), Selector.of(ref("shop/cart")), name="2"),
        )
    )
    assert len(policies) == 4
    for policy in policies:
        kubernetes_validate.validate(policy, VERSION, strict=True)
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
        assert policy["metadata"]["labels"] == {"app.kubernetes.io/managed-by": "hedgerow"}


def test_a_peer_is_a_namespace_and_pods_of_it_in_one_entry():
    assert opened(spec(shop(), "shop/cart")["ingress"], "from", pods("shop/front")) == [
        [{"protocol": "TCP", "port": 8080}]
    ]
    assert opened(spec(shop(), "shop/front")["egress"], "to", pods("shop/cart")) == [
        [{"protocol": "TCP", "port": 8080}]
    ]


def test_the_policies_of_the_cluster_itself_are_not_ours():
    dns = workload("kube-system/coredns", labels={"k8s-app": "kube-dns"}, meshed=False)
    controller = workload("hedgerow-system/hedgerow-controller", meshed=False)
    names = {p["metadata"]["name"] for p in network_policies(shop(workloads=(*shop().workloads, dns, controller)))}
    assert names == {"hedgerow-cart", "hedgerow-client", "hedgerow-db", "hedgerow-front"}


def test_the_controller_is_selected_by_the_labels_that_it_has():
    labels = {"app.kubernetes.io/name": "hedgerow", "app.kubernetes.io/component": "controller"}
    controller = workload("ops/control", labels=labels, meshed=False)
    policy = shop(workloads=(*shop().workloads, controller), control_plane=ref("ops/control"))
    peer = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ops"}},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "hedgerow"}},
    }
    assert opened(spec(policy, "shop/front")["egress"], "to", peer) == [
        [{"protocol": "TCP", "port": 15012, "endPort": 15013}]
    ]


def test_probes_and_dns_and_nothing_for_a_workload_that_nobody_uses():
    alone = spec(shop(workloads=(*shop().workloads, workload("shop/alone"))), "shop/alone")
    assert [entry for entry in alone["ingress"] if "from" not in entry] == [
        {"ports": [{"protocol": "TCP", "port": 15020, "endPort": 15021}]}
    ]
    dns = [entry["ports"] for entry in alone["egress"] if "kube-dns" in str(entry)]
    assert dns == [[{"protocol": "TCP", "port": 53}, {"protocol": "UDP", "port": 53}]]


def test_quarantine_leaves_the_control_plane_only():
    mode = WorkloadMode(Mode.QUARANTINE, Mode.QUARANTINE)
    cut = spec(shop(modes={ref("shop/front"): mode}), "shop/front")
    assert cut["ingress"] == []
    assert [entry["ports"] for entry in cut["egress"]] == [[{"protocol": "TCP", "port": 15012, "endPort": 15013}]]


@pytest.mark.parametrize("mode", [Mode.LEARN, Mode.AUDIT, Mode.ENFORCE])
def test_the_policy_is_the_fence_as_it_will_be(mode):
    modes = {workload.ref: WorkloadMode(mode, mode) for workload in shop().workloads}
    assert network_policies(shop(modes=modes)) == network_policies(shop())


def test_a_denied_peer_is_left_out():
    deny = override(Verdict.DENY, Selector.of(ref("shop/front")), Selector.of(ref("shop/cart")), 8080)
    assert opened(spec(shop(deny), "shop/cart")["ingress"], "from", pods("shop/front")) == []
    assert opened(spec(shop(deny), "shop/front")["egress"], "to", pods("shop/cart")) == []


def test_a_denied_port_is_cut_out_of_a_range():
    wide = override(Verdict.ALLOW, Selector.of(ref("shop/front")), Selector.of(ref("shop/cart")), name="wide")
    wide = replace(wide, ports=(PortRange(8000, 8100),))
    deny = override(Verdict.DENY, Selector.of(ref("shop/front")), Selector.of(ref("shop/cart")), 8050)
    ports = opened(spec(shop(wide, deny), "shop/cart")["ingress"], "from", pods("shop/front"))
    assert ports == [
        [
            {"protocol": "TCP", "port": 8000, "endPort": 8049},
            {"protocol": "TCP", "port": 8051, "endPort": 8100},
        ]
    ]


def test_a_denied_network_is_cut_out_of_a_wider_one():
    wide = override(Verdict.ALLOW, Selector.of(ref("shop/front")), Selector(cidr="192.0.2.0/30"), 443, name="wide")
    hole = override(Verdict.DENY, Selector.of(ref("shop/front")), Selector(cidr="192.0.2.1/32"), name="hole")
    entries = spec(shop(wide, hole), "shop/front")["egress"]
    blocks = [peer["ipBlock"]["cidr"] for entry in entries for peer in entry["to"] if "ipBlock" in peer]
    assert sorted(blocks) == ["192.0.2.0/32", "192.0.2.2/31"]


def test_every_port_of_a_protocol_is_written_without_numbers():
    allow = override(
        Verdict.ALLOW, Selector.of(ref("shop/front")), Selector.of(ref("shop/cart")), protocol=Protocol.UDP
    )
    [ports] = opened(spec(shop(allow), "shop/cart")["ingress"], "from", pods("shop/front"))
    assert ports == [{"protocol": "TCP", "port": 8080}, {"protocol": "UDP"}]


def test_a_rule_for_everybody_has_no_peers():
    allow = override(Verdict.ALLOW, Selector(), Selector.of(ref("shop/cart")), 9)
    entries = [entry for entry in spec(shop(allow), "shop/cart")["ingress"] if "from" not in entry]
    assert entries == [
        {"ports": [{"protocol": "TCP", "port": 9}, {"protocol": "TCP", "port": 15020, "endPort": 15021}]}
    ]


def test_a_source_without_a_sidecar_has_no_way_in_under_strict_tls():
    rule = learned("legacy/client", "shop/cart", 8080)
    strict = WorkloadMode(Mode.ENFORCE, Mode.ENFORCE, InboundTls.STRICT)
    assert opened(spec(shop(rule), "shop/cart")["ingress"], "from", pods("legacy/client"))
    assert not opened(
        spec(shop(rule, modes={ref("shop/cart"): strict}), "shop/cart")["ingress"], "from", pods("legacy/client")
    )


def test_policies_do_not_change_when_a_pod_gets_another_address():
    policy = shop(learned("legacy/client", "shop/front", 8080))
    moved = replace(policy, instances=(instance("shop/front", "10.7.7.7"), instance("legacy/client", "10.7.7.8")))
    assert network_policies(policy) == network_policies(moved)


def test_the_order_of_the_input_does_not_matter():
    policy = shop(learned("shop/front", "shop/cart", 1), learned("legacy/client", "shop/cart", 1))
    turned = replace(
        policy, rules=policy.rules[::-1], workloads=policy.workloads[::-1], instances=policy.instances[::-1]
    )
    assert to_yaml(network_policies(policy)) == to_yaml(network_policies(turned))


def test_the_generation_follows_the_rules():
    def generations(policy):
        return {p["metadata"]["name"]: p["metadata"]["annotations"]["hedgerow.dev/generation"] for p in policy}

    before = generations(network_policies(shop()))
    later = generations(network_policies(shop(learned("shop/front", "shop/cart", 9))))
    assert {name for name in before if before[name] != later[name]} == {"hedgerow-front", "hedgerow-cart"}


def test_an_expired_rule_is_left_out():
    allow = override(Verdict.ALLOW, Selector(), Selector.of(ref("shop/db")), 9, expires_at=50.0)
    assert "9" in str(network_policies(shop(allow), 49.0, only={ref("shop/db")})[0]["spec"]["ingress"])
    assert network_policies(shop(allow), 50.0) == network_policies(shop())


def test_only_the_wanted_ones_are_made():
    whole = {p["metadata"]["name"]: p for p in network_policies(shop())}
    assert network_policies(shop(), only={ref("shop/cart")}) == [whole["hedgerow-cart"]]
    assert [str(name) for name in compile_policy(shop(), only={ref("shop/cart")}).snapshots] == ["shop/cart"]


# Names

_segment = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,70}[a-z0-9])?", fullmatch=True)
_names = st.lists(_segment, min_size=1, max_size=6).map(".".join).filter(lambda name: len(name) <= 253)
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


@given(_names)
def test_every_name_is_one_that_kubernetes_takes(name):
    found = policy_name(name)
    assert len(found) <= 253
    assert SUBDOMAIN.fullmatch(found)


@pytest.mark.parametrize("tail", ["a", "-b", ".c"])
def test_long_names_are_cut_and_stay_apart(tail):
    long = "x" * 226 + "." + "y" * 20
    assert policy_name("cart") == "hedgerow-cart"
    assert policy_name(long) != policy_name(long + tail.replace("-b", "b").replace(".c", "c"))
    assert policy_name(long) == policy_name(long)
    assert policy_name("x" * 227 + tail + "zzzzzzzzzzzzzzzzzzzzzzz").startswith("hedgerow-xxx")


def test_one_file_for_each_policy():
    files = network_policy_files(network_policies(shop()))
    assert sorted(files) == [
        "legacy.hedgerow-client.yaml",
        "shop.hedgerow-cart.yaml",
        "shop.hedgerow-db.yaml",
        "shop.hedgerow-front.yaml",
    ]
    for name, text in files.items():
        [policy] = yaml.safe_load_all(text)
        assert name == f"{policy['metadata']['namespace']}.{policy['metadata']['name']}.yaml"


# Names and networks that overlap


def test_a_workload_that_a_rule_names_is_named_even_where_a_network_covers_it():
    """Plugins differ on whether an ipBlock means pods, and addresses change; what was learned has to hold."""
    network = override(Verdict.ALLOW, Selector(cidr="10.0.0.0/8"), Selector.of(ref("shop/cart")), 8080)
    entries = spec(shop(network), "shop/cart")["ingress"]
    assert opened(entries, "from", pods("shop/front"))
    assert opened(entries, "from", {"ipBlock": {"cidr": "10.0.0.0/8"}})


def test_a_workload_that_only_a_network_covers_is_not_named():
    network = override(Verdict.ALLOW, Selector(cidr="10.0.0.0/8"), Selector.of(ref("shop/cart")), 8080)
    entries = spec(shop(network), "shop/cart")["ingress"]
    assert not opened(entries, "from", pods("shop/db"))
    assert not opened(entries, "from", pods("legacy/client"))


def test_a_host_opens_its_port_to_every_address_that_is_not_the_clusters():
    rule = override(Verdict.ALLOW, Selector.of(ref("shop/cart")), Selector(host="api.example.com"), 443)
    ports = [{"protocol": "TCP", "port": 443}]
    everywhere = [{"ipBlock": {"cidr": "0.0.0.0/0"}}, {"ipBlock": {"cidr": "::/0"}}]
    assert {"to": everywhere, "ports": ports} in spec(shop(rule), "shop/cart")["egress"]
    known = spec(shop(rule, networks=("0.0.0.0/1", "8000::/1")), "shop/cart")["egress"]
    assert {"to": [{"ipBlock": {"cidr": "128.0.0.0/1"}}, {"ipBlock": {"cidr": "::/1"}}], "ports": ports} in known
    assert "ipBlock" not in str(spec(shop(rule), "shop/cart")["ingress"])
    assert "ipBlock" not in str(spec(shop(rule), "shop/front")), "it is one workload's way out"


def test_a_denied_host_opens_nothing():
    rule = override(Verdict.DENY, Selector.of(ref("shop/cart")), Selector(host="api.example.com"), 443)
    assert network_policies(shop(rule)) != network_policies(shop()), "the annotation names its rules"
    assert [p["spec"] for p in network_policies(shop(rule))] == [p["spec"] for p in network_policies(shop())]
