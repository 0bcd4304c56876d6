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
4. What was found of a pod while its owners were there goes on for that pod (its uid, and no other) when they are merely
   gone, or let go of it as they went: a Deployment is gone at once, and its pods run on with its certificates, for as
   long as they need to end or, orphaned, for ever. It goes on only (:func:`gone_on`)

   - while nobody else claims the pod: it names the same owners as before, or the first of them, and no others;
   - while there is no other owner of the top's kind and name, nor one of another kind that has the name by now;
   - while its labels are those that the owner selected;
   - where an owner that we follow let go of it, only if that owner is gone or going. One that stays lets go of what it
     does not select, which ends it for good: else a forged owner would be worth more for having been found out.

   Nobody gets a name by this that the same pod did not have. It is known while the controller runs: of a pod the store
   has the uid and the workload, but not whom it named, and one that is started later judges by what it sees. So it does
   where a pod is heard of as let go before its owner is heard of as going, which are of different watches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from controller.kube.inventory.objects import Owner, OwnerFacts, PodFacts
from controller.kube.inventory.selecting import LabelSelector
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
    :param through: the owners that this depends on, whether they are there or not; ``uids`` which of those names
    :param selector: of the top, where it has one
    :param kept: found earlier, of owners that are not all there any more
    """

    top: Top | None
    through: tuple[OwnerKey, ...] = ()
    problem: str = ""
    uids: tuple[str, ...] = ()
    selector: LabelSelector | None = None
    kept: bool = False


def attribute(pod: PodFacts, owners: Mapping[OwnerKey, OwnerFacts]) -> Attribution:
    """The workload of a pod, as its owners are now."""
    said = pod.owner
    through: list[OwnerKey] = []
    uids: list[str] = []
    selector: LabelSelector | None = None
    top = Top(WorkloadRef(pod.namespace, pod.name), "Pod", pod.uid)
    while said is not None and (said.group, said.kind) not in _NOBODYS and len(through) < 2:
        ref = WorkloadRef(pod.namespace, said.name)
        if (said.group, said.kind) not in FOLLOWED:
            top = Top(ref, said.kind, said.uid, followed=False)
            break
        key = (said.kind, pod.namespace, said.name)
        through.append(key)
        uids.append(said.uid)
        found = owners.get(key)
        problem = _unproved(pod, said, found)
        if found is None or problem:
            return Attribution(None, tuple(through), problem, tuple(uids))
        selector = found.selector
        top, said = Top(ref, said.kind, said.uid), found.owner if said.kind in _PASSING else None
    return Attribution(top, tuple(through), "", tuple(uids), selector)


def gone_on(
    pod: PodFacts, earlier: Attribution, now: Attribution, owners: Mapping[OwnerKey, OwnerFacts]
) -> Attribution:
    """Rule 4.

    :param earlier: what was found of the same pod before, with the same uid; ``now``: what :func:`attribute` says
    :return: the earlier, ``kept``, where it goes on; else ``now``
    """
    if earlier.top is None or now.top == earlier.top:
        return now
    named = list(zip(now.through, now.uids, strict=True))
    before = list(zip(earlier.through, earlier.uids, strict=True))
    claimed = now.top is not None and not now.top.followed
    if claimed or named != before[: len(named)]:
        return now
    if now.top is not None and len(named) < len(before) and _stays(*before[len(named)], owners):
        return now
    for selector in (earlier.selector, *(_selector(*each, owners) for each in before)):
        if selector is not None and not selector.selects(pod.spec.labels):
            return now
    succeeded = owners.get((earlier.top.kind, earlier.top.ref.namespace, earlier.top.ref.name))
    if earlier.top.followed and succeeded is not None and succeeded.uid != earlier.top.uid:
        return now
    return replace(earlier, kept=True)


def _stays(key: OwnerKey, uid: str, owners: Mapping[OwnerKey, OwnerFacts]) -> bool:
    """Whether an owner is there and not going. While it goes its controller lets go of nothing that it does not select;
    only the collector of what is owned does, which orphans it (``controller_ref_manager.go`` of Kubernetes).
    """
    found = owners.get(key)
    return found is not None and found.uid == uid and not found.ending


def _selector(key: OwnerKey, uid: str, owners: Mapping[OwnerKey, OwnerFacts]) -> LabelSelector | None:
    found = owners.get(key)
    return found.selector if found is not None and found.uid == uid else None


def _unproved(pod: PodFacts, said: Owner, found: OwnerFacts | None) -> str:
    name = f"pod {pod.namespace}/{pod.name}"
    if found is None:
        return f"{name}: its owner, {said.kind} {said.name}, is not there"
    if found.uid != said.uid:
        return f"{name}: its owner is an earlier {said.kind} {said.name}"
    if found.selector is not None and not found.selector.selects(pod.spec.labels):
        return f"{name} names {said.kind} {said.name} as its owner, whose selector does not match its labels"
    return ""


def rank(top: Top, created: str, first_pod: str, *, gives_way: bool = False) -> tuple[bool, bool, str, bool, str]:
    """By which owners of the same name are ordered; the first one has it.

    :param created: of the owner's object, ISO 8601; ``first_pod`` of its oldest pod
    :param gives_way: its object is gone, and another's is there
    """
    return not top.followed, gives_way, created if top.followed else first_pod, top.kind == "Pod", top.uid
