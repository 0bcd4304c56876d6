"""A frozen map behaves as a dictionary does, and no copy changes another."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.frozen_map import FrozenMap

KEYS = st.integers(0, 40) | st.sampled_from([4096 * n for n in range(20)])  # the latter share a bucket
STEPS = st.lists(st.tuples(st.dictionaries(KEYS, st.integers(), max_size=6), st.lists(KEYS, max_size=6)), max_size=12)


@given(STEPS)
def test_every_copy_equals_a_dictionary_that_went_the_same_way(steps: list[tuple[dict[int, int], list[int]]]) -> None:
    made: list[tuple[FrozenMap[int, int], dict[int, int]]] = [(FrozenMap(), {})]
    for changes, removed in steps:
        frozen, plain = made[-1]
        after = {key: value for key, value in {**plain, **changes}.items() if key not in removed}
        made.append((frozen.updated(changes, removed), after))
    for frozen, plain in made:
        assert dict(frozen) == plain
        assert len(frozen) == len(plain)
        assert all(key in frozen and frozen[key] == value for key, value in plain.items())


def test_an_unchanged_copy_is_the_map_itself() -> None:
    frozen = FrozenMap({"a": 1})
    assert frozen.updated({}) is frozen


def test_buckets_that_did_not_change_are_shared() -> None:
    frozen = FrozenMap({key: object() for key in range(100_000)})
    changed = frozen.updated({5: object()})
    fresh = sum(1 for mine, theirs in zip(frozen._root, changed._root, strict=True) if mine is not theirs)
    assert fresh == 1


def test_a_missing_key_is_a_key_error() -> None:
    frozen = FrozenMap({"a": 1})
    with pytest.raises(KeyError):
        frozen["b"]
    assert frozen.get("b") is None
    assert "b" not in frozen


def test_a_value_of_none_can_be_removed() -> None:
    frozen: FrozenMap[str, None] = FrozenMap({"a": None, "b": None})
    assert dict(frozen.updated({}, ["a", "a", "z"])) == {"b": None}
    assert len(frozen.updated({}, ["a", "a", "z"])) == 1


def test_what_was_emptied_takes_no_memory() -> None:
    keys = dict.fromkeys(range(0, 9000, 3), 1)
    full = FrozenMap(keys)
    one = full.updated({}, [key for key in keys if key])
    assert one._root == FrozenMap({0: 1})._root
    assert one.updated({}, [0])._root == FrozenMap()._root
    assert dict(full) == keys
