"""The few header lines that the lane adds, and the answers that it gives itself.

Random identifiers come from the system's generator, a block of them at a time.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Final

#: Hexadecimal digits of one trace (32), one span (16) and one UUID (32, of which two are fixed).
_DIGITS: Final = 80
#: Bytes taken from the system at once: for 512 requests.
_BLOCK: Final = 512 * _DIGITS // 2

_STATUS: Final = {
    400: b"400 Bad Request",
    403: b"403 Forbidden",
    408: b"408 Request Timeout",
    431: b"431 Request Header Fields Too Large",
    502: b"502 Bad Gateway",
}


class Identifiers:
    """Makes ``traceparent`` and ``x-request-id`` lines (W3C Trace Context section 3.2; RFC 9562 section 5.4).

    :param flags: of a trace that begins here, two hexadecimal digits
    """

    __slots__ = ("_at", "_both", "_digits", "_trace", "last")

    def __init__(self, flags: str) -> None:
        suffix = b"-" + flags.encode("ascii") + b"\r\n"
        self._trace = b"traceparent: 00-%b-%b" + suffix
        self._both = self._trace + b"x-request-id: %b\r\n\r\n"
        self._digits = b""
        self._at = 0
        #: The request ID that was made last.
        self.last = ""

    def lines(self, traced: bool, request_id: str) -> bytes:
        """What is missing in a head, and its empty line.

        :param traced: it has a ``traceparent``
        :param request_id: that it has; empty: one is made, and is in :attr:`last`
        """
        if traced and request_id:
            return b"\r\n"
        at = self._at
        if at >= len(self._digits):
            self._digits = os.urandom(_BLOCK).hex().encode("ascii")
            at = 0
        self._at = at + _DIGITS
        d = self._digits
        if request_id:
            return self._trace % (d[at : at + 32], d[at + 32 : at + 48]) + b"\r\n"
        uuid = b"%b-%b-4%b-a%b-%b" % (
            d[at + 48 : at + 56],
            d[at + 56 : at + 60],
            d[at + 60 : at + 63],
            d[at + 63 : at + 66],
            d[at + 66 : at + 78],
        )
        self.last = uuid.decode("ascii")
        if traced:
            return b"x-request-id: %b\r\n\r\n" % uuid
        return self._both % (d[at : at + 32], d[at + 32 : at + 48], uuid)


@lru_cache(maxsize=1024)
def certificate_line(ours: str, theirs: str, leaf: str = "") -> bytes:
    """The ``x-forwarded-client-cert`` line of a peer that a certificate proved, as Envoy writes it.

    :param ours: our own SPIFFE ID; ``theirs`` the peer's
    :param leaf: SHA-256 of the peer's certificate, hexadecimal; empty: not known here
    """
    if not theirs:
        return b""
    middle = f";Hash={leaf}" if leaf else ""
    return f"x-forwarded-client-cert: By={ours}{middle};URI={theirs}\r\n".encode("ascii")


def answer(status: int, reason: str, text: str, *, close: bool, head_only: bool = False) -> bytes:
    """A response of our own.

    :param reason: for the header ``x-hedgerow-reason``; short, and nothing that a client wrote
    :param text: the body, for people
    :param head_only: to a ``HEAD``
    """
    body = text.encode("utf-8") + b"\n"
    return (
        b"HTTP/1.1 %b\r\nx-hedgerow-reason: %b\r\ncontent-type: text/plain; charset=utf-8\r\n"
        b"x-content-type-options: nosniff\r\ncontent-length: %d\r\n%b\r\n%b"
        % (
            _STATUS[status],
            reason.encode("ascii"),
            len(body),
            b"connection: close\r\n" if close else b"",
            b"" if head_only else body,
        )
    )
