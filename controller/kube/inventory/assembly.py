"""Puts the inventory together from what is kept of the cluster's objects, and again only where something changed. Pure.

What changed marks what follows from it: a pod its workload, an owner the pods below it, an address the services that
lead to it, a namespace its workloads. :meth:`Assembly.build` makes the marked ones anew; the rest are the same objects
as before, by which the engine sees at once that they did not change.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping

from controller.inventory import Inventory
from controller.inventory.model import Namespace
from controller.inventory.ports import OPAQUE
from controller.kube.inventory import services as making
from controller.kube.inventory.addresses import AddressBook, claimed
from controller.kube.inventory.networks import cluster_networks
from controller.kube.inventory.objects import (
    NamespaceFacts,
    NodeFacts,
    OwnerFacts,
    PodFacts,
    RangeFacts,
    ServiceFacts,
    SliceFacts,
)
from controller.kube.inventory.owners import Attribution, OwnerKey, Top, attribute, rank
from controller.kube.inventory.problems import Problems
from controller.kube.inventory.said import NAMESPACE_SILENT
from controller.kube.inventory.workloads import (
    Spoken,
    annotation_problem,
    identity_problem,
    instance_of,
    said_by,
    workload_of,
)
from controller.kube.reflector import Changed, Key
from graph.model import Instance, Protocol, Service, Workload, WorkloadRef


class Assembly:
    """:param networks: the cluster's own; empty: as its nodes and service ranges say"""

    def __init__(self, trust_domain: str, networks: tuple[str, ...] = ()) -> None:
        self._trust_domain = trust_domain
        self._given = networks
        self._namespaces: dict[str, NamespaceFacts] = {}
        self._owners: dict[OwnerKey, OwnerFacts] = {}
        self._pods: dict[Key, PodFacts] = {}
        self._attributions: dict[Key, Attribution] = {}
        self._below: dict[OwnerKey, set[Key]] = {}  # the pods whose attribution depends on an owner
        self._members: dict[Top, set[Key]] = {}
        self._tops: dict[WorkloadRef, set[Top]] = {}  # the owners that have, or would have, a name
        self._book = AddressBook()
        self._services: dict[Key, ServiceFacts] = {}
        self._slices: dict[Key, SliceFacts] = {}
        self._slices_of: dict[Key, set[Key]] = {}  # by service
        self._leading: dict[str, set[Key]] = {}  # services by the addresses that they lead to
        self._spoken: dict[Key, dict[str, dict[tuple[int, Protocol], str]]] = {}  # by service, then address
        self._services_in: dict[str, set[Key]] = {}
        self._nodes: dict[Key, NodeFacts] = {}
        self._ranges: dict[Key, RangeFacts] = {}
        self._networks: tuple[str, ...] | None = None
        # what was built
        self._workloads: dict[WorkloadRef, Workload] = {}
        self._refs_in: dict[str, list[WorkloadRef]] = {}  # sorted
        self._instances: dict[str, Instance] = {}
        self._instances_of: dict[WorkloadRef, set[str]] = {}
        self._at: dict[str, Instance] = {}  # by address
        self._made_services: dict[str, Service] = {}
        self._shown_namespaces: dict[str, Namespace] = {}
        # what has to be built again
        self._due: set[WorkloadRef] = set()
        self._due_services: set[Key] = set()
        self._problems = Problems()

    # --- what changed

    def pods(self, changes: Iterable[Changed[PodFacts]]) -> None:
        for each in changes:
            for other in self._book.put(each.key, each.before, each.after):
                self._touch(other)
            if each.after is None:
                self._pods.pop(each.key, None)
            else:
                self._pods[each.key] = each.after
            self._attribute(each.key)

    def owners(self, changes: Iterable[Changed[OwnerFacts]]) -> None:
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
                    self._refresh_top(_top_of(old_or_new))
            for pod in tuple(self._below.get(key, ())):
                self._attribute(pod)
            self._due.add(WorkloadRef(facts.namespace, facts.name))

    def services(self, changes: Iterable[Changed[ServiceFacts]]) -> None:
        for each in changes:
            named = self._services_in.setdefault(each.key[0], set())
            if each.after is None:
                self._services.pop(each.key, None)
                named.discard(each.key)
            else:
                self._services[each.key] = each.after
                named.add(each.key)
            if not named:
                del self._services_in[each.key[0]]
            self._show_namespace(each.key[0])
            self._lead(each.key)

    def slices(self, changes: Iterable[Changed[SliceFacts]]) -> None:
        concerned = set()
        for each in changes:
            for facts, there in ((each.before, False), (each.after, True)):
                if facts is None:
                    continue
                service = facts.namespace, facts.service
                held = self._slices_of.setdefault(service, set())
                (held.add if there else held.discard)(each.key)
                if not held:
                    del self._slices_of[service]
                concerned.add((service, frozenset(making.endpoint_addresses((facts,)))))
            if each.after is None:
                self._slices.pop(each.key, None)
            else:
                self._slices[each.key] = each.after
        for service, addresses in concerned:
            self._lead(service, addresses)

    def namespaces(self, changes: Iterable[Changed[NamespaceFacts]]) -> None:
        for each in changes:
            name = each.key[1]
            if each.after is None:
                self._namespaces.pop(name, None)
            else:
                self._namespaces[name] = each.after
            if (each.before and each.before.for_pods) != (each.after and each.after.for_pods):
                self._due |= set(self._refs_in.get(name, ()))
                self._due |= {ref for ref in self._tops if ref.namespace == name}
            self._show_namespace(name)

    def nodes(self, changes: Iterable[Changed[NodeFacts]]) -> None:
        for each in changes:
            _keep(self._nodes, each)
        self._networks = None

    def ranges(self, changes: Iterable[Changed[RangeFacts]]) -> None:
        for each in changes:
            _keep(self._ranges, each)
        self._networks = None

    # --- following what changed

    def _attribute(self, key: Key) -> None:
        before, pod = self._attributions.get(key), self._pods.get(key)
        after = attribute(pod, self._owners) if pod is not None else None
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
        for attribution, there in ((before, False), (after, True)):
            top = attribution.top if attribution is not None else None
            if top is None:
                continue
            members = self._members.setdefault(top, set())
            (members.add if there else members.discard)(key)
            if not members:
                del self._members[top]
            self._refresh_top(top)

    def _refresh_top(self, top: Top) -> None:
        """Let an owner be among those with its name while it has pods, or is there and could have some."""
        self._due.add(top.ref)
        owner = self._owners.get((top.kind, top.ref.namespace, top.ref.name)) if top.followed else None
        there = top in self._members or (owner is not None and owner.uid == top.uid and owner.template is not None)
        tops = self._tops.setdefault(top.ref, set())
        (tops.add if there else tops.discard)(top)
        if not tops:
            del self._tops[top.ref]

    def _touch(self, key: Key) -> None:
        attribution = self._attributions.get(key)
        if attribution is not None and attribution.top is not None:
            self._due.add(attribution.top.ref)

    def _lead(self, service: Key, gone: Iterable[str] = ()) -> None:
        """Follow where a service leads to."""
        self._due_services.add(service)
        slices = [self._slices[key] for key in self._slices_of.get(service, ())]
        facts = self._services.get(service)
        now = making.endpoint_addresses(slices) if facts is not None else set()
        before = self._spoken.pop(service, {})
        said = making.spoken_by(facts, slices) if facts is not None else {}
        if said:
            self._spoken[service] = said
        for address in {*before, *said}:
            if before.get(address) != said.get(address):
                self._touch_address(address)
        for address in set(gone) - now:
            leading = self._leading.get(address, set())
            leading.discard(service)
            if not leading:
                self._leading.pop(address, None)
        for address in now:
            self._leading.setdefault(address, set()).add(service)

    def _touch_address(self, address: str) -> None:
        for key in self._book.claimants(address):
            self._touch(key)

    # --- building

    def build(self) -> Inventory:
        """The inventory as it is now."""
        due, self._due = self._due, set()
        for ref in sorted(due):
            self._build_workload(ref)
        services, self._due_services = self._due_services, set()
        for key in services:
            self._build_service(key)
        if self._networks is None:
            self._networks = self._given or self._known_networks()
        return Inventory(
            self._trust_domain,
            self._shown_namespaces,
            self._workloads,
            self._instances,
            self._made_services,
            self._networks,
        )

    def _build_workload(self, ref: WorkloadRef) -> None:
        top = self._holder(ref)
        keys = sorted(self._members.get(top, ())) if top is not None else []
        pods = [self._pods[key] for key in keys]
        workload: Workload | None = None
        problem = unfit = ""
        if top is not None:
            owner = self._owners.get((top.kind, ref.namespace, ref.name)) if top.followed else None
            space = self._namespaces.get(ref.namespace)
            injected = space is not None and space.injected
            said = space.said if space is not None else NAMESPACE_SILENT
            spoken = self._spoken_of(pods)
            workload = workload_of(top, owner, pods, injected=injected, spoken=spoken, space=said)
            problem = identity_problem(self._trust_domain, workload, {pod.spec.account for pod in pods})
            unfit = annotation_problem(workload, said_by(owner, pods), said)
            workload = None if problem else workload
        self._problems.note(f"identity/{ref}", problem)
        self._problems.note(f"said/{ref}", unfit)
        self._put_workload(ref, workload)
        made: dict[str, Instance] = {}
        for key, pod in zip(keys, pods, strict=True):
            instance = instance_of(pod, self._book.of(key, pod), workload) if workload is not None else None
            if instance is not None:
                made[f"{key[0]}/{key[1]}"] = instance
        self._put_instances(ref, made)

    def _put_workload(self, ref: WorkloadRef, workload: Workload | None) -> None:
        before = self._workloads.get(ref)
        if workload == before:
            return
        named = self._refs_in.setdefault(ref.namespace, [])
        if workload is None:
            del self._workloads[ref]
            named.remove(ref)
            if not named:
                del self._refs_in[ref.namespace]
        else:
            self._workloads[ref] = workload
            if before is None:
                bisect.insort(named, ref)
        self._show_namespace(ref.namespace)
        if before is None or workload is None or before.labels != workload.labels:
            self._due_services |= self._services_in.get(ref.namespace, set())

    def _put_instances(self, ref: WorkloadRef, made: dict[str, Instance]) -> None:
        before = self._instances_of.pop(ref, set())
        for name in before - made.keys():
            held = self._instances.get(name)
            if held is not None and held.workload == ref:
                self._put_instance(name, held, None)
        for name, instance in made.items():
            held = self._instances.get(name)
            if held != instance:
                self._put_instance(name, held, instance)
        if made:
            self._instances_of[ref] = set(made)

    def _put_instance(self, name: str, before: Instance | None, after: Instance | None) -> None:
        old, new = (dict.fromkeys(each.addresses, each.workload) if each else {} for each in (before, after))
        for address in old:
            if self._at.get(address) is before:
                del self._at[address]
        if after is None:
            del self._instances[name]
        else:
            self._instances[name] = after
            self._at.update(dict.fromkeys(new, after))
        for address, _ in old.items() ^ new.items():
            self._due_services |= self._leading.get(address, set())

    def _holder(self, ref: WorkloadRef) -> Top | None:
        """The owner to whom the name belongs."""
        tops = self._tops.get(ref, set())
        first, *others = sorted(tops, key=self._rank) if len(tops) > 1 else tops or [None]
        problem = ""
        if first is not None and others:
            kinds = ", ".join(sorted({each.kind for each in others if each is not None}))
            problem = (
                f"{ref} is the name of a {first.kind}, which is older, and of another owner ({kinds}), whose pods are "
                "nobody's; give one of them another name"
            )
        self._problems.note(f"name/{ref}", problem)
        return first

    def _rank(self, top: Top) -> tuple[bool, str, bool, str]:
        owner = self._owners.get((top.kind, top.ref.namespace, top.ref.name))
        created = owner.created if owner is not None and owner.uid == top.uid else ""
        first = min((self._pods[key].created for key in self._members.get(top, ())), default="")
        return rank(top, created or first, first)

    def _spoken_of(self, pods: list[PodFacts]) -> Spoken:
        said: dict[tuple[int, Protocol], set[str]] = {}
        for pod in pods:
            for address in claimed(pod):  # on the node's network it has none of its own that anybody could speak of
                for service in self._leading.get(address, ()):
                    if service[0] != pod.namespace:
                        continue  # slices may name any address, and are no word of its owner's there
                    for port, name in self._spoken.get(service, {}).get(address, {}).items():
                        said.setdefault(port, set()).add(name)
        opaque = {port: OPAQUE for port, names in said.items() if OPAQUE in names}
        return {port: names.pop() for port, names in said.items() if len(names) == 1} | opaque

    def _build_service(self, key: Key) -> None:
        name, facts = f"{key[0]}/{key[1]}", self._services.get(key)
        slices = [self._slices[each] for each in sorted(self._slices_of.get(key, ()))]
        made: Service | None = None
        if facts is not None:
            found = (self._at.get(address) for address in making.endpoint_addresses(slices))
            owners = {each.workload if each is not None else None for each in found}
            made = making.service_of(facts, slices, making.owner_of(facts, owners, lambda: self._selected(facts)))
        wrong = facts.said.problem if facts is not None else ""
        self._problems.note(f"said/{name}/", f"service {name}: {wrong}" if wrong else "")
        if made is None:
            self._made_services.pop(name, None)
        elif self._made_services.get(name) != made:
            self._made_services[name] = made

    def _selected(self, facts: ServiceFacts) -> list[WorkloadRef]:
        wanted = set(facts.selector)
        return [ref for ref in self._refs_in.get(facts.namespace, ()) if wanted <= set(self._workloads[ref].labels)]

    def _show_namespace(self, name: str) -> None:
        """Show a namespace while it is there, or while anything of it is."""
        facts = self._namespaces.get(name)
        wrong = facts.said.problem if facts is not None else ""
        self._problems.note(f"said/{name}", f"namespace {name}: {wrong}" if wrong else "")
        if facts is not None:
            self._shown_namespaces[name] = Namespace(name, facts.labels)
        elif name in self._refs_in or name in self._services_in:
            self._shown_namespaces[name] = Namespace(name)
        else:
            self._shown_namespaces.pop(name, None)

    def _known_networks(self) -> tuple[str, ...]:
        ranges = [network for each in self._ranges.values() for network in each.networks]
        pods = [network for each in self._nodes.values() for network in each.networks]
        return cluster_networks([*ranges, *pods, *(at for each in self._nodes.values() for at in each.addresses)])

    # --- for people

    @property
    def problems(self) -> tuple[str, ...]:
        """What could not be attributed, and why; some of it, when it is much."""
        return self._problems.shown()

    @property
    def problem_kinds(self) -> Mapping[str, int]:
        """How many problems there are, by kind."""
        return self._problems.kinds()

    def owner_facts(self, key: OwnerKey) -> OwnerFacts | None:
        """What is known of an owner."""
        return self._owners.get(key)


def _top_of(facts: OwnerFacts) -> Top:
    return Top(WorkloadRef(facts.namespace, facts.name), facts.kind, facts.uid)


def _keep[T](held: dict[Key, T], change: Changed[T]) -> None:
    if change.after is None:
        held.pop(change.key, None)
    else:
        held[change.key] = change.after
