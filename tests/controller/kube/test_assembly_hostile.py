"""Objects that Kubernetes takes and that are meant to do harm: to others' namespaces, or to the controller itself."""

from __future__ import annotations

import tracemalloc

import pytest

from controller.inventory import inventory_of
from controller.kube.inventory.objects import MAX_PORTS, MAX_SERVICE_PORTS
from controller.kube.inventory.problems import MAX_LENGTH
from controller.kube.inventory.services import MAX_PLACES
from graph.model import Protocol
from tests.controller.kube.cluster import (
    CART,
    IN_CART,
    READY,
    TRUST_DOMAIN,
    Cluster,
    deployment,
    endpoint_slice,
    owned_by,
    pod,
    replica_set,
    service,
)

A_CART = (deployment(), replica_set(), pod("a", "10.0.0.1", IN_CART), service(appProtocol="http"))


def stored_and_read(cluster):
    """The inventory, which the next start of the controller must be able to read: what is stored keeps it from starting
    otherwise, for everybody."""
    built = cluster.build()
    assert inventory_of(built.to_dict(), TRUST_DOMAIN) == built
    return built


@pytest.mark.parametrize("address", ["239.1.2.3", "224.0.1.1", "0.0.0.0", "ff05::2", "::", "::ffff:239.1.2.3"])
def test_endpoints_at_nobodys_own_address_are_left_out(address):
    # the API server refuses special addresses, but of multicast only those of one link
    built = stored_and_read(Cluster(*A_CART, endpoint_slice("one", "cart", ("10.0.0.1", READY), (address, READY))))
    (port,) = built.services["shop/cart"].ports
    assert [each.address for each in port.endpoints] == ["10.0.0.1"]


def test_a_service_with_more_ports_than_an_inventory_may_have():
    much = service("much", "10.96.0.9")
    much["spec"]["ports"] = [{"name": f"p{at}", "port": at, "protocol": "TCP"} for at in range(1, 11_000)]
    built = stored_and_read(Cluster(*A_CART, much))
    assert len(built.services["shop/much"].ports) == MAX_SERVICE_PORTS
    assert built.services["shop/cart"].workload == CART


def test_pods_of_an_owner_that_is_not_followed_and_more_ports_than_a_workload_may_have():
    owner = owned_by("Thing", "things", api="example.com/v1")
    pods = [
        pod(f"p{n}", f"10.1.{n}.1", owner, {"app": "thing"}, ports=[(f"n{at}", n * 256 + at) for at in range(1, 257)])
        for n in range(50)
    ]
    built = stored_and_read(Cluster(*A_CART, *pods))
    (things,) = [each for each in built.workloads.values() if each.ref.name == "things"]
    assert len(things.ports) == MAX_PORTS


def slice_of(name, of, *, endpoints, ports, first=0, app_protocol=""):
    made = endpoint_slice(name, of, *((f"10.{2 + n // 65536}.{n // 256 % 256}.{n % 256}", READY) for n in endpoints))
    named = [{"name": f"p{at}", "port": at, "protocol": "TCP", "appProtocol": app_protocol} for at in ports]
    made["ports"] = named
    return made


def taken_by(work):
    """Bytes that are held, and were at the most, for what is done."""
    tracemalloc.start()
    try:
        kept = work()
        return kept, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()


def test_many_ports_and_many_endpoints_are_not_multiplied():
    wide = service("wide", "10.96.0.9")
    wide["spec"]["ports"] = [{"name": f"p{at}", "port": at, "protocol": "TCP"} for at in range(1, 301)]
    slices = [slice_of(f"s{n}", "wide", endpoints=range(n * 500, n * 500 + 500), ports=range(1, 301)) for n in range(6)]
    cluster = Cluster(*A_CART, wide, *slices)
    built, (_, most) = taken_by(cluster.build)  # 900,000 places, if all of them counted
    ports = built.services["shop/wide"].ports
    assert sum(len(port.endpoints) for port in ports) <= MAX_PLACES
    assert all(port.endpoints for port in ports), "every port leads somewhere"
    assert most < 30_000_000
    stored_and_read(cluster)


def test_what_a_slice_says_of_its_ports_is_held_once_for_all_its_endpoints():
    cluster = Cluster(*A_CART)
    # Kubernetes takes 1,000 endpoints and 20,000 ports; what is read of them takes less than a megabyte
    wide = slice_of("wide", "cart", endpoints=range(500), ports=range(1, 801), app_protocol="http")
    _, (_, most) = taken_by(lambda: cluster.put(wide))
    assert most < 5_000_000


def test_a_later_slice_says_what_is_spoken_at_a_port_of_which_both_speak():
    first = endpoint_slice("a", "cart", ("10.0.0.1", READY), app_protocol="grpc")
    second = endpoint_slice("b", "cart", ("10.0.0.1", READY), app_protocol="http2")
    cart = service()
    cart["spec"]["ports"][0]["name"] = "other"
    built = stored_and_read(Cluster(*A_CART[:3], cart, first, second))
    (port,) = [each for each in built.workloads[CART].ports if each.number == 8080]
    assert (port.app_protocol, port.protocol) == ("http2", Protocol.TCP)


@pytest.mark.parametrize(
    "owner",
    [
        owned_by("Thing", "x\n12:00 ERROR forged \x1b[2J", api="example.com/v1"),
        owned_by("ReplicaSet", "x\r\u202e" + "y" * 100_000),
        owned_by("Thing", "cart", uid="z", api="example.com/v1") | {"kind": "K\nforged\x1b["},
    ],
)
def test_the_names_of_owners_forge_no_line_of_the_log(owner):
    cluster = Cluster(*A_CART, pod("b", "10.0.0.2", owner))
    cluster.build()
    (problem,) = cluster.assembly.problems
    assert problem.isprintable() or "\ufffd" in problem
    assert not any(ord(mark) < 32 or mark == "\u202e" for mark in problem)
    assert len(problem) <= MAX_LENGTH
