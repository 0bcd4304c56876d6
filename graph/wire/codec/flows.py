"""Flows, as sidecars report them."""

from __future__ import annotations

from graph.flow import Flow
from graph.model import Direction, Protocol, Verdict
from graph.policy import Reason
from graph.wire import hedgerow_pb2 as pb
from graph.wire.bounds import (
    MAX_NAME,
    MAX_TEXT,
    build,
    read_count,
    read_enum,
    read_identity,
    read_port,
    read_text,
    read_time,
    read_workload,
    refuse_unknown_fields,
)


def flow_to_message(flow: Flow) -> pb.Flow:
    """:raises InvalidValue: when a value does not fit its field"""
    return build(
        "flow",
        lambda: pb.Flow(
            source=str(flow.source),
            destination=str(flow.destination),
            port=flow.port,
            protocol=flow.protocol.value,
            direction=flow.direction.value,
            reporter=flow.reporter,
            verified=flow.verified,
            verdict=flow.verdict.value,
            pending=flow.pending.value,
            reason=str(flow.reason),
            rule_id=flow.rule_id,
            operation=flow.operation,
            source_identity=flow.source_identity,
            destination_identity=flow.destination_identity,
            connections=flow.connections,
            failed=flow.failed,
            bytes_sent=flow.bytes_sent,
            bytes_received=flow.bytes_received,
            first_seen=flow.first_seen,
            last_seen=flow.last_seen,
            requests=flow.requests,
        ),
    )


def flow_from_message(message: pb.Flow) -> Flow:
    """Read one flow. Whether the reporter may speak of these ends is for the caller to check.

    :raises DecodeError: naming the field
    """
    refuse_unknown_fields(message)
    return Flow(
        source=read_workload(message.source, "source"),
        destination=read_workload(message.destination, "destination"),
        port=read_port(message.port, "port"),
        protocol=read_enum(Protocol, message.protocol, "protocol"),
        direction=read_enum(Direction, message.direction, "direction"),
        reporter=read_text(message.reporter, "reporter", MAX_NAME, required=True),
        verified=message.verified,
        verdict=read_enum(Verdict, message.verdict, "verdict"),
        pending=read_enum(Verdict, message.pending, "pending"),
        reason=read_enum(Reason, message.reason, "reason"),
        rule_id=read_text(message.rule_id, "rule_id", MAX_TEXT),
        operation=read_text(message.operation, "operation", MAX_TEXT),
        source_identity=read_identity(message.source_identity, "source_identity"),
        destination_identity=read_identity(message.destination_identity, "destination_identity"),
        connections=read_count(message.connections, "connections"),
        failed=read_count(message.failed, "failed"),
        bytes_sent=read_count(message.bytes_sent, "bytes_sent"),
        bytes_received=read_count(message.bytes_received, "bytes_received"),
        first_seen=read_time(message.first_seen, "first_seen"),
        last_seen=read_time(message.last_seen, "last_seen"),
        requests=read_count(message.requests, "requests"),
    )
