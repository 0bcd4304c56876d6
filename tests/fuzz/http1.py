"""Targets for HTTP/1.1: the guard in front of every request, and the framing of chunked bodies.

Two parsers that share nothing with ours, llhttp (alone) and h11, read what we let through, with another request behind
it: they have to see the method, target and length that we did, and the other request exactly where it begins. That h11
refuses what we take is no harm; that it reads something else would be.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import h11
import httptools

from sidecar.http.chunks import ChunkReader
from sidecar.http.errors import Malformed
from sidecar.http.head import CHUNKED, RequestHead, read_request
from tests.fuzz.target import Target, pieces, prefixes, split

_NEXT = b"GET /the-next-one HTTP/1.1\r\nHost: next\r\n\r\n"
_LONGEST_BODY = 4096
_CHUNKED_BODY = b"3\r\nabc\r\n0\r\n\r\n"


class _Seen:
    """The requests that llhttp sees."""

    def __init__(self) -> None:
        self.requests: list[tuple[bytes, bytes, list[tuple[bytes, bytes]], bytes]] = []
        self._url = self._body = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self.parser: httptools.HttpRequestParser | None = None

    def on_message_begin(self) -> None:
        self._url = self._body = b""
        self._headers = []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        assert self.parser is not None
        self.requests.append((self.parser.get_method(), self._url, self._headers, self._body))


def _llhttp(data: bytes) -> list[tuple[bytes, bytes, list[tuple[bytes, bytes]], bytes]]:
    seen = _Seen()
    seen.parser = httptools.HttpRequestParser(seen)
    seen.parser.feed_data(data)
    return seen.requests


def _h11(data: bytes) -> tuple[bytes, bytes, bytes, bytes] | None:
    """Method, target, body and what is behind it; None when h11 refuses."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    body = bytearray()
    try:
        connection.receive_data(data)
        request = connection.next_event()
        if not isinstance(request, h11.Request):
            return None
        while not isinstance(event := connection.next_event(), h11.EndOfMessage):
            if not isinstance(event, h11.Data):
                return None
            body += event.data
    except h11.RemoteProtocolError:
        return None
    return request.method, request.target, bytes(body), connection.trailing_data[0]


def _body_for(head: RequestHead) -> tuple[bytes, bytes] | None:
    """A body as ``head`` frames it: as sent, and what it says."""
    if head.length == CHUNKED:
        return _CHUNKED_BODY, b"abc"
    if head.length > _LONGEST_BODY:
        return None
    return b"x" * head.length, b"x" * head.length


def _agreed(raw: bytes, head: RequestHead) -> None:
    """Both parsers see in ``raw`` the request that we see in ``head``."""
    framed = _body_for(head)
    if framed is None or head.upgrade:
        return
    body, text = framed
    behind = _NEXT if head.keep else b""  # llhttp refuses what comes behind a last request
    requests = _llhttp(raw + body + behind)
    method, target = head.method.encode(), head.target
    assert [(*one[:2], one[3]) for one in requests[:1]] == [(method, target, text)], requests
    assert [one[1] for one in requests[1:]] == ([b"/the-next-one"] if head.keep else [])
    read = _h11(raw + body + behind)
    assert read is None or read == (method, target, text, behind), read


_OURS = re.compile(rb"x-forwarded-client-cert|x-hedgerow-.*", re.IGNORECASE)


def check_head(data: bytes) -> None:
    try:
        head = read_request(data)
    except Malformed as error:
        _refused(data, error.reason)
        return
    if head is None:
        assert b"\r\n\r\n" not in data
        return
    assert data.startswith(head.raw)
    assert head.raw.endswith(b"\r\n\r\n")
    assert read_request(head.raw) == head, "what is behind a head changed it"
    for part in prefixes(head.raw, 220):
        assert read_request(part) is None, "a beginning was refused, or taken for all of it"
    assert head.target.startswith(head.path.encode())
    if b"upgrade" not in head.raw.lower():  # an offer of h2c is for others to take, until it is taken out
        _agreed(head.raw, head)
    kept = head.kept + b"\r\n"
    for name, _ in _llhttp_headers(kept, head):
        assert not _OURS.fullmatch(name.replace(b"_", b"-"))
    again = read_request(kept)
    assert again is not None, "what is forwarded is no good request itself"
    same = ("method", "target", "operation", "unclear", "length", "upgrade", "expect", "host", "user_agent")
    assert [getattr(again, name) for name in same] == [getattr(head, name) for name in same]
    assert again.kept == head.kept, "what is forwarded would be changed once more"
    _agreed(kept, again)


def _refused(data: bytes, reason: str) -> None:
    assert re.fullmatch("[a-z0-9.-]+", reason), "a reason holds nothing that the sender wrote"
    for part in prefixes(data, 220):
        _never_accepted(part)


def _never_accepted(part: bytes) -> None:
    """A beginning of what is refused may be refused, or waited for, or be a whole good request with rubbish behind."""
    try:
        early = read_request(part)
    except Malformed:
        return
    assert early is None, "refused for what is behind it"


def _llhttp_headers(raw: bytes, head: RequestHead) -> list[tuple[bytes, bytes]]:
    seen = _Seen()
    seen.parser = httptools.HttpRequestParser(seen)
    try:
        seen.parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        assert head.upgrade
    return seen._headers


def _head_seeds() -> Iterator[bytes]:
    for lines in (
        b"Host: a.example:8080\r\nUser-Agent: x\r\nAccept: */*",
        b"Host: a\r\nContent-Length: 5",
        b"Host: a\r\nTransfer-Encoding: chunked\r\nTrailer: x",
        b"Host: a\r\nConnection: keep-alive, close\r\nKeep-Alive: timeout=5",
        b"Host: a\r\nConnection: close",
        b"Host: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x",
        b"Host: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
        b"Host: [::1]\r\nX-Forwarded-Client-Cert: By=x\r\nx_hedgerow_reason: 1\r\nX-Forwarded-For: 1",
        b"Host: a\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nx-request-id: 1-2",
        b"Host: a\r\nExpect: 100-continue\r\nContent-Length: 1",
        b"Host: a\r\nAuthorization: Negotiate abc\r\nX-HTTP-Method-Override: PUT",
        b"Host: a\r\nContent_Length: 1",
        b"Host: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked",
        b"Host: a\r\nX: a\r\n b",
        b"Host: a\r\nX : a",
        b"Host: a\r\nX: a\nY: b",
    ):
        yield b"POST /cart/17;v=1?q=%2f HTTP/1.1\r\n" + lines + b"\r\n\r\n"
    yield b"GET / HTTP/1.0\r\n\r\n"
    yield b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\n"
    yield b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n"
    yield b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n"
    yield b"GET //a/../b/./%2e%2e\x80 HTTP/1.1\r\nHost: a\r\n\r\n"


# chunks ---------------------------------------------------------------------------------------------------------------

_TRAILERS = 1024


def _read_chunks(parts: Iterator[bytes] | list[bytes], response: bool) -> tuple[bytes, bytes, bool, bool]:
    """The good part, what waits or is behind it, whether it is complete, and whether it was refused."""
    reader = ChunkReader(_TRAILERS, response=response)
    good, held = b"", b""
    for part in parts:
        if reader.done:
            held += part
            continue
        if not held and reader.skip(len(part)):
            good += part
            continue
        data = held + part
        try:
            end = reader.take(data, 0)
        except Malformed:
            return good, b"", False, True
        assert 0 <= end <= len(data)
        good, held = good + data[:end], data[end:]
        assert reader.done or len(held) <= max(4096, _TRAILERS) + 4, "more waits than a line or the trailers"
    return good, held, reader.done, False


def check_chunks(data: bytes) -> None:
    how, data = split(data)
    response = bool(how & 1)
    good, held, done, refused = _read_chunks([data], response)
    cut_good, cut_held, cut_done, cut_refused = _read_chunks(pieces(how, data), response)
    assert (done, refused) == (cut_done, cut_refused)
    if refused:
        assert data.startswith(cut_good)
        return
    assert (good, held) == (cut_good, cut_held)
    assert good + held == data
    if response or not done:
        return
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    requests = _llhttp(head + good + _NEXT)
    assert [one[1] for one in requests] == [b"/", b"/the-next-one"]
    read = _h11(head + good + _NEXT)
    assert read is None or read[2:] == (requests[0][3], _NEXT)


def _chunk_seeds() -> Iterator[bytes]:
    bodies = (
        b"0\r\n\r\n",
        b"5\r\nhello\r\n0\r\n\r\n",
        b"1\r\na\r\n0\r\nX-Sum: 1\r\nY:\r\n\r\nGET / HTTP/1.1\r\n",
        b"A\r\n0123456789\r\n00f\r\n012345678901234\r\n0\r\n\r\n",
        b'5;a="b"\r\nhello\r\n0 ; x\r\n\r\n',
        b"5\r\nhello\r\n0\r\nContent-Length: 1\r\n\r\n",
        b"ffffffffffffff\r\nabc",
        b"5\nhello\n0\n\n",
    )
    for body in bodies:
        for how in (0, 1, 0x12, 0xFF):
            yield bytes((how,)) + body


TARGETS = (
    Target("head", check_head, _head_seeds, 2048),
    Target("chunks", check_chunks, _chunk_seeds, 2048),
)
