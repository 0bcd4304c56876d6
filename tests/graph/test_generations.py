"""What changed since when, against a list of everything that ever happened."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from graph.generations import Generations


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=40), st.integers(0, 45))
def test_it_tells_what_a_whole_history_would(history: list[tuple[bool, int]], since: int) -> None:
    generations: Generations[int] = Generations(removals=3)
    last: dict[int, tuple[int, bool]] = {}
    for present, item in history:
        generation = generations.next()
        (generations.touch if present else generations.remove)(item, generation)
        last[item] = (generation, present)
    assert generations.current == len(history)
    if since > len(history):
        assert not generations.knows(since), "from before a restart"
        return
    changed = {item for item, (generation, present) in last.items() if present and generation > since}
    removed = {item for item, (generation, present) in last.items() if not present and generation > since}
    assert set(generations.changed(since)) == changed
    assert set(generations.removed(since)) == removed or not generations.knows(since)


def test_removals_beyond_the_bound_are_known_to_be_forgotten() -> None:
    generations: Generations[str] = Generations(removals=2)
    for item in "abc":
        generations.remove(item, generations.next())
    assert not generations.knows(0)
    assert generations.knows(1)
    assert list(generations.removed(1)) == ["c", "b"]


def test_items_of_one_generation_are_found_together() -> None:
    generations: Generations[str] = Generations(removals=2)
    generation = generations.next()
    for item in "ab":
        generations.touch(item, generation)
    assert set(generations.changed(0)) == {"a", "b"}
    assert list(generations.changed(generation)) == []
