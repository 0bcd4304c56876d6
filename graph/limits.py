"""How much of the service graph traffic may make, and what was kept out."""

from __future__ import annotations

from dataclasses import dataclass

from graph.model import WorkloadRef

#: Stands for every outside address and host beyond the bound. The unspecified address is nobody's, so that a rule made
#: of this node by mistake would select nobody.
OTHER_ADDRESSES = WorkloadRef.external("0.0.0.0")


@dataclass(frozen=True, slots=True)
class Limits:
    """What traffic may make the graph hold.

    :param external: addresses and hosts outside the inventory that have a node of their own; ``external_each`` those
        of them that one workload may bring in, ``external_space`` the workloads of one namespace together: who tries
        every address must not use up what the others need
    :param unknown: workloads that flows name and no inventory does
    :param edges: edges in all; ``edges_each`` so many may a workload have when it brings in a further one by its word
    :param ports: edges from one node to another, ``external_ports`` where one of the two is outside the inventory: who
        tries every port must not use up what the others need
    :param removals: removals that :meth:`ServiceGraph.changes` can still tell of
    :param operations: operations of all edges together; how many of one edge, :mod:`graph.operations` says
    """

    external: int = 1_000
    external_each: int = 250
    external_space: int = 500
    unknown: int = 1_000
    edges: int = 200_000
    edges_each: int = 10_000
    ports: int = 256
    external_ports: int = 16
    removals: int = 10_000
    operations: int = 100_000


@dataclass(slots=True)
class Shed:
    """What the bounds kept out, in flows since the start."""

    folded: int = 0  #: counted on :data:`OTHER_ADDRESSES`
    unknown: int = 0  #: left out: too many workloads that no inventory names
    edges: int = 0  #: left out: too many edges
    late: int = 0  #: left out: about a workload that was removed after it
    operations: int = 0  #: left out: operations on connections that nobody reported
