"""What a cluster's custom resources declare, as values: overrides, modes, and how NetworkPolicies are handled.

The governing rules:

1. On Kubernetes the resources are the truth. What is in force follows from them, the inventory and the time alone, so
   that the same resources always mean the same.
2. Of several that speak of the same, the oldest speaks; and quarantine wins, whoever asks for it.
3. What is about one workload goes before what is about its namespace.
4. A resource speaks for its own namespace: it lets in what calls there and lets out what goes outside the mesh.

Pure. How the resources are read is in :mod:`controller.kube.resources`, what the engine makes of them in
:mod:`controller.engine.declared`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Self

from controller import overrides
from controller.errors import InvalidRequest
from controller.inventory import Inventory
from controller.learner import Gate
from controller.overrides import OverrideRequest
from controller.view import Override, WorkloadMode
from graph.errors import InvalidValue
from graph.model import Direction, InboundTls, Mode, Protocol, Verdict, WorkloadRef


class Kind(StrEnum):
    """The kinds of resources that people write."""

    OVERRIDE = "AccessOverride"
    MODE = "SegmentationMode"


class NetworkPolicyMode(StrEnum):
    """What is done with the NetworkPolicies of a namespace."""

    OFF = "off"
    REPORT = "report"
    APPLY = "apply"


@dataclass(frozen=True, slots=True)
class Source:
    """The resource that a declaration was read from.

    :param uid: given by the API server, never twice
    :param generation: grows with every change of what the resource says
    :param created_at: seconds since the epoch
    :param author: who made it, as far as the resource tells; empty otherwise
    """

    namespace: str
    name: str
    uid: str
    generation: int
    created_at: float
    author: str = ""

    @property
    def age(self) -> tuple[float, str, str]:
        """Sorts the older before the younger."""
        return self.created_at, self.name, self.uid


@dataclass(frozen=True, slots=True)
class OverrideDeclaration:
    """An ``AccessOverride``. ``asked.expires_in`` is not used.

    :param expires_at: seconds since the epoch; None means that it has no end
    """

    source: Source
    asked: OverrideRequest
    expires_at: float | None = None

    @property
    def key(self) -> str:
        return f"{Kind.OVERRIDE}/{self.source.namespace}/{self.source.name}"

    @property
    def id(self) -> str:
        """Of the override: readable, and another one when the resource is made anew. No namespace has a dot."""
        return f"override/{self.source.namespace}.{self.source.name}.{self.source.uid[:8]}"


def key_of(override_id: str) -> str:
    """The key of the resource that an override comes from; for an id of another form, one that no resource has."""
    namespace, _, rest = override_id.removeprefix("override/").partition(".")
    return f"{Kind.OVERRIDE}/{namespace}/{rest.rpartition('.')[0]}"


#: The learning gate's values that a resource may set: the resource's names, and those of
#: :class:`controller.learner.Gate`.
GATE_FIELDS = {
    "minConnections": "min_connections",
    "minAge": "min_seconds",
    "quiet": "quiet_seconds",
    "staleAfter": "stale_after",
    "retireAfter": "retire_after",
}


@dataclass(frozen=True, slots=True)
class ModeDeclaration:
    """A ``SegmentationMode``: what is None, or not in ``gate``, it says nothing about.

    :param workload: its name in the resource's namespace; empty means the whole namespace
    :param network_policy: for a whole namespace only
    :param gate: values of the learning gate by their names
    """

    source: Source
    workload: str = ""
    inbound: Mode | None = None
    outbound: Mode | None = None
    inbound_tls: InboundTls | None = None
    network_policy: NetworkPolicyMode | None = None
    gate: tuple[tuple[str, float], ...] = ()
    owner: str = ""
    reason: str = ""

    @property
    def key(self) -> str:
        return f"{Kind.MODE}/{self.source.namespace}/{self.source.name}"

    @property
    def ref(self) -> WorkloadRef:
        """The workload that it is about; only where it is about one."""
        return WorkloadRef(self.source.namespace, self.workload)

    @property
    def target(self) -> str:
        """``namespace/workload``, or the namespace."""
        return f"{self.source.namespace}/{self.workload}" if self.workload else self.source.namespace

    def says(self) -> dict[str, object]:
        """What it sets, by the names of the resource's fields."""
        said = {
            "ingress": self.inbound,
            "egress": self.outbound,
            "inboundTLS": self.inbound_tls,
            "networkPolicy": self.network_policy,
        }
        found: dict[str, object] = {name: value for name, value in said.items() if value is not None}
        gate = dict(self.gate)
        return found | {f"learning.{name}": gate[ours] for name, ours in GATE_FIELDS.items() if ours in gate}


type Declaration = OverrideDeclaration | ModeDeclaration


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the engine makes of a declaration.

    :param uid: and ``generation``: of the resource that was judged
    :param accepted: it is in force, or was until it ended
    :param code: why not, a stable word; empty when it is accepted
    :param shadowed: fields in which an older resource about the same speaks
    :param override_id: of the override that it is
    :param expires_at: seconds since the epoch; ``ended``: it has come
    """

    uid: str
    generation: int
    accepted: bool
    code: str = ""
    field: str = ""
    problem: str = ""
    remedy: str = ""
    shadowed: tuple[str, ...] = ()
    override_id: str = ""
    expires_at: float | None = None
    ended: bool = False


def refused(declaration: Declaration, error: InvalidRequest | InvalidValue) -> Judgement:
    """The judgement that a refusal is."""
    code = error.code if isinstance(error, InvalidRequest) else "invalid"
    source = declaration.source
    return Judgement(source.uid, source.generation, False, code, error.field, error.problem, error.remedy)


# --- overrides


def override_of(declaration: OverrideDeclaration, inventory: Inventory, *, longest: float) -> Override:
    """The override that a resource declares.

    :param longest: the longest life, seconds
    :raises InvalidRequest, UnknownWorkload: naming the field and the remedy
    """
    source, asked = declaration.source, declaration.asked
    check_namespace(asked, source.namespace)
    # a deny stays when an address becomes somebody's: it holds by address, and dropping it would open what was closed
    lenient = asked.effect is Verdict.DENY
    made = overrides.make(
        inventory, replace(asked, expires_in=None), now=source.created_at, longest=longest, any_address=lenient
    )
    ends = declaration.expires_at
    if ends is not None and not (math.isfinite(ends) and ends - source.created_at <= longest):
        raise InvalidRequest(
            f"it would hold for {ends - source.created_at:.0f} seconds",
            field="expires_at",
            remedy=f"let it end within {longest:.0f} seconds, or give it no end",
        )
    return replace(made, id=declaration.id, expires_at=ends)


def namespace_of(asked: OverrideRequest) -> str:
    """Where the resource for an override belongs: the destination's namespace, or the source's when that is outside.

    :raises InvalidRequest: when both ends are outside
    """
    if not asked.destination.is_external:
        return asked.destination.namespace
    if asked.source.is_external:
        raise InvalidRequest("both ends are outside the mesh", field="to", remedy="name a workload at one end")
    return asked.source.namespace


def check_namespace(asked: OverrideRequest, namespace: str) -> None:
    """Who may write in a namespace decides about that namespace alone: who is let into it, and what goes out of the
    mesh from it. A deny may also be about what is called from it.

    :raises InvalidRequest:
    """
    home = namespace_of(asked)
    if namespace == home or (asked.effect is Verdict.DENY and namespace == asked.source.namespace):
        return
    raise InvalidRequest(
        f"an AccessOverride in {namespace} does not speak for {home}",
        field="to",
        remedy=f"create it in the namespace {home}",
        code="wrong-namespace",
    )


# --- modes


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
        if declaration.network_policy is not None:
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


# --- their form in the store


def document_of(declaration: Declaration) -> dict[str, Any]:
    """As JSON; :func:`declaration_of` reads it back."""
    source = declaration.source
    document: dict[str, Any] = {
        "namespace": source.namespace,
        "name": source.name,
        "uid": source.uid,
        "generation": source.generation,
        "createdAt": source.created_at,
        "author": source.author,
    }
    if isinstance(declaration, OverrideDeclaration):
        asked = declaration.asked
        return document | {
            "kind": str(Kind.OVERRIDE),
            "effect": str(asked.effect),
            "from": str(asked.source),
            "to": str(asked.destination),
            "port": asked.port,
            "protocol": str(asked.protocol),
            "operations": list(asked.operations),
            "owner": asked.owner,
            "reason": asked.reason,
            "expiresAt": declaration.expires_at,
        }
    return document | {
        "kind": str(Kind.MODE),
        "workload": declaration.workload,
        "inbound": declaration.inbound,
        "outbound": declaration.outbound,
        "inboundTLS": declaration.inbound_tls,
        "networkPolicy": declaration.network_policy,
        "gate": dict(declaration.gate),
        "owner": declaration.owner,
        "reason": declaration.reason,
    }


def declaration_of(document: Mapping[str, Any]) -> Declaration:
    """:raises KeyError, ValueError, TypeError, InvalidValue: when it is not what :func:`document_of` wrote"""
    source = Source(
        document["namespace"],
        document["name"],
        document["uid"],
        document["generation"],
        document["createdAt"],
        document["author"],
    )
    if document["kind"] == Kind.OVERRIDE:
        asked = OverrideRequest(
            effect=Verdict(document["effect"]),
            source=WorkloadRef.parse(document["from"]),
            destination=WorkloadRef.parse(document["to"]),
            port=document["port"],
            protocol=Protocol(document["protocol"]),
            owner=document["owner"],
            reason=document["reason"],
            expires_in=None,
            operations=tuple(document["operations"]),
        )
        return OverrideDeclaration(source, asked, document["expiresAt"])
    return ModeDeclaration(
        source,
        document["workload"],
        _read(Mode, document["inbound"]),
        _read(Mode, document["outbound"]),
        _read(InboundTls, document["inboundTLS"]),
        _read(NetworkPolicyMode, document["networkPolicy"]),
        tuple(sorted(document["gate"].items())),
        document["owner"],
        document["reason"],
    )


def _read[E: StrEnum](kind: type[E], value: str | None) -> E | None:
    return None if value is None else kind(value)
