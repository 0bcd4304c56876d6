"""How numbers are said to people."""

from __future__ import annotations


def many(number: int, noun: str) -> str:
    """``1 pod``, ``2 pods``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
