"""What is applied to a namespace: what it closes, and that what others need stays open."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.compiler import PolicyInput, compile_policy, inventory_files
from controller.kube.client import FIELD_MANAGER
from controller.kube.network_policy_plan import (
    DEFAULT_DENY,
    Wanted,
    editor_of,
    foreign_of,
    made_by_us,
    normal,
    plan_of,
    rival_of,
    says,
    trimmed,
    wanted_of,
)
from controller.view import WorkloadMode
from graph.model import Instance, Mode, Origin, PortRange, Rule, Selector, Workload, WorkloadRef
from tests.networkpolicy.evaluator import Cluster

FRONT, CART, TWIN = (WorkloadRef("shop", name) for name in ("front", "cart", "twin"))
OTHER = WorkloadRef("web", "front")
CLOSED = WorkloadMode(Mode.ENFORCE, Mode.ENFORCE)
LABELS = {FRONT: "front", CART: "cart", TWIN: "cart", OTHER: "front"}


def workloads(*refs: WorkloadRef) -> tuple[Workload, ...]:
    return tuple(Workload(ref, labels=(("app", LABELS[ref]),)) for ref in refs)


def instances(*refs: WorkloadRef) -> tuple[Instance, ...]:
    return tuple(Instance(f"{ref.name}-0", ref, f"10.0.0.{index}") for index, ref in enumerate(refs, 1))


def compiled(*refs: WorkloadRef) -> tuple[Any, ...]:
    rule = Rule("learned/a", Selector.of(FRONT), Selector.of(CART), (PortRange.single(8080),), origin=Origin.LEARNED)
    policy = PolicyInput("hedgerow.test", workloads(*refs), instances(*refs), rules=(rule,))
    members = {ref for ref in refs if ref.namespace == "shop"}
    return compile_policy(policy, only=members).network_policies


def wanted(
    modes: Mapping[WorkloadRef, WorkloadMode], whole: WorkloadMode | None = CLOSED, *refs: WorkloadRef
) -> Wanted:
    given_refs = refs or (FRONT, CART, OTHER)
    return wanted_of("shop", compiled(*given_refs), workloads(*given_refs), modes, whole)


def live(manifest: Mapping[str, Any], manager: str = FIELD_MANAGER, operation: str = "Apply") -> dict[str, Any]:
    """The manifest as the API server gives it back."""
    made = copy.deepcopy(dict(manifest))
    made["metadata"]["managedFields"] = [
        {"manager": manager, "operation": operation, "fieldsV1": {"f:spec": {"f:ingress": {}}}}
    ]
    for key in ("ingress", "egress"):
        if not made["spec"].get(key):
            made["spec"].pop(key, None)  # it leaves empty lists out
    return made


def judged(found: Wanted, *refs: WorkloadRef) -> Cluster:
    given_refs = refs or (FRONT, CART, OTHER)
    files = inventory_files(workloads(*given_refs), instances(*given_refs))
    manifests = [each for text in files.values() for each in yaml.safe_load_all(text)]
    return Cluster([*manifests, *found.manifests.values()])


def test_a_namespace_that_is_closed_is_denied_as_a_whole_last() -> None:
    found = wanted({FRONT: CLOSED, CART: CLOSED})
    assert list(found.manifests) == ["hedgerow-cart", "hedgerow-front", DEFAULT_DENY]
    assert found.open == ()
    cluster = judged(found)
    assert cluster.pod_to_pod("shop/front-0", "shop/cart-0", 8080)
    assert not cluster.pod_to_pod("shop/front-0", "shop/cart-0", 8081)
    assert not cluster.pod_to_pod("web/front-0", "shop/cart-0", 8080)


@pytest.mark.parametrize("loose", [Mode.LEARN, Mode.AUDIT])
def test_a_direction_that_is_not_enforced_stays_open_and_is_said(loose: Mode) -> None:
    found = wanted({FRONT: WorkloadMode(Mode.ENFORCE, loose), CART: CLOSED})
    assert found.manifests["hedgerow-front"]["spec"]["policyTypes"] == ["Ingress"]
    assert "egress" not in found.manifests["hedgerow-front"]["spec"]
    assert found.manifests[DEFAULT_DENY]["spec"]["policyTypes"] == ["Ingress"]
    assert found.open == (f"egress of shop/front: its mode is {loose}",)
    assert judged(found).pod_to_address("shop/front-0", "192.0.2.1", 443)


def test_a_workload_that_learns_gets_no_policy() -> None:
    found = wanted({FRONT: WorkloadMode(), CART: CLOSED})
    assert list(found.manifests) == ["hedgerow-cart"]


def test_a_workload_without_a_mode_is_not_closed() -> None:
    assert "hedgerow-front" not in wanted({CART: CLOSED}).manifests


def test_one_that_learns_is_not_closed_by_the_policy_of_its_twin() -> None:
    refs = (FRONT, CART, TWIN)
    found = wanted({FRONT: CLOSED, CART: CLOSED, TWIN: WorkloadMode(Mode.LEARN, Mode.ENFORCE)}, CLOSED, *refs)
    assert found.manifests["hedgerow-cart"]["spec"]["policyTypes"] == ["Egress"]
    assert "ingress of shop/cart: shop/twin has the same labels, and is not closed" in found.open
    assert judged(found, *refs).address_to_pod("192.0.2.1", "shop/twin-0", 9)


def test_without_a_mode_for_the_namespace_nothing_denies_the_rest() -> None:
    for whole in (None, WorkloadMode()):
        assert DEFAULT_DENY not in wanted({FRONT: CLOSED, CART: CLOSED}, whole).manifests


modes = st.sampled_from(list(Mode))


@settings(max_examples=60)
@given(st.tuples(modes, modes, modes, modes, modes, modes))
def test_what_is_not_closed_is_open_and_what_is_closed_keeps_what_it_needs(drawn: tuple[Mode, ...]) -> None:
    refs = (FRONT, CART, TWIN)
    given_modes = {ref: WorkloadMode(*drawn[2 * n : 2 * n + 2]) for n, ref in enumerate(refs)}
    cluster = judged(wanted(given_modes, CLOSED, *refs), *refs)
    for ref, mode in given_modes.items():
        pod = f"{ref.namespace}/{ref.name}-0"
        if mode.inbound in (Mode.LEARN, Mode.AUDIT):
            assert cluster.address_to_pod("192.0.2.1", pod, 9)
        if mode.outbound in (Mode.LEARN, Mode.AUDIT):
            assert cluster.pod_to_address(pod, "192.0.2.1", 9)
        assert cluster.address_to_pod("192.0.2.1", pod, 15020)


def test_the_plan_is_what_is_different_and_nothing_else() -> None:
    found = wanted({FRONT: CLOSED, CART: CLOSED}).manifests
    assert plan_of(found, {}).create == ("hedgerow-cart", "hedgerow-front", DEFAULT_DENY)
    there = {name: live(manifest) for name, manifest in found.items()}
    assert plan_of(found, there).idle
    there["hedgerow-cart"]["spec"]["ingress"] = [{}]
    there["hedgerow-old"] = live(found["hedgerow-front"])
    plan = plan_of(found, there)
    assert (plan.create, plan.change, plan.delete) == ((), ("hedgerow-cart",), ("hedgerow-old",))
    assert plan_of({}, there).delete[0] == DEFAULT_DENY


@pytest.mark.parametrize("operation", ["Apply", "Update"])
def test_what_somebody_else_made_is_in_the_way_and_never_in_a_plan(operation: str) -> None:
    found = wanted({FRONT: CLOSED, CART: CLOSED}).manifests
    theirs = live(found["hedgerow-cart"], "kubectl-client-side-apply", operation)
    plan = plan_of(found, {"hedgerow-cart": theirs})
    assert plan.conflicts
    assert "hedgerow-cart" not in (*plan.create, *plan.change, *plan.delete)
    assert plan_of({}, {"hedgerow-cart": theirs}).idle, "labels alone do not make it ours"


def test_ours_without_its_labels_is_put_right_and_not_deleted() -> None:
    found = wanted({FRONT: CLOSED, CART: CLOSED}).manifests
    there = {"hedgerow-cart": live(found["hedgerow-cart"])}
    del there["hedgerow-cart"]["metadata"]["labels"]
    assert plan_of(found, there).change == ("hedgerow-cart",)
    assert plan_of({}, there).idle


def test_a_second_manager_that_applies_is_a_conflict_and_one_that_edits_is_not() -> None:
    found = wanted({FRONT: CLOSED, CART: CLOSED}).manifests
    cart = live(found["hedgerow-cart"])
    cart["metadata"]["managedFields"].append(
        {"manager": "argocd", "operation": "Update", "fieldsV1": {"f:spec": {}}, "time": "2026-01-01T00:00:00Z"}
    )
    assert editor_of(cart) == "argocd"
    assert plan_of({"hedgerow-cart": found["hedgerow-cart"]}, {"hedgerow-cart": cart}).idle
    cart["metadata"]["managedFields"][1]["operation"] = "Apply"
    (said,) = plan_of({"hedgerow-cart": found["hedgerow-cart"]}, {"hedgerow-cart": cart}).conflicts
    assert "argocd applies hedgerow-cart" in said


def test_policies_of_others_are_told_only_where_they_add_something() -> None:
    found = wanted({FRONT: CLOSED, CART: CLOSED}).manifests
    spec = {"podSelector": {"matchLabels": {"app": "cart"}}, "policyTypes": ["Ingress"]}
    deny = {"metadata": {"name": "deny", "namespace": "shop"}, "spec": spec}
    more = {"metadata": {"name": "more", "namespace": "shop"}, "spec": spec | {"ingress": [{}]}}
    members = workloads(FRONT, CART, OTHER)
    there = {"deny": deny, "more": more} | {name: live(each) for name, each in found.items()}
    assert foreign_of("shop", there, found, members) == ("more adds ingress of shop/cart",)
    assert foreign_of("shop", there, {}, members) == ()


def test_what_the_api_server_writes_into_a_policy_is_no_difference() -> None:
    manifest = {
        "metadata": {"name": "a", "namespace": "shop", "labels": {"x": "y"}},
        "spec": {"podSelector": {}, "policyTypes": ["Egress", "Ingress"], "ingress": [{"ports": [{"port": 1}]}]},
    }
    held = copy.deepcopy(manifest)
    held["metadata"]["labels"]["more"] = "of somebody"
    held["spec"] = {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"ports": [{"port": 1, "protocol": "TCP"}]}],
    }
    assert says(held, manifest)
    assert not says({**held, "metadata": {"labels": {}}}, manifest)
    assert normal({"podSelector": {}}) != normal({"podSelector": {"matchLabels": {"a": "b"}}})


def test_only_applied_fields_of_the_spec_make_it_ours() -> None:
    status = {"manager": FIELD_MANAGER, "operation": "Apply", "subresource": "status", "fieldsV1": {"f:spec": {}}}
    update = {"manager": FIELD_MANAGER, "operation": "Update", "fieldsV1": {"f:spec": {}}}
    labels = {"manager": FIELD_MANAGER, "operation": "Apply", "fieldsV1": {"f:metadata": {}}}
    assert not made_by_us({"metadata": {"managedFields": [status, update, labels]}})
    assert not made_by_us({"metadata": {}})


def test_what_is_held_of_a_policy_is_judged_as_the_whole() -> None:
    found = wanted({FRONT: CLOSED, CART: CLOSED})
    manifest = found.manifests["hedgerow-cart"]
    ours, theirs = live(manifest), live(manifest, "argocd")
    edited = live(manifest, "kubectl-edit", "Update")
    for document in (
        ours,
        theirs,
        edited,
        {**ours, "metadata": {}},
        {**ours, "metadata": {"managedFields": [None, {}]}},
    ):
        held = trimmed(document)
        whole = {**document, "metadata": {**document["metadata"], "managedFields": _dicts(document)}}
        assert (made_by_us(held), rival_of(held), editor_of(held)) == (
            made_by_us(whole),
            rival_of(whole),
            editor_of(whole),
        )
        assert held["spec"] == document["spec"]
    assert "f:ingress" not in str(trimmed(ours))
    assert "f:ingress" in str(ours), "what was given is as it was"


def _dicts(document: Mapping[str, Any]) -> list[Any]:
    return [each for each in document["metadata"].get("managedFields", ()) if isinstance(each, dict)]
