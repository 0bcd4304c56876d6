"""Starts a program as a user does, with something wrong, and looks at how it ended and what it left behind."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.hedgerow.served import COMMAND, Ended, environment

#: Takes from root what lets it read and write everything, so that permissions mean something to it.
WITHOUT_PRIVILEGE = (
    ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all") if os.geteuid() == 0 else ()
)


def nothing(folder: Path) -> None:
    """Nothing is spoilt."""


@dataclass(frozen=True)
class Case:
    """One mistake.

    :param words: what the error must say: field, problem, remedy
    :param settings: in place of good ones; None leaves a setting out
    :param spoil: changes the program's folder before the start
    :param busy: a setting that gets the address of a port which is taken; a dotted path
    :param prefix: what starts the program
    """

    name: str
    words: Sequence[str]
    code: int = 2
    settings: Mapping[str, Any] = field(default_factory=dict)
    spoil: Callable[[Path], object] = nothing
    busy: str = ""
    prefix: Sequence[str] = ()

    def __str__(self) -> str:
        return self.name


def contents(folder: Path) -> dict[str, str]:
    """Every file below ``folder`` by what is in it. A lock holds nothing but the number of who locked it last."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("lock", "controller.db.lock")
    }


def start(program: str, config: Path, prefix: Sequence[str] = ()) -> Ended:
    """``hedgerow PROGRAM --config F``, which must end by itself."""
    done = subprocess.run(
        [*prefix, str(COMMAND), program, "--config", str(config)],
        capture_output=True, text=True, timeout=100, check=False, env=environment(), cwd="/",
    )  # fmt: skip
    return Ended(done)


def check(case: Case, ended: Ended) -> None:
    """One clear line that names the field and the remedy, and the right exit code."""
    assert ended.code == case.code, ended.err
    said = ended.err.strip().splitlines()
    errors = [line for line in said if line.startswith(("error: ", "Error: "))]
    assert len(errors) == 1, ended.err
    assert errors[0] == said[-1]
    for word in case.words:
        assert word in errors[0], f"{word!r} is not in {errors[0]!r}"
    assert ended.out == ""
