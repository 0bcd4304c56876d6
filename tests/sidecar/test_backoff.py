from __future__ import annotations

from random import Random

from sidecar.backoff import Backoff


def test_waits_grow_to_the_cap_and_are_spread():
    waits = [[backoff.failed() for _ in range(12)] for backoff in (Backoff(Random(n), 0.2, 20.0) for n in range(50))]
    for number, column in enumerate(zip(*waits, strict=True)):
        step = min(0.2 * 2**number, 20.0)
        assert all(step / 2 <= wait <= step for wait in column)
        assert len(set(column)) == len(column)


def test_success_starts_over():
    backoff = Backoff(Random(1), 0.2, 20.0)
    for _ in range(10):
        backoff.failed()
    backoff.succeeded()
    assert backoff.failed() <= 0.2
