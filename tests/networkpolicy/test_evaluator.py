"""The evaluator against the examples and sentences of the Kubernetes documentation on NetworkPolicy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.networkpolicy.evaluator import Cluster
from tests.networkpolicy.manifests import InvalidManifest

INVENTORY = """
apiVersion: v1
kind: Namespace
metadata: {name: default, labels: {project: other}}
---
apiVersion: v1
kind: Namespace
metadata: {name: myproject, labels: {project: myproject}}
---
apiVersion: v1
kind: Namespace
metadata: {name: frontend}
---
apiVersion: v1
kind: Pod
metadata: {namespace: default, name: db, labels: {role: db, tier: data}}
spec:
  containers:
  - {name: db, ports: [{containerPort: 6379, name: redis}, {containerPort: 53, name: dns, protocol: UDP}]}
status: {podIP: 10.1.0.1}
---
apiVersion: v1
kind: Pod
metadata: {namespace: default, name: front, labels: {role: frontend, tier: web}}
spec: {containers: [{name: front, ports: [{containerPort: 8080, name: http}]}]}
status: {podIP: 10.1.0.2}
---
apiVersion: v1
kind: Pod
metadata: {namespace: default, name: other, labels: {role: other}}
status: {podIP: 10.1.0.3}
---
apiVersion: v1
kind: Pod
metadata: {namespace: myproject, name: client, labels: {role: client}}
status: {podIP: 10.1.0.4}
---
apiVersion: v1
kind: Pod
metadata: {namespace: frontend, name: client, labels: {role: client}}
spec: {containers: [{name: c, ports: [{containerPort: 9090, name: redis}]}]}
status: {podIP: 10.1.0.5, podIPs: [{ip: 10.1.0.5}, {ip: "2001:db8::5"}]}
"""

DB, FRONT, OTHER = "default/db", "default/front", "default/other"
PROJECT, CLIENT = "myproject/client", "frontend/client"
PODS = (DB, FRONT, OTHER, PROJECT, CLIENT)


def policy(spec: str, namespace: str = "default", name: str = "p") -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": name},
        "spec": yaml.safe_load(spec),
    }


def cluster(*policies: dict[str, Any], **options: Any) -> Cluster:
    return Cluster([*yaml.safe_load_all(INVENTORY), *policies], **options)


def reaching(where: Cluster, destination: str, port: int, protocol: str = "TCP") -> set[str]:
    return {pod for pod in PODS if pod != destination and where.pod_to_pod(pod, destination, port, protocol)}


# The page's first example, as it stands there
EXAMPLE = policy("""
podSelector: {matchLabels: {role: db}}
policyTypes: [Ingress, Egress]
ingress:
- from:
  - ipBlock: {cidr: 172.17.0.0/16, except: [172.17.1.0/24]}
  - namespaceSelector: {matchLabels: {project: myproject}}
  - podSelector: {matchLabels: {role: frontend}}
  ports: [{protocol: TCP, port: 6379}]
egress:
- to: [{ipBlock: {cidr: 10.0.0.0/24}}]
  ports: [{protocol: TCP, port: 5978}]
""")


def test_without_policies_everything_is_allowed() -> None:
    where = cluster()
    assert reaching(where, DB, 6379) == {FRONT, OTHER, PROJECT, CLIENT}
    assert where.pod_to_address(DB, "192.0.2.1", 443)
    assert where.address_to_pod("192.0.2.1", DB, 6379)
    assert len(where.allowed([(6379, "TCP")])) == len(PODS) * (len(PODS) - 1)


def test_the_documented_example_lets_in_what_it_says() -> None:
    where = cluster(EXAMPLE)
    assert reaching(where, DB, 6379) == {FRONT, PROJECT}
    assert reaching(where, DB, 6380) == set()
    assert reaching(where, DB, 6379, "UDP") == set()
    assert where.address_to_pod("172.17.0.9", DB, 6379)
    assert not where.address_to_pod("172.17.1.9", DB, 6379)
    assert where.address_to_pod("172.17.2.0", DB, 6379)
    assert not where.address_to_pod("172.18.0.1", DB, 6379)
    assert where.isolated(DB, "Ingress")
    assert where.isolated(DB, "Egress")
    assert not where.isolated(FRONT, "Ingress")


def test_the_documented_example_lets_out_what_it_says() -> None:
    where = cluster(EXAMPLE)
    assert where.pod_to_address(DB, "10.0.0.200", 5978)
    assert not where.pod_to_address(DB, "10.0.0.200", 5979)
    assert not where.pod_to_address(DB, "10.0.1.1", 5978)
    assert not where.pod_to_pod(DB, FRONT, 8080)


def test_one_list_element_means_both_selectors_and_two_mean_either() -> None:
    both = cluster(
        policy("""
podSelector: {}
ingress:
- from: [{namespaceSelector: {matchLabels: {project: myproject}}, podSelector: {matchLabels: {role: client}}}]
""")
    )
    assert reaching(both, DB, 1) == {PROJECT}
    either = cluster(
        policy("""
podSelector: {}
ingress:
- from: [{namespaceSelector: {matchLabels: {project: myproject}}}, {podSelector: {matchLabels: {role: frontend}}}]
""")
    )
    assert reaching(either, DB, 1) == {PROJECT, FRONT}


def test_an_empty_namespace_selector_is_every_namespace_and_a_missing_one_is_the_own() -> None:
    own = cluster(policy("{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}"))
    assert reaching(own, DB, 1) == {FRONT, OTHER}
    every = cluster(policy("{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}"))
    assert reaching(every, DB, 1) == {FRONT, OTHER, PROJECT, CLIENT}
    assert not every.address_to_pod("192.0.2.1", DB, 1), "a namespace selector selects pods, not addresses"


def test_namespaces_are_selected_by_the_name_that_the_server_puts_on_them() -> None:
    where = cluster(
        policy(
            "{podSelector: {}, ingress: [{from: "
            "[{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: frontend}}}]}]}"
        )
    )
    assert reaching(where, DB, 1) == {CLIENT}


def test_default_deny_all_ingress() -> None:
    where = cluster(policy("{podSelector: {}, policyTypes: [Ingress]}"))
    assert reaching(where, DB, 6379) == set()
    assert where.pod_to_pod(DB, CLIENT, 1), "its own egress stays open, and the other namespace is not selected"
    assert not where.address_to_pod("192.0.2.1", DB, 6379)


def test_allow_all_ingress_beats_no_other_policy_because_policies_add_up() -> None:
    deny, everything = policy("{podSelector: {}}", name="a"), policy("{podSelector: {}, ingress: [{}]}", name="b")
    assert reaching(cluster(deny), DB, 1) == set()
    assert reaching(cluster(deny, everything), DB, 1) == {FRONT, OTHER, PROJECT, CLIENT}


def test_default_deny_all_egress_and_everything() -> None:
    egress = cluster(policy("{podSelector: {}, policyTypes: [Egress]}"))
    assert reaching(egress, DB, 6379) == {PROJECT, CLIENT}
    assert not egress.pod_to_address(DB, "192.0.2.1", 443)
    both = cluster(policy("{podSelector: {}, policyTypes: [Ingress, Egress]}"))
    assert reaching(both, DB, 6379) == set()
    assert not both.pod_to_pod(DB, CLIENT, 1)


def test_both_ends_must_allow() -> None:
    ingress = policy("{podSelector: {matchLabels: {role: db}}, ingress: [{from: [{podSelector: {}}]}]}", name="in")
    egress = policy("{podSelector: {matchLabels: {role: other}}, policyTypes: [Egress]}", name="out")
    assert reaching(cluster(ingress, egress), DB, 6379) == {FRONT}


@pytest.mark.parametrize(
    ("spec", "ingress", "egress"),
    [
        ("{podSelector: {}}", True, False),
        ("{podSelector: {}, ingress: []}", True, False),
        ("{podSelector: {}, egress: []}", True, False),
        ("{podSelector: {}, egress: [{}]}", True, True),
        ("{podSelector: {}, ingress: [{}], policyTypes: [Egress]}", False, True),
        ("{podSelector: {}, policyTypes: []}", True, False),
    ],
)
def test_policy_types_default_by_what_is_there(spec: str, ingress: bool, egress: bool) -> None:
    where = cluster(policy(spec))
    assert (where.isolated(DB, "Ingress"), where.isolated(DB, "Egress")) == (ingress, egress)


def test_rules_of_a_type_that_is_not_named_do_nothing() -> None:
    where = cluster(policy("{podSelector: {}, policyTypes: [Egress], ingress: [{}], egress: [{ports: [{port: 1}]}]}"))
    assert reaching(where, DB, 6379) == {PROJECT, CLIENT}
    assert reaching(where, DB, 1) == {FRONT, OTHER, PROJECT, CLIENT}


def test_a_range_of_ports_includes_both_ends() -> None:
    spec = "{podSelector: {}, egress: [{ports: [{protocol: TCP, port: 32000, endPort: 32768}]}], policyTypes: [Egress]}"
    where = cluster(policy(spec))
    allowed = {port for port in (31999, 32000, 32768, 32769) if where.pod_to_address(DB, "192.0.2.1", port)}
    assert allowed == {32000, 32768}


def test_a_port_without_number_is_every_port_of_its_protocol() -> None:
    where = cluster(policy("{podSelector: {}, ingress: [{ports: [{protocol: UDP}]}]}"))
    assert where.pod_to_pod(CLIENT, DB, 12345, "UDP")
    assert not where.pod_to_pod(CLIENT, DB, 12345, "TCP")
    assert not where.pod_to_pod(CLIENT, DB, 12345, "SCTP")


def test_a_port_without_protocol_is_tcp() -> None:
    where = cluster(policy("{podSelector: {}, ingress: [{ports: [{port: 53}]}]}"))
    assert where.pod_to_pod(CLIENT, DB, 53, "TCP")
    assert not where.pod_to_pod(CLIENT, DB, 53, "UDP")


def test_a_named_port_is_the_number_that_the_destination_gives_the_name() -> None:
    where = cluster(policy("{podSelector: {}, ingress: [{ports: [{port: redis}]}]}"))
    assert reaching(where, DB, 6379) == {FRONT, OTHER, PROJECT, CLIENT}
    assert reaching(where, DB, 9090) == set(), "9090 is the source's port of that name"
    assert reaching(where, FRONT, 6379) == set(), "front has no such port"
    egress = cluster(policy("{podSelector: {}, egress: [{ports: [{port: redis}]}], policyTypes: [Egress]}"))
    assert egress.pod_to_pod(OTHER, CLIENT, 9090)
    assert not egress.pod_to_pod(OTHER, CLIENT, 6379)
    assert not egress.pod_to_address(OTHER, "192.0.2.1", 6379), "an address names no ports"


def test_a_named_port_has_a_protocol_too() -> None:
    where = cluster(
        policy("{podSelector: {}, ingress: [{ports: [{port: dns, protocol: UDP}, {port: redis, protocol: UDP}]}]}")
    )
    assert where.pod_to_pod(CLIENT, DB, 53, "UDP")
    assert not where.pod_to_pod(CLIENT, DB, 53, "TCP")
    assert not where.pod_to_pod(CLIENT, DB, 6379, "UDP")


@pytest.mark.parametrize(
    ("expression", "selected"),
    [
        ("{key: tier, operator: In, values: [data, web]}", {DB, FRONT}),
        ("{key: tier, operator: NotIn, values: [web]}", {DB, OTHER}),
        ("{key: tier, operator: Exists}", {DB, FRONT}),
        ("{key: tier, operator: DoesNotExist}", {OTHER}),
    ],
)
def test_match_expressions(expression: str, selected: set[str]) -> None:
    where = cluster(policy(f"{{podSelector: {{matchExpressions: [{expression}]}}, policyTypes: [Ingress]}}"))
    assert {pod for pod in (DB, FRONT, OTHER) if where.isolated(pod, "Ingress")} == selected


def test_labels_and_expressions_are_anded() -> None:
    where = cluster(
        policy("""
podSelector:
  matchLabels: {role: db}
  matchExpressions: [{key: tier, operator: In, values: [web]}]
""")
    )
    assert not any(where.isolated(pod, "Ingress") for pod in PODS)


def test_a_policy_selects_pods_of_its_own_namespace_only() -> None:
    where = cluster(policy("{podSelector: {}}", namespace="frontend"))
    assert [pod for pod in PODS if where.isolated(pod, "Ingress")] == [CLIENT]


def test_an_ip_block_matches_pod_addresses_of_both_families() -> None:
    where = cluster(policy("{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: '2001:db8::/64'}}]}]}"))
    assert reaching(where, DB, 1) == {CLIENT}
    assert where.address_to_pod("2001:db8::77", DB, 1)
    assert not where.address_to_pod("10.1.0.4", DB, 1)


def test_an_address_of_a_pod_is_that_pod() -> None:
    where = cluster(EXAMPLE)
    assert where.address_to_pod("10.1.0.2", DB, 6379)
    assert not where.address_to_pod("10.1.0.3", DB, 6379)


def test_a_pod_and_its_node_are_never_cut_off_from_it() -> None:
    where = cluster(policy("{podSelector: {}, policyTypes: [Ingress, Egress]}"), node_addresses=["10.9.0.1"])
    assert where.pod_to_pod(DB, DB, 1)
    assert where.address_to_pod("10.9.0.1", DB, 1)
    assert where.pod_to_address(DB, "10.9.0.1", 1)
    assert not where.address_to_pod("10.9.0.2", DB, 1)


def test_the_relation_holds_what_single_questions_answer() -> None:
    where = cluster(EXAMPLE)
    relation = where.allowed()
    assert (FRONT, DB, 6379, "TCP") in relation
    assert (OTHER, DB, 6379, "TCP") not in relation
    atoms = where.atoms()
    assert {(6378, "TCP"), (6379, "TCP"), (6380, "TCP"), (1, "UDP"), (65535, "SCTP")} <= set(atoms)
    for port, protocol in atoms:
        found = {source for source, destination, *at in relation if destination == DB and at == [port, protocol]}
        assert found == reaching(where, DB, port, protocol)


def test_reads_folders_of_documents(tmp_path: Path) -> None:
    (tmp_path / "inventory").mkdir()
    (tmp_path / "networkpolicies").mkdir()
    (tmp_path / "inventory" / "all.yaml").write_text(INVENTORY)
    with pytest.raises(FileNotFoundError, match="networkpolicies"):
        Cluster.read(tmp_path)
    documents = [EXAMPLE, policy("{podSelector: {}}", name="q")]
    (tmp_path / "networkpolicies" / "p.yaml").write_text("---\n" + yaml.safe_dump_all(documents))
    where = Cluster.read(tmp_path)
    assert set(where.policies) == {"default/p", "default/q"}
    assert set(where.pods) == set(PODS)


def test_ended_pods_are_left_out_and_lists_are_opened() -> None:
    ended = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": "default", "name": "done"},
        "status": {"phase": "Succeeded", "podIP": "10.1.0.1"},
    }
    where = Cluster([{"kind": "List", "items": [*yaml.safe_load_all(INVENTORY), ended]}])
    assert set(where.pods) == set(PODS)


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("{podSelector: {}, ingress: [{from: [{}]}]}", "must specify a peer"),
        ("{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}]}", "stands alone"),
        (
            "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/9]}}]}]}",
            "strict subset",
        ),
        ("{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.1}}]}]}", "not a CIDR"),
        ("{podSelector: {}, ingress: [{to: []}]}", "unknown field 'to'"),
        ("{podSelector: {}, ingress: [{ports: [{port: http, endPort: 9}]}]}", "endPort"),
        ("{podSelector: {}, ingress: [{ports: [{port: 9, endPort: 8}]}]}", "endPort"),
        ("{podSelector: {}, ingress: [{ports: [{port: 0}]}]}", "not a port"),
        ("{podSelector: {}, ingress: [{ports: [{port: '80'}]}]}", "not a port name"),
        ("{podSelector: {}, ingress: [{ports: [{port: 80, protocol: tcp}]}]}", "not TCP"),
        ("{podSelector: {}, policyTypes: [ingress]}", "policyTypes"),
        ("{podSelector: {matchLabels: {a: true}}}", "not text"),
        ("{podSelector: {matchExpressions: [{key: a, operator: In}]}}", "must be set"),
        ("{podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}", "must be empty"),
        ("{podSelector: {matchExpressions: [{key: a, operator: Is}]}}", "operator"),
        ("{podSelectr: {}}", "unknown field"),
    ],
)
def test_what_the_server_would_refuse_is_refused(spec: str, complaint: str) -> None:
    with pytest.raises(InvalidManifest, match=complaint):
        cluster(policy(spec))


def test_refuses_unknown_namespaces_duplicates_and_other_kinds() -> None:
    with pytest.raises(InvalidManifest, match="no namespace 'nowhere'"):
        cluster(policy("{podSelector: {}}", namespace="nowhere"))
    with pytest.raises(InvalidManifest, match="twice"):
        cluster(EXAMPLE, EXAMPLE)
    with pytest.raises(InvalidManifest, match="not a kind"):
        Cluster([{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}}])
    with pytest.raises(InvalidManifest, match="host's network"):
        Cluster([{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"hostNetwork": True}}])
