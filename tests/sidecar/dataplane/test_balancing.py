"""A service's endpoints over real tunnels: those that fail are left out, come back, and one may be ourselves."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from tests.sidecar.dataplane import applications as apps
from tests.sidecar.dataplane.mesh import meshed

PORT = 9300
SERVICE = ("10.96.0.10", 80)
ALLOW = {"rules": [{"from": "shop/front", "to": "shop/cart", "port": PORT}]}
STRICT = ALLOW | {"tls": "strict"}


def service(*pods):
    return meshed("shop/cart", list(pods), PORT, address=SERVICE[0], service_port=SERVICE[1])


async def attempt(pod):
    """Whether one connection to the service is answered."""
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        await apps.echo(pod, *SERVICE, b"hello")
        return True
    return False


async def test_an_endpoint_that_was_dead_is_used_again_when_it_lives(network, sidecars):
    client, first, second = network.pod(), network.pod(), network.pod()
    front = sidecars(client, "shop/front", policy=ALLOW, directory=[service(first, second)])
    sidecars(first, "shop/cart", policy=STRICT)
    async with apps.server(first, PORT):
        for _ in range(10):
            assert await attempt(client), "the other is tried, and then left out"
        returned = sidecars(second, "shop/cart", policy=STRICT)
        async with apps.server(second, PORT), asyncio.timeout(60):
            while not returned.flows():
                assert await attempt(client)
    assert not [flow for flow in front.flows() if flow["failed"] or flow["verdict"] != "allow"]


async def test_an_endpoint_whose_application_is_dead_costs_no_connection(network, sidecars):
    """The stream is refused by the other sidecar after bytes were sent, and nothing of them was delivered."""
    client, first, second = network.pod(), network.pod(), network.pod()
    front = sidecars(client, "shop/front", policy=ALLOW, directory=[service(first, second)])
    sidecars(first, "shop/cart", policy=STRICT)
    dead = sidecars(second, "shop/cart", policy=STRICT)
    async with apps.server(first, PORT), asyncio.timeout(60):
        while len(dead.flows(failed=True)) < 3:
            assert await attempt(client)
    assert front.flows(failed=True) == [], "each was served by the other one, and is one connection"


async def test_when_nobody_lives_every_connection_is_refused_and_the_first_that_lives_is_found(network, sidecars):
    client, first, second = network.pod(), network.pod(), network.pod()
    sidecars(client, "shop/front", policy=ALLOW, directory=[service(first, second)])
    for _ in range(3):
        assert not await attempt(client)
    sidecars(second, "shop/cart", policy=STRICT)
    async with apps.server(second, PORT), asyncio.timeout(60):
        while not await attempt(client):
            pass


@pytest.mark.parametrize("mode", ["strict", "permissive"])
async def test_a_call_to_our_own_service_stays_in_the_pod_or_goes_to_another(network, sidecars, mode):
    pods = [network.pod(), network.pod()]
    rule = {"from": "shop/cart", "to": "shop/cart", "port": PORT}
    carts = [
        sidecars(pod, "shop/cart", policy={"rules": [rule], "tls": mode}, directory=[service(*pods)]) for pod in pods
    ]
    async with apps.server(pods[0], PORT), apps.server(pods[1], PORT):
        async with asyncio.timeout(60):
            while not carts[1].flows(direction="inbound") or len(carts[0].flows(direction="outbound")) < 20:
                assert await attempt(pods[0])
    here, there = len(carts[0].flows(direction="outbound")), len(carts[1].flows(direction="inbound"))
    assert 0 < there < here
    assert carts[0].flows(direction="inbound") == [], "what stays in the pod crosses no second sidecar"
    assert {flow["destination"] for flow in carts[0].flows()} == {"shop/cart"}


async def test_a_pod_of_a_headless_service_is_reached_at_its_own_address(network, sidecars):
    client, *pods = (network.pod() for _ in range(3))
    directory = [meshed("shop/cart", [pod], PORT) for pod in pods]
    front = sidecars(client, "shop/front", policy=ALLOW, directory=directory)
    carts = [sidecars(pod, "shop/cart", policy=STRICT) for pod in pods]
    async with apps.server(pods[0], PORT), apps.server(pods[1], PORT):
        for number, pod in enumerate(pods):
            for _ in range(number + 1):
                await apps.echo(client, pod.address, PORT)
    assert [len(cart.flows()) for cart in carts] == [1, 2]
    assert front.state()["outbound"] == 2
