"""The declarations themselves, and what the engine makes of one. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from controller.errors import InvalidRequest
from controller.overrides import OverrideRequest
from graph.errors import InvalidValue
from graph.model import InboundTls, Mode, WorkloadRef


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
    :param note: what its author should know, though it is accepted; may be empty
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
    note: str = ""


def refused(declaration: Declaration, error: InvalidRequest | InvalidValue) -> Judgement:
    """The judgement that a refusal is."""
    code = error.code if isinstance(error, InvalidRequest) else "invalid"
    source = declaration.source
    return Judgement(source.uid, source.generation, False, code, error.field, error.problem, error.remedy)
