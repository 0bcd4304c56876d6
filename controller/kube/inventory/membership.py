"""Which pods are of which owner, and to whom a name belongs, followed as both change. Pure.

:mod:`~controller.kube.inventory.owners` says it of one pod; this keeps it of all. Every change answers with the names
of which something may be different now, and no others: the rest need not be looked at again.

What is kept of a pod is also what was found of it before, for when its owners go
(:func:`~controller.kube.inventory.owners.gone_on`). It is forgotten with the pod, when another pod has its name, and
when it does not hold any more: it never comes back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from controller.kube.inventory.addresses import AddressBook
from controller.kube.inventory.objects import OwnerFacts, PodFacts
from controller.kube.inventory.owners import Attribution, OwnerKey, Top, attribute, gone_on, rank
from controller.kube.inventory.problems import Problems
from controller.kube.inventory.reading import Shared
from controller.kube.reflector import Changed, Key
from controller.memory import forgotten_on_demand, pack
from graph.model import WorkloadRef

#: The pods of an owner are attributed alike, one after the other.
_ATTRIBUTIONS = Shared[Attribution](512)
forgotten_on_demand(_ATTRIBUTIONS.forget)


@dataclass(frozen=True, slots=True)
class Holding:
    """What a name stands for now.

    :param top: to whom it belongs; ``owner`` its object, where its kind is followed
    :param pods: its own, sorted by key
    :param problem: why others of that name have none; empty when there are no others
    """

    top: Top
    owner: OwnerFacts | None
    pods: Mapping[Key, PodFacts]
    problem: str = ""


class Membership:
    """:param problems: gets those of pods that are nobody's"""

    def __init__(self, problems: Problems) -> None:
        self._problems = problems
        self._owners: dict[OwnerKey, OwnerFacts] = {}
        self._pods: dict[Key, PodFacts] = {}
        self._attributions: dict[Key, Attribution] = {}
        self._below: dict[OwnerKey, set[Key]] = {}  # the pods whose attribution depends on an owner
        self._members: dict[Top, set[Key]] = {}
        self._tops: dict[WorkloadRef, set[Top]] = {}  # the owners that have, or would have, a name
        self._book = AddressBook()

    # --- what changed

    def pods(self, changes: Iterable[Changed[PodFacts]]) -> set[WorkloadRef]:
        """Follow pods. :return: the names that it concerns"""
        concerned: set[WorkloadRef] = set()
        for each in changes:
            concerned |= self._named(self._book.put(each.key, each.before, each.after))
            before = self._pods.get(each.key)
            if each.after is None:
                self._pods.pop(each.key, None)
            else:
                self._pods[each.key] = each.after
            same = before is not None and each.after is not None and before.uid == each.after.uid
            concerned |= self._attribute(each.key, anew=not same)
        return self._given_up(concerned)

    def owners(self, changes: Iterable[Changed[OwnerFacts]]) -> set[WorkloadRef]:
        """Follow owners. :return: the names that it concerns"""
        concerned: set[WorkloadRef] = set()
        for each in changes:
            facts = each.after or each.before
            assert facts is not None
            key = facts.kind, facts.namespace, facts.name
            if each.after is None:
                self._owners.pop(key, None)
            else:
                self._owners[key] = each.after
            for old_or_new in (each.before, each.after):
                if old_or_new is not None and old_or_new.template is not None:
                    concerned |= self._refresh(_top_of(old_or_new))
            for pod in tuple(self._below.get(key, ())):
                concerned |= self._attribute(pod)
            concerned.add(WorkloadRef(facts.namespace, facts.name))
        return self._given_up(concerned)

    def _given_up(self, concerned: set[WorkloadRef]) -> set[WorkloadRef]:
        """Where somebody else has a name by now, judge the pods anew that only went on having it.

        Without this they would have it again, or for the first time, when the other goes.

        :return: all names that are concerned then
        """
        due = set(concerned)
        while due:
            tops = self._tops.get(due.pop(), set())
            for top in self._ranked(tops)[1:] if len(tops) > 1 else ():
                for key in [each for each in self._members.get(top, ()) if self._attributions[each].kept]:
                    others = self._attribute(key, anew=True)
                    due |= others
                    concerned |= others
        return concerned

    def _attribute(self, key: Key, *, anew: bool = False) -> set[WorkloadRef]:
        """:param anew: nothing that was found earlier counts"""
        before, pod = self._attributions.get(key), self._pods.get(key)
        after: Attribution | None = None
        if pod is not None:
            found = attribute(pod, self._owners)
            if before is not None and not anew:
                found = gone_on(pod, before, found, self._owners)
            after = _ATTRIBUTIONS.one(found)
        for owner in before.through if before is not None else ():
            below = self._below[owner]
            below.discard(key)
            if not below:
                del self._below[owner]
        for owner in after.through if after is not None else ():
            self._below.setdefault(owner, set()).add(key)
        if after is None:
            self._attributions.pop(key, None)
        else:
            self._attributions[key] = after
        self._problems.note(f"pod/{key[0]}/{key[1]}", after.problem if after is not None else "")
        concerned: set[WorkloadRef] = set()
        for attribution, there in ((before, False), (after, True)):
            top = attribution.top if attribution is not None else None
            if top is None:
                continue
            members = self._members.setdefault(top, set())
            (members.add if there else members.discard)(key)
            if not members:
                del self._members[top]
            concerned |= self._refresh(top)
        return concerned

    def _refresh(self, top: Top) -> set[WorkloadRef]:
        """Let an owner be among those with its name while it has pods, or is there and could have some."""
        owner = self._object_of(top)
        there = top in self._members or (owner is not None and owner.uid == top.uid and owner.template is not None)
        tops = self._tops.setdefault(top.ref, set())
        (tops.add if there else tops.discard)(top)
        if not tops:
            del self._tops[top.ref]
        return {top.ref}

    def pack(self) -> None:
        """Many pods have gone."""
        pack(self, self._book)

    # --- as it is now

    def named_in(self, namespace: str) -> set[WorkloadRef]:
        """The names of a namespace that belong to somebody."""
        return {ref for ref in self._tops if ref.namespace == namespace}

    def claiming(self, addresses: Iterable[str]) -> set[WorkloadRef]:
        """The names whose pods say that they have one of these addresses."""
        return self._named(key for address in addresses for key in self._book.claimants(address))

    def addresses_of(self, key: Key, pod: PodFacts) -> tuple[str, ...]:
        """The addresses that are this pod's alone."""
        return self._book.of(key, pod)

    def owner(self, key: OwnerKey) -> OwnerFacts | None:
        """What is known of an owner."""
        return self._owners.get(key)

    def holding(self, ref: WorkloadRef) -> Holding | None:
        """What a name stands for; None when it is nobody's."""
        tops = self._tops.get(ref)
        if not tops:
            return None
        first, *others = self._ranked(tops)
        problem = ""
        if others:
            kinds = ", ".join(sorted({each.kind for each in others}))
            problem = (
                f"{ref} is the name of a {first.kind}, which is older, and of another owner ({kinds}), whose pods are "
                "nobody's; give one of them another name"
            )
        pods = {key: self._pods[key] for key in sorted(self._members.get(first, ()))}
        return Holding(first, self._object_of(first), pods, problem)

    def _ranked(self, tops: set[Top]) -> list[Top]:
        """The first one has the name. An owner that is gone gives way to one that is there, as it does to its own
        successor, and not to a pod alone, which would be too easily made.
        """
        if len(tops) < 2:
            return list(tops)
        made = any(self._made(top) for top in tops)

        def order(top: Top) -> tuple[bool, bool, str, bool, str]:
            owner = self._made(top)
            first = min((self._pods[key].created for key in self._members.get(top, ())), default="")
            gives_way = made and owner is None and top.kind != "Pod"
            return rank(top, owner.created or first if owner is not None else first, first, gives_way=gives_way)

        return sorted(tops, key=order)

    def _made(self, top: Top) -> OwnerFacts | None:
        """The object of an owner, while that very one is there."""
        owner = self._object_of(top)
        return owner if owner is not None and owner.uid == top.uid else None

    def _object_of(self, top: Top) -> OwnerFacts | None:
        return self._owners.get((top.kind, top.ref.namespace, top.ref.name)) if top.followed else None

    def _named(self, keys: Iterable[Key]) -> set[WorkloadRef]:
        found = (self._attributions.get(key) for key in keys)
        return {each.top.ref for each in found if each is not None and each.top is not None}


def _top_of(facts: OwnerFacts) -> Top:
    return Top(WorkloadRef(facts.namespace, facts.name), facts.kind, facts.uid)
