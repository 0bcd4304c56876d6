"""The rules, compiled: one intermediate form (:mod:`controller.compiler.form`) gives snapshots and NetworkPolicy.

:func:`compile_policy` does all of it and proves that the two agree; the engine pushes nothing that it has not returned.
"""

from controller.compiler.baseline import baseline_rules
from controller.compiler.compiling import (
    Compiled,
    compile_policy,
    compile_snapshot,
    compile_snapshots,
    network_policies,
    prove,
)
from controller.compiler.errors import CompileError, ProofFailed
from controller.compiler.evaluate import Limit
from controller.compiler.form import PolicyInput
from controller.compiler.manifests import inventory_files, network_policy_files, to_yaml
from controller.compiler.proof import Atom, Inexpressible, Proof
from controller.compiler.snapshots import rule_id

__all__ = [
    "Atom",
    "CompileError",
    "Compiled",
    "Inexpressible",
    "Limit",
    "PolicyInput",
    "Proof",
    "ProofFailed",
    "baseline_rules",
    "compile_policy",
    "compile_snapshot",
    "compile_snapshots",
    "inventory_files",
    "network_policies",
    "network_policy_files",
    "prove",
    "rule_id",
    "to_yaml",
]
