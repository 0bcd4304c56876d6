"""Immutable pictures of the service graph, as the API, the exports and the page show them (``docs/api.md``).

The service graph fills in what traffic and inventory say. What only the controller knows (modes, learning state, rule,
evidence) has an empty default here and is added with :func:`dataclasses.replace`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from graph.flow import EdgeKey, Flow
from graph.model import Protocol, Rule, Transport, Verdict, WorkloadRef


class EdgeVerdict(StrEnum):
    """What the last connections of an edge met. ``WOULD_DENY``: allowed by a mode only, no rule allows it."""

    ALLOW = "allow"
    WOULD_DENY = "would-deny"
    DENY = "deny"

    @classmethod
    def of(cls, flow: Flow) -> EdgeVerdict:
        if flow.verdict is Verdict.DENY:
            return cls.DENY
        return cls.WOULD_DENY if flow.pending is Verdict.DENY else cls.ALLOW

    @property
    def strictness(self) -> int:
        return (EdgeVerdict.ALLOW, EdgeVerdict.WOULD_DENY, EdgeVerdict.DENY).index(self)


@dataclass(frozen=True, slots=True)
class NodeView:
    """A workload, or something outside the inventory.

    :param kind: as in the inventory; ``External`` outside it, empty for a workload that no inventory names
    :param instances: how many replicas run now
    :param identity: the SPIFFE ID that its instances carry, empty when not meshed or not known
    :param transport: how it is reached when it is meshed
    """

    ref: WorkloadRef
    kind: str = ""
    meshed: bool = False
    instances: int = 0
    identity: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    transport: Transport = Transport.TUNNEL
    inbound_mode: str = ""
    outbound_mode: str = ""

    @property
    def id(self) -> str:
        return str(self.ref)

    @property
    def external(self) -> bool:
        return self.ref.is_external


@dataclass(frozen=True, slots=True)
class OperationView:
    """The requests of one operation on an edge, as the destination's sidecars counted them.

    :param name: method and templated path (``GET /cart/{id}``), or :data:`graph.operations.OTHER_OPERATIONS`
    :param requests: requests that were allowed
    :param denied: requests that were refused; not among ``requests``
    :param would_deny: those of ``requests`` that the pending policy would refuse
    """

    name: str
    requests: int = 0
    denied: int = 0
    would_deny: int = 0
    first_seen: float = 0.0
    last_seen: float = 0.0


@dataclass(frozen=True, slots=True)
class EdgeView:
    """All flows from one workload to another on one port; the counters are those of :class:`graph.windows.Counts`.

    :param reporters: instances that reported it, the latest ones, sorted
    :param replicas: how many instances of the source reported it; of the destination where the source has no sidecar
    :param operations: what was asked over it, by name; they add nothing to the counters
    :param state: the learner's state of the edge; with ``evidence`` and ``rule``, added by the controller
    """

    key: EdgeKey
    verdict: EdgeVerdict
    connections: int = 0
    verified: int = 0
    failed: int = 0
    denied: int = 0
    would_deny: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    first_seen: float = 0.0
    last_seen: float = 0.0
    app_protocol: str = ""
    source_identities: tuple[str, ...] = ()
    destination_identities: tuple[str, ...] = ()
    reporters: tuple[str, ...] = ()
    replicas: int = 0
    operations: tuple[OperationView, ...] = ()
    state: str = ""
    evidence: tuple[str, ...] = ()
    rule: Rule | None = None

    @property
    def id(self) -> str:
        return str(self.key)

    @property
    def source(self) -> WorkloadRef:
        return self.key.source

    @property
    def destination(self) -> WorkloadRef:
        return self.key.destination

    @property
    def port(self) -> int:
        return self.key.port

    @property
    def protocol(self) -> Protocol:
        return self.key.protocol


@dataclass(frozen=True, slots=True)
class GraphView:
    """The whole graph at one moment (``at``, seconds since the epoch), nodes and edges in a stable order."""

    generation: int
    at: float
    nodes: tuple[NodeView, ...] = ()
    edges: tuple[EdgeView, ...] = ()


@dataclass(frozen=True, slots=True)
class GraphChanges:
    """What changed after a generation.

    :param whole: too long ago to tell the difference; ``nodes`` and ``edges`` are everything, and what is not among
        them is gone
    """

    generation: int
    nodes: tuple[NodeView, ...] = ()
    edges: tuple[EdgeView, ...] = ()
    removed_nodes: tuple[WorkloadRef, ...] = ()
    removed_edges: tuple[EdgeKey, ...] = ()
    whole: bool = False
