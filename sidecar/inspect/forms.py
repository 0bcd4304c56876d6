"""The form in which a request or response is forwarded: one that nobody reads differently.

It is checked after everybody who may change it, header rules and addons, has had their say, on exactly what will be
written. Works on mitmproxy's objects. Sources: RFC 9110 sections 5.5, 7.2 and 9.1, RFC 9113 sections 8.2 and 8.3,
RFC 9112 section 3.2.
"""

from __future__ import annotations

import re
from typing import Final

from mitmproxy import http

from sidecar.http.head import is_ours
from sidecar.inspect.http1 import BadHead

_METHOD: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")
_PATH: Final = re.compile(rb"(/[!-\"$-~]*|\*)")
_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_AUTHORITY: Final = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]*")

#: Fields that say where a message ends and what becomes of the connection.
FRAMING: Final = (
    b"connection",
    b"content-length",
    b"host",
    b"http2-settings",
    b"keep-alive",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
)
_HOP_BY_HOP: Final = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"})

type Fields = tuple[tuple[bytes, bytes], ...]


def check_request(request: http.Request, *, http2: bool) -> None:
    """:raises BadHead: when the request could be read in two ways"""
    data = request.data
    if not _METHOD.fullmatch(data.method) or data.method == b"CONNECT":
        raise BadHead("method")
    if not _PATH.fullmatch(data.path) or (data.path == b"*" and data.method != b"OPTIONS"):
        raise BadHead("target")
    if not _AUTHORITY.fullmatch(data.authority) or (data.authority and not http2):
        raise BadHead("authority")
    hosts = check_fields(data.headers.fields, http2=http2)
    if any(b"_" in name and name.lower().replace(b"_", b"-") in FRAMING for name, _ in data.headers.fields):
        raise BadHead("header-underscore")  # an application that maps _ and - to one name would read another length
    if len(hosts) > 1 or (hosts and data.authority and hosts[0].lower() != data.authority.lower()):
        raise BadHead("host")
    if http2 and data.scheme not in (b"http", b"https"):
        raise BadHead("scheme")


def check_fields(fields: Fields, *, http2: bool) -> list[bytes]:
    """Check every field.

    :return: the values of ``host``
    :raises BadHead: when one is no field, or has no place in this version
    """
    hosts = []
    for name, value in fields:
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise BadHead("field")
        lower = name.lower()
        if lower == b"host":
            hosts.append(value)
        elif http2 and (lower in _HOP_BY_HOP or (lower == b"te" and value != b"trailers")):
            raise BadHead("field of another version")
    return hosts


def framing(headers: http.Headers) -> Fields:
    """The fields that nobody but the sender may decide."""
    return tuple((name, value) for name, value in headers.fields if name.lower() in FRAMING)


def size_of(headers: http.Headers) -> int:
    """Bytes of the fields as HTTP/1 writes them, which is how heads are counted for every version."""
    return sum(len(name) + len(value) + 4 for name, value in headers.fields)


def without(headers: http.Headers, names: frozenset[bytes]) -> None:
    """Remove fields by their names in lower case."""
    fields = headers.fields
    kept = tuple(field for field in fields if field[0].lower() not in names)
    if len(kept) != len(fields):
        headers.fields = kept


def ours(headers: http.Headers) -> Fields:
    """The fields that only we may set; whoever else sets them is ignored."""
    return tuple(field for field in headers.fields if field[0][:1] in b"xX" and is_ours(field[0]))


def without_ours(headers: http.Headers) -> None:
    """Remove the fields that only we may set."""
    fields = headers.fields
    kept = tuple(field for field in fields if field[0][:1] not in b"xX" or not is_ours(field[0]))
    if len(kept) != len(fields):
        headers.fields = kept


def set_field(headers: http.Headers, name: bytes, value: bytes) -> None:
    """Have exactly one field of this name, given in lower case."""
    kept = [field for field in headers.fields if field[0].lower() != name]
    headers.fields = (*kept, (name, value))


def first(headers: http.Headers, name: bytes) -> bytes:
    """The first value of a field, given in lower case; empty when there is none."""
    for given, value in headers.fields:
        if len(given) == len(name) and given.lower() == name:
            return value
    return b""
