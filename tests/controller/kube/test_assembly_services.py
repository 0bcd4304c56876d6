"""Services of a cluster: where they lead is what their slices say, and whose they are is whose those are."""

from __future__ import annotations

import pytest

from graph.model import Protocol
from tests.controller.kube.cluster import (
    CART,
    ENDING,
    IN_CART,
    NOT_READY,
    READY,
    Cluster,
    deployment,
    endpoint_slice,
    made,
    pod,
    replica_set,
    service,
)


def behind(inventory, name="cart"):
    entry = inventory.services[f"shop/{name}"].ports[0]
    return [(each.address, each.port, each.ready) for each in entry.endpoints]


def test_a_service_leads_where_its_slices_say_and_is_whose_they_are():
    cluster = Cluster(
        deployment(),
        replica_set(),
        pod("a", "10.0.0.1", IN_CART),
        pod("b", "10.0.0.2", IN_CART),
        service(appProtocol="http"),
        endpoint_slice("one", "cart", ("10.0.0.1", READY)),
        endpoint_slice("two", "cart", ("10.0.0.2", NOT_READY), port=9090),
    )
    inventory = cluster.build()
    assert inventory.services["shop/cart"].workload == CART
    assert behind(inventory) == [("10.0.0.1", 8080, True), ("10.0.0.2", 9090, False)]
    spoken = {port.number: port.app_protocol for port in inventory.workloads[CART].ports}
    assert spoken == {8080: "http", 9090: "http"}
    cluster.drop("EndpointSlice", "two")
    inventory = cluster.build()
    assert behind(inventory) == [("10.0.0.1", 8080, True)]
    assert [port.number for port in inventory.workloads[CART].ports] == [8080]


@pytest.mark.parametrize(
    ("conditions", "ready"),
    [
        ([READY, ENDING], [True, False]),
        ([NOT_READY, ENDING], [False, True]),
        ([NOT_READY, NOT_READY], [False, False]),
        ([{}, NOT_READY], [True, False]),
    ],
)
def test_what_is_ending_serves_when_nothing_else_is_ready(conditions, ready):
    listed = [(f"10.0.0.{number}", each) for number, each in enumerate(conditions, 1)]
    inventory = Cluster(service(), endpoint_slice("one", "cart", *listed)).build()
    assert [each[2] for each in behind(inventory)] == ready


def test_a_service_over_two_workloads_or_with_an_address_that_is_nobodys_is_no_ones():
    parts = [deployment(), replica_set(), pod("a", "10.0.0.1", IN_CART), service()]
    other = pod("canary", "10.0.0.2")
    for second in ("10.0.0.2", "192.0.2.7"):
        lead = endpoint_slice("one", "cart", ("10.0.0.1", READY), (second, READY))
        assert Cluster(*parts, other, lead).build().services["shop/cart"].workload is None


def test_a_service_whose_pods_are_all_gone_is_still_its_workloads():
    cluster = Cluster(deployment(), service())
    assert cluster.build().services["shop/cart"].workload == CART
    cluster.drop("Deployment", "cart")
    assert cluster.build().services["shop/cart"].workload is None


def test_external_names_and_services_without_ports_are_left_out_and_headless_ones_have_no_address():
    outside = made(
        "Service", "alias", spec={"type": "ExternalName", "externalName": "x.example.com", "ports": [{"port": 80}]}
    )
    empty = made("Service", "empty", spec={"clusterIP": "None", "clusterIPs": ["None"]})
    inventory = Cluster(outside, empty, service("headless", "None"), deployment()).build()
    assert set(inventory.services) == {"shop/headless"}
    assert inventory.services["shop/headless"].address == ""
    assert inventory.service_named("headless.shop.svc.cluster.local") == CART


def test_protocols_are_kept_apart():
    dns = service("dns", protocol="UDP")
    assert Cluster(dns).build().services["shop/dns"].ports[0].protocol is Protocol.UDP


def test_what_a_service_says_of_a_nodes_address_is_said_of_no_workload():
    """A pod on its node's network shares that address with everybody there (found by the test above)."""
    cluster = Cluster()
    cluster.put(service("cart", "10.96.0.1", {"app": "cart"}, appProtocol="http"))
    cluster.put(
        pod(
            "cart", "10.0.0.1", None, {"app": "cart"},
            ready=False, ending=False, sidecar=False, account="default", hostNetwork=True,
        )
    )  # fmt: skip
    cluster.build()
    spoken = {"ready": True, "serving": True}
    cluster.put(endpoint_slice("one", "cart", ("10.0.0.1", spoken), port=80, app_protocol=""))
    built = cluster.build()
    assert built == cluster.anew()[0]
    assert {port.app_protocol for workload in built.workloads.values() for port in workload.ports} <= {""}
