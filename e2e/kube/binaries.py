"""Where the programs of a test cluster are: given by the environment, in the cache, or installed.

Looked for in this order, each program by itself:

1. ``HEDGEROW_KUBE_BIN``, a directory;
2. ``KUBEBUILDER_ASSETS``, the directory of controller-runtime's envtest (etcd, kube-apiserver, kubectl);
3. the cache that ``python -m e2e.kube`` fills, by the keys of :mod:`e2e.kube.parts`;
4. ``PATH``.

A program that is nowhere is an error that says what to do; nothing is skipped for want of one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from e2e.harness.errors import HarnessError
from e2e.kube.parts import Part, Suite, wanted

_GIVEN = ("HEDGEROW_KUBE_BIN", "KUBEBUILDER_ASSETS")


@dataclass(frozen=True, slots=True)
class Binaries:
    """The programs of a suite by name."""

    paths: Mapping[str, Path]

    def __getitem__(self, name: str) -> Path:
        return self.paths[name]


def cache(environment: Mapping[str, str] = os.environ) -> Path:
    """``$XDG_CACHE_HOME/hedgerow/kube``."""
    home = environment.get("XDG_CACHE_HOME") or Path(environment.get("HOME") or "/") / ".cache"
    return Path(home) / "hedgerow" / "kube"


def missing(suite: Suite, environment: Mapping[str, str] = os.environ) -> list[str]:
    """The programs of a suite that are nowhere."""
    return [name for name, part in wanted(suite).items() if _locate(name, part, environment) is None]


def find(suite: Suite, environment: Mapping[str, str] = os.environ) -> Binaries:
    """Every program that a suite needs.

    :raises HarnessError: when one is missing, with what to do about it
    """
    located = {name: _locate(name, part, environment) for name, part in wanted(suite).items()}
    absent = [name for name, path in located.items() if path is None]
    if absent:
        raise HarnessError(
            f"no Kubernetes to test against: {', '.join(absent)} not found in "
            f"{', '.join(_GIVEN)}, {cache(environment)} or PATH",
            f"run: python -m e2e.kube {suite} (it builds them once, from Go modules; "
            "make e2e-apiserver and make e2e-cluster do so themselves)",
        )
    return Binaries({name: path for name, path in located.items() if path is not None})


def _locate(name: str, part: Part, environment: Mapping[str, str]) -> Path | None:
    given = [Path(environment[variable]) for variable in _GIVEN if environment.get(variable)]
    candidates = [directory / subdirectory / name for directory in given for subdirectory in ("", "cni")]
    candidates.append(cache(environment) / part.key / name)
    for candidate in candidates:
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate.absolute()
    installed = shutil.which(name, path=environment.get("PATH"))
    return Path(installed).absolute() if installed else None
