"""Which Python `make setup` takes on machines of every kind: one that runs, is new enough and can make environments.

The machines are folders of programs that say they are such a Python; the script is the one that `make` runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "find-python"

#: Ours, which says that it is another: its version, its own path, and what it lacks.
_INTERPRETER = """#!/bin/sh
exec {python} -I -c 'import sys
sys.version_info = {version!r}
sys.executable = sys.argv[1]
for missing in {lacks!r}:
    sys.modules[missing] = None
exec(sys.argv[2])' "$0" "$2"
"""
#: What pyenv puts on PATH for a version that is not selected.
_SHIM = """#!/bin/sh
echo "pyenv: $(basename "$0"): command not found" >&2
exit 127
"""


@dataclass
class Machine:
    """:ivar asked: what uv was asked for"""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("bin", "home"):
            (self.root / name).mkdir()

    def put(self, path: str, text: str) -> Path:
        program = self.root / path
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(text)
        program.chmod(0o755)
        return program

    def interpreter(self, path: str, *version: int, lacks: tuple[str, ...] = ()) -> Path:
        return self.put(path, _INTERPRETER.format(python=sys.executable, version=version, lacks=lacks))

    def uv(self, *, brings: Path | None = None) -> None:
        """A uv that installs a Python, or fails to."""
        found = f'echo "{brings}"' if brings is not None else "exit 1"
        self.put("bin/uv", f'#!/bin/sh\necho "$*" >>{self.root}/asked\ncase "$*" in "python find"*) {found};; esac\n')

    @property
    def asked(self) -> list[str]:
        file = self.root / "asked"
        return file.read_text().splitlines() if file.exists() else []

    def find(self) -> subprocess.CompletedProcess[str]:
        # what the script itself runs, and no Python of this machine
        for name in ("cat", "basename"):
            (self.root / "bin" / name).symlink_to(
                f"/bin/{name}" if Path(f"/bin/{name}").exists() else f"/usr/bin/{name}"
            )
        environment = {"PATH": str(self.root / "bin"), "HOME": str(self.root / "home"), **self.environment}
        return subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, check=False, timeout=60)

    def found(self) -> str:
        """The path that was printed, below this machine's root."""
        done = self.find()
        assert done.returncode == 0, done.stderr
        (line,) = done.stdout.splitlines()
        return str(Path(line).relative_to(self.root))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_the_first_on_the_path_that_is_new_enough(machine: Machine) -> None:
    machine.interpreter("bin/python3", 3, 11, 9)
    machine.interpreter("bin/python3.13", 3, 13, 0)
    assert machine.found() == "bin/python3.13"


def test_what_is_only_called_python3_does_when_it_is_new_enough(machine: Machine) -> None:
    machine.interpreter("bin/python3", 3, 12, 3)
    assert machine.found() == "bin/python3"


def test_a_name_that_does_not_run_is_passed_over(machine: Machine) -> None:
    machine.put("bin/python3.12", _SHIM)
    machine.put("bin/python3.13", _SHIM)
    machine.interpreter("bin/python3", 3, 14, 1)
    assert machine.found() == "bin/python3"


@pytest.mark.parametrize("missing", ["ensurepip", "venv", "ssl"])
def test_one_that_can_not_make_environments_is_passed_over(machine: Machine, missing: str) -> None:
    machine.interpreter("bin/python3.12", 3, 12, 3, lacks=(missing,))
    machine.interpreter("bin/python3.13", 3, 13, 0)
    assert machine.found() == "bin/python3.13"


@pytest.mark.parametrize(
    ("version", "number"), [("3.12.7", (3, 12, 7)), ("3.13.0", (3, 13, 0)), ("3.14.2", (3, 14, 2))]
)
def test_one_of_pyenvs_that_is_not_selected(machine: Machine, version: str, number: tuple[int, ...]) -> None:
    machine.put("bin/python3", _SHIM)
    machine.interpreter("home/.pyenv/versions/3.11.7/bin/python3", 3, 11, 7)
    machine.interpreter(f"home/.pyenv/versions/{version}/bin/python3", *number)
    assert machine.found() == f"home/.pyenv/versions/{version}/bin/python3"


def test_one_that_the_pinned_packages_were_built_for_comes_first_wherever_it_is_from(machine: Machine) -> None:
    machine.interpreter("bin/python3", 3, 14, 1)
    machine.interpreter("home/.pyenv/versions/3.12.7/bin/python3", 3, 12, 7)
    assert machine.found() == "home/.pyenv/versions/3.12.7/bin/python3"


def test_also_when_uv_has_to_bring_it(machine: Machine) -> None:
    machine.interpreter("bin/python3", 3, 14, 1)
    machine.uv(brings=machine.interpreter("uv/python3.12", 3, 12, 9))
    assert machine.found() == "uv/python3.12"


def test_pyenv_may_stand_elsewhere(machine: Machine) -> None:
    machine.interpreter("opt/pyenv/versions/3.12.1/bin/python3", 3, 12, 1)
    machine.environment["PYENV_ROOT"] = str(machine.root / "opt" / "pyenv")
    assert machine.found() == "opt/pyenv/versions/3.12.1/bin/python3"


def test_the_one_that_is_named_comes_first_also_with_a_space_in_its_path(machine: Machine) -> None:
    machine.interpreter("bin/python3.12", 3, 12, 3)
    named = machine.interpreter("my own/python", 3, 14, 0)
    machine.environment["HEDGEROW_PYTHON"] = str(named)
    assert machine.found() == "my own/python"


def test_uv_is_asked_for_one_when_there_is_none_and_only_then(machine: Machine) -> None:
    brought = machine.interpreter("uv/python3.12", 3, 12, 9)
    machine.uv(brings=brought)
    machine.interpreter("bin/python3", 3, 10, 12)
    assert machine.found() == "uv/python3.12"
    assert machine.asked == ["python install --quiet 3.12", "python find 3.12"]


def test_uv_is_left_alone_where_there_is_one(machine: Machine) -> None:
    machine.uv()
    machine.interpreter("home/.pyenv/versions/3.12.1/bin/python3", 3, 12, 1)
    machine.found()
    assert machine.asked == []


@pytest.mark.parametrize("uv", [False, True])
def test_where_there_is_none_it_says_where_to_get_one(machine: Machine, uv: bool) -> None:
    if uv:
        machine.uv()  # which has no way to the outside
    machine.interpreter("bin/python3", 3, 11, 2)
    done = machine.find()
    assert (done.returncode, done.stdout) == (1, "")
    for words in (
        "Python 3.12 or later", "apt-get install", "uv python install", "pyenv install", "HEDGEROW_PYTHON=",
    ):  # fmt: skip
        assert words in done.stderr


def test_it_runs_as_it_is_in_the_repository() -> None:
    assert os.access(SCRIPT, os.X_OK)
    done = subprocess.run(
        [SCRIPT], env={**os.environ, "HEDGEROW_PYTHON": sys.executable}, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()).exists()
