"""The vocabulary refuses what it has no meaning for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph.errors import InvalidValue
from graph.flow import EdgeKey
from graph.model import (
    Origin,
    Peer,
    PortRange,
    Protocol,
    Rule,
    Selector,
    Transport,
    Verdict,
    Workload,
    WorkloadRef,
)
from tests.graph.strategies import HOST_PATTERNS, HOSTS, PORTS, refs


@given(refs)
def test_workload_references_read_what_they_write(ref: WorkloadRef) -> None:
    assert WorkloadRef.parse(str(ref)) == ref


@given(refs, refs, PORTS, st.sampled_from(Protocol))
def test_edge_keys_read_what_they_write(a: WorkloadRef, b: WorkloadRef, port: int, protocol: Protocol) -> None:
    key = EdgeKey(a, b, port, protocol)
    assert EdgeKey.parse(str(key)) == key


@given(st.text(max_size=60))
def test_any_text_is_an_edge_key_or_an_invalid_value(text: str) -> None:
    try:
        key = EdgeKey.parse(text)
    except InvalidValue:
        return
    assert EdgeKey.parse(str(key)) == key


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cart",
        "/cart",
        "shop/",
        "Shop/cart",
        "shop/cart/x",
        "shop/-cart",
        "-/cart",
        "-/fe80::1%eth0",
        "-/fe80::1%\n",
        "a" * 64 + "/x",
        "shop/" + "a" * 254,
    ],
)
def test_bad_workload_references(text: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        WorkloadRef.parse(text, field="from")
    assert caught.value.field in ("from", "address")
    assert "from" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "shop/a->shop/b",
        "shop/a->shop/b:0/TCP",
        "shop/a->shop/b:65536/TCP",
        "shop/a->shop/b:" + "9" * 5000 + "/TCP",
        "shop/a->shop/b:80/tcp",
        "shop/a:80/TCP",
        "shop/a->shop/b:٨٠/TCP",
    ],
)
def test_bad_edge_keys(text: str) -> None:
    with pytest.raises(InvalidValue):
        EdgeKey.parse(text)


def test_selectors_match_every_part_that_is_set() -> None:
    cart = Peer(WorkloadRef("shop", "cart"), "shop", "robot", "10.0.0.7", True)
    assert Selector().matches(Peer())
    assert Selector("shop").matches(cart)
    assert Selector("shop", "cart", "robot", "10.0.0.0/24").matches(cart)
    assert not Selector("ops").matches(cart)
    assert not Selector("shop", "db").matches(cart)
    assert not Selector("shop", "cart", "default").matches(cart)
    assert not Selector("shop", cidr="10.0.1.0/24").matches(cart)
    assert not Selector(cidr="::/0").matches(cart)
    account = Peer(None, "shop", "robot", "", True)
    assert Selector("shop", service_account="robot").matches(account)
    assert not Selector("shop", "cart").matches(account), "an account alone proves no workload"
    assert not Selector(cidr="0.0.0.0/0").matches(account), "no address, no match"


@pytest.mark.parametrize(
    ("pattern", "host", "matched"),
    [
        ("api.example.com", "api.example.com", True),
        ("api.example.com", "example.com", False),
        ("api.example.com", "x.api.example.com", False),
        ("api.example.com", "", False),
        ("*.example.com", "api.example.com", True),
        ("*.example.com", "a.b.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "badexample.com", False),
        ("*.example.com", "example.com.evil.org", False),
        ("*.example.com", "", False),
    ],
)
def test_a_host_is_matched_as_a_whole_or_below_a_dot(pattern: str, host: str, matched: bool) -> None:
    assert Selector(host=pattern).matches(Peer(address="192.0.2.7", host=host)) is matched


@given(HOST_PATTERNS, st.one_of(st.just(""), HOSTS))
def test_a_pattern_matches_what_has_more_labels_and_the_same_end(pattern: str, host: str) -> None:
    labels, wanted = host.split("."), pattern.split(".")
    if wanted[0] == "*":
        expected = len(labels) >= len(wanted) and labels[1 - len(wanted) :] == wanted[1:]
    else:
        expected = labels == wanted
    assert Selector(host=pattern).matches(Peer(host=host)) is expected


def test_a_host_may_be_tied_to_networks_and_never_to_an_identity() -> None:
    both = Selector(cidr="192.0.2.0/24", host="api.example.com")
    assert both.matches(Peer(address="192.0.2.7", host="api.example.com"))
    assert not both.matches(Peer(address="10.0.0.1", host="api.example.com"))
    assert not both.matches(Peer(address="192.0.2.7"))
    assert not both.matches(Peer(host="api.example.com"))
    assert str(both) == "api.example.com@192.0.2.0/24"
    assert not both.by_identity
    with pytest.raises(InvalidValue, match=r"selector\.host"):
        Selector("shop", host="api.example.com")


@pytest.mark.parametrize("fields", [{}, {"namespace": "shop", "cidr": "10.0.0.0/8"}, {"host": "api.example.com"}])
def test_only_a_network_is_marked_as_outside(fields: dict[str, str]) -> None:
    assert Selector(cidr="10.0.0.0/8", outside=True).outside
    with pytest.raises(InvalidValue, match=r"selector\.outside"):
        Selector(**fields, outside=True)


def test_a_workload_is_never_matched_by_a_host() -> None:
    cart = Peer(WorkloadRef("shop", "cart"), "shop", "default", "10.0.0.7", True)
    assert not Selector(host="*.example.com").matches(cart)


@pytest.mark.parametrize(
    "host",
    [
        "com", "*", "*.", "*.com", "*.*.example.com", "a.*.com", "API.example.com", "example.com.", ".example.com",
        "10.0.0.1", "1.2.3.4.5", "a..b", "-a.com", "a-.com", "a b.com", "a/b.com", "exämple.com", "a.com\n",
        "a" * 64 + ".com", "a." * 127 + "com",
    ],
)  # fmt: skip
def test_bad_hosts(host: str) -> None:
    with pytest.raises(InvalidValue, match=r"selector\.host"):
        Selector(host=host)
    with pytest.raises(InvalidValue):
        WorkloadRef.external_host(host)


def test_a_host_has_a_reference_and_a_selector_and_is_no_address() -> None:
    host = WorkloadRef.parse("-/api.example.com")
    assert host == WorkloadRef.external_host("api.example.com")
    assert (host.is_external, host.host, str(host)) == (True, "api.example.com", "-/api.example.com")
    assert Selector.of(host) == Selector(host="api.example.com")
    assert WorkloadRef.external("192.0.2.7").host == ""
    assert WorkloadRef("shop", "api.example.com").host == ""
    assert Peer(address="192.0.2.7", host="api.example.com").ref() == host
    assert Peer(address="192.0.2.7").ref() == WorkloadRef.external("192.0.2.7")


@pytest.mark.parametrize(
    ("meshed", "transport", "expected"),
    [(True, Transport.TUNNEL, True), (True, Transport.MTLS, False), (False, Transport.TUNNEL, False)],
)
def test_only_our_own_proxy_is_a_sidecar(meshed: bool, transport: Transport, expected: bool) -> None:
    assert Workload(WorkloadRef("shop", "cart"), meshed=meshed, transport=transport).has_sidecar is expected


def test_an_ipv4_peer_of_a_dual_stack_socket_is_an_ipv4_peer() -> None:
    assert Selector(cidr="10.0.0.0/8").matches(Peer(address="::ffff:10.1.2.3"))
    assert not Selector(cidr="::/0").matches(Peer(address="::ffff:10.1.2.3"))


def test_selectors_keep_networks_in_canonical_form() -> None:
    assert Selector(cidr="10.0.0.1") == Selector(cidr="10.0.0.1/32")
    assert Selector(cidr="10.0.0.0/255.0.0.0").cidr == "10.0.0.0/8"
    assert Selector.of(WorkloadRef.external("2001:DB8::1")).cidr == "2001:db8::1/128"
    assert str(Selector("shop", "cart", cidr="10.0.0.0/8")) == "shop/cart@10.0.0.0/8"
    assert str(Selector()) == "*"


@pytest.mark.parametrize("cidr", ["10.0.0.1/8", "nowhere", "fe80::%eth0/64", "10.0.0.0/33"])
def test_bad_networks(cidr: str) -> None:
    with pytest.raises(InvalidValue, match=r"selector\.cidr"):
        Selector(cidr=cidr)


def test_selectors_of_half_an_identity_are_refused() -> None:
    with pytest.raises(InvalidValue, match=r"selector\.workload"):
        Selector(workload="cart")
    with pytest.raises(InvalidValue, match=r"selector\.service_account"):
        Selector(service_account="robot")


def test_only_people_and_static_rules_deny_and_only_the_baseline_is_essential() -> None:
    anything = Selector()
    for origin in (Origin.LEARNED, Origin.BASELINE):
        with pytest.raises(InvalidValue, match="deny"):
            Rule("x", anything, anything, effect=Verdict.DENY, origin=origin)
    for origin in (Origin.LEARNED, Origin.OVERRIDE, Origin.STATIC):
        with pytest.raises(InvalidValue, match="essential"):
            Rule("x", anything, anything, origin=origin, essential=True)
    with pytest.raises(InvalidValue, match=r"rule\.id"):
        Rule("", anything, anything)


@pytest.mark.parametrize(("first", "last"), [(0, 1), (2, 1), (1, 65536), (-1, 5)])
def test_bad_port_ranges(first: int, last: int) -> None:
    with pytest.raises(InvalidValue, match="ports"):
        PortRange(first, last)
