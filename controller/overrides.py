"""Overrides: what a person may ask for, and the rule that it becomes.

Pure: the engine stores, ends and audits them. An override holds in every mode and above everything learned, so it names
exactly two ends, who answers for it and why.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable

from controller.errors import InvalidRequest, UnknownWorkload
from controller.inventory import Inventory
from controller.view import Override
from graph.model import Origin, PortRange, Protocol, Rule, Selector, Verdict, WorkloadRef

MAX_OWNER = 200
MAX_REASON = 1_000


def checked_text(text: str, field: str, limit: int, purpose: str) -> str:
    """A person's words, trimmed.

    :raises InvalidRequest: when there are none, too many, or control characters among them
    """
    trimmed = text.strip()
    if not trimmed:
        raise InvalidRequest("empty", field=field, remedy=purpose)
    if len(trimmed) > limit:
        raise InvalidRequest(f"{len(trimmed)} characters", field=field, remedy=f"use at most {limit}")
    if not trimmed.isprintable():
        raise InvalidRequest("has control characters", field=field, remedy="write one line of plain text")
    return trimmed


def checked_owner(owner: str) -> str:
    """Who answers for a change."""
    return checked_text(owner, "owner", MAX_OWNER, "say who answers for it (--owner)")


def checked_reason(reason: str) -> str:
    """Why a change is made."""
    return checked_text(reason, "reason", MAX_REASON, "say why, for those who find it later (--reason)")


def checked_workload(ref: WorkloadRef, inventory: Inventory, field: str) -> WorkloadRef:
    """A workload of the inventory.

    :raises UnknownWorkload: with the names that are spelled most like it
    """
    if ref not in inventory.workloads:
        near = inventory.closest(ref)
        remedy = f"did you mean {' or '.join(near)}?" if near else "see `hedgerow status` for the names"
        raise UnknownWorkload(f"there is no workload {ref}", field=field, remedy=remedy)
    return ref


def _checked_end(ref: WorkloadRef, inventory: Inventory, field: str) -> WorkloadRef:
    if not ref.is_external:
        return checked_workload(ref, inventory, field)
    owner = inventory.attributed(ref)
    if owner is not ref:
        raise InvalidRequest(
            f"{ref.name} is the address of {owner}", field=field, remedy=f"write {owner}: a rule goes by identity"
        )
    return ref


def make(
    inventory: Inventory,
    effect: Verdict,
    source: WorkloadRef,
    destination: WorkloadRef,
    port: int | None,
    protocol: Protocol,
    owner: str,
    reason: str,
    expires_in: float | None,
    *,
    now: float,
    longest: float,
) -> Override:
    """Check a request and make the override of it. Fields are named as in the web API (``from``, ``to``).

    :param longest: the longest life, seconds
    :raises InvalidRequest, UnknownWorkload: naming the field and the remedy
    """
    _checked_end(source, inventory, "from")
    _checked_end(destination, inventory, "to")
    if source == destination:
        raise InvalidRequest(f"both ends are {source}", field="to", remedy="name two different workloads")
    if not any(inventory.identity_of(ref) for ref in (source, destination)):
        raise InvalidRequest(
            f"neither {source} nor {destination} has a sidecar that could hold it",
            field="to",
            remedy="give one of them a sidecar",
        )
    if port is not None and not 1 <= port <= 65535:
        raise InvalidRequest(
            f"{port} is not a port", field="port", remedy="use a port from 1 to 65535, or none for all"
        )
    if expires_in is not None and not (math.isfinite(expires_in) and 0 < expires_in <= longest):
        raise InvalidRequest(
            f"{expires_in} is no lifetime of an override",
            field="expires_in",
            remedy=f"use more than 0 and at most {longest:.0f} seconds, or none for no end",
        )
    return Override(
        id=f"override/{secrets.token_hex(8)}",
        effect=effect,
        source=source,
        destination=destination,
        port=port,
        protocol=protocol,
        owner=checked_owner(owner),
        reason=checked_reason(reason),
        created_at=now,
        expires_at=None if expires_in is None else now + expires_in,
    )


def rule_of(override: Override) -> Rule:
    """The rule that an override is while it holds."""
    return Rule(
        id=override.id,
        source=Selector.of(override.source),
        destination=Selector.of(override.destination),
        ports=(PortRange.single(override.port),) if override.port is not None else (),
        protocol=override.protocol,
        effect=override.effect,
        origin=Origin.OVERRIDE,
        owner=override.owner,
        reason=override.reason,
        expires_at=override.expires_at or 0.0,
    )


def deciding(overrides: Iterable[Override], port: int, protocol: Protocol) -> Override | None:
    """Which of the overrides on one pair of ends decides about ``port``: a deny above an allow."""
    found = [each for each in overrides if each.protocol is protocol and each.port in (None, port)]
    return min(found, key=lambda each: (each.effect is not Verdict.DENY, each.id), default=None)
