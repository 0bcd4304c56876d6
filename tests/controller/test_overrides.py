"""What a person may ask for, and how a mistake is answered."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from controller import overrides
from controller.errors import ControllerError, InvalidRequest, UnknownWorkload
from controller.view import Override, OverrideState
from graph.model import Origin, PortRange, Protocol, Selector, Verdict, WorkloadRef
from graph.outside import parse_end
from tests.controller.mesh import CART, FRONT, LEGACY, NOW, inventory

HOST = WorkloadRef.external_host("api.example.com")


def make(**changes: Any) -> Override:
    asked: dict[str, Any] = {
        "effect": Verdict.ALLOW,
        "source": FRONT,
        "destination": CART,
        "port": 8080,
        "protocol": Protocol.TCP,
        "owner": "ann",
        "reason": "release 7",
        "expires_in": 60.0,
    }
    return overrides.make(inventory(), overrides.OverrideRequest(**(asked | changes)), now=NOW, longest=1000.0)


def test_an_override_becomes_a_rule_with_owner_reason_and_end() -> None:
    override = make(owner=" ann ", reason=" release 7 ")
    rule = overrides.rule_of(override)
    assert rule.id == override.id
    assert rule.origin is Origin.OVERRIDE
    assert (rule.source, rule.destination) == (Selector.of(FRONT), Selector.of(CART))
    assert rule.ports == (PortRange.single(8080),)
    assert (rule.owner, rule.reason, rule.expires_at) == ("ann", "release 7", NOW + 60)


def test_without_port_and_end_it_holds_for_all_ports_for_ever() -> None:
    rule = overrides.rule_of(make(port=None, expires_in=None, effect=Verdict.DENY))
    assert rule.ports == ()
    assert rule.expires_at == 0.0
    assert rule.effect is Verdict.DENY


@pytest.mark.parametrize(
    ("changes", "field", "remedy"),
    [
        ({"source": WorkloadRef("shop", "frnt")}, "from", "shop/front"),
        ({"destination": WorkloadRef("data", "cart")}, "to", "shop/cart"),
        ({"destination": WorkloadRef("nowhere", "zzzzzz")}, "to", "hedgerow status"),
        ({"destination": FRONT}, "to", "two different"),
        ({"destination": WorkloadRef.external("10.0.0.2")}, "to", "shop/cart"),
        ({"source": WorkloadRef.external("10.1.0.1")}, "from", "shop/cart"),
        ({"source": LEGACY, "destination": WorkloadRef.external("192.0.2.1")}, "to", "sidecar"),
        ({"source": HOST}, "from", "address"),
        ({"source": parse_end("-/*.example.com")}, "from", "network"),
        ({"source": LEGACY, "destination": parse_end("-/203.0.113.0/24")}, "to", "sidecar"),
        ({"source": parse_end("-/10.0.0.0/29"), "destination": CART}, "from", "clusterNetworks"),
        ({"source": parse_end("-/0.0.0.0/0"), "destination": CART}, "from", "clusterNetworks"),
        ({"destination": parse_end("-/*.co.uk")}, "to", "*.example.co.uk"),
        ({"destination": parse_end("-/*.github.io")}, "to", "*.example.github.io"),
        ({"destination": parse_end("-/*.cluster.local")}, "to", "workloads behind them"),
        ({"destination": parse_end("-/*.svc.cluster.local")}, "to", "workloads behind them"),
        ({"destination": parse_end("-/*.shop.svc.cluster.local")}, "to", "workloads behind them"),
        ({"operations": ("GET /",), "destination": parse_end("-/*.example.com")}, "operations", "leave them out"),
        ({"operations": ("GET /",), "destination": parse_end("-/203.0.113.0/24")}, "operations", "leave them out"),
        ({"source": LEGACY, "destination": HOST}, "to", "sidecar"),
        ({"destination": WorkloadRef.external_host("cart.shop.svc.cluster.local")}, "to", "shop/cart"),
        ({"operations": ("GET /", "get /")}, "operations[1]", "capitals"),
        ({"operations": ("DELETE /cart/42",)}, "operations[0]", "{id}"),
        ({"operations": tuple(f"GET /{'a' * n}" for n in range(65))}, "operations", "64"),
        ({"operations": ("GET /",), "protocol": Protocol.UDP}, "operations", "TCP"),
        ({"operations": ("GET /",), "destination": LEGACY}, "operations", "leave them out"),
        ({"operations": ("GET /",), "destination": HOST}, "operations", "leave them out"),
        ({"port": 0}, "port", "65535"),
        ({"port": 65536}, "port", "65535"),
        ({"owner": "  "}, "owner", "--owner"),
        ({"owner": "a" * 201}, "owner", "200"),
        ({"reason": ""}, "reason", "--reason"),
        ({"reason": "a\x1b[31mb"}, "reason", "plain text"),
        ({"expires_in": 0.0}, "expires_in", "1000"),
        ({"expires_in": -5.0}, "expires_in", "1000"),
        ({"expires_in": 1001.0}, "expires_in", "1000"),
        ({"expires_in": float("nan")}, "expires_in", "1000"),
    ],
)
def test_a_mistake_names_the_field_and_the_remedy(changes: dict[str, Any], field: str, remedy: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        make(**changes)
    assert caught.value.field == field
    assert remedy in caught.value.remedy
    assert str(caught.value).startswith(f"{field}: ")


def test_an_unknown_workload_has_a_code_of_its_own() -> None:
    with pytest.raises(ControllerError) as caught:
        make(destination=WorkloadRef("shop", "carr"))
    assert isinstance(caught.value, UnknownWorkload)
    assert caught.value.code == "unknown-workload"


def test_an_address_outside_the_inventory_may_be_an_end() -> None:
    assert overrides.rule_of(make(destination=WorkloadRef.external("192.0.2.1"))).destination.cidr == "192.0.2.1/32"


def test_a_host_outside_may_be_called() -> None:
    rule = overrides.rule_of(make(destination=HOST, port=443))
    assert rule.destination == Selector(host="api.example.com")
    assert (rule.source, rule.ports) == (Selector.of(FRONT), (PortRange.single(443),))


@pytest.mark.parametrize("end", ["203.0.113.0/24", "0.0.0.0/0", "2001:db8::/32", "192.0.2.1"])
def test_what_is_opened_outside_is_marked_so_that_it_opens_no_workload(end: str) -> None:
    rule = overrides.rule_of(make(destination=parse_end(f"-/{end}")))
    assert rule.destination == replace(Selector.of(parse_end(f"-/{end}")), outside=True)
    network = overrides.rule_of(make(destination=parse_end(f"-/{end}"), effect=Verdict.DENY)).destination
    assert network.outside == ("/" in end), "one denied address is denied at both ends, whoever has it"


def test_all_names_below_a_domain_may_be_called() -> None:
    assert overrides.rule_of(make(destination=parse_end("-/*.example.com"))).destination.host == "*.example.com"


@pytest.mark.parametrize("end", ["10.0.0.0/8", "*.co.uk", "*.github.io", "*.shop.svc.cluster.local"])
def test_a_deny_may_be_as_wide_as_somebody_likes(end: str) -> None:
    made = make(effect=Verdict.DENY, destination=parse_end(f"-/{end}"))
    assert str(made.destination) == f"-/{end}"
    assert overrides.note_of(made, inventory()) == ""


def test_who_opens_a_network_is_told_for_whom_that_does_not_hold() -> None:
    assert "rules go by identity" in overrides.note_of(make(destination=parse_end("-/10.0.0.0/8")), inventory())
    assert "comes from" in overrides.note_of(make(source=parse_end("-/198.51.100.0/24"), destination=CART), inventory())
    for end in (CART, WorkloadRef.external("192.0.2.1"), HOST, parse_end("-/*.example.com")):
        assert overrides.note_of(make(destination=end), inventory()) == ""


def test_who_allows_an_operation_is_told_what_was_learned_as_a_whole() -> None:
    learned = replace(overrides.rule_of(make()), id="learned/shop/front->shop/cart:8080/TCP", origin=Origin.LEARNED)
    one = make(operations=("GET /cart/{id}",))
    assert "may ask everything else there, too" in overrides.note_beside(one, {learned.id: learned})
    assert overrides.note_beside(one, {}) == ""
    for other in (
        make(),
        make(operations=("GET /cart/{id}",), port=8081),
        make(operations=("GET /cart/{id}",), effect=Verdict.DENY),
    ):
        assert overrides.note_beside(other, {learned.id: learned}) == ""


def test_who_names_a_services_port_is_told_the_pods() -> None:
    assert "reached at 8080" in overrides.note_of(make(port=80), inventory())
    for port in (None, 8080, 81):
        assert overrides.note_of(make(port=port), inventory()) == ""
    assert overrides.note_of(make(port=80, protocol=Protocol.UDP), inventory()) == "", "of another protocol"


def test_the_clusters_own_networks_are_opened_by_identity() -> None:
    known = replace(inventory(), networks=("10.0.0.0/16",))
    asked = overrides.OverrideRequest(Verdict.ALLOW, FRONT, CART, 80, Protocol.TCP, "ann", "a test", None)
    for end in ("10.0.0.0/16", "10.0.3.0/24"):
        for ends, field in (
            ({"destination": parse_end(f"-/{end}")}, "to"),
            ({"source": parse_end(f"-/{end}")}, "from"),
        ):
            with pytest.raises(InvalidRequest, match="cluster's own networks") as caught:
                overrides.make(known, replace(asked, **ends), now=NOW, longest=1000.0)
            assert caught.value.field == field
            denied = replace(asked, effect=Verdict.DENY, **ends)
            assert overrides.make(known, denied, now=NOW, longest=1000.0)
    for end in ("10.0.0.0/8", "0.0.0.0/0"):  # wider ones stop there
        ends = {"source": parse_end(f"-/{end}")}
        assert overrides.make(known, replace(asked, **ends), now=NOW, longest=1000.0)


@pytest.mark.parametrize("effect", list(Verdict))
def test_an_override_may_be_about_some_operations(effect: Verdict) -> None:
    asked = ("GET /cart/{id}", "HEAD /cart/{id}", "GET /cart/{id}")
    override = make(effect=effect, operations=asked)
    assert override.operations == asked[:2]
    assert overrides.rule_of(override).operations == asked[:2]
    assert overrides.rule_of(make()).operations == ()


def test_what_is_about_everything_decides_above_what_is_about_operations() -> None:
    some, all_of_it = make(effect=Verdict.DENY, operations=("GET /",)), make()
    assert overrides.deciding([some, all_of_it], 8080, Protocol.TCP) is all_of_it
    assert overrides.deciding([some], 8080, Protocol.TCP) is some


def test_the_state_follows_the_clock() -> None:
    override = make()
    assert override.state(NOW + 59.9) is OverrideState.ACTIVE
    assert override.state(NOW + 60) is OverrideState.EXPIRED
    assert make(expires_in=None).state(NOW + 1e9) is OverrideState.ACTIVE


def test_a_deny_decides_above_an_allow_where_both_speak_of_the_port() -> None:
    allow, deny, other = make(), make(effect=Verdict.DENY, port=None), make(effect=Verdict.DENY, port=9)
    assert overrides.deciding([allow, other], 8080, Protocol.TCP) is allow
    assert overrides.deciding([allow, deny, other], 8080, Protocol.TCP) is deny
    assert overrides.deciding([allow, deny], 8080, Protocol.UDP) is None
