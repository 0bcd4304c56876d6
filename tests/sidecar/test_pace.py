"""Work that others ask for takes its share of the time and no more."""

from __future__ import annotations

import pytest

from sidecar.pace import Pace


def test_a_burst_needs_no_rest():
    pace = Pace(0.2, 1.0)
    assert [pace.spent(0.25, 7.0) for _ in range(4)] == [0.0] * 4
    assert pace.spent(0.25, 7.0) == pytest.approx(1.25)


def test_what_keeps_to_its_share_never_rests():
    pace = Pace(0.2, 1.0)
    assert all(pace.spent(0.2, now) == 0 for now in range(100))


@pytest.mark.parametrize("work", [0.001, 0.17, 3.0])
def test_in_the_long_run_it_is_the_share(work):
    pace, now, worked = Pace(0.2, 1.0), 0.0, 0.0
    for _ in range(10_000):
        now += work
        worked += work
        now += pace.spent(work, now)
    assert worked / now == pytest.approx(0.2, rel=0.01) or worked <= 1.0 + 0.2 * now + work


def test_a_burst_is_earned_again_and_not_more_than_once():
    pace = Pace(0.5, 1.0)
    assert pace.spent(1.0, 0.0) == 0
    assert pace.spent(1.0, 1e6) == 0
    assert pace.spent(1.0, 1e6) == pytest.approx(2.0)


def test_a_clock_that_goes_back_earns_nothing():
    pace = Pace(0.5, 1.0)
    pace.spent(1.0, 10.0)
    assert pace.spent(0.5, 5.0) == pytest.approx(1.0)
