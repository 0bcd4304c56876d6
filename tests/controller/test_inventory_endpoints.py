"""Services whose endpoints are listed one by one: several workloads, other addresses, both IP families."""

from __future__ import annotations

import pytest

from controller.errors import InventoryError
from controller.inventory import inventory_of
from graph.model import Protocol, WorkloadRef

CART, CANARY = WorkloadRef("shop", "cart"), WorkloadRef("shop", "cart-canary")


def identity(name, account="default"):
    return f"spiffe://hedgerow.local/ns/shop/sa/{account}/wl/{name}"


def document(**changes):
    endpoints = [
        {"address": "10.0.0.1", "port": 8080},
        {"address": "10.0.0.2", "port": 9090, "ready": False},
        {"address": "192.0.2.7", "port": 80},
    ]
    return {
        "apiVersion": "hedgerow.dev/v1alpha1",
        "kind": "Inventory",
        "workloads": [{"namespace": "shop", "name": "cart"}, {"namespace": "shop", "name": "cart-canary"}],
        "instances": [
            {"name": "cart-a", "workload": "shop/cart", "address": "10.0.0.1", "moreAddresses": ["fd00::1"]},
            {"name": "canary-a", "workload": "shop/cart-canary", "address": "10.0.0.2"},
            {"name": "cart-old", "workload": "shop/cart", "address": "10.0.0.3", "meshed": False},
            {"name": "cart-new", "workload": "shop/cart", "address": "10.0.0.4", "serviceAccount": "cart"},
        ],
        "services": [
            {
                "namespace": "shop",
                "name": "cart",
                "address": "10.96.0.1",
                "moreAddresses": ["fd00:96::1"],
                "ports": [
                    {"port": 80, "targetPort": 8080, "endpoints": [*endpoints, {"address": "fd00::1", "port": 8080}]}
                ],
            }
        ],
    } | changes


@pytest.fixture
def inventory():
    return inventory_of(document(), "hedgerow.local")


def test_each_endpoint_has_its_own_workload_port_identity_and_readiness(inventory):
    found = inventory.resolve("10.96.0.1", 80)
    assert (found.workload, found.service, found.meshed) == (None, "shop/cart", False)
    assert [(each.address, each.port, each.workload, each.identity, each.ready) for each in found.endpoints] == [
        ("10.0.0.1", 8080, CART, identity("cart"), True),
        ("10.0.0.2", 9090, CANARY, identity("cart-canary"), False),
        ("192.0.2.7", 80, WorkloadRef("-", "192.0.2.7"), "", True),
    ]


def test_an_address_of_the_other_family_leads_to_endpoints_of_that_family(inventory):
    found = inventory.resolve("fd00:96::1", 80)
    assert [(each.address, each.workload) for each in found.endpoints] == [("fd00::1", CART)]
    assert inventory.resolve("fd00::1", 8080).endpoints[0].address == "fd00::1"


def test_a_port_that_the_service_does_not_have_leads_to_nobody(inventory):
    found = inventory.resolve("10.96.0.1", 81)
    assert found.endpoints == ()
    assert not found.outside
    assert inventory.resolve("10.96.0.1", 80, Protocol.UDP).endpoints == ()


def test_endpoints_of_the_services_own_workload_do_not_repeat_it():
    service = document()["services"][0] | {"workload": "shop/cart"}
    inventory = inventory_of(document(services=[service]), "hedgerow.local")
    found = inventory.resolve("10.96.0.1", 80)
    assert found.workload == CART
    assert [each.workload for each in found.endpoints] == [None, CANARY, WorkloadRef("-", "192.0.2.7")]
    assert not found.meshed, "one of them has no sidecar"


def test_a_replica_without_a_sidecar_has_no_identity_and_opens_nothing_for_the_others(inventory):
    assert inventory.resolve("10.0.0.3", 8080).endpoints[0].identity == ""
    assert not inventory.resolve("10.0.0.3", 8080).meshed
    assert inventory.resolve("10.0.0.1", 8080).meshed


def test_a_replica_with_another_account_has_that_identity(inventory):
    assert inventory.resolve("10.0.0.4", 8080).endpoints[0].identity == identity("cart", "cart")
    assert inventory.identity_of(CART) == identity("cart")


def test_a_service_in_front_of_several_workloads_is_nobodys_address(inventory):
    address = WorkloadRef("-", "10.96.0.1")
    assert inventory.attributed(address) == address
    assert inventory.service_named("cart.shop.svc.cluster.local") is None


def test_the_written_form_is_read_back_equal(inventory):
    assert inventory_of(inventory.to_dict(), "hedgerow.local") == inventory


def test_a_headless_service_has_no_address_and_is_known_by_name():
    service = {
        key: value for key, value in document()["services"][0].items() if key not in ("address", "moreAddresses")
    }
    inventory = inventory_of(document(services=[service | {"workload": "shop/cart"}]), "hedgerow.local")
    assert inventory.service_named("cart.shop") == CART
    assert inventory_of(inventory.to_dict(), "hedgerow.local") == inventory


@pytest.mark.parametrize(
    ("change", "field", "remedy"),
    [
        ({"ports": [{"port": 80}]}, "services[0].workload", "list the `endpoints`"),
        ({"workload": "shop/cart", "address": None}, "services[0].address", ""),
        (
            {"ports": [{"port": 80, "targetPort": "http", "endpoints": []}]},
            "services[0].ports[0].targetPort",
            "a number",
        ),
        ({"ports": [{"port": 80, "endpoints": [{"address": "x", "port": 1}]}]}, "endpoints[0].address", ""),
        ({"moreAddresses": ["10.0.0.1"]}, "services[0].address", "belongs to one"),
        ({"moreAddresses": ["fe80::1%eth0"]}, "services[0].moreAddresses[0]", ""),
    ],
)
def test_what_contradicts_itself_is_refused_with_the_remedy(change, field, remedy):
    service = document()["services"][0] | change
    with pytest.raises(InventoryError) as caught:
        inventory_of(document(services=[service]), "hedgerow.local")
    assert field in caught.value.field
    assert remedy in caught.value.remedy
