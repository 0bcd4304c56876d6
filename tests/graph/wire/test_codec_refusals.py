"""One bad or unknown part rejects the whole message, and the refusal names its field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from graph.directory import Destination
from graph.errors import DecodeError
from graph.model import Selector
from graph.wire import bounds
from graph.wire import hedgerow_pb2 as pb
from graph.wire.codec import (
    decode_snapshot,
    destination_from_message,
    destination_to_message,
    encode_snapshot,
    flow_from_message,
    snapshot_from_message,
    snapshot_to_message,
)
from tests.graph.wire.examples import RULE, SNAPSHOT

UNKNOWN = b"\xf8\x07\x01"  # field 127, varint 1


@pytest.mark.parametrize(
    ("where", "field"),
    [
        (lambda message: message, "#127"),
        (lambda message: message.rules[0], "rules[0].#127"),
        (lambda message: message.rules[0].source, "rules[0].source.#127"),
        (lambda message: message.rules[0].destination, "rules[0].destination.#127"),
        (lambda message: message.rules[0].ports[0], "rules[0].ports[0].#127"),
        (lambda message: message.protocols[1], "protocols[1].#127"),
    ],
)
def test_an_unknown_field_anywhere_rejects_the_whole_snapshot(where: Callable[[Any], Any], field: str) -> None:
    message = snapshot_to_message(SNAPSHOT)
    where(message).MergeFromString(UNKNOWN)
    with pytest.raises(DecodeError, match="does not know") as caught:
        decode_snapshot(message.SerializeToString())
    assert caught.value.field == field


@pytest.mark.parametrize("part", ["source", "destination"])
def test_an_absent_selector_is_not_one_that_selects_everything(part: str) -> None:
    message = snapshot_to_message(SNAPSHOT)
    message.rules[0].ClearField(part)
    with pytest.raises(DecodeError) as caught:
        snapshot_from_message(message)
    assert caught.value.field == f"rules[0].{part}"
    everything = replace(SNAPSHOT, rules=(replace(RULE, **{part: Selector()}),))
    assert decode_snapshot(encode_snapshot(everything)) == everything


def _set(path: str, value: Any) -> Callable[[Any], None]:
    def change(message: Any) -> None:
        *parents, last = path.split(".")
        for name in parents:
            message = message[int(name)] if name.isdigit() else getattr(message, name)
        if isinstance(value, list):
            del getattr(message, last)[:]
            getattr(message, last).extend(value)
        else:
            setattr(message, last, value)

    return change


BAD_SNAPSHOTS = [
    ("workload", ""),
    ("workload", "cart"),
    ("workload", "Shop/cart"),
    ("workload", "-/10.0.0.1"),
    ("workload", "shop/" + "a" * 400),
    ("trust_domain", ""),
    ("trust_domain", "Hedgerow"),
    ("trust_domain", "a/b"),
    ("trust_domain", "a" * 256),
    ("version", 0),
    ("version", 2**63),
    ("inbound_mode", ""),
    ("inbound_mode", "Learn"),
    ("outbound_mode", "open"),
    ("inbound_tls", ""),
    ("inbound_tls", "off"),
    ("issued_at", float("nan")),
    ("issued_at", float("inf")),
    ("issued_at", -1.0),
    ("rules.0.id", ""),
    ("rules.0.id", "a" * 2000),
    ("rules.0.id", "a\nb"),
    ("rules.0.protocol", ""),
    ("rules.0.protocol", "tcp"),
    ("rules.0.effect", ""),
    ("rules.0.effect", "ALLOW"),
    ("rules.0.effect", "deny"),  # a learned rule cannot deny
    ("rules.0.origin", ""),
    ("rules.0.origin", "magic"),
    ("rules.0.essential", True),  # a learned rule cannot be essential
    ("rules.0.owner", "a" * 400),
    ("rules.0.owner", "\x1b[31m"),
    ("rules.0.reason", "a" * 2000),
    ("rules.0.reason", "a\x00"),
    ("rules.0.expires_at", float("nan")),
    ("rules.0.expires_at", -5.0),
    ("rules.0.operations", [""]),
    ("rules.0.operations", ["a"] * 300),
    ("rules.0.evidence", ["a" * 2000]),
    ("rules.0.evidence", ["a"] * 65),
    ("rules.0.ports.0.first", 0),
    ("rules.0.ports.0.first", 65536),
    ("rules.0.ports.0.last", 65536),
    ("rules.0.ports.0.last", 79),
    ("rules.0.ports.0.last", 2**32 - 1),
    ("rules.0.source.namespace", ""),  # and yet a workload
    ("rules.0.source.namespace", "-"),
    ("rules.0.source.namespace", "*"),
    ("rules.0.source.namespace", "a" * 64),
    ("rules.0.source.workload", "Front"),
    ("rules.0.source.workload", "a/b"),
    ("rules.0.source.service_account", "a b"),
    ("rules.0.destination.cidr", "10.0.0.1/8"),
    ("rules.0.destination.cidr", "10.0.0.1"),
    ("rules.0.destination.cidr", "10.0.0.0/255.0.0.0"),
    ("rules.0.destination.cidr", "10/8"),
    ("rules.0.destination.cidr", "2001:DB8::/32"),
    ("rules.0.destination.cidr", "fe80::%eth0/64"),
    ("rules.0.destination.cidr", "anywhere"),
    ("rules.0.destination.host", "api.example.com"),  # beside a namespace
    ("rules.1.destination.host", "API.example.com"),
    ("rules.1.destination.host", "*.com"),
    ("rules.1.destination.host", "10.0.0.1"),
    ("rules.1.destination.host", "a\nb.com"),
    ("rules.1.destination.host", "a" * 300 + ".com"),
    ("protocols.0.port", 0),
    ("protocols.0.port", 65536),
    ("protocols.0.port", 9090),  # twice
    ("protocols.0.app_protocol", ""),
    ("protocols.0.app_protocol", "h\x1bttp"),
    ("protocols.0.app_protocol", "a" * 400),
]


@pytest.mark.parametrize(("path", "value"), BAD_SNAPSHOTS, ids=lambda each: str(each)[:40])
def test_a_bad_part_rejects_the_whole_snapshot_and_is_named(path: str, value: Any) -> None:
    message = snapshot_to_message(SNAPSHOT)
    assert snapshot_from_message(message) == SNAPSHOT
    _set(path, value)(message)
    with pytest.raises(DecodeError) as caught:
        decode_snapshot(message.SerializeToString())
    expected = path.replace("ports.0", "ports[0]")
    for index in (0, 1):
        expected = expected.replace(f"rules.{index}", f"rules[{index}]")
    expected = expected.replace("protocols.0", "protocols[1]" if value == 9090 else "protocols[0]")
    if value == "" and path.endswith("namespace"):
        expected = expected.replace("namespace", "workload")
    assert caught.value.field.startswith(expected)
    assert len(str(caught.value)) < 600


def test_rules_are_bounded_in_number_and_their_ids_are_unique() -> None:
    message = snapshot_to_message(SNAPSHOT)
    message.rules.add().CopyFrom(message.rules[0])
    with pytest.raises(DecodeError) as caught:
        snapshot_from_message(message)
    assert caught.value.field == "rules[2].id"
    many = pb.Snapshot(rules=[pb.Rule()] * (bounds.MAX_RULES + 1))
    many.MergeFrom(snapshot_to_message(replace(SNAPSHOT, rules=())))
    with pytest.raises(DecodeError, match="more than") as caught:
        snapshot_from_message(many)
    assert caught.value.field == "rules"
    open_ports = pb.Snapshot(
        protocols=[pb.PortProtocol(port=port + 1, app_protocol="http") for port in range(bounds.MAX_PORT_RANGES + 1)]
    )
    open_ports.MergeFrom(snapshot_to_message(replace(SNAPSHOT, protocols=())))
    with pytest.raises(DecodeError, match="more than") as caught:
        snapshot_from_message(open_ports)
    assert caught.value.field == "protocols"
    with pytest.raises(DecodeError, match="bytes"):
        decode_snapshot(b"\x00" * (bounds.MAX_SNAPSHOT_BYTES + 1))


FLOW = pb.Flow(
    source="shop/front",
    destination="-/192.0.2.7",
    port=443,
    protocol="TCP",
    direction="outbound",
    reporter="front-0",
    verdict="allow",
    pending="deny",
    reason="learning",
)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("source", ""),
        ("source", "front"),
        ("destination", "-/192.0.2.007"),
        ("destination", "-/::FFFF"),
        ("destination", "-/fe80::1%<script>"),
        ("destination", "-/" + "1" * 1000),
        ("port", 0),
        ("port", 70000),
        ("protocol", "ICMP"),
        ("direction", ""),
        ("reporter", ""),
        ("reporter", "a\x1bb"),
        ("verdict", "maybe"),
        ("pending", ""),
        ("reason", "because"),
        ("source_identity", "https://hedgerow.local/ns/shop"),
        ("source_identity", "spiffe://hedgerow.local/ns/<b>"),
        ("destination_identity", "spiffe://td/" + "a" * 2048),
        ("connections", 2**60),
        ("failed", 2**64 - 1),
        ("bytes_sent", 2**63),
        ("bytes_received", 2**63),
        ("first_seen", float("nan")),
        ("last_seen", -0.5),
        ("operation", "a" * 2000),
        ("requests", 2**60),
        ("destination", "-/API.example.com"),
        ("destination", "-/api.example.com."),
        ("destination", "-/localhost"),
        ("rule_id", "\r\n"),
    ],
    ids=lambda each: str(each)[:40],
)
def test_a_bad_flow_is_refused_and_the_field_named(path: str, value: Any) -> None:
    message = pb.Flow()
    message.CopyFrom(FLOW)
    flow_from_message(message)
    _set(path, value)(message)
    with pytest.raises(DecodeError) as caught:
        flow_from_message(message)
    assert caught.value.field == path


def test_unknown_fields_of_flows_and_destinations_are_refused() -> None:
    flow = pb.Flow.FromString(FLOW.SerializeToString() + UNKNOWN)
    with pytest.raises(DecodeError, match="127"):
        flow_from_message(flow)
    destination = destination_to_message(Destination("10.0.0.1", 80))
    endpoint = destination.endpoints.add(address="10.0.0.2", port=80)
    before = destination_from_message(destination)
    endpoint.MergeFromString(UNKNOWN)
    for known in (None, before):
        with pytest.raises(DecodeError) as caught:
            destination_from_message(destination, known)
        assert caught.value.field == "endpoints[0].#127"


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("address", "", "address"),
        ("address", "cart.shop", "address"),
        ("address", "fe80::1%eth0", "address"),
        ("port", 0, "port"),
        ("workload", "-/10.0.0.1", "meshed"),
        ("workload", "", "meshed"),
        ("workload", "shop", "workload"),
        ("protocol", "", "protocol"),
        ("version", 2**63, "version"),
        ("endpoints.0.address", "10.0.0.256", "endpoints[0].address"),
        ("endpoints.0.port", 65536, "endpoints[0].port"),
        ("endpoints.0.identity", "cart", "endpoints[0].identity"),
        ("endpoints.0.instance", "\x00", "endpoints[0].instance"),
        ("endpoints.0.transport", "plain", "endpoints[0].transport"),
        ("endpoints.0.address", "api.example.com", "endpoints[0].address"),
    ],
)
def test_a_bad_destination_is_refused_and_the_field_named(path: str, value: Any, field: str) -> None:
    message = pb.Destination(address="10.0.0.1", port=80, protocol="TCP", workload="shop/cart", meshed=True)
    message.endpoints.add(address="10.0.0.2", port=80, instance="cart-0", ready=True)
    before = destination_from_message(message)
    _set(path, value)(message)
    for known in (None, before):
        with pytest.raises(DecodeError) as caught:
            destination_from_message(message, known)
        assert caught.value.field == field
