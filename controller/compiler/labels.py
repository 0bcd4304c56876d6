"""Pod selectors that pick exactly one workload among all of its namespace, and the proof that they do.

Labels that people give come first, those that change with every roll-out never count. Where a workload's labels are
part of another's, the other is kept out by a label that only it has. What is left then has the same labels: a twin,
which is reported, because a policy for one is a policy for both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from controller.compiler.form import Subject
from graph.model import WorkloadRef

#: In the order of preference.
_STABLE = (
    "app.kubernetes.io/name",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/component",
    "app",
    "k8s-app",
    "name",
    "component",
    "tier",
)
#: Set by Kubernetes' own controllers, different for every replica or roll-out, or by nature not about who it is.
_VOLATILE = frozenset(
    {
        "app.kubernetes.io/version",
        "apps.kubernetes.io/pod-index",
        "batch.kubernetes.io/controller-uid",
        "batch.kubernetes.io/job-completion-index",
        "batch.kubernetes.io/job-name",
        "controller-revision-hash",
        "controller-uid",
        "job-name",
        "pod-template-generation",
        "pod-template-hash",
        "statefulset.kubernetes.io/pod-name",
    }
)

type Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class PodSelector:
    """Selects the pods of one workload within its namespace.

    :param labels: all of them must be there; ``absent`` are keys that must not be
    :param twins: other workloads that it selects too, because they have the same labels
    """

    labels: Labels = ()
    absent: tuple[str, ...] = ()
    twins: tuple[WorkloadRef, ...] = ()

    def manifest(self) -> dict[str, object]:
        """As a Kubernetes LabelSelector."""
        selector: dict[str, object] = {}
        if self.labels:
            selector["matchLabels"] = dict(sorted(self.labels))
        if self.absent:
            selector["matchExpressions"] = [{"key": key, "operator": "DoesNotExist"} for key in sorted(self.absent)]
        return selector


def pod_selectors(subjects: Iterable[Subject]) -> Mapping[WorkloadRef, PodSelector]:
    """The selector of every workload, each proved against all others of its namespace."""
    namespaces: dict[str, list[Subject]] = {}
    for subject in subjects:
        namespaces.setdefault(subject.ref.namespace, []).append(subject)
    return {
        subject.ref: _exact(subject, [other for other in members if other is not subject])
        for members in namespaces.values()
        for subject in members
    }


def _rank(key: str) -> tuple[int, str]:
    return (_STABLE.index(key) if key in _STABLE else len(_STABLE), key)


def _exact(subject: Subject, others: list[Subject]) -> PodSelector:
    usable = sorted((label for label in subject.labels if label[0] not in _VOLATILE), key=lambda label: _rank(label[0]))
    chosen: list[tuple[str, str]] = []
    for label in usable:
        left = [other for other in others if label in other.labels]
        if not chosen or len(left) < len(others):
            chosen.append(label)
            others = left
        if not others:
            break
    mine = {key for key, _ in subject.labels}
    absent: list[str] = []
    while others:
        theirs = {key for other in others for key, _ in other.labels} - mine - _VOLATILE
        if not theirs:
            break
        key = max(sorted(theirs, key=_rank), key=lambda key: sum(key in dict(other.labels) for other in others))
        absent.append(key)
        others = [other for other in others if key not in dict(other.labels)]
    return PodSelector(tuple(chosen), tuple(absent), tuple(sorted(other.ref for other in others)))
