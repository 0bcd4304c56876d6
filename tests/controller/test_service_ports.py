"""Which port of the pods is meant by who writes a service's."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.inventory import Inventory
from controller.inventory.service_ports import advice, meant_ports
from graph.model import Protocol, Service, ServiceEndpoint, ServicePort, WorkloadRef
from tests.controller.mesh import CART, FRONT, inventory


def served(*ports: ServicePort, workload: WorkloadRef | None = CART) -> Inventory:
    """The inventory with one service, whose ports are these."""
    service = Service("shop", "cart", "10.1.0.1", workload, ports)
    return replace(inventory(), services={"shop/cart": service})


def test_the_ports_behind_a_services_port() -> None:
    known = served(ServicePort(80, 8081), ServicePort(81, 8082))
    assert meant_ports(known, CART, 80, Protocol.TCP) == (8081,)
    assert meant_ports(known, FRONT, 80, Protocol.TCP) == ()
    assert meant_ports(known, WorkloadRef.external("192.0.2.1"), 80, Protocol.TCP) == ()
    assert advice(known, CART, 80, Protocol.TCP).startswith("80 is a service's port: the pods of shop/cart are reached")
    assert advice(known, CART, None, Protocol.TCP) == ""


@pytest.mark.parametrize("port", [8080, 8081, 82])
def test_a_port_of_the_pods_is_meant_as_it_is(port: int) -> None:
    """8080 is declared, 8081 stands behind the service, and of 82 nobody knows anything."""
    known = served(ServicePort(80, 8081), ServicePort(8081, 9000), ServicePort(8080, 9000))
    assert meant_ports(known, CART, port, Protocol.TCP) == ()


def test_endpoints_say_which_ports_of_whose_pods() -> None:
    """A service of several workloads: each is reached at its own port."""
    behind = (ServiceEndpoint("10.0.0.1", 7001), ServiceEndpoint("10.0.0.2", 7002), ServiceEndpoint("192.0.2.7", 7003))
    known = served(ServicePort(80, 7001, endpoints=behind), workload=None)
    assert meant_ports(known, CART, 80, Protocol.TCP) == (7002,)
    assert meant_ports(known, FRONT, 80, Protocol.TCP) == (7001,)
    assert meant_ports(known, CART, 80, Protocol.UDP) == ()
