"""Attacks of clients, each a function of a port and a time: it goes on until the time is over."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import hpack

from certs.ca import CertificateAuthority
from certs.keys import make_csr, new_key
from certs.spiffe import SpiffeId
from tests.attacks import http1_answers, http2_frames
from tests.attacks.http2_frames import HEADERS, PREFACE, RST_STREAM, SETTINGS, frame, request
from tests.attacks.sending import (
    PATIENCE,
    Connect,
    Pieces,
    Result,
    connected,
    crowd,
    endless,
    flood,
    numbered,
    once,
    plain,
    times,
)
from tests.sidecar.dataplane.rekeying import Rekeying
from tests.sidecar.dataplane.stand_ins import ALPN, TRUST_DOMAIN, credentials

#: Connections of one Slowloris.
SLOW_CLIENTS = 1000


def _plainly(pieces: Pieces, **how: bool) -> Callable[..., Result]:
    def attack(port: int, seconds: float, **options: int) -> Result:
        return flood(plain(port), seconds, pieces, **how, **options)

    return attack


# HTTP/2 ---------------------------------------------------------------------------------------------------------------

_OPENING = PREFACE + frame(SETTINGS)
_HEAD = request()
#: Takes long to decode: Huffman's code of 25,000 characters.
_PACKED = bytes(hpack.Encoder().encode([hpack.NeverIndexedHeaderTuple("x" * 10, "0" * 25_000)], huffman=True))


def _rapid_reset(number: int) -> bytes:
    stream = 2 * number + 1
    return frame(HEADERS, 5, stream, _HEAD) + frame(RST_STREAM, 0, stream, b"\0\0\0\x08")


def _huffman(number: int) -> bytes:
    """None of these fields is in the table, each is another one."""
    another = b"\x00\x01n" + b"\x04%04d" % (number % 10_000)
    return frame(HEADERS, 5, 2 * number + 1, _HEAD + _PACKED + another)


def _zero_window(port: int, seconds: float) -> Result:
    """Many streams ask for much and take nothing."""
    asked = b"".join(frame(HEADERS, 5, 2 * number + 1, request("/big")) for number in range(100))
    opening = PREFACE + frame(SETTINGS, payload=b"\0\x04\0\0\0\0") + asked
    return crowd(port, seconds, 4, [opening], b"", 1.0)


def _answered_http2(port: int, seconds: float, answer: str) -> Result:
    """Ask an application that floods whoever asks; see :mod:`tests.attacks.application`."""
    asked = _OPENING + frame(HEADERS, 5, 1, request(f"/{answer}"))
    return flood(plain(port), seconds, once(asked), stays=True)


# HTTP/1 ---------------------------------------------------------------------------------------------------------------

_ASKED = b"GET /ok HTTP/1.1\r\nHost: web\r\n"
_POSTED = b"POST /ok HTTP/1.1\r\nHost: web\r\n"
_CHUNKED = _POSTED + b"Transfer-Encoding: chunked\r\n\r\n"
_FIELDS = b"".join(b"X-%d: %s\r\n" % (number, b"a" * 50) for number in range(1000))


def _slow_heads(port: int, seconds: float) -> Result:
    return crowd(port, seconds, SLOW_CLIENTS, [_ASKED + b"X: "], b"a", 0.5, cut=SLOW_CLIENTS // 5)


def _slow_bodies(port: int, seconds: float) -> Result:
    openings = [_POSTED + b"Content-Length: 1000000\r\n\r\nx", _CHUNKED + b"f4240\r\nx"]
    return crowd(port, seconds, SLOW_CLIENTS, openings, b"a", 0.5)


def _slow_hellos(port: int, seconds: float) -> Result:
    """The beginning of a ClientHello, and then a byte now and then, as a slow handshake of ours would come."""
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(32)) + b"\x00"
    return crowd(port, seconds, SLOW_CLIENTS, [hello], b"\x00", 0.25, cut=SLOW_CLIENTS // 5)


def _slow_heads_http2(port: int, seconds: float) -> Result:
    """Half a head of HTTP/2, and then the rest of it byte by byte."""
    begun = (4000).to_bytes(3) + bytes((HEADERS, 4)) + (1).to_bytes(4) + _HEAD
    return crowd(port, seconds, SLOW_CLIENTS, [_OPENING + begun], b"\x00", 0.5, cut=SLOW_CLIENTS // 5)


def _answered_http1(port: int, seconds: float, answer: str) -> Result:
    asked = b"GET /%s HTTP/1.1\r\nHost: web\r\n\r\n" % answer.encode()
    return flood(plain(port), seconds, once(asked), stays=True)


# tunnels --------------------------------------------------------------------------------------------------------------

_DATA, _UPDATE, _PING = range(3)
SYN, ACK, FIN, RST = 1, 2, 4, 8


def yamux(kind: int, flags: int, stream: int, number: int, payload: bytes = b"") -> bytes:
    return struct.pack("!BBHII", 0, kind, flags, stream, number) + payload


def _tunnel(port: int, authority: str) -> Connect:
    """A tunnel of shop/evil, whose certificate is as good as any."""
    own = credentials(CertificateAuthority.load(authority.encode()), "shop", "evil").client_context

    def connect() -> socket.socket:
        sock = own.wrap_socket(connected(port), server_hostname="x")
        sock.setblocking(False)
        return sock

    return connect


def _through_tunnel(pieces: Pieces, **how: bool) -> Callable[..., Result]:
    def attack(port: int, seconds: float, authority: str, **options: int) -> Result:
        return flood(_tunnel(port, authority), seconds, pieces, **how, **options)

    return attack


def _opens(number: int) -> bytes:
    return yamux(_UPDATE, SYN, 2 * number + 1, 0)


def _opens_and_resets(number: int) -> bytes:
    return _opens(number) + yamux(_UPDATE, RST, 2 * number + 1, 0)


def _data_of_one_byte(number: int) -> bytes:
    """Within the window of a stream, which is opened anew for every 250,000 bytes."""
    stream = 2 * (number // 1000) + 1
    opening = yamux(_UPDATE, SYN, stream, 0) if not number % 1000 else b""
    return opening + yamux(_DATA, 0, stream, 1, b"x") * 250


def _asks_for_much(number: int) -> bytes:
    """A request for 16 MiB, and no byte of window beyond the first 256 KiB."""
    asked = _ASKED.replace(b"/ok", b"/huge") + b"\r\n"
    return yamux(_UPDATE, SYN, 2 * number + 1, 0) + yamux(_DATA, 0, 2 * number + 1, len(asked), asked)


def _half_hellos(port: int, seconds: float, authority: str) -> Result:
    """Handshakes of tunnels that get as far as the server's part of it, and then wait."""
    context = credentials(CertificateAuthority.load(authority.encode()), "shop", "evil").client_context
    outgoing = ssl.MemoryBIO()
    half = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="x")
    with contextlib.suppress(ssl.SSLWantReadError):
        half.do_handshake()
    return crowd(port, seconds, SLOW_CLIENTS, [outgoing.read()], b"", 1.0, cut=SLOW_CLIENTS // 5)


def _new_keys(port: int, seconds: float, authority: str, insists: bool = False) -> Result:
    """New keys without end, and the other side is asked for its own every time."""
    end = time.monotonic() + seconds
    connections = cut = keys = 0
    ca = CertificateAuthority.load(authority.encode())
    key = new_key()
    identity = SpiffeId.for_workload(TRUST_DOMAIN, "shop", "default", "evil")
    chain = ca.sign_workload(make_csr(key), identity, time.time(), 3600.0, "evil-0")
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end or (insists and not cut and time.monotonic() < end + PATIENCE):
            client = Rekeying(port, chain.chain_der, key, Path(folder), ALPN)
            connections += 1
            try:
                while time.monotonic() < end + PATIENCE * insists:
                    if not client.rekey(asking=True):
                        cut += 1
                        break
                    keys += 1
            finally:
                client.close()
    return {"connections": connections, "cut": cut, "sent": 27 * keys, "got": 0}


#: By name, as the tests and the attacker's process speak of them.
ATTACKS: dict[str, Callable[..., Any]] = {
    "rapid-reset": _plainly(numbered(_OPENING, _rapid_reset)),
    **{name: _plainly(pieces) for name, pieces in http2_frames.floods(_OPENING, _HEAD).items()},
    "huffman": _plainly(numbered(_OPENING, _huffman, each=4)),
    "zero-window": _zero_window,
    "slow-heads": _slow_heads,
    "slow-bodies": _slow_bodies,
    "slow-hellos": _slow_hellos,
    "slow-heads-http2": _slow_heads_http2,
    "huge-heads": _plainly(endless(_ASKED, _FIELDS)),
    "chunk-extensions": _plainly(endless(_CHUNKED + b"1;", b"a=b;" * 16_384)),
    "small-chunks": _plainly(endless(_CHUNKED, b"1\r\nx\r\n" * 10_000)),  # nothing about it is forbidden
    "pipelining": _plainly(endless(b"", (_ASKED + b"\r\n") * 2000), reads=False),
    "pipelining-taken": _plainly(endless(b"", (_ASKED + b"\r\n") * 2000)),
    "yamux-opens": _through_tunnel(numbered(b"", _opens, 4096)),
    "yamux-resets": _through_tunnel(numbered(b"", _opens_and_resets, 2048)),
    "yamux-pings": _through_tunnel(endless(b"", times(yamux(_PING, SYN, 0, 1)))),
    "yamux-windows": _through_tunnel(endless(yamux(_UPDATE, SYN, 1, 0), times(yamux(_UPDATE, 0, 1, 1)))),
    "yamux-empty-data": _through_tunnel(endless(yamux(_UPDATE, SYN, 1, 0), times(yamux(_DATA, 0, 1, 0)))),
    "yamux-bytes": _through_tunnel(numbered(b"", _data_of_one_byte, 20)),
    "yamux-zero-window": _through_tunnel(once(b"".join(map(_asks_for_much, range(200)))), stays=True),
    "yamux-half-hellos": _half_hellos,
    "new-keys": _new_keys,
}
ATTACKS |= {f"h2-answer-{name}": partial(_answered_http2, answer=name) for name in http2_frames.floods(b"", b"")}
ATTACKS |= {f"h1-answer-{name}": partial(_answered_http1, answer=name) for name in http1_answers.ANSWERS}
