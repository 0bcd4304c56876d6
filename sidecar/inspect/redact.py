"""What a person may not see of a request, taken out before anything leaves the pod. Pure.

Rules:

1. Headers that carry credentials are hidden always; which others, and which of those not, is a setting.
2. A body is shown only when it can be redacted: JSON and forms by their keys, other text by patterns. What is
   compressed in a way we do not read, binary (also protobuf, so gRPC), of several parts, or broken is withheld.
3. What is shown is bounded before it is looked at, and the time to look grows no faster than what is looked at: nobody
   who may send a request can keep the sidecar busy with it.
4. What hides is read as its receiver would read it: percent-encoded names, JSON inside of JSON, and elements of XML
   with attributes hide as their plain forms do. Text in a character set that is not looked into is withheld.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import unquote_plus, unquote_to_bytes

from graph.tap import MAX_FIELDS, Fields, Message

HIDDEN: Final = b"[redacted]"
_HIDDEN_TEXT: Final = "[redacted]"

#: Headers that are hidden, in lower case.
HEADERS: Final = frozenset(
    {
        "authentication",
        "authorization",
        "cookie",
        "cookie2",
        "proxy-authorization",
        "set-cookie",
        "set-cookie2",
        "x-amz-security-token",
        "x-api-key",
        "x-auth",
        "x-auth-token",
        "x-csrf-token",
        "x-forwarded-authorization",
        "x-vault-token",
        "x-xsrf-token",
    }
)
#: Keys of JSON, forms and queries, and parts of names of headers, that are hidden: without ``-`` and ``_``, lower case.
KEYS: Final = (
    "accesskey",
    "apikey",
    "authkey",
    "authorization",
    "cardnumber",
    "credential",
    "creditcard",
    "csrf",
    "cvv",
    "jwt",
    "passphrase",
    "passwd",
    "password",
    "privatekey",
    "pwd",
    "secret",
    "session",
    "signature",
    "ssn",
    "token",
)
_KEY: Final = re.compile("|".join(KEYS))
#: What a JSON Web Token is part of: it begins with ``eyJ``; what follows its first point is hidden with it.
_WORD: Final = re.compile(rb"[A-Za-z0-9_.-]{9,}+")
_BEARER: Final = re.compile(rb"(?i)\b(bearer|basic|negotiate)(?:[ \t+]|%20)++[A-Za-z0-9._~+/=-]{4,}+")
_PEM: Final = re.compile(rb"-----BEGIN [A-Z ]{0,40}-----.*", re.DOTALL)
#: A name and what stands between it and its value. It begins where a name begins only: no end of it is tried twice.
_NAMED: Final = re.compile(
    rb"(?<![A-Za-z0-9_.$%\[\]-])([A-Za-z0-9_.$%\[\]-]++)\\*+[\"']?\s*+[:=>]{1,3}+\s*+"
)  # fmt: skip
_QUOTE: Final = re.compile(rb"\\*+[\"']")
_TO_DOUBLE: Final = re.compile(rb"(?:[^\"\\]|\\[\s\S])*+\"?")
_TO_SINGLE: Final = re.compile(rb"(?:[^'\\]|\\[\s\S])*+'?")
_BARE: Final = re.compile(rb"[^\s,;&<>\"']++")
_LINE: Final = re.compile(rb"[^\r\n\"]++")
#: The beginning of an element of XML or HTML, with its attributes.
_ELEMENT: Final = re.compile(rb"<((?:[A-Za-z0-9_.-]++:)?+([A-Za-z0-9_.-]++))(?:\s[^<>]*+)?+>")
_CHARSET: Final = re.compile(rb"(?i)(?:charset|encoding)\s{0,8}=\s{0,8}[\"']?([A-Za-z0-9_.:-]{1,40})")
#: Character sets in which names look as they do in ASCII.
_LIKE_ASCII: Final = re.compile(rb"(?i)(?:utf-?8|(?:us-)?ascii|latin-?1|iso-?8859-\d{1,2}|windows-125\d)\Z")
_TEXT: Final = re.compile(rb"(?:text/[a-z0-9.+-]+|application/(?:xml|javascript|[a-z0-9.+-]+\+xml))\Z")
_JSON: Final = re.compile(rb"application/(?:json|[a-z0-9.+-]+\+json)\Z")
_SEPARATOR: Final = re.compile("([&;])")
_MARKS: Final = re.compile(r"[\W_]+")
_FORM: Final = b"application/x-www-form-urlencoded"
#: Nesting of JSON that is followed.
_DEEPEST: Final = 64


class Redactor:
    """Hides.

    :param visible: names that are shown although they are among the usual ones; ``hidden`` those beside them
    """

    def __init__(self, visible: Iterable[str] = (), hidden: Iterable[str] = ()) -> None:
        self._visible = frozenset(_plain(name) for name in visible)
        self._hidden = frozenset(_plain(name) for name in hidden)

    def hides(self, name: str) -> bool:
        """Whether the value of a header, a key or a parameter of this name is hidden."""
        plain = _plain(name)
        if plain in self._hidden:
            return True
        if plain in self._visible:
            return False
        return name.lower() in HEADERS or _KEY.search(plain) is not None

    def fields(self, fields: Fields) -> Fields:
        """Header fields, with what is hidden hidden, and not more than can be shown."""
        shown, left = [], MAX_FIELDS
        for name, value in fields[:256]:
            if self.hides(name.decode("latin-1")):
                value = HIDDEN
            left -= len(name) + len(value)
            if left < 0:
                shown.append((b"...", b"more than is shown"))
                break
            shown.append((name, self._text(value)))
        return tuple(shown)

    def path(self, path: str) -> str:
        """A path with its query."""
        bare, mark, query = path.partition("?")
        shown = self._text(bare.encode("latin-1", "replace")).decode("latin-1")
        return shown + mark + self._parameters(query, 256)

    def message(self, fields: Fields, trailers: Fields, size: int, body: bytes | None, limit: int) -> Message:
        """A whole message.

        :param size: of the body
        :param body: the beginning of it, as it was sent; None: it was not asked for
        :param limit: bytes of it that are shown
        """
        shown, kept = self.fields(fields), self.fields(trailers)
        if body is None or not size:
            return Message(shown, kept, size)
        content = self.body(_first(fields, b"content-type"), _all(fields, b"content-encoding"), body, size, limit)
        return Message(shown, kept, size, *content)

    def body(self, kind: bytes, encoding: bytes, body: bytes, size: int, limit: int) -> tuple[bytes, str]:
        """What may be shown of a body, and why not all of it."""
        whole = len(body) >= size
        if encoding.lower() in (b"gzip", b"x-gzip", b"deflate"):
            unpacked = _unpack(body, limit)
            if unpacked is None:
                return b"", "compressed, and not readable"
            body, whole = unpacked[0], whole and unpacked[1]
        elif encoding.lower() not in (b"", b"identity"):
            return b"", "compressed"
        charset, kind = _CHARSET.search(kind), kind.partition(b";")[0].strip().lower()
        if _JSON.match(kind):
            if whole:
                return self._json(body, limit)
            return b"", "larger than what is looked at"  # half a document can not be redacted by its keys
        if kind != _FORM and not _TEXT.match(kind):
            return b"", "not text"
        charset = charset or _CHARSET.search(body[:1024])
        if (charset is not None and not _LIKE_ASCII.match(charset[1])) or b"\0" in body[:limit]:
            return b"", "in a character set that is not looked into"
        cut = "" if whole and len(body) <= limit else "shortened"
        if kind == _FORM:
            return self._parameters(body[:limit].decode("latin-1")).encode("latin-1", "replace")[:limit], cut
        return self._patterns(self._elements(body[:limit])), cut

    def _json(self, body: bytes, limit: int) -> tuple[bytes, str]:
        try:
            document = json.loads(body)
            shown = json.dumps(self._value(document, 0), ensure_ascii=False).encode("utf-8", "replace")
        except (ValueError, RecursionError):
            return b"", "not the JSON that it says it is"
        shown = self._patterns(shown)
        return shown[:limit], "" if len(shown) <= limit else "shortened"

    def _value(self, value: Any, depth: int) -> Any:
        if depth > _DEEPEST:
            return _HIDDEN_TEXT
        if isinstance(value, dict):
            return {
                key: _HIDDEN_TEXT if self.hides(key) else self._value(inner, depth + 1) for key, inner in value.items()
            }
        if isinstance(value, list):
            return [self._value(inner, depth + 1) for inner in value]
        if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):  # a document within, as text
            try:
                return json.dumps(self._value(json.loads(value), depth + 1), ensure_ascii=False)
            except ValueError:
                return value
        return value

    def _parameters(self, text: str, most: int = 0) -> str:
        """The pairs of a query or a form. :param most: that are shown; 0: all"""
        parts = _SEPARATOR.split(text)
        kept = parts[: 2 * most - 1] if most else parts
        return "".join(part if index % 2 else self._parameter(part) for index, part in enumerate(kept))

    def _parameter(self, pair: str) -> str:
        name, mark, value = pair.partition("=")
        if mark and self.hides(name):
            return f"{name}={_HIDDEN_TEXT}"
        return f"{name}{mark}{self._text(value.encode('latin-1', 'replace')).decode('latin-1')}"

    def _text(self, data: bytes) -> bytes:
        """A value that may be, or hold, a URL: what its percent-encoding covers is looked at, too."""
        shown = self._patterns(data)
        if b"%" in shown:
            decoded = unquote_to_bytes(shown)
            found = self._patterns(decoded)
            if found != decoded:
                return found
        return shown

    def _elements(self, data: bytes) -> bytes:
        """XML or HTML without what is within elements whose names hide it."""
        parts: list[bytes] = []
        position = 0
        while (match := _ELEMENT.search(data, position)) is not None:
            parts.append(data[position : match.end()])
            position = match.end()
            if match[0].endswith(b"/>") or not self.hides(match[2].decode("ascii")):
                continue
            parts.append(HIDDEN)
            end = data.find(b"</" + match[1], position)
            position = end if end >= 0 else len(data)
        return b"".join((*parts, data[position:]))

    def _patterns(self, data: bytes) -> bytes:
        if b"eyJ" in data:
            data = _WORD.sub(_without_jwt, data)
        return self._pairs(_PEM.sub(HIDDEN, _BEARER.sub(rb"\1 " + HIDDEN, data)))

    def _pairs(self, data: bytes) -> bytes:
        """Text without the values whose names hide them."""
        parts: list[bytes] = []
        copied = position = 0
        while (match := _NAMED.search(data, position)) is not None:
            position = match.end()
            name = match[1].decode("ascii")
            if not self.hides(name):
                continue
            if (quote := _QUOTE.match(data, position)) is not None:
                end = _end_of_quoted(data, quote[0], quote.end())
                parts += (data[copied:position], quote[0], HIDDEN, quote[0])
            elif (bare := (_LINE if name.lower() in HEADERS else _BARE).match(data, position)) is not None:
                end = bare.end()
                parts += (data[copied:position], HIDDEN)
            else:
                continue
            copied = position = end
        return b"".join((*parts, data[copied:]))


def _plain(name: str) -> str:
    for _ in range(3):  # encoded twice is known to happen
        if "%" not in name:
            break
        name = unquote_plus(name)
    return _MARKS.sub("", name.lower())


def _without_jwt(match: re.Match[bytes]) -> bytes:
    word, position = match[0], 0
    while (point := word.find(b".", position)) >= 0:
        found = word.find(b"eyJ", position, point)
        if 0 <= found <= point - 8:
            return word[:found] + HIDDEN
        position = point + 1
    return word


def _end_of_quoted(data: bytes, mark: bytes, position: int) -> int:
    """Where a value ends that began with ``mark``, a quote behind as many backslashes as it is deep in other texts."""
    ending = re.compile(rb"(?<!\\)" + re.escape(mark)) if 1 < len(mark) < 16 else None
    if ending is None:
        found = (_TO_DOUBLE if mark.endswith(b'"') else _TO_SINGLE).match(data, position)
        return found.end() if found is not None else len(data)
    end = ending.search(data, position)
    return end.end() if end is not None else len(data)


def _all(fields: Fields, name: bytes) -> bytes:
    return b", ".join(value for given, value in fields if given.lower() == name)


def _first(fields: Fields, name: bytes) -> bytes:
    return next((value for given, value in fields if given.lower() == name), b"")


def _unpack(body: bytes, limit: int) -> tuple[bytes, bool] | None:
    """The beginning of what a compressed body holds, and whether that is all; None when it is not compressed so."""
    for window in (47, -15):  # gzip or zlib by its header; deflate without one
        unpacker = zlib.decompressobj(window)
        try:
            shown = unpacker.decompress(body, limit + 1)
        except zlib.error:
            continue
        return shown[:limit], unpacker.eof and len(shown) <= limit
    return None
