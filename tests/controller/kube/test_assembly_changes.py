"""Change by change an inventory is what it would be at once, and what did not change is the same object."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.inventory import inventory_of
from tests.controller.kube.cluster import (
    CART,
    ENDING,
    IN_CART,
    METHODS,
    NOT_READY,
    READY,
    TRUST_DOMAIN,
    Cluster,
    annotated,
    deployment,
    endpoint_slice,
    made,
    owned_by,
    pod,
    replica_set,
    service,
    spec,
)

ADDRESSES = st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3", ""])
NAMES = st.sampled_from(["cart", "front", "x"])
OWNERS = st.sampled_from(
    [
        None,
        IN_CART,
        owned_by("ReplicaSet", "cart-1", "other"),
        owned_by("StatefulSet", "cart"),
        owned_by("Rollout", "front", api="argoproj.io/v1"),
        owned_by("Job", "x-1"),
    ]
)
TEMPLATE = {"metadata": {"labels": {"app": "x"}}, "spec": spec()}
DOCUMENTS = st.one_of(
    st.builds(
        pod,
        NAMES,
        ADDRESSES,
        OWNERS,
        st.sampled_from([{"app": "cart"}, {"app": "front"}]),
        ready=st.booleans(),
        ending=st.booleans(),
        sidecar=st.booleans(),
        account=st.sampled_from(["default", "cart"]),
        hostNetwork=st.booleans(),
    ),
    st.builds(deployment, NAMES, st.sampled_from([{"app": "cart"}, {"app": "front"}]), sidecar=st.booleans()),
    st.builds(replica_set, st.sampled_from(["cart-1", "x-1"]), NAMES),
    st.builds(
        lambda name, at: made("StatefulSet", name, created=at, spec=deployment()["spec"]),
        NAMES,
        st.sampled_from(["2025", "2027"]),
    ),
    st.builds(lambda name: made("Job", "x-1", owner=owned_by("CronJob", name)), NAMES),
    st.builds(
        lambda name: made(
            "CronJob", name, spec={"schedule": "@daily", "jobTemplate": {"spec": {"template": TEMPLATE}}}
        ),
        NAMES,
    ),
    st.builds(
        service,
        NAMES,
        st.sampled_from(["10.96.0.1", "10.96.0.2", "None"]).flatmap(st.just),
        st.sampled_from([{"app": "cart"}, {"app": "x"}]),
        appProtocol=st.sampled_from(["", "http", "grpc"]),
    ),
    st.builds(
        endpoint_slice,
        st.sampled_from(["one", "two"]),
        NAMES,
        st.tuples(st.sampled_from(["10.0.0.1", "10.0.0.2", "192.0.2.7"]), st.sampled_from([READY, NOT_READY, ENDING])),
        st.tuples(st.sampled_from(["10.0.0.1", "10.0.0.3"]), st.sampled_from([READY, NOT_READY, ENDING])),
        port=st.sampled_from([80, 8080]),
        app_protocol=st.sampled_from(["", "http"]),
    ),
    st.builds(
        lambda label, said: annotated(made("Namespace", "shop", labels={"hedgerow.dev/injection": label}), **said),
        st.sampled_from(["enabled", "x"]),
        st.sampled_from([{}, {"opaque_ports": "9000"}, {"inspectable_hosts": "*"}, {"inspectable_hosts": "::"}]),
    ),
    st.builds(
        lambda said: annotated(deployment(), template=True, **said),
        st.sampled_from([{"opaque_ports": "8080"}, {"inspect_egress": "api.example.com"}, {"inspect_egress": "!"}]),
    ),
    st.builds(lambda: annotated(pod("cart-1-a", "10.0.0.1", IN_CART), inspect_egress="www.example.com")),
    st.builds(lambda ports: annotated(service(), opaque_ports=ports), st.sampled_from(["80", "x"])),
)
STEPS = st.lists(
    st.one_of(
        DOCUMENTS,
        st.tuples(
            st.sampled_from(sorted(METHODS)),
            st.sampled_from(["cart", "front", "x", "cart-1", "x-1", "one", "two", "shop"]),
        ),
        st.just("build"),
    ),
    max_size=40,
)


@settings(max_examples=300)
@given(STEPS)
def test_change_by_change_it_is_what_it_is_at_once_and_what_is_stored_can_be_read(steps):
    cluster = Cluster()
    for step in steps:
        if step == "build":
            cluster.build()
        elif isinstance(step, tuple):
            cluster.drop(*step)
        elif step["kind"] != "Service" or not any(
            key[0] == "Service"
            and key[2] != step["metadata"]["name"]
            and set(facts.addresses) & {step["spec"]["clusterIP"]}
            for key, facts in cluster.held.items()
        ):  # the API server gives no cluster IP twice
            cluster.put(step)
    stored = cluster.build()
    assert inventory_of(stored.to_dict(), TRUST_DOMAIN) == stored
    cluster.hear_anew_of_kept()  # what was found of them earlier, nobody can see now
    built = cluster.build()
    anew, problems = cluster.anew()
    assert built == anew
    assert cluster.assembly.problems == problems
    assert inventory_of(built.to_dict(), TRUST_DOMAIN) == built


def test_what_did_not_change_is_the_same_object():
    cluster = Cluster(
        deployment(), replica_set(), *(pod(f"p{n}", f"10.0.0.{n}", IN_CART) for n in range(1, 5)), service()
    )
    before = cluster.build()
    cluster.put(pod("p1", "10.0.0.1", IN_CART, ready=False))
    after = cluster.build()
    assert after != before
    assert after.workloads[CART] is before.workloads[CART]
    assert after.services["shop/cart"] is before.services["shop/cart"]
    assert [after.instances[f"shop/p{n}"] is before.instances[f"shop/p{n}"] for n in range(2, 5)] == [True] * 3
