"""The custom resources in a real API server: what their schemas let through and what they refuse, in which words."""

from __future__ import annotations

from typing import Any

import pytest

from e2e.apiserver.custom_resources import (
    access_override,
    path_of,
    put,
    refusal,
    segmentation_mode,
)
from e2e.harness.apiserver import ApiServer


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"port": None, "protocol": "UDP"},
        {"effect": "deny", "ttl": "8h"},
        {"expiresAt": "2030-01-01T00:00:00Z"},
        {"operations": ["GET /cart/{id}", "HEAD *"]},
        {"from": {"address": "192.0.2.7"}},
        {"from": {"workload": "front"}, "to": {"address": "2001:db8::7"}},
        {"from": {"workload": "front"}, "to": {"host": "api.example.com"}, "port": 443},
        {"from": {"workload": "front"}, "to": {"host": "*.example.com"}, "port": 443},
        {"from": {"workload": "front"}, "to": {"cidr": "203.0.113.0/24"}, "port": 443},
        {"from": {"workload": "front"}, "to": {"cidr": "0.0.0.0/0"}, "effect": "deny"},
        {"from": {"workload": "front"}, "to": {"host": "*.co.uk"}, "effect": "deny"},
        {"from": {"cidr": "2001:db8::/32"}, "ttl": "1h"},
    ],
)
def test_good_overrides_are_taken(server: ApiServer, namespace: str, spec: dict[str, Any]) -> None:
    put(server, access_override(namespace, **spec))
    found = server.request("GET", path_of("AccessOverride", namespace, "one"))
    wanted = access_override(namespace, **spec)["spec"]
    assert found["spec"] == wanted, "the API server must add nothing, or GitOps sees drift"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"effect": "maybe"}, ("spec.effect", "allow", "deny")),
        ({"effect": None}, ("spec.effect", "Required")),
        ({"owner": None}, ("spec.owner", "Required")),
        ({"owner": "   "}, ("spec.owner", "who answers")),
        ({"owner": "a\nb"}, ("spec.owner", "one line")),
        ({"reason": ""}, ("spec.reason",)),
        ({"reason": "x" * 1001}, ("spec.reason", "1000")),
        ({"port": 0}, ("spec.port", "1")),
        ({"port": 65536}, ("spec.port", "65535")),
        ({"port": "http"}, ("spec.port", "numeric")),
        ({"protocol": "ICMP"}, ("spec.protocol", "TCP")),
        ({"ttl": "8h", "expiresAt": "2030-01-01T00:00:00Z"}, ("keep one of them",)),
        ({"ttl": "8 hours"}, ("spec.ttl", "90s, 30m, 8h or 7d")),
        ({"ttl": "0s"}, ("spec.ttl", "90s")),
        ({"expiresAt": "tomorrow"}, ("spec.expiresAt", "date-time")),
        ({"from": {}}, ("spec.from", "either a workload, or an address, or a network")),
        ({"from": {"workload": "a", "address": "192.0.2.1"}}, ("spec.from", "either")),
        ({"from": {"namespace": "web"}}, ("spec.from", "names nobody")),
        ({"from": {"address": "10.0.0.0/8"}}, ("spec.from.address", "without a prefix length")),
        ({"from": {"address": "192.0.2.300"}}, ("spec.from.address", "192.0.2.7")),
        ({"from": {"host": "a.example.com"}}, ("spec.from",)),
        ({"from": {"workload": "Front"}}, ("spec.from.workload", "lower-case")),
        ({"to": {"workload": "cart", "host": "a.b"}}, ("spec.to", "either")),
        ({"to": {"host": "EXAMPLE.com"}}, ("spec.to.host", "api.example.com")),
        ({"to": {"host": "api.*.com"}}, ("spec.to.host", "*.example.com")),
        ({"to": {"host": "*.com"}}, ("spec.to.host", "names everybody", "*.example.com")),
        ({"to": {"host": "*"}}, ("spec.to.host", "names everybody")),
        ({"to": {"host": "*.192.0.2.7"}}, ("spec.to.host", "not a host name")),
        ({"to": {"host": "*.Example.com"}}, ("spec.to.host", "lower case")),
        ({"to": {"host": "*.co.uk"}}, ("*.example.co.uk",)),
        ({"to": {"cidr": "203.0.113.0/33"}}, ("spec.to.cidr", "203.0.113.0/24")),
        ({"to": {"cidr": "203.0.113.7"}}, ("spec.to.cidr", "goes into `address`")),
        ({"to": {"cidr": "203.0.113.0/255.255.255.0"}}, ("spec.to.cidr", "203.0.113.0/24")),
        ({"to": {"cidr": "2001:db8::/129"}}, ("spec.to.cidr", "2001:db8::/32")),
        ({"to": {"cidr": "203.0.113.0/24", "host": "a.example.com"}}, ("spec.to", "either")),
        ({"from": {"workload": "a", "cidr": "203.0.113.0/24"}}, ("spec.from", "either")),
        ({"from": {"cidr": "198.51.100.0/24"}, "to": {"cidr": "203.0.113.0/24"}}, ("one end",)),
        ({"operations": ["GET /"], "to": {"cidr": "203.0.113.0/24"}}, ("nobody judges operations",)),
        ({"operations": ["GET /"], "to": {"host": "*.example.com"}}, ("name one host",)),
        ({"from": {"address": "192.0.2.7"}, "to": {"address": "192.0.2.8"}}, ("one end",)),
        ({"operations": ["get /x"]}, ("spec.operations[0]", "capitals")),
        ({"operations": ["GET /"], "protocol": "UDP"}, ("HTTP over TCP",)),
        ({"operations": ["GET /"], "to": {"address": "192.0.2.7"}}, ("nobody judges operations",)),
        ({"operations": [f"GET /{n}x" for n in range(65)]}, ("spec.operations", "64")),
        ({"colour": "green"}, ("colour",)),
    ],
)
def test_a_bad_override_is_refused_with_the_remedy(
    server: ApiServer, spec: dict[str, Any], words: tuple[str, ...]
) -> None:
    said = refusal(server, access_override("default", **spec))
    for word in words:
        assert word in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"effect": "deny"}, "effect can not be changed"),
        ({"from": {"workload": "other"}}, "from can not be changed"),
        ({"to": {"workload": "other"}}, "to can not be changed"),
        ({"port": 9090}, "port can not be changed"),
        ({"port": None}, "port can not be changed"),
        ({"protocol": "TCP"}, "protocol can not be changed"),
        ({"operations": ["GET /"]}, "operations can not be changed"),
    ],
)
def test_what_an_override_is_about_can_not_be_changed(
    server: ApiServer, namespace: str, change: dict[str, Any], words: str
) -> None:
    put(server, access_override(namespace))
    said = refusal(server, access_override(namespace, **change))
    assert words in said
    assert "create another" in said


def test_end_owner_and_reason_of_an_override_may_be_changed(server: ApiServer, namespace: str) -> None:
    put(server, access_override(namespace, ttl="1h"))
    put(server, access_override(namespace, ttl="2h", owner="bert", reason="longer"))


@pytest.mark.parametrize(
    "spec",
    [
        {"ingress": "enforce"},
        {"workload": "cart", "ingress": "learn", "egress": "quarantine", "inboundTLS": "strict"},
        {"networkPolicy": "off"},
        {"networkPolicy": "apply", "owner": "anna", "reason": "closing it"},
        {"learning": {"minConnections": 5, "minAge": "0s", "quiet": "10m", "staleAfter": "7d", "retireAfter": "30d"}},
    ],
)
def test_good_modes_are_taken(server: ApiServer, namespace: str, spec: dict[str, Any]) -> None:
    put(server, segmentation_mode(namespace, **spec))
    found = server.request("GET", path_of("SegmentationMode", namespace, "default"))
    assert found["spec"] == spec


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({}, ("it sets nothing",)),
        ({"workload": "cart"}, ("it sets nothing",)),
        ({"ingress": "closed"}, ("spec.ingress", "quarantine")),
        ({"inboundTLS": "on"}, ("spec.inboundTLS", "strict")),
        ({"networkPolicy": False}, ("spec.networkPolicy", "string")),
        ({"workload": "cart", "networkPolicy": "apply"}, ("whole namespace",)),
        ({"learning": {}}, ("spec.learning",)),
        ({"learning": {"minConnections": 0}}, ("minConnections",)),
        ({"learning": {"minAge": "1w"}}, ("spec.learning.minAge", "90s, 30m")),
        ({"ingres": "learn"}, ("ingres",)),
    ],
)
def test_a_bad_mode_is_refused_with_the_remedy(server: ApiServer, spec: dict[str, Any], words: tuple[str, ...]) -> None:
    said = refusal(server, segmentation_mode("default", **spec))
    for word in words:
        assert word in said


def test_the_workload_of_a_mode_can_not_be_changed(server: ApiServer, namespace: str) -> None:
    put(server, segmentation_mode(namespace, workload="cart", ingress="learn"))
    assert "create another" in refusal(server, segmentation_mode(namespace, workload="front", ingress="learn"))


def test_people_find_them_by_short_names_and_category(server: ApiServer, namespace: str) -> None:
    put(server, access_override(namespace))
    put(server, segmentation_mode(namespace, ingress="enforce"))
    listed = server.kubectl("get", "hao,hsm", "-n", namespace)
    assert "EFFECT" in listed
    assert "INGRESS" in listed
    assert "accessoverride.hedgerow.dev/one" in server.kubectl("get", "hedgerow", "-n", namespace, "-o", "name")
