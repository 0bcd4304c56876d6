"""How the controller fares on its cluster, as values: for `hedgerow status`, the web API and the metrics.

Made by :mod:`controller.kube.cluster`; who shows it knows nothing of Kubernetes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: What a problem is about: a pod that is nobody's, a name that two owners have, a workload that can have no SPIFFE ID,
#: an annotation that can not be read, a namespace whose NetworkPolicies are not as they should be.
POLICIES = "network-policies"
PROBLEM_KINDS = ("pod", "name", "identity", "said", POLICIES)


@dataclass(frozen=True, slots=True)
class PartState:
    """One thing that the controller does on a cluster, see :mod:`controller.kube.supervision`.

    :param synced: whether it has done its first round
    :param failures: how often it was begun again
    :param problem: why that was, the last time; ``failed`` how many seconds ago
    """

    name: str
    synced: bool
    failures: int
    problem: str = ""
    failed: float | None = None


@dataclass(frozen=True, slots=True)
class WatchState:
    """One kind of object that is followed. Counts only grow, while this process runs.

    :param objects: that are held
    :param lists: how often all of them were read; ``watches`` how often a watch began, ``expired`` how often one was
        too old to go on
    :param unreadable: objects that were passed over
    :param heard: seconds since the API server said anything of them; None before it did, and where it has none of them
    :param watching: seconds since the present watch began; None while there is none
    """

    resource: str
    objects: int
    lists: int
    watches: int
    events: int
    expired: int
    unreadable: int
    heard: float | None
    watching: float | None


@dataclass(frozen=True, slots=True)
class ClusterState:
    """All of it.

    :param inventories: how many were put together; ``seconds`` that the last one took
    :param troubles: how many problems there are, by :data:`PROBLEM_KINDS`
    :param problems: in words; a hundred at most, of each namespace as many
    :param protected: namespaces that NetworkPolicies of ours leave alone
    """

    parts: tuple[PartState, ...] = ()
    watches: tuple[WatchState, ...] = ()
    inventories: int = 0
    seconds: float = 0.0
    troubles: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    protected: tuple[str, ...] = ()

    @property
    def waiting(self) -> tuple[str, ...]:
        """The parts that have not done their first round."""
        return tuple(part.name for part in self.parts if not part.synced)
