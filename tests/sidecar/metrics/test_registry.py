"""Counting is exact, and the number of series has an end."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families as read

from sidecar.metrics.registry import Bounded, Histogram, Registry


def families(registry, **how):
    return {family.name: family for family in read(b"".join(registry.pieces(**how)).decode())}


def values(family):
    return {tuple(sample.labels.values()): sample.value for sample in family.samples}


def test_a_value_belongs_to_the_first_bound_that_is_not_below_it():
    histogram = Histogram((1, 5))
    for value in (0, 1, 1.5, 5, 5.1, 100):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 2]
    assert histogram.total == pytest.approx(112.6)


def test_cells_are_kept_and_read_by_their_labels():
    registry = Registry()
    made = registry.counter("hedgerow_x_total", "X", "a")
    made.cell("one").value += 2
    made.cell("two").value += 1
    made.cell("one").value += 1
    registry.read("hedgerow_y", "Y", lambda: {("p", "q"): 4}, "a", "b")
    registry.read("hedgerow_z", "Z", lambda: 1.5)
    shown = families(registry)
    assert values(shown["hedgerow_x"]) == {("one",): 3, ("two",): 1}
    assert values(shown["hedgerow_y"]) == {("p", "q"): 4}
    assert values(shown["hedgerow_z"]) == {(): 1.5}


def test_too_many_label_sets_share_one_series_and_no_count_is_lost():
    registry = Registry()
    made = registry.counter("hedgerow_x_total", "X", "a", "b")
    for index in range(300):
        made.cell(str(index), "b").value += 1
    made.cell("7", "b").value += 1  # what was there first keeps its own
    shown = families(registry)
    counted = values(shown["hedgerow_x"])
    assert len(counted) == 257
    assert sum(counted.values()) == 301
    assert counted["7", "b"] == 2
    assert counted["overflow", "overflow"] == 44
    assert values(shown["hedgerow_metrics_folded"]) == {(): 44}


def test_bounded_folds_by_part_of_the_key():
    cells = Bounded(1, lambda key: [key], lambda key: (key[0], "rest"))
    first = cells.get(("a", 1))
    assert cells.get(("a", 1)) is first
    assert cells.get(("a", 2)) is cells.get(("a", 3)) is cells.get(("a", "rest"))
    assert cells.get(("b", 1)) is not cells.get(("a", 2))
    assert len(cells) == 3


@pytest.mark.parametrize("add", ["counter", "read"])
def test_no_two_families_have_one_name(add):
    registry = Registry()
    registry.counter("hedgerow_x_total", "X")
    again = {"counter": lambda: registry.counter("hedgerow_x_total", "X"),
             "read": lambda: registry.read("hedgerow_x_total", "X", lambda: 1)}  # fmt: skip
    with pytest.raises(ValueError, match="hedgerow_x_total would be there twice"):
        again[add]()


def test_a_counter_says_so_in_its_name():
    with pytest.raises(ValueError, match="does not end in _total"):
        Registry().counter("hedgerow_x", "X")


def test_a_long_page_is_made_in_pieces():
    registry = Registry()
    made = registry.histogram("hedgerow_h", "H", (1, 2, 3), "a")
    for index in range(200):
        made.cell(str(index)).observe(index)
    assert sum(bool(piece) for piece in registry.pieces()) > 10
