"""Counts roll up from 10 s to minutes to hours without being lost or doubled."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph.windows import DEFAULT_LEVELS, MAX_TOTAL, Counts, Level, Window, Windows

ONE = Counts(connections=1, bytes_sent=10)
LEVELS = (Level(10, 60), Level(60, 3600), Level(3600, 7200))
T0 = 1_700_000_400.0 - 1_700_000_400 % 3600  # the start of an hour


def windows() -> Windows[str]:
    return Windows(LEVELS)


def test_counts_add_subtract_and_compare_part_by_part() -> None:
    assert Counts(1, 2, 3) + Counts(4, 5, 6) == Counts(5, 7, 9)
    assert Counts(5, 7, 9) - Counts(4, 5, 6) == Counts(1, 2, 3)
    assert Counts(5, 1).larger(Counts(2, 4)) == Counts(5, 4)
    assert (Counts(MAX_TOTAL) + Counts(1)).connections == MAX_TOTAL


def test_counts_in_one_window_add_up() -> None:
    held = windows()
    held.add("a", T0 + 1, ONE, T0 + 2)
    held.add("a", T0 + 9.9, ONE, T0 + 9.9)
    held.add("a", T0 + 10, ONE, T0 + 10)
    held.add("b", T0, ONE, T0 + 10)
    assert held.series("a") == (
        Window("a", 10, int(T0), ONE + ONE),
        Window("a", 10, int(T0) + 10, ONE),
    )


def test_windows_roll_up_into_minutes_and_hours_and_end() -> None:
    held = windows()
    for step in range(6):
        held.add("a", T0 + 10 * step, ONE, T0 + 10 * step)
    held.drain(T0 + 119)
    assert [window.width for window in held.series("a")] == [10] * 6
    held.drain(T0 + 120)
    six = Counts(connections=6, bytes_sent=60)
    assert held.series("a") == (Window("a", 60, int(T0), six),)
    held.drain(T0 + 3600 + 3600)
    assert held.series("a") == (Window("a", 3600, int(T0), six),)
    changes = held.drain(T0 + 3600 + 7200)
    assert held.series("a") == ()
    assert changes.ended == (Window("a", 3600, int(T0), six),)


def test_late_reports_go_where_their_time_belongs() -> None:
    held = windows()
    held.drain(T0 + 500)
    held.add("a", T0 + 5, ONE, T0 + 500)
    assert held.series("a") == (Window("a", 60, int(T0), ONE),)
    held.drain(T0 + 20_000)
    held.add("a", T0 + 5, ONE, T0 + 20_000)
    assert held.series("a") == ()
    assert held.too_late == 1


def test_reports_from_the_future_count_as_now_and_a_clock_that_steps_back_changes_nothing() -> None:
    held = windows()
    held.add("a", 9e18, ONE, T0 + 5)
    assert held.series("a") == (Window("a", 10, int(T0), ONE),)
    held.drain(T0 + 5000)
    before = held.series("a")
    held.drain(T0)
    assert held.series("a") == before


def test_what_was_refused_lately_is_found_in_every_width() -> None:
    held = windows()
    refused = Counts(connections=7, denied=2)
    held.add("early", T0, refused, T0)
    held.add("a", T0 + 3000, refused, T0 + 3000)
    held.add("quiet", T0 + 3000, Counts(connections=7), T0 + 3000)
    held.add("a", T0 + 7199, refused, T0 + 7199)
    assert {window.width for window in held.series("a")} == {10, 60}
    assert held.denied(T0 + 7200 - 3600) == {"a": 2}
    assert held.denied(T0 + 60) == {"a": 4}
    assert held.denied(T0) == {"early": 2, "a": 4}
    assert held.denied(T0 + 7200) == {}


def test_rates_are_over_finished_windows() -> None:
    held = windows()
    for second in range(60):
        held.add("a", T0 + second, replace(ONE, denied=2), T0 + second)
    held.add("a", T0 + 61, Counts(connections=1000), T0 + 61)
    rates = held.rates("a", T0 + 62)
    assert (rates.connections, rates.denied, rates.bytes_sent) == (1.0, 2.0, 10.0)
    assert held.rates("a", T0 + 62, over=25).connections == 1.0, "rounded down to whole windows"
    assert held.rates("nobody", T0 + 62).connections == 0.0


def test_the_store_is_told_what_changed_once() -> None:
    held = windows()
    held.add("a", T0, ONE, T0)
    first = held.drain(T0 + 1)
    assert first.changed == (Window("a", 10, int(T0), ONE),)
    assert first.ended == ()
    assert held.drain(T0 + 2).changed == ()
    held.add("a", T0, ONE, T0 + 3)
    assert held.drain(T0 + 3).changed == (Window("a", 10, int(T0), ONE + ONE),), "whole, so that it can be overwritten"
    rolled = held.drain(T0 + 120)
    assert rolled.changed == (Window("a", 60, int(T0), ONE + ONE),)
    assert rolled.ended == (Window("a", 10, int(T0), ONE + ONE),)


def test_a_forgotten_key_is_ended_everywhere() -> None:
    held = windows()
    held.add("a", T0, ONE, T0)
    held.add("b", T0, ONE, T0)
    held.drain(T0 + 1)
    held.forget("a")
    assert [window.key for window in held.drain(T0 + 1).ended] == ["a"]
    assert held.series("a") == ()
    assert held.series("b")


def test_levels_have_to_nest() -> None:
    for levels in (
        (Level(10, 60), Level(25, 100)),
        (Level(10, 30), Level(60, 100)),
        (Level(60, 600), Level(10, 600)),
    ):
        with pytest.raises(ValueError, match="roll up"):
            Windows(levels)
    assert Windows(DEFAULT_LEVELS).series("a") == ()


reports = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 9_000), st.integers(0, 600), st.integers(1, 5)), max_size=40
)


@given(reports)
def test_nothing_is_lost_or_doubled_and_a_store_that_follows_is_a_mirror(
    entries: list[tuple[str, int, int, int]],
) -> None:
    held = windows()
    stored: dict[tuple[str, int, int], Counts] = {}
    sums = {"a": 0, "b": 0}
    ended = {"a": 0, "b": 0}
    now = T0
    for key, wait, late, count in entries:
        now += wait
        at, before = now - late, held.too_late
        held.add(key, at, Counts(connections=count), now)
        sums[key] += count if held.too_late == before else 0
        changes = held.drain(now)
        for window in changes.ended:
            stored.pop((window.key, window.width, window.start), None)
            ended[window.key] += window.counts.connections if window.width == 3600 else 0
        for window in changes.changed:
            stored[window.key, window.width, window.start] = window.counts
    for key in "ab":
        kept = held.total(key, 0, now + 1).connections
        assert kept + ended[key] == sums[key]
        mirror = {(w.key, w.width, w.start): w.counts for w in held.series(key)}
        assert mirror == {at: counts for at, counts in stored.items() if at[0] == key}
    again = windows()
    again.load((Window(key, width, start, counts) for (key, width, start), counts in stored.items()), now)
    assert again.series("a") == held.series("a")
    assert again.drain(now).changed == ()


def test_loading_refuses_windows_of_other_widths() -> None:
    held = windows()
    held.load([Window("a", 7, 0, ONE), Window("a", 60, 61, ONE)], T0)
    assert held.too_late == 2
    assert held.series("a") == ()
