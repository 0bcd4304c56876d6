"""Protobuf forms of :mod:`graph.tap`, read as strictly as everything else that comes from elsewhere."""

from __future__ import annotations

import math
from typing import Final

from graph.errors import DecodeError, InvalidValue
from graph.model import Verdict, WorkloadRef
from graph.tap import MAX_BODY, MAX_FIELDS, Fields, Message, Shown, TapSpec
from graph.wire import hedgerow_pb2 as pb
from graph.wire.bounds import build

#: Characters of the parts that are text.
_TEXT: Final = 2048
_MAX_NUMBER: Final = 2**48
#: Fields of one head; each costs more than its bytes.
_MAX_ENTRIES: Final = 512


def start_to_message(spec: TapSpec) -> pb.TapStart:
    first, last = spec.status or (0, 0)
    return build(
        "tap",
        lambda: pb.TapStart(
            id=spec.id,
            seconds=spec.seconds,
            source=str(spec.source) if spec.source is not None else "",
            ports=spec.ports,
            operation=spec.operation,
            status_first=first,
            status_last=last,
            bodies=spec.bodies,
            body_bytes=spec.body_bytes,
            events_per_second=spec.events,
            count=spec.count,
        ),
    )


def start_from_message(message: pb.TapStart) -> TapSpec:
    """:raises DecodeError: when it asks for more than a tap may"""
    try:
        return TapSpec(
            id=message.id,
            seconds=message.seconds if math.isfinite(message.seconds) else 0.0,
            source=WorkloadRef.parse(message.source, field="source") if message.source else None,
            ports=tuple(message.ports[:1000]),
            operation=message.operation,
            status=(message.status_first, message.status_last) if message.status_first else None,
            bodies=message.bodies,
            body_bytes=message.body_bytes,
            events=message.events_per_second,
            count=message.count,
        )
    except InvalidValue as error:
        raise DecodeError(str(error), "start") from None


def shown_to_message(shown: Shown) -> pb.TapExchange:
    return build(
        "exchange",
        lambda: pb.TapExchange(
            id=shown.tap,
            at=shown.at,
            source=shown.source,
            source_address=shown.source_address,
            destination=shown.destination,
            port=shown.port,
            operation=_clean(shown.operation),
            protocol=shown.protocol,
            method=_clean(shown.method),
            path=_clean(shown.path),
            host=_clean(shown.host),
            status=shown.status,
            grpc_status=shown.grpc_status,
            verdict=str(shown.verdict),
            pending=str(shown.pending),
            reason=shown.reason,
            rule_id=shown.rule_id,
            seconds=shown.seconds,
            request=_message(shown.request),
            response=_message(shown.response) if shown.response is not None else None,
            shed=shown.shed,
        ),
    )


def shown_from_message(message: pb.TapExchange) -> Shown:
    """:raises DecodeError: when it is larger than an event may be, or holds what is none"""
    for name in ("id", "source", "source_address", "destination", "operation", "protocol", "method", "path", "host",
                 "reason", "rule_id"):  # fmt: skip
        value = getattr(message, name)
        if len(value) > _TEXT or not (value.isprintable() or not value):
            raise DecodeError("too long, or with control characters", f"exchange.{name}")
    numbers = (message.at, message.seconds)
    if not all(math.isfinite(number) and 0 <= number < 1e12 for number in numbers):
        raise DecodeError("is no time", "exchange.at")
    if message.status > 599 or message.shed > _MAX_NUMBER or message.port > 65535:
        raise DecodeError("a number is out of range", "exchange")
    try:
        verdict, pending = Verdict(message.verdict), Verdict(message.pending)
    except ValueError:
        raise DecodeError(f"{message.verdict!r:.40} is no verdict", "exchange.verdict") from None
    return Shown(
        tap=message.id,
        at=message.at,
        source=message.source,
        source_address=message.source_address[:64],
        destination=message.destination,
        port=message.port,
        operation=message.operation,
        protocol=message.protocol,
        method=message.method,
        path=message.path,
        host=message.host,
        status=message.status,
        grpc_status=message.grpc_status,
        verdict=verdict,
        pending=pending,
        reason=message.reason,
        rule_id=message.rule_id,
        seconds=message.seconds,
        request=_read_message(message.request, "exchange.request"),
        response=_read_message(message.response, "exchange.response") if message.HasField("response") else None,
        shed=message.shed,
    )


def _clean(text: str) -> str:
    """Text that came from a client, on one line."""
    shown = text[:_TEXT]
    return shown if shown.isprintable() else "".join(mark if mark.isprintable() else "�" for mark in shown)


def _message(message: Message) -> pb.TapMessage:
    return pb.TapMessage(
        fields=[pb.TapField(name=name, value=value) for name, value in message.fields],
        trailers=[pb.TapField(name=name, value=value) for name, value in message.trailers],
        bytes=message.size,
        body=message.body,
        withheld=message.withheld,
    )


def _read_message(message: pb.TapMessage, field: str) -> Message:
    if len(message.body) > MAX_BODY or len(message.withheld) > 200 or not (message.withheld + "x").isprintable():
        raise DecodeError("a body that is larger than any that was asked for", field)
    return Message(
        _read_fields(message.fields, f"{field}.fields"),
        _read_fields(message.trailers, f"{field}.trailers"),
        min(message.bytes, _MAX_NUMBER),
        message.body,
        message.withheld,
    )


def _read_fields(fields: object, name: str) -> Fields:
    read = tuple((one.name, one.value) for one in fields)  # type: ignore[attr-defined]  # a repeated container
    if len(read) > _MAX_ENTRIES or sum(len(one) + len(value) for one, value in read) > 2 * MAX_FIELDS:
        raise DecodeError("more fields than an event may have", name)
    return read
