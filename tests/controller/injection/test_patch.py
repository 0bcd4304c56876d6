"""JSON Patch: applied by an implementation of RFC 6902 that is written here, it makes the one document of the other."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from controller.injection.patch import diff
from tests.controller.injection.pods import injected, pod

SCALARS = st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from([0.0, 1.0, "", "a", "name"])
NAMES = st.sampled_from(["a", "b/c", "d~e", "name", "", "0"])
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(NAMES, inner, max_size=4)
        | st.lists(st.fixed_dictionaries({"name": st.sampled_from("abcd"), "x": inner}), max_size=4)
    ),
    max_leaves=20,
)


def applied(document: Any, operations: list[dict[str, Any]]) -> Any:
    """RFC 6902, as far as ``add``, ``remove`` and ``replace`` go."""
    box = {"": copy.deepcopy(document)}
    for operation in operations:
        parts = ["", *(part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:])]
        parent: Any = box
        for part in parts[:-1]:
            parent = parent[int(part)] if isinstance(parent, list) else parent[part]
        last = parts[-1]
        match operation["op"], parent:
            case "add", list():
                assert 0 <= int(last) <= len(parent)
                parent.insert(int(last), operation["value"])
            case "add", dict():
                parent[last] = operation["value"]
            case "replace", list():
                parent[int(last)] = operation["value"]
            case "replace", dict():
                assert last in parent
                parent[last] = operation["value"]
            case "remove", dict():
                del parent[last]
            case other:
                raise AssertionError(other)
    return box[""]


@given(DOCUMENTS, DOCUMENTS)
def test_it_leads_from_any_document_to_any_other(before: Any, after: Any) -> None:
    made = applied(before, list(diff(before, after)))
    assert json.dumps(made, sort_keys=True) == json.dumps(after, sort_keys=True)


@given(DOCUMENTS)
def test_equal_documents_need_no_operation(document: Any) -> None:
    assert not list(diff(document, copy.deepcopy(document)))


def test_an_injection_does_not_send_the_pod_back() -> None:
    env = [{"name": f"V{n}", "value": "x" * 1000} for n in range(1000)]
    before = pod({"name": "app", "image": "i", "env": env, "livenessProbe": {"tcpSocket": {"port": 1}}})
    operations = list(diff(before, injected(before).pod))
    assert applied(before, operations) == injected(before).pod
    assert len(json.dumps(operations)) < 20_000


def test_a_container_in_between_is_put_there() -> None:
    before = [{"name": "a", "x": 1}, {"name": "b"}]
    after = [{"name": "n"}, {"name": "a", "x": 2}, {"name": "m"}, {"name": "b"}]
    assert list(diff(before, after)) == [
        {"op": "add", "path": "/0", "value": {"name": "n"}},
        {"op": "replace", "path": "/1/x", "value": 2},
        {"op": "add", "path": "/2", "value": {"name": "m"}},
    ]
