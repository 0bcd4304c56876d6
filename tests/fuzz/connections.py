"""Targets for what is read of a connection before anybody knows whose it is, and of a tunnel's frames."""

from __future__ import annotations

import ssl
import struct
import time
from collections.abc import Iterator
from functools import cache
from typing import NoReturn

from certs.ca import CertificateAuthority
from sidecar.dataplane import clienthello
from sidecar.dataplane.clienthello import ClientHello, Reading
from sidecar.dataplane.detect import LONGEST_LINE, PREFACE, Kind, detect
from sidecar.dataplane.frames import FIN, HEADER, HEADER_SIZE, FrameError, FrameReader
from sidecar.http.errors import Malformed
from sidecar.http.head import read_request
from tests.fuzz.target import Target, pieces, prefixes, split
from tests.sidecar.dataplane.stand_ins import TRUST_DOMAIN, HeldCredentials, credentials

# frames ---------------------------------------------------------------------------------------------------------------


class _Written:
    """A sink that writes down, frame by frame, the bytes that it must have been told from."""

    def __init__(self) -> None:
        self.frames: list[bytearray] = []
        self.ends = 0

    def on_data(self, stream_id: int, flags: int, length: int) -> _Written:
        self.frames.append(bytearray(HEADER.pack(flags, stream_id, length)))
        return self

    def on_control(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        self.frames.append(bytearray(HEADER.pack(kind | flags, stream_id, length)))

    def fault(self, stream_id: int) -> NoReturn:
        raise  # what is handled now

    def deliver(self, payload: memoryview, size: int) -> None:
        assert len(payload) == size > 0
        self.frames[-1] += payload

    def deliver_last(self, payload: memoryview, size: int) -> None:
        self.deliver(payload, size)
        self.finish()

    def finish(self) -> None:
        word, _, length = HEADER.unpack_from(self.frames[-1])
        assert word & FIN
        assert len(self.frames[-1]) == HEADER_SIZE + length, "ended before its last byte"
        self.ends += 1


def _read_frames(data_pieces: Iterator[bytes] | list[bytes]) -> tuple[_Written, bytes, str]:
    sink = _Written()
    reader = FrameReader(sink)
    for piece in data_pieces:
        buffer = bytearray(reader.held + piece)
        with memoryview(buffer) as view:
            try:
                reader.feed(buffer, view, len(buffer))
            except FrameError as error:
                return sink, b"", str(error)
        while len(reader.held) >= HEADER_SIZE:  # more frames than one call reads
            waited = len(reader.held)
            buffer = bytearray(reader.held)
            with memoryview(buffer) as view:
                try:
                    reader.feed(buffer, view, waited)
                except FrameError as error:
                    return sink, b"", str(error)
            assert len(reader.held) < waited
    return sink, reader.held, ""


def check_frames(data: bytes) -> None:
    how, data = split(data)
    whole, held, refused = _read_frames([data])
    cut, cut_held, cut_refused = _read_frames(pieces(how, data))
    assert (whole.frames, whole.ends, held, refused) == (cut.frames, cut.ends, cut_held, cut_refused)
    told = b"".join(whole.frames)
    assert data.startswith(told)
    assert refused or told + held == data, "every byte is a frame's or waits"


def _frame_seeds() -> Iterator[bytes]:
    def frame(kind: int, flags: int, stream: int, length: int, payload: bytes = b"") -> bytes:
        return struct.pack("!BBHII", 0, kind, flags, stream, length) + payload

    some = [
        frame(1, 1, 1, 0),
        frame(0, 0, 1, 5, b"hello"),
        frame(0, 4, 1, 0),
        frame(0, 5, 3, 2, b"hi"),
        frame(1, 8, 1, 0),
        frame(1, 2, 2, 65536),
        frame(2, 1, 0, 7),
        frame(2, 2, 0, 7),
        frame(3, 0, 0, 1),
        frame(0, 0, 9, 100_000, bytes(20)),
    ]
    for how in (0, 1, 7, 0xFF):
        yield bytes((how,)) + b"".join(some)
    yield from (b"\0" + one for one in some)


# client hellos --------------------------------------------------------------------------------------------------------

_ALPN = "hedgerow/1"


@cache
def _own() -> HeldCredentials:
    return credentials(CertificateAuthority.create(TRUST_DOMAIN, time.time()), "shop", "cart")


@cache
def _server() -> tuple[ssl.SSLContext, list[str | None]]:
    """A server of OpenSSL's that has no opinion about names, and the names that it saw."""
    context, seen = _own().server_context, []
    context.sni_callback = lambda session, name, of: seen.append(name)
    return context, seen


def _as_openssl(data: bytes) -> tuple[list[str | None], str | None, bool]:
    """The name that OpenSSL reads, the protocol that it agrees to, and whether it answers."""
    context, seen = _server()
    seen.clear()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = context.wrap_bio(incoming, outgoing, server_side=True)
    incoming.write(data)
    try:
        session.do_handshake()
    except ssl.SSLWantReadError:
        answered = bool(outgoing.pending)
    except ssl.SSLError:
        answered = False
    return list(seen), session.selected_alpn_protocol() if answered else None, answered


def check_hello(data: bytes) -> None:
    reading = clienthello.read(data)
    for part in prefixes(data):
        early = clienthello.read(part)
        assert early is Reading.MORE or early == reading, "more bytes changed what was certain"
    assert reading is not Reading.MORE or len(data) < clienthello.LIMIT
    if not isinstance(reading, ClientHello):
        return
    assert not reading.server_name or reading.named
    names, protocol, answered = _as_openssl(data)
    for name in names:
        # it may know no name where we saw none that is one, but never another name
        assert name is None or reading.named
        assert not reading.server_name or name is None or name.lower() == reading.server_name
    if answered:
        assert (protocol == _ALPN) == (_ALPN.encode() in reading.alpn)
        assert names != [None] or not reading.server_name


def _hello(*, alpn: list[str], name: str | None, most: ssl.TLSVersion | None = None) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if most is not None:
        context.maximum_version = most
    if alpn:
        context.set_alpn_protocols(alpn)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a handshake of one flight")


def _hello_seeds() -> Iterator[bytes]:
    hello = _hello(alpn=[_ALPN], name=None)
    yield hello
    yield _hello(alpn=["h2", _ALPN], name="cart.shop.svc")
    yield _hello(alpn=["istio"], name="outbound_.80_._.cart.shop.svc.cluster.local")
    yield _hello(alpn=[], name="a.example", most=ssl.TLSVersion.TLSv1_2)
    cut = hello[5:]
    yield b"".join(  # over two records
        b"\x16\x03\x01" + len(part).to_bytes(2) + part for part in (cut[:40], cut[40:])
    )
    yield hello + b"\x17\x03\x03\x00\x05early"
    yield hello[:60]


# first bytes ----------------------------------------------------------------------------------------------------------


def check_detect(data: bytes) -> None:
    kind = detect(data)
    good = _is_good_request(data)
    for part in prefixes(data):
        early = detect(part)
        # what only a lenient server would take for a request is found in one piece alone; a good one in any
        lenient = early is Kind.OTHER and kind is Kind.HTTP1 and not good
        assert early is Kind.MORE or early is kind or lenient, "more bytes changed what was certain"
    assert kind is not Kind.MORE or len(data) < LONGEST_LINE
    assert kind is not Kind.HTTP2 or data.startswith(PREFACE)
    assert kind is Kind.HTTP1 or not good, "what the guard takes must not be opaque"


def _is_good_request(data: bytes) -> bool:
    try:
        head = read_request(data)
    except Malformed:
        return False
    return head is not None and len(head.target) < LONGEST_LINE - 64


def _detect_seeds() -> Iterator[bytes]:
    yield b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    yield b"OPTIONS * HTTP/1.1\nHost: a\n\n"
    yield b"M-SEARCH /a%20b HTTP/1.0\r\n\r\n"
    yield b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"
    yield b"PRI /x HTTP/1.1\r\nHost: a\r\n\r\n"
    yield b"\x16\x03\x01\x02\0\x01"
    yield b"EHLO mail.example\r\n"
    yield b"GET http://a/ HTTP/1.1\r\n\r\n"
    yield b"SELECT 1;"


TARGETS = (
    Target("frames", check_frames, _frame_seeds),
    Target("hello", check_hello, _hello_seeds, 2048),
    Target("detect", check_detect, _detect_seeds, 1024),
)
