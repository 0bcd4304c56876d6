"""The shared language does no I/O, and what the sidecar needs of it stays small."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

GRAPH = Path(__file__).parents[2] / "graph"
PURE = sorted(path for path in GRAPH.rglob("*.py") if "wire" not in path.relative_to(GRAPH).parts)
INPUT_OUTPUT = {
    "asyncio",
    "grpc",
    "socket",
    "ssl",
    "aiohttp",
    "kubernetes",
    "subprocess",
    "time",
    "threading",
    "random",
}


@pytest.mark.parametrize("module", PURE, ids=lambda path: ".".join(path.relative_to(GRAPH).with_suffix("").parts))
def test_pure_modules_import_no_io_and_no_clock(module: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported.add(node.module)
    assert not {name.partition(".")[0] for name in imported} & INPUT_OUTPUT
    assert not {name for name in imported if name.startswith(("google", "graph.wire"))}, "protobuf stays in graph.wire"


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("graph.model, graph.policy", ("asyncio", "socket", "networkx", "google.protobuf")),
        ("graph.wire.codec", ("asyncio", "networkx", "grpc")),
        ("graph.windows, graph.views, graph.drift", ("asyncio", "networkx", "google.protobuf")),
    ],
)
def test_what_an_import_brings_along(module: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {module}\nprint(sorted(set({absent!r}) & set(sys.modules)))"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=GRAPH.parent, timeout=60, check=True
    )
    assert ran.stdout.strip() == "[]"
