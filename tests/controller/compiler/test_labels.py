"""Pod selectors pick exactly one workload, or say whom else they pick."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from controller.compiler.form import Subject
from controller.compiler.labels import pod_selectors
from controller.compiler.reading import select
from graph.model import WorkloadRef


def subjects(**labels: dict[str, str]) -> list[Subject]:
    return [
        Subject(WorkloadRef("shop", name), "default", tuple(sorted(given_labels.items())), meshed=True)
        for name, given_labels in labels.items()
    ]


def selector(name: str, **labels: dict[str, str]):
    return pod_selectors(subjects(**labels))[WorkloadRef("shop", name)]


def test_one_well_known_label_is_enough_where_it_is_unique():
    found = selector("a", a={"app": "a", "tier": "web", "zone": "1"}, b={"app": "b", "tier": "web", "zone": "1"})
    assert found.manifest() == {"matchLabels": {"app": "a"}}


def test_labels_are_added_until_they_tell_it_apart():
    found = selector("a", a={"app": "x", "tier": "web"}, b={"app": "x", "tier": "db"}, c={"app": "y", "tier": "web"})
    assert found.manifest() == {"matchLabels": {"app": "x", "tier": "web"}}


def test_a_label_that_helps_nothing_is_not_added():
    found = selector("a", a={"app": "x", "tier": "web", "zone": "1"}, b={"app": "x", "tier": "web", "zone": "2"})
    assert found.manifest() == {"matchLabels": {"app": "x", "zone": "1"}}


def test_where_all_labels_are_part_of_anothers_the_other_is_kept_out():
    found = selector("a", a={"app": "x"}, b={"app": "x", "track": "canary"})
    assert found.manifest() == {
        "matchLabels": {"app": "x"},
        "matchExpressions": [{"key": "track", "operator": "DoesNotExist"}],
    }
    assert not found.twins


def test_a_workload_without_labels_keeps_everybody_else_out():
    found = selector("a", a={}, b={"app": "b"}, c={"name": "c"})
    assert {entry["key"] for entry in found.manifest()["matchExpressions"]} == {"app", "name"}
    assert not found.twins


def test_labels_of_a_roll_out_never_count():
    volatile = {"pod-template-hash": "1", "controller-revision-hash": "2", "app.kubernetes.io/version": "3"}
    found = selector("a", a={"app": "x", **volatile}, b={"app": "x", "pod-template-hash": "9"})
    assert found.manifest() == {"matchLabels": {"app": "x"}}
    assert found.twins == (WorkloadRef("shop", "b"),)


def test_twins_know_each_other():
    found = pod_selectors(subjects(a={"app": "x"}, b={"app": "x"}, c={"app": "c"}))
    assert found[WorkloadRef("shop", "a")].twins == (WorkloadRef("shop", "b"),)
    assert found[WorkloadRef("shop", "b")].twins == (WorkloadRef("shop", "a"),)
    assert not found[WorkloadRef("shop", "c")].twins


def test_another_namespace_does_not_matter():
    here = subjects(a={"app": "x"})
    there = [Subject(WorkloadRef("ops", "a"), "default", (("app", "x"),), meshed=True)]
    assert not any(found.twins for found in pod_selectors([*here, *there]).values())


_labels = st.dictionaries(st.sampled_from(["app", "tier", "zone", "pod-template-hash"]), st.sampled_from("xyz"))


@given(st.lists(_labels, min_size=1, max_size=6))
def test_a_selector_picks_its_workload_and_its_twins_and_nobody_else(labels):
    members = subjects(**{f"w{number}": each for number, each in enumerate(labels)})
    for ref, found in pod_selectors(members).items():
        picked = {other.ref for other in members if select(found.manifest(), dict(other.labels))}
        assert picked == {ref, *found.twins}
