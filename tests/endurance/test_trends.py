"""The line that the soak judges by."""

from __future__ import annotations

import math
import random

import pytest

from tests.endurance.trends import trend


def test_a_line_is_found_again():
    found = trend([0, 1, 2, 3, 10], [5, 7, 9, 11, 25])
    assert (found.slope, found.seconds, found.growth) == (pytest.approx(2), 10, pytest.approx(20))
    assert found.an_hour == pytest.approx(7200)
    assert found.error == pytest.approx(0, abs=1e-9)


def test_noise_is_told_from_growth():
    noise = random.Random(1)
    at = [float(second) for second in range(600)]
    flat = trend(at, [100 + noise.gauss(0, 5) for _ in at])
    assert abs(flat.slope) < 4 * flat.error
    growing = trend(at, [100 + 0.05 * when + noise.gauss(0, 5) for when in at])
    assert growing.slope > 10 * growing.error
    assert growing.slope == pytest.approx(0.05, rel=0.2)


def test_two_samples_make_a_line_of_which_nothing_is_sure():
    assert trend([1, 3], [4, 8]).slope == 2
    assert trend([1, 3], [4, 8]).error == math.inf


@pytest.mark.parametrize(("at", "values"), [([], []), ([1], [1]), ([1, 1], [1, 2]), ([1, 2], [1])])
def test_fewer_are_refused(at, values):
    with pytest.raises(ValueError, match="two samples"):
        trend(at, values)
