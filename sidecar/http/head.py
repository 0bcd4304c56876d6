"""The guard in front of every request, and what it read. Pure.

Promise: what is authorised is what is forwarded, byte for byte, and no server can take it for anything else. So the
head is matched as a whole by one strict expression (RFC 9112 sections 2.2 to 6.3, every "MAY accept" left out), and
then by llhttp; what either refuses is refused: bare CR or LF, folded lines, control bytes, whitespace around names,
lengths that are doubled, listed, signed or zero-padded, any ``Transfer-Encoding`` but exactly ``chunked``, both
together, targets with an authority, and a ``Host`` that is missing, doubled or no host.

What is no question of framing (``..``, ``%2f``, ``//``, ``;`` in the path, headers that name another method or path)
is noted as :attr:`RequestHead.unclear`; the lane refuses it where rules by operation hold.

Names with ``_`` for ``-`` are the same as the real ones to many frameworks, so they are treated as them; of our own,
and of those that name another method or path, also names with anything else between their words (``X.Hedgerow.Y``):
PHP takes a dot for ``_``, and lighttpd whatever is neither letter nor digit.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import httptools

from graph.policy import Decision
from sidecar.http.errors import Malformed
from sidecar.http.operation import UNCLEAR, UPGRADE, WEBSOCKET, operation_of

#: The length of a chunked body.
CHUNKED: Final = -1
#: The end of a head.
END: Final = b"\r\n\r\n"

NAME: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
#: Any number of header lines.
LINES: Final = rb"(?:" + NAME + rb":[\t\x20-\x7e\x80-\xff]*+\r\n)*+"
_HEAD: Final = re.compile(rb"([A-Z][A-Z0-9_-]{0,31}) ([\x21-\x7e\x80-\xff]++) HTTP/1\.([01])\r\n" + LINES + rb"\r\n")
#: What stands between the words of a name, for the most lenient reader.
_SEP: Final = rb"[^0-9A-Za-z:\r\n]"
#: Headers that only we may set.
_OUR_NAMES: Final = _SEP.join((b"x", b"forwarded", b"client", b"cert|x", b"hedgerow", rb"[^:\r\n]*"))
#: Headers that some frameworks take for the request's method or path.
OVERRIDES: Final = b"|".join(
    _SEP.join(words.split())
    for words in (
        b"x http method",
        b"x http method override",
        b"x method override",
        b"x original url",
        b"x rewrite url",
    )
)
#: The headers that mean something here.
_KNOWN: Final = re.compile(
    rb"(?i:\n(?=[chtuxea])(content[-_]length|transfer[-_]encoding|host|connection|upgrade|http2[-_]settings|expect"
    rb"|"
    + _OUR_NAMES
    + rb"|traceparent|x[-_]request[-_]id|authorization|user-agent|"
    + OVERRIDES
    + rb")):[ \t]*([^\r]*)"
)


_OUR_NAME: Final = re.compile(_OUR_NAMES, re.IGNORECASE)


def is_ours(name: bytes) -> bool:
    """Whether only we may set a header of this name, or of one that many frameworks take for the same."""
    return _OUR_NAME.fullmatch(name) is not None


_OVERRIDE: Final = re.compile(OVERRIDES, re.IGNORECASE)


def is_override(name: bytes) -> bool:
    """Whether some frameworks take a header of this name for the request's method or path."""
    return _OVERRIDE.fullmatch(name) is not None


def _lines(names: bytes) -> re.Pattern[bytes]:
    """Matches whole header lines; replaced by nothing they are gone."""
    return re.compile(rb"(?i:\n(?:" + names + rb")):[^\r]*\r(?=\n)")


_OURS: Final = _lines(_OUR_NAMES)
_CONNECTION: Final = _lines(rb"connection")
_HTTP2: Final = _lines(rb"upgrade|http2[-_]settings|connection")
_TRACE: Final = _lines(rb"traceparent|tracestate")
_REQUEST_ID: Final = _lines(rb"x[-_]request[-_]id")

_LENGTH: Final = re.compile(rb"0|[1-9][0-9]{0,17}")
_HOST: Final = re.compile(rb"(?:[A-Za-z0-9._~-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
#: W3C Trace Context, section 3.2; later versions may have more behind it.
_TRACEPARENT: Final = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:(?<!00-.{52})-[!-~]*)?"
)
_REQUEST_ID_VALUE: Final = re.compile(rb"[A-Za-z0-9._:@/+=~-]{1,128}")
_TOKEN_LIST: Final = re.compile(rb"[ \t]*,[ \t]*")
#: What a ``Connection`` header must not name: an application that is a proxy would drop what we set or what was judged.
_NOT_BY_HOP: Final = re.compile(
    rb"x[-_](?:forwarded|hedgerow|request[-_]id|http[-_]method|method|original|rewrite)[^,]*|host|content[-_][^,]*"
    rb"|transfer[-_]encoding|trace(?:parent|state)|forwarded|authorization|cookie|expect"
)
#: Requests that change nothing when they are sent twice (RFC 9110 section 9.2.2).
IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})

_BARE: Final = re.compile(rb"(?<!\r)\n|\r(?=[^\n])|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


class _Silent:
    """Wants no callbacks of llhttp."""


#: Takes what llhttp finds, and does nothing with it: heads are read from their own bytes.
SILENT: Final = _Silent()


@dataclass(slots=True)
class RequestHead:
    """One request's head. Not frozen only because that makes it twice as dear to make; nobody changes it.

    :param raw: as it came
    :param kept: what is forwarded of ``raw``, without its empty line
    :param method: also :data:`~sidecar.http.operation.WEBSOCKET` or ``UPGRADE`` in ``operation``
    :param target: of the request line; ``path`` is it without its query
    :param operation: as rules name it
    :param unclear: why two readers could see different operations in it; empty: they can not
    :param length: of the body, bytes; :data:`CHUNKED`
    :param keep: the client will send more requests on this connection
    :param reuse: what is forwarded does not ask the application to close its connection
    :param upgrade: it asks to go on in another protocol
    :param expect: it wants to be told before it sends the body
    :param traced: it has a valid ``traceparent``
    :param request_id: its ``x-request-id``; empty: none, or none that is usable
    :param bound: it speaks of who the *connection* is (NTLM, Negotiate), which then belongs to this client alone
    :param ignored: of a request that asks to go on in another protocol: its operation for a server that knows none,
        and serves it as if it had not asked; else empty
    """

    raw: bytes
    kept: bytes
    method: str
    target: bytes
    path: str
    operation: str
    unclear: str
    length: int
    keep: bool
    reuse: bool
    upgrade: bool
    expect: bool
    traced: bool
    request_id: str
    bound: bool
    host: str
    user_agent: str
    ignored: str = ""

    def hides(self, judged: Callable[[str], Decision]) -> Decision | None:
        """The decision that keeps it from going on in another protocol although that is allowed: what it is for a
        server that ignores the wish must not be denied by a rule, and be allowed where it can change anything."""
        if not self.ignored:
            return None
        decision = judged(self.ignored)
        denied = not decision.allowed and (decision.rule is not None or self.method != "GET")
        return decision if denied else None


def suspicious(data: bytes | bytearray, start: int = 0) -> bool:
    """Whether a head that is not complete yet can never become a good one."""
    return _BARE.search(data, max(0, start - 1)) is not None


def read_request(data: bytes, limit: int = 65_536) -> RequestHead | None:
    """Read the head at the beginning of ``data``.

    :param limit: bytes that it may have
    :return: None when it is not complete yet
    :raises Malformed: when it can not be understood in exactly one way
    """
    end = data.find(END)
    if end < 0 or end + 4 > limit:
        if len(data) >= limit or end >= 0:
            raise Malformed("head-too-large")
        if suspicious(data):
            raise Malformed(_blame(data))
        return None
    raw = data[: end + 4]
    match = _HEAD.fullmatch(raw)
    if match is None:
        raise Malformed(_blame(raw))
    method_bytes, target, minor = match.groups()
    method = method_bytes.decode("ascii")

    length = host_count = 0
    has_length = chunked = upgrade = expect = bound = connected = False
    connection = upgrade_to = host = agent = b""
    trace: bytes | None = None
    request_id: bytes | None = None
    strip_ours = strip_trace = strip_id = http2_settings = False
    unclear = ignored = ""
    for name, value in _KNOWN.findall(raw):
        name = name.lower()
        if name == b"host":
            host, host_count = value.rstrip(b" \t"), host_count + 1
        elif name == b"user-agent":
            agent = value
        elif name == b"connection":
            connection = connection + b"," + value.lower() if connected else value.lower()
            connected = True
        elif name == b"content-length":
            if has_length or _LENGTH.fullmatch(value) is None:
                raise Malformed("content-length")
            has_length, length = True, int(value)
        elif name == b"transfer-encoding":
            if chunked or value != b"chunked":
                raise Malformed("transfer-encoding")
            chunked = True
        elif name == b"traceparent":
            strip_trace = trace is not None or _TRACEPARENT.fullmatch(value) is None
            trace = value
        elif name == b"x-request-id":
            strip_id = request_id is not None or _REQUEST_ID_VALUE.fullmatch(value) is None
            request_id = value
        elif name == b"authorization":
            bound = bound or value[:9].lower() == b"negotiate" or value[:4].lower() == b"ntlm"
        elif name == b"upgrade":
            upgrade_to = upgrade_to + b"," + value.lower() if upgrade else value.lower()
            upgrade = True
        elif name == b"expect":
            if expect or value.rstrip(b" \t").lower() != b"100-continue":
                raise Malformed("expect")
            expect = True
        elif name == b"http2-settings":
            http2_settings = True
        elif is_ours(name):
            strip_ours = True
        elif name.replace(b"_", b"-") == b"x-request-id":
            strip_id, request_id = True, value
        elif name.startswith((b"content", b"transfer", b"http2")):
            raise Malformed("header-underscore")
        else:
            unclear = "override-header"

    if chunked:
        if has_length:
            raise Malformed("length-and-encoding")
        if minor == b"0":
            raise Malformed("encoding-in-http-1.0")
        length = CHUNKED
    if host_count != 1 and (host_count or minor == b"1"):
        raise Malformed("host")
    if host_count and _HOST.fullmatch(host) is None:
        raise Malformed("host")
    if method == "CONNECT" or not (target.startswith(b"/") or (target == b"*" and method == "OPTIONS")):
        raise Malformed("target-form")

    kept = raw
    keep = reuse = minor == b"1"
    if connected and connection != b"keep-alive":
        tokens = set(_TOKEN_LIST.split(connection.strip(b" \t,")))
        if any(_NOT_BY_HOP.fullmatch(token) for token in tokens):
            raise Malformed("connection-option")
        if b"close" in tokens:
            keep = False
            if tokens == {b"close"}:  # it ends with us: the application's connection may go on
                kept = _CONNECTION.sub(b"", kept)
            else:
                reuse = False
        elif b"keep-alive" in tokens:
            keep = reuse = True
    elif connected:
        keep = reuse = True
    if upgrade:
        if b"h2c" in upgrade_to and upgrade_to.strip(b" \t") == b"h2c":
            kept = _HTTP2.sub(b"", kept)  # Java's client offers it with every first request
            upgrade = False
        elif minor == b"0" or length or b"h2c" in upgrade_to:
            raise Malformed("upgrade")
    elif http2_settings:
        kept = _HTTP2.sub(b"", kept)
    if strip_ours:
        kept = _OURS.sub(b"", kept)
    if strip_trace or trace is None:
        kept = _TRACE.sub(b"", kept)
        trace = None
    if strip_id:
        kept = _REQUEST_ID.sub(b"", kept)
        request_id = None

    parser = httptools.HttpRequestParser(SILENT)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        if not upgrade and kept is raw:
            raise Malformed("upgrade") from None
    except httptools.HttpParserInvalidMethodError:
        raise Malformed("method") from None
    except httptools.HttpParserInvalidURLError:
        raise Malformed("target") from None
    except httptools.HttpParserError:
        raise Malformed("llhttp") from None

    if unclear:
        operation = f"{method} {UNCLEAR}"
    else:
        name_of_method = method
        if upgrade:
            ignored = operation_of(method, target)
            name_of_method = WEBSOCKET if upgrade_to.strip(b" \t") == b"websocket" else UPGRADE
        operation = operation_of(name_of_method, target)
        if operation.endswith(UNCLEAR):
            unclear = "target"
    return RequestHead(
        raw,
        kept[:-2],
        method,
        target,
        target.partition(b"?")[0].decode("ascii"),
        operation,
        unclear,
        length,
        keep,
        reuse,
        upgrade,
        expect,
        trace is not None,
        request_id.decode("ascii") if request_id is not None else "",
        bound,
        host.decode("ascii"),
        agent.decode("latin-1"),
        ignored,
    )


def _blame(head: bytes) -> str:
    """What is wrong with a head that the guard did not match."""
    if b"\x00" in head:
        return "nul"
    if re.search(rb"(?<!\r)\n", head):
        return "bare-lf"
    if re.search(rb"\r[^\n]", head):
        return "bare-cr"
    if re.search(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", head):
        return "control-byte"
    line, _, rest = head.partition(b"\r\n")
    if not re.fullmatch(rb"[A-Z][A-Z0-9_-]{0,31} [\x21-\x7e\x80-\xff]+ HTTP/1\.[01]", line):
        return "request-line"
    if re.search(rb"(?:\A|\n)[ \t]", rest):
        return "folded-line"
    if re.search(rb"(?:\A|\n)[^:\r\n]*[ \t]+:", rest):
        return "space-in-name"
    return "header-line"
