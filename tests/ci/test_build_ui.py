"""When `make setup` builds the page, and when it says what is missing and goes on."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "build-ui"
BUILT = ["ci --no-audit --no-fund --loglevel=error", "run --silent build"]


class Machine:
    """A checkout beside programs of its own.

    :param node: what ``node --version`` says; None: there is none
    :param npm: with what npm ends; None: there is none
    """

    def __init__(self, root: Path, node: str | None, npm: int | None = 0) -> None:
        self._bin, self._asked = root / "bin", root / "asked"
        for folder in ("bin", ".ci", "ui"):
            (root / folder).mkdir()
        self._script = shutil.copy(SCRIPT, root / ".ci" / "build-ui")
        for name in ("dirname", "mkdir", "touch"):
            program = shutil.which(name)
            assert program is not None
            (self._bin / name).symlink_to(program)
        #: By which make knows that the page is built.
        self.marker = root / "controller" / "web" / "static" / ".built"
        if node is not None:
            self._put("node", f"echo {node}")
        if npm is not None:
            self._put("npm", f'echo "$(pwd): $*" >>{self._asked}; exit {npm}')
        self._ui = root / "ui"

    def _put(self, name: str, script: str) -> None:
        program = self._bin / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    def build(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._script], env={"PATH": str(self._bin)}, capture_output=True, text=True, check=False, timeout=60
        )

    @property
    def asked(self) -> list[str]:
        """What npm was asked for, in the page's folder."""
        lines = self._asked.read_text().splitlines() if self._asked.exists() else []
        return [line.removeprefix(f"{self._ui}: ") for line in lines]


@pytest.mark.parametrize("version", ["v20.19.0", "v20.20.2", "v22.12.0", "v23.0.0", "v24.1.0", "v100.0.0"])
def test_it_is_built_where_node_is_new_enough(tmp_path: Path, version: str) -> None:
    machine = Machine(tmp_path, version)
    done = machine.build()
    assert (done.returncode, done.stderr, machine.asked) == (0, "", BUILT)
    assert machine.marker.exists()


@pytest.mark.parametrize("version", ["v18.20.4", "v20.18.9", "v21.7.3", "v22.11.0", "nothing", "v20", ""])
def test_an_older_one_is_named_and_everything_else_goes_on(tmp_path: Path, version: str) -> None:
    machine = Machine(tmp_path, version)
    done = machine.build()
    assert (done.returncode, done.stdout, machine.asked) == (0, "", [])
    assert not machine.marker.exists(), "make would not build it when there is a newer one"
    assert done.stderr.startswith("The web page is not built: Node.js ")
    assert version in done.stderr
    assert "20.19" in done.stderr


@pytest.mark.parametrize(("node", "npm", "missing"), [(None, 0, "Node.js"), ("v20.19.0", None, "npm")])
def test_what_is_missing_is_said(tmp_path: Path, node: str | None, npm: int | None, missing: str) -> None:
    machine = Machine(tmp_path, node, npm)
    done = machine.build()
    assert (done.returncode, machine.asked) == (0, [])
    assert f"not built: {missing} is missing" in done.stderr
    assert "https://nodejs.org" in done.stderr


def test_a_build_that_fails_fails(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "v22.12.0", npm=3)
    assert machine.build().returncode == 3
    assert machine.asked == BUILT[:1]
