"""Custom resources as JSON: what they declare, what they are told, and what is written for people."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller import overrides
from controller.authoring import ModeRequest
from controller.declarations import Judgement, Kind, NetworkPolicyMode
from controller.errors import InvalidRequest
from controller.kube.resources.reading import (
    duration,
    mode_declaration,
    moment_of,
    moment_written,
    override_declaration,
    written,
)
from controller.kube.resources.status import mode_status, override_status, says_already, status_of
from controller.kube.resources.sync import _read
from controller.kube.resources.writing import mode_document, override_document
from graph.model import Direction, InboundTls, Mode, Protocol, Verdict, WorkloadRef
from graph.outside import parse_end
from tests.controller.mesh import CART, FRONT, NOW, inventory

BORN = moment_written(NOW)
META = {"namespace": "shop", "name": "one", "uid": "0123456789", "generation": 2, "creationTimestamp": BORN}
SPEC = {
    "effect": "allow",
    "from": {"workload": "front"},
    "to": {"namespace": "shop", "workload": "cart"},
    "port": 8080,
    "owner": "anna",
    "reason": "release 7",
}


def resource(**spec: Any) -> dict[str, Any]:
    whole = {name: value for name, value in (SPEC | spec).items() if value is not None}
    return {"metadata": dict(META), "spec": whole}


def test_an_override_is_read_as_it_is_written() -> None:
    found = override_declaration(resource(ttl="8h", operations=["GET /cart/{id}"]))
    asked = found.asked
    assert (asked.source, asked.destination, asked.port, asked.protocol) == (FRONT, CART, 8080, Protocol.TCP)
    assert (asked.effect, asked.operations, asked.owner) == (Verdict.ALLOW, ("GET /cart/{id}",), "anna")
    assert found.expires_at == NOW + 8 * 3600
    assert found.id == "override/shop.one.01234567"
    assert found.key == "AccessOverride/shop/one"


def test_ends_outside_and_an_end_by_date() -> None:
    found = override_declaration(
        resource(to={"host": "api.example.com"}, expiresAt="2030-01-01T02:00:00+02:00", protocol="UDP", port=None)
    )
    assert found.asked.destination == WorkloadRef.external_host("api.example.com")
    assert (found.asked.port, found.asked.protocol) == (None, Protocol.UDP)
    assert found.expires_at == moment_of("2030-01-01T00:00:00Z")
    named = override_declaration(resource(**{"from": {"address": "2001:DB8::7"}}))
    assert named.asked.source == WorkloadRef.external("2001:db8::7")
    below = override_declaration(resource(to={"host": "*.example.com"}))
    assert below.asked.destination == parse_end("-/*.example.com")
    network = override_declaration(resource(**{"from": {"cidr": "2001:DB8::/32"}}))
    assert network.asked.source == parse_end("-/2001:db8::/32")


@pytest.mark.parametrize(
    "end",
    [
        {"ttl": "999999999d"},
        {"expiresAt": "9999-12-31T23:59:59-01:00"},
        {"expiresAt": "0001-01-01T00:00:00+01:00"},
        {"expiresAt": "0001-01-01T00:00:00Z"},
    ],
)
def test_an_end_that_no_status_can_say_is_refused_and_the_resource_is_told(end: dict[str, str]) -> None:
    # these pass the schema; one that could not be told of itself kept everybody else's from being told
    document = resource(**end)
    told = _read(Kind.OVERRIDE, document)
    assert isinstance(told, Judgement)
    assert (told.accepted, told.field) == (False, next(iter(end)))
    assert status_of(document, None, told, NOW, override=True)["state"] == "Refused"


@pytest.mark.parametrize("end", ["203.0.113.0/24", "2001:db8::/32", "*.example.com", "api.example.com", "192.0.2.7"])
def test_what_is_outside_is_read_back_as_it_was_written(end: str) -> None:
    asked = override_declaration(resource(to={"address": "192.0.2.9"})).asked
    made = overrides.make(
        inventory(), replace(asked, destination=parse_end(f"-/{end}"), expires_in=60.0), now=NOW, longest=100.0
    )
    document = override_document("shop", made, NOW)
    document["metadata"] |= META
    assert override_declaration(document).asked.destination == made.destination == parse_end(f"-/{end}")


@pytest.mark.parametrize(
    ("spec", "field", "remedy"),
    [
        ({"effect": "maybe"}, "effect", "allow"),
        ({"from": {"workload": "front", "address": "192.0.2.1"}}, "from", "either"),
        ({"from": {"host": "a.example.com"}}, "from.host", "known are"),
        ({"from": {"namespace": "shop", "address": "192.0.2.1"}}, "from", "either"),
        ({"to": {}}, "to", "workload or address or cidr or host"),
        ({"to": {"address": "10.0.0.0/8"}}, "to.address", "192.0.2.7"),
        ({"to": {"workload": "Cart"}}, "to.workload", "lower-case"),
        ({"to": {"cidr": "203.0.113.7/24"}}, "to.cidr", "203.0.113.0/24"),
        ({"to": {"cidr": "203.0.113.7"}}, "to.cidr", "203.0.113.0/24"),
        ({"to": {"cidr": "fe80::%eth0/64"}}, "to.cidr", "2001:db8::/32"),
        ({"to": {"cidr": "api.example.com"}}, "to.cidr", "2001:db8::/32"),
        ({"to": {"host": "203.0.113.0/24"}}, "to.host", "api.example.com"),
        ({"to": {"host": "192.0.2.7"}}, "to.host", "api.example.com"),
        ({"to": {"host": "*.com"}}, "to.host", "*.example.com"),
        ({"to": {"host": "*"}}, "to.host", "*.example.com"),
        ({"from": {"cidr": "198.51.100.0/24", "address": "192.0.2.1"}}, "from", "either"),
        ({"port": "http"}, "port", "65535"),
        ({"operations": ["get /"]}, "operations[0]", "capitals"),
        ({"ttl": "8 hours"}, "ttl", "90s"),
        ({"ttl": "8h", "expiresAt": "2030-01-01T00:00:00Z"}, "ttl", "keep one"),
        ({"expiresAt": "2030-01-01T00:00:00"}, "expiresAt", "2030"),
        ({"owner": None}, "owner", "add"),
        ({"reason": "a\u202eb"}, "reason", "plain text"),
        ({"colour": "green"}, "colour", "remove it"),
    ],
)
def test_what_no_schema_looked_at_is_refused_with_field_and_remedy(
    spec: dict[str, Any], field: str, remedy: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        override_declaration(resource(**spec))
    assert caught.value.field == field
    assert remedy in caught.value.remedy


def test_a_mode_is_read_as_it_is_written() -> None:
    learning = {"minConnections": 5, "minAge": "0s", "retireAfter": "30d"}
    spec = {"workload": "cart", "ingress": "enforce", "inboundTLS": "strict", "learning": learning}
    found = mode_declaration({"metadata": META, "spec": spec})
    assert (found.ref, found.inbound, found.outbound, found.inbound_tls) == (
        CART,
        Mode.ENFORCE,
        None,
        InboundTls.STRICT,
    )
    assert dict(found.gate) == {"min_connections": 5.0, "min_seconds": 0.0, "retire_after": 30 * 86400.0}
    whole = mode_declaration({"metadata": META, "spec": {"networkPolicy": "off"}})
    assert (whole.target, whole.network_policy) == ("shop", NetworkPolicyMode.OFF)
    for wrong in ({"networkPolicy": False}, {"learning": {"minAge": "1w"}}, {"workload": "a/b"}, {"mode": "learn"}):
        with pytest.raises(InvalidRequest):
            mode_declaration({"metadata": META, "spec": wrong})


@pytest.mark.parametrize("metadata", [None, {}, {**META, "creationTimestamp": "then"}, {**META, "generation": "x"}])
def test_metadata_that_no_api_server_gives_are_refused(metadata: Any) -> None:
    with pytest.raises(InvalidRequest, match="metadata"):
        override_declaration({"metadata": metadata, "spec": SPEC})


@given(st.integers(1, 10**8))
def test_a_duration_is_written_so_that_it_reads_back(seconds: int) -> None:
    assert duration(written(seconds)) == seconds


def judgement(**changes: Any) -> Judgement:
    return Judgement(**({"uid": "u", "generation": 2, "accepted": True, "override_id": "override/a"} | changes))


def test_a_condition_keeps_its_time_until_it_turns() -> None:
    declared = override_declaration(resource(ttl="1h"))
    first = override_status({}, declared, judgement(), NOW)
    assert first["state"] == "Active"
    assert first["expiresAt"] == moment_written(NOW + 3600)
    assert says_already(first, override_status(first, declared, judgement(), NOW + 99))
    over = override_status(first, declared, judgement(ended=True), NOW + 3600)
    assert not says_already(first, over)
    noted = override_status({}, declared, judgement(note="80 is a service's port"), NOW)
    assert noted["conditions"][0]["message"] == "it is in force; 80 is a service's port"
    times = {each["type"]: each["lastTransitionTime"] for each in over["conditions"]}
    assert times == {"Accepted": BORN, "Expired": moment_written(NOW + 3600)}


def test_a_refusal_names_field_and_remedy_and_what_is_left_of_before_is_noticed() -> None:
    declared = override_declaration(resource(ttl="1h"))
    refused = judgement(accepted=False, code="unknown-workload", field="to", problem="nobody", remedy="look")
    status = override_status({}, declared, refused, NOW)
    (accepted,) = status["conditions"]
    assert (accepted["status"], accepted["reason"]) == ("False", "UnknownWorkload")
    assert accepted["message"] == "spec.to: nobody; look"
    before = override_status({}, declared, judgement(), NOW)
    mixed = status | {"conditions": [*status["conditions"], before["conditions"][1]]}
    assert not says_already(mixed, status), "a condition of before has to go"
    foreign = {"type": "Reviewed", "status": "True"}
    assert says_already(status | {"conditions": [*status["conditions"], foreign]}, status)


def test_a_mode_that_is_not_heard_is_told_so() -> None:
    status = mode_status({}, judgement(shadowed=("ingress",)), NOW)
    assert (status["state"], status["conditions"][0]["status"]) == ("Shadowed", "False")
    with_policies = mode_status({}, judgement(), NOW) | {"networkPolicies": {"mode": "apply"}}
    assert says_already(with_policies, mode_status(with_policies, judgement(), NOW + 5))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"expires_in": 3600.0, "port": None, "protocol": Protocol.UDP, "effect": Verdict.DENY},
        {"operations": ("GET /", "PUT *")},
        {"destination": WorkloadRef.external_host("api.example.com"), "port": 443},
        {"source": WorkloadRef.external("2001:db8::7")},
    ],
)
def test_what_is_written_for_people_reads_back_as_what_they_asked(changes: dict[str, Any]) -> None:
    given_: dict[str, Any] = {
        "effect": Verdict.ALLOW, "source": FRONT, "destination": CART, "port": 8080, "protocol": Protocol.TCP,
        "owner": "anna", "reason": "release 7", "expires_in": None,
    }  # fmt: skip
    asked = overrides.OverrideRequest(**(given_ | changes))
    made = overrides.make(inventory(), asked, now=NOW, longest=1e9)
    document = override_document("shop", made, NOW)
    assert len(document["metadata"]["name"]) <= 63
    document["metadata"] |= {"uid": "0123456789", "generation": 1, "creationTimestamp": BORN}
    found = override_declaration(document)
    expires_in = asked.expires_in
    assert found.expires_at == (None if expires_in is None else NOW + expires_in)
    assert found.asked == overrides.OverrideRequest(**(given_ | changes | {"expires_in": None}))
    assert found.source.author == "anna"


def test_a_mode_is_changed_on_top_of_what_ours_says() -> None:
    asked = ModeRequest("shop", Direction.INBOUND, Mode.ENFORCE, None, None, "anna", "now")
    held = {"metadata": {"uid": "u", "resourceVersion": "7"}, "spec": {"egress": "audit", "networkPolicy": "apply"}}
    document = mode_document("shop", "hedgerow-namespace", "", asked, "anna", "now", held)
    assert document["spec"] == {
        "ingress": "enforce", "egress": "audit", "networkPolicy": "apply", "owner": "anna", "reason": "now",
    }  # fmt: skip
    assert document["metadata"]["resourceVersion"] == "7"
