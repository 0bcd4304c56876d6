"""Sizes of reads that follow what reads cost."""

from __future__ import annotations

import pytest

from sidecar.dataplane.portion import LEAST, LONG, SHORT, adapted

MOST = 262_144


def settled(seconds_a_byte: float) -> int:
    portion = MOST
    for _ in range(20):
        portion = adapted(portion, portion * seconds_a_byte, MOST)
    return portion


def test_cheap_bytes_are_read_in_the_largest_portions():
    assert settled(1e-9) == MOST


@pytest.mark.parametrize("cost", [2e-8, 1e-7])
def test_dear_bytes_are_read_in_portions_that_take_milliseconds(cost):
    portion = settled(cost)
    assert LEAST < portion < MOST
    assert portion * cost <= LONG


def test_something_is_always_read():
    assert settled(1.0) == LEAST


def test_a_portion_grows_again_and_never_beyond_its_most():
    assert adapted(LEAST, SHORT / 2, MOST) == 2 * LEAST
    assert adapted(MOST, 0.0, MOST) == MOST
    assert adapted(65_536, (SHORT + LONG) / 2, MOST) == 65_536
