"""The bill of materials lists what package managers wrote down, and nothing else."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from e2e.images import sbom

STATUS = """Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.41-12
Description: C library
 continued

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1

Package: tzdata
Status: install ok installed
Architecture: all
Version: 1:2026a-0+deb13u1
"""
METADATA = "Metadata-Version: 2.4\nName: My_Package\nVersion: 1.2+local\nLicense-Expression: MIT\n\nbody\n"


@pytest.fixture
def contents(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "status").write_text(STATUS)
    (tmp_path / "site" / "my_package-1.2.dist-info").mkdir(parents=True)
    (tmp_path / "site" / "my_package-1.2.dist-info" / "METADATA").write_text(METADATA)
    return tmp_path / "status", tmp_path / "site"


def test_installed_packages_are_listed_with_their_addresses(contents: tuple[Path, Path]) -> None:
    status, site = contents

    listed = sbom.debian_packages(status) + sbom.python_packages(site)

    assert [part["purl"] for part in listed] == [
        "pkg:deb/debian/libc6@2.41-12?arch=amd64",
        "pkg:deb/debian/tzdata@1%3A2026a-0%2Bdeb13u1?arch=all",
        "pkg:pypi/my-package@1.2%2Blocal",
    ]
    assert listed[-1]["licenses"] == [{"expression": "MIT"}]


def test_the_same_contents_give_the_same_bytes(contents: tuple[Path, Path]) -> None:
    listed = sbom.debian_packages(contents[0])

    assert sbom.document("x", listed) == sbom.document("x", reversed(listed))
    assert (
        json.loads(sbom.document("x", listed))["serialNumber"] != json.loads(sbom.document("y", listed))["serialNumber"]
    )


def test_it_runs_alone_inside_a_build(contents: tuple[Path, Path]) -> None:
    status, site = contents
    command = [sys.executable, "-I", sbom.__file__, "--name", "image", "--dpkg", status, "--python", site]

    bill = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)

    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["name"] == "image"
    assert [part["name"] for part in bill["components"]] == ["libc6", "tzdata", "my-package"]


def test_a_python_that_no_package_manager_knows_is_listed_when_asked(contents: tuple[Path, Path]) -> None:
    status, site = contents
    command = [sys.executable, "-I", sbom.__file__, "--name", "image", "--dpkg", status, "--python", site]

    bill = json.loads(subprocess.run([*command, "--interpreter"], check=True, capture_output=True).stdout)

    version = platform.python_version()
    (python,) = [part for part in bill["components"] if part["purl"].startswith("pkg:generic/")]
    assert (python["type"], python["name"], python["version"]) == ("platform", "python", version)
    assert python["cpe"] == f"cpe:2.3:a:python:python:{version}:*:*:*:*:*:*:*"


def test_nothing_to_list_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("")
    command = [sys.executable, sbom.__file__, "--name", "x", "--dpkg", tmp_path / "status", "--python", tmp_path]

    done = subprocess.run(command, check=False, capture_output=True, text=True)

    assert (done.returncode, done.stdout) == (1, "")
    assert "nothing found" in done.stderr
