"""Snapshots and the rules in them; what this module would refuse to read, it refuses to write."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from google.protobuf.message import DecodeError as ProtobufDecodeError

from graph.errors import DecodeError, InvalidValue
from graph.model import InboundTls, InspectedHost, Mode, Origin, PortRange, Protocol, Rule, Selector, Snapshot, Verdict
from graph.wire import hedgerow_pb2 as pb
from graph.wire.bounds import (
    MAX_EVIDENCE,
    MAX_INSPECTED,
    MAX_NAME,
    MAX_OPERATIONS,
    MAX_PORT_RANGES,
    MAX_RULES,
    MAX_SNAPSHOT_BYTES,
    MAX_TEXT,
    MAX_VERSION,
    at_most,
    build,
    each,
    inside,
    read_enum,
    read_port,
    read_text,
    read_time,
    read_workload,
    refuse_unknown_fields,
)

_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """The bytes that are signed and pushed. Equal snapshots give equal bytes.

    :raises InvalidValue: naming the field that :func:`decode_snapshot` would refuse
    """
    message = snapshot_to_message(snapshot)
    try:
        snapshot_from_message(message)
    except DecodeError as error:
        remedy = "no sidecar would take this snapshot; correct or remove it at its source"
        raise InvalidValue(error.field or "snapshot", error.problem, remedy) from None
    payload: bytes = message.SerializeToString(deterministic=True)
    if len(payload) > MAX_SNAPSHOT_BYTES:
        raise InvalidValue(
            "snapshot",
            f"{len(payload)} bytes, more than {MAX_SNAPSHOT_BYTES}",
            f"give {snapshot.workload} fewer rules, for instance by joining ports or selecting by namespace",
        )
    return payload


def decode_snapshot(payload: bytes) -> Snapshot:
    """Read a snapshot whose signature was already checked.

    :raises DecodeError: naming the field, when any part of it is not understood or breaks a bound
    """
    if len(payload) > MAX_SNAPSHOT_BYTES:
        raise DecodeError(f"{len(payload)} bytes, more than {MAX_SNAPSHOT_BYTES}", "snapshot")
    try:
        message = pb.Snapshot.FromString(payload)
    except ProtobufDecodeError as error:
        raise DecodeError(f"not a snapshot: {error}", "snapshot") from None
    return snapshot_from_message(message)


def snapshot_to_message(snapshot: Snapshot) -> pb.Snapshot:
    return build(
        "snapshot",
        lambda: pb.Snapshot(
            workload=str(snapshot.workload),
            trust_domain=snapshot.trust_domain,
            version=snapshot.version,
            inbound_mode=snapshot.inbound_mode.value,
            outbound_mode=snapshot.outbound_mode.value,
            inbound_tls=snapshot.inbound_tls.value,
            rules=[rule_to_message(rule) for rule in snapshot.rules],
            issued_at=snapshot.issued_at,
            protocols=[pb.PortProtocol(port=port, app_protocol=name) for port, name in snapshot.protocols],
            inspects=[pb.InspectedHost(host=one.host, port=one.port) for one in snapshot.inspects],
        ),
    )


def snapshot_from_message(message: pb.Snapshot) -> Snapshot:
    """:raises DecodeError: naming the field, such as ``rules[3].effect``"""
    refuse_unknown_fields(message)
    workload = read_workload(message.workload, "workload")
    if workload.is_external:
        raise DecodeError(f"{message.workload!r} has no sidecar to hold a policy", "workload")
    if not _TRUST_DOMAIN.fullmatch(message.trust_domain):
        raise DecodeError(f"{message.trust_domain[:64]!r} is not a trust domain", "trust_domain")
    if not 1 <= message.version <= MAX_VERSION:
        raise DecodeError(f"{message.version} is not a version", "version")
    at_most(message.rules, MAX_RULES, "rules")
    rules = each(rule_from_message, message.rules, "rules")
    seen: set[str] = set()
    for index, rule in enumerate(rules):
        if rule.id in seen:
            raise DecodeError(f"{rule.id!r} is the id of another rule too", f"rules[{index}].id")
        seen.add(rule.id)
    return Snapshot(
        workload=workload,
        trust_domain=message.trust_domain,
        version=message.version,
        inbound_mode=read_enum(Mode, message.inbound_mode, "inbound_mode"),
        outbound_mode=read_enum(Mode, message.outbound_mode, "outbound_mode"),
        inbound_tls=read_enum(InboundTls, message.inbound_tls, "inbound_tls"),
        rules=rules,
        issued_at=read_time(message.issued_at, "issued_at"),
        protocols=_protocols_from_messages(message.protocols),
        inspects=_inspects_from_messages(message.inspects),
    )


def _inspects_from_messages(messages: Sequence[pb.InspectedHost]) -> tuple[InspectedHost, ...]:
    at_most(messages, MAX_INSPECTED, "inspects")
    inspects = each(_inspected_from_message, messages, "inspects")
    if list(inspects) != sorted(set(inspects)):
        raise DecodeError("not sorted, or one is there twice", "inspects")
    return inspects


def _inspected_from_message(message: pb.InspectedHost) -> InspectedHost:
    refuse_unknown_fields(message)
    try:
        return InspectedHost(message.host, message.port)
    except InvalidValue as error:
        raise DecodeError(error.problem, error.field) from None


def _protocols_from_messages(messages: Sequence[pb.PortProtocol]) -> tuple[tuple[int, str], ...]:
    at_most(messages, MAX_PORT_RANGES, "protocols")
    protocols = each(_protocol_from_message, messages, "protocols")
    seen: set[int] = set()
    for index, (port, _) in enumerate(protocols):
        if port in seen:
            raise DecodeError(f"{port} is there twice", f"protocols[{index}].port")
        seen.add(port)
    return protocols


def _protocol_from_message(message: pb.PortProtocol) -> tuple[int, str]:
    refuse_unknown_fields(message)
    port = read_port(message.port, "port")
    return port, read_text(message.app_protocol, "app_protocol", MAX_NAME, required=True)


# Rules ----------------------------------------------------------------------------------------------------------------


def rule_to_message(rule: Rule) -> pb.Rule:
    return build(
        "rule",
        lambda: pb.Rule(
            id=rule.id,
            # both are always present, also when they select everything: an absent one is refused
            source=selector_to_message(rule.source),
            destination=selector_to_message(rule.destination),
            ports=[pb.PortRange(first=ports.first, last=ports.last) for ports in rule.ports],
            protocol=rule.protocol.value,
            operations=rule.operations,
            effect=rule.effect.value,
            origin=rule.origin.value,
            owner=rule.owner,
            reason=rule.reason,
            expires_at=rule.expires_at,
            evidence=rule.evidence,
            essential=rule.essential,
        ),
    )


def rule_from_message(message: pb.Rule) -> Rule:
    """:raises DecodeError: naming the field, such as ``source.cidr``"""
    refuse_unknown_fields(message)
    for part in ("source", "destination"):
        if not message.HasField(part):  # read as a selector without conditions, it would select everything
            raise DecodeError("missing", part)
    at_most(message.ports, MAX_PORT_RANGES, "ports")
    at_most(message.operations, MAX_OPERATIONS, "operations")
    at_most(message.evidence, MAX_EVIDENCE, "evidence")
    for index, operation in enumerate(message.operations):
        read_text(operation, f"operations[{index}]", MAX_TEXT, required=True)
    for index, sentence in enumerate(message.evidence):
        read_text(sentence, f"evidence[{index}]", MAX_TEXT)
    try:
        return Rule(
            id=read_text(message.id, "id", MAX_TEXT, required=True),
            source=inside("source", selector_from_message, message.source),
            destination=inside("destination", selector_from_message, message.destination),
            ports=each(_ports_from_message, message.ports, "ports"),
            protocol=read_enum(Protocol, message.protocol, "protocol"),
            operations=tuple(message.operations),
            effect=read_enum(Verdict, message.effect, "effect"),
            origin=read_enum(Origin, message.origin, "origin"),
            owner=read_text(message.owner, "owner", MAX_NAME),
            reason=read_text(message.reason, "reason", MAX_TEXT),
            expires_at=read_time(message.expires_at, "expires_at"),
            evidence=tuple(message.evidence),
            essential=message.essential,
        )
    except InvalidValue as error:
        raise DecodeError(error.problem, error.field.removeprefix("rule.")) from None


def selector_to_message(selector: Selector) -> pb.Selector:
    return pb.Selector(
        namespace=selector.namespace,
        workload=selector.workload,
        service_account=selector.service_account,
        cidr=selector.cidr,
        host=selector.host,
        outside=selector.outside,
    )


def selector_from_message(message: pb.Selector) -> Selector:
    """:raises DecodeError: naming the field"""
    refuse_unknown_fields(message)
    namespace = message.namespace
    if namespace:
        # the names obey the rules of a workload's two parts; a service account's are those of a workload
        if read_workload(f"{namespace}/x", "namespace").is_external:
            raise DecodeError("'-' is not a namespace", "namespace")
        if message.workload:
            read_workload(f"{namespace}/{message.workload}", "workload")
        if message.service_account:
            read_workload(f"{namespace}/{message.service_account}", "service_account")
    try:
        selector = Selector(
            namespace, message.workload, message.service_account, message.cidr, message.host, message.outside
        )
    except InvalidValue as error:
        raise DecodeError(error.problem, error.field.removeprefix("selector.")) from None
    if message.cidr and message.cidr != str(ipaddress.ip_network(message.cidr)):
        raise DecodeError(f"{message.cidr[:64]!r} is not in canonical form", "cidr")
    return selector


def _ports_from_message(message: pb.PortRange) -> PortRange:
    refuse_unknown_fields(message)
    read_port(message.first, "first")
    read_port(message.last, "last")
    if message.last < message.first:
        raise DecodeError(f"{message.last} is below the first port, {message.first}", "last")
    return PortRange(message.first, message.last)
