"""The code that packs texts in header blocks (RFC 7541 section 5.2 and appendix B), read and never written. Pure.

A text of many kilobytes is one step for everybody behind it, so zlib reads it, ten times as fast as anything in Python:
RFC 7541 gives codes to bytes in the order of their lengths, as deflate does (RFC 1951 section 3.2.2), but each octet
has its first bit first. What is written in texts, the printable characters but the backslash, has codes of up to 15
bits, which is what deflate can say. All other codes but that of NUL, and the end's, begin with fifteen ones, which to
deflate end the block: such a text, and a short one, is read an octet at a time, by a table that is made of what came.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from functools import lru_cache
from itertools import combinations
from typing import Any, Final

from sidecar.http.errors import Malformed

#: RFC 7541 appendix B: the bits of each byte's code. The codes follow from them, in order of length and then of byte;
#: the last one, of 30 bits, stands for the end and never occurs.
_LENGTHS: Final = bytes.fromhex(
    "0d171c1c1c1c1c1c1c181e1c1c1e1c1c1c1c1c1c1c1c1e1c1c1c1c1c1c1c1c1c060a0a0c0d06080b0a0a080b0806060605050506"
    "06060606060607080f060c0a0d06070707070707070707070707070707070707070707070807080d130d0e060f05060506050606"
    "060507070606060506070605050607070707070f0b0e0d1c14161414161616171617171717171817181816171817171717151617"
    "1617171816151416161717151716161815161717151516151716171714161616171616171a1a1413161716191a1a1a1b1b1a1819"
    "13151a1b1b1a1b1815151a1a1c1b1b1b14181415161515171616191918181a171a1b1a1a1b1b1b1b1b1c1b1b1b1b1b1a"
)
_END_LENGTH: Final = 30
#: Where a row has its state.
_STATE: Final = 256

#: RFC 1951 section 3.2.5: the longest code, the symbol that ends a block, and the raw format's name in zlib.
_LONGEST: Final = 15
_END_OF_BLOCK: Final = 256
_RAW: Final = -15
#: RFC 1951 section 3.2.7: in which order the lengths of the codes stand that the lengths of the codes are written with.
_ORDER: Final = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)
#: Octets with their bits the other way round.
_MIRRORED: Final = bytes(int(f"{octet:08b}"[::-1], 2) for octet in range(256))
#: Bits of what may be missing to a whole octet.
_FILLED: Final = 7
#: Octets up to which the table is as fast.
_SHORT: Final = 24


def _in_order(lengths: dict[int, int]) -> Iterator[tuple[int, int, int]]:
    """Each symbol with the length and the bits of its code, as both RFCs give them: by length, then by symbol."""
    code = length = 0
    for width, symbol in sorted((width, symbol) for symbol, width in lengths.items()):
        code <<= width - length
        length = width
        yield symbol, width, code
        code += 1


def _deflated() -> bytes:
    """The beginning of a deflate stream whose only block has our codes (RFC 1951 section 3.2.7).

    It ends with an octet, so that a text can follow: which lengths get the shorter of the two kinds of codes that they
    are written with is chosen for that.
    """
    lengths = [width if width <= _LONGEST else 0 for width in _LENGTHS]
    lengths += [_LONGEST, 0]  # the end of the block, and no code for distances
    used = sorted(set(lengths))
    for short in combinations(used, 5):  # 5 of 3 bits and 6 of 4: 5/8 + 6/16 = 1
        widths = {each: 3 if each in short else 4 for each in used}
        bits = "".join(
            (
                *(_first_last(*each) for each in ((1, 1), (2, 2), (0, 5), (0, 5), (len(_ORDER) - 4, 4))),
                *(_first_last(widths.get(each, 0), 3) for each in _ORDER),
            )
        )
        codes = {length: f"{code:0{width}b}" for length, width, code in _in_order(widths)}
        bits += "".join(codes[length] for length in lengths)
        if len(bits) % 8 == 0:
            return bytes(int(bits[at : at + 8][::-1], 2) for at in range(0, len(bits), 8))
    raise AssertionError("no choice ends with an octet")


def _first_last(number: int, width: int) -> str:
    """Numbers stand in deflate with their last bit first; codes do not."""
    return f"{number:0{width}b}"[::-1]


class _Huffman:
    """Codes as a machine that takes four bits at a time; a code has at least five, so a step gives one byte at most.

    What two of its steps do from a state is kept by the octet: the state's row of that after them, and the bytes. The
    last of a row is its state.
    """

    __slots__ = ("_byte", "_final", "_next", "_rows")

    def __init__(self) -> None:
        # (length, code) to byte; 256: the end
        ends = {(width, code): byte for byte, width, code in _in_order(dict(enumerate((*_LENGTHS, _END_LENGTH))))}
        states = {(0, 0): 0}  # prefixes of codes
        waiting = [(0, 0)]
        self._byte: list[int] = []
        self._next: list[int] = []
        self._final: set[int] = set()
        self._rows: dict[int, list[Any]] = {}
        for prefix in waiting:
            if prefix[0] <= 7 and prefix[1] == (1 << prefix[0]) - 1:
                self._final.add(states[prefix] * 16)  # what is missing to a whole byte is filled with ones
            for nibble in range(16):
                at, byte = prefix, -1
                for bit in (8, 4, 2, 1):
                    at = (at[0] + 1, at[1] << 1 | (1 if nibble & bit else 0))
                    found = ends.get(at)
                    if found is not None:
                        at, byte = (0, 0), found
                if byte == 256:
                    self._byte.append(-1)
                    self._next.append(-1)
                    continue
                if at not in states:
                    states[at] = len(states)
                    waiting.append(at)
                self._byte.append(byte)
                self._next.append(states[at] * 16)

    def decode(self, data: bytes) -> bytes:
        """:raises Malformed: when it is not the code of anything"""
        texts: list[bytes] = []
        row = self._row(0)
        for octet in data:
            step = row[octet]
            if step is None:
                step = row[octet] = self._step(row[_STATE], octet)
            row, text = step
            texts.append(text)
        if row[_STATE] not in self._final:
            raise Malformed("huffman")
        return b"".join(texts)

    def _row(self, state: int) -> list[Any]:
        row = self._rows.get(state)
        if row is None:
            row = self._rows[state] = [None] * 256 + [state]
        return row

    def _step(self, state: int, octet: int) -> tuple[list[Any], bytes]:
        out = bytearray()
        for nibble in (octet >> 4, octet & 15):
            index = state + nibble
            byte, state = self._byte[index], self._next[index]
            if byte >= 0:
                out.append(byte)
            if state < 0:
                raise Malformed("huffman")
        return self._row(state), bytes(out)


@lru_cache(maxsize=1)
def _machine() -> _Huffman:
    """Made when it is first needed: it takes some milliseconds, and a pod may never see HTTP/2."""
    return _Huffman()


@lru_cache(maxsize=1)
def _inflating() -> Any:
    """What has read the codes and waits for a text. It is copied for each."""
    reader = zlib.decompressobj(_RAW)
    reader.decompress(_deflated())
    return reader


def decode(data: bytes) -> bytes:
    """What ``data`` is the code of.

    :raises Malformed: when it is not the code of anything
    """
    if len(data) > _SHORT:
        reader = _inflating().copy()
        text: bytes = reader.decompress(data.translate(_MIRRORED))
        # What is left of the last octet must be ones: more of them end the block, and give no byte. When half of them
        # are not needed for that, there were seven left over, which is right, or more.
        ends = not reader.eof and not reader.decompress(b"\xff\xff") and reader.eof
        if ends and (not reader.unused_data or 8 * len(data) - sum(text.translate(_LENGTHS)) <= _FILLED):
            return text
    return _machine().decode(data)
