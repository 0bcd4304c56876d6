"""What a fuzz target is: a pure function of bytes that raises when a promise is broken, and where to begin."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """One reader of bytes that anybody may send.

    :param check: takes any bytes; raises AssertionError, or whatever else it should not, when a promise is broken
    :param seeds: good and nearly good inputs to begin with
    :param longest: bytes of an input, at most
    """

    name: str
    check: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]
    longest: int = 4096


def split(data: bytes) -> tuple[int, bytes]:
    """The first byte, which says how to cut the rest, and the rest."""
    return (data[0], data[1:]) if data else (0, b"")


def pieces(how: int, data: bytes) -> Iterator[bytes]:
    """``data`` cut in pieces of one or two sizes that ``how`` (a byte) chooses; 0: byte by byte."""
    sizes = (1 + (how & 15), 1 + 9 * (how >> 4))
    at = turn = 0
    while at < len(data):
        size = sizes[turn & 1]
        yield data[at : at + size]
        at += size
        turn += 1


def prefixes(data: bytes, most: int = 300) -> Iterator[bytes]:
    """Every beginning of ``data``; of long ones a sample that holds the first and the last hundred."""
    size = len(data)
    step = max(1, (size - 200) // max(1, most - 200))
    for end in range(size):
        if end < 100 or end >= size - 100 or end % step == 0:
            yield data[:end]
