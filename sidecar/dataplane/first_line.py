"""Whether a client's first line turns out to be a request of HTTP after all. Pure.

What :mod:`sidecar.dataplane.detect` calls opaque was judged by what had come. A client may send a request line letter
by letter, with pauses, or have it begin as no client of anybody's does; the server waits, and takes the whole of it for
a request, with headers in it that only we may set. So a first line that has not ended is read on, in pieces of any
size, until it ends: with the name of a version (RFC 9112 section 2.3), or in the form of HTTP/0.9, behind which some
servers (Python's ``http.server``) read headers too.

Whitespace is what the most lenient reader takes for it, a lone CR among it: Python's ``http.server``, and with it
every framework's server for developers, splits the line as a text in Latin-1, where it is ten characters.
"""

from __future__ import annotations

import re
from typing import Final

#: What lenient servers skip in front of a request.
BLANK: Final = b"\r\n\t\v\f\x1c\x1d\x1e\x1f \x85\xa0"
_SPACE: Final = b"\t\v\f\r\x1c\x1d\x1e\x1f \x85\xa0"
_SPACES: Final = re.compile(rb"[" + _SPACE + rb"]+")
#: A method begins with a letter of a token (RFC 9110 section 5.6.2); what has a control byte in that word, so early, is
#: no text.
_TEXT: Final = re.compile(rb"(?![^" + BLANK + rb"]{0,7}[\x00-\x08\x0e-\x1b\x7f])[!#$%&'*+.^_`|~0-9A-Za-z-]", re.DOTALL)
_VERSION: Final = re.compile(rb"[" + _SPACE + rb"]HTTP/[0-9][0-9._]{0,20}\Z", re.IGNORECASE)
#: The same with an end of its line, which a lone CR may be, behind it.
_VERSION_ENDED: Final = re.compile(
    rb"[" + _SPACE + rb"]HTTP/[0-9][0-9._]{0,20}[" + _SPACE.replace(b"\r", b"") + rb"]*+[\r\n]", re.IGNORECASE
)
_OLD: Final = re.compile(rb"GET[" + _SPACE + rb"]++/")
_ENDED: Final = re.compile(rb"[\r\n]")
#: Bytes kept of the end of a line: those of its version, and more than any has.
_KEPT: Final = 40
#: Bytes kept of its beginning, with one blank in place of many: one more than those of ``GET /``.
_HEAD: Final = 6


def is_request(line: bytes) -> bool:
    """Whether some server takes a whole first line, or its beginning and its end, for that of a request."""
    return _VERSION.search(line.rstrip(_SPACE)[-_KEPT:]) is not None or _OLD.match(line.lstrip(_SPACE)) is not None


class FirstLine:
    """Reads one client's first line. Holds a few bytes of it, and takes time for what comes and not for what came: a
    client may send nothing but line ends."""

    __slots__ = ("_begun", "_head", "_old", "_tail")

    def __init__(self) -> None:
        self._begun = False
        self._head = b""
        self._old = False  # it begins as a request of HTTP/0.9
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
        end = data.find(b"\n")
        if end >= 0:
            data = data[: end + 1]
        words = self._tail + data
        if self._is_old(data) or _VERSION_ENDED.search(words) is not None:
            return True
        if end >= 0:
            return False
        kept = words.rstrip(_SPACE)
        # as much as may turn out to be a version; a CR behind one would have ended the line
        self._tail = kept[-_KEPT:] + b" " if len(kept) < len(words) else kept[-_KEPT:]
        return None

    def _is_old(self, data: bytes) -> bool:
        """Whether the line has the form of HTTP/0.9, and ends, be it at a lone CR."""
        if self._old:
            return _ENDED.search(data) is not None
        if len(self._head) == _HEAD:
            return False
        data = self._head + data
        begun = _OLD.match(data)
        if begun is not None:
            self._old = True
            return _ENDED.search(data, begun.end()) is not None
        self._head = _SPACES.sub(b" ", data, count=_HEAD)[:_HEAD]
        return False


def is_open(data: bytes) -> bool:
    """Whether what begins with ``data``, all that came so far, may still turn out to be a request."""
    return bool(data) and FirstLine().take(data) is not False
