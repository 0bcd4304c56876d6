"""A service in front of several workloads: every connection is judged by whose endpoint it goes to."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from graph.directory import Destination, Endpoint
from graph.model import Peer, WorkloadRef
from sidecar.dataplane.departure import destination_peer
from sidecar.dataplane.sockets import Address
from tests.sidecar.dataplane import applications as apps
from tests.sidecar.dataplane.mesh import identity

PORT = 9300
SERVICE = ("10.96.0.10", 80)
CART, CANARY = WorkloadRef("shop", "cart"), WorkloadRef("shop", "cart-canary")
TARGET = Address(*SERVICE)


def service(*endpoints):
    """:param endpoints: pod, workload and whether it has a sidecar"""
    return {
        "address": SERVICE[0],
        "port": SERVICE[1],
        "service": "shop/cart",
        "endpoints": [
            {
                "address": pod.address,
                "port": PORT,
                "workload": workload,
                "identity": identity(workload) if meshed else "",
            }
            for pod, workload, meshed in endpoints
        ],
    }


async def attempt(pod):
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        await apps.echo(pod, *SERVICE, b"hello")
        return True
    return False


async def test_each_endpoint_is_judged_by_its_own_workload_and_reached_as_that_one_is(network, sidecars):
    client, cart, canary, plain, foreign = (network.pod() for _ in range(5))
    allowed = [{"from": "shop/front", "to": to, "port": PORT} for to in ("shop/cart", "shop/plain")]
    shared = service(
        (cart, "shop/cart", True),
        (canary, "shop/cart-canary", True),
        (plain, "shop/plain", False),
        (foreign, f"-/{foreign.address}", False),
    )
    front = sidecars(client, "shop/front", policy={"rules": allowed}, directory=[shared])
    strict = {"tls": "strict", "inbound": "learn"}
    carts = {
        pod: sidecars(pod, name, policy=strict) for pod, name in ((cart, "shop/cart"), (canary, "shop/cart-canary"))
    }
    async with contextlib.AsyncExitStack() as stack:
        for pod in (cart, canary, plain, foreign):
            await stack.enter_async_context(apps.server(pod, PORT))
        wanted = {
            ("shop/cart", "allow"),
            ("shop/cart-canary", "deny"),
            ("shop/plain", "allow"),
            (f"-/{foreign.address}", "deny"),
        }

        def seen():
            return {(flow["destination"], flow["verdict"]) for flow in front.flows()}

        async with asyncio.timeout(60):
            while seen() != wanted:
                await attempt(client)
                assert seen() <= wanted
    proved = {flow["destination"] for flow in front.flows() if flow["verified"][1]}
    assert proved == {"shop/cart"}
    assert carts[cart].flows(direction="inbound")
    assert not carts[canary].flows(), "what is refused here never arrives there"


async def test_an_endpoint_with_an_identity_is_reached_by_mutual_tls_or_not_at_all(network, sidecars):
    """Also where other replicas of the workload have no sidecar yet."""
    client, first, second = (network.pod() for _ in range(3))
    rules = [{"from": "shop/front", "to": "shop/cart", "port": PORT}]
    half = service((first, "shop/cart", True)) | {"workload": "shop/cart"}
    front = sidecars(client, "shop/front", policy={"rules": rules}, directory=[half])
    async with apps.server(first, PORT), apps.server(second, PORT):  # no sidecar there
        assert not any([await attempt(client) for _ in range(3)])
    assert not [flow for flow in front.flows() if flow["verified"][1]]


@pytest.mark.parametrize(
    ("endpoint", "peer"),
    [
        (
            Endpoint("10.0.0.1", 80, identity=identity("shop/cart-canary"), workload=CANARY),
            Peer(CANARY, "shop", "default", "10.0.0.1"),
        ),
        (Endpoint("10.0.0.1", 80, identity=identity("shop/cart")), Peer(CART, "shop", "default", "10.0.0.1")),
        (Endpoint("10.0.0.1", 80, workload=CANARY), Peer(CANARY, "shop", address="10.0.0.1")),
        (
            Endpoint("10.0.0.1", 80, identity=identity("shop/cart"), workload=CANARY),
            Peer(CANARY, "shop", address="10.0.0.1"),
        ),
        (Endpoint("192.0.2.7", 80, workload=WorkloadRef("-", "192.0.2.7")), Peer(address="192.0.2.7")),
        (None, Peer(CART, "shop", address=SERVICE[0])),
    ],
)
def test_the_policy_is_asked_about_whoever_answers_at_the_endpoint(endpoint, peer):
    destination = Destination(*SERVICE, workload=CART, service="shop/cart", endpoints=(endpoint,) if endpoint else ())
    assert destination_peer(destination, endpoint, TARGET) == peer


def test_a_service_that_nobody_answers_for_is_not_outside():
    assert Destination(*SERVICE).outside
    assert not Destination(*SERVICE, service="shop/cart").outside
    assert not Destination(*SERVICE, workload=CART).outside
