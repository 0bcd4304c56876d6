"""The name of what a request asks for: its method and its path without what is different in every request. Pure.

Rules:

1. The same method and path have the same name always, whatever came before: rules are matched by it. How many names are
   *reported* is bounded elsewhere (:mod:`sidecar.http.site`).
2. A segment that looks like an identifier is ``{id}``: numbers, dates, UUIDs, hashes, long tokens, a word and a number
   (``order-1234``), what is percent-encoded or holds an address (``a@b.example``). Only whole segments are, because
   people write whole segments into rules. ``v2``, ``oauth2`` and ``index.html`` stay, and so does all of what looks
   like a gRPC call, ``POST /shop.Cart/AddItem1234``, whatever the request says of itself.
3. The query is no part of it.
4. A path that two readers could understand differently has no name that a rule could have: :data:`UNCLEAR`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

PLACEHOLDER: Final = "{id}"
#: The path of every target that is not clean, and of every request that says elsewhere what it wants.
UNCLEAR: Final = "/{unclear}"
#: The path of every operation whose name would be longer than :data:`LONGEST`, and of every path of more than 2 KiB.
LONG: Final = "/{long}"
#: The path under which operations are reported that have no place of their own any more.
OTHER: Final = "/{other}"
#: The method of an operation that asks to go on in another protocol; no method of a request can be called so, because
#: llhttp knows neither.
WEBSOCKET: Final = "WEBSOCKET"
UPGRADE: Final = "UPGRADE"
#: Characters of an operation; rules allow no longer ones.
LONGEST: Final = 512

#: Percent-encoded bytes that mean the same to everybody. Not among them: what needs no encoding (``%61``, ``%2e``),
#: separators (``%2f %5c %3b %3f %23``), control bytes, ``%`` before two digits (decoded twice), and bytes that are no
#: UTF-8 or spell another character the long way (RFC 3629 section 3).
_ENCODED: Final = (
    rb"%(?:2[0-24]|2[6-9A-Ca-c]|25(?![0-9A-Fa-f]{2})|3[AaC-Ec-e]|40|5[BbDdEe]|60|7[B-Db-d]"
    rb"|[89ABab][0-9A-Fa-f]|[Cc][2-9A-Fa-f]|[Dd][0-9A-Fa-f]"
    rb"|[Ee](?:[1-9A-Fa-f]|0(?=%[ABab]))|[Ff](?:[1-3]|0(?=%[9ABab])|4(?=%8)))"
)
#: Segments are never empty, never dots alone, and have no ``;`` (RFC 3986 section 3.3, without parameters).
_CLEAN: Final = re.compile(rb"(?:/(?!\.+(?:/|\Z))(?:[A-Za-z0-9._~!$&'()*+,=:@-]++|" + _ENCODED + rb")++)*+/?+")
_QUERY: Final = re.compile(rb"[!-\"$-~]*+")
#: Bytes of a path that is not looked through any more: what that costs grows with its length.
_LONG_PATH: Final = 2048
#: Bytes of a path whose name is kept.
_SHORT: Final = 256

#: gRPC's ``/package.Service/Method``, as everybody writes these names.
_CALL: Final = re.compile(rb"/(?:[A-Za-z_][A-Za-z0-9_]*\.)+[A-Z][A-Za-z0-9_]*/[A-Z][A-Za-z0-9_]*")
#: Whether there can be anything to replace.
_VARIES: Final = re.compile(rb"[0-9%@,=*!$&'()+]|[^/]{65}")
_NUMBER = rb"[+-]?[0-9]+(?:[.,:_-][0-9]+)*"
_UUID = rb"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"
_HASH = rb"(?=[A-Fa-f]*[0-9])[0-9A-Fa-f]{7,}"
_NUMBERED = rb"[A-Za-z]{1,16}[_-]?[0-9]{3,}"
_TOKEN = rb"(?=(?:[A-Za-z_-]*[0-9]){3})[A-Za-z0-9_-]{20,}"
_IDENTIFIER = b"(?:" + b"|".join((_NUMBER, _UUID, _HASH, _NUMBERED, _TOKEN)) + b")"
_SEGMENT: Final = re.compile(
    rb"/(?:[^/]*[%@,=*!$&'()+][^/]*|[^/]{65,}"
    # an identifier with a file's ending, and a name with a hash in it: 1234.jpg, main.3f2a9c1b.js
    rb"|"
    + _IDENTIFIER
    + rb"(?:\.[A-Za-z][A-Za-z0-9]{0,7})?|[A-Za-z0-9_-]+[.-]"
    + _HASH
    + rb"\.[A-Za-z][A-Za-z0-9.]{0,11}"
    rb")(?=/|\Z)"
)


def is_clean(target: bytes) -> bool:
    """Whether everybody understands the path of a request target in the same way."""
    path, _, query = target.partition(b"?")
    return _CLEAN.fullmatch(path) is not None and _QUERY.fullmatch(query) is not None


def template(path: bytes) -> bytes:
    """A clean path with ``{id}`` for every segment that looks like an identifier."""
    if _VARIES.search(path) is None:
        return path
    return _SEGMENT.sub(b"/{id}", path)


def operation_of(method: str, target: bytes) -> str:
    """The operation of a request.

    :param method: or :data:`WEBSOCKET`, :data:`UPGRADE`
    :param target: of the request line, or ``:path``; with or without its query
    :return: such as ``GET /cart/{id}``
    """
    path, asked, query = target.partition(b"?")
    if asked and _QUERY.fullmatch(query) is None:
        return method + " " + UNCLEAR
    return _known(method, path) if len(path) <= _SHORT else _name(method, path)


def _name(method: str, path: bytes) -> str:
    if path == b"*":
        return f"{method} *"
    if _CLEAN.fullmatch(path) is None:
        return method + " " + UNCLEAR
    if len(path) > _LONG_PATH:
        return method + " " + LONG
    kept = path if method == "POST" and _CALL.fullmatch(path) is not None else template(path)
    name = f"{method} {kept.decode('ascii')}"
    return name if len(name) <= LONGEST else method + " " + LONG


#: Names are the same always, so those of short paths are kept.
_known = lru_cache(maxsize=1024)(_name)
