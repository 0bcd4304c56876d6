"""Istio's metrics of gRPC messages: Istio's labels, and every message once, also of a call that runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph.model import WorkloadRef
from sidecar.metrics.istio import IstioMetrics
from sidecar.metrics.istio_labels import Labels
from tests.sidecar.metrics.families import MESSAGE, MESSAGE_FAMILIES, only, outbound, page, total
from tests.sidecar.metrics.records import CART_ID, FRONT, FRONT_ID, record, request

QUESTIONS, ANSWERS = sorted(MESSAGE_FAMILIES)


def test_they_have_exactly_istios_labels():
    metrics = IstioMetrics()
    metrics.opened(record(protocol="grpc", request_messages=1))
    for name in MESSAGE_FAMILIES:
        assert set(only(metrics, name).labels) == MESSAGE


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (
            record(request_messages=3, response_messages=5),
            {
                "reporter": "destination",
                "source_workload": "front",
                "source_canonical_service": "front",
                "source_canonical_revision": "latest",
                "source_workload_namespace": "shop",
                "source_principal": FRONT_ID,
                "source_app": "unknown",
                "source_version": "unknown",
                "source_cluster": "unknown",
                "destination_workload": "cart",
                "destination_canonical_service": "cart",
                "destination_canonical_revision": "latest",
                "destination_workload_namespace": "shop",
                "destination_principal": CART_ID,
                "destination_app": "ours",
                "destination_version": "v2",
                "destination_cluster": "west",
                "destination_service": "cart.shop.svc.cluster.local",
                "destination_service_name": "cart",
                "destination_service_namespace": "shop",
            },
        ),
        (
            outbound(request_messages=3, response_messages=5, service="shop/basket"),
            {
                "reporter": "source",
                "source_workload": "front",
                "source_canonical_service": "front",
                "source_canonical_revision": "latest",
                "source_workload_namespace": "shop",
                "source_principal": FRONT_ID,
                "source_app": "ours",
                "source_version": "v2",
                "source_cluster": "west",
                "destination_workload": "cart",
                "destination_canonical_service": "cart",
                "destination_canonical_revision": "latest",
                "destination_workload_namespace": "shop",
                "destination_principal": CART_ID,
                "destination_app": "unknown",
                "destination_version": "unknown",
                "destination_cluster": "unknown",
                "destination_service": "basket.shop.svc.cluster.local",
                "destination_service_name": "basket",
                "destination_service_namespace": "shop",
            },
        ),
    ],
)
def test_both_reporters_name_both_ends(one, expected):
    metrics = IstioMetrics(Labels("ours", "v2", "west"))
    metrics.opened(one)
    asked, answered = only(metrics, QUESTIONS), only(metrics, ANSWERS)
    assert (asked.name, asked.labels, asked.value) == ("istio_request_messages_total", expected, 3)
    assert (answered.name, answered.labels, answered.value) == ("istio_response_messages_total", expected, 5)


def test_whoever_has_no_messages_has_no_series():
    metrics = IstioMetrics()
    one = record(protocol="http2")
    metrics.opened(one)
    metrics.request(request(one, protocol="grpc", grpc_status=12))
    assert not any(page(metrics)[name].samples for name in MESSAGE_FAMILIES)
    one.request_messages = 1
    assert [only(metrics, name).value for name in (QUESTIONS, ANSWERS)] == [1, 0], "both, as soon as there is one"


def test_what_is_said_of_a_call_at_its_end_makes_no_other_series():
    """Two series of one name and labels would be no page that Prometheus reads."""
    metrics = IstioMetrics()
    several = [
        record(request_messages=1),
        record(request_messages=2, failed=True),
        record(request_messages=4, source=replace(FRONT, verified=False), source_identity=FRONT_ID),
    ]
    for one in several:
        metrics.opened(one)
        metrics.request(request(one, protocol="grpc", grpc_status=one.request_messages))
    assert only(metrics, QUESTIONS).value == 7


def test_series_are_bounded_and_sums_stay_right():
    metrics = IstioMetrics(limit=20)
    for index in range(200):
        source = replace(FRONT, workload=WorkloadRef("shop", f"front-{index}"))
        make = outbound if index % 2 else record
        metrics.opened(make(source=source, request_messages=1, response_messages=2))
    shown = page(metrics)
    for name, expected in ((QUESTIONS, 200), (ANSWERS, 400)):
        samples = shown[name].samples
        assert len(samples) == 22, "and one for each reporter"
        assert sum(sample.value for sample in samples) == expected
        (over,) = (s for s in samples if s.labels["source_workload"] == "overflow" and s.labels["reporter"] == "source")
        assert set(over.labels.values()) == {"overflow", "source"}
    assert shown["hedgerow_metrics_folded"].samples[0].value > 0


@given(st.lists(st.tuples(st.sampled_from("oqacp"), st.integers(0, 5), st.integers(0, 10_000)), max_size=60))
def test_whatever_happens_between_pages_no_message_is_lost_or_counted_twice(steps):
    metrics = IstioMetrics()
    live, questions, answers = {}, 0, 0
    for what, which, count in steps:
        one = live.get(which)
        if what == "o" and one is None:
            live[which] = record(protocol="grpc")
            metrics.opened(live[which])
        elif what == "q" and one is not None:
            one.request_messages += count
            questions += count
        elif what == "a" and one is not None:
            one.response_messages += count
            answers += count
        elif what == "c" and one is not None:
            one.closed = True
            metrics.closed(live.pop(which))
        elif what == "p":
            page(metrics)
    assert (total(metrics, QUESTIONS), total(metrics, ANSWERS)) == (questions, answers)
