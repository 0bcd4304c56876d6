"""Takes JSON apart without trusting its shape: what is not as its API says is :class:`Unreadable`, or nothing.

Words that many objects have (labels, accounts, owners) are kept once, see :class:`Shared`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

from controller.inventory.model import plain_address
from controller.inventory.ports import is_somebodys
from controller.kube.reflector import Unreadable
from controller.memory import forgotten_on_demand

type Labels = tuple[tuple[str, str], ...]
type Object = Mapping[str, Any]


#: Labels, names and addresses are no longer; what is, nobody else has.
_LONGEST = 253


class Shared[T: Hashable]:
    """Gives equal values as one object, as long as they are in use.

    ``sys.intern`` would keep every word for ever (in Python 3.12), and the names, uids and addresses of pods never come
    again. Here a value that was not among the last ``limit`` different ones, nor among those before them, is forgotten.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._young: dict[T, T] = {}
        self._old: dict[T, T] = {}

    def forget(self) -> None:
        """Whatever was given; it is in use where it is in use."""
        self._young, self._old = {}, {}

    def one(self, value: T) -> T:
        """The value itself, or an equal one that was given before."""
        found = self._young.get(value)
        if found is not None:
            return found
        if len(self._young) >= self._limit:
            self._old, self._young = self._young, {}
        found = self._old.get(value, value)
        self._young[found] = found
        return found

    def __len__(self) -> int:
        return len(self._young) + len(self._old)


#: Takes 3 MB when it is full.
_WORDS = Shared[str](8192)
forgotten_on_demand(_WORDS.forget)
#: A pod's address is in its own object and in slices, soon after. Takes 1 MB when it is full.
_ADDRESSES = Shared[str](4096)
forgotten_on_demand(_ADDRESSES.forget)


def shared(word: str) -> str:
    """The word; an equal one that was read before, if there was one lately."""
    return _WORDS.one(word) if len(word) <= _LONGEST else word


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
    """A text that others have too; empty where it is absent."""
    return shared(text(document, name))


def text(document: Object, name: str) -> str:
    """A text of the object's own; empty where it is absent."""
    found = document.get(name)
    return found if isinstance(found, str) else ""


def needed(document: Object, name: str) -> str:
    """A text of the object's own. :raises Unreadable: where it is absent"""
    found = text(document, name)
    if not found:
        raise Unreadable(f"{name} is missing")
    return found


def words(document: Object, name: str) -> tuple[str, ...]:
    found = document.get(name)
    return tuple(each for each in found if isinstance(each, str)) if isinstance(found, list) else ()


def number(document: Object, name: str) -> int:
    """A port number; 0 where there is none."""
    found = document.get(name)
    return found if isinstance(found, int) and not isinstance(found, bool) and 0 < found < 65536 else 0


def labels(document: Object, name: str = "labels") -> Labels:
    """Sorted pairs."""
    found = part(document, name)
    return tuple(sorted((shared(key), shared(value)) for key, value in found.items() if isinstance(value, str)))


def addresses(found: tuple[str, ...]) -> tuple[str, ...]:
    """Addresses in their one spelling; what is none, or can be no one machine's, is left out: an EndpointSlice may have
    a multicast address, and an inventory may not."""
    plain = (plain_address(each) for each in found)
    return tuple(_ADDRESSES.one(each) for each in dict.fromkeys(plain) if each is not None and is_somebodys(each))
