"""From a custom resource, as JSON gives it, to what it declares. Pure.

The schemas have looked at it already, but a CRD can be of another version or edited: what is not understood here is
refused as a whole, with field and remedy, and never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from controller.declarations import GATE_FIELDS, ModeDeclaration, NetworkPolicyMode, OverrideDeclaration, Source
from controller.errors import InvalidRequest, refusal
from controller.kube.resources.kinds import AUTHOR_ANNOTATION
from controller.overrides import MAX_OPERATIONS, OverrideRequest
from graph.errors import InvalidValue
from graph.fields import Check, Fields, Unfit, choice, integer, items, namespace_name, optional, parsed, text, unfit
from graph.model import InboundTls, Mode, Protocol, Verdict, WorkloadRef
from graph.operations import check_operation
from graph.outside import name_end, network_end

_DURATION = re.compile(r"([0-9]{1,9})([smhd])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
#: The year 10000, seconds since the epoch. What is not before it, or before the epoch, no status can say, and one
#: resource that can not be told of itself would keep all others from being told.
_NEVER = 253402300800.0

_OWNER, _REASON = text(200), text(1000)


def source_of(document: Mapping[str, Any]) -> Source:
    """Which resource it is.

    :raises InvalidRequest: when its metadata are not what an API server gives
    """
    meta = document.get("metadata")
    try:
        if not isinstance(meta, Mapping):
            raise TypeError("no metadata")
        return Source(
            namespace=str(meta["namespace"]),
            name=str(meta["name"]),
            uid=str(meta["uid"]),
            generation=int(meta.get("generation", 1)),
            created_at=moment_of(str(meta["creationTimestamp"])),
            author=str((meta.get("annotations") or {}).get(AUTHOR_ANNOTATION, ""))[:200],
        )
    except (KeyError, TypeError, ValueError, Unfit) as error:
        raise InvalidRequest(f"it can not be read: {error}", field="metadata", remedy="create it anew") from None


def override_declaration(document: Mapping[str, Any]) -> OverrideDeclaration:
    """:raises InvalidRequest: with the field below ``spec`` and the remedy"""
    source = source_of(document)
    fields = Fields(document.get("spec"), refusal(InvalidRequest))
    asked = OverrideRequest(
        effect=fields.take("effect", choice(*Verdict)),
        source=fields.take("from", _end(source.namespace, ("namespace", "workload", "address", "cidr"))),
        destination=fields.take("to", _end(source.namespace, ("namespace", "workload", "address", "cidr", "host"))),
        port=fields.take("port", optional(integer(1, 65535)), None),
        protocol=fields.take("protocol", choice(*Protocol), Protocol.TCP),
        owner=fields.take("owner", _OWNER),
        reason=fields.take("reason", _REASON),
        expires_in=None,
        operations=fields.take("operations", items(_operation, at_most=MAX_OPERATIONS), ()),
    )
    ttl, expires_at = fields.take("ttl", optional(duration), None), fields.take("expiresAt", optional(_moment), None)
    fields.finish()
    if ttl is not None and expires_at is not None:
        fields.fail("ttl", "set beside expiresAt", "keep one of them, or none for no end")
    if ttl is not None and source.created_at + ttl >= _NEVER:
        fields.fail("ttl", "it ends after the year 9999", "write a shorter one, or none for no end")
    return OverrideDeclaration(source, asked, source.created_at + ttl if ttl is not None else expires_at)


def mode_declaration(document: Mapping[str, Any]) -> ModeDeclaration:
    """:raises InvalidRequest: with the field below ``spec`` and the remedy"""
    source = source_of(document)
    fields = Fields(document.get("spec"), refusal(InvalidRequest))
    made = ModeDeclaration(
        source,
        workload=fields.take("workload", _workload_name(source.namespace), ""),
        inbound=fields.take("ingress", optional(choice(*Mode)), None),
        outbound=fields.take("egress", optional(choice(*Mode)), None),
        inbound_tls=fields.take("inboundTLS", optional(choice(*InboundTls)), None),
        network_policy=fields.take("networkPolicy", optional(choice(*NetworkPolicyMode)), None),
        gate=fields.take("learning", _gate, ()),
        owner=fields.take("owner", text(200, may_be_empty=True), ""),
        reason=fields.take("reason", text(1000, may_be_empty=True), ""),
    )
    fields.finish()
    return made


def duration(value: object) -> float:
    """``90s``, ``30m``, ``8h``, ``7d`` in seconds."""
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise Unfit(f"{str(value)[:40]!r} is not a duration", "write 90s, 30m, 8h or 7d")
    return float(int(match[1]) * _UNITS[match[2]])


def written(seconds: float) -> str:
    """The opposite: in the largest unit that leaves no rest, whole seconds."""
    whole = max(1, round(seconds))
    unit = next(unit for unit in ("d", "h", "m", "s") if whole % _UNITS[unit] == 0)
    return f"{whole // _UNITS[unit]}{unit}"


def moment_of(written_down: str) -> float:
    """RFC 3339 in seconds since the epoch.

    :raises Unfit: when it is none
    """
    try:
        found = datetime.fromisoformat(written_down)
    except ValueError:
        raise Unfit(f"{written_down[:40]!r} is not a time", "write it as 2030-01-31T18:00:00Z") from None
    if found.tzinfo is None:
        raise Unfit(f"{written_down[:40]!r} has no time zone", "write it as 2030-01-31T18:00:00Z")
    return found.timestamp()


def moment_written(at: float) -> str:
    """Seconds since the epoch as the API server writes times: whole seconds, UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _moment(value: object) -> float:
    at = moment_of(text(64)(value))
    if not 0 <= at < _NEVER:
        raise Unfit(f"{str(value)[:40]!r} is not within the years 1970 to 9999 (UTC)", "leave it out for no end")
    return at


def _operation(value: object) -> str:
    return parsed(lambda given: check_operation(given, "operation"))(value)


def _workload_name(namespace: str) -> Check[str]:
    def check(value: object) -> str:
        try:
            return WorkloadRef.parse(f"{namespace}/{text(253)(value)}", field="workload").name
        except InvalidValue as error:
            raise Unfit(error.problem, error.remedy) from None

    return check


def _end(home: str, known: tuple[str, ...]) -> Check[WorkloadRef]:
    def check(value: object) -> WorkloadRef:
        fields = Fields(value, unfit)
        namespace = fields.take("namespace", namespace_name, "")
        given = {name: fields.take(name, text(253), "") for name in known if name != "namespace"}
        fields.finish()
        named = [name for name, value in given.items() if value]
        if len(named) != 1 or (namespace and named != ["workload"]):
            raise Unfit("not one end", f"name either {' or '.join(name for name in given)}")
        try:
            match named[0]:
                case "workload":
                    return WorkloadRef.parse(f"{namespace or home}/{given['workload']}", field="workload")
                case "host":
                    return name_end(given["host"])
                case "cidr":
                    return network_end(given["cidr"])
                case _:
                    return WorkloadRef.external(given["address"])
        except InvalidValue as error:
            raise Unfit(error.problem, error.remedy, f".{named[0]}") from None

    return check


def _gate(value: object) -> tuple[tuple[str, float], ...]:
    fields = Fields(value, unfit)
    found: dict[str, float] = {}
    for name, ours in GATE_FIELDS.items():
        check: Check[float] = integer(1, 10**9) if name == "minConnections" else duration
        given = fields.take(name, optional(check), None)
        if given is not None:
            found[ours] = float(given)
    fields.finish()
    return tuple(sorted(found.items()))
