"""The sampler finds where processor time goes, and its file reads as a table."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from bench.dataplane.profiling import render
from bench.dataplane.sampler import Sampler


def busy(seconds: float) -> int:
    """Use that much processor time."""
    end = time.process_time() + seconds
    turns = 0
    while time.process_time() < end:
        turns += 1
    return turns


def test_the_busy_function_is_on_top(tmp_path: Path) -> None:
    sampler = Sampler()
    sampler.start()
    try:
        busy(0.2)
    finally:
        sampler.write(tmp_path / "profile.json")
    found = json.loads((tmp_path / "profile.json").read_text())
    total = sum(each[0] for each in found["lines"])
    assert sum(each[0] for each in found["lines"] if each[3] == "busy") > total / 2
    within = {(file, function): count for count, file, function in found["within"]}
    assert within[__file__, "test_the_busy_function_is_on_top"] > total / 2
    text = render(tmp_path / "profile.json")
    assert text.startswith(f"{total} samples")
    assert "busy: while time.process_time() < end" in text or "busy: turns += 1" in text


def test_a_function_counts_once_a_sample_however_often_it_is_on_the_stack() -> None:
    sampler = Sampler()

    def recurse(depth: int) -> None:
        if depth:
            recurse(depth - 1)
        else:
            sampler._sample(0, sys._getframe())

    recurse(5)
    assert set(sampler.within.values()) == {1}
    assert sampler.lines.total() == 1
