"""What comes out of the Dockerfile is what the other suites have tested: the images of :mod:`e2e.images`."""

from __future__ import annotations

import hashlib
import json
import re
import stat
from pathlib import Path

from e2e.dockerfile.conftest import Pair
from e2e.dockerfile.unpacked import Unpacked
from e2e.images import debian, sbom
from graph.version import VERSION

SITE = Path("opt/hedgerow/lib") / debian.PYTHON / "site-packages"
OURS = ("certs", "graph", "sidecar", "controller", "hedgerow")
PAGE = SITE / "controller" / "web" / "static"
STATUS = Path("var/lib/dpkg/status")
#: By the charts and by what is injected, beside the entrypoint.
STARTED = {
    "controller": [["hedgerow", "controller"], ["hedgerow", "injector"]],
    "sidecar": [["python", "-m", "sidecar", "capture"]],
}
#: Debian's Python and what only it needs; the Dockerfile's Python image has its own.
DEBIANS_PYTHON = re.compile(r"(?:lib)?python3.*|media-types")


def distributions(image: Unpacked) -> dict[str, str]:
    return {str(part["name"]): str(part["version"]) for part in sbom.python_packages(image.root / SITE)}


def packages(image: Unpacked) -> dict[str, str]:
    return {str(part["name"]): str(part["version"]) for part in sbom.debian_packages(image.root / STATUS)}


def digests(image: Unpacked) -> dict[str, str]:
    """Our own modules and data; the page, which each image has built by itself, apart."""
    found = {}
    for name in OURS:
        for path in image.files(str(SITE / name)):
            if path.suffix != ".pyc" and not path.is_relative_to(PAGE):
                found[str(path)] = hashlib.sha256((image.root / path).read_bytes()).hexdigest()
    return found


def test_it_starts_as_its_archive_does(pair: Pair) -> None:
    built, archive = pair.built.settings, pair.archive.settings

    assert built["User"] == archive["User"] == f"{debian.UID}:{debian.UID}"
    assert built["Entrypoint"] == archive["Entrypoint"]
    assert not built["Cmd"]
    assert not built.get("ExposedPorts")
    path = "PATH=/opt/hedgerow/bin:"
    assert [value[: len(path)] for value in built["Env"] if value.startswith("PATH=")] == [path]
    assert {value for value in archive["Env"] if not value.startswith("PATH=")} <= set(built["Env"])
    assert archive["Labels"].items() <= built["Labels"].items()


def test_its_labels_say_what_it_is(pair: Pair) -> None:
    labels = pair.built.settings["Labels"]

    assert labels["org.opencontainers.image.title"] == f"hedgerow-{pair.target}"
    assert labels["org.opencontainers.image.version"] == VERSION
    assert re.fullmatch(r"[0-9a-f]{40}", labels["org.opencontainers.image.revision"])


def test_its_program_runs_as_a_user_without_rights(pair: Pair) -> None:
    helped = pair.built.start("--help")
    status = pair.built.run(["cat", "/proc/self/status"])

    assert helped.returncode == 0, helped.stderr
    assert helped.stdout.startswith(f"usage: {pair.target} ")
    assert f"Uid:\t{debian.UID}\t{debian.UID}\t{debian.UID}\t{debian.UID}\n" in status.stdout
    assert f"Gid:\t{debian.UID}\t{debian.UID}\t{debian.UID}\t{debian.UID}\n" in status.stdout
    assert "CapEff:\t0000000000000000\n" in status.stdout


def test_what_pods_start_in_it_starts(pair: Pair) -> None:
    for command in STARTED[pair.target]:
        helped = pair.built.run([*command, "--help"])
        assert helped.returncode == 0, helped.stderr
        assert "usage: " in helped.stdout.lower()


def test_what_captures_traffic_is_there(pair: Pair) -> None:
    assert pair.built.run(["nft", "--version"]).stdout.startswith("nftables v")
    assert "nf_tables" in pair.built.run(["iptables-restore", "--version"]).stdout


def test_it_holds_the_same_packages_of_python(pair: Pair) -> None:
    assert len(distributions(pair.built)) > 10
    assert distributions(pair.built) == distributions(pair.archive)


def test_it_holds_the_same_code_of_ours(pair: Pair) -> None:
    assert len(digests(pair.built)) > 100
    assert digests(pair.built) == digests(pair.archive)


def test_it_holds_the_same_packages_of_debian_but_for_python(pair: Pair) -> None:
    """Versions may differ: each took the newest of its day."""
    built, archive = set(packages(pair.built)), set(packages(pair.archive))

    assert {"iptables", "nftables", "ca-certificates", "libc6"} <= built
    assert built <= archive
    assert all(DEBIANS_PYTHON.fullmatch(name) for name in archive - built), archive - built


def test_its_bill_lists_what_it_holds(pair: Pair) -> None:
    bill = json.loads((pair.built.root / "usr/share/hedgerow/sbom.cdx.json").read_text())
    version = pair.built.run(["python", "-c", "import platform; print(platform.python_version())"]).stdout.strip()

    listed = {(part["purl"].split("/")[0], part["name"], part["version"]) for part in bill["components"]}
    expected = {("pkg:deb", name, version) for name, version in packages(pair.built).items()}
    expected |= {("pkg:pypi", name, version) for name, version in distributions(pair.built).items()}
    assert listed == expected | {("pkg:generic", "python", version)}
    assert bill["metadata"]["component"]["name"] == f"hedgerow-{pair.target}"


def test_nothing_in_it_compiles_or_installs(pair: Pair) -> None:
    tools = {"cc", "c++", "gcc", "g++", "cpp", "clang", "ld", "as", "make", "pip", "pip3", "node", "npm", "npx", "uv"}
    programs = {path.name for path in pair.built.files() if path.parent.name in ("bin", "sbin")}

    assert {"nft", "python3.13", "hedgerow"} <= programs
    assert not programs & tools
    assert not [path for path in pair.built.files() if re.match(r"pip-.*|setuptools-.*|ensurepip$", path.name)]
    assert not (pair.built.root / "usr/local/lib" / debian.PYTHON / "ensurepip").exists()
    for module in ("pip", "ensurepip", "setuptools"):
        assert pair.built.run(["python", "-c", f"import {module}"]).returncode != 0


def test_no_command_of_a_library_is_in_it(pair: Pair) -> None:
    commands = {path.name for path in (pair.built.root / "opt/hedgerow/bin").iterdir()}

    assert commands == {"hedgerow", "python", "python3", debian.PYTHON}


def test_the_build_left_nothing_behind(pair: Pair) -> None:
    root = pair.built.root
    for empty in ("var/lib/apt/lists", "var/cache", "var/log", "run", "tmp", "var/tmp", "var/lib/hedgerow"):
        assert not list((root / empty).iterdir()), empty
    new = {path.name for path in root.iterdir()} - {path.name for path in pair.base.root.iterdir()}
    assert not new
    assert {path.name for path in (root / "root").iterdir()} == {
        path.name for path in (pair.base.root / "root").iterdir()
    }


def test_no_secret_of_the_build_is_in_it(pair: Pair) -> None:
    for name in ("etc/pip.conf", "root/.npmrc", "run/npmrc", "root/.config", "run/secrets", "etc/npmrc"):
        assert not (pair.built.root / name).exists(), name
    # What secrets were mounted over is as it was.
    for name in ("etc/ssl/certs/ca-certificates.crt", "etc/apt/sources.list.d/debian.sources"):
        assert (pair.built.root / name).read_bytes() == (pair.base.root / name).read_bytes()
    assert len((pair.built.root / "etc/ssl/certs/ca-certificates.crt").read_bytes()) > 10_000


def test_every_module_in_it_is_compiled(pair: Pair) -> None:
    """Nobody could write the compiled form later; it is valid whatever the time of its source (PEP 552)."""
    for directory in (f"usr/local/lib/{debian.PYTHON}", str(SITE)):
        modules = [path for path in pair.built.files(directory) if path.suffix == ".py"]
        assert len(modules) > 100
        for module in modules:
            compiled = pair.built.root / module.parent / "__pycache__" / f"{module.stem}.cpython-313.pyc"
            assert compiled.read_bytes()[4:8] == b"\1\0\0\0", module


def test_only_its_state_can_be_written(pair: Pair) -> None:
    assert (pair.built.root / "var/lib/hedgerow").is_dir()
    for path in pair.built.root.rglob("*"):
        at, inside = path.lstat(), str(path.relative_to(pair.built.root))
        if inside == "var/lib/hedgerow":
            assert (at.st_uid, at.st_gid, stat.S_IMODE(at.st_mode)) == (debian.UID, debian.UID, 0o750)
            continue
        assert at.st_uid == 0, inside
        if path.is_symlink():
            continue
        writable = at.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        # What Debian lets its groups "mail" and "staff" write, which our user is not in.
        assert not writable & stat.S_IWOTH or at.st_mode & stat.S_ISVTX, inside
        assert not writable & stat.S_IWGRP or at.st_gid in (8, 50) or at.st_mode & stat.S_ISVTX, inside


def test_nothing_in_it_runs_as_somebody_else(pair: Pair) -> None:
    def lent(image: Unpacked) -> list[str]:
        """Programs that run with the rights of their owner or group."""
        return [
            str(path.relative_to(image.root))
            for path in image.root.rglob("*")
            if stat.S_ISREG(mode := path.lstat().st_mode) and mode & (stat.S_ISUID | stat.S_ISGID)
        ]

    assert lent(pair.base), "Debian has some"
    assert lent(pair.built) == lent(pair.archive) == []


def test_the_page_is_in_it(pair: Pair) -> None:
    """In both images, as in the archives: the wheel is one."""
    page = pair.built.root / PAGE
    index = (page / "index.html").read_text()
    named = re.findall(r'(?:src|href)="\.?/?([^":]+)"', index)

    assert [name for name in named if name.endswith(".js")]
    for name in named:
        assert (page / name).is_file(), name


def test_the_stand_in_lacks_what_the_dockerfile_adds(base: Unpacked) -> None:
    """Or this suite would pass without the Dockerfile's doing."""
    assert not {"iptables", "nftables", "libnftables1", "python3"} & set(packages(base))
    assert "hedgerow" not in (base.root / "etc/passwd").read_text()
    assert not [path for path in base.files("usr/local") if path.suffix == ".pyc"]
    assert (base.root / "usr/local/lib" / debian.PYTHON / "ensurepip" / "_bundled").is_dir()
    assert base.run(["pip", "--version"]).returncode == 0
