"""Every fuzz target for a few seconds, guided by coverage; and the proof that a fault would be found and shown.

``python -m tests.fuzz TARGET --seconds N`` runs one for longer.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.target import Target
from tests.fuzz.targets import PLANTED, TARGETS

ROOT = Path(__file__).resolve().parents[2]

pytest.importorskip("atheris", reason="atheris is not installed: pip install atheris (wheels for Linux on x86-64)")


def fuzz(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.fuzz", name, *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)


def found(result: subprocess.CompletedProcess[str]) -> str:
    """The exception and the input, without what libFuzzer says of its progress."""
    lines = (result.stdout + result.stderr).splitlines()
    return "\n".join(line for line in lines if not line.startswith(("INFO:", "#", "WARNING:", '"')))[-6000:]


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_the_seeds_keep_every_promise(target: Target):
    seeds = list(target.seeds())
    assert len(seeds) == len(set(seeds)) >= 4
    assert all(len(seed) <= target.longest for seed in seeds)
    for seed in (*seeds, b"", b"\0", b"\xff"):
        target.check(seed)


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_is_found_in_a_few_seconds(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    result = fuzz(name, "--seconds", "4", "--runs", "20000", "--seed", "7")
    assert result.returncode == 0, found(result)
    done = [line for line in result.stderr.splitlines() if line.startswith("stat::number_of_executed_units:")]
    assert done, found(result)
    assert int(done[0].split()[1]) > 100, "it hardly ran"
    assert not list(tmp_path.iterdir()), "it left something behind"


def test_a_fault_is_found_by_coverage_and_shown_with_its_input():
    result = fuzz(PLANTED.name, "--seconds", "60", "--seed", "7")
    assert result.returncode != 0
    assert "the planted fault" in found(result)
    (line,) = [line for line in result.stderr.splitlines() if "failed on --input " in line]
    data = bytes.fromhex(line.rpartition(" ")[2])
    assert data.startswith(b"HEDG")
    again = fuzz(PLANTED.name, "--input", data.hex())
    assert again.returncode == 1
    assert "the planted fault" in again.stderr
