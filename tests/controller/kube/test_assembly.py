"""Objects of a cluster become workloads and instances: by owners, by templates, by addresses."""

from __future__ import annotations

import itertools

import pytest

from controller.kube.inventory import objects
from controller.kube.reflector import Unreadable
from graph.model import WorkloadRef
from tests.controller.kube.cluster import (
    CART,
    IN_CART,
    Cluster,
    deployment,
    made,
    owned_by,
    pod,
    replica_set,
    spec,
    workloads,
)

# --- owners


def test_a_pod_is_its_deployments_in_whichever_order_they_are_heard_of():
    parts = [deployment(), replica_set(), pod("cart-1-a", "10.0.0.1", IN_CART)]
    for order in itertools.permutations(parts):
        assert workloads(Cluster(*order).build()) == {"cart-1-a": "shop/cart"}


@pytest.mark.parametrize(
    ("missing", "problem"), [("ReplicaSet", "is not there"), ("Deployment", "is not there")], ids=["owner", "its owner"]
)
def test_a_pod_whose_owner_is_not_there_is_nobodys(missing, problem):
    parts = [each for each in (deployment(), replica_set()) if each["kind"] != missing]
    cluster = Cluster(*parts, pod("cart-1-a", "10.0.0.1", IN_CART))
    assert workloads(cluster.build()) == {}
    assert problem in cluster.assembly.problems[0]


@pytest.mark.parametrize(
    ("owner", "labels", "problem"),
    [
        (owned_by("ReplicaSet", "cart-1", "an-earlier-one"), {"app": "cart"}, "an earlier ReplicaSet"),
        (IN_CART, {"app": "intruder"}, "whose selector does not match"),
        (IN_CART, {}, "whose selector does not match"),
    ],
)
def test_a_pod_that_only_says_whose_it_is_is_nobodys(owner, labels, problem):
    cluster = Cluster(deployment(), replica_set(), pod("intruder", "10.0.0.9", owner, labels))
    assert workloads(cluster.build()) == {}
    assert problem in cluster.assembly.problems[0]


def test_a_pod_without_an_owner_stands_for_itself_and_so_does_one_of_a_node():
    static = pod("static", "10.0.0.2", owned_by("Node", "node-1", api="v1"))
    assert workloads(Cluster(pod("alone", "10.0.0.1"), static).build()) == {
        "alone": "shop/alone",
        "static": "shop/static",
    }


def test_an_owner_of_a_kind_that_is_not_followed_is_taken_by_its_name():
    rollout = made("ReplicaSet", "cart-1", owner=owned_by("Rollout", "cart", api="argoproj.io/v1alpha1"))
    inventory = Cluster(rollout, pod("cart-1-a", "10.0.0.1", IN_CART)).build()
    assert workloads(inventory) == {"cart-1-a": "shop/cart"}
    assert inventory.workloads[CART].kind == "Rollout"


def test_what_an_operator_made_is_the_workload_and_not_the_operators_object():
    owned = deployment() | {}
    owned["metadata"]["ownerReferences"] = [owned_by("Shop", "all-of-it", api="example.com/v1")]
    inventory = Cluster(owned, replica_set(), pod("cart-1-a", "10.0.0.1", IN_CART)).build()
    assert workloads(inventory) == {"cart-1-a": "shop/cart"}


def test_a_job_is_its_cronjobs_with_the_schedule():
    template = {"metadata": {"labels": {"app": "nightly"}}, "spec": spec()}
    cron = made("CronJob", "nightly", spec={"schedule": "0 3 * * *", "jobTemplate": {"spec": {"template": template}}})
    job = made("Job", "nightly-1", owner=owned_by("CronJob", "nightly"))
    cluster = Cluster(cron, job, pod("nightly-1-x", "10.0.0.1", owned_by("Job", "nightly-1")))
    found = cluster.build().workloads[WorkloadRef("shop", "nightly")]
    assert (found.kind, found.schedule, found.meshed) == ("CronJob", "0 3 * * *", True)


def test_of_two_owners_with_one_name_the_older_has_it_and_the_others_pods_are_nobodys():
    stateful = made("StatefulSet", "cart", created="2026-02-01T00:00:00Z", spec=deployment()["spec"])
    old = [deployment(), replica_set(), pod("cart-1-a", "10.0.0.1", IN_CART)]
    new = [stateful, pod("cart-0", "10.0.0.2", owned_by("StatefulSet", "cart"))]
    for order in ([*old, *new], [*new, *old]):
        cluster = Cluster(*order)
        inventory = cluster.build()
        assert workloads(inventory) == {"cart-1-a": "shop/cart"}
        assert inventory.workloads[CART].kind == "Deployment"
        assert "another name" in cluster.assembly.problems[0]
        cluster.drop("Pod", "cart-1-a")
        cluster.drop("Deployment", "cart")
        cluster.drop("ReplicaSet", "cart-1")
        assert workloads(cluster.build()) == {"cart-0": "shop/cart"}
        assert not cluster.assembly.problems


@pytest.mark.parametrize("uid", ["0", "z"])
def test_of_one_second_what_makes_pods_comes_before_a_pod_of_its_name(uid):
    second = "2026-01-01T00:00:00Z"
    alone = pod("cart", "10.0.0.9", created=second)
    alone["metadata"]["uid"] = uid
    whole = [deployment(), replica_set(), pod("cart-1-a", "10.0.0.1", IN_CART, created=second)]
    for order in ([alone, *whole], [*whole, alone]):
        cluster = Cluster(*order)
        assert workloads(cluster.build()) == {"cart-1-a": "shop/cart"}
        assert "name of a Deployment" in cluster.assembly.problems[0]


def test_an_owner_that_is_only_said_to_be_there_never_takes_a_name_from_one_that_is():
    claimed = pod("early", "10.0.0.9", owned_by("Whatever", "cart", api="x/v1"), created="2020-01-01T00:00:00Z")
    inventory = Cluster(claimed, deployment(), replica_set(), pod("cart-1-a", "10.0.0.1", IN_CART)).build()
    assert workloads(inventory) == {"cart-1-a": "shop/cart"}


# --- workloads and instances


def test_a_workload_has_what_all_its_pods_carry_and_its_template_declares():
    labels = {"app": "cart", "version": "1"}
    cluster = Cluster(
        deployment(ports=(("http", 8080), ("admin", 9000))),
        replica_set(),
        pod("a", "10.0.0.1", IN_CART, labels),
        pod("b", "10.0.0.2", IN_CART, labels | {"version": "2"}),
    )
    found = cluster.build().workloads[CART]
    assert found.labels == (("app", "cart"),)
    assert [(port.number, port.name) for port in found.ports] == [(8080, "http"), (9000, "admin")]


def test_our_own_containers_ports_are_not_the_workloads():
    assert [
        port.number for port in Cluster(pod("a", "10.0.0.1")).build().workloads[WorkloadRef("shop", "a")].ports
    ] == [8080]


def test_while_a_roll_out_changes_the_account_each_pod_has_its_own_identity():
    cluster = Cluster(
        deployment(account="new"),
        replica_set(),
        pod("a", "10.0.0.1", IN_CART, account="old"),
        pod("b", "10.0.0.2", IN_CART, account="new"),
    )
    inventory = cluster.build()
    found = {each.name: inventory.identity_of_instance(each) for each in inventory.instances_of(CART)}
    assert {name: identity.split("/")[-3] for name, identity in found.items()} == {"a": "old", "b": "new"}


def test_a_pod_that_has_no_sidecar_yet_has_no_identity_and_its_workload_does():
    cluster = Cluster(
        deployment(), replica_set(), pod("a", "10.0.0.1", IN_CART, sidecar=False), pod("b", "10.0.0.2", IN_CART)
    )
    inventory = cluster.build()
    assert inventory.workloads[CART].meshed
    assert [bool(inventory.identity_of_instance(each)) for each in inventory.instances_of(CART)] == [False, True]
    cluster.drop("Pod", "b")
    assert not cluster.build().workloads[CART].meshed


@pytest.mark.parametrize(
    ("label", "template", "meshed"),
    [
        (None, {}, False),
        ("enabled", {}, True),
        ("disabled", {}, False),
        ("enabled", {"hedgerow.dev/injection": "disabled"}, False),
        (None, {"hedgerow.dev/injection": "enabled"}, False),
    ],
)
def test_a_workload_without_pods_is_meshed_when_its_pods_would_be(label, template, meshed):
    labels = {"hedgerow.dev/injection": label} if label else {}
    owner = deployment(labels={"app": "cart"} | template, sidecar=False)
    cluster = Cluster(owner, made("Namespace", "shop", labels={"hedgerow.dev/injection": "other"}))
    cluster.put(made("Namespace", "shop", labels=labels))
    assert cluster.build().workloads[CART].meshed is meshed


def test_pods_on_the_nodes_network_are_no_instances():
    inventory = Cluster(deployment(), replica_set(), pod("a", "192.168.0.1", IN_CART, hostNetwork=True)).build()
    assert not inventory.instances
    assert not inventory.workloads[CART].meshed


def test_an_address_that_two_pods_claim_is_nobodys_until_one_of_them_ends():
    cluster = Cluster(pod("a", "10.0.0.1"), pod("b", "10.0.0.1"))
    assert workloads(cluster.build()) == {}
    cluster.put(pod("a", "10.0.0.1", ending=True))
    assert workloads(cluster.build()) == {"b": "shop/b"}
    cluster.drop("Pod", "b")
    inventory = cluster.build()
    assert workloads(inventory) == {"a": "shop/a"}
    assert not inventory.instances["shop/a"].ready, "it is ending"


def test_a_pod_has_all_its_addresses():
    inventory = Cluster(pod("a", "10.0.0.1", also=("fd00::1",))).build()
    assert inventory.instances["shop/a"].addresses == ("10.0.0.1", "fd00::1")
    assert inventory.instance_at("fd00:0::1").name == "a"


@pytest.mark.parametrize(
    "document",
    [
        {"metadata": {"namespace": "shop"}},
        {"metadata": "x", "spec": []},
        made("Pod", "a", spec=spec(ports=()), owner={"controller": True, "kind": "ReplicaSet"}),
        made("Pod", "a", spec={"containers": [{"ports": [{"containerPort": 1, "protocol": "ICMP"}]}]}),
    ],
)
def test_what_is_not_as_the_api_says_is_unreadable(document):
    with pytest.raises(Unreadable):
        objects.pod(document)
