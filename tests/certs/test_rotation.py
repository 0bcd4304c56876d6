"""When certificates are renewed."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.rotation import renewal_at


@given(st.floats(0, 4e9), st.floats(1, 1e8), st.integers())
def test_renewal_is_near_the_middle_of_the_lifetime(not_before: float, lifetime: float, seed: int) -> None:
    not_after = not_before + lifetime
    at = renewal_at(not_before, not_after, Random(seed))
    assert not_before + 0.449 * lifetime <= at <= not_before + 0.551 * lifetime


def test_a_fleet_does_not_renew_at_once() -> None:
    times = [renewal_at(0, 3600, Random(seed)) for seed in range(200)]
    assert max(times) - min(times) > 300
    assert len(set(times)) == 200
    assert renewal_at(0, 3600, Random(1)) == renewal_at(0, 3600, Random(1))


@pytest.mark.parametrize("not_after", [0.0, -1.0])
def test_no_lifetime_no_renewal(not_after: float) -> None:
    with pytest.raises(ValueError, match="not_after"):
        renewal_at(0.0, not_after, Random(1))
