"""What a person may not see of a request, taken out before anything leaves the pod. Pure.

Rules:

1. Headers that carry credentials are hidden always; which others, and which of those not, is a setting.
2. A body is shown only when it can be redacted: JSON and forms by their keys, other text by patterns. What is
   compressed in a way we do not read, binary (also protobuf, so gRPC), of several parts, or broken is withheld.
3. What is shown is bounded before it is looked at.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable
from typing import Any, Final

from graph.tap import MAX_FIELDS, Fields, Message

HIDDEN: Final = b"[redacted]"
_HIDDEN_TEXT: Final = "[redacted]"

#: Headers that are hidden, in lower case.
HEADERS: Final = frozenset(
    {
        "authorization",
        "cookie",
        "proxy-authorization",
        "set-cookie",
        "x-amz-security-token",
        "x-api-key",
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
_JWT: Final = re.compile(rb"eyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]*")
_BEARER: Final = re.compile(rb"(?i)\b(bearer|basic|negotiate)[ \t]+[A-Za-z0-9._~+/=-]{4,}")
_PEM: Final = re.compile(rb"-----BEGIN [A-Z ]{0,40}-----.*", re.DOTALL)
_PAIR: Final = re.compile(
    rb"(?i)([A-Za-z0-9_.-]{0,64}(?:" + b"|".join(key.encode() for key in KEYS)
    + rb"|api[_-]key|access[_-]key|private[_-]key|card[_-]number|credit[_-]card)[A-Za-z0-9_.-]{0,64}"
    rb"[\"']?\s{0,8}[:=>]\s{0,8})(\"(?:[^\"\\]|\\.)*\"?|'[^']*'?|[^\s,;&<>\"']+)"
)  # fmt: skip
_TEXT: Final = re.compile(rb"(?:text/[a-z0-9.+-]+|application/(?:xml|javascript|[a-z0-9.+-]+\+xml))\Z")
_JSON: Final = re.compile(rb"application/(?:json|[a-z0-9.+-]+\+json)\Z")
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
        return name.lower() in HEADERS or any(key in plain for key in KEYS)

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
            shown.append((name, self._patterns(value)))
        return tuple(shown)

    def path(self, path: str) -> str:
        """A path with its query."""
        bare, mark, query = path.partition("?")
        if not mark:
            return bare
        return bare + "?" + "&".join(self._parameter(pair) for pair in query.split("&")[:256])

    def message(self, fields: Fields, trailers: Fields, size: int, body: bytes | None, limit: int) -> Message:
        """A whole message.

        :param size: of the body
        :param body: the beginning of it, as it was sent; None: it was not asked for
        :param limit: bytes of it that are shown
        """
        shown, kept = self.fields(fields), self.fields(trailers)
        if body is None or not size:
            return Message(shown, kept, size)
        content = self.body(_first(fields, b"content-type"), _first(fields, b"content-encoding"), body, size, limit)
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
        kind = kind.partition(b";")[0].strip().lower()
        if _JSON.match(kind):
            if whole:
                return self._json(body, limit)
            return b"", "larger than what is looked at"  # half a document can not be redacted by its keys
        if kind == _FORM:
            text = "&".join(self._parameter(pair) for pair in body[:limit].decode("latin-1").split("&"))
            return text.encode("latin-1", "replace")[:limit], "" if whole and len(body) <= limit else "shortened"
        if _TEXT.match(kind):
            return self._patterns(body[:limit]), "" if whole and len(body) <= limit else "shortened"
        return b"", "not text"

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
        return value

    def _parameter(self, pair: str) -> str:
        name, mark, _ = pair.partition("=")
        return f"{name}={_HIDDEN_TEXT}" if mark and self.hides(name) else pair

    def _patterns(self, data: bytes) -> bytes:
        data = _PEM.sub(HIDDEN, _BEARER.sub(rb"\1 " + HIDDEN, _JWT.sub(HIDDEN, data)))
        return _PAIR.sub(self._pair, data)

    def _pair(self, match: re.Match[bytes]) -> bytes:
        name = match[1].decode("latin-1").rstrip(" \t\r\n:=>\"'")
        if not self.hides(name):
            return match[0]
        quote = match[2][:1] if match[2][:1] in (b'"', b"'") else b""
        return match[1] + quote + HIDDEN + quote


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "").replace(".", "")


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
