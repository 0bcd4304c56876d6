"""YAML of ours is plain data with every name once; everything else is refused before it is built."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from graph.documents import MAX_DEPTH, read_yaml
from graph.fields import Unfit


def read(text: str | bytes, at_most: int = 1_000_000) -> object:
    data = text if isinstance(text, bytes) else text.encode()
    return read_yaml(data, at_most, if_larger="write less")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# nothing\n", None),
        ("a: 1\nb: [x, 2.5, true, null]\nc: {d: 'e'}\n", {"a": 1, "b": ["x", 2.5, True, None], "c": {"d": "e"}}),
        ('{"a": {"b": [1]}}', {"a": {"b": [1]}}),
        ("\ufeffa: ü\n", {"a": "ü"}),
        ("a: &x {b: 1}\nc: *x\n", {"a": {"b": 1}, "c": {"b": 1}}),
        ("'1': a\n", {"1": "a"}),
        ("[" * MAX_DEPTH + "]" * MAX_DEPTH, json.loads("[" * MAX_DEPTH + "]" * MAX_DEPTH)),
    ],
)
def test_plain_data_is_read(text: str, value: object) -> None:
    assert read(text) == value


@pytest.mark.parametrize(
    ("text", "path", "problem"),
    [
        ("a: 1\nb: 2\na: 3\n", "a", "written twice (line 3)"),
        ("a: {b: 1,\n b: 2}", "a.b", "written twice (line 2)"),
        ("a:\n- b: 1\n- {c: 1, c: 2}\n", "a[1].c", "written twice (line 3)"),
        ("a: 1\n'a': 2\n", "a", "written twice (line 2)"),
        ("a: 1\n7: 2\n", "", "line 2 is not text but '7'"),
        ("a: {true: 1}\n", "a", "line 1 is not text but 'true'"),
        ("? [a]\n: b\n", "", "line 1 is not text but a list"),
        ("? {a: 1}\n: b\n", "", "not text but a list or a mapping"),
        ("a: &x {b: 1}\nc: {<<: *x}\n", "c", "line 2 is not text but '<<'"),
        ("a: [\n", "", "not YAML (line 2, column 1)"),
        ("a: b: c\n", "", "not YAML (line 1, column 5)"),
        ("a: 1\n---\nb: 2\n", "", "not YAML (line 2"),
        ("a: *x\n", "", "not YAML (line 1"),
        ("a: &x [*x]\n", "", "not YAML (line 1"),
        ("&x a: *x\nb: &y {c: *y}\n", "", "not YAML (line 2"),
        ("a: \x07\n", "", "not YAML"),
        (b"\xff\xfe\x00", "", "UTF-8"),
        (b"a: \xc3\n", "", "UTF-8 (byte 3)"),
        ("at: 2020-99-99\n", "", "not YAML: month"),
        ("a: " + "9" * 5000, "", "not YAML: "),
        ("a:\n  !!python/object/apply:os.system ['true']\n", "", "a tag (line 2)"),
        ("a: !!bool maybe\n", "", "a tag (line 1)"),
        ("a: !!int ''\n", "", "a tag (line 1)"),
        ("!x {}", "", "a tag (line 1)"),
        ("[" * 100_000, "", "nested more than 20"),
        ("a: " + "{a: " * 100_000, "", "nested more than 20"),
        ("- " * 21 + "a", "", "nested more than 20"),
        ("x" * 1_000_001, "", "larger than 1000000 bytes"),
    ],
)
def test_what_is_not_of_ours_is_refused_by_line_and_path(text: str | bytes, path: str, problem: str) -> None:
    with pytest.raises(Unfit) as caught:
        read(text)
    assert caught.value.inner == path
    assert problem in caught.value.problem
    assert caught.value.remedy
    assert caught.value.problem.isprintable()
    assert len(caught.value.problem) < 300


def test_aliases_of_aliases_take_no_more_than_their_text() -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 5_000)]
    document = read("\n".join(lines))
    assert isinstance(document, dict)
    assert len(document) == 5_000


def test_the_parser_is_not_loaded_before_it_is_needed() -> None:
    code = "import sys, graph.documents\nprint('yaml' in sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=60,
        check=True,
    )
    assert ran.stdout.strip() == "False"
