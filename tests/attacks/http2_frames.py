"""Frames and heads of HTTP/2 as attackers write them, whichever end they are at."""

from __future__ import annotations

import hpack
import hpack.hpack

from tests.attacks.sending import Pieces, endless, numbered, times

DATA, HEADERS, _PRIORITY, RST_STREAM, SETTINGS, _PUSH, PING, _GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def block(*fields: tuple[str, str]) -> bytes:
    """A head that does not depend on the table."""
    return bytes(hpack.Encoder().encode([hpack.NeverIndexedHeaderTuple(*field) for field in fields]))


def request(path: str = "/ok") -> bytes:
    return block((":method", "GET"), (":scheme", "http"), (":authority", "web"), (":path", path))


#: One field of the table, and a head of nothing but references to it: 16,000 times 4,000 bytes.
_BOMB = b"\x40\x01x\x7f" + hpack.hpack.encode_integer(3900, 7)[1:] + b"y" * 3900
_REFERENCES = b"\xbe" * 16_000


def floods(opening: bytes, head: bytes, *, answers: bool = False) -> dict[str, Pieces]:
    """What either end may flood the other with, by name.

    :param opening: all before the first frame behind the end's own SETTINGS
    :param head: of a message
    :param answers: who floods was asked, on stream 1
    """

    def bomb(number: int) -> bytes:
        return frame(HEADERS, 5, 1, _REFERENCES) if answers else frame(HEADERS, 5, 2 * number + 3, head + _REFERENCES)

    begun = opening + frame(HEADERS, 4, 1, head)
    return {
        "continuation": endless(
            opening + frame(HEADERS, 0, 1, head), times(frame(CONTINUATION, 0, 1, b"\x00\x01a\x01b"))
        ),
        "settings": endless(opening, times(frame(SETTINGS, payload=b"\0\x03\0\0\0\x64"))),
        "ping": endless(opening, times(frame(PING, payload=bytes(8)))),
        "empty-data": endless(begun, times(frame(DATA, 0, 1))),
        "window-updates": endless(opening, times(frame(WINDOW_UPDATE, payload=b"\0\0\0\x01"))),
        "hpack-bomb": numbered(opening + frame(HEADERS, 4 if answers else 5, 1, head + _BOMB), bomb, each=4),
    }
