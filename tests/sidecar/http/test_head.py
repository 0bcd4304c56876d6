"""What the guard refuses, what it notes, and what it lets through unchanged."""

from __future__ import annotations

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.http.errors import Malformed
from sidecar.http.head import CHUNKED, read_request


def get(*lines: bytes, target: bytes = b"/", method: bytes = b"GET", version: bytes = b"1.1", host: bytes = b"Host: x"):
    first = method + b" " + target + b" HTTP/" + version
    return b"\r\n".join((first, *((host,) if host else ()), *lines)) + b"\r\n\r\n"


#: Byte sequences, each with what is wrong with it.
REFUSED = {
    # lengths
    "two lengths": (get(b"Content-Length: 1", b"Content-Length: 2"), "content-length"),
    "the same length twice": (get(b"Content-Length: 1", b"Content-Length: 1"), "content-length"),
    "a list of lengths": (get(b"Content-Length: 1, 1"), "content-length"),
    "a signed length": (get(b"Content-Length: +1"), "content-length"),
    "a negative length": (get(b"Content-Length: -1"), "content-length"),
    "a hexadecimal length": (get(b"Content-Length: 0x10"), "content-length"),
    "an octal length": (get(b"Content-Length: 010"), "content-length"),
    "an empty length": (get(b"Content-Length: "), "content-length"),
    "a length behind a tab and a blank": (get(b"Content-Length: 1 "), "content-length"),
    "a length of many digits": (get(b"Content-Length: 99999999999999999999"), "content-length"),
    "a length in other digits": (get(b"Content-Length: \xd9\xa1"), "content-length"),
    "a length with an underscore": (get(b"Content_Length: 1"), "header-underscore"),
    # encodings
    "length and encoding": (get(b"Content-Length: 1", b"Transfer-Encoding: chunked"), "length-and-encoding"),
    "encoding and length": (get(b"Transfer-Encoding: chunked", b"Content-Length: 1"), "length-and-encoding"),
    "encoding twice": (get(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"), "transfer-encoding"),
    "another encoding": (get(b"Transfer-Encoding: gzip"), "transfer-encoding"),
    "identity": (get(b"Transfer-Encoding: identity"), "transfer-encoding"),
    "two encodings": (get(b"Transfer-Encoding: gzip, chunked"), "transfer-encoding"),
    "chunked twice": (get(b"Transfer-Encoding: chunked, chunked"), "transfer-encoding"),
    "chunked in capitals": (get(b"Transfer-Encoding: Chunked"), "transfer-encoding"),
    "chunked with a parameter": (get(b"Transfer-Encoding: chunked;q=1"), "transfer-encoding"),
    "chunked with a vertical tab": (get(b"Transfer-Encoding: \x0bchunked"), "control-byte"),
    "chunked with a blank behind": (get(b"Transfer-Encoding: chunked "), "transfer-encoding"),
    "xchunked": (get(b"Transfer-Encoding: xchunked"), "transfer-encoding"),
    "an encoding with an underscore": (get(b"Transfer_Encoding: chunked"), "header-underscore"),
    "an encoding in HTTP/1.0": (get(b"Transfer-Encoding: chunked", version=b"1.0"), "encoding-in-http-1.0"),
    "a blank before the colon": (get(b"Transfer-Encoding : chunked"), "space-in-name"),
    "a tab before the colon": (get(b"Content-Length\t: 1"), "space-in-name"),
    # lines
    "a folded line": (get(b"A: b", b" Transfer-Encoding: chunked"), "folded-line"),
    "a folded line with a tab": (get(b"A: b", b"\tc"), "folded-line"),
    "a folded first line": (b"GET / HTTP/1.1\r\n Host: x\r\n\r\n", "folded-line"),
    "bare LF in the request line": (b"GET / HTTP/1.1\nHost: x\r\n\r\n", "bare-lf"),
    "bare LF in a value": (get(b"A: b\nTransfer-Encoding: chunked"), "bare-lf"),
    "bare LFs alone": (b"GET / HTTP/1.1\nHost: x\n\n", "bare-lf"),
    "bare CR in a value": (get(b"A: b\rTransfer-Encoding: chunked"), "bare-cr"),
    "two CRs": (get(b"A: b\r"), "bare-cr"),
    "NUL in a value": (get(b"A: b\x00c"), "nul"),
    "NUL in a name": (get(b"A\x00: b"), "nul"),
    "a control byte in a value": (get(b"A: \x01"), "control-byte"),
    "DEL in a value": (get(b"A: \x7f"), "control-byte"),
    "a line without colon": (get(b"chunked"), "header-line"),
    "a line without name": (get(b": b"), "header-line"),
    "a blank in a name": (get(b"A B: c"), "header-line"),
    "a name in Latin-1": (get(b"Transfer-Encod\xecng: chunked"), "header-line"),
    # the request line
    "an empty line first": (b"\r\n" + get(), "request-line"),
    "a blank first": (b" " + get(), "request-line"),
    "two blanks": (b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n", "request-line"),
    "tabs for blanks": (b"GET\t/\tHTTP/1.1\r\nHost: x\r\n\r\n", "request-line"),
    "a blank behind": (b"GET / HTTP/1.1 \r\nHost: x\r\n\r\n", "request-line"),
    "a blank in the target": (get(target=b"/a b"), "request-line"),
    "HTTP/0.9": (b"GET /\r\n\r\n", "request-line"),
    "HTTP/1.2": (get(version=b"1.2"), "request-line"),
    "HTTP/1.10": (get(version=b"1.10"), "request-line"),
    "HTTP/2.0": (get(version=b"2.0"), "request-line"),
    "http in small letters": (b"GET / http/1.1\r\nHost: x\r\n\r\n", "request-line"),
    "a method in small letters": (get(method=b"get"), "request-line"),
    "no method": (b" / HTTP/1.1\r\nHost: x\r\n\r\n", "request-line"),
    "an unknown method": (get(method=b"FROBNICATE"), "method"),
    "a method that stands for an upgrade": (get(method=b"WEBSOCKET"), "method"),
    "the other one": (get(method=b"UPGRADE"), "method"),
    "a byte beyond ASCII in the target": (get(target=b"/\xc3\xa9"), "target"),
    "NUL in the target": (get(target=b"/\x00"), "nul"),
    # forms of the target
    "absolute form": (get(target=b"http://y/"), "target-form"),
    "authority form": (get(target=b"y:443", method=b"CONNECT"), "target-form"),
    "CONNECT to a path": (get(method=b"CONNECT"), "target-form"),
    "asterisk of another method": (get(target=b"*"), "target-form"),
    "no slash": (get(target=b"a"), "target-form"),
    "only a query": (get(target=b"?a"), "target-form"),
    # Host
    "no host": (get(host=b""), "host"),
    "two hosts": (get(b"Host: y"), "host"),
    "the same host twice": (get(b"host: x"), "host"),
    "an empty host": (get(host=b"Host: "), "host"),
    "a host with a path": (get(host=b"Host: x/y"), "host"),
    "a host with a user": (get(host=b"Host: x@y"), "host"),
    "two hosts in one": (get(host=b"Host: x, y"), "host"),
    "a host in Latin-1": (get(host=b"Host: \xe4"), "host"),
    "a port of letters": (get(host=b"Host: x:y"), "host"),
    "two hosts in HTTP/1.0": (get(b"Host: y", version=b"1.0"), "host"),
    # others
    "an unknown expectation": (get(b"Expect: 200-ok"), "expect"),
    "an expectation twice": (get(b"Expect: 100-continue", b"Expect: 100-continue"), "expect"),
    "an option that removes what we set": (get(b"Connection: close, X-Forwarded-Client-Cert"), "connection-option"),
    "the same with an underscore": (get(b"Connection: x_forwarded_client_cert"), "connection-option"),
    "one that removes the host": (get(b"Connection: host"), "connection-option"),
    "one that removes the length": (get(b"Content-Length: 1", b"Connection: content-length"), "connection-option"),
    "an upgrade with a body": (
        get(b"Connection: upgrade", b"Upgrade: websocket", b"Content-Length: 1"),
        "upgrade",
    ),
    "an upgrade to h2c or else": (get(b"Connection: upgrade", b"Upgrade: websocket, h2c"), "upgrade"),
    "an upgrade in HTTP/1.0": (get(b"Connection: upgrade", b"Upgrade: websocket", version=b"1.0"), "upgrade"),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "request-line"),
}


@pytest.mark.parametrize(("data", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_two_readers_could_understand_differently_is_refused(data, reason):
    with pytest.raises(Malformed) as error:
        read_request(data)
    assert error.value.reason == reason


UNCLEAR = [
    b"/a/../b", b"/a/./b", b"/..", b"/.", b"/a/..", b"/a/...", b"//", b"//a", b"/a//b", b"/a;b", b"/a;b=c/d", b"/a\\b",
    b"/a%2fb", b"/a%2Fb", b"/a%5cb", b"/a%00b", b"/a%0ab", b"/a%2e%2e/b", b"/%2e", b"/%61dmin", b"/a%3bb", b"/a%3fb",
    b"/a%23b", b"/a%252fb", b"/a%c0%afb", b"/a%e0%80%af", b"/a%f8", b"/a%ff", b"/a%", b"/a%2", b"/a%zz", b"/a#b",
    b"/a?b#c", b"/a|b", b"/a{id}", b"/{id}", b"/a<b", b'/a"b', b"/a^b", b"/a`b",
]  # fmt: skip


@pytest.mark.parametrize("target", UNCLEAR)
def test_a_path_that_servers_read_differently_is_noted(target):
    head = read_request(get(target=target))
    assert head.unclear == "target"
    assert head.operation == "GET /{unclear}"


@pytest.mark.parametrize(
    "name", [b"X-HTTP-Method-Override", b"x-http-method", b"X_Method_Override", b"X-Original-URL", b"X-Rewrite-Url"]
)
def test_a_header_that_names_another_operation_is_noted(name):
    assert read_request(get(name + b": DELETE")).unclear == "override-header"


CLEAR = [b"/", b"/a", b"/a/", b"/a.b", b"/.well-known/a", b"/a?b=../c//;%2f", b"/a%20b", b"/caf%C3%A9", b"/~a", b"/a@b"]


@pytest.mark.parametrize("target", CLEAR)
def test_other_paths_are_clear(target):
    assert read_request(get(target=target)).unclear == ""


def test_what_matters_is_read():
    body = b"rest"
    head = read_request(
        get(
            b"User-Agent: curl/8",
            b"Content-Length:   4",
            b"Expect: 100-Continue",
            b"X-Request-ID: abc-1",
            b"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            method=b"POST",
            target=b"/cart/17?x=1",
            host=b"Host: cart.shop:80",
        )
        + body
    )
    assert (head.method, head.target, head.path, head.operation) == (
        "POST",
        b"/cart/17?x=1",
        "/cart/17",
        "POST /cart/{id}",
    )
    assert (head.length, head.expect, head.keep, head.reuse) == (4, True, True, True)
    assert (head.host, head.user_agent, head.request_id, head.traced) == ("cart.shop:80", "curl/8", "abc-1", True)
    assert head.kept + b"\r\n" == head.raw
    assert not head.raw.endswith(body)


def test_chunked_is_read():
    assert read_request(get(b"transfer-encoding:chunked")).length == CHUNKED


@pytest.mark.parametrize(
    ("lines", "version", "keep", "reuse"),
    [
        ((), b"1.1", True, True),
        ((b"Connection: keep-alive",), b"1.1", True, True),
        ((b"Connection: close",), b"1.1", False, True),
        ((b"Connection: Close, TE",), b"1.1", False, False),
        ((b"Connection: keep-alive", b"Connection: close"), b"1.1", False, False),
        ((), b"1.0", False, False),
        ((b"Connection: keep-alive",), b"1.0", True, True),
    ],
)
def test_who_keeps_the_connection(lines, version, keep, reuse):
    head = read_request(get(*lines, version=version))
    assert (head.keep, head.reuse) == (keep, reuse)
    assert (b"onnection: close" in head.kept.lower()) == (not keep and bool(lines) and not reuse)


FORGED = [
    b"X-Forwarded-Client-Cert: By=a;URI=b", b"x-forwarded-client-cert:", b"X_FORWARDED_CLIENT_CERT: a",
    b"x-forwarded_client-cert: a", b"X-Hedgerow-Reason: a", b"x_hedgerow_anything: a",
    b"X.Forwarded.Client.Cert: a", b"x!forwarded~client'cert: a", b"X.Hedgerow-Reason: a",
]  # fmt: skip


@pytest.mark.parametrize("line", FORGED)
def test_what_only_we_may_say_is_stripped(line):
    head = read_request(get(b"A: b", line, line, b"C: d"))
    assert head.kept + b"\r\n" == get(b"A: b", b"C: d")


BAD_TRACES = [
    (b"traceparent: 00-00000000000000000000000000000000-00f067aa0ba902b7-01",),
    (b"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",),
    (b"traceparent: ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",),
    (b"traceparent: 00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",),
    (b"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",),
    (b"traceparent: x",),
    (b"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",) * 2,
]


@pytest.mark.parametrize("lines", BAD_TRACES)
def test_a_bad_trace_is_replaced_with_its_state(lines):
    head = read_request(get(*lines, b"tracestate: a=b"))
    assert not head.traced
    assert head.kept + b"\r\n" == get()


def test_a_trace_of_a_later_version_passes():
    line = b"traceparent: 01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more"
    assert read_request(get(line)).traced


@pytest.mark.parametrize(
    "lines", [(b"X-Request-Id: a b",), (b"X-Request-Id: ",), (b"x-request-id: a",) * 2, (b"X_Request_Id: a",)]
)
def test_a_bad_request_id_is_replaced(lines):
    head = read_request(get(*lines))
    assert head.request_id == ""
    assert head.kept + b"\r\n" == get()


def test_an_offer_of_h2c_is_stripped():
    offer = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA")
    head = read_request(get(*offer, b"Content-Length: 3", method=b"POST"))
    assert not head.upgrade
    assert head.kept + b"\r\n" == get(b"Content-Length: 3", method=b"POST")


@pytest.mark.parametrize(
    ("lines", "operation"),
    [
        ((b"Connection: Upgrade", b"Upgrade: websocket"), "WEBSOCKET /chat"),
        ((b"Upgrade: WebSocket",), "WEBSOCKET /chat"),
        ((b"Connection: Upgrade", b"Upgrade: irc"), "UPGRADE /chat"),
        ((b"Connection: Upgrade", b"Upgrade: websocket, irc"), "UPGRADE /chat"),
    ],
)
def test_an_upgrade_is_an_operation_of_its_own(lines, operation):
    head = read_request(get(*lines, target=b"/chat"))
    assert head.upgrade
    assert head.operation == operation


def test_a_head_is_waited_for_until_its_limit():
    data = get(b"A: " + b"b" * 200)
    for size in range(len(data)):
        assert read_request(data[:size], 300) is None
    assert read_request(data, 300).raw == data
    with pytest.raises(Malformed, match="head-too-large"):
        read_request(data, len(data) - 1)
    with pytest.raises(Malformed, match="head-too-large"):
        read_request(b"GET /" + b"a" * 300, 300)


LINE = st.sampled_from(
    [
        b"Host: x", b"Content-Length: 3", b"Content-Length: 0", b"Transfer-Encoding: chunked", b"Connection: close",
        b"Connection: keep-alive, Upgrade", b"Upgrade: websocket", b"Upgrade: h2c", b"X-Forwarded-Client-Cert: a",
        b"x-request-id: a", b"A:", b"A: \xff", b" folded", b"Expect: 100-continue", b"HTTP2-Settings: AA",
        b"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", b"x_hedgerow_a: b",
    ]
)  # fmt: skip


class Names:
    def __init__(self):
        self.names, self.target = [], b""

    def on_url(self, target):
        self.target += target

    def on_header(self, name, value):
        self.names.append(name.lower())


@given(st.lists(LINE, max_size=8), st.sampled_from([b"GET", b"POST", b"HEAD"]), st.sampled_from([b"1.1", b"1.0"]))
def test_what_is_forwarded_means_what_was_read(lines, method, version):
    data = get(*lines, method=method, version=version)
    try:
        head = read_request(data)
    except Malformed:
        return
    forwarded = head.kept + b"\r\n"
    again = read_request(forwarded)
    assert (again.method, again.target, again.operation, again.length) == (
        head.method,
        head.target,
        head.operation,
        head.length,
    )
    assert again.kept == head.kept
    seen = Names()
    parser = httptools.HttpRequestParser(seen)
    try:
        parser.feed_data(forwarded)
    except httptools.HttpParserUpgrade:
        assert head.upgrade
    assert parser.get_method().decode() == head.method
    assert seen.target == head.target
    assert not {b"x-forwarded-client-cert", b"x_hedgerow_a"} & set(seen.names)


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data):
    for attempt in (data, b"GET / HTTP/1.1\r\nHost: x\r\n" + data, b"GET /" + data + b" HTTP/1.1\r\nHost: x\r\n\r\n"):
        try:
            head = read_request(attempt)
        except Malformed:
            continue
        assert head is None or attempt.startswith(head.raw)
