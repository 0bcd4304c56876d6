"""Puts the inventory together from what is kept of the cluster's objects, and again only where something changed. Pure.

What changed marks what follows from it: a pod its workload, an owner the pods below it
(:mod:`~controller.kube.inventory.membership`), an address the services that lead to it
(:mod:`~controller.kube.inventory.backends`), a namespace its workloads. :meth:`Assembly.build` makes the marked ones
anew; the rest are the same objects as before, by which the engine sees at once that they did not change.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping

from controller.inventory import Inventory
from controller.inventory.model import Namespace
from controller.kube.inventory import services as making
from controller.kube.inventory.backends import Backends, Moved
from controller.kube.inventory.membership import Membership
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
from controller.kube.inventory.owners import OwnerKey
from controller.kube.inventory.problems import Problems
from controller.kube.inventory.said import NAMESPACE_SILENT
from controller.kube.inventory.workloads import (
    annotation_problem,
    identity_problem,
    instance_of,
    said_by,
    workload_of,
)
from controller.kube.reflector import Changed, Key
from controller.memory import pack
from graph.model import Instance, Service, Workload, WorkloadRef


class Assembly:
    """:param networks: the cluster's own; empty: as its nodes and service ranges say"""

    def __init__(self, trust_domain: str, networks: tuple[str, ...] = ()) -> None:
        self._trust_domain = trust_domain
        self._given = networks
        self._problems = Problems()
        self._membership = Membership(self._problems)
        self._backends = Backends()
        self._namespaces: dict[str, NamespaceFacts] = {}
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

    # --- what changed

    def pods(self, changes: Iterable[Changed[PodFacts]]) -> None:
        self._due |= self._membership.pods(changes)

    def owners(self, changes: Iterable[Changed[OwnerFacts]]) -> None:
        self._due |= self._membership.owners(changes)

    def services(self, changes: Iterable[Changed[ServiceFacts]]) -> None:
        moved = self._backends.services(changes)
        self._follow(moved)
        for namespace in {key[0] for key in moved.services}:
            self._show_namespace(namespace)

    def slices(self, changes: Iterable[Changed[SliceFacts]]) -> None:
        self._follow(self._backends.slices(changes))

    def _follow(self, moved: Moved) -> None:
        self._due_services |= moved.services
        self._due |= self._membership.claiming(moved.addresses)

    def namespaces(self, changes: Iterable[Changed[NamespaceFacts]]) -> None:
        for each in changes:
            name = each.key[1]
            if each.after is None:
                self._namespaces.pop(name, None)
            else:
                self._namespaces[name] = each.after
            if (each.before and each.before.for_pods) != (each.after and each.after.for_pods):
                self._due |= set(self._refs_in.get(name, ()))
                self._due |= self._membership.named_in(name)
            self._show_namespace(name)

    def nodes(self, changes: Iterable[Changed[NodeFacts]]) -> None:
        for each in changes:
            _keep(self._nodes, each)
        self._networks = None

    def ranges(self, changes: Iterable[Changed[RangeFacts]]) -> None:
        for each in changes:
            _keep(self._ranges, each)
        self._networks = None

    def pack(self) -> None:
        """Much has gone: let nothing be larger than what is left."""
        self._membership.pack()
        pack(self, self._backends, self._problems)

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
        held = self._membership.holding(ref)
        pods = held.pods if held is not None else {}
        workload: Workload | None = None
        problem = unfit = ""
        if held is not None:
            space = self._namespaces.get(ref.namespace)
            injected = space is not None and space.injected
            said = space.said if space is not None else NAMESPACE_SILENT
            own = tuple(pods.values())
            spoken = self._backends.spoken_of(own)
            workload = workload_of(held.top, held.owner, own, injected=injected, spoken=spoken, space=said)
            problem = identity_problem(self._trust_domain, workload, {pod.spec.account for pod in own})
            unfit = annotation_problem(workload, said_by(held.owner, own), said)
            workload = None if problem else workload
        self._problems.note(f"name/{ref}", held.problem if held is not None else "")
        self._problems.note(f"identity/{ref}", problem)
        self._problems.note(f"said/{ref}", unfit)
        self._put_workload(ref, workload)
        made: dict[str, Instance] = {}
        for key, pod in pods.items():
            own_addresses = self._membership.addresses_of(key, pod)
            instance = instance_of(pod, own_addresses, workload) if workload is not None else None
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
            self._due_services.update(self._backends.services_in(ref.namespace))

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
            self._due_services.update(self._backends.leading(address))

    def _build_service(self, key: Key) -> None:
        name, facts, slices = f"{key[0]}/{key[1]}", self._backends.service(key), self._backends.slices_of(key)
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
        elif name in self._refs_in or self._backends.services_in(name):
            self._shown_namespaces[name] = Namespace(name)
        else:
            self._shown_namespaces.pop(name, None)

    def _known_networks(self) -> tuple[str, ...]:
        ranges = [network for each in self._ranges.values() for network in each.networks]
        pods = [network for each in self._nodes.values() for network in each.networks]
        return cluster_networks([*ranges, *pods, *(at for each in self._nodes.values() for at in each.addresses)])

    # --- for people

    @property
    def noted(self) -> Problems:
        """What could not be attributed, and why."""
        return self._problems

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
        return self._membership.owner(key)


def _keep[T](held: dict[Key, T], change: Changed[T]) -> None:
    if change.after is None:
        held.pop(change.key, None)
    else:
        held[change.key] = change.after
