"""mitmproxy's messages, made of heads that were read and checked already.

mitmproxy would read them once more and check the type of every part; that is a quarter of what a request costs.
"""

from __future__ import annotations

import time

from mitmproxy import http
from mitmproxy.http import RequestData, ResponseData

from sidecar.http.head import RequestHead


def request_of(head: RequestHead) -> http.Request:
    """The request whose head is ``head.kept``."""
    lines = head.kept.split(b"\r\n")
    data = RequestData.__new__(RequestData)
    vars(data).update(
        http_version=lines[0][-8:],
        headers=_headers(lines[1:-1]),
        content=None,
        trailers=None,
        timestamp_start=time.time(),
        timestamp_end=None,
        host="",
        port=0,
        method=head.method.encode("ascii"),
        scheme=b"",
        authority=b"",
        path=head.target,
    )
    request = http.Request.__new__(http.Request)
    request.data = data
    return request


def response_of(lines: list[bytes]) -> http.Response:
    """The response with these lines, of which the first is a status line that was checked."""
    version, status, *reason = lines[0].split(b" ", 2)
    data = ResponseData.__new__(ResponseData)
    vars(data).update(
        http_version=version,
        headers=_headers(lines[1:]),
        content=None,
        trailers=None,
        timestamp_start=time.time(),
        timestamp_end=None,
        status_code=int(status),
        reason=reason[0] if reason else b"",
    )
    response = http.Response.__new__(http.Response)
    response.data = data
    return response


def _headers(lines: list[bytes]) -> http.Headers:
    headers = http.Headers.__new__(http.Headers)
    headers.fields = tuple((name, value.strip(b" \t")) for name, _, value in (line.partition(b":") for line in lines))
    return headers
