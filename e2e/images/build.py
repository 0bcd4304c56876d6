"""Builds the images of this checkout in three layers, each kept in the cache until what it is made of changes.

1. ``base``: Debian with Python (:mod:`e2e.images.debian`); a minute, needs a Debian mirror;
2. ``packages``: the hash-pinned requirements of one image; a minute, needs a package index; wheels only, so that
   nothing is compiled;
3. ``code``: the wheel of this checkout and the bill of materials; seconds, offline.

The result is the same, byte for byte, for the same base, requirements and code.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pip

from e2e.harness.cached import alone
from e2e.harness.errors import HarnessError
from e2e.images import debian, sbom
from e2e.images.archive import Layer, Settings, architecture, make_layer, read_layer, write_image
from e2e.kube import binaries
from graph.version import VERSION

_ROOT = Path(__file__).resolve().parents[2]
_HOME = Path("opt/hedgerow")
_SITE = _HOME / "lib" / debian.PYTHON / "site-packages"
_SOURCES = ("certs", "graph", "sidecar", "controller", "hedgerow")
_BILL = Path("usr/share/hedgerow/sbom.cdx.json")
#: How many builds of code are kept; each is as large as an image.
_KEPT = 3
_RECIPE = "1"


@dataclass(frozen=True, slots=True)
class Image:
    """One of our images.

    :param name: without tag
    :param requirements: the file with its pinned dependencies
    """

    name: str
    requirements: Path
    settings: Settings


def _image(name: str, requirements: str, module: str) -> Image:
    settings = Settings(
        entrypoint=("python", "-m", module),
        user=f"{debian.UID}:{debian.UID}",
        environment={"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        labels={
            "org.opencontainers.image.title": name,
            "org.opencontainers.image.licenses": "Apache-2.0",
            "org.opencontainers.image.version": VERSION,
        },
    )
    return Image(name, _ROOT / "requirements" / requirements, settings)


SIDECAR = _image("hedgerow-sidecar", "sidecar.txt", "sidecar")
#: The controller's, the injector's and the command's.
CONTROLLER = _image("hedgerow-controller", "controller.txt", "controller")
IMAGES = (SIDECAR, CONTROLLER)


@dataclass(frozen=True, slots=True)
class Built:
    """An image that is there.

    :param reference: what pods call it; its tag changes with its contents
    """

    image: Image
    reference: str
    archive: Path


def cache() -> Path:
    """Beside the kit's."""
    return binaries.cache().with_name("images")


def prepare(say: Callable[[str], None] = print) -> list[Built]:
    """Every image of this checkout, built as far as it is not there yet.

    :param say: told what is being made
    :raises HarnessError: when something cannot be had, with what to do
    """
    with alone(cache(), say):
        base = _base(say)
        code = _code_key()
        with tempfile.TemporaryDirectory(prefix=".wheel-", dir=cache()) as scratch:
            wheel = functools.cache(lambda: _make_wheel(Path(scratch), say))
            built = [_build(image, base, code, wheel, say) for image in IMAGES]
        _forget_old()
    return built


def layers(image: Image, say: Callable[[str], None] = print) -> tuple[Path, Path]:
    """The directories of an image's base and of its packages, for programs that run as in the image without it.

    :raises HarnessError: when something cannot be had, with what to do
    """
    with alone(cache(), say):
        base = _base(say)
        return base, _packages(image, base, say)


def _base(say: Callable[[str], None]) -> Path:
    key = _hash(debian.RECIPE, debian.SUITE, *debian.PACKAGES, architecture())
    root = cache() / f"base-{key}"
    if not root.is_dir():
        say(f"making Debian {debian.SUITE} (a minute)")
        debian.bootstrap(root, say)
    return root


def _packages(image: Image, base: Path, say: Callable[[str], None]) -> Path:
    packages = _packages_of(image, base)
    if not packages.is_dir():
        say(f"installing the packages of {image.name}")
        _install_packages(image, base, packages)
    return packages


def _packages_of(image: Image, base: Path) -> Path:
    return cache() / f"packages-{image.name}-{_hash(_RECIPE, base.name, image.requirements.read_text())}"


def _build(image: Image, base: Path, code: str, wheel: Callable[[], Path], say: Callable[[str], None]) -> Built:
    packages = _packages_of(image, base)
    name = f"{image.name}-{_hash(_RECIPE, packages.name, code, repr(image.settings))}"
    archive = cache() / f"{name}.tar"
    built = Built(image, f"e2e.local/{image.name}:{name.rpartition('-')[2]}", archive)
    if archive.is_file():
        archive.touch()
        return built
    lowest = _layer(base, base.with_name(f"{base.name}.tar"))
    _packages(image, base, say)
    middle = _layer(packages, packages.with_name(f"{packages.name}.tar"))
    say(f"packing {image.name}")
    with tempfile.TemporaryDirectory(prefix=".code-", dir=cache()) as scratch:
        root = Path(scratch) / "root"
        _add_code(image, base, packages, root, wheel())
        top = make_layer(root, Path(scratch) / "layer.tar")
        write_image(archive, built.reference, [lowest, middle, top], image.settings)
    return built


def _layer(root: Path, tar: Path) -> Layer:
    return read_layer(tar) or make_layer(root, tar)


def _install_packages(image: Image, base: Path, final: Path) -> None:
    """Install with the machine's pip, run by the image's Python: markers and wheels are chosen for the image."""
    scratch = Path(tempfile.mkdtemp(prefix=f".{image.name}-", dir=cache()))
    try:
        site = scratch / "root" / _SITE
        installer = scratch / "pip"
        shutil.copytree(Path(pip.__file__).parent, installer / "pip", ignore=shutil.ignore_patterns("__pycache__"))
        options = ["--quiet", "--disable-pip-version-check", "--no-compile", "--only-binary=:all:", "--require-hashes"]
        options += ["--target", str(site), "--requirement", str(image.requirements)]
        command = [f"/usr/bin/{debian.PYTHON}", str(installer / "pip"), "install", *options]
        debian.run_inside(base, command, environment=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"})
        shutil.rmtree(site / "bin", ignore_errors=True)  # commands of libraries
        debian.compile_python(base, scratch / "root", site)
        _make_environment(scratch / "root")
        (scratch / "root").rename(final)
    except HarnessError as error:
        raise HarnessError(
            f"the packages of {image.name} could not be installed: {error.message}",
            f"pip takes them from the package index that it is set up for, by {image.requirements.name}",
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _make_environment(root: Path) -> None:
    """The virtual environment around the packages, as ``python -m venv`` would make it."""
    home = root / _HOME
    (home / "bin").mkdir()
    for name in ("python", "python3", debian.PYTHON):
        (home / "bin" / name).symlink_to(f"/usr/bin/{debian.PYTHON}")
    (home / "pyvenv.cfg").write_text(
        f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {debian.PYTHON[6:]}\n"
    )


def _make_wheel(directory: Path, say: Callable[[str], None]) -> Path:
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(directory), str(_ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HarnessError(f"no wheel of this checkout: {done.stderr.strip()}", "run: make setup")
    if not (_ROOT / "controller" / "web" / "static").is_dir():
        say("the controller's image has no web page: this checkout has none (.ci/build-ui says why)")
    (wheel,) = directory.glob("*.whl")
    return wheel


def _add_code(image: Image, base: Path, packages: Path, root: Path, wheel: Path) -> None:
    site = root / _SITE
    site.mkdir(parents=True)
    shutil.unpack_archive(wheel, site, "zip")
    debian.compile_python(base, root, site)
    command_file = root / _HOME / "bin" / "hedgerow"
    command_file.parent.mkdir()
    main = "from hedgerow.__main__ import main"
    command_file.write_text(f"#!/{_HOME}/bin/python\nimport sys\n\n{main}\n\nsys.exit(main())\n")
    command_file.chmod(0o755)
    components = sbom.debian_packages(base / "var" / "lib" / "dpkg" / "status")
    components += sbom.python_packages(packages / _SITE) + sbom.python_packages(site)
    (root / _BILL).parent.mkdir(parents=True)
    (root / _BILL).write_bytes(sbom.document(image.name, components))


def _code_key() -> str:
    """Changes with everything that the wheel is made of."""
    digest = hashlib.sha256()
    files = [_ROOT / "pyproject.toml", _ROOT / "README.md", _ROOT / "LICENSE"]
    for name in _SOURCES:
        files += [path for path in (_ROOT / name).rglob("*") if path.is_file() and path.suffix != ".pyc"]
    for path in sorted(files):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(_ROOT)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _forget_old() -> None:
    """Keep the images that were used last."""
    for image in IMAGES:
        archives = sorted(cache().glob(f"{image.name}-*.tar"), key=lambda path: path.stat().st_mtime, reverse=True)
        for archive in archives[_KEPT:]:
            archive.unlink()


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
