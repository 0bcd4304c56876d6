"""What people may say of the outside: one spelling for one thing, and nothing wider than it reads."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from graph.errors import InvalidValue
from graph.model import Peer, Selector, WorkloadRef, is_host
from graph.outside import is_wide, name_end, network_end, network_of, parse_end, parse_outside, takes_in

_LABELS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,6}[a-z0-9])?", fullmatch=True)
_TOP = st.from_regex(r"[a-z]{2,6}", fullmatch=True)
domains = st.builds(lambda labels, top: ".".join([*labels, top]), st.lists(_LABELS, min_size=1, max_size=4), _TOP)
addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).filter(
    lambda each: getattr(each, "ipv4_mapped", None) is None
)
networks = st.builds(
    lambda address, length: ipaddress.ip_network((address, min(length, address.max_prefixlen)), strict=False),
    addresses,
    st.integers(0, 128),
).filter(lambda each: getattr(each.network_address, "ipv4_mapped", None) is None)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("192.0.2.7", "-/192.0.2.7"),
        ("192.0.2.7/32", "-/192.0.2.7"),
        ("2001:DB8::7", "-/2001:db8::7"),
        ("203.0.113.0/24", "-/203.0.113.0/24"),
        ("2001:0DB8::/32", "-/2001:db8::/32"),
        ("0.0.0.0/0", "-/0.0.0.0/0"),
        ("API.Example.COM.", "-/api.example.com"),
        ("*.Example.com.", "-/*.example.com"),
        ("bücher.example", "-/xn--bcher-kva.example"),
        ("*.BÜCHER.example", "-/*.xn--bcher-kva.example"),
        ("faß.example", "-/xn--fa-hia.example"),
    ],
)
def test_what_is_meant_has_one_spelling(written: str, meant: str) -> None:
    found = parse_outside(written)
    assert str(found) == meant
    assert parse_end(meant) == found
    assert parse_end(f"-/{written}") == found


@pytest.mark.parametrize(
    ("written", "problem", "remedy"),
    [
        ("", "empty", "api.example.com"),
        ("*", "names everybody", "*.example.com"),
        ("*.", "names everybody", "*.example.com"),
        ("*.com", "top-level domain", "*.example.com"),
        ("*.com.", "top-level domain", "*.example.com"),
        ("api.*.com", "'*'", "*.example.com"),
        ("a*.example.com", "'*'", "*.example.com"),
        ("*.*.example.com", "'*'", "*.example.com"),
        ("*.192.0.2.7", "'*'", "*.example.com"),
        ("localhost", "no address", "api.example.com"),
        ("api..com", "no address", "api.example.com"),
        ("192.0.2.256", "no address", "192.0.2.0/24"),
        ("fe80::1%eth0", "no address", "api.example.com"),
        ("x" * 64 + ".example.com", "no address", "api.example.com"),
        ("\u0663.\u0663.\u0663.\u0663", "no host name", "ASCII"),
        ("ü" * 300 + ".example", "no host name", "ASCII"),
        ("203.0.113.7/24", "bits behind its prefix", "203.0.113.0/24"),
        ("203.0.113.0/33", "not a network", "203.0.113.0/24"),
        ("203.0.113.0/", "not a network", "203.0.113.0/24"),
        ("203.0.113.0/24/8", "not a network", "203.0.113.0/24"),
        ("203.0.113.0/255.255.255.0", "not a network", "203.0.113.0/24"),
        ("fe80::%eth0/64", "not a network", "2001:db8::/32"),
        ("::ffff:203.0.113.0/120", "IPv4 in IPv6", "203.0.113.0/24"),
        ("api.example.com/24", "not a network", "203.0.113.0/24"),
    ],
)
def test_what_can_not_be_read_without_doubt_is_refused(written: str, problem: str, remedy: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        parse_outside(written, field="to")
    assert caught.value.field == "to"
    assert problem in caught.value.problem
    assert remedy in caught.value.remedy


@pytest.mark.parametrize("wide", ["-/203.0.113.0/24", "-/*.example.com"])
def test_no_connection_begins_or_ends_at_more_than_one(wide: str) -> None:
    assert is_wide(parse_end(wide))
    with pytest.raises(InvalidValue):
        WorkloadRef.parse(wide)


def test_a_workload_is_read_as_ever() -> None:
    assert parse_end("shop/cart") == WorkloadRef("shop", "cart")
    assert not is_wide(WorkloadRef("shop", "cart"))
    assert network_of(WorkloadRef("shop", "cart")) is None
    with pytest.raises(InvalidValue, match="namespace"):
        parse_end("cart", field="from")


def test_each_kind_is_read_by_itself_where_it_is_named() -> None:
    assert name_end("*.example.com") == parse_outside("*.example.com")
    assert network_end("203.0.113.0/24") == parse_outside("203.0.113.0/24")
    for text in ("203.0.113.0/24", "192.0.2.7"):
        with pytest.raises(InvalidValue, match="host"):
            name_end(text)
    for text in ("192.0.2.7", "api.example.com", "*.example.com"):
        with pytest.raises(InvalidValue, match="cidr"):
            network_end(text)


@given(domains, domains)
def test_below_a_domain_is_every_name_of_more_labels_and_no_other(domain: str, other: str) -> None:
    end = parse_outside(f"*.{domain}")
    selector = Selector.of(end)
    for host in (domain, other, f"x.{domain}", f"a.b.{domain}", f"x{domain}", f"{domain}.{other}"):
        if not is_host(host):
            continue
        below = host.split(".")[-len(domain.split(".")) :] == domain.split(".") and host != domain
        assert takes_in(end, WorkloadRef.external_host(host)) == below, host
        assert selector.matches(Peer(address="192.0.2.7", host=host)) == below, host
    assert not selector.matches(Peer(address="192.0.2.7"))


@given(domains, addresses)
def test_no_address_is_below_a_domain(domain: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    end = parse_outside(f"*.{domain}")
    assert not takes_in(end, WorkloadRef.external(str(address)))
    assert not Selector.of(end).matches(Peer(address=str(address)))


@given(networks, st.one_of(addresses, st.none()), st.randoms(use_true_random=False))
def test_a_network_takes_in_its_addresses_and_no_other(network, address, chosen) -> None:
    end = parse_outside(str(network))
    if address is None:
        address = network[chosen.randrange(min(network.num_addresses, 1 << 64))]
        assume(getattr(address, "ipv4_mapped", None) is None)  # which is an IPv4 address to us
    ref = WorkloadRef.external(str(address))
    inside = address.version == network.version and address in network
    assert takes_in(end, ref) == inside
    assert Selector.of(end).matches(Peer(address=str(address))) == inside
    assert network_of(end) == network
    assert parse_end(str(end)) == end
    assert not takes_in(end, WorkloadRef.external_host("api.example.com"))


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = parse_outside(text)
    except InvalidValue:
        return
    assert found.is_external
    assert parse_end(str(found)) == found, "one spelling"
    Selector.of(found)
