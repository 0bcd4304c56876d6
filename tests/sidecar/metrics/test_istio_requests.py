"""Istio's metrics of requests: each once, where it belongs, and no connection counted beside them."""

from __future__ import annotations

import pytest

from graph.model import Direction
from graph.policy import Reason
from sidecar.dataplane.live import refusal
from sidecar.metrics.istio import IstioMetrics
from tests.sidecar.metrics.families import REQUEST_FAMILIES, TCP_FAMILIES, only, outbound, page, total
from tests.sidecar.metrics.records import DENIED, LEARNING, record, refused, request


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
