"""Overrides: what a person may ask for, and the rule that it becomes.

Pure: the engine stores, ends and audits them. An override holds in every mode and above everything learned, so it names
exactly two ends, who answers for it and why. An end outside the mesh may be a network, or all names below a domain.
Such an allow holds for what is outside alone: to a workload there is no way but its identity.
"""

from __future__ import annotations

import ipaddress
import math
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from controller.errors import Conflict, InvalidRequest, NotFound, UnknownWorkload
from controller.inventory import Inventory
from controller.inventory.service_ports import advice
from controller.public_suffixes import shared_domain
from controller.view import Override, OverrideState
from graph.errors import InvalidValue
from graph.flow import EdgeKey
from graph.model import InspectedHost, Instance, Origin, PortRange, Protocol, Rule, Selector, Verdict, WorkloadRef
from graph.operations import check_operation
from graph.outside import is_wide, network_of

MAX_OWNER = 200
MAX_REASON = 1_000
MAX_OPERATIONS = 64


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


@dataclass(frozen=True, slots=True)
class OverrideRequest:
    """What a person asks for; :func:`make` checks it.

    :param port: None means every port
    :param expires_in: seconds; None means that it has no end
    :param operations: only these (``GET /cart/{id}``); none means everything that can be asked
    """

    effect: Verdict
    source: WorkloadRef
    destination: WorkloadRef
    port: int | None
    protocol: Protocol
    owner: str
    reason: str
    expires_in: float | None
    operations: tuple[str, ...] = ()


def make(
    inventory: Inventory, asked: OverrideRequest, *, now: float, longest: float, any_address: bool = False
) -> Override:
    """Check a request and make the override of it. Fields are named as in the web API (``from``, ``to``).

    :param longest: the longest life, seconds
    :param any_address: whether an address may be one that the inventory knows
    :raises InvalidRequest, UnknownWorkload: naming the field and the remedy
    """
    source, destination = asked.source, asked.destination
    if source.host or source.name.startswith("*"):
        raise InvalidRequest(
            f"{source.name} is a name: nobody is called from one",
            field="from",
            remedy="name a workload, an address or a network",
        )
    for ref, field in ((source, "from"), (destination, "to")):
        _checked_end(ref, inventory, field, any_address=any_address)
        if asked.effect is Verdict.ALLOW and is_wide(ref):
            _check_opened(ref, inventory, field)
    if source == destination:
        raise InvalidRequest(f"both ends are {source}", field="to", remedy="name two different workloads")
    if not any(_has_sidecar(ref, inventory) for ref in (source, destination)):
        raise InvalidRequest(
            f"neither {source} nor {destination} has a sidecar that could hold it",
            field="to",
            remedy="give one of them a sidecar",
        )
    if asked.port is not None and not 1 <= asked.port <= 65535:
        raise InvalidRequest(
            f"{asked.port} is not a port", field="port", remedy="use a port from 1 to 65535, or none for all"
        )
    expires_in = asked.expires_in
    if expires_in is not None and not (math.isfinite(expires_in) and 0 < expires_in <= longest):
        raise InvalidRequest(
            f"{expires_in} is no lifetime of an override",
            field="expires_in",
            remedy=f"use more than 0 and at most {longest:.0f} seconds, or none for no end",
        )
    return Override(
        id=f"override/{secrets.token_hex(8)}",
        effect=asked.effect,
        source=source,
        destination=destination,
        port=asked.port,
        protocol=asked.protocol,
        owner=checked_owner(asked.owner),
        reason=checked_reason(asked.reason),
        created_at=now,
        expires_at=None if expires_in is None else now + expires_in,
        operations=_checked_operations(asked, inventory),
    )


def _checked_end(ref: WorkloadRef, inventory: Inventory, field: str, *, any_address: bool) -> WorkloadRef:
    if not ref.is_external:
        return checked_workload(ref, inventory, field)
    if any_address and not ref.host:
        return ref
    owner = owner_of(ref, inventory)
    if owner is not None:
        what = "the name of a service" if ref.host else "the address"
        raise InvalidRequest(
            f"{ref.name} is {what} of {owner}", field=field, remedy=f"write {owner}: a rule goes by identity"
        )
    return ref


def _check_opened(ref: WorkloadRef, inventory: Inventory, field: str) -> None:
    """Whether a network, or the names below a domain, may be opened."""
    network = network_of(ref)
    if network is None:
        _check_domain(ref, inventory, field)
        return
    inside = [each for each in map(ipaddress.ip_network, inventory.networks) if each.version == network.version]
    if any(network.subnet_of(each) for each in inside):  # type: ignore[arg-type]  # of one version
        raise InvalidRequest(
            f"{network} is inside the cluster's own networks",
            field=field,
            remedy="name the workload: a rule goes by identity there; or one address that is no workload's",
        )
    found = next(inhabitants(ref, inventory.instances.values(), inventory), None) if field == "from" else None
    if found is not None:
        raise InvalidRequest(
            f"{found.workload} has the address {found.address} in {network}, and could come without proving who it is",
            field=field,
            remedy="list the cluster's own networks in the inventory (clusterNetworks), which leaves those out, or "
            "name a narrower network",
        )


def inhabitants(ref: WorkloadRef, instances: Iterable[Instance], inventory: Inventory) -> Iterator[Instance]:
    """The instances that have an address in a network, outside the cluster's own networks."""
    network = network_of(ref)
    if network is None:
        return
    inside = [ipaddress.ip_network(each) for each in inventory.networks]
    for instance in instances:
        for address in map(ipaddress.ip_address, instance.addresses):
            if address in network and not any(address in each for each in inside):
                yield instance
                break


def _check_domain(ref: WorkloadRef, inventory: Inventory, field: str) -> None:
    shared = shared_domain(ref)
    if shared:
        raise InvalidRequest(shared.problem, field=field, remedy=shared.remedy)
    labels = ref.name.split(".")[1:]
    if (
        labels == ["cluster", "local"]
        or labels[0] == "svc"
        or (labels[1:2] == ["svc"] and labels[0] in inventory.namespaces)
    ):
        raise InvalidRequest(
            f"{ref.name} are names of services of the cluster", field=field, remedy="name the workloads behind them"
        )


def check_room(held: Mapping[str, Override], now: float, most: int, whose: str = "") -> None:
    """:raises Conflict: when so many are in force that there can be no further one"""
    active = sum(1 for each in held.values() if each.state(now) is OverrideState.ACTIVE)
    if active >= most:
        raise Conflict(f"there are {active} active overrides{whose}", remedy="revoke those that are no longer needed")


def share_of_namespace(most: int) -> int:
    """How many of all that may be in force one namespace's resources may make: who may write in one of them must not
    keep the others from closing a hole."""
    return max(1, most // 10)


def revocable(held: Mapping[str, Override], override_id: str, now: float) -> Override:
    """The override of an id, while it can be revoked.

    :raises NotFound: when there is none
    :raises Conflict: when it has ended
    """
    override = held.get(override_id)
    if override is None:
        raise NotFound(f"there is no override {override_id!r:.80}", field="id", remedy="see `hedgerow overrides`")
    if override.state(now) is not OverrideState.ACTIVE:
        raise Conflict(
            f"{override_id} is {override.state(now)} already",
            field="id",
            remedy="see `hedgerow overrides` for those that hold",
        )
    return override


def audited(override: Override) -> dict[str, object]:
    """What the audit log keeps of an override that is made or changed, beside who did it."""
    return {
        "effect": str(override.effect),
        "source": str(override.source),
        "destination": str(override.destination),
        "port": override.port,
        "protocol": str(override.protocol),
        "operations": list(override.operations),
        "reason": override.reason,
        "expires_at": override.expires_at,
    }


def note_of(override: Override, inventory: Inventory) -> str:
    """What a person should know who has made this override; may be empty."""
    for end, verb in ((override.source, "comes from"), (override.destination, "goes to")):
        if override.effect is Verdict.ALLOW and network_of(end) is not None and is_wide(end):
            return f"it does not hold for what {verb} workloads of the mesh in {end.name}: rules go by identity there"
    return advice(inventory, override.destination, override.port, override.protocol)


def note_beside(override: Override, rules: Mapping[str, Rule]) -> str:
    """What holds beside an allow on operations that makes it no restriction; empty when nothing does.

    :param rules: in force, by id
    """
    if override.effect is not Verdict.ALLOW or not override.operations or override.port is None:
        return ""
    edge = EdgeKey(override.source, override.destination, override.port, override.protocol)
    if f"learned/{edge}" not in rules:
        return ""
    return (
        f"{override.source} may ask everything else there, too: the connection was learned as a whole, and allows add "
        "up; `hedgerow deny … --operation` closes single operations"
    )


def owner_of(ref: WorkloadRef, inventory: Inventory) -> WorkloadRef | None:
    """The workload behind an address or a name outside, when it is one's after all."""
    owner = inventory.service_named(ref.host) if ref.host else inventory.attributed(ref)
    return None if owner == ref else owner


def _has_sidecar(ref: WorkloadRef, inventory: Inventory) -> bool:
    workload = inventory.workloads.get(ref)
    return workload is not None and workload.has_sidecar


def _checked_operations(asked: OverrideRequest, inventory: Inventory) -> tuple[str, ...]:
    """Operations are judged by the destination's sidecar, or outside by the source's where it inspects the host: where
    nobody judges, they would be a promise of nobody's."""
    if not asked.operations:
        return ()
    if len(asked.operations) > MAX_OPERATIONS:
        raise InvalidRequest(
            f"{len(asked.operations)} operations", field="operations", remedy=f"name at most {MAX_OPERATIONS}"
        )
    for index, operation in enumerate(asked.operations):
        try:
            check_operation(operation, f"operations[{index}]")
        except InvalidValue as error:
            raise InvalidRequest(error.problem, field=error.field, remedy=error.remedy) from None
    if asked.protocol is not Protocol.TCP:
        raise InvalidRequest(
            f"operations over {asked.protocol}", field="operations", remedy="operations are those of HTTP over TCP"
        )
    if asked.destination.host:
        _checked_inspected(asked, inventory)
    elif not _has_sidecar(asked.destination, inventory):
        raise InvalidRequest(
            f"{asked.destination} has no sidecar that could judge operations",
            field="operations",
            remedy="leave them out, which allows or denies the whole connection",
        )
    return tuple(dict.fromkeys(asked.operations))


def _checked_inspected(asked: OverrideRequest, inventory: Inventory) -> None:
    """Whether the source's sidecar reads what it says to a host outside."""
    host = asked.destination.host
    workload = inventory.workloads.get(asked.source)
    if asked.port is None:
        raise InvalidRequest(
            f"operations of {host} on every port", field="port", remedy="name the port that is inspected, such as 443"
        )
    if workload is None or InspectedHost(host, asked.port) not in workload.inspects:
        raise InvalidRequest(
            f"{asked.source} does not inspect {host}:{asked.port}, so nobody could judge operations there",
            field="operations",
            remedy=f"add `inspects: [{host}:{asked.port}]` to {asked.source} in the inventory (docs/escapes.md says "
            "what that means for its TLS), or leave them out, which allows or denies the whole connection",
        )


def rule_of(override: Override) -> Rule:
    """The rule that an override is while it holds."""
    return Rule(
        id=override.id,
        source=_selector(override.source, override.effect),
        destination=_selector(override.destination, override.effect),
        ports=(PortRange.single(override.port),) if override.port is not None else (),
        protocol=override.protocol,
        operations=override.operations,
        effect=override.effect,
        origin=Origin.OVERRIDE,
        owner=override.owner,
        reason=override.reason,
        expires_at=override.expires_at or 0.0,
    )


def _selector(ref: WorkloadRef, effect: Verdict) -> Selector:
    made = Selector.of(ref)
    by_address = bool(made.cidr) and (effect is Verdict.ALLOW or is_wide(ref))
    return replace(made, outside=True) if by_address else made


def deciding(overrides: Iterable[Override], port: int, protocol: Protocol) -> Override | None:
    """Which of the overrides on one pair of ends decides about ``port``: a deny above an allow, one about everything
    above one about some operations."""
    found = [each for each in overrides if each.protocol is protocol and each.port in (None, port)]
    return min(found, key=lambda each: (bool(each.operations), each.effect is not Verdict.DENY, each.id), default=None)
