"""Sidecars under half load for a while: memory, descriptors, tasks and threads do not grow, and nothing fails.

``HEDGEROW_SOAK_SECONDS`` says how long, 600 by ``make soak``. A soak of ten minutes judges the slope of memory itself.
In a short one a single piece that the allocator takes from the kernel outweighs any leak per hour, so there its bound
is what a few such pieces make; what leaks with every connection or request passes that within seconds.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hedgerow.local.sandbox import Confinement, confinement
from tests.endurance.soak import soak

SECONDS = float(os.environ.get("HEDGEROW_SOAK_SECONDS", "12"))
#: Where the samples are written.
WRITTEN = os.environ.get("HEDGEROW_SOAK_JSON", "")
LONG = SECONDS >= 300
#: Memory may grow so fast at most, bytes an hour.
SLOPE = 1_000_000
#: And in a soak that is too short to tell so much, bytes in all: a few arenas of Python's allocator, 1 MiB each.
GROWTH = 4 << 20
#: Pieces of Python's memory for an operation that passed meanwhile: less than one is no leak of one.
BLOCKS = 0.5
#: What else is counted may grow by so much under load, which is what comes and goes with the connections in hand...
FLAT = 16
#: ...and this many descriptors from one quiet to the next, for connections to applications that are kept for a while.
DESCRIPTORS = 3

pytestmark = pytest.mark.timeout(SECONDS + 240)


async def test_nothing_grows_under_half_load(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("makes network namespaces as root")
    if confinement() is not Confinement.ROOT:
        pytest.fail("needs the sandbox of tests/sandbox_plugin.py: run pytest by its command, as root", pytrace=False)
    # The most that was in hand at once has to have been seen: the allocator keeps room for as much.
    warm_up = min(300.0, SECONDS / 2) if LONG else SECONDS / 3
    # in a run of the whole suite the machine is not ours
    report = await soak(SECONDS, warm_up=warm_up, interval=max(0.5, SECONDS / 200), most=1e9 if LONG else 250)
    report.write(Path(WRITTEN or tmp_path / "soak.json"))
    print(json.dumps({course["pod"]: course["an_hour"] for course in report.document()["courses"]}))

    assert not any(report.failed.values()), f"{report.failed}: {report.errors}"
    assert not report.errors
    assert all(report.done.values()), f"not everything was done: {report.done}"
    done = report.rate * (SECONDS - warm_up)
    for course in report.courses:
        before, after = course.quiet_before, course.quiet_after
        assert after.process == before.process, "it was another process"
        assert (after.tasks, after.threads) == (before.tasks, before.threads), course.pod
        assert after.descriptors <= before.descriptors + DESCRIPTORS, course.pod
        assert (after.connections, after.streams, after.buffered) == (0, 0, 0), course.pod
        for name in ("unexplained", "tasks", "threads", "tunnels"):
            line = course.trend(name)
            assert line.growth <= FLAT, f"{course.pod}: {name} {line}"
        resident = course.trend("resident")
        assert resident.growth < GROWTH, f"{course.pod} grew by {resident.growth / 1e6:.2f} MB"
        if LONG:
            assert resident.an_hour < SLOPE, f"{course.pod} grows by {resident.an_hour / 1e6:.2f} MB an hour"
        blocks = course.trend("blocks")
        assert blocks.growth < BLOCKS * done, f"{course.pod}: {blocks.growth:.0f} blocks in {done:.0f} operations"
