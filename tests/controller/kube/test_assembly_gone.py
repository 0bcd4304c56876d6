"""Pods outlive their owners: they go on being whose they were, and nobody else gets anything by it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.errors import AttestationUnavailable
from controller.kube.attestation import instance_of
from controller.kube.token_review import BoundPod
from graph.model import Instance, WorkloadRef
from tests.controller.kube.cluster import (
    CART,
    IN_CART,
    Cluster,
    deployment,
    made,
    owned_by,
    pod,
    replica_set,
    workloads,
)

A_POD = pod("cart-1-a", "10.0.0.1", IN_CART)


def ending(document):
    document["metadata"]["deletionTimestamp"] = "2026-01-03T00:00:00Z"
    return document


def orphaned(document):
    """As the collector leaves what an owner had that went with ``--cascade=orphan``."""
    return {**document, "metadata": {k: v for k, v in document["metadata"].items() if k != "ownerReferences"}}


def again(document, uid="another"):
    """Another object of the same name."""
    return {**document, "metadata": document["metadata"] | {"uid": uid}}


def stateful_set(name="cart", created="2026-02-01T00:00:00Z"):
    return made("StatefulSet", name, created=created, spec=deployment()["spec"])


@pytest.fixture
def cluster():
    found = Cluster(made("Namespace", "shop"), deployment(), replica_set(), A_POD)
    assert workloads(found.build()) == {"cart-1-a": "shop/cart"}
    return found


# --- what goes on


def test_a_deployment_is_gone_at_once_and_its_pods_are_its_own_to_the_end(cluster):
    before = cluster.build()
    for step in (
        lambda: cluster.drop("Deployment", "cart"),
        lambda: cluster.drop("ReplicaSet", "cart-1"),
        lambda: cluster.put(ending(pod("cart-1-a", "10.0.0.1", IN_CART))),
    ):
        step()
        found = cluster.build()
        assert workloads(found) == {"cart-1-a": "shop/cart"}
        assert not cluster.assembly.problems
        instance = found.instances["shop/cart-1-a"]
        assert found.identity_of_instance(instance) == before.identity_of_instance(instance)
        assert (found.workloads[CART].labels, found.workloads[CART].ports) == (
            before.workloads[CART].labels,
            before.workloads[CART].ports,
        )
    cluster.drop("Pod", "cart-1-a")
    assert not cluster.build().workloads


def test_orphaned_pods_are_the_deployments_in_whichever_order_it_is_heard_of():
    steps = {
        "deployment": lambda cluster: cluster.drop("Deployment", "cart"),
        "replica set": lambda cluster: cluster.put(orphaned(replica_set())),
    }
    for order in itertools.permutations(steps):
        cluster = Cluster(deployment(), replica_set(), A_POD)
        cluster.put(ending(deployment()))
        for step in order:
            steps[step](cluster)
            assert workloads(cluster.build()) == {"cart-1-a": "shop/cart"}, order
        cluster.put(ending(orphaned(replica_set())))
        cluster.put(orphaned(A_POD))
        cluster.drop("ReplicaSet", "cart-1")
        found = cluster.build()
        assert workloads(found) == {"cart-1-a": "shop/cart"}
        assert set(found.workloads) == {CART}


def test_pods_whose_replica_set_is_made_anew_beneath_them_are_still_the_deployments(cluster):
    cluster.put(again(replica_set()))  # somebody deleted it, and the deployment has another of the same name
    assert workloads(cluster.build()) == {"cart-1-a": "shop/cart"}


def test_pods_of_an_owner_that_is_taken_by_its_word_are_its_own_when_what_said_so_is_gone():
    rollout = made("ReplicaSet", "cart-1", owner=owned_by("Rollout", "cart", api="argoproj.io/v1alpha1"))
    for step in (lambda it: it.drop("ReplicaSet", "cart-1"), lambda it: it.put(orphaned(rollout))):
        cluster = Cluster(rollout, A_POD)
        step(cluster)
        assert workloads(cluster.build()) == {"cart-1-a": "shop/cart"}


def test_who_adopts_an_orphan_has_it(cluster):
    cluster.put(ending(deployment()))
    cluster.put(orphaned(replica_set()))
    cluster.drop("Deployment", "cart")
    cluster.put(deployment("basket", {"app": "cart"}))
    assert workloads(cluster.build()) == {"cart-1-a": "shop/cart"}
    cluster.put(replica_set(of="basket"))
    found = cluster.build()
    assert workloads(found) == {"cart-1-a": "shop/basket"}
    assert CART not in found.workloads
    cluster.drop("Deployment", "basket")
    assert workloads(cluster.build()) == {"cart-1-a": "shop/basket"}
    cluster.put(made("ReplicaSet", "cart-1", owner=owned_by("Rollout", "trolley", api="argoproj.io/v1alpha1")))
    assert workloads(cluster.build()) == {"cart-1-a": "shop/trolley"}, "of a kind that is not followed, too"


def test_an_orphan_proves_itself_as_what_it_was_and_another_pod_of_its_name_does_not(cluster):
    cluster.put(made("Namespace", "shop", labels={"hedgerow.dev/injection": "enabled"}))
    cluster.put(ending(deployment()))
    cluster.put(orphaned(replica_set()))
    cluster.drop("Deployment", "cart")
    bound = BoundPod("shop", "cart-1-a", "Pod-cart-1-a", "default")
    attested = instance_of(cluster.build(), bound, frozenset({"10.0.0.1"}))
    assert isinstance(attested, Instance)
    assert attested.workload == CART
    cluster.drop("ReplicaSet", "cart-1")
    cluster.put(again(A_POD))
    refused = instance_of(cluster.build(), replace(bound, uid="another"), frozenset({"10.0.0.1"}))
    assert isinstance(refused, AttestationUnavailable)


# --- what ends it


def test_an_owner_of_the_same_name_and_another_uid_has_none_of_the_earlier_ones_pods(cluster):
    cluster.put(again(deployment()))
    found = cluster.build()
    assert workloads(found) == {}
    assert "an earlier Deployment" in cluster.assembly.problems[0]
    cluster.drop("Deployment", "cart")
    assert workloads(cluster.build()) == {}, "it is over, and does not come back"


def test_a_replica_set_of_the_same_name_and_another_uid_has_none_of_the_earlier_ones_pods():
    cluster = Cluster(orphaned(replica_set()), A_POD)
    assert workloads(cluster.build()) == {"cart-1-a": "shop/cart-1"}
    cluster.put(again(orphaned(replica_set())))
    assert workloads(cluster.build()) == {}


def test_a_living_owners_selector_has_the_last_word(cluster):
    cluster.put(deployment("cart", {"app": "another"}))
    assert workloads(cluster.build()) == {}


def test_an_owner_of_the_same_name_that_comes_later_ends_it(cluster):
    cluster.drop("Deployment", "cart")
    cluster.build()
    cluster.put(again(deployment()))
    assert workloads(cluster.build()) == {}


def test_another_kind_of_owner_takes_the_name_and_keeps_it(cluster):
    cluster.drop("Deployment", "cart")
    cluster.put(stateful_set())
    cluster.put(pod("cart-0", "10.0.0.2", owned_by("StatefulSet", "cart")))
    assert workloads(cluster.build()) == {"cart-0": "shop/cart"}
    cluster.drop("Pod", "cart-0")
    cluster.drop("StatefulSet", "cart")
    assert workloads(cluster.build()) == {}


def test_a_pod_alone_does_not_take_the_name(cluster):
    cluster.drop("Deployment", "cart")
    cluster.put(pod("cart", "10.0.0.9", created="2026-01-04T00:00:00Z"))
    assert workloads(cluster.build()) == {"cart-1-a": "shop/cart"}
    cluster.put(pod("x", "10.0.0.8", owned_by("Thing", "cart", api="example.com/v1"), created="2020-01-01T00:00:00Z"))
    assert workloads(cluster.build()) == {"cart-1-a": "shop/cart"}


def test_a_pod_never_has_a_name_because_its_owner_went_that_another_had_before():
    stateful = stateful_set(created="2025-01-01T00:00:00Z")
    first = pod("cart-0", "10.0.0.2", owned_by("StatefulSet", "cart"), created="2026-01-05T00:00:00Z")
    cluster = Cluster(stateful, first, deployment(), replica_set(), A_POD)
    assert workloads(cluster.build()) == {"cart-0": "shop/cart"}
    cluster.drop("Deployment", "cart")
    cluster.drop("StatefulSet", "cart")
    assert workloads(cluster.build()) == {"cart-0": "shop/cart"}
    cluster.drop("Pod", "cart-0")
    assert workloads(cluster.build()) == {}


def test_another_pod_of_the_same_name_inherits_nothing(cluster):
    cluster.drop("Deployment", "cart")
    cluster.put(again(A_POD))
    assert workloads(cluster.build()) == {}
    assert "is not there" in cluster.assembly.problems[0]


def test_a_pod_that_comes_when_the_owner_is_gone_is_nobodys(cluster):
    cluster.drop("Deployment", "cart")
    cluster.put(pod("cart-1-b", "10.0.0.2", IN_CART))
    assert workloads(cluster.build()) == {"cart-1-a": "shop/cart"}


def test_a_pod_that_is_gone_is_forgotten(cluster):
    cluster.drop("Deployment", "cart")
    assert cluster.kept() == {("shop", "cart-1-a")}
    cluster.drop("Pod", "cart-1-a")
    membership = cluster.assembly._membership
    assert not any((membership._attributions, membership._below, membership._members, membership._tops))
    cluster.put(A_POD)  # the same uid: a watch that saw it go and come
    assert workloads(cluster.build()) == {}


@pytest.mark.parametrize("gone", [False, True])
def test_labels_that_the_owner_did_not_select_end_it(cluster, gone):
    if gone:
        cluster.drop("Deployment", "cart")
        cluster.drop("ReplicaSet", "cart-1")
    cluster.put(pod("cart-1-a", "10.0.0.1", IN_CART, {"app": "another"}))
    assert workloads(cluster.build()) == {}
    cluster.drop("Deployment", "cart")
    cluster.drop("ReplicaSet", "cart-1")
    cluster.put(A_POD)
    assert workloads(cluster.build()) == {}, "it is over, and does not come back"


def test_what_a_living_owner_lets_go_of_is_not_its_own_any_more():
    """A pod into which somebody wrote the owner, with the labels that a Deployment selects and not those of its
    ReplicaSet, which finds that out.
    """
    intruder = pod("intruder", "10.0.0.9", IN_CART)
    cluster = Cluster(deployment(), replica_set(), intruder)
    cluster.put(orphaned(intruder))
    assert workloads(cluster.build()) == {"intruder": "shop/intruder"}
    cluster.put(ending(replica_set()))
    cluster.drop("ReplicaSet", "cart-1")
    cluster.drop("Deployment", "cart")
    assert workloads(cluster.build()) == {"intruder": "shop/intruder"}

    theirs = made("ReplicaSet", "theirs", owner=owned_by("Deployment", "cart"))
    cluster = Cluster(deployment(), theirs, pod("intruder", "10.0.0.9", owned_by("ReplicaSet", "theirs")))
    cluster.put(orphaned(theirs))
    cluster.drop("Deployment", "cart")
    assert workloads(cluster.build()) == {"intruder": "shop/theirs"}


def test_a_pod_that_names_another_owner_is_not_the_earlier_ones(cluster):
    cluster.drop("Deployment", "cart")
    cluster.put(pod("cart-1-a", "10.0.0.1", owned_by("ReplicaSet", "not-there")))
    assert workloads(cluster.build()) == {}


# --- whatever happens

PODS = st.builds(
    lambda name, uid, owner, label, created: again(
        pod(
            name,
            f"10.0.0.{1 + ['cart', 'a', 'b', 'c'].index(name)}",
            owner,
            {"app": label},
            created=f"2026-01-0{created}",
        ),
        uid,
    ),
    st.sampled_from(["cart", "a", "b", "c"]),
    st.sampled_from(["1", "1", "2"]),
    st.sampled_from(
        [
            None,
            IN_CART,
            IN_CART,
            owned_by("ReplicaSet", "cart-1", "another"),
            owned_by("StatefulSet", "cart"),
            owned_by("Rollout", "cart", api="argoproj.io/v1"),
        ]
    ),
    st.sampled_from(["cart", "cart", "x"]),
    st.integers(1, 3),
)
OWNERS = st.builds(
    lambda document, uid, alone, going: (ending if going else dict)(
        (orphaned if alone else dict)(again(document, uid or document["metadata"]["uid"]))
    ),
    st.one_of(
        st.builds(deployment),
        st.builds(replica_set),
        st.builds(stateful_set, created=st.sampled_from(["2025", "2027"])),
        st.builds(lambda: made("ReplicaSet", "cart-1", owner=owned_by("Rollout", "cart", api="argoproj.io/v1"))),
    ),
    st.sampled_from(["", "", "another"]),
    st.booleans(),
    st.booleans(),
)
GOING = st.tuples(
    st.sampled_from(["Pod", "Deployment", "ReplicaSet", "StatefulSet"]), st.sampled_from(["cart", "a", "b", "cart-1"])
)


@settings(max_examples=200)
@given(st.lists(st.one_of(PODS, OWNERS, GOING), max_size=30))
def test_no_pod_goes_on_with_a_name_that_it_did_not_have(steps):
    cluster = Cluster(deployment(), replica_set(), again(pod("a", "10.0.0.2", IN_CART), "1"))
    had: set[tuple[str, str, WorkloadRef]] = set()
    for step in [None, *steps]:
        if isinstance(step, tuple):
            cluster.drop(*step)
        elif step is not None:
            cluster.put(step)
        kept = cluster.kept()
        for instance in cluster.build().instances.values():
            if ("shop", instance.name) in kept:
                assert (instance.name, instance.uid, instance.workload) in had
            had.add((instance.name, instance.uid, instance.workload))
