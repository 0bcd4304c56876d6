"""The code that packs texts in header blocks (RFC 7541 section 5.2 and appendix B), read and never written. Pure.

A text of many kilobytes is one step for everybody behind it, so texts are read an octet at a time, by a table that is
made of what came: three to four times as fast as a machine that takes half of one, and of 6 MB when everything came.
"""

from __future__ import annotations

from functools import lru_cache
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


class _Huffman:
    """Codes as a machine that takes four bits at a time; a code has at least five, so a step gives one byte at most.

    What two of its steps do from a state is kept by the octet: the state's row of that after them, and the bytes. The
    last of a row is its state.
    """

    __slots__ = ("_byte", "_final", "_next", "_rows")

    def __init__(self) -> None:
        ends: dict[tuple[int, int], int] = {}  # (length, code) to byte; 256: the end
        code = length = 0
        for width, byte in sorted((*((width, byte) for byte, width in enumerate(_LENGTHS)), (_END_LENGTH, 256))):
            code <<= width - length
            length = width
            ends[length, code] = byte
            code += 1
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
def _huffman() -> _Huffman:
    """Made when it is first needed: it takes some milliseconds, and a pod may never see HTTP/2."""
    return _Huffman()


def decode(data: bytes) -> bytes:
    """What ``data`` is the code of.

    :raises Malformed: when it is not the code of anything
    """
    return _huffman().decode(data)
