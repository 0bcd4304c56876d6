"""What people are shown of problems when there are more than can be shown."""

from __future__ import annotations

from controller.kube.inventory.problems import MAX_PROBLEMS, Problems


def test_one_namespace_hides_no_other():
    problems = Problems()
    for index in range(10 * MAX_PROBLEMS):
        problems.note(f"name/aaa/{index:04}", f"of aaa: {index}")
    for space in ("shop", "web"):
        problems.note(f"said/{space}", f"of {space} itself")
        problems.note(f"pod/{space}/cart-0", f"of {space}")
    shown = problems.shown()
    assert len(shown) == MAX_PROBLEMS
    assert {"of shop", "of shop itself", "of web", "of web itself"} <= set(shown)
    assert sum(each.startswith("of aaa") for each in shown) == MAX_PROBLEMS - 4, "no place is left empty"
    assert problems.kinds() == {"name": 10 * MAX_PROBLEMS, "said": 2, "pod": 2}


def test_many_namespaces_have_as_many_each():
    problems = Problems()
    for space in range(30):
        for index in range(space + 1):
            problems.note(f"pod/{space:02}/{index}", f"{space:02}/{index}")
    shown = [each.partition("/")[0] for each in problems.shown()]
    assert len(shown) == MAX_PROBLEMS
    assert all(shown.count(f"{space:02}") == min(space + 1, 4) for space in range(10))
    assert max(shown.count(each) for each in shown) <= 5


def test_those_of_several_are_shared_together():
    many, other = Problems(), Problems()
    for index in range(MAX_PROBLEMS):
        many.note(f"pod/aaa/{index}", str(index))
    other.note("network-policies/shop", "not applied")
    assert "not applied" in many.shown(other)
    assert len(many.shown(other)) == MAX_PROBLEMS
    other.note("network-policies/shop", "")
    assert many.shown(other) == many.shown()
    assert list(other) == []
