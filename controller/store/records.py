"""What is written and what is read back: the terms between the engine and a store.

A store keeps the newest value of each thing, by its key, and every audit entry. It knows no rule about any of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from controller.audit import Verified
from controller.join_tokens import JoinToken
from controller.learner import LearnedEdge
from controller.view import AuditEntry, Override, WorkloadMode
from graph.accounts import EdgeTotals
from graph.flow import EdgeKey
from graph.model import Direction, WorkloadRef
from graph.views import OperationView
from graph.windows import Counts


@dataclass(frozen=True, slots=True)
class Mark:
    """Which version of a workload's policy was given out last, and for what content.

    :param digest: of the snapshot without its version and time, 64 hexadecimal digits
    :param issued_at: seconds since the epoch
    """

    version: int
    digest: str
    issued_at: float


@dataclass(frozen=True, slots=True)
class Position:
    """Up to which batch one boot of one sidecar has been counted. ``at``: when, seconds since the epoch."""

    sequence: int
    at: float


@dataclass(slots=True)
class Writes:
    """One transaction. Values replace what is there under the same key; None, where permitted, deletes it.

    :param generation: the new generation
    :param inventory: in the form of the inventory file; None leaves it as it is
    :param windows: by (edge, width, start), seconds
    :param operations: all of an edge's
    :param positions: by (``namespace/instance``, boot id)
    :param documents: JSON objects by (kind, key)
    """

    generation: int = 0
    trust_domain: str | None = None
    inventory: Mapping[str, Any] | None = None
    inventory_revision: int | None = None
    edges: dict[EdgeKey, LearnedEdge | None] = field(default_factory=dict)
    traffic: dict[tuple[EdgeKey, Direction], EdgeTotals | None] = field(default_factory=dict)
    windows: dict[tuple[EdgeKey, int, int], Counts | None] = field(default_factory=dict)
    operations: dict[EdgeKey, tuple[OperationView, ...] | None] = field(default_factory=dict)
    modes: dict[WorkloadRef, WorkloadMode | None] = field(default_factory=dict)
    overrides: dict[str, Override | None] = field(default_factory=dict)
    tokens: dict[str, JoinToken | None] = field(default_factory=dict)
    positions: dict[tuple[str, str], Position | None] = field(default_factory=dict)
    marks: dict[WorkloadRef, Mark] = field(default_factory=dict)
    documents: dict[tuple[str, str], Mapping[str, Any] | None] = field(default_factory=dict)
    audit: list[AuditEntry] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Whether there is anything to write, the generation apart."""
        return bool(
            self.trust_domain is not None
            or self.inventory is not None
            or self.inventory_revision is not None
            or self.edges
            or self.traffic
            or self.windows
            or self.operations
            or self.modes
            or self.overrides
            or self.tokens
            or self.positions
            or self.marks
            or self.documents
            or self.audit
        )


@dataclass(frozen=True, slots=True)
class Stored:
    """Everything that was kept, as :class:`Writes` wrote it. ``trust_domain`` is empty in a new database."""

    generation: int = 0
    trust_domain: str = ""
    inventory: Mapping[str, Any] | None = None
    inventory_revision: int = 0
    edges: tuple[LearnedEdge, ...] = ()
    traffic: tuple[EdgeTotals, ...] = ()
    windows: Mapping[tuple[EdgeKey, int, int], Counts] = field(default_factory=dict)
    operations: Mapping[EdgeKey, tuple[OperationView, ...]] = field(default_factory=dict)
    modes: Mapping[WorkloadRef, WorkloadMode] = field(default_factory=dict)
    overrides: tuple[Override, ...] = ()
    tokens: tuple[JoinToken, ...] = ()
    positions: Mapping[tuple[str, str], Position] = field(default_factory=dict)
    marks: Mapping[WorkloadRef, Mark] = field(default_factory=dict)
    documents: Mapping[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)
    audit_head: AuditEntry | None = None


class Store(Protocol):
    """Keeps the engine's state. Methods block; the engine calls them off its event loop, writes one at a time.

    Every method raises :class:`controller.errors.StoreError`.
    """

    def load(self) -> Stored:
        """Read everything but the past of the audit log."""

    def commit(self, writes: Writes) -> None:
        """Write all of it, or nothing. When this returns, a power cut does not take it back."""

    def audit_page(self, limit: int) -> tuple[AuditEntry, ...]:
        """The newest entries, newest first. May run beside a write."""

    def audit_verified(self, head: AuditEntry | None) -> Verified:
        """Check the whole chain, which has to contain ``head``. May run beside a write."""

    def close(self) -> None:
        """Give up files and locks. Harmless when done twice."""
