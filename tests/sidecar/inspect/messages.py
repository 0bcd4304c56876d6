"""HTTP/1 messages as two ends write them."""

from __future__ import annotations

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def head(operation: str = "GET /cart/17", fields: bytes = b"") -> bytes:
    return operation.encode() + b" HTTP/1.1\r\nHost: cart\r\n" + fields + b"\r\n"
