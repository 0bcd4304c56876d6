"""What all ``SegmentationMode`` resources together say of each workload: who is heard, and who is not. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

from controller import overrides
from controller.declarations.values import GATE_FIELDS, ModeDeclaration, NetworkPolicyMode
from controller.errors import InvalidRequest
from controller.inventory import Inventory
from controller.learner import Gate
from controller.view import WorkloadMode
from graph.errors import InvalidValue
from graph.model import Direction, Mode, WorkloadRef

_STANDARD = Gate()


@dataclass(frozen=True, slots=True)
class Modes:
    """All modes that are declared, and what follows from them for each workload."""

    by_target: Mapping[str, tuple[ModeDeclaration, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, declarations: Iterable[ModeDeclaration]) -> Self:
        found: dict[str, list[ModeDeclaration]] = {}
        for declaration in declarations:
            found.setdefault(declaration.target, []).append(declaration)
        return cls({target: tuple(sorted(each, key=lambda d: d.source.age)) for target, each in found.items()})

    def _about(self, ref: WorkloadRef) -> tuple[ModeDeclaration, ...]:
        """What speaks of a workload, what is heard first before the rest."""
        return (*self.by_target.get(str(ref), ()), *self.by_target.get(ref.namespace, ()))

    def mode_of(self, ref: WorkloadRef, standard: WorkloadMode) -> WorkloadMode:
        """How a workload is set; ``standard`` where nothing is said."""
        about = self._about(ref)
        return WorkloadMode(
            _mode(about, Direction.INBOUND) or standard.inbound,
            _mode(about, Direction.OUTBOUND) or standard.outbound,
            next((each.inbound_tls for each in about if each.inbound_tls is not None), standard.inbound_tls),
        )

    def mode_of_namespace(self, namespace: str, standard: WorkloadMode) -> WorkloadMode:
        """How a workload of a namespace is set that nothing speaks of by name."""
        return self.mode_of(WorkloadRef(namespace, ""), standard)

    def gate_of(self, ref: WorkloadRef, standard: Gate) -> Gate:
        """The learning gate of a workload."""
        about = self._about(ref)
        if not any(each.gate for each in about):
            return standard
        values: dict[str, float] = {}
        for each in reversed(about):
            values.update(each.gate)
        return gate_with(standard, values)

    def network_policy_of(self, namespace: str) -> NetworkPolicyMode | None:
        """What is said about a namespace's NetworkPolicies; None when nothing is."""
        about = self.by_target.get(namespace, ())
        return next((each.network_policy for each in about if each.network_policy is not None), None)

    def shadowed(self, declaration: ModeDeclaration) -> tuple[str, ...]:
        """The fields in which an older resource about the same target speaks instead."""
        spoken: dict[str, object] = {}
        for each in self.by_target.get(declaration.target, ()):
            if each.source.age < declaration.source.age:
                spoken = each.says() | spoken
        return tuple(
            name
            for name, value in declaration.says().items()
            if name in spoken and spoken[name] != value and value != Mode.QUARANTINE
        )


def _mode(about: tuple[ModeDeclaration, ...], direction: Direction) -> Mode | None:
    said = [each.inbound if direction is Direction.INBOUND else each.outbound for each in about]
    if Mode.QUARANTINE in said:
        return Mode.QUARANTINE
    return next((mode for mode in said if mode is not None), None)


def gate_with(standard: Gate, values: Mapping[str, float]) -> Gate:
    """``standard`` with some values replaced; an edge is never retired before it goes stale."""
    known = {name: getattr(standard, name) for name in GATE_FIELDS.values()} | dict(values)
    known["min_connections"] = int(known["min_connections"])
    known["retire_after"] = max(known["retire_after"], known["stale_after"])
    return Gate(**known)


def check_mode(declaration: ModeDeclaration, inventory: Inventory, standard: Gate) -> None:
    """:raises InvalidRequest, UnknownWorkload: when it can not be what it says"""
    if declaration.workload:
        overrides.checked_workload(declaration.ref, inventory, "workload")
    check_mode_itself(declaration, standard)


def check_mode_itself(declaration: ModeDeclaration, standard: Gate = _STANDARD) -> None:
    """What can be said of it without an inventory.

    :param standard: the gate's values where it says nothing
    :raises InvalidRequest:
    """
    if declaration.workload and declaration.network_policy is not None:
        raise InvalidRequest(
            "set for one workload", field="networkPolicy", remedy="set it for a whole namespace, without `workload`"
        )
    if not declaration.says():
        raise InvalidRequest("it sets nothing", field="spec", remedy="set ingress, egress, inboundTLS, … or delete it")
    values = dict(declaration.gate)
    if values.get("retire_after", math.inf) < values.get("stale_after", 0.0):
        raise InvalidRequest(
            "retireAfter is before staleAfter", field="learning.retireAfter", remedy="let an edge go stale first"
        )
    try:
        gate_with(standard, values)
    except InvalidValue as error:
        raise InvalidRequest(error.problem, field=error.field, remedy=error.remedy) from None
