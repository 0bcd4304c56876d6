"""The proof on trial: a policy that was compiled, spoiled on purpose, and held against the rules."""

from __future__ import annotations

import copy

from controller.compiler import compile_policy
from controller.compiler.baseline import form_of
from controller.compiler.labels import pod_selectors
from controller.compiler.proof import compare
from graph.model import Selector
from tests.controller.compiler.meshes import ref

CART, FRONT = Selector.of(ref("shop/cart")), Selector.of(ref("shop/front"))


def tried(policy, change):
    """Compile, let ``change`` spoil the result, and hold it against the rules."""
    compiled = compile_policy(policy)
    snapshots, policies = dict(compiled.snapshots), copy.deepcopy(list(compiled.network_policies))
    change(snapshots, {p["metadata"]["name"]: p["spec"] for p in policies}, policies)
    form = form_of(policy)
    listed = [subject for subject in form.subjects.values() if subject.listed]
    return compare(form, listed, snapshots, policies, pod_selectors(form.subjects.values()))
