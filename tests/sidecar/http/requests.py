"""Requests as the tests of the lane send them, and what the application has to get of them."""

from __future__ import annotations

import re

from tests.sidecar.http.fakes import CART_ID, FRONT_ID

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
XFCC = f"x-forwarded-client-cert: By={CART_ID};URI={FRONT_ID}\r\n".encode()
FIXED = (b"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", b"x-request-id: r1")
UUID = re.compile(rb"x-request-id: [0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\r\n")
TRACE = re.compile(rb"traceparent: 00-[0-9a-f]{32}-[0-9a-f]{16}-00\r\n")


def request(target=b"/", *lines, method=b"GET", body=b"", version=b"1.1"):
    """A request that needs nothing added but the certificate's line."""
    if body:
        lines += (b"Content-Length: %d" % len(body),)
    return b"\r\n".join((method + b" " + target + b" HTTP/" + version, b"Host: x", *FIXED, *lines)) + b"\r\n\r\n" + body


def forwarded(data):
    """What the application gets of it."""
    head, _, body = data.partition(b"\r\n\r\n")
    return head + b"\r\n" + XFCC + b"\r\n" + body


def serve(leg):
    """Answer everything that came."""
    seen = leg.take()
    for _ in range(seen.count(b" HTTP/1.1\r\n")):
        leg.feed(OK)
    return seen


def statuses(data):
    return [int(status) for status in re.findall(rb"HTTP/1\.1 ([0-9]{3})", data)]


def pooled(bench):
    """Connections to the application that wait for another request."""
    return len(bench.site.pool(bench.context().application))
