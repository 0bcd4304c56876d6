"""Heads of the application's responses, read for where they end and nothing else. Pure.

A response passes unchanged, and still its framing must have one meaning, or the application could smuggle responses to
another client of a shared connection (RFC 9112 sections 6.3 and 11.1).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import httptools

from sidecar.http.errors import Malformed
from sidecar.http.head import CHUNKED, END, LINES, SILENT

#: The length of a body that ends with its connection.
UNTIL_CLOSE: Final = -2

_HEAD: Final = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*+)?\r\n" + LINES + rb"\r\n")
_KNOWN: Final = re.compile(
    rb"(?i:\n(?=[ctwpku])(content-length|transfer-encoding|connection|keep-alive|upgrade|(?:www|proxy)-authenticate)):"
    rb"[ \t]*([^\r]*)"
)
_LENGTH: Final = re.compile(rb"0|[1-9][0-9]{0,17}")
_TIMEOUT: Final = re.compile(rb"(?i:(?:\A|[ ,;])timeout=([0-9]{1,5}))")
_CONNECTION: Final = re.compile(rb"(?i:\n(?:connection|keep-alive):)[^\r]*\r(?=\n)")


@dataclass(slots=True)
class ResponseHead:
    """One response's head. Not frozen, as :class:`~sidecar.http.head.RequestHead` is not.

    :param raw: as it came
    :param status: three digits
    :param length: of the body unless the request or the status says that there is none: bytes,
        :data:`~sidecar.http.head.CHUNKED` or :data:`UNTIL_CLOSE`
    :param keep: the application takes further requests on this connection
    :param upgrade: it names the protocol that it goes on in
    :param bound: it authenticates the *connection* (NTLM, Negotiate)
    :param idle: seconds that the application keeps the connection open; 0: it does not say
    """

    raw: bytes
    status: int
    length: int
    keep: bool
    upgrade: bool
    bound: bool
    idle: int


def read_response(data: bytes, limit: int = 65_536) -> ResponseHead | None:
    """Read the head at the beginning of ``data``.

    :return: None when it is not complete yet
    :raises Malformed: when it can not be understood in exactly one way
    """
    end = data.find(END)
    if end < 0 or end + 4 > limit:
        if len(data) >= limit or end >= 0:
            raise Malformed("head-too-large")
        return None
    raw = data[: end + 4]
    match = _HEAD.fullmatch(raw)
    if match is None:
        raise Malformed("response-head")
    status = int(match[2])
    keep = match[1] == b"1"
    length = UNTIL_CLOSE
    chunked = has_length = upgrade = bound = False
    idle = 0
    for name, value in _KNOWN.findall(raw):
        name = name.lower()
        value = value.rstrip(b" \t")
        if name == b"content-length":
            if _LENGTH.fullmatch(value) is None or (has_length and int(value) != length):
                raise Malformed("content-length")
            has_length, length = True, int(value)
        elif name == b"connection":
            tokens = value.lower()
            if b"close" in tokens:
                keep = False
            elif b"keep-alive" in tokens:
                keep = True
        elif name == b"keep-alive":
            timeout = _TIMEOUT.search(value)
            idle = int(timeout[1]) if timeout is not None else idle
        elif name == b"transfer-encoding":
            if chunked or value.lower() != b"chunked":
                raise Malformed("transfer-encoding")
            chunked = True
        elif name == b"upgrade":
            upgrade = True
        else:
            bound = bound or value[:9].lower() == b"negotiate" or value[:4].lower() == b"ntlm"
    if chunked:
        if has_length or match[1] == b"0":
            raise Malformed("length-and-encoding")
        length = CHUNKED
    parser = httptools.HttpResponseParser(SILENT)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        if status != 101:
            raise Malformed("llhttp") from None
    except httptools.HttpParserError:
        raise Malformed("llhttp") from None
    return ResponseHead(raw, status, length, keep, upgrade, bound, idle)


def with_close(raw: bytes) -> bytes:
    """The head with ``connection: close`` in place of what it says about its connection."""
    return _CONNECTION.sub(b"", raw)[:-2] + b"connection: close\r\n\r\n"
