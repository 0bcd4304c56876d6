"""mitmproxy's messages, made of heads that were read and checked already.

mitmproxy would read them once more and check the type of every part: a quarter of what a request costs. Besides, each
check of a part that may be missing leaves an exception which refers to the frame that raised it, and so to all of its
connection: that would not be free before the collector of cycles comes round to it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from mitmproxy import http
from mitmproxy.http import RequestData, ResponseData
from mitmproxy.proxy.layers.http._http2 import parse_h2_request_headers, parse_h2_response_headers

from sidecar.http.head import RequestHead

_HTTP2 = b"HTTP/2.0"


def request_of(head: RequestHead) -> http.Request:
    """The request whose head is ``head.kept``."""
    lines = head.kept.split(b"\r\n")
    method, headers = head.method.encode("ascii"), _headers(lines[1:-1])
    return _request(lines[0][-8:], "", 0, method, b"", b"", head.target, headers)


def request_of_fields(fields: Sequence[tuple[bytes, bytes]]) -> http.Request:
    """The request whose head is ``fields``, read by h2.

    :raises ValueError: when the pseudo-header fields are not those of a request
    """
    return _request(_HTTP2, *parse_h2_request_headers(fields))


def response_of(lines: list[bytes]) -> http.Response:
    """The response with these lines, of which the first is a status line that was checked."""
    version, status, *reason = lines[0].split(b" ", 2)
    return response(version, int(status), reason[0] if reason else b"", _headers(lines[1:]))


def response_of_fields(fields: Sequence[tuple[bytes, bytes]]) -> http.Response:
    """The response whose head is ``fields``, read by h2.

    :raises ValueError: when the pseudo-header fields are not those of a response
    """
    status, headers = parse_h2_response_headers(fields)
    return response(_HTTP2, status, b"", headers)


def response(
    version: bytes, status: int, reason: bytes, headers: http.Headers, content: bytes | None = None
) -> http.Response:
    """A response of parts that need no check.

    :param content: None: it is yet to come
    """
    now = time.time()
    data = ResponseData.__new__(ResponseData)
    vars(data).update(
        http_version=version,
        headers=headers,
        content=content,
        trailers=None,
        timestamp_start=now,
        timestamp_end=None if content is None else now,
        status_code=status,
        reason=reason,
    )
    made = http.Response.__new__(http.Response)
    made.data = data
    return made


def _request(
    version: bytes,
    host: str,
    port: int,
    method: bytes,
    scheme: bytes,
    authority: bytes,
    path: bytes,
    headers: http.Headers,
) -> http.Request:
    data = RequestData.__new__(RequestData)
    vars(data).update(
        http_version=version,
        headers=headers,
        content=None,
        trailers=None,
        timestamp_start=time.time(),
        timestamp_end=None,
        host=host,
        port=port,
        method=method,
        scheme=scheme,
        authority=authority,
        path=path,
    )
    request = http.Request.__new__(http.Request)
    request.data = data
    return request


def _headers(lines: list[bytes]) -> http.Headers:
    headers = http.Headers.__new__(http.Headers)
    headers.fields = tuple((name, value.strip(b" \t")) for name, _, value in (line.partition(b":") for line in lines))
    return headers
