"""A request that the application sees was always the request that was authorised.

Every byte sequence goes through a whole data plane, by each lane that judges HTTP/1, to real servers; only ``/ok`` and
``/ok/{id}`` are allowed. Whatever they make of it, they must have seen nothing but requests that were judged and
allowed, in the same order: never ``/admin``. HTTP/2 is tried in ``tests/sidecar/inspect/test_smuggling_http2.py``.
"""

from __future__ import annotations

import itertools
import random
import re
import time
from urllib.parse import unquote

import pytest

from certs.ca import CertificateAuthority
from tests.sidecar.dataplane.stand_ins import TRUST_DOMAIN
from tests.sidecar.http.applications import Recorder, Sidecar, envoy, nginx
from tests.sidecar.http.test_head import REFUSED, UNCLEAR

ALLOWED = ("GET /ok", "GET /ok/{id}", "POST /ok", "PUT /ok", "OPTIONS *")
#: Paths that would be called ``/ok/{id}``, were they not unclear, and lead elsewhere for whoever decodes them before
#: looking for dots, blanks, parameters or the end of a text.
LED_ASTRAY = [
    b"/ok/..%2fadmin", b"/ok/..%2Fadmin", b"/ok/%2e%2e%2fadmin", b"/ok/%2e%2e", b"/ok/1%2f..%2f..%2fadmin",
    b"/ok/..%5cadmin", b"/ok/..%252fadmin", b"/ok/%252e%252e%252fadmin", b"/ok/%c0%ae%c0%ae%c0%afadmin",
    b"/ok/%2fadmin", b"/ok/1%00admin", b"/ok/1%0d%0aadmin", b"/ok/1%20HTTP/1.1%0d%0aX:admin", b"/ok/1%3badmin",
    b"/ok/1%3fadmin", b"/ok/1%23admin", b"/ok/..;a=1/admin", b"/ok/;/../admin", b"/ok/1;/../../admin",
    b"/ok/1/../../admin", b"/ok//../admin", b"/ok/./../admin", b"/ok/%61dmin", b"/ok/1%2e%2e/admin",
]  # fmt: skip
ADMIN = b"GET /admin HTTP/1.1\r\nHost: x\r\n\r\n"
SIZE = b"%d" % len(ADMIN)


def post(*lines, body=b"", first=b"POST /ok HTTP/1.1"):
    return b"\r\n".join((first, b"Host: x", *lines)) + b"\r\n\r\n" + body


GET = b"GET /ok HTTP/1.1"
CHUNKED = b"Transfer-Encoding: chunked"
#: Each tries to have another request seen than is judged.
TRICKS = [
    post(b"Content-Length: 0", b"Content-Length: " + SIZE, body=ADMIN),
    post(b"Content-Length: " + SIZE, b"Content-Length: 0", body=ADMIN),
    post(b"Content-Length: 0," + SIZE, body=ADMIN),
    post(b"Content-Length: 5", CHUNKED, body=b"0\r\n\r\n" + ADMIN),
    post(CHUNKED, b"Content-Length: 5", body=b"0\r\n\r\n" + ADMIN),
    post(CHUNKED, b"Transfer-Encoding: identity", body=b"0\r\n\r\n" + ADMIN),
    post(b"Transfer-Encoding: xchunked", b"Content-Length: 5", body=b"0\r\n\r\n" + ADMIN),
    post(b"Transfer-Encoding : chunked", b"Content-Length: 5", body=b"0\r\n\r\n" + ADMIN),
    post(b"Transfer-Encoding: chunked\x00", b"Content-Length: 5", body=b"0\r\n\r\n" + ADMIN),
    post(b"Transfer-Encoding:\x0bchunked", b"Content-Length: 5", body=b"0\r\n\r\n" + ADMIN),
    post(b"Transfer-Encoding: \tchunked", body=b"0\r\n\r\n" + ADMIN),
    post(b"X: y\r\n Transfer-Encoding: chunked", b"Content-Length: 5", body=b"0\r\n\r\n" + ADMIN),
    post(b"X: y\nTransfer-Encoding: chunked", b"Content-Length: 5", body=b"0\r\n\r\n" + ADMIN),
    post(b"X: y\rTransfer-Encoding: chunked", b"Content-Length: 5", body=b"0\r\n\r\n" + ADMIN),
    post(b"Content_Length: 0", body=ADMIN),
    post(b"Transfer_Encoding: chunked", body=b"0\r\n\r\n" + ADMIN),
    post(CHUNKED, body=b"0\r\n\r\n" + ADMIN),
    post(CHUNKED, body=b"5;x=\r\nhello\r\n0\r\n\r\n" + ADMIN),
    post(CHUNKED, body=b"5;\nhello\r\n0\r\n\r\n" + ADMIN),
    post(CHUNKED, body=b"0;\n\r\n\r\n" + ADMIN),
    post(CHUNKED, body=b"0\n\r\n" + ADMIN),
    post(CHUNKED, body=b"0\r\n\n" + ADMIN),
    post(CHUNKED, body=b"0\r\nX: y\r\n\r\n" + ADMIN),
    post(CHUNKED, body=b"0\r\nContent-Length: 5\r\n\r\n" + ADMIN),
    post(CHUNKED, body=b"0\r\n" + ADMIN),
    post(CHUNKED, body=b"100000000000000000\r\n" + ADMIN),
    post(CHUNKED, body=b"0x0\r\n\r\n" + ADMIN),
    post(CHUNKED, body=b"1\r\nZ\r\nQ" + ADMIN),
    post(CHUNKED, body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(ADMIN), ADMIN)),
    post(b"Content-Length: " + SIZE, body=ADMIN),
    post(b"Content-Length: " + SIZE, b"Expect: 100-continue", body=ADMIN),
    post(body=ADMIN, first=b"GET /ok HTTP/1.1"),
    post(b"Content-Length: " + SIZE, body=ADMIN, first=b"GET /ok HTTP/1.1"),
    post(CHUNKED, body=b"0\r\n\r\n" + ADMIN, first=b"GET /ok HTTP/1.1"),
    post(CHUNKED, body=b"0\r\n\r\n" + ADMIN, first=b"POST /ok HTTP/1.0"),
    post(b"Content-Length: " + SIZE, body=ADMIN, first=b"POST /ok HTTP/1.0"),
    post(b"Connection: keep-alive", body=ADMIN, first=b"GET /ok HTTP/1.0"),
    post(b"Connection: close", body=ADMIN, first=b"GET /ok HTTP/1.1"),
    post(b"Connection: content-length", b"Content-Length: " + SIZE, body=ADMIN),
    post(b"Connection: Upgrade", b"Upgrade: websocket", body=ADMIN, first=GET),
    post(b"Connection: Upgrade", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk", body=ADMIN, first=GET),
    post(b"Connection: Upgrade", b"Upgrade: h2c", b"Content-Length: " + SIZE, body=ADMIN),
    post(b"Upgrade: h2c", body=ADMIN, first=b"GET /ok HTTP/1.1"),
    post(body=ADMIN, first=b"OPTIONS * HTTP/1.1"),
    post(body=ADMIN, first=b"CONNECT x:80 HTTP/1.1"),
    post(b"Host: y", body=ADMIN),
    post(b"X-Original-URL: /admin", first=b"GET /ok HTTP/1.1"),
    post(b"X-Rewrite-URL: /admin", first=b"GET /ok HTTP/1.1"),
    post(b"X-HTTP-Method-Override: DELETE"),
    post(first=b"GET http://x/admin HTTP/1.1"),
    post(first=b"GET /ok/../admin HTTP/1.1"),
    post(first=b"GET /ok HTTP/1.1\r\nX: GET /admin HTTP/1.1"),
    post(first=b"GET /ok\tHTTP/1.1\tGET /admin HTTP/1.1"),
    b"\r\n\r\n" + post(body=ADMIN),
    b"GET /ok\r\n" + ADMIN,
    post(first=b"GET /ok HTTP/1.1") * 2 + ADMIN + post(first=b"GET /ok HTTP/1.1"),
    *(data for data, _ in REFUSED.values()),
    *(post(first=b"GET " + target.replace(b"a", b"ok") + b" HTTP/1.1", body=ADMIN) for target in UNCLEAR),
    *(post(first=b"GET " + target + b" HTTP/1.1") for target in LED_ASTRAY),
    *(post(b"Content-Length: 0", first=b"GET /ok/17?" + target + b" HTTP/1.1") for target in (b"#admin", b"|admin")),
]

PIECES = [
    b"\r\n", b"\n", b"\r", b" ", b"\t", b"\x00", b"\x0b", b"0\r\n\r\n", b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding:", b"chunked", b"Host: y\r\n",
    b"Connection: close\r\n",
    b"Upgrade: websocket\r\n", b"Expect: 100-continue\r\n", b"5\r\n", b";", b",", b":", b"_", b"\x80", b"..",
    b"//", b"%2f", ADMIN, b"GET /ok HTTP/1.1\r\n", b"HTTP/1.0", b"1", b"x",
]  # fmt: skip


def mutants(seed, count):
    """Good requests with something put in, taken out or doubled."""
    chance = random.Random(seed)
    for _ in range(count):
        data = bytearray(
            b"".join(
                chance.choice(
                    [
                        post(first=b"GET /ok HTTP/1.1"),
                        post(b"Content-Length: 5", body=b"hello"),
                        post(CHUNKED, body=b"5\r\nhello\r\n0\r\n\r\n"),
                        post(b"Content-Length: " + SIZE, body=ADMIN),
                        post(CHUNKED, body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(ADMIN), ADMIN)),
                    ]
                )
                for _ in range(chance.randint(1, 3))
            )
        )
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(data) + 1)
            kind = chance.randrange(3)
            if kind == 0:
                data[at:at] = chance.choice(PIECES)
            elif kind == 1:
                del data[at : at + chance.randint(1, 4)]
            else:
                data[at:at] = data[at : at + chance.randint(1, 40)]
        yield bytes(data), tuple(sorted(chance.sample(range(len(data) + 1), min(2, len(data)))))


@pytest.fixture(params=["http", "inspect"])
def lane(request):
    return request.param


@pytest.fixture(params=["aiohttp", "nginx", "envoy"])
async def served(request, tmp_path, lane):
    """A data plane, and what the server behind it sees."""
    recorder = Recorder()
    await recorder.start()
    program = {"aiohttp": lambda *_: None, "nginx": nginx, "envoy": envoy}[request.param](tmp_path, recorder.port)
    sidecar = None
    try:
        if program is not None:
            await program.ready()
        authority = CertificateAuthority.create(TRUST_DOMAIN, time.time())
        port = program.port if program is not None else recorder.port
        sidecar = Sidecar(authority, port, ALLOWED, inspected=lane == "inspect")
        await sidecar.plane.start()
        yield sidecar, recorder
        assert (sidecar.taps.requests > 0) is (lane == "inspect"), "another lane was tried"
    finally:
        if sidecar is not None:
            sidecar.plane.stop()
        if program is not None:
            program.stop()
        await recorder.stop()


def judged(requests):
    """What was allowed and answered by the application."""
    return [(told.method, told.path) for told in requests if told.decision.allowed and told.status not in (0, 400, 502)]


_cases = itertools.count(1000)


async def check(sidecar, recorder, data, cuts=(), responses=0):
    """Send it, and compare. Its targets get a number, because servers behind proxies may be told of a request that its
    client has given up when the next case has begun."""
    case = next(_cases)
    sidecar.flows.requests.clear()
    recorder.seen.clear()
    answer = await sidecar.ask(data.replace(b"/ok HTTP", b"/ok?n=%d HTTP" % case), cuts, responses=responses)
    late = {f"/ok?n={earlier}" for earlier in range(1000, case)}
    recorder.seen[:] = [one for one in recorder.seen if one[1] not in late]
    seen = [(method, target.partition("?")[0]) for method, target, _, _ in recorder.seen]
    allowed = judged(sidecar.flows.requests)
    began = [(told.method, told.path) for told in sidecar.flows.requests if told.decision.allowed]
    assert not any("admin" in unquote(unquote(target)) for _, target in seen), (data, seen)
    # the server may refuse what was allowed, or be given up before it answers, but it never sees anything else
    remaining = iter(began)
    assert all(one in remaining for one in seen), (data, seen, began)
    assert not any(headers.getall("x-forwarded-client-cert", ()) for *_, headers in recorder.seen), data
    return answer, seen, allowed


async def test_tricks(served):
    sidecar, recorder = served
    for data in TRICKS:
        await check(sidecar, recorder, data)


async def test_what_is_good_is_seen_as_it_is(served):
    sidecar, recorder = served
    body = random.Random(1).randbytes(70_000)
    chunked = b"".join(
        b"%x\r\n%b\r\n" % (len(body[at : at + 999]), body[at : at + 999]) for at in range(0, 70_000, 999)
    )
    data = (
        post(first=b"GET /ok HTTP/1.1")
        + post(b"Content-Length: %d" % len(body), body=body)
        + post(CHUNKED, body=chunked + b"0\r\n\r\n", first=b"PUT /ok?x=1 HTTP/1.1")
        + post(b"X-Forwarded-Client-Cert: URI=forged", b"X-Hedgerow-A: b", first=b"GET /ok HTTP/1.1")
        + ADMIN
        + post(first=b"GET /ok/17 HTTP/1.1")
    )
    answer, seen, allowed = await check(sidecar, recorder, data, responses=6)
    assert seen == allowed == [("GET", "/ok"), ("POST", "/ok"), ("PUT", "/ok"), ("GET", "/ok"), ("GET", "/ok/17")]
    assert [got for _, _, got, _ in recorder.seen] == [b"", body, body, b"", b""]
    assert recorder.seen[2][1] == "/ok?x=1"
    statuses = re.findall(rb"HTTP/1\.1 ([0-9]{3})", answer)
    assert statuses == [b"200", b"200", b"200", b"200", b"403", b"200"]
    for *_, headers in recorder.seen:
        assert len(headers.getall("traceparent")) == 1
        assert len(headers.getall("x-request-id")) == 1
        assert "x-hedgerow-a" not in headers


@pytest.mark.parametrize("seed", range(4))
async def test_mutants(served, seed):
    sidecar, recorder = served
    passed = 0
    for data, cuts in mutants(seed, 60):
        _, seen, _ = await check(sidecar, recorder, data, cuts)
        passed += len(seen)
    assert passed, "if nothing passes nothing is tried"
