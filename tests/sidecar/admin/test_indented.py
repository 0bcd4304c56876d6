"""The administration's JSON reads as Python's own would write it, and leaves no garbage behind."""

from __future__ import annotations

import gc
import json

from hypothesis import given
from hypothesis import strategies as st

from sidecar.admin.indented import indented

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.ip_addresses()
DOCUMENTS = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text(), inner)
        | st.dictionaries(st.integers(), inner)
    ),
)


@given(DOCUMENTS)
def test_it_is_what_python_writes(document):
    assert indented(document) == json.dumps(document, indent=2, sort_keys=True, default=str)


def test_nothing_is_left_for_the_collector():
    document = {"pods": [{"name": "a", "numbers": [1, 2.5, None], "empty": {}}, []]}
    indented(document)
    gc.collect()
    gc.disable()
    try:
        for _ in range(100):
            indented(document)
        assert gc.collect() == 0
    finally:
        gc.enable()
