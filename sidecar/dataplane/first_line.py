"""Whether a client's first line turns out to be a request of HTTP after all. Pure.

What :mod:`sidecar.dataplane.detect` calls opaque was judged by what had come. A client may send a request line letter
by letter, with pauses, or have it begin as no client of anybody's does; the server waits, and takes the whole of it for
a request, with headers in it that only we may set. So a first line that has not ended is read on, in pieces of any
size, until it ends: with the name of a version (RFC 9112 section 2.3), or in the form of HTTP/0.9, behind which some
servers (Python's ``http.server``) read headers too.

Whitespace is what the most lenient reader takes for it, a lone CR among it.
"""

from __future__ import annotations

import re
from typing import Final

#: What lenient servers skip in front of a request.
BLANK: Final = b"\r\n\t "
_END: Final = re.compile(rb"[\r\n]")
_SPACE: Final = b"\t\v\f\r "
_SPACES: Final = re.compile(rb"[\t\v\f\r ]+")
#: A method begins with a letter of a token (RFC 9110 section 5.6.2); what has a control byte so early is no text.
_TEXT: Final = re.compile(rb"(?!.{0,7}[\x00-\x08\x0e-\x1f\x7f])[!#$%&'*+.^_`|~0-9A-Za-z-]", re.DOTALL)
_VERSION: Final = re.compile(rb"[\t\v\f\r ]HTTP/[0-9][0-9._]{0,20}\Z", re.IGNORECASE)
_OLD: Final = re.compile(rb"GET[\t\v\f\r ]+/")
#: Bytes kept of the end of a line: those of its version, and more than any has.
_KEPT: Final = 40
#: Bytes kept of its beginning.
_HEAD: Final = 16


def is_request(line: bytes) -> bool:
    """Whether some server takes a whole first line, or its beginning and its end, for that of a request."""
    return _VERSION.search(line.rstrip(_SPACE)[-_KEPT:]) is not None or _OLD.match(line) is not None


class FirstLine:
    """Reads one client's first line. Holds a few bytes of it."""

    __slots__ = ("_begun", "_head", "_tail")

    def __init__(self) -> None:
        self._begun = False
        self._head = b""
        self._tail = b""

    def take(self, data: bytes) -> bool | None:
        """Read on.

        :param data: what came next; before the line's first byte, everything that came
        :return: whether it is a request; None as long as that is open
        """
        if not self._begun:
            data = data.lstrip(BLANK)
            if not data:
                return None
            if _TEXT.match(data) is None:
                return False
            self._begun = True
        at = 0
        while True:
            end = _END.search(data, at)
            self._add(data[at : end.start()] if end is not None else data[at:])
            if end is None:
                return None
            if _VERSION.search(self._tail.rstrip(_SPACE)) is not None or _OLD.match(self._head) is not None:
                return True
            if data[end.start()] == 0x0A:
                return False
            self._add(b" ")  # a lone CR may end the line or part its words; what follows CR in CRLF changes nothing
            at = end.end()

    def _add(self, piece: bytes) -> None:
        if not piece:
            return
        if len(self._head) < _HEAD:
            self._head = _SPACES.sub(b" ", self._head + piece)[:_HEAD]
        words = self._tail + piece
        kept = words.rstrip(_SPACE)
        self._tail = kept[-_KEPT:] + b" " if len(kept) < len(words) else kept[-_KEPT:]


def is_open(data: bytes) -> bool:
    """Whether what begins with ``data``, all that came so far, may still turn out to be a request."""
    return bool(data) and FirstLine().take(data) is not False
