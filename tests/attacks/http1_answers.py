"""Answers of HTTP/1 that hurt whoever reads them, by the path that asks for them."""

from __future__ import annotations

from tests.attacks.sending import Pieces, endless, times

_OK = b"HTTP/1.1 200 OK\r\n"
_FIELD = b"X-Field: " + b"a" * 50 + b"\r\n"

ANSWERS: dict[str, Pieces] = {
    "small-chunks": endless(_OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 10_000),
    "huge-heads": endless(_OK, times(_FIELD)),
    "interim": endless(b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 1000),
    "unasked": endless(b"", (_OK + b"Content-Length: 3\r\n\r\nok\n") * 1000),
    "chunk-extensions": endless(_OK + b"Transfer-Encoding: chunked\r\n\r\n1;", b"a=b;" * 16_384),
}
