"""What the engine is told once, when it is made."""

from __future__ import annotations

from dataclasses import dataclass, field

from controller.learner import Gate
from controller.view import WorkloadMode


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """The engine's fixed parameters. Durations in seconds.

    :param gate: when an edge has been seen often and long enough (:class:`controller.learner.Gate`)
    :param default_mode: of a workload whose mode nobody has set
    :param group: the most messages that share one transaction
    :param mailbox: the most messages that wait; a sender beyond it waits itself
    :param override_max: the longest life that an override may be given
    :param override_kept: how long an ended override is still shown
    :param oldest_flow: a flow is taken to be no older than this, whatever a sidecar's clock says
    :param max_edges: the most edges remembered; flows on further ones are refused and counted
    :param max_external_peers: the most addresses outside the inventory remembered for one workload
    :param recent_flows: how many flows are kept in memory for people to look at
    """

    gate: Gate = field(default_factory=Gate)
    default_mode: WorkloadMode = field(default_factory=WorkloadMode)
    group: int = 128
    mailbox: int = 4096
    override_max: float = 366 * 86400.0
    override_kept: float = 86400.0
    oldest_flow: float = 86400.0
    max_edges: int = 200_000
    max_external_peers: int = 2_000
    recent_flows: int = 5_000
