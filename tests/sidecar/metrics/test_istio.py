"""Istio's metrics with Istio's labels: who both ends are, and every connection and byte once."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph.model import Direction, Peer, WorkloadRef
from graph.policy import Reason
from sidecar.dataplane.live import refusal
from sidecar.metrics.istio import BUCKETS, IstioMetrics
from sidecar.metrics.istio_labels import Labels
from tests.sidecar.metrics.families import (
    COMMON,
    MESSAGE,
    MESSAGE_FAMILIES,
    REQUEST,
    REQUEST_FAMILIES,
    TCP_FAMILIES,
    only,
    outbound,
    page,
    total,
)
from tests.sidecar.metrics.records import ALLOWED, CART, CART_ID, FRONT, FRONT_ID, record, refused, request


def test_every_family_has_istios_name_and_exactly_istios_labels():
    metrics = IstioMetrics()
    plain, http = record(), record(request_messages=1)
    for one in (plain, http):
        metrics.opened(one)
    metrics.request(request(http))
    shown = page(metrics)
    assert {name for name in shown if name.startswith("istio")} == TCP_FAMILIES | REQUEST_FAMILIES | MESSAGE_FAMILIES
    for name in TCP_FAMILIES:
        assert all(set(sample.labels) == COMMON for sample in shown[name].samples)
        assert shown[name].samples, name
    for name in MESSAGE_FAMILIES:
        assert all(set(sample.labels) == MESSAGE for sample in shown[name].samples)
        assert shown[name].samples, name
    for name in REQUEST_FAMILIES:
        assert all(set(sample.labels) - {"le"} == REQUEST for sample in shown[name].samples)
        assert shown[name].samples, name
    buckets = [s.labels["le"] for s in shown["istio_request_bytes"].samples if s.name.endswith("_bucket")]
    assert [float(bound) for bound in buckets] == [*BUCKETS, float("inf")]


def test_the_destination_names_both_ends():
    metrics = IstioMetrics(Labels("cart-app", "v2", "west"))
    metrics.opened(record())
    labels = only(metrics, "istio_tcp_connections_opened").labels
    assert labels == {
        "reporter": "destination",
        "source_workload": "front",
        "source_workload_namespace": "shop",
        "source_principal": FRONT_ID,
        "source_app": "unknown",
        "source_version": "unknown",
        "source_cluster": "unknown",
        "source_canonical_service": "front",
        "source_canonical_revision": "latest",
        "destination_workload": "cart",
        "destination_workload_namespace": "shop",
        "destination_principal": CART_ID,
        "destination_app": "cart-app",
        "destination_version": "v2",
        "destination_cluster": "west",
        "destination_canonical_service": "cart",
        "destination_canonical_revision": "latest",
        "destination_service": "cart.shop.svc.cluster.local",
        "destination_service_name": "cart",
        "destination_service_namespace": "shop",
        "request_protocol": "tcp",
        "response_flags": "-",
        "connection_security_policy": "mutual_tls",
    }


def test_the_source_names_the_service_that_was_asked_for():
    metrics = IstioMetrics(Labels(app="front-app"))
    metrics.opened(outbound(service="shop/basket"))
    labels = only(metrics, "istio_tcp_connections_opened").labels
    assert (labels["reporter"], labels["source_app"], labels["destination_app"]) == ("source", "front-app", "unknown")
    assert labels["destination_service"] == "basket.shop.svc.cluster.local"
    assert labels["destination_service_name"] == "basket"
    assert (labels["destination_workload"], labels["destination_canonical_service"]) == ("cart", "cart")


ADDRESS = Peer(address="192.0.2.9")
HOST = Peer(WorkloadRef("-", "api.example.com"), "-", address="192.0.2.9", host="api.example.com")


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (
            record(source=ADDRESS),
            {
                "source_workload": "unknown",
                "source_workload_namespace": "unknown",
                "source_principal": "unknown",
                "connection_security_policy": "none",
            },
        ),
        (
            outbound(destination=ADDRESS),
            {
                "destination_workload": "unknown",
                "destination_service": "PassthroughCluster",
                "destination_service_name": "PassthroughCluster",
                "connection_security_policy": "unknown",
            },
        ),
        (
            outbound(destination=HOST),
            {
                "destination_workload": "unknown",
                "destination_workload_namespace": "unknown",
                "destination_service": "api.example.com",
                "destination_service_name": "api.example.com",
            },
        ),
        (
            outbound(destination=replace(CART, verified=False)),
            {
                "destination_workload": "cart",
                "connection_security_policy": "unknown",
                "destination_principal": "unknown",
            },
        ),
    ],
)
def test_who_is_not_known_is_called_unknown(one, expected):
    metrics = IstioMetrics()
    metrics.opened(one)
    labels = only(metrics, "istio_tcp_connections_opened").labels
    assert {name: labels[name] for name in expected} == expected
    assert all(labels.values())


@pytest.mark.parametrize(
    ("one", "flags"),
    [
        (refused(), "DENY"),
        (refused(refusal(Reason.UNTRUSTED_PEER)), "DENY"),
        (refused(refusal(Reason.UNTRUSTED_PEER), direction=Direction.OUTBOUND), "UF"),
        (refused(refusal(Reason.UNRESOLVED), direction=Direction.OUTBOUND), "NR"),
        (record(failed=True, closed=True), "UF"),
        (record(closed=True), "-"),
    ],
)
def test_what_became_of_a_connection(one, flags):
    metrics = IstioMetrics()
    closed, one.closed = one.closed, one.decision.verdict == "deny"
    metrics.opened(one)
    one.closed = closed
    metrics.closed(one)
    for name in ("istio_tcp_connections_opened", "istio_tcp_connections_closed"):
        sample = only(metrics, name)
        assert (sample.labels["response_flags"], sample.value) == (flags, 1), name


def test_bytes_are_named_as_the_client_sees_them():
    metrics = IstioMetrics()
    one = record(bytes_sent=10, bytes_received=700)
    metrics.opened(one)
    assert only(metrics, "istio_tcp_received_bytes").value == 10  # from the source
    assert only(metrics, "istio_tcp_sent_bytes").value == 700  # back to it


def test_a_living_connection_is_counted_at_every_page_and_each_byte_once():
    metrics = IstioMetrics()
    one = record()
    metrics.opened(one)
    one.bytes_sent = 5
    assert total(metrics, "istio_tcp_received_bytes") == 5
    assert total(metrics, "istio_tcp_received_bytes") == 5
    one.bytes_sent = 9
    assert total(metrics, "istio_tcp_received_bytes") == 9
    one.bytes_sent, one.closed = 20, True
    metrics.closed(one)
    metrics.closed(one)
    assert total(metrics, "istio_tcp_received_bytes") == 20
    assert total(metrics, "istio_tcp_connections_opened") == total(metrics, "istio_tcp_connections_closed") == 1
    assert not metrics.live()


@given(st.lists(st.tuples(st.sampled_from("osrcpf"), st.integers(0, 5), st.integers(0, 10_000)), max_size=60))
def test_whatever_happens_between_pages_nothing_is_lost_or_counted_twice(steps):
    metrics = IstioMetrics()
    live, sent, received, opened, closed = {}, 0, 0, 0, 0
    for what, which, count in steps:
        one = live.get(which)
        if what == "o" and one is None:
            live[which] = record()
            metrics.opened(live[which])
            opened += 1
        elif what == "s" and one is not None:
            one.bytes_sent += count
            sent += count
        elif what == "r" and one is not None:
            one.bytes_received += count
            received += count
        elif what in "cf" and one is not None:
            one.failed, one.closed = what == "f", True
            metrics.closed(live.pop(which))
            closed += 1
        elif what == "p":
            page(metrics)
    expected = {
        "istio_tcp_received_bytes": sent,
        "istio_tcp_sent_bytes": received,
        "istio_tcp_connections_opened": opened,
        "istio_tcp_connections_closed": closed,
    }
    assert {name: total(metrics, name) for name in expected} == expected


def test_series_are_bounded_and_sums_stay_right():
    metrics = IstioMetrics(limit=20)
    for index in range(200):
        one = record(
            Direction.OUTBOUND if index % 2 else Direction.INBOUND,
            source=replace(FRONT, workload=WorkloadRef("shop", f"front-{index}")),
            bytes_sent=1,
        )
        metrics.opened(one)
        if index >= 100:
            metrics.request(request(one, decision=ALLOWED))
    shown = page(metrics)
    for name, expected in (("istio_tcp_received_bytes", 100), ("istio_requests", 100)):
        samples = shown[name].samples
        assert len(samples) == 22, name  # and one for each reporter
        assert sum(sample.value for sample in samples) == expected
        folded = [s for s in samples if s.labels["source_workload"] == "overflow"]
        assert {s.labels["reporter"] for s in folded} == {"source", "destination"}
    assert shown["hedgerow_metrics_folded"].samples[0].value > 0


def test_hostile_names_stay_values():
    metrics = IstioMetrics()
    nasty = 'x"} 1\nistio_requests_total{a="\\'
    metrics.opened(outbound(destination=Peer(address="192.0.2.9", host=nasty)))
    assert only(metrics, "istio_tcp_connections_opened").labels["destination_service"] == nasty
