"""What comes back is what was sent, and no bytes whatever come back half understood."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.message import DecodeError as ProtobufDecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from graph.directory import Destination, Endpoint, Transport
from graph.errors import InvalidValue
from graph.flow import Flow
from graph.model import Origin, Rule, Selector, Snapshot, WorkloadRef
from graph.wire import hedgerow_pb2 as pb
from graph.wire.codec import (
    decode_snapshot,
    destination_from_message,
    destination_to_message,
    encode_snapshot,
    endpoint_from_message,
    flow_from_message,
    flow_to_message,
    rule_from_message,
    rule_to_message,
    selector_from_message,
)
from tests.graph.strategies import destinations, flows, rules, snapshots
from tests.graph.wire.examples import RULE, SNAPSHOT, refusal


@given(snapshots)
def test_snapshots_come_back_equal_and_equal_ones_make_equal_bytes(snapshot: Snapshot) -> None:
    payload = encode_snapshot(snapshot)
    assert decode_snapshot(payload) == snapshot
    assert encode_snapshot(decode_snapshot(payload)) == payload


@given(rules())
def test_rules_come_back_equal(rule: Rule) -> None:
    wire = rule_to_message(rule).SerializeToString()
    assert rule_from_message(pb.Rule.FromString(wire)) == rule


@given(flows)
def test_flows_come_back_equal(flow: Flow) -> None:
    wire = flow_to_message(flow).SerializeToString()
    assert flow_from_message(pb.Flow.FromString(wire)) == flow


@given(destinations)
def test_destinations_come_back_equal(destination: Destination) -> None:
    wire = destination_to_message(destination).SerializeToString()
    assert destination_from_message(pb.Destination.FromString(wire)) == destination


@given(destinations, destinations)
def test_what_was_answered_before_changes_no_answer(before: Destination, destination: Destination) -> None:
    message = destination_to_message(destination)
    assert destination_from_message(message, before) == destination
    mixed = replace(destination, endpoints=(*before.endpoints, *destination.endpoints))
    assert destination_from_message(destination_to_message(mixed), before) == mixed


def test_an_endpoint_that_is_the_same_stays_the_same_object_and_no_other() -> None:
    endpoint = Endpoint("10.0.0.7", 80, "cart-0", "spiffe://hedgerow.test/ns/shop/sa/cart/wl/cart")
    before = Destination("10.96.0.1", 80, workload=WorkloadRef("shop", "cart"), endpoints=(endpoint,))
    assert destination_from_message(destination_to_message(before), before).endpoints[0] is endpoint
    for changed in (
        replace(endpoint, address="10.0.0.8"),
        replace(endpoint, port=81),
        replace(endpoint, instance="cart-1"),
        replace(endpoint, identity="spiffe://hedgerow.test/ns/shop/sa/cart/wl/other"),
        replace(endpoint, ready=False),
        replace(endpoint, transport=Transport.MTLS),
        replace(endpoint, workload=WorkloadRef("shop", "other")),
    ):
        answer = replace(before, endpoints=(changed,))
        assert destination_from_message(destination_to_message(answer), before) == answer
        assert destination_from_message(destination_to_message(before), answer) == before


def test_an_address_outside_the_inventory_has_no_workload() -> None:
    outside = Destination("192.0.2.7", 443)
    assert destination_from_message(destination_to_message(outside)) == outside


@given(st.binary(max_size=200))
@example(b"\x08\x01")  # a known field of the wrong wire type
@example(b"\x0a\xff\xff\xff\xff\x0f")  # a length beyond the end
@example(b"\x0a\x01\xff")  # text that is not UTF-8
def test_any_bytes_are_a_snapshot_or_a_decode_error_that_names_a_field(payload: bytes) -> None:
    error = refusal(lambda: decode_snapshot(payload))
    assert error is None or error.field


@given(snapshots, st.data())
def test_damaged_snapshots_are_refused_or_obey_every_rule(snapshot: Snapshot, data: st.DataObject) -> None:
    payload = bytearray(encode_snapshot(snapshot))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(payload) - 1))
        payload[position] = data.draw(st.integers(0, 255))
    if refusal(lambda: decode_snapshot(bytes(payload))) is None:
        read = decode_snapshot(bytes(payload))
        assert decode_snapshot(encode_snapshot(read)) == read


@given(rules(), st.binary(max_size=40))
def test_a_rule_with_anything_behind_it_is_refused_or_comes_back_equal(rule: Rule, more: bytes) -> None:
    wire = rule_to_message(rule).SerializeToString() + more
    message = pb.Rule()
    try:
        message.MergeFromString(wire)
    except ProtobufDecodeError:
        return
    if refusal(lambda: rule_from_message(message)) is None:
        read = rule_from_message(message)
        assert rule_from_message(rule_to_message(read)) == read


@pytest.mark.parametrize(
    ("kind", "read"),
    [
        (pb.Rule, rule_from_message),
        (pb.Selector, selector_from_message),
        (pb.Flow, flow_from_message),
        (pb.Destination, destination_from_message),
        (pb.Endpoint, endpoint_from_message),
    ],
)
@given(payload=st.binary(max_size=100))
def test_any_message_is_read_or_refused_with_a_field(kind: Any, read: Callable[[Any], Any], payload: bytes) -> None:
    message = kind()
    try:
        message.MergeFromString(payload)
    except ProtobufDecodeError:
        return
    error = refusal(lambda: read(message))
    assert error is None or error.field


@pytest.mark.parametrize(
    ("snapshot", "field"),
    [
        (replace(SNAPSHOT, version=0), "version"),
        (replace(SNAPSHOT, version=-1), "snapshot"),
        (replace(SNAPSHOT, rules=(replace(RULE, owner="\x07"),)), "rules[0].owner"),
        (replace(SNAPSHOT, rules=(replace(RULE, reason="\ud800"),)), "rule"),
        (replace(SNAPSHOT, rules=(replace(RULE, source=Selector("shop", "NOT A NAME")),)), "rules[0].source.workload"),
        (replace(SNAPSHOT, rules=(RULE, RULE)), "rules[1].id"),
    ],
)
def test_what_no_sidecar_would_take_is_not_written(snapshot: Snapshot, field: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        encode_snapshot(snapshot)
    assert caught.value.field == field
    assert caught.value.remedy


def test_a_snapshot_that_would_not_fit_into_a_message_is_not_written() -> None:
    wide = tuple(replace(RULE, id=f"learned/{number}", evidence=("x" * 1000,) * 60) for number in range(100))
    with pytest.raises(InvalidValue, match="fewer rules"):
        encode_snapshot(replace(SNAPSHOT, rules=wide))


def test_every_kind_of_rule_has_a_wire_form() -> None:
    for origin in Origin:
        rule = replace(RULE, origin=origin, essential=origin is Origin.BASELINE)
        assert rule_from_message(rule_to_message(rule)) == rule
