"""What every workload needs before anything is learned, and where the cluster keeps it.

- DNS, UDP and TCP 53: to the workloads of ``kube-system`` labelled ``k8s-app: kube-dns``, and to the resolvers that the
  input names. Not to anybody on port 53: that would be a way out for data.
- Kubelet probes, 15020 and 15021, into workloads with a sidecar, from anywhere: nodes are not in the inventory.
- The control plane, 15012 and 15013, from workloads with a sidecar. Essential: it holds in quarantine too.

In quarantine only the last one holds; DNS does not, because it can carry data out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from controller.compiler.form import Form, PolicyInput, Subject
from graph.model import Origin, PortRange, Protocol, Rule, Selector, WorkloadRef

CONTROL_PLANE = WorkloadRef("hedgerow-system", "hedgerow-controller")
CLUSTER_DNS = WorkloadRef("kube-system", "kube-dns")
DNS_LABEL = ("k8s-app", "kube-dns")
NAME_LABEL = "app.kubernetes.io/name"

DNS_PORT = PortRange.single(53)
PROBE_PORTS = PortRange(15020, 15021)
CONTROL_PORTS = PortRange(15012, 15013)


def form_of(policy: PolicyInput, now: float = 0.0) -> Form:
    """The intermediate form, with cluster DNS and the controller in it even where the inventory does not list them.

    :raises CompileError: when the input contradicts itself
    """
    listed = {workload.ref for workload in policy.workloads}
    controller = policy.control_plane or CONTROL_PLANE
    known = []
    if controller not in listed:
        known.append(_by_convention(controller, (NAME_LABEL, controller.name)))
    if not any(is_dns(workload.ref, workload.labels) for workload in policy.workloads) and CLUSTER_DNS not in listed:
        known.append(_by_convention(CLUSTER_DNS, DNS_LABEL))
    return Form(policy, now, known=known)


def _by_convention(ref: WorkloadRef, label: tuple[str, str]) -> Subject:
    return Subject(ref, "", (label,), meshed=False, listed=False)


def is_dns(ref: WorkloadRef, labels: Iterable[tuple[str, str]]) -> bool:
    """Whether a workload is the cluster's DNS."""
    return ref.namespace == CLUSTER_DNS.namespace and DNS_LABEL in labels


def baseline_of(form: Form, subject: Subject) -> tuple[Rule, ...]:
    """The baseline rules of one workload, by id."""
    rules = [*_dns(form, subject)]
    if subject.sidecar:
        controller = form.input.control_plane or CONTROL_PLANE
        rules.append(
            Rule(
                "baseline/control-plane",
                Selector.of(subject.ref),
                Selector.of(controller),
                (CONTROL_PORTS,),
                origin=Origin.BASELINE,
                owner="hedgerow",
                reason="certificates, policy and telemetry",
                essential=True,
            )
        )
        rules.append(
            Rule(
                "baseline/probes",
                Selector(),
                Selector.of(subject.ref),
                (PROBE_PORTS,),
                origin=Origin.BASELINE,
                owner="hedgerow",
                reason="probes of the kubelet, metrics",
            )
        )
    return tuple(sorted(rules, key=lambda rule: rule.id))


def _dns(form: Form, subject: Subject) -> list[Rule]:
    taken = {address for other in form.subjects.values() for address in other.addresses}
    servers = [s for s in form.subjects.values() if is_dns(s.ref, s.labels)]
    targets = [(str(server.ref), Selector.of(server.ref)) for server in servers]
    targets += [(name, selector) for name, selector in _resolvers(form.input) if name not in taken]
    rules = []
    for name, destination in targets:
        udp = Rule(
            f"baseline/dns/udp/{name}",
            Selector.of(subject.ref),
            destination,
            (DNS_PORT,),
            Protocol.UDP,
            origin=Origin.BASELINE,
            owner="hedgerow",
            reason="names",
        )
        rules += [udp, replace(udp, id=f"baseline/dns/tcp/{name}", protocol=Protocol.TCP)]
    if any(server.ref == subject.ref for server in servers):  # and the server takes what everybody may ask
        rules += [
            replace(rule, id=rule.id.replace("baseline/dns/", "baseline/dns-server/"), source=Selector())
            for rule in rules
            if rule.destination == Selector.of(subject.ref)
        ]
    return rules


def _resolvers(policy: PolicyInput) -> list[tuple[str, Selector]]:
    """The resolvers outside the inventory. :raises graph.errors.InvalidValue: when one is not an address"""
    refs = sorted({WorkloadRef.external(text, field="resolvers") for text in policy.resolvers})
    return [(ref.name, Selector.of(ref)) for ref in refs]


def baseline_rules(policy: PolicyInput) -> tuple[Rule, ...]:
    """Every baseline rule of the mesh. Each holds for one workload, so the same id stands for one rule a workload.

    :returns: in the order of the workloads, then by id
    """
    form = form_of(policy)
    return tuple(rule for subject in form.subjects.values() if subject.listed for rule in baseline_of(form, subject))
