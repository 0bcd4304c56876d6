"""How answers look: a table for people, JSON or YAML for programs, always of the same content."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

Row = Sequence[object]

_UNWRAPPED = 1000


class Output(StrEnum):
    """The value of ``-o``."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def console() -> Console:
    """Standard output; colours only when it is a terminal and NO_COLOR is unset, and no wrapping when it is none."""
    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=_UNWRAPPED)


def show(answer: Any, output: Output, table: Callable[[Any], None]) -> None:
    """Print ``answer`` as asked; ``table`` prints it for people."""
    if output is Output.JSON:
        print(json.dumps(answer, indent=2, sort_keys=False))
    elif output is Output.YAML:
        print(yaml.safe_dump(answer, sort_keys=False, allow_unicode=True), end="")
    else:
        table(answer)


def print_table(columns: Sequence[str], rows: Iterable[Row], empty: str, wraps: Sequence[str] = ()) -> None:
    """Print rows under their headings, or the sentence ``empty`` when there are none. Cells are plain text.

    :param wraps: the columns that give way when the terminal is too narrow; the others are kept whole
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.upper(), overflow="fold", no_wrap=bool(wraps) and column not in wraps)
    for row in rows:
        table.add_row(*(escape("-" if cell in (None, "") else str(cell)) for cell in row))
    if table.row_count:
        console().print(table)
    else:
        console().print(escape(empty))


def ago(at: float | None, now: float | None = None) -> str:
    """How long ago ``at`` (seconds since the epoch) was, in the largest unit that fits; ``in …`` for the future."""
    if not at:
        return "-"
    seconds = (time.time() if now is None else now) - at
    text = duration(abs(seconds))
    return f"{text} ago" if seconds >= 0 else f"in {text}"


def duration(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"


def size(count: float) -> str:
    """A number of bytes for people, in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")
