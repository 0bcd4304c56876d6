"""Takes JSON apart without trusting its shape: what is not as its API says is :class:`Unreadable`, or nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from controller.inventory.model import plain_address
from controller.kube.reflector import Unreadable

type Labels = tuple[tuple[str, str], ...]
type Object = Mapping[str, Any]


def part(document: Object, name: str) -> Object:
    """A mapping inside; empty where it is absent."""
    found = document.get(name)
    return found if isinstance(found, dict) else {}


def parts(document: Object, name: str) -> Iterator[Object]:
    """The mappings of a list inside."""
    found = document.get(name)
    for each in found if isinstance(found, list) else ():
        if isinstance(each, dict):
            yield each


def word(document: Object, name: str) -> str:
    """A text; empty where it is absent. Many are alike, so each is kept once."""
    found = document.get(name)
    return sys.intern(found) if isinstance(found, str) else ""


def needed(document: Object, name: str) -> str:
    """:raises Unreadable: where it is absent"""
    found = word(document, name)
    if not found:
        raise Unreadable(f"{name} is missing")
    return found


def words(document: Object, name: str) -> tuple[str, ...]:
    found = document.get(name)
    return tuple(sys.intern(each) for each in found if isinstance(each, str)) if isinstance(found, list) else ()


def number(document: Object, name: str) -> int:
    """A port number; 0 where there is none."""
    found = document.get(name)
    return found if isinstance(found, int) and not isinstance(found, bool) and 0 < found < 65536 else 0


def labels(document: Object, name: str = "labels") -> Labels:
    """Sorted pairs."""
    found = part(document, name)
    return tuple(sorted((sys.intern(key), sys.intern(value)) for key, value in found.items() if isinstance(value, str)))


def addresses(found: tuple[str, ...]) -> tuple[str, ...]:
    """Addresses in their one spelling; what is none is left out."""
    plain = (plain_address(each) for each in found)
    return tuple(dict.fromkeys(each for each in plain if each is not None))
