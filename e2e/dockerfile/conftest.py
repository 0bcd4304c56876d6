"""The images that were built from the Dockerfile, unpacked, beside those of :mod:`e2e.images`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from e2e.dockerfile import build, stand_ins
from e2e.dockerfile.unpacked import Unpacked, unpack
from e2e.images.build import prepare


@dataclass(frozen=True, slots=True)
class Pair:
    """A target, and the archive that holds the same.

    :param base: what the target stands on
    """

    target: str
    built: Unpacked
    archive: Unpacked
    base: Unpacked


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Unpacked]:
    (python,) = [stand_in for stand_in in stand_ins.prepare(print) if stand_in.argument == "PYTHON_IMAGE"]
    root = tmp_path_factory.mktemp("base")
    yield unpack(python.archive, root)
    shutil.rmtree(root)


@pytest.fixture(scope="session", params=sorted(build.TARGETS))
def pair(request: pytest.FixtureRequest, base: Unpacked, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    (built,) = [each for each in build.find() if each.target == request.param]
    (archive,) = [each for each in prepare() if each.image == built.image]
    roots = [tmp_path_factory.mktemp(name) for name in ("built", "archive")]
    yield Pair(built.target, unpack(built.archive, roots[0]), unpack(archive.archive, roots[1]), base)
    for root in roots:
        shutil.rmtree(root)
