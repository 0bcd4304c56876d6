"""Which workload a pod is of: its top owner's, or nobody's. Pure.

The rules, in doubt against:

1. The owner of the pod's ReplicaSet or Job (a Deployment, a CronJob, or whatever made it), else the controller that the
   pod names, else the pod itself. A Deployment that an operator made is the workload, and not the operator's object.
2. An owner of a kind that we follow has to be there, with the uid that was named. Where it has a selector, the pod has
   to match it: whoever makes a pod can write any owner into it, but an owner's controller lets go of what it does not
   select. (Who may create pods in a namespace can also create Deployments there: the namespace is the boundary, and
   the workload's name is worth no more than that.)
3. A name belongs to one owner. Where two owners have the same name (a Deployment and a StatefulSet), it is the older
   one's; the pods of the other are nobody's until one of the two has another name. Owners of kinds that we do not
   follow come after those that we do; among themselves the one whose first pod is oldest. Kubernetes counts in
   seconds: of those of one second, what makes pods comes before a pod that is its own owner.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from controller.kube.inventory.objects import Owner, OwnerFacts, PodFacts
from graph.model import WorkloadRef

#: By group and kind: what may own pods, or own their owners, and which we follow.
FOLLOWED = {
    ("apps", "ReplicaSet"),
    ("apps", "Deployment"),
    ("apps", "StatefulSet"),
    ("apps", "DaemonSet"),
    ("batch", "Job"),
    ("batch", "CronJob"),
}
#: Static pods are the node's; such a pod stands for itself.
_NOBODYS = {("", "Node")}
#: Made one after the other by the owner that lasts.
_PASSING = {"ReplicaSet", "Job"}

type OwnerKey = tuple[str, str, str]
"""Kind, namespace, name, of an owner that we follow."""


@dataclass(frozen=True, slots=True)
class Top:
    """The top owner of a pod.

    :param followed: its object is known, and not only somebody's word that it is there
    """

    ref: WorkloadRef
    kind: str
    uid: str
    followed: bool = True


@dataclass(frozen=True, slots=True)
class Attribution:
    """:param top: None when it is nobody's, or not known yet; then ``problem`` says why
    :param through: the owners that this depends on, whether they are there or not
    """

    top: Top | None
    through: tuple[OwnerKey, ...] = ()
    problem: str = ""


def attribute(pod: PodFacts, owners: Mapping[OwnerKey, OwnerFacts]) -> Attribution:
    """The workload of a pod."""
    said = pod.owner
    through: list[OwnerKey] = []
    top = Top(WorkloadRef(pod.namespace, pod.name), "Pod", pod.uid)
    while said is not None and (said.group, said.kind) not in _NOBODYS and len(through) < 2:
        ref = WorkloadRef(pod.namespace, said.name)
        if (said.group, said.kind) not in FOLLOWED:
            return Attribution(Top(ref, said.kind, said.uid, followed=False), tuple(through))
        key = (said.kind, pod.namespace, said.name)
        through.append(key)
        found = owners.get(key)
        problem = _unproved(pod, said, found)
        if found is None or problem:
            return Attribution(None, tuple(through), problem)
        top, said = Top(ref, said.kind, said.uid), found.owner if said.kind in _PASSING else None
    return Attribution(top, tuple(through))


def _unproved(pod: PodFacts, said: Owner, found: OwnerFacts | None) -> str:
    name = f"pod {pod.namespace}/{pod.name}"
    if found is None:
        return f"{name}: its owner, {said.kind} {said.name}, is not there"
    if found.uid != said.uid:
        return f"{name}: its owner is an earlier {said.kind} {said.name}"
    if found.selector is not None and not found.selector.selects(pod.spec.labels):
        return f"{name} names {said.kind} {said.name} as its owner, whose selector does not match its labels"
    return ""


def rank(top: Top, created: str, first_pod: str) -> tuple[bool, str, bool, str]:
    """By which owners of the same name are ordered; the first one has it.

    :param created: of the owner's object, ISO 8601; ``first_pod`` of its oldest pod
    """
    return not top.followed, created if top.followed else first_pod, top.kind == "Pod", top.uid
