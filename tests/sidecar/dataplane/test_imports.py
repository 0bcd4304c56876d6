"""The parts of the data path know each other in one direction only, and its rules do no I/O."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import sidecar.dataplane

FOLDER = Path(sidecar.dataplane.__file__).parent
PACKAGE = "sidecar.dataplane"


def imported(path):
    """Full names of the modules that a file imports anywhere, for types too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            if node.module == PACKAGE:
                yield from (f"{PACKAGE}.{alias.name}" for alias in node.names)
            else:
                yield node.module


def test_no_two_modules_need_each_other():
    graph = {
        path.stem: {name.removeprefix(f"{PACKAGE}.") for name in imported(path) if name.startswith(f"{PACKAGE}.")}
        for path in FOLDER.glob("*.py")
    }
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert order.index("sending") < order.index("stream") < order.index("proxy")
    assert order.index("lease") < order.index("tunnel") < order.index("pool")


@pytest.mark.parametrize("module", ["balance", "clienthello", "frames", "lease"])
def test_rules_do_no_io(module):
    forbidden = {"asyncio", "socket", "ssl", "time", "select", "logging"}
    assert forbidden.isdisjoint(imported(FOLDER / f"{module}.py"))
