"""Header blocks of HTTP/2, read and never written (RFC 7541). Pure.

What is read is what the receiver reads, or nothing is: numbers, codes and tables have one meaning, and an index counts
from the newest entry, so that a receiver with another limit for its table finds the same entry or none. Everything is
bounded: the block by who reads frames, what it decompresses to and the table here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from sidecar.http.errors import Malformed

#: One header's name and value.
type Header = tuple[bytes, bytes]
type Check = Callable[[tuple[Header, ...]], None]

#: What a table may hold before anything else was agreed (RFC 9113 section 6.5.2).
_FIRST_TABLE: Final = 4096
#: An entry costs that much more than its bytes (RFC 7541 section 4.1).
_OVERHEAD: Final = 32
#: Blocks that are known as a whole, and the longest of them.
_KNOWN_BLOCKS: Final = 64
_KNOWN_LENGTH: Final = 1024

#: RFC 7541 appendix A, in order.
_STATIC_TEXT: Final = (
    ":authority|:method=GET|:method=POST|:path=/|:path=/index.html|:scheme=http|:scheme=https|:status=200|"
    ":status=204|:status=206|:status=304|:status=400|:status=404|:status=500|accept-charset|"
    "accept-encoding=gzip, deflate|accept-language|accept-ranges|accept|access-control-allow-origin|age|allow|"
    "authorization|cache-control|content-disposition|content-encoding|content-language|content-length|"
    "content-location|content-range|content-type|cookie|date|etag|expect|expires|from|host|if-match|"
    "if-modified-since|if-none-match|if-range|if-unmodified-since|last-modified|link|location|max-forwards|"
    "proxy-authenticate|proxy-authorization|range|referer|refresh|retry-after|server|set-cookie|"
    "strict-transport-security|transfer-encoding|user-agent|vary|via|www-authenticate"
)
_STATIC: Final = tuple(
    (name.encode(), value.encode()) for name, _, value in (one.partition("=") for one in _STATIC_TEXT.split("|"))
)

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


class _Huffman:
    """Codes as a machine that takes four bits at a time; a code has at least five, so a step gives one byte at most."""

    __slots__ = ("_byte", "_final", "_next")

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
        out = bytearray()
        state = 0
        bytes_, following = self._byte, self._next
        for octet in data:
            index = state + (octet >> 4)
            byte = bytes_[index]
            if byte >= 0:
                out.append(byte)
            state = following[index]
            if state < 0:
                raise Malformed("huffman")
            index = state + (octet & 15)
            byte = bytes_[index]
            if byte >= 0:
                out.append(byte)
            state = following[index]
            if state < 0:
                raise Malformed("huffman")
        if state not in self._final:
            raise Malformed("huffman")
        return bytes(out)


@lru_cache(maxsize=1)
def _huffman() -> _Huffman:
    """Made when it is first needed: it takes some milliseconds, and a pod may never see HTTP/2."""
    return _Huffman()


def anything(headers: tuple[Header, ...]) -> None:
    """Checks nothing."""


class HeaderReader:
    """Reads the blocks of one direction of one connection, in order and without leaving one out.

    :param headers_bytes: that one block may decompress to, counted as entries of the table are
    :param table_bytes: that the table may hold, whatever the two ends agree on
    :param check: is shown every block that is not known yet, and raises what is wrong with it
    """

    __slots__ = ("_check", "_headers_bytes", "_known", "_most", "_size", "_table", "_table_bytes")

    def __init__(self, headers_bytes: int, table_bytes: int, check: Check = anything) -> None:
        self._check = check
        self._headers_bytes = headers_bytes
        self._table_bytes = table_bytes
        self._table: deque[Header] = deque()  # the newest first
        self._size = 0
        self._most = min(_FIRST_TABLE, table_bytes)
        self._known: dict[bytes, tuple[Header, ...]] = {}  # by the table as it is

    def read(self, block: bytes) -> tuple[Header, ...]:
        """One whole block.

        :raises Malformed: when it can not be read, or passes a bound; nothing more can be read then
        """
        known = self._known.get(block)
        if known is not None:
            return known
        headers, changed = self._read(block)
        self._check(headers)
        if changed:
            self._known.clear()
        elif len(block) <= _KNOWN_LENGTH:
            if len(self._known) >= _KNOWN_BLOCKS:
                self._known.clear()
            self._known[block] = headers
        return headers

    def _read(self, block: bytes) -> tuple[tuple[Header, ...], bool]:
        headers: list[Header] = []
        left = self._headers_bytes
        changed = False
        at, end = 0, len(block)
        while at < end:
            first = block[at]
            if first & 0x80:  # both are in a table
                index, at = self._integer(block, at, 0x7F)
                header = self._entry(index)
            elif first & 0xE0 == 0x20:  # another size of the table
                size, at = self._integer(block, at, 0x1F)
                if size > self._table_bytes or headers:
                    raise Malformed("hpack-table")
                self._most = size
                self._evict(0)
                changed = True
                continue
            else:
                kept = bool(first & 0x40)
                index, at = self._integer(block, at, 0x3F if kept else 0x0F)
                if index:
                    name = self._entry(index)[0]
                else:
                    name, at = self._string(block, at)
                value, at = self._string(block, at)
                header = (name, value)
                if kept:
                    self._insert(header)
                    changed = True
            left -= len(header[0]) + len(header[1]) + _OVERHEAD
            if left < 0:
                raise Malformed("hpack-size")
            headers.append(header)
        return tuple(headers), changed

    def _entry(self, index: int) -> Header:
        if 0 < index <= len(_STATIC):
            return _STATIC[index - 1]
        index -= len(_STATIC) + 1
        if not 0 <= index < len(self._table):
            raise Malformed("hpack-index")
        return self._table[index]

    def _insert(self, header: Header) -> None:
        size = len(header[0]) + len(header[1]) + _OVERHEAD
        self._evict(size)
        if size <= self._most:
            self._table.appendleft(header)
            self._size += size

    def _evict(self, room: int) -> None:
        """Forget the oldest until ``room`` more bytes fit, or none are left."""
        while self._table and self._size + room > self._most:
            name, value = self._table.pop()
            self._size -= len(name) + len(value) + _OVERHEAD

    @staticmethod
    def _integer(block: bytes, at: int, mask: int) -> tuple[int, int]:
        """RFC 7541 section 5.1; numbers beyond 2^28 are refused."""
        value = block[at] & mask
        at += 1
        if value < mask:
            return value, at
        for shift in (0, 7, 14, 21):
            if at >= len(block):
                break
            octet = block[at]
            at += 1
            value += (octet & 0x7F) << shift
            if not octet & 0x80:
                return value, at
        raise Malformed("hpack-integer")

    def _string(self, block: bytes, at: int) -> tuple[bytes, int]:
        if at >= len(block):
            raise Malformed("hpack-string")
        packed = block[at] & 0x80
        size, at = self._integer(block, at, 0x7F)
        data = block[at : at + size]
        if len(data) < size:
            raise Malformed("hpack-string")
        return (_huffman().decode(data) if packed else data), at + size
