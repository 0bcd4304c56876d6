"""What h2 and hpack read a field's octets with, in less time: both look at each of them in Python.

A head may hold 64 KiB, and comes as often as a client likes. Whatever h2 would refuse is still refused by h2, in its
words. Put in place by :func:`install`, which :mod:`sidecar.inspect.h2_state` calls.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import h2.utilities
import hpack.hpack

from sidecar.http import huffman
from sidecar.http.errors import Malformed

#: RFC 9113 section 8.2.1: a name of a field, or of a pseudo-header field.
_NAME: Final = re.compile(rb":?[!-9;-@\[-~]*").fullmatch
#: The same of a value: none of NUL, LF and CR, and no space or tab at either end.
_VALUE: Final = re.compile(rb"(?![ \t])[^\0\r\n]*+(?<![ \t])").fullmatch

type _Fields = Iterable[tuple[bytes, bytes]]
type _Check = Callable[[_Fields, Any], Iterable[tuple[bytes, bytes]]]


def unpacked(text: bytes | bytearray | memoryview | None) -> bytes:
    """Read a packed text as the observed lane does, which is many times as fast.

    :raises hpack.HPACKDecodingError: when it is not the code of anything
    """
    try:
        return huffman.decode(bytes(text)) if text else b""
    except Malformed:
        raise hpack.HPACKDecodingError("Invalid Huffman string") from None


def legal(check: _Check) -> _Check:
    """What h2 checks a head's octets with, asked only about fields in which there is something to find.

    :param check: h2's own; it is a generator, so that a field is refused when its turn comes
    """

    def checked(fields: _Fields, flags: Any) -> Iterator[tuple[bytes, bytes]]:
        for field in fields:
            if _NAME(field[0]) and _VALUE(field[1]):
                yield field
            else:
                yield from check((field,), flags)

    return checked


def install() -> None:
    """Have the libraries use these, once for the process."""
    hpack.hpack.decode_huffman = unpacked  # type: ignore[attr-defined, assignment]  # what its decoder calls
    theirs: Any = h2.utilities._reject_illegal_characters  # what h2 calls for each head that comes
    if theirs.__module__ == "h2.utilities":
        h2.utilities._reject_illegal_characters = legal(theirs)  # type: ignore[assignment]  # fields are tuples
