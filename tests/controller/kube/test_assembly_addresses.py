"""Which addresses of services and pods lead where: those of both IP families, and those from outside, to nobody."""

from __future__ import annotations

import pytest

from controller.inventory import inventory_of
from controller.kube.inventory import services
from graph.model import WorkloadRef
from tests.controller.kube.cluster import (
    CART,
    ENDING,
    IN_CART,
    NOT_READY,
    READY,
    TRUST_DOMAIN,
    Cluster,
    deployment,
    endpoint_slice,
    pod,
    replica_set,
    service,
)

FOUR, SIX = "10.96.0.1", "fd96::1"
OUTSIDE = "203.0.113.7"


def both(primary=FOUR, secondary=SIX, **port):
    """A service with an address of each family, the cluster's own first."""
    document = service(address=primary, **port)
    document["spec"]["clusterIPs"] = [primary, secondary]
    return document


def of_six(*endpoints, name="six", port=8080):
    document = endpoint_slice(name, "cart", *endpoints, port=port)
    return document | {"addressType": "IPv6"}


def cluster(*more):
    return Cluster(
        deployment(),
        replica_set(),
        pod("a", "10.0.0.1", IN_CART, also=("fd00::1",)),
        pod("b", "10.0.0.2", IN_CART, also=("fd00::2",)),
        endpoint_slice("four", "cart", ("10.0.0.1", READY), ("10.0.0.2", READY)),
        of_six(("fd00::1", READY), ("fd00::2", READY)),
        *more,
    )


def led(inventory, address, port=80):
    """Where a connection to an address goes, and whose that is."""
    found = inventory.resolve(address, port)
    return [(each.address, each.port, each.ready) for each in found.endpoints], found.workload


@pytest.mark.parametrize(("primary", "secondary"), [(FOUR, SIX), (SIX, FOUR)])
def test_each_address_of_a_service_leads_to_the_endpoints_of_its_family(primary, secondary):
    inventory = cluster(both(primary, secondary)).build()
    assert inventory.services["shop/cart"].addresses == (primary, secondary)
    assert led(inventory, FOUR) == ([("10.0.0.1", 8080, True), ("10.0.0.2", 8080, True)], CART)
    assert led(inventory, SIX) == ([("fd00::1", 8080, True), ("fd00::2", 8080, True)], CART)
    assert {each.instance for each in inventory.resolve(SIX, 80).endpoints} == {"a", "b"}
    assert led(inventory, "fd96:0::1")[1] == CART, "however it is written"
    assert inventory_of(inventory.to_dict(), TRUST_DOMAIN) == inventory, "what is stored can be read again"


def test_each_address_of_a_pod_leads_to_it_and_is_attributed_to_it():
    inventory = cluster(both()).build()
    for address in ("10.0.0.1", "fd00::1"):
        assert led(inventory, address, 8080) == ([(address, 8080, True)], CART)
        assert inventory.attributed(WorkloadRef.external(address)) == CART
        assert inventory.instance_at(address).name == "a"


def test_a_pod_without_an_address_of_a_family_is_not_reached_by_that_one():
    found = cluster(both())
    found.put(pod("b", "10.0.0.2", IN_CART))
    found.put(of_six(("fd00::1", READY)))
    inventory = found.build()
    assert led(inventory, SIX) == ([("fd00::1", 8080, True)], CART)
    assert len(led(inventory, FOUR)[0]) == 2


def test_a_service_of_one_family_leads_to_that_one_alone():
    inventory = cluster(service(address=FOUR)).build()
    assert len(led(inventory, FOUR)[0]) == 2
    assert led(inventory, SIX) == ([], None)


@pytest.mark.parametrize(
    ("four", "six", "wanted"),
    [
        ([READY, ENDING], [ENDING, ENDING], ([True, False], [True, True])),
        ([ENDING, NOT_READY], [READY, NOT_READY], ([True, False], [True, False])),
        ([NOT_READY, NOT_READY], [READY, READY], ([False, False], [True, True])),
    ],
)
def test_what_is_ending_serves_where_nothing_of_its_family_is_ready(four, six, wanted):
    found = cluster(both())
    found.put(endpoint_slice("four", "cart", *zip(("10.0.0.1", "10.0.0.2"), four, strict=True)))
    found.put(of_six(*zip(("fd00::1", "fd00::2"), six, strict=True)))
    inventory = found.build()
    for address, expected in zip((FOUR, SIX), wanted, strict=True):
        assert [ready for _, _, ready in led(inventory, address)[0]] == expected


@pytest.mark.parametrize(
    ("four", "six", "kept"),
    [(12, 0, (8, 0)), (0, 12, (0, 8)), (12, 12, (4, 4)), (12, 2, (6, 2)), (2, 12, (2, 6)), (4, 4, (4, 4))],
)
def test_no_family_takes_the_room_of_the_other(monkeypatch, four, six, kept):
    monkeypatch.setattr(services, "MAX_ENDPOINTS", 8)
    inventory = Cluster(
        both(),
        endpoint_slice("four", "cart", *((f"10.0.1.{number}", READY) for number in range(1, four + 1))),
        of_six(*((f"fd00::1:{number}", READY) for number in range(1, six + 1))),
    ).build()
    assert (len(led(inventory, FOUR)[0]), len(led(inventory, SIX)[0])) == kept


def test_addresses_from_outside_are_believed_of_no_service():
    """Who may write services of a namespace may write any address there (CVE-2020-8554), another workload's too."""
    document = both()
    document["spec"] |= {
        "type": "LoadBalancer",
        "externalIPs": [OUTSIDE, "10.0.0.9", "10.96.0.2"],
        "loadBalancerIP": "203.0.113.8",
    }
    document["status"] = {"loadBalancer": {"ingress": [{"ip": "203.0.113.9", "ipMode": "VIP"}, {"ip": "fd99::9"}]}}
    other = service("other", address="10.96.0.2", selector={"app": "other"})
    found = cluster(document, other, pod("victim", "10.0.0.9", labels={"app": "other"}))
    inventory = found.build()
    assert inventory.services["shop/cart"].addresses == (FOUR, SIX)
    for address in (OUTSIDE, "203.0.113.8", "203.0.113.9", "fd99::9"):
        assert led(inventory, address) == ([], None)
        outside = WorkloadRef.external(address)
        assert inventory.attributed(outside) == outside, "a rule about an address outside"
    assert led(inventory, "10.0.0.9")[1] == WorkloadRef("shop", "victim")
    assert inventory.resolve("10.96.0.2", 80).service == "shop/other"


def test_an_address_of_a_load_balancer_that_comes_later_changes_nothing():
    found = cluster(both())
    before = found.build()
    document = both()
    document["status"] = {"loadBalancer": {"ingress": [{"ip": OUTSIDE}]}}
    found.put(document)
    assert found.build() == before
