"""What the rest of the controller calls: compile, prove, and only then hand out.

Work is proportional to ``only``: the sides of other workloads are neither compiled nor judged, except as peers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from controller.compiler.baseline import form_of
from controller.compiler.errors import CompileError, ProofFailed
from controller.compiler.form import PolicyInput
from controller.compiler.labels import pod_selectors
from controller.compiler.networkpolicy import Manifest, fenced, policy_of
from controller.compiler.proof import Proof, compare
from controller.compiler.snapshots import snapshot_of
from graph.model import Snapshot, WorkloadRef


@dataclass(frozen=True, slots=True)
class Compiled:
    """A policy that is ready to be pushed, with its proof.

    :param snapshots: of every workload with a sidecar, version 0 and ``issued_at`` 0: the engine numbers them
    :param network_policies: by namespace and workload
    """

    snapshots: Mapping[WorkloadRef, Snapshot]
    network_policies: tuple[Manifest, ...]
    proof: Proof


def compile_policy(policy: PolicyInput, now: float = 0.0, *, only: Collection[WorkloadRef] | None = None) -> Compiled:
    """Compile snapshots and NetworkPolicies, and prove that they agree.

    :param now: seconds since the epoch; rules that expired by then are left out. 0 leaves none out
    :param only: compile these workloads alone
    :raises CompileError: when the input contradicts itself, or ``only`` names an unknown workload
    :raises ProofFailed: when they do not agree; nothing of it may be pushed
    """
    return accepted(_compiled(policy, now, only))


def accepted(compiled: Compiled) -> Compiled:
    """Let a policy through when its proof holds.

    :raises ProofFailed: when it does not
    """
    if not compiled.proof.holds:
        raise ProofFailed(
            f"the compiled policy does not say what the rules say: {'; '.join(compiled.proof.faults)}",
            remedy="report this with the output of `hedgerow policy show`; the policy before it stays in force",
        )
    return compiled


def compile_snapshots(
    policy: PolicyInput, now: float = 0.0, *, only: Collection[WorkloadRef] | None = None
) -> Mapping[WorkloadRef, Snapshot]:
    """The proved snapshots alone: see :func:`compile_policy`. Workloads without a sidecar have none."""
    return compile_policy(policy, now, only=only).snapshots


def compile_snapshot(policy: PolicyInput, ref: WorkloadRef, now: float = 0.0) -> Snapshot:
    """The proved snapshot of one workload, without work for the others: see :func:`compile_policy`.

    :raises CompileError: also when ``ref`` has no sidecar
    """
    snapshots = compile_snapshots(policy, now, only={ref})
    if ref not in snapshots:
        raise CompileError(f"{ref} has no sidecar", field="workload", remedy="only meshed workloads have snapshots")
    return snapshots[ref]


def network_policies(
    policy: PolicyInput, now: float = 0.0, *, only: Collection[WorkloadRef] | None = None
) -> list[Manifest]:
    """The proved NetworkPolicies alone, by namespace and workload: see :func:`compile_policy`."""
    return list(compile_policy(policy, now, only=only).network_policies)


def prove(policy: PolicyInput, now: float = 0.0, *, only: Collection[WorkloadRef] | None = None) -> Proof:
    """Compile and compare. What it finds is in the proof, faults too; see :func:`compile_policy` for the rest."""
    return _compiled(policy, now, only).proof


def _compiled(policy: PolicyInput, now: float, only: Collection[WorkloadRef] | None) -> Compiled:
    form = form_of(policy, now)
    listed = {ref: subject for ref, subject in form.subjects.items() if subject.listed}
    for ref in sorted(set(only or ()) - set(listed)):
        raise CompileError(f"{ref} is not in the inventory", field="workload", remedy="add it to the inventory first")
    selectors = pod_selectors(form.subjects.values())
    wanted = [subject for ref, subject in listed.items() if only is None or ref in only]
    snapshots = {subject.ref: snapshot_of(form, subject) for subject in wanted if subject.sidecar}
    # a twin's policy applies to this workload's pods too, so it is part of what has to be read
    needed = {s.ref for s in wanted} | {twin for s in wanted for twin in selectors[s.ref].twins}
    policies = {
        ref: policy_of(form, form.subjects[ref], selectors)
        for ref in sorted(needed)
        if fenced(form, form.subjects[ref])
    }
    proof = compare(form, wanted, snapshots, tuple(policies.values()), selectors)
    return Compiled(snapshots, tuple(made for ref, made in policies.items() if only is None or ref in only), proof)
