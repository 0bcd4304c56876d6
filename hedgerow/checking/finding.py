"""What a check comes to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

DOCUMENT = "docs/check.md"


class Outcome(StrEnum):
    """How a check ended. Only ``failed`` makes the command fail."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """The end of one check.

    :param check: its name, which is also its anchor in ``docs/check.md``
    :param text: what was found, one sentence
    :param hint: what to do about it; empty when there is nothing to do
    """

    check: str
    outcome: Outcome
    text: str
    hint: str = ""

    @property
    def anchor(self) -> str:
        return f"{DOCUMENT}#{self.check}"

    def to_dict(self) -> dict[str, Any]:
        found = {"check": self.check, "outcome": str(self.outcome), "text": self.text}
        return found | ({"hint": self.hint, "documentation": self.anchor} if self.hint else {})


def good(check: str, text: str) -> Finding:
    return Finding(check, Outcome.OK, text)


def warning(check: str, text: str, hint: str) -> Finding:
    return Finding(check, Outcome.WARNING, text, hint)


def failed(check: str, text: str, hint: str) -> Finding:
    return Finding(check, Outcome.FAILED, text, hint)


def skipped(check: str, text: str) -> Finding:
    return Finding(check, Outcome.SKIPPED, text)


def listed(names: Iterable[str], most: int = 5) -> str:
    """``a, b, c and 4 more``."""
    every = sorted(names)
    shown = ", ".join(every[:most])
    return f"{shown} and {len(every) - most} more" if len(every) > most else shown
