"""What pods, services and namespaces ask for by annotation: opaque ports and inspected hosts."""

from __future__ import annotations

import pytest

from controller.inventory import inventory_of
from tests.controller.kube.cluster import (
    CART,
    IN_CART,
    TRUST_DOMAIN,
    Cluster,
    annotated,
    deployment,
    endpoint_slice,
    made,
    pod,
    replica_set,
    service,
)


def protocols(inventory, ref=CART):
    return {port.number: port.app_protocol for port in inventory.workloads[ref].ports}


def namespace(name="shop", **annotations):
    return annotated(made("Namespace", name), **annotations)


RUNNING = (replica_set(), pod("cart-1-a", "10.0.0.1", IN_CART))


def test_ports_that_a_pod_its_service_or_its_namespace_calls_opaque_are_opaque_to_the_mesh():
    before = namespace(opaque_ports="9000-9002")
    cluster = Cluster(before, deployment(), *RUNNING, service(), endpoint_slice("s", "cart", ("10.0.0.1", {})))
    assert protocols(cluster.build()) == {8080: "", 9000: "tcp", 9001: "tcp", 9002: "tcp"}
    cluster.put(annotated(service(), opaque_ports="80"))
    assert protocols(cluster.build())[8080] == "tcp", "behind the service's port 80"
    cluster.put(annotated(deployment(), template=True, opaque_ports="5000"))
    assert protocols(cluster.build()) == {8080: "tcp", 5000: "tcp"}, "the pod's own take the place of its namespace's"
    cluster.put(annotated(deployment(), template=True, opaque_ports=""))
    cluster.put(service())
    assert protocols(cluster.build()) == {8080: ""}
    assert cluster.build() == cluster.anew()[0]


def test_opaque_wins_over_an_app_protocol_and_has_several_names():
    cluster = Cluster(deployment(), *RUNNING, endpoint_slice("s", "cart", ("10.0.0.1", {}), app_protocol="http"))
    cluster.put(service(appProtocol="HTTP"))
    assert protocols(cluster.build()) == {8080: "http"}
    for name in ("opaque", "linkerd.io/opaque", "TCP"):
        cluster.put(service(appProtocol=name))
        assert protocols(cluster.build()) == {8080: "tcp"}
    cluster.put(service(appProtocol="http"))
    cluster.put(annotated(deployment(), template=True, opaque_ports="8080"))
    assert protocols(cluster.build()) == {8080: "tcp"}


def test_another_namespaces_service_says_nothing_of_a_pod():
    cluster = Cluster(deployment(), *RUNNING)
    strange = annotated(service("strange", "10.96.0.9"), opaque_ports="80")
    written = endpoint_slice("s", "strange", ("10.0.0.1", {}))
    for each in (strange, written):
        each["metadata"]["namespace"] = "elsewhere"
        cluster.put(each)
    assert protocols(cluster.build()) == {8080: ""}


def test_a_host_is_inspected_where_the_pod_asks_and_its_namespace_permits():
    asking = annotated(deployment(), template=True, inspect_egress="api.example.com, pay.example.org:8443")
    cluster = Cluster(namespace(), asking, *RUNNING)

    def inspects():
        return [str(one) for one in cluster.build().workloads[CART].inspects]

    assert inspects() == []
    assert "hedgerow.dev/inspectable-hosts=api.example.com" in cluster.assembly.problems[0]
    cluster.put(namespace(inspectable_hosts="*.example.com"))
    assert inspects() == ["api.example.com:443"]
    assert "pay.example.org:8443" in cluster.assembly.problems[0]
    cluster.put(namespace(inspectable_hosts="api.example.com, *"))
    assert inspects() == ["api.example.com:443", "pay.example.org:8443"]
    assert cluster.assembly.problems == ()
    assert inventory_of(cluster.build().to_dict(), TRUST_DOMAIN) == cluster.build()
    cluster.put(namespace(inspectable_hosts="example.com"))
    assert inspects() == [], "a host is not those below it"
    cluster.drop("Namespace", "shop")
    assert inspects() == []


def test_while_pods_are_replaced_what_both_ask_for_is_inspected_and_without_a_sidecar_nothing():
    permitted = namespace(inspectable_hosts="*")
    older = annotated(pod("cart-1-a", "10.0.0.1", IN_CART), inspect_egress="old.example.com")
    cluster = Cluster(permitted, annotated(deployment(), template=True, inspect_egress="new.example.com"), RUNNING[0])
    cluster.put(older)
    found = cluster.build().workloads[CART].inspects
    assert [one.host for one in found] == ["new.example.com", "old.example.com"]
    cluster.put(annotated(pod("cart-1-a", "10.0.0.1", IN_CART, sidecar=False), inspect_egress="old.example.com"))
    assert cluster.build().workloads[CART].inspects == ()


@pytest.mark.parametrize(
    "document",
    [
        annotated(deployment(), template=True, inspect_egress="*.example.com"),
        annotated(deployment(), template=True, opaque_ports="80-70"),
        annotated(deployment(), template=True, opaque_ports="1-60000"),
        annotated(service(), opaque_ports="http"),
        namespace(inspectable_hosts="https://api.example.com"),
        namespace(opaque_ports="1," * 5000),
    ],
)
def test_an_annotation_that_can_not_be_read_says_nothing_and_is_shown(document):
    cluster = Cluster(namespace(), deployment(), *RUNNING, endpoint_slice("s", "cart", ("10.0.0.1", {})), document)
    workload = cluster.build().workloads[CART]
    assert (protocols(cluster.build()), workload.inspects) == ({8080: ""}, ())
    (problem,) = cluster.assembly.problems
    assert "is not followed" in problem
    assert len(problem) < 400


def test_more_hosts_and_ports_than_fit_are_cut_and_shown():
    hosts = ",".join(f"h{number}.example.com" for number in range(64))
    cluster = Cluster(namespace(inspectable_hosts="*", opaque_ports="1000-1255"), RUNNING[0])
    cluster.put(annotated(deployment(), template=True, inspect_egress=hosts))
    cluster.put(annotated(pod("cart-1-a", "10.0.0.1", IN_CART), inspect_egress="z.example.com"))
    cluster.put(service(appProtocol="http"))
    cluster.put(endpoint_slice("s", "cart", ("10.0.0.1", {})))
    built = cluster.build()
    assert len(built.workloads[CART].inspects) == 64
    assert "z.example.com" in cluster.assembly.problems[0]
    assert len([port for port in built.workloads[CART].ports if port.app_protocol]) == 256
    assert inventory_of(built.to_dict(), TRUST_DOMAIN) == built
