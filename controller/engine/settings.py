"""What the engine is told once, when it is made."""

from __future__ import annotations

from dataclasses import dataclass, field

from controller.errors import ConfigError
from controller.learner import Gate
from controller.view import WorkloadMode


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """The engine's fixed parameters. Durations in seconds.

    :param gate: when an edge has been seen often and long enough (:class:`controller.learner.Gate`)
    :param default_mode: of a workload whose mode nobody has set
    :param group: the most messages that share one transaction
    :param compile_at_once: after the urgent policies, at most so many others are compiled before the next group's turn:
        one that is compiled proves itself, which takes some 10 to 100 ms
    :param mailbox: the most messages that wait; a sender beyond it waits itself
    :param override_max: the longest life that an override may be given
    :param max_overrides: the most overrides that hold at one time
    :param override_kept: how long an ended override is still shown
    :param oldest_flow: a flow is taken to be no older than this, whatever a sidecar's clock says
    :param token_kept: how long a join token that ended is remembered, to tell that it ended
    :param refusal_pause: how often at most one sidecar's refused flows make an audit entry
    :param inventory_pause: an inventory that follows a cluster is stored no more often than this
    :param audit_share: entries of the audit log that one namespace's resources and workloads may cause in a row, and
        one more every ``audit_pause`` seconds; what goes beyond is told in one entry as often
    :param housekeeping: how often what is no longer needed is cleared away
    :param max_edges: the most edges remembered, and ``max_external`` the most addresses and hosts outside the
        inventory; what goes beyond is counted and teaches nothing
    :param max_operations: the most operations remembered by name, of all edges together; the rest of an edge's is
        counted as one
    :param recent_flows: how many flows are kept in memory for people to look at
    """

    gate: Gate = field(default_factory=Gate)
    default_mode: WorkloadMode = field(default_factory=WorkloadMode)
    group: int = 128
    compile_at_once: int = 8
    mailbox: int = 4096
    override_max: float = 366 * 86400.0
    max_overrides: int = 10_000
    override_kept: float = 86400.0
    token_kept: float = 7 * 86400.0
    refusal_pause: float = 60.0
    inventory_pause: float = 30.0
    audit_share: int = 1_000
    audit_pause: float = 600.0
    housekeeping: float = 600.0
    oldest_flow: float = 86400.0
    max_edges: int = 200_000
    max_external: int = 1_000
    max_operations: int = 100_000
    recent_flows: int = 5_000

    def __post_init__(self) -> None:
        for name in (
            "group",
            "compile_at_once",
            "mailbox",
            "max_overrides",
            "max_edges",
            "recent_flows",
            "audit_share",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{getattr(self, name)} is below 1", field=f"engine.{name}", remedy="use 1 or more")
        for name in ("override_max", "housekeeping", "oldest_flow", "audit_pause"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{getattr(self, name)} s", field=f"engine.{name}", remedy="use more than 0 seconds")
