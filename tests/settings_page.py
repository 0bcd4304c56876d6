"""Reads the tables of the pages in ``docs/`` that tell of settings, for the tests that hold them to the code."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def table_rows(text: str) -> dict[str, list[str]]:
    """The cells behind the name in each row that begins with the name of one setting, without spaces around them."""
    found = re.findall(r"^\| `([\w.]+)` \|(.*)\|$", text, re.MULTILINE)
    assert len(found) == len(dict(found)), "a setting stands twice"
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in found}


def section(text: str, heading: str) -> str:
    """What stands below a heading, as far as the next one of its level or above."""
    level = len(heading) - len(heading.lstrip("#"))
    _, found, rest = text.partition(f"\n{heading}\n")
    assert found, f"no {heading!r}"
    return re.split(rf"^#{{1,{level}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]
