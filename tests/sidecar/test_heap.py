"""What was there when the process had settled is not looked at again."""

from __future__ import annotations

import subprocess
import sys


def test_what_is_loaded_stays_out_of_later_collections():
    done = subprocess.run(
        [
            sys.executable, "-c",
            "import gc, sidecar.app\nfrom sidecar import heap\nbefore = len(gc.get_objects())\nheap.settle()\n"
            "print(before, gc.get_freeze_count(), len(gc.get_objects()))",
        ],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    before, frozen, left = map(int, done.stdout.split())
    assert before > 20_000
    assert frozen > before * 0.9
    assert left < 100
