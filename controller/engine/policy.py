"""Which workloads a rule concerns, so that a changed rule costs the compilation of those policies and of no other."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import weakref
from collections.abc import Mapping
from dataclasses import asdict, replace

from controller.compiler import PolicyInput, compile_snapshots
from controller.compiler.baseline import is_dns
from controller.inventory import Inventory
from controller.view import WorkloadMode
from graph.model import EXTERNAL_NAMESPACE, Rule, Selector, Snapshot, Verdict, Workload, WorkloadRef


class PolicyIndex:
    """Rules by the workloads, and by what is outside, that they name at either end.

    The engine's rules name exactly one workload, or what is outside, at each end (:meth:`graph.model.Selector.of`). A
    network has to be marked as outside: then it concerns no workload inside it. Anything else would need another index,
    and is refused rather than overlooked.
    """

    def __init__(self) -> None:
        self._by_ref: dict[WorkloadRef, set[str]] = {}
        # not the inventory itself: it would stay, with everybody who was in it, until the next policy is compiled
        self._dns: tuple[weakref.ref[Inventory] | None, dict[WorkloadRef, Workload]] = (None, {})

    def add(self, rule: Rule) -> set[WorkloadRef]:
        """Index a rule. :return: the workloads that it names"""
        ends = {_ref_of(rule.source), _ref_of(rule.destination)}
        for ref in ends:
            self._by_ref.setdefault(ref, set()).add(rule.id)
        return {ref for ref in ends if not ref.is_external}

    def remove(self, rule: Rule) -> set[WorkloadRef]:
        """Forget a rule. :return: the workloads that it names"""
        ends = {_ref_of(rule.source), _ref_of(rule.destination)}
        for ref in ends:
            named = self._by_ref.get(ref, set())
            named.discard(rule.id)
            if not named:
                self._by_ref.pop(ref, None)
        return {ref for ref in ends if not ref.is_external}

    def concerning(self, ref: WorkloadRef, inventory: Inventory) -> set[str]:
        """Ids of the rules that name a workload, or the address of one of its instances."""
        found = set(self._by_ref.get(ref, ()))
        for instance in inventory.instances_of(ref):
            for address in instance.addresses:
                found |= self._by_ref.get(WorkloadRef.external(address), set())
        return found

    def names(self, ref: WorkloadRef) -> bool:
        """Whether some rule names it."""
        return ref in self._by_ref

    def denies(self, ref: WorkloadRef, rules: Mapping[str, Rule]) -> bool:
        """Whether some rule that names it denies."""
        return any(rules[rule_id].effect is Verdict.DENY for rule_id in self._by_ref.get(ref, ()))

    def neighbours(self, ref: WorkloadRef, rules: Mapping[str, Rule]) -> set[WorkloadRef]:
        """The workloads that some rule names together with ``ref``; their policies may hold its addresses."""
        ends = (
            end
            for rule_id in self._by_ref.get(ref, ())
            for end in (_ref_of(rules[rule_id].source), _ref_of(rules[rule_id].destination))
        )
        return {end for end in ends if not end.is_external and end != ref}

    def compile(
        self,
        wanted: WorkloadRef,
        rules: Mapping[str, Rule],
        inventory: Inventory,
        modes: Mapping[WorkloadRef, WorkloadMode],
        now: float,
    ) -> Snapshot | None:
        """The policy of one workload, as a compilation of the whole mesh would give it; None when it has none.

        What goes in is all that can matter to it: the rules that name it, both ends of those, and the DNS servers.
        (That no address has two owners, which would matter too, the inventory has made sure of.) The proof that comes
        with it then costs by the workload's neighbours, and not by the size of the mesh.

        :raises CompileError: when it can not be compiled or proved
        """
        if wanted not in inventory.workloads or not inventory.workloads[wanted].has_sidecar:
            return None
        chosen = [rules[rule_id] for rule_id in sorted(self.concerning(wanted, inventory))]
        ends = {_ref_of(end) for rule in chosen for end in (rule.source, rule.destination)} | {wanted}
        ends |= {inventory.attributed(end) for end in ends}
        workloads = {ref: inventory.workloads[ref] for ref in ends if ref in inventory.workloads}
        workloads |= self._dns_servers(inventory)
        policy = PolicyInput(
            trust_domain=inventory.trust_domain,
            networks=inventory.networks,
            workloads=tuple(workloads[ref] for ref in sorted(workloads)),
            instances=tuple(each for ref in sorted(workloads) for each in inventory.instances_of(ref)),
            modes=modes,
            rules=tuple(chosen),
        )
        return compile_snapshots(policy, now, only={wanted})[wanted]

    def _dns_servers(self, inventory: Inventory) -> dict[WorkloadRef, Workload]:
        of, found = self._dns
        if of is None or of() is not inventory:
            found = {ref: each for ref, each in inventory.workloads.items() if is_dns(ref, each.labels)}
            self._dns = (weakref.ref(inventory), found)
        return found


def concerns_everybody(before: Workload | None, after: Workload | None) -> bool:
    """Whether a change of this workload may change every policy: every workload may ask the DNS servers."""
    return any(each is not None and is_dns(each.ref, each.labels) for each in (before, after))


def same_policy(one: Snapshot, other: Snapshot) -> bool:
    """Whether two snapshots say the same, whatever their versions, times and evidence."""
    return _content(one) == _content(other)


def digest_of(snapshot: Snapshot) -> str:
    """A hash of what a snapshot says, the same over restarts."""
    text = json.dumps(asdict(_content(snapshot)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _content(snapshot: Snapshot) -> Snapshot:
    rules = tuple(replace(rule, evidence=()) if rule.evidence else rule for rule in snapshot.rules)
    return replace(snapshot, version=0, issued_at=0.0, rules=rules)


def _ref_of(selector: Selector) -> WorkloadRef:
    if selector.host and not selector.cidr:
        return WorkloadRef(EXTERNAL_NAMESPACE, selector.host)
    if selector.cidr and not selector.by_identity and not selector.host:
        network = ipaddress.ip_network(selector.cidr)
        if network.num_addresses == 1:
            return WorkloadRef.external(str(network.network_address))
        if selector.outside:
            return WorkloadRef(EXTERNAL_NAMESPACE, selector.cidr)
    if selector.workload and not selector.service_account and not selector.cidr:
        return WorkloadRef(selector.namespace, selector.workload)
    raise ValueError(f"the selector {selector} names neither one workload nor what is outside")
