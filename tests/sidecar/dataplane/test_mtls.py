"""Who is another mesh's proxy, and what its ALPN is answered with: the rules alone. Connections are in test_envoy.py
and test_tls_leg.py."""

from __future__ import annotations

import pytest

from sidecar.dataplane.clienthello import ClientHello
from sidecar.dataplane.mtls import answer, is_proxy
from sidecar.dataplane.settings import DataPlaneSettings

SETTINGS = DataPlaneSettings(mtls_ports=frozenset({8443}))


@pytest.mark.parametrize(
    "protocol", [b"istio", b"istio-peer-exchange", b"istio-http/1.0", b"istio-http/1.1", b"istio-h2"]
)
def test_istios_protocols_are_a_meshs_mark(protocol):
    assert is_proxy(ClientHello((protocol,)), 80, SETTINGS)
    assert is_proxy(ClientHello((b"h2", protocol, b"http/1.1")), 80, SETTINGS)


@pytest.mark.parametrize("alpn", [(), (b"h2",), (b"http/1.1", b"h2"), (b"ISTIO",), (b"istio ",), (b"istio-h3",)])
@pytest.mark.parametrize(
    "name",
    [
        "",
        "cart.shop",
        "outbound_.80_._.cart.shop.svc.cluster.local",
        "default.shop.serviceaccount.identity.linkerd.cluster.local",
    ],
)
def test_without_them_it_is_the_applications_own_whatever_name_it_asks_for(alpn, name):
    assert not is_proxy(ClientHello(alpn, name), 80, SETTINGS)
    assert is_proxy(ClientHello(alpn, name), 8443, SETTINGS), "every client of such a port has to prove who it is"


@pytest.mark.parametrize(
    ("offered", "app_protocol", "agreed"),
    [
        ((), "", ""),
        ((b"postgresql",), "", ""),
        ((b"istio-peer-exchange",), "", ""),
        ((b"istio-peer-exchange", b"istio"), "", "istio"),
        ((b"istio-peer-exchange", b"istio"), "http", "istio"),
        ((b"istio", b"http/1.0"), "", "http/1.0"),
        ((b"istio-http/1.0", b"istio"), "", "istio-http/1.0"),
        ((b"istio-http/1.1", b"istio", b"http/1.1"), "", "http/1.1"),
        ((b"istio-h2", b"istio", b"h2"), "", "h2"),
        ((b"istio-h2", b"istio", b"h2"), "http", "h2"),
        ((b"h2", b"http/1.1", b"istio"), "", "http/1.1"),
        ((b"h2", b"http/1.1", b"istio"), "http", "http/1.1"),
        ((b"h2", b"http/1.1", b"istio"), "tcp", "http/1.1"),
        ((b"http/1.1", b"h2", b"istio"), "grpc", "h2"),
        ((b"http/1.1", b"h2", b"istio"), "kubernetes.io/h2c", "h2"),
        ((b"istio-http/1.1", b"istio-h2"), "http2", "istio-h2"),
        ((b"http/1.1",), "grpc", "http/1.1"),
    ],
)
def test_alpn_is_answered_with_what_the_bytes_will_be(offered, app_protocol, agreed):
    assert answer(offered, app_protocol) == agreed
