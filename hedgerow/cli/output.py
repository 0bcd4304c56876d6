"""How answers look: a table for people, JSON or YAML for programs, always of the same content.

A table on a terminal fits into it: columns that matter less are left out, and said to be, before anything is torn
apart. In a pipe nothing is left out and nothing is wrapped. Words that come from elsewhere (reasons, evidence, names)
are shown without their control characters, so that nobody writes on a terminal but us.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

Row = Sequence[object]

_GAP = "  "
_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}
#: The colours of a verdict, and of a rule's effect.
VERDICTS: Mapping[str, str] = {"allow": "green", "would-deny": "yellow", "deny": "red"}
_BREAKS = re.compile(r"\s*\S+")


class Output(StrEnum):
    """The value of ``-o``."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    :param least: the width below which it is not narrowed, when the terminal is narrow; 0 keeps it whole
    :param spare: columns with a number are left out where there is no room, the highest number first
    :param colours: the style of a cell by its text
    """

    title: str
    least: int = 0
    spare: int = 0
    colours: Mapping[str, str] = field(default_factory=dict)


def on_terminal() -> bool:
    return sys.stdout.isatty()


def terminal_width() -> int:
    """In characters; COLUMNS, where set, wins."""
    return max(shutil.get_terminal_size().columns, 20)


def say(text: str, style: str = "") -> None:
    """Print a line as it is, at once."""
    print(styled(printable(text), style), flush=True)


def prose(text: str, indent: str = "", style: str = "") -> None:
    """Print a sentence, on a terminal wrapped between words."""
    clean = indent + printable(text)
    if not on_terminal():
        print(clean)
        return
    import textwrap

    wrapper = textwrap.TextWrapper(
        terminal_width(), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    print(styled(wrapper.fill(clean), style))


def show(answer: Any, output: Output, table: Callable[[Any], None]) -> None:
    """Print ``answer`` as asked; ``table`` prints it for people."""
    if output is Output.JSON:
        print(json.dumps(answer, indent=2, sort_keys=False))
    elif output is Output.YAML:
        print(to_yaml(answer), end="")
    else:
        table(answer)


def to_yaml(answer: Any, *, document: bool = False) -> str:
    """:param document: begin with ``---``, for one of several"""
    import yaml

    text: str = yaml.safe_dump(answer, sort_keys=False, allow_unicode=True, explicit_start=document)
    return text


def print_table(columns: Sequence[Column], rows: Iterable[Row], empty: str) -> None:
    """Print rows under their headings, or the sentence ``empty`` when there are none."""
    cells = [[printable("-" if cell in (None, "") else str(cell)) for cell in row] for row in rows]
    if not cells:
        prose(empty)
        return
    widths = [
        max(columns_of(column.title), *(columns_of(row[index]) for row in cells))
        for index, column in enumerate(columns)
    ]
    shown = fit(columns, widths, terminal_width()) if on_terminal() else dict(enumerate(widths))
    print(_line([(columns[index].title.upper(), width, "bold") for index, width in shown.items()]))
    for row in cells:
        parts = {index: wrap(row[index], width) for index, width in shown.items()}
        for number in range(max(len(part) for part in parts.values())):
            line = [(part[number] if number < len(part) else "", shown[index]) for index, part in parts.items()]
            styles = [columns[index].colours.get(row[index], "") for index in parts]
            print(_line([(*cell, style) for cell, style in zip(line, styles, strict=True)]))
    if len(shown) < len(columns):
        left_out = ", ".join(column.title for index, column in enumerate(columns) if index not in shown)
        prose(f"(no room for {left_out}: widen the terminal, or use -o yaml)", style="dim")


def fit(columns: Sequence[Column], widths: Sequence[int], room: int) -> dict[int, int]:
    """Which columns are shown, and how wide.

    :param widths: of the widest cell of each
    :param room: the width of the terminal
    :returns: widths by the columns' index
    """
    least = [min(width, column.least) if column.least else width for column, width in zip(columns, widths, strict=True)]
    shown = list(range(len(columns)))

    def needed(of: Sequence[int]) -> int:
        return sum(of[index] for index in shown) + len(_GAP) * (len(shown) - 1)

    while needed(least) > room and any(columns[index].spare for index in shown):
        shown.remove(max(shown, key=lambda index: columns[index].spare))
    fitted = {index: least[index] for index in shown}
    left = room - needed(least)
    # those that give way share what is left, each up to what it wants
    wanting = sorted((index for index in shown if least[index] < widths[index]), key=lambda i: widths[i] - least[i])
    for place, index in enumerate(wanting):
        more = min(widths[index] - least[index], max(left, 0) // (len(wanting) - place))
        fitted[index] += more
        left -= more
    return fitted


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most ``width`` columns, broken between words, else behind a mark, else anywhere."""
    if columns_of(text) <= width:
        return [text]
    lines = [""]
    for piece in _BREAKS.findall(text):
        if columns_of(lines[-1] + piece) <= width:
            lines[-1] += piece
            continue
        rest = piece.strip()
        if lines[-1]:
            lines.append("")
        while columns_of(rest) > width:
            cut = _cut(rest, width)
            lines[-1] = rest[:cut]
            lines.append("")
            rest = rest[cut:]
        lines[-1] = rest
    return lines


def _cut(text: str, width: int) -> int:
    """Where to break a word that is too long: behind the last mark that leaves half a line, else at the width."""
    end = len(text)
    while end > 1 and columns_of(text[:end]) > width:
        end -= 1
    marks = [place + 1 for place, letter in enumerate(text[:end]) if letter in "/:,=-." and place + 1 >= end // 2]
    return marks[-1] if marks else end


def _line(cells: Sequence[tuple[str, int, str]]) -> str:
    padded = [(text, " " * max(width - columns_of(text), 0), style) for text, width, style in cells]
    return _GAP.join(styled(text, style) + padding for text, padding, style in padded).rstrip()


def styled(text: str, style: str) -> str:
    """``text`` in a style, where the terminal knows styles and nobody objects (https://no-color.org)."""
    if not style or not text or not on_terminal() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m"


def printable(text: str) -> str:
    """``text`` on one line; what would move the cursor, or turn writing around, is a replacement character."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else " " if letter.isspace() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def columns_of(text: str) -> int:
    """How many columns of a terminal a text takes (Unicode Standard Annex 11)."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


# --- words for people


def end(ref: str) -> str:
    """An end of a connection: ``namespace/name``, or an address of the outside."""
    address = ref.removeprefix("-/")
    return "other addresses" if ref == "-/0.0.0.0" else address


def connection(source: str, destination: str, port: int, protocol: str) -> str:
    """``shop/front → shop/cart:8080``; the protocol is named where it is not TCP."""
    host = f"[{end(destination)}]" if destination.startswith("-/") and ":" in destination else end(destination)
    return f"{end(source)} → {host}:{port}" + ("" if protocol == "TCP" else f"/{protocol}")


def ago(at: float | None, now: float | None = None) -> str:
    """How long ago ``at`` (seconds since the epoch) was, in the largest unit that fits; ``in …`` for the future."""
    if not at:
        return "-"
    seconds = (time.time() if now is None else now) - at
    text = duration(abs(seconds))
    return f"{text} ago" if seconds >= 0 else f"in {text}"


def moment(at: float) -> str:
    """``at`` (seconds since the epoch) by the clock on this machine's wall."""
    from datetime import datetime

    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def duration(seconds: float) -> str:
    """In its largest whole unit: ``3d``, ``2h``, ``5m``, ``12s``."""
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
