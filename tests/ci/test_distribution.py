"""What is installed: packages pinned with hashes for every extra, and a wheel that holds our programs and the page."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = ("sidecar", "controller", "dev")


def pinned(extra: str) -> dict[str, str]:
    """The version of each package; every line of the file has to be understood."""
    text = (ROOT / "requirements" / f"{extra}.txt").read_text().replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        said = re.fullmatch(
            r"([A-Za-z0-9._-]+)(?:\[[\w,-]+\])?==([^\s;]+)( ; [^-]+?)?((?: +--hash=sha256:[0-9a-f]{64})+) *", line
        )
        assert said is not None, f"requirements/{extra}.txt: {line[:120]!r} is not pinned with hashes alone"
        found[canonicalize_name(said.group(1))] = said.group(2)
    return found


def asked_for(extra: str) -> list[Requirement]:
    """What pyproject.toml says that the extra needs, ours resolved."""
    found = []
    for written in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"][extra]]:
        requirement = Requirement(written)
        if requirement.name == PROJECT["name"]:
            found += [each for extra in requirement.extras for each in asked_for(extra)]
        else:
            found.append(requirement)
    return found


def test_the_extras_are_those_that_have_pins() -> None:
    assert set(PROJECT["optional-dependencies"]) == set(EXTRAS)
    assert {path.stem for path in (ROOT / "requirements").iterdir()} == set(EXTRAS)
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains("3.12")
    assert not Requirement(f"python{PROJECT['requires-python']}").specifier.contains("3.11.9")


@pytest.mark.parametrize("extra", EXTRAS)
def test_everything_that_an_extra_needs_is_pinned_to_what_it_may_be(extra: str) -> None:
    versions = pinned(extra)
    for requirement in asked_for(extra):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement


@pytest.mark.parametrize("extra", ["sidecar", "controller"])
def test_what_runs_is_what_was_tested(extra: str) -> None:
    assert pinned(extra).items() <= pinned("dev").items()


def test_the_wheel_holds_our_programs_and_the_page_and_nothing_else(tmp_path: Path) -> None:
    packages = ("certs", "graph", "sidecar", "controller", "hedgerow")
    source = tmp_path / "source"
    source.mkdir()
    for name in packages:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "static"))
    for name in ("tests", "e2e"):  # which are there, and do not belong to it
        (source / name).mkdir()
        (source / name / "__init__.py").touch()
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, source)
    page = source / "controller" / "web" / "static"
    (page / "assets").mkdir(parents=True)
    (page / "index.html").write_text("the page")
    (page / "assets" / "index-1.js").write_text("its program")
    build = [sys.executable, "-P", "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=source, check=True, capture_output=True, timeout=100)
    (file,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(file) as wheel:
        names = set(wheel.namelist())
        assert wheel.read("controller/web/static/index.html") == b"the page"
        assert wheel.read("controller/web/static/assets/index-1.js") == b"its program"
        (metadata,) = (name for name in names if name.endswith(".dist-info/entry_points.txt"))
        assert b"hedgerow = hedgerow.__main__:main" in wheel.read(metadata)
    information = metadata.partition("/")[0]
    assert {name.partition("/")[0] for name in names} == {*packages, information}
    written = {str(path.relative_to(source)) for name in packages for path in (source / name).rglob("*.py")}
    assert written <= names
    assert f"{information}/licenses/LICENSE" in names
