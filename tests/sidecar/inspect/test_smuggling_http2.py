"""A request that the application sees was always the request that was authorised, when it comes over HTTP/2 and the
application, or a proxy in it, reads it as HTTP/1.

Fields that no library would send go through a whole data plane to real servers that turn them into HTTP/1. Where
operations are judged (``judged``), only ``/ok`` and ``/ok/{id}`` are allowed; where HTTP/2 is only observed
(``observed``), everything is, and what is hidden within a field must still be no request of its own, nor a header that
only we may set.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from dataclasses import dataclass, field
from urllib.parse import unquote

import hpack
import pytest

from certs.ca import CertificateAuthority
from sidecar.inspect.frame_guard import CONTINUATION, DATA, HEADERS, PREFACE, RST_STREAM, SETTINGS
from tests.sidecar.dataplane.foreign import HOST
from tests.sidecar.dataplane.stand_ins import TRUST_DOMAIN
from tests.sidecar.http.applications import Recorder, Sidecar, envoy, nginx
from tests.sidecar.http.test_head import UNCLEAR
from tests.sidecar.http.test_smuggling import LED_ASTRAY
from tests.sidecar.inspect.http2_ends import frame

ALLOWED = ("GET /ok", "GET /ok/{id}", "POST /ok", "PUT /ok", "OPTIONS *")
GOAWAY, END_STREAM, END_HEADERS = 7, 1, 4
ADMIN = b"GET /admin HTTP/1.1\r\nHost: x\r\n\r\n"
#: Seconds after which a client that hears nothing goes.
PATIENCE = 20.0

type Fields = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Trick:
    """One request: its head, the frames of its body, its trailers. ``plain``: it says openly what it asks for, which is
    nothing to hide where all may be asked."""

    fields: Fields
    body: tuple[bytes, ...] = ()
    trailers: Fields = field(default_factory=list)
    plain: bool = False

    def frames(self) -> bytes:
        parts = [
            *((DATA, 0, one) for one in self.body),
            *([(HEADERS, END_HEADERS, block(self.trailers))] * bool(self.trailers)),
        ]
        parts.insert(0, (HEADERS, END_HEADERS, block(self.fields)))
        kind, flags, payload = parts.pop()
        parts.append((kind, flags | END_STREAM, payload))
        return b"".join(frame(kind, flags, 1, payload) for kind, flags, payload in parts)


def block(fields: Fields) -> bytes:
    return hpack.Encoder().encode([hpack.NeverIndexedHeaderTuple(*one) for one in fields], huffman=False)


def asked(*more: tuple[bytes, bytes], **pseudo: bytes) -> Fields:
    """A head in good order, but for what is given."""
    said = {"method": b"POST", "scheme": b"http", "authority": b"x", "path": b"/ok"} | pseudo
    return [*((b":" + name.encode(), value) for name, value in said.items()), *more]


def hidden(text: bytes) -> list[Trick]:
    """``text`` behind what every part of a head may well say."""
    parts = [
        asked(method=b"GET" + text), asked(path=b"/ok" + text), asked(authority=b"x" + text),
        asked(scheme=b"http" + text), asked((b"a" + text, b"b")), asked((b"a", b"b" + text)),
        asked((b"cookie", b"b" + text)), asked((b"user-agent", b"b" + text)), asked((b"x-request-id", b"b" + text)),
        asked((b"content-type", b"b" + text)), asked((b"te", b"trailers" + text)),
    ]  # fmt: skip
    return [
        *map(Trick, parts),
        Trick(asked(), (b"q",), [(b"a", b"b" + text)]),
        Trick(asked(), (), [(b"a" + text, b"b")]),
    ]


CHUNKED = b"0\r\n\r\n" + ADMIN
TRICKS = [
    *hidden(b" HTTP/1.1\r\nHost: x\r\n\r\n" + ADMIN),
    *hidden(b"\r\n\r\n" + ADMIN),
    *hidden(b"\n\n" + ADMIN),
    *hidden(b"\r\nTransfer-Encoding: chunked"),
    *hidden(b"\r\nX-Forwarded-Client-Cert: URI=forged"),
    *hidden(b"\nX-Forwarded-Client-Cert: URI=forged"),
    *hidden(b"\rX-Forwarded-Client-Cert: URI=forged"),
    *hidden(b"\x00"),
    *hidden(b": b\r\nx-hedgerow-a: b\r\nc"),
    # lengths
    Trick(asked((b"content-length", b"0")), (ADMIN,)),
    Trick(asked((b"content-length", b"0")), (), [(b"a", b"b")]),
    Trick(asked((b"content-length", b"5")), (b"12345" + ADMIN,)),
    Trick(asked((b"content-length", b"500")), (ADMIN,)),
    Trick(asked((b"content-length", b"5"), (b"content-length", b"0")), (b"12345",)),
    Trick(asked((b"content-length", b"0"), (b"content-length", b"%d" % len(ADMIN))), (ADMIN,)),
    Trick(asked((b"content-length", b"%d" % len(ADMIN)), (b"content-length", b"0")), (ADMIN,)),
    Trick(asked((b"content-length", b"0, %d" % len(ADMIN))), (ADMIN,)),
    Trick(asked((b"content-length", b"+%d" % len(ADMIN))), (ADMIN,)),
    Trick(asked((b"content-length", b"0x20")), (ADMIN,)),
    Trick(asked((b"content-length", b" %d" % len(ADMIN))), (ADMIN,)),
    Trick(asked((b"content-length", b"-1")), (ADMIN,)),
    Trick(asked((b"content-length", b"")), (ADMIN,)),
    Trick(asked((b"content-length", b"3_2")), (ADMIN,)),
    Trick(asked((b"content_length", b"0")), (ADMIN,)),
    Trick(asked((b"content-length", b"%d" % len(ADMIN)), (b"content_length", b"0")), (ADMIN,)),
    # what HTTP/1 frames with
    Trick(asked((b"transfer-encoding", b"chunked")), (CHUNKED,)),
    Trick(asked((b"transfer-encoding", b"chunked"), (b"content-length", b"%d" % len(CHUNKED))), (CHUNKED,)),
    Trick(asked((b"transfer-encoding", b"identity")), (CHUNKED,)),
    Trick(asked((b"Transfer-Encoding", b"chunked")), (CHUNKED,)),
    Trick(asked((b"transfer_encoding", b"chunked")), (CHUNKED,)),
    Trick(asked((b"transfer-encoding ", b"chunked")), (CHUNKED,)),
    Trick(asked((b" transfer-encoding", b"chunked")), (CHUNKED,)),
    Trick(asked((b"\ttransfer-encoding", b"chunked")), (CHUNKED,)),
    Trick(asked((b"transfer-encoding:", b"chunked")), (CHUNKED,)),
    Trick(asked((b"connection", b"close")), (ADMIN,)),
    Trick(asked((b"connection", b"content-length"), (b"content-length", b"%d" % len(ADMIN))), (ADMIN,)),
    Trick(asked((b"connection", b"upgrade"), (b"upgrade", b"websocket")), (ADMIN,)),
    Trick(asked((b"connection", b"upgrade, http2-settings"), (b"upgrade", b"h2c"), (b"http2-settings", b"AAMAAABk"))),
    Trick(asked((b"upgrade", b"websocket"), method=b"GET")),
    Trick(asked((b"keep-alive", b"timeout=1")), (ADMIN,)),
    Trick(asked((b"proxy-connection", b"keep-alive")), (ADMIN,)),
    Trick(asked((b"te", b"chunked")), (CHUNKED,)),
    Trick(asked((b"te", b"trailers, chunked")), (CHUNKED,)),
    Trick(asked((b"expect", b"100-continue")), (ADMIN,)),
    Trick(asked((b"expect", b"100-continue"), (b"content-length", b"%d" % len(ADMIN))), (ADMIN,)),
    Trick(asked(method=b"GET"), (ADMIN,)),
    Trick(asked(method=b"HEAD"), (ADMIN,)),
    Trick(asked(), (b"%x\r\n" % len(ADMIN), ADMIN, b"\r\n0\r\n\r\n")),
    Trick(asked(), (b"", b"", ADMIN, b"")),
    # trailers
    Trick(asked(), (b"a",), [(b"transfer-encoding", b"chunked")]),
    Trick(asked(), (b"a",), [(b"content-length", b"0")]),
    Trick(asked(), (b"a",), [(b":path", b"/admin")]),
    Trick(asked(), (b"a",), [(b"x-forwarded-client-cert", b"URI=forged")]),
    Trick(asked(), (b"a",), [(b"x-hedgerow-a", b"b")]),
    Trick(asked(), (b"a",), [(b"host", b"y")]),
    # pseudo-headers
    Trick([*asked(), (b":path", b"/admin")]),
    Trick([(b":path", b"/admin"), *asked()]),
    Trick([*asked(), (b":method", b"DELETE")]),
    Trick([*asked(), (b":authority", b"y")]),
    Trick([(b"a", b"b"), *asked()]),
    Trick([*asked((b"a", b"b")), (b":path", b"/admin")]),
    Trick([*asked(), (b":admin", b"1")]),
    Trick([*asked(), (b":status", b"200")]),
    Trick([*asked(), (b":", b"/admin")]),
    Trick([*asked(), (b"", b"/admin")]),
    Trick([one for one in asked() if one[0] != b":path"]),
    Trick([one for one in asked() if one[0] != b":method"]),
    Trick([one for one in asked() if one[0] != b":scheme"]),
    Trick([one for one in asked() if one[0] != b":authority"]),
    Trick(asked(path=b"")),
    Trick(asked(path=b"*")),
    Trick(asked(path=b"ok")),
    Trick(asked(path=b"http://x/admin"), plain=True),
    Trick(asked(scheme=b"http://x/admin?")),
    Trick(asked(scheme=b"")),
    Trick(asked(authority=b"")),
    Trick(asked(authority=b"x/admin?")),
    Trick(asked(authority=b"y@x")),
    Trick(asked(authority=b"x, y")),
    Trick(asked((b"host", b"y"))),
    Trick(asked((b"host", b"x"), (b"host", b"y"))),
    Trick([*(one for one in asked() if one[0] != b":authority"), (b"host", b"x"), (b"host", b"y")]),
    # CONNECT, and what RFC 8441 makes of it
    Trick([(b":method", b"CONNECT"), (b":authority", b"x:80")], (ADMIN,)),
    Trick(asked(method=b"CONNECT"), (ADMIN,)),
    Trick([*asked(method=b"CONNECT")[:4], (b":protocol", b"websocket")], (ADMIN,)),
    Trick([*asked(method=b"GET")[:4], (b":protocol", b"websocket")], (ADMIN,)),
    # another operation beside the line
    Trick(asked((b"x-http-method-override", b"DELETE")), plain=True),
    Trick(asked((b"x-original-url", b"/admin")), plain=True),
    Trick(asked((b"x_rewrite_url", b"/admin")), plain=True),
    Trick(asked(method=b"DELETE"), plain=True),
    Trick(asked(method=b"post"), plain=True),
    Trick(asked(path=b"/admin"), plain=True),
    Trick(asked(path=b"/ok/../admin"), plain=True),
    Trick(asked(path=b"/ok HTTP/1.1"), plain=True),
    Trick(asked(path=b"/ok\tHTTP/1.1"), plain=True),
    *(Trick(asked(path=target.replace(b"a", b"ok"), method=b"GET"), plain=True) for target in UNCLEAR),
    *(Trick(asked(path=target, method=b"GET"), plain=True) for target in LED_ASTRAY),
    # who the client is
    Trick(asked((b"x-forwarded-client-cert", b"URI=forged"))),
    Trick(asked((b"x_forwarded_client-cert", b"URI=forged"))),
    Trick(asked((b"X-Forwarded-Client-Cert", b"URI=forged"))),
    Trick(asked((b"x-hedgerow-a", b"b"))),
]  # fmt: skip

PIECES = [
    b"\r\n", b"\n", b"\r", b"\x00", b" ", b"\t", b":", b"/", b"..", b"%2f", b";", b"#", b"?", b"\x80", b"A", b",",
    b"chunked", b"HTTP/1.1", ADMIN, b"\r\n\r\n" + ADMIN, b"x-hedgerow-a", b"0",
]  # fmt: skip


def mutants(seed: int, count: int):
    """Good requests with something put into a name or a value, and fields that say something else once more."""
    chance = random.Random(seed)
    known = [
        (b"content-length", b"4"), (b"transfer-encoding", b"chunked"), (b"host", b"x"), (b"te", b"trailers"),
        (b"connection", b"close"), (b"a", b"b"), (b"x-forwarded-client-cert", b"URI=forged"), (b":path", b"/ok"),
        (b":authority", b"x"), (b"cookie", b"a=b"), (b"expect", b"100-continue"), (b":scheme", b"http"),
    ]  # fmt: skip
    for _ in range(count):
        body = chance.choice([(), (b"body",), (b"bo", b"dy"), (ADMIN,)])
        length = sum(map(len, body))
        fields = asked(*([(b"content-length", b"%d" % length)] if chance.random() < 0.5 else []))
        for _ in range(chance.randint(0, 2)):
            fields.insert(chance.randint(0, len(fields)), chance.choice(known))
        if chance.random() < 0.7:
            at = chance.randrange(len(fields))
            parts = list(fields[at])
            part = chance.randrange(2)
            where = chance.randint(0, len(parts[part]))
            parts[part] = parts[part][:where] + chance.choice(PIECES) + parts[part][where:]
            fields[at] = (parts[0], parts[1])
        yield Trick(fields, body, [chance.choice(known)] if chance.random() < 0.2 else [], plain=True)


@pytest.fixture(params=["judged", "observed"])
def way(request):
    return request.param


@pytest.fixture(params=["nginx", "envoy"])
async def served(request, tmp_path, way):
    """A data plane, and what is seen behind the server behind it."""
    recorder = Recorder()
    await recorder.start()
    program = {"nginx": nginx, "envoy": envoy}[request.param](tmp_path, recorder.port, http2=True)
    sidecar = None
    try:
        await program.ready()
        authority = CertificateAuthority.create(TRUST_DOMAIN, time.time())
        sidecar = Sidecar(authority, program.port, ALLOWED if way == "judged" else ())
        await sidecar.plane.start()
        yield sidecar, recorder
        assert (sidecar.taps.requests > 0) is (way == "judged"), "another lane was tried"
    finally:
        if sidecar is not None:
            sidecar.plane.stop()
        program.stop()
        await recorder.stop()


async def ask(port: int, data: bytes) -> tuple[bool, Fields]:
    """Send ``data``, and wait until its stream or the connection is over.

    :return: whether the stream ended in good order, and the head of the answer
    """
    reader, writer = await asyncio.open_connection(HOST, port)
    head: Fields = []
    decoder = hpack.Decoder()
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        try:
            writer.write(PREFACE + frame(SETTINGS) + data)
            async with asyncio.timeout(PATIENCE):
                while True:
                    start = await reader.readexactly(9)
                    payload = await reader.readexactly(int.from_bytes(start[:3]))
                    kind, flags, stream = start[3], start[4], int.from_bytes(start[5:])
                    assert kind != CONTINUATION
                    if kind == SETTINGS and not flags & 1:
                        writer.write(frame(SETTINGS, 1))
                    elif kind == GOAWAY or (kind == RST_STREAM and stream == 1):
                        return False, head
                    elif kind == HEADERS:
                        head += decoder.decode(payload, raw=True)
                    if kind in (HEADERS, DATA) and stream == 1 and flags & END_STREAM:
                        return True, head
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
    return False, head


_cases = itertools.count(1000)


async def check(sidecar: Sidecar, recorder: Recorder, trick: Trick, way: str) -> list[tuple[str, str]]:
    """Send it, and compare. It carries a number, because servers may be told late of a request that its client has
    given up; what is seen without a number was nobody's."""
    case = b"%d" % next(_cases)
    sidecar.flows.requests.clear()
    recorder.seen.clear()
    trick = Trick([*trick.fields, (b"case", case)], trick.body, trick.trailers, trick.plain)
    _, head = await ask(sidecar.port, trick.frames())
    recorder.seen[:] = [one for one in recorder.seen if one[3].get("case", case.decode()) == case.decode()]
    seen = [(method, target) for method, target, _, _ in recorder.seen]
    assert len(seen) <= 1, (trick, seen)
    if way == "judged":
        allowed = [(told.method, told.path) for told in sidecar.flows.requests if told.decision.allowed]
        assert all(one in allowed for one in seen), (trick, seen, allowed)
    if way == "judged" or not trick.plain:
        assert not any("admin" in unquote(unquote(target)) for _, target, _, _ in recorder.seen), (trick, recorder.seen)
    for _, _, body, headers in recorder.seen:
        assert body == b"".join(trick.body), trick
        assert not any("forwarded" in name.lower() and "client" in name.lower() for name in headers), trick
        assert not any("hedgerow" in name.lower() for name in headers), trick
    if dict(head).get(b":status") == b"200":
        assert len(seen) == 1, (trick, head)
    return seen


async def test_tricks(served, way):
    sidecar, recorder = served
    for trick in TRICKS:
        await check(sidecar, recorder, trick, way)


async def test_what_is_good_is_seen_as_it_is(served, way):
    sidecar, recorder = served
    body = random.Random(1).randbytes(30_000)
    good = [
        Trick(asked(method=b"GET")),
        Trick(asked((b"content-length", b"30000")), (body[:16_000], body[16_000:])),
        Trick(asked((b"te", b"trailers")), (body[:100],)),
        Trick([*(one for one in asked() if one[0] != b":authority"), (b"host", b"x")], (ADMIN,)),
    ]
    for trick in good:
        assert await check(sidecar, recorder, trick, way) == [(trick.fields[0][1].decode(), "/ok")], trick
        for *_, headers in recorder.seen:
            assert len(headers.getall("traceparent", ())) == (way == "judged")


@pytest.mark.parametrize("seed", range(2))
async def test_mutants(served, way, seed):
    sidecar, recorder = served
    passed = 0
    for trick in mutants(seed, 60):
        passed += len(await check(sidecar, recorder, trick, way))
    assert passed, "if nothing passes nothing is tried"
