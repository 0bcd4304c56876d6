"""What our sidecars run with in a benchmark is said, and is this Python where the image's cannot be had."""

from __future__ import annotations

import asyncio
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from bench.dataplane.interpreter import Interpreter, of_image, own
from e2e.harness.errors import HarnessError
from e2e.images import build
from hedgerow.local import views
from hedgerow.local.sandbox import Confinement, confinement

in_roots_sandbox = pytest.mark.skipif(
    confinement() is not Confinement.ROOT, reason="needs the sandbox that the test session is started in as root"
)


def test_the_one_that_runs_the_benchmark():
    python = own("for a test")
    assert python.command == sys.executable
    assert python.version == f"{platform.python_version()} (for a test)"
    done = subprocess.run(["sh", "-e", "-c", python.mounts], check=False)
    assert done.returncode == 0  # nothing is mounted


def test_where_the_image_cannot_be_had_it_is_said_and_the_benchmark_goes_on(monkeypatch: pytest.MonkeyPatch):
    def missing(*_: object) -> tuple[Path, Path]:
        raise HarnessError("debootstrap is not installed", "run: apt-get install debootstrap")

    monkeypatch.setattr(build, "layers", missing)
    said: list[str] = []
    python = of_image(Path(__file__).parents[2], said.append)
    assert python.layers is None
    assert "cannot be had" in python.version
    (line,) = said
    assert "debootstrap is not installed" in line
    assert "apt-get install debootstrap" in line


@in_roots_sandbox
def test_the_images_is_in_its_place_in_a_view_and_nowhere_else(tmp_path: Path):
    base, packages = tmp_path / "the base", tmp_path / "packages"
    (packages / "opt" / "hedgerow" / "bin").mkdir(parents=True)
    (packages / "opt" / "hedgerow" / "bin" / "python").write_text("#!/bin/sh\necho the image says $1\n")
    (packages / "opt" / "hedgerow" / "bin" / "python").chmod(0o755)
    base.mkdir()
    (base / "usr").symlink_to("/usr")
    python = Interpreter((base, packages), "as in the image")
    view = asyncio.run(views.make_view(python.mounts))
    try:
        done = subprocess.run(
            ["nsenter", f"--mount={view.path}", python.command, "hello"], capture_output=True, text=True, check=True
        )
    finally:
        view.close()
    assert done.stdout == "the image says hello\n"
    assert not Path(python.command).exists()
