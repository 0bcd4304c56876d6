"""Builds both targets of the Dockerfile on the stand-ins, from a copy of what it may see; keeps the last of each."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from e2e.dockerfile import registries, stand_ins
from e2e.dockerfile.buildah import Buildah
from e2e.harness.errors import HarnessError
from e2e.images.build import IMAGES, Image, cache

ROOT = Path(__file__).resolve().parents[2]
TARGETS = {image.name.removeprefix("hedgerow-"): image for image in IMAGES}
_UNSEEN = shutil.ignore_patterns("__pycache__", "*.pyc", "node_modules", "dist", "static")
#: Bump it when the way in which images are built changes.
_RECIPE = "1"


@dataclass(frozen=True, slots=True)
class Built:
    """A target of the Dockerfile, built.

    :param image: the image that it is to be the same as
    :param reference: its name with tag
    """

    target: str
    image: Image
    reference: str
    archive: Path


def prepare(say: Callable[[str], None]) -> list[Built]:
    """Every target, built as far as it is not there yet: minutes, and the package registries.

    :raises HarnessError: when something cannot be had or built, with what was said about it
    """
    with tempfile.TemporaryDirectory(prefix="hedgerow-dockerfile-") as scratch:
        context, kept = Path(scratch) / "context", Path(scratch) / "secrets"
        kept.mkdir(mode=0o700)
        key = _copy(context)
        built = _named(key)
        if any(not each.archive.is_file() for each in built):
            bases = stand_ins.prepare(say)
            secrets = registries.secrets(kept)
            with Buildah(cache(), say) as engine:
                arguments = {base.argument: engine.load(base.archive, base.reference) for base in bases}
                arguments["REVISION"] = _revision()
                for each in built:
                    say(f"building the Dockerfile's target {each.target} (two minutes)")
                    engine.build(context, each.target, each.reference, arguments, secrets)
                    engine.save(each.reference, each.archive)
    _forget_old(built)
    return built


def find() -> list[Built]:
    """What :func:`prepare` made of this checkout.

    :raises HarnessError: when it did not, or the checkout has changed since
    """
    with tempfile.TemporaryDirectory(prefix="hedgerow-dockerfile-") as scratch:
        built = _named(_copy(Path(scratch) / "context"))
    if any(not each.archive.is_file() for each in built):
        raise HarnessError("the Dockerfile of this checkout is not built", "run: python -m e2e.dockerfile")
    return built


def _named(key: str) -> list[Built]:
    return [
        Built(target, image, f"e2e.local/dockerfile/{target}:{key}", cache() / f"dockerfile-{target}-{key}.tar")
        for target, image in TARGETS.items()
    ]


def _copy(context: Path) -> str:
    """Copy what the build may see: what changes meanwhile does not matter.

    :returns: a hash of it
    """
    context.mkdir()
    admitted = [line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")]
    for name in ["Dockerfile", ".dockerignore", *admitted]:
        source, copy = ROOT / name, context / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, copy, ignore=_UNSEEN) if source.is_dir() else shutil.copy(source, copy)
    digest = hashlib.sha256(f"{_RECIPE}\n{stand_ins.key()}\n".encode())
    for path in sorted(path for path in context.rglob("*") if path.is_file()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(context)} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def _revision() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _forget_old(built: list[Built]) -> None:
    kept = {each.archive for each in built}
    for archive in cache().glob("dockerfile-*.tar"):
        if archive not in kept:
            archive.unlink()
