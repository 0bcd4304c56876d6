"""The demo, started with something wrong: it says so before it starts anything, and touches nothing."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.hedgerow.served import hedgerow


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = hedgerow("demo", "--once", "--json", "--port", str(port))
    assert (ended.code, ended.out) == (2, "")
    assert f"error: --port: cannot listen on 127.0.0.1:{port}: Address already in use" in ended.err
    assert "name another port, or 0 for a free one" in ended.err


@pytest.mark.parametrize("out", ["file", "file/out", "/proc/out"])
def test_a_folder_that_cannot_be_written(tmp_path: Path, out: str) -> None:
    (tmp_path / "file").write_text("precious")
    ended = hedgerow("demo", "--once", "--json", "--out", out, cwd=str(tmp_path))
    assert (ended.code, ended.out) == (2, "")
    assert "error: --out: " in ended.err
    assert out.rpartition("/")[2] in ended.err
    assert len(ended.err.strip().splitlines()) <= 2
    assert (tmp_path / "file").read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "99999"], "'--port': "),
        (["--port", "x"], "'--port': "),
        (["--onec"], "No such option: --onec"),
        (["extra"], "unexpected extra argument"),
    ],
)
def test_arguments_that_are_none(arguments: list[str], words: str) -> None:
    ended = hedgerow("demo", "--once", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert words in ended.err
