"""Who gets through and who does not: identities, modes, changes of policy, intruders."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time

import pytest

from certs.ca import CertificateAuthority
from certs.contexts import client_context
from certs.keys import make_csr, new_key
from certs.spiffe import SpiffeId
from tests.sidecar.dataplane import applications as apps
from tests.sidecar.dataplane.mesh import identity, meshed
from tests.sidecar.dataplane.netns import ip
from tests.sidecar.dataplane.shop import ALLOW, PORT, RULE, STRICT, ended, open_echo
from tests.sidecar.dataplane.stand_ins import TRUST_DOMAIN, credentials


async def test_the_source_refuses_what_its_policy_does_not_allow(pods, sidecars):
    client, server = pods
    front = sidecars(client, "shop/front", directory=[meshed("shop/cart", [server], PORT)])
    cart = sidecars(server, "shop/cart", policy=STRICT)
    async with apps.server(server, PORT):
        await apps.refused(client, server.address, PORT)
    (flow,) = front.flows()
    assert (flow["verdict"], flow["reason"], flow["closed"], flow["failed"]) == ("deny", "no-rule", True, False)
    assert cart.flows() == []


async def test_the_destination_refuses_what_its_policy_does_not_allow(pods, sidecars):
    client, server = pods
    front = sidecars(client, "shop/front", policy=ALLOW, directory=[meshed("shop/cart", [server], PORT)])
    cart = sidecars(server, "shop/cart")
    async with apps.server(server, PORT):
        await apps.refused(client, server.address, PORT)
        await front.until(lambda state: state["live"] == 0)
    (flow,) = cart.flows()
    assert (flow["source"], flow["verdict"], flow["reason"]) == ("shop/front", "deny", "no-rule")
    assert flow["identities"][0] == identity("shop/front")
    (flow,) = front.flows()
    assert (flow["verdict"], flow["failed"]) == ("allow", True)


@pytest.mark.parametrize("end", ["source", "destination"])
async def test_a_new_deny_ends_live_connections_at_once(pods, sidecars, end):
    client, server = pods
    front = sidecars(client, "shop/front", policy=ALLOW, directory=[meshed("shop/cart", [server], PORT)])
    cart = sidecars(server, "shop/cart", policy=STRICT)
    deny = {"rules": [RULE, RULE | {"effect": "deny", "origin": "override"}]}
    async with apps.server(server, PORT):
        connections = [await open_echo(client, server.address) for _ in range(5)]
        (front if end == "source" else cart).do("policy", policy=deny)
        for reader, writer in connections:
            await ended(reader)
            await apps.close(writer)
        await front.until(lambda state: state["live"] == 0)
        await cart.until(lambda state: state["live"] == 0)
        await apps.refused(client, server.address, PORT)
        (front if end == "source" else cart).do("policy", policy=ALLOW)
        await apps.echo(client, server.address, PORT)


async def test_a_change_that_still_allows_leaves_connections_alone(pods, sidecars):
    client, server = pods
    front = sidecars(client, "shop/front", policy=ALLOW, directory=[meshed("shop/cart", [server], PORT)])
    cart = sidecars(server, "shop/cart", policy=STRICT)
    async with apps.server(server, PORT):
        reader, writer = await open_echo(client, server.address)
        for sidecar in (front, cart):
            sidecar.do("policy", policy=ALLOW | {"inbound": "audit", "outbound": "audit"})
        writer.write(b"still")
        assert await reader.readexactly(5) == b"still"
        await apps.close(writer)


async def test_learn_and_audit_allow_and_say_what_would_be_denied(pods, sidecars):
    client, server = pods
    learn = {"inbound": "learn", "outbound": "audit"}
    front = sidecars(client, "shop/front", policy=learn, directory=[meshed("shop/cart", [server], PORT)])
    cart = sidecars(server, "shop/cart", policy=learn)
    async with apps.server(server, PORT):
        await apps.echo(client, server.address, PORT)
    assert [(flow["verdict"], flow["reason"]) for flow in front.flows()] == [("allow", "audit")]
    assert [(flow["verdict"], flow["reason"]) for flow in cart.flows()] == [("allow", "learning")]


async def test_an_address_that_the_directory_does_not_know_is_refused(pods, sidecars):
    client, server = pods
    front = sidecars(client, "shop/front", policy={"outbound": "learn"})
    async with apps.server(server, PORT):
        await apps.refused(client, server.address, PORT)
    assert [(flow["verdict"], flow["reason"]) for flow in front.flows()] == [("deny", "unresolved")]


async def test_plaintext_passes_where_it_is_permitted_and_not_where_it_is_not(pods, sidecars):
    client, server = pods
    cart = sidecars(server, "shop/cart", policy={"inbound": "learn"})
    async with apps.server(server, PORT):
        await apps.echo(client, server.address, PORT)
        await apps.get(client, server.address, PORT, 1, 3_000_000)
        await apps.put(client, server.address, PORT, 2, 3_000_000)
        flow = cart.flows()[0]
        assert (flow["source"], flow["verified"], flow["verdict"]) == (f"-/{client.address}", [False, False], "allow")
        assert (flow["sent"], flow["received"]) == (1005, 1000)
        cart.do("forget")
        cart.do("policy", policy={"inbound": "learn", "tls": "strict"})
        await apps.refused(client, server.address, PORT)
        assert [flow["reason"] for flow in cart.flows()] == ["plaintext-refused"]
        cart.do("policy", policy={"inbound": "enforce"})
        await apps.refused(client, server.address, PORT)
        assert [flow["reason"] for flow in cart.flows()] == ["plaintext-refused", "no-rule"]


async def test_a_server_that_speaks_first_to_a_client_without_a_sidecar(pods, sidecars):
    client, server = pods
    sidecars(server, "shop/cart", policy={"inbound": "learn"})
    async with apps.server(server, PORT, apps.greet):
        reader, writer = await apps.connect(client, server.address, PORT)
        async with asyncio.timeout(60):
            assert await reader.readline() == b"220 ready\r\n"
        await apps.close(writer)


async def test_tls_of_the_application_itself_is_plain_to_us(pods, sidecars):
    client, server = pods
    cart = sidecars(server, "shop/cart", policy={"inbound": "learn"})
    own = credentials(CertificateAuthority.create(TRUST_DOMAIN, time.time()), "shop", "own")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    listener = server.namespace.socket()
    listener.bind((server.address, PORT))
    own.server_context.verify_mode = ssl.CERT_NONE
    async with await asyncio.start_server(apps.serve, sock=listener, ssl=own.server_context):
        sock = client.namespace.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (server.address, PORT))
        reader, writer = await asyncio.open_connection(sock=sock, ssl=context, server_hostname="x")
        writer.write(b"ECHO\nover tls")
        assert await reader.readexactly(8) == b"over tls"
        await apps.close(writer)
    assert [flow["verified"] for flow in cart.flows()] == [[False, False]]


async def test_a_destination_outside_the_mesh_is_reached_as_it_is(pods, sidecars):
    client, server = pods
    external = {"address": server.address, "port": PORT}
    rule = {"from": "shop/front", "to": f"-/{server.address}", "port": PORT}
    front = sidecars(client, "shop/front", policy={"rules": [rule]}, directory=[external])
    async with apps.server(server, PORT):
        await apps.echo(client, server.address, PORT)
        await apps.get(client, server.address, PORT, 1, 3_000_000)
        await front.until(lambda state: state["live"] == 0)
    assert [(flow["destination"], flow["verified"][1], flow["failed"]) for flow in front.flows()] == [
        (f"-/{server.address}", False, False)
    ] * 2
    await apps.refused(client, server.address, PORT)
    assert front.flows()[-1]["failed"]


async def test_a_service_address_is_balanced_and_a_dead_endpoint_is_passed_over(network, sidecars):
    client, *servers = (network.pod() for _ in range(4))
    dead = network.pod()
    service = meshed("shop/cart", [dead, *servers], PORT, address="10.96.0.10", service_port=80)
    front = sidecars(client, "shop/front", policy=ALLOW, directory=[service])
    carts = [sidecars(pod, "shop/cart", policy=STRICT) for pod in servers]
    async with apps.server(servers[0], PORT), apps.server(servers[1], PORT), apps.server(servers[2], PORT):
        for _ in range(30):
            await apps.echo(client, "10.96.0.10", 80)
        await front.until(lambda state: state["live"] == 0)
    shares = [len(cart.flows()) for cart in carts]
    assert sum(shares) == 30
    assert all(shares), shares
    flows = front.flows()
    assert len(flows) == 30
    assert {(flow["destination"], flow["port"], flow["failed"]) for flow in flows} == {("shop/cart", PORT, False)}


async def test_our_own_service_address_may_lead_to_ourselves(network, sidecars):
    pod = network.pod()
    rule = {"from": "shop/cart", "to": "shop/cart", "port": PORT}
    service = meshed("shop/cart", [pod], PORT, address="10.96.0.10", service_port=80)
    sidecars(pod, "shop/cart", policy={"rules": [rule], "tls": "strict"}, directory=[service])
    async with apps.server(pod, PORT):
        await apps.echo(pod, "10.96.0.10", 80)


async def test_a_server_with_another_identity_than_the_directory_says_is_refused(pods, sidecars):
    client, server = pods
    front = sidecars(client, "shop/front", policy=ALLOW, directory=[meshed("shop/cart", [server], PORT)])
    sidecars(server, "shop/impostor", policy={"inbound": "learn"})
    async with apps.server(server, PORT):
        await apps.refused(client, server.address, PORT)
    assert [(flow["verdict"], flow["reason"]) for flow in front.flows()] == [("deny", "untrusted-peer")]
    assert front.state()["outbound"] == 0


@pytest.mark.parametrize("side", ["client", "server"])
async def test_a_certificate_of_a_foreign_authority_is_refused(pods, sidecars, side):
    client, server = pods
    foreign = CertificateAuthority.create(TRUST_DOMAIN, time.time())
    learn = {"inbound": "learn", "outbound": "learn"}
    signers = {"signer": foreign}
    front = sidecars(
        client,
        "shop/front",
        policy=learn,
        directory=[meshed("shop/cart", [server], PORT)],
        **(signers if side == "client" else {}),
    )
    cart = sidecars(server, "shop/cart", policy=learn, **(signers if side == "server" else {}))
    async with apps.server(server, PORT):
        await apps.refused(client, server.address, PORT)
    assert [(flow["verdict"], flow["reason"]) for flow in front.flows()] == [("deny", "untrusted-peer")]
    assert all(flow["verdict"] == "deny" for flow in cart.flows())
    assert front.state()["outbound"] == cart.state()["inbound"] == 0


def intrude(context, server):
    """A raw client that speaks our ALPN and must not get as far as reading anything."""
    # wrapped before it connects: wrapping a connection that the peer has reset already leaves its socket open
    with context.wrap_socket(socket.socket(), server_hostname="x") as tls:
        tls.settimeout(60)
        tls.connect((server.address, PORT))
        tls.sendall(b"\x00\x01\x00\x01\x00\x00\x00\x01\x00\x00\x00\x00")
        data = tls.recv(100)
    raise AssertionError(f"the intruder read {data!r}")


@pytest.mark.parametrize("certificate", ["none", "foreign", "expired", "account-of-nobody"])
async def test_an_intruder_without_a_proper_certificate_gets_nothing(pods, sidecars, authority, certificate):
    intruder, server = pods
    cart = sidecars(server, "shop/cart", policy={"inbound": "learn"})
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if certificate == "foreign":
        context = credentials(CertificateAuthority.create(TRUST_DOMAIN, time.time()), "shop", "front").client_context
    elif certificate == "expired":
        context = expired(authority)
    elif certificate == "account-of-nobody":
        context = credentials(CertificateAuthority.create("other.test", time.time()), "shop", "front").client_context
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["hedgerow/1"])
    async with apps.server(server, PORT):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.to_thread(intruder.namespace.call, lambda: intrude(context, server))
    await apps.until(cart.flows)
    (flow,) = cart.flows()
    assert (flow["source"], flow["reason"], flow["verdict"]) == (f"-/{intruder.address}", "untrusted-peer", "deny")


def expired(authority):
    """A context with a certificate of ours that has just ended."""
    key = new_key()
    who = SpiffeId.for_workload(TRUST_DOMAIN, "shop", "default", "front")
    chain = authority.sign_workload(make_csr(key), who, time.time(), 1.0)
    while time.time() <= chain.not_after:
        time.sleep(0.05)
    return client_context(chain.chain_der, key, authority.bundle())


async def test_an_address_that_is_not_known_as_ours_leads_nowhere(pods, sidecars):
    client, server = pods
    cart = sidecars(server, "shop/cart", policy={"inbound": "learn"})
    stray = "10.213.7.200"
    ip("-n", server.namespace.name, "addr", "add", f"{stray}/24", "dev", "eth0")
    async with apps.server(server, PORT, address=stray):
        await apps.refused(client, stray, PORT)
    assert cart.flows() == []


async def test_the_ports_of_the_sidecar_itself_lead_nowhere(pods, sidecars):
    client, server = pods
    cart = sidecars(server, "shop/cart", policy={"inbound": "learn", "outbound": "learn"})
    for port in (15001, 15006):
        await apps.refused(client, server.address, port)
        await apps.refused(server, "127.0.0.1", port)
        await apps.refused(server, server.address, port)
    assert cart.state()["live"] == 0
    assert cart.flows() == []
