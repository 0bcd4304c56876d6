"""The framing of a chunked body, checked before a byte of it is passed on. Pure.

RFC 9112 section 7.1 without what only attackers send: a size has 1 to 15 hexadecimal digits and nothing behind it, and
every line ends in CRLF. Chunk extensions are refused in requests: nobody uses them, servers disagree about where they
end, and that disagreement has smuggled requests before. In responses, which a client of ours asked for, they pass.
Trailers have to be good header lines and may not say what a head decides, nor name another method or path.
"""

from __future__ import annotations

import re
from typing import Final

from sidecar.http.errors import Malformed
from sidecar.http.head import END, LINES, OVERRIDES

_SIZE: Final = re.compile(rb"[0-9A-Fa-f]{1,15}")
_BEGUN: Final = re.compile(rb"[0-9A-Fa-f]{0,15}\r?")
_EXTENDED: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t\x20-\x7e]*)?")
_TRAILERS: Final = re.compile(LINES + rb"\r\n")
_FORBIDDEN: Final = re.compile(
    rb"(?i:(?:\A|\n)(?:content[-_]length|transfer[-_]encoding|host|connection|upgrade|trailer|te|expect|authorization"
    rb"|cookie|traceparent|x[-_]request[-_]id|x[^0-9A-Za-z:\r\n](?:forwarded|hedgerow)[^0-9A-Za-z:\r\n][^:]*|"
    + OVERRIDES
    + rb"):)"
)
#: Bytes of a size line that has extensions.
_LONGEST_LINE: Final = 4096


class ChunkReader:
    """Reads one body.

    :param trailer_bytes: that the trailers may have
    :param response: of a response: extensions pass
    """

    __slots__ = ("_crlf", "_left", "_response", "_trailer_bytes", "_trailers", "done")

    def __init__(self, trailer_bytes: int, *, response: bool = False) -> None:
        self._left = 0  # bytes of the chunk that we are in
        self._crlf = False  # its end is next
        self._trailers = False
        self._trailer_bytes = trailer_bytes
        self._response = response
        #: The body is complete.
        self.done = False

    def skip(self, size: int) -> bool:
        """Whether the next ``size`` bytes are all within one chunk; they count as read then."""
        if size < self._left:
            self._left -= size
            return True
        return False

    def take(self, data: bytes, start: int) -> int:
        """Read ``data`` from ``start``.

        :return: where the good part ends; what is behind it and belongs to the body is to be given again with more
        :raises Malformed: when it is not the framing of a chunked body
        """
        size = len(data)
        while True:
            if self._left:
                step = min(self._left, size - start)
                start += step
                self._left -= step
                if self._left:
                    return start
                self._crlf = True
            if self._crlf:
                end = data[start : start + 2]
                if end != b"\r\n":
                    if len(end) == 2 or end not in b"\r":
                        raise Malformed("chunk-end")
                    return start
                start += 2
                self._crlf = False
            if self._trailers:
                return self._end(data, start)
            if start == size:
                return start
            end_of_line = data.find(b"\r\n", start, start + _LONGEST_LINE)
            if end_of_line < 0:
                if size - start >= _LONGEST_LINE or (not self._response and not _BEGUN.fullmatch(data, start)):
                    raise Malformed("chunk-size")
                return start
            self._left = self._size(data, start, end_of_line)
            start = end_of_line + 2
            if not self._left:
                self._trailers = True

    def _size(self, data: bytes, start: int, end: int) -> int:
        if _SIZE.fullmatch(data, start, end) is not None:
            return int(data[start:end], 16)
        extended = _EXTENDED.fullmatch(data, start, end)
        if extended is None:
            raise Malformed("chunk-size")
        if not self._response:
            raise Malformed("chunk-extension")
        return int(extended[1], 16)

    def _end(self, data: bytes, start: int) -> int:
        if data.startswith(b"\r\n", start):
            self.done = True
            return start + 2
        end = data.find(END, start)
        if end < 0:
            if len(data) - start > self._trailer_bytes:
                raise Malformed("trailers-too-large")
            return start
        end += 4
        if end - start > self._trailer_bytes:
            raise Malformed("trailers-too-large")
        trailers = data[start:end]
        if _TRAILERS.fullmatch(trailers) is None or (not self._response and _FORBIDDEN.search(trailers) is not None):
            raise Malformed("trailers")
        self.done = True
        return end
