"""Header blocks of HTTP/2, read and never written (RFC 7541). Pure.

What is read is what the receiver reads, or nothing is: numbers, codes and tables have one meaning, and an index counts
from the newest entry, so that a receiver with another limit for its table finds the same entry or none. Everything is
bounded: the block by who reads frames, what it decompresses to and the table here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from sidecar.http import huffman
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
        return (huffman.decode(data) if packed else data), at + size
