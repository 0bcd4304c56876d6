"""How much of what a graph may remember is taken, and by whom.

The bounds are :class:`graph.limits.Limits`: of all, of one workload, and of one namespace, so that who makes much known
leaves room for the others. What is there none of is not remembered here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable

from graph.flow import EdgeKey
from graph.limits import OTHER_ADDRESSES, Limits
from graph.model import WorkloadRef


class Shares:
    """Counts; told of every node and edge that comes and goes."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._edges = 0  # networkx would count them anew
        self._outside = 0
        self._edges_of: Counter[WorkloadRef] = Counter()
        self._brought: dict[WorkloadRef, WorkloadRef] = {}  # nodes outside, and which workload was first to name each
        self._outside_of: Counter[WorkloadRef | str] = Counter()  # how many a workload, and a namespace, has brought

    def edges_full(self, speaker: WorkloadRef | None) -> bool:
        """Whether there is no room for another edge.

        :param speaker: on whose word it would be there; None when that was taken before
        """
        if self._edges >= self._limits.edges:
            return True
        return speaker is not None and self._edges_of[speaker] >= self._limits.edges_each

    def outside_full(self, beside: WorkloadRef, more: bool) -> bool:
        """Whether there is no room for another address or host outside.

        :param beside: the other end of its edge
        :param more: whether that takes such a place too
        """
        limits = self._limits
        if self._outside + more >= limits.external:
            return True
        return not beside.is_external and (
            self._outside_of[beside] >= limits.external_each
            or self._outside_of[beside.namespace] >= limits.external_space
        )

    def add_node(self, ref: WorkloadRef) -> None:
        self._outside += _is_outside(ref)

    def bring(self, ref: WorkloadRef, beside: WorkloadRef) -> None:
        """An edge brought a node with it that was not there; ``beside`` is its other end."""
        if _is_outside(ref) and not beside.is_external:
            self._brought[ref] = beside
            self._outside_of[beside] += 1
            self._outside_of[beside.namespace] += 1

    def drop_node(self, ref: WorkloadRef) -> None:
        self._outside -= _is_outside(ref)
        by = self._brought.pop(ref, None)
        if by is not None:
            _less(self._outside_of, by)
            _less(self._outside_of, by.namespace)

    def add_edge(self, key: EdgeKey) -> None:
        self._edges += 1
        for ref in (key.source, key.destination):
            self._edges_of[ref] += 1

    def drop_edge(self, key: EdgeKey) -> None:
        self._edges -= 1
        for ref in (key.source, key.destination):
            _less(self._edges_of, ref)


def _is_outside(ref: WorkloadRef) -> bool:
    return ref.is_external and ref != OTHER_ADDRESSES


def _less[T: Hashable](counter: Counter[T], one: T) -> None:
    counter[one] -= 1
    if not counter[one]:
        del counter[one]
