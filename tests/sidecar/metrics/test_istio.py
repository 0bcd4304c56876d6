"""Istio's metrics with Istio's labels, every connection, request and byte once."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families as read

from graph.model import Direction, Peer, WorkloadRef
from graph.policy import Reason
from sidecar.dataplane.live import refusal
from sidecar.metrics.istio import BUCKETS, NAMES, IstioMetrics, Labels
from sidecar.metrics.registry import Registry
from tests.sidecar.metrics.records import (
    ALLOWED,
    CART,
    CART_ID,
    DENIED,
    FRONT,
    FRONT_ID,
    LEARNING,
    record,
    refused,
    request,
)

#: The labels in the table of https://istio.io/latest/docs/reference/config/metrics/, written down by hand.
COMMON = {
    "reporter",
    "source_workload",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_canonical_service",
    "source_canonical_revision",
    "source_cluster",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_cluster",
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "request_protocol",
    "response_flags",
    "connection_security_policy",
}
REQUEST = COMMON | {"response_code", "grpc_response_status"}
TCP_FAMILIES = {
    "istio_tcp_connections_opened",
    "istio_tcp_connections_closed",
    "istio_tcp_sent_bytes",
    "istio_tcp_received_bytes",
}
REQUEST_FAMILIES = {
    "istio_requests",
    "istio_request_duration_milliseconds",
    "istio_request_bytes",
    "istio_response_bytes",
}


def page(metrics):
    registry = Registry()
    registry.add(metrics, *NAMES)
    return {family.name: family for family in read(b"".join(registry.pieces()).decode())}


def only(metrics, name):
    """The one series of a family."""
    (sample,) = page(metrics)[name].samples
    return sample


def total(metrics, name):
    return sum(sample.value for sample in page(metrics)[name].samples)


def outbound(**changes):
    return record(Direction.OUTBOUND, **changes)


def test_every_family_has_istios_name_and_exactly_istios_labels():
    metrics = IstioMetrics()
    plain, http = record(), record()
    for one in (plain, http):
        metrics.opened(one)
    metrics.request(request(http))
    shown = page(metrics)
    assert {name for name in shown if name.startswith("istio")} == TCP_FAMILIES | REQUEST_FAMILIES
    for name in TCP_FAMILIES:
        assert all(set(sample.labels) == COMMON for sample in shown[name].samples)
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


@pytest.mark.parametrize(
    ("asked", "labels"),
    [
        ({}, {"request_protocol": "http", "response_code": "200", "grpc_response_status": "", "response_flags": "-"}),
        ({"protocol": "http2", "status": 404}, {"request_protocol": "http", "response_code": "404"}),
        (
            {"protocol": "grpc", "grpc_status": 0},
            {"request_protocol": "grpc", "response_code": "200", "grpc_response_status": "0"},
        ),
        ({"protocol": "grpc", "grpc_status": 14}, {"grpc_response_status": "14"}),
        ({"protocol": "grpc", "grpc_status": 4711}, {"grpc_response_status": "2"}),
        ({"protocol": "grpc"}, {"grpc_response_status": ""}),
        ({"status": 0}, {"response_code": "0"}),
        ({"status": 403, "decision": DENIED}, {"response_code": "403", "response_flags": "-"}),
    ],
)
def test_requests(asked, labels):
    metrics = IstioMetrics()
    one = record(protocol="http")
    metrics.opened(one)
    metrics.request(request(one, **asked))
    sample = only(metrics, "istio_requests")
    assert sample.value == 1
    assert {name: sample.labels[name] for name in labels} == labels


def test_durations_and_sizes_fall_where_they_belong():
    metrics = IstioMetrics()
    one = record()
    metrics.opened(one)
    metrics.request(request(one, seconds=0.012, request_bytes=300, response_bytes=4000))
    metrics.request(request(one, seconds=3.0, request_bytes=1, response_bytes=10_000_000))
    shown = page(metrics)

    def below(name, bound):
        (value,) = (s.value for s in shown[name].samples if s.labels.get("le") == bound)
        return value

    assert [below("istio_request_duration_milliseconds", bound) for bound in ("10", "25", "5000")] == [0, 1, 2]
    assert [below("istio_request_bytes", bound) for bound in ("0.5", "1", "500")] == [0, 1, 2]
    assert [below("istio_response_bytes", bound) for bound in ("2500", "5000", "+Inf")] == [0, 1, 2]
    sums = {s.name: s.value for name in REQUEST_FAMILIES for s in shown[name].samples if s.name.endswith("_sum")}
    assert sums["istio_request_duration_milliseconds_sum"] == pytest.approx(3012)
    assert sums["istio_response_bytes_sum"] == 10_004_000


def test_a_connection_whose_requests_are_counted_is_no_tcp_edge():
    metrics = IstioMetrics()
    inbound, out = record(protocol="http"), outbound(protocol="http2")
    for one in (inbound, out):
        metrics.opened(one)
        metrics.request(request(one))
        one.bytes_sent = 100
    page(metrics)
    for one in (inbound, out):
        one.closed = True
        metrics.closed(one)
    assert all(not page(metrics)[name].samples for name in TCP_FAMILIES)
    assert total(metrics, "istio_requests") == 2


def test_an_http_connection_without_any_request_is_still_counted():
    metrics = IstioMetrics()
    silent = record(protocol="http", bytes_sent=40)
    metrics.opened(silent)
    assert not page(metrics)["istio_tcp_connections_opened"].samples  # its request may still come
    silent.closed = True
    metrics.closed(silent)
    assert total(metrics, "istio_tcp_connections_opened") == total(metrics, "istio_tcp_connections_closed") == 1
    assert total(metrics, "istio_tcp_received_bytes") == 40


def test_an_outbound_http_connection_that_only_the_other_end_reads_is_a_tcp_edge_here():
    metrics = IstioMetrics()
    metrics.opened(outbound(protocol="http", bytes_sent=7))
    assert total(metrics, "istio_tcp_received_bytes") == 7


def test_requests_of_a_connection_that_is_over_are_counted():
    metrics = IstioMetrics()
    one = record()
    metrics.opened(one)
    one.closed = True
    metrics.closed(one)
    metrics.request(request(one))
    assert total(metrics, "istio_requests") == 1


def test_the_same_requests_share_a_series_and_others_do_not():
    metrics = IstioMetrics()
    first, second = record(), record()
    for one in (first, second):
        metrics.opened(one)
    for one in (first, second, first):
        metrics.request(request(one))
        metrics.request(request(one, status=500))
        metrics.request(request(one, status=403, decision=DENIED))
        metrics.request(request(one, protocol="grpc", grpc_status=0))
    counted = {
        (s.labels["response_code"], s.labels["request_protocol"]): s.value
        for s in page(metrics)["istio_requests"].samples
    }
    assert counted == {("200", "http"): 3, ("500", "http"): 3, ("403", "http"): 3, ("200", "grpc"): 3}


def test_what_was_refused_and_what_would_be():
    metrics = IstioMetrics()
    metrics.opened(refused())
    metrics.opened(refused(refusal(Reason.UNRESOLVED), direction=Direction.OUTBOUND))
    learning = record(decision=LEARNING)
    metrics.opened(learning)
    metrics.request(request(learning, decision=LEARNING))
    metrics.request(request(learning, status=403, decision=DENIED))
    assert metrics.refused == {("inbound", "no-rule"): 1, ("outbound", "unresolved"): 1}
    assert metrics.refused_requests == {("no-rule",): 1}
    assert metrics.would_refuse == 2


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
