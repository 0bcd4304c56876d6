"""Fields of HTTP/2 that no client may send to our application. Pure."""

from __future__ import annotations

import re
from typing import Final

from sidecar.http.errors import Malformed
from sidecar.http.head import is_ours
from sidecar.http.hpack import Header

#: A name of RFC 9113 section 8.2.1, or of a pseudo-header; and what no value may hold.
_NAME: Final = re.compile(rb":?[!#$%&'*+.^_`|~0-9a-z-]+")
_NO_VALUE: Final = re.compile(rb"[\0\r\n]")


def check_fields(headers: tuple[Header, ...]) -> None:
    """Refuse a head, or trailers, of a client that must not reach the application.

    :raises Malformed: saying why
    """
    for name, value in headers:
        if not _NAME.fullmatch(name):
            raise Malformed("h2-field-name")
        if name[:1] == b"x" and is_ours(name):
            raise Malformed("h2-forged-header")
        if _NO_VALUE.search(value):
            raise Malformed("h2-field-value")
