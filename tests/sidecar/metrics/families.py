"""Istio's families with their labels, and a page of a few records to find them on."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families as read

from graph.model import Direction
from sidecar.metrics.istio import NAMES
from sidecar.metrics.registry import Registry
from tests.sidecar.metrics.records import record

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
#: What ``testdata/metric/server_request_messages.yaml.tmpl`` of istio/proxy has.
MESSAGE = COMMON - {"request_protocol", "response_flags", "connection_security_policy"}
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
MESSAGE_FAMILIES = {"istio_request_messages", "istio_response_messages"}


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
