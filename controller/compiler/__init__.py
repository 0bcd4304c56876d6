"""The rules, compiled: one intermediate form (:mod:`controller.compiler.form`) gives snapshots and NetworkPolicy."""

from controller.compiler.baseline import baseline_rules
from controller.compiler.errors import CompileError, ProofFailed
from controller.compiler.form import PolicyInput
from controller.compiler.snapshots import compile_snapshot, compile_snapshots, rule_id

__all__ = [
    "CompileError",
    "PolicyInput",
    "ProofFailed",
    "baseline_rules",
    "compile_snapshot",
    "compile_snapshots",
    "rule_id",
]
