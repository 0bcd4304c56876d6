"""Frames of HTTP/2, read beside the bytes that carry them (RFC 9113 sections 4 and 6). Pure.

Only what tells of operations is looked at: header blocks, ends of streams and their sizes, and messages of gRPC where
somebody counts them. Payloads of other frames are counted and skipped, so that at most one header block is held.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sidecar.http.errors import Malformed
from sidecar.http.grpc_messages import Messages
from sidecar.http.hpack import Check, Header, HeaderReader, anything
from sidecar.http.settings import HttpSettings

#: What a client sends first (RFC 9113 section 3.4).
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

_DATA: Final = 0
_HEADERS: Final = 1
_RST_STREAM: Final = 3
_PUSH_PROMISE: Final = 5
_CONTINUATION: Final = 9
#: Frames that are read as a whole.
_READ: Final = frozenset({_HEADERS, _RST_STREAM, _PUSH_PROMISE, _CONTINUATION})
_END_STREAM: Final = 0x1
_END_HEADERS: Final = 0x4
_PADDED: Final = 0x8
_PRIORITY: Final = 0x20
_HEADER: Final = 9

type OnHeaders = Callable[[int, tuple[Header, ...], bool], None]
type OnData = Callable[[int, int, bool], Messages | None]
type OnReset = Callable[[int], None]
type OnMessages = Callable[[int], None]

#: The highest number that a stream can have: a GOAWAY that names it turns no request away.
ANY_STREAM: Final = 0x7FFFFFFF
#: SETTINGS that set nothing: what an end has to say before it may say anything else (RFC 9113 section 3.4).
NO_SETTINGS: Final = b"\0\0\0\4\0\0\0\0\0"
#: Why a connection ends (RFC 9113 section 7).
PROTOCOL_ERROR: Final = 1
ENHANCE_YOUR_CALM: Final = 11


def goaway(last_stream: int, code: int = 0, why: bytes = b"") -> bytes:
    """A GOAWAY frame (RFC 9113 section 6.8)."""
    return b"%b\x07\0\0\0\0\0%b%b%b" % ((8 + len(why)).to_bytes(3), last_stream.to_bytes(4), code.to_bytes(4), why)


class FrameReader:
    """Reads one direction of one connection.

    :param headers: called with a stream, its headers and whether the sender ends it with them
    :param data: called with a stream, bytes of it and whether the sender ends it with them; answers with what counts
        the messages in them, if anybody does
    :param reset: called with a stream that the sender gives up
    :param messages: called with how many messages began
    :param preface: the direction begins with :data:`PREFACE`
    :param check: raises what is wrong with a block of headers, of trailers, or of a promise
    :ivar boundary: how many of the bytes that were fed last are in front of the last place where a frame of another
        could stand; negative: there is none. In front of a client's first frame there is none either
    """

    __slots__ = (
        "_begun",
        "_block",
        "_body",
        "_continuations",
        "_counting",
        "_data",
        "_end",
        "_headers",
        "_held",
        "_messages",
        "_preface",
        "_reader",
        "_reset",
        "_settings",
        "_silent",
        "_skip",
        "_skips_data",
        "_stream",
        "boundary",
    )

    def __init__(
        self,
        settings: HttpSettings,
        headers: OnHeaders,
        data: OnData,
        reset: OnReset,
        messages: OnMessages,
        *,
        preface: bool,
        check: Check = anything,
    ) -> None:
        self._settings = settings
        self._reader = HeaderReader(settings.h2_headers_bytes, settings.h2_table_bytes, check)
        self._headers = headers
        self._data = data
        self._reset = reset
        self._messages = messages
        self._preface = preface
        self._begun = not preface  # the first frame, which belongs to the preface, is whole
        self._held = b""  # the beginning of what is needed as a whole
        self._skip = 0  # bytes of a payload that nobody looks at
        self._skips_data = False  # they are of a body
        self._counting: Messages | None = None  # counts the messages in them
        self._body = 0  # how many of them are no padding; negative: their first byte has to say
        self._block = bytearray()  # of a header block that is not complete
        self._stream = 0  # it belongs to; 0: there is none
        self._end = False  # it ends its stream
        self._silent = False  # it is a promise, and tells of nothing
        self._continuations = 0
        self.boundary = -1

    @property
    def between_frames(self) -> bool:
        """Whether a frame of another could stand behind what was fed."""
        return not (self._skip or self._held or self._stream or self._preface)

    @property
    def half(self) -> bool:
        """Whether something has begun that its sender has to finish before anything else can happen: the preface with
        its first frame, a head, any frame but one of a body."""
        return bool(not self._begun or self._held or self._stream or (self._skip and not self._skips_data))

    def feed(self, data: memoryview) -> None:
        """:raises Malformed: when it can not be read, or passes a bound; nothing more can be read then"""
        size = len(data)
        if size <= self._skip:
            if self._counting is not None:
                self._count(self._counting, data, 0, size, self._skip)
            self._skip -= size
            self.boundary = -1 if self._skip or self._stream else size
            self._begun = self._begun or not self._skip
            return
        at = self._skip
        if at:
            if self._counting is not None:
                self._count(self._counting, data, 0, at, at)
            self._begun = True
            self._skip = 0
        before = at - len(self._held)  # what is not in the piece, less what of it came before
        piece = self._held + bytes(data[at:]) if self._held else bytes(data[at:])
        self._held = b""
        at, size = 0, len(piece)
        if self._preface:
            if size < len(PREFACE):
                if not PREFACE.startswith(piece):
                    raise Malformed("h2-preface")
                self._held = piece
                self.boundary = -1
                return
            if not piece.startswith(PREFACE):
                raise Malformed("h2-preface")
            self._preface = False
            at = len(PREFACE)
        boundary = at if self._begun and not self._stream else -1
        messages = None
        while size - at >= _HEADER:
            length = piece[at] << 16 | piece[at + 1] << 8 | piece[at + 2]
            kind, flags = piece[at + 3], piece[at + 4]
            body = at + _HEADER
            if kind in _READ:
                if length > self._settings.h2_block_bytes:
                    raise Malformed("h2-block")
                if size - body < length:
                    break
                stream = int.from_bytes(piece[at + 5 : body]) & 0x7FFFFFFF
                self._frame(kind, flags, stream, piece[body : body + length])
            elif self._stream:
                raise Malformed("h2-interleaved")
            elif kind == _DATA:
                stream = int.from_bytes(piece[at + 5 : body]) & 0x7FFFFFFF
                messages = self._data(stream, length, flags & _END_STREAM != 0)
                if messages is not None:
                    if size - body >= length and not flags & _PADDED:
                        began = messages.take(piece, body, body + length)
                        if began:
                            self._messages(began)
                    else:
                        self._body = -1 if flags & _PADDED else length
                        self._count(messages, piece, body, min(body + length, size), length)
            at = body + length
            if at <= size:
                self._begun = True
                if not self._stream:
                    boundary = at
        self.boundary = before + boundary if boundary >= 0 else -1
        if at > size:
            self._skip = at - size
            self._skips_data = kind == _DATA
            self._counting = messages if kind == _DATA else None
        elif at < size:
            self._held = piece[at:] if at else piece

    def _count(self, messages: Messages, data: bytes | memoryview, at: int, end: int, left: int) -> None:
        """Count the messages in some of a DATA frame: ``data`` from ``at`` to ``end``.

        :param left: bytes of the frame's payload from there on
        """
        if self._body < 0:
            if at == end:
                return
            self._body = max(0, left - 1 - data[at])  # too much padding is for the application to find fault with
            at += 1
        if end - at > self._body:
            end = at + self._body
        self._body -= end - at
        began = messages.take(data, at, end)
        if began:
            self._messages(began)

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _RST_STREAM:
            if self._stream:
                raise Malformed("h2-interleaved")
            self._reset(stream)
            return
        if kind == _CONTINUATION:
            self._continuations += 1
            if stream != self._stream or not stream:
                raise Malformed("h2-interleaved")
            if self._continuations > self._settings.h2_continuations:
                raise Malformed("h2-continuations")
        else:
            if self._stream or not stream:
                raise Malformed("h2-interleaved")
            payload = _without_padding(payload, flags)
            if kind == _PUSH_PROMISE:
                payload = payload[4:]
            elif flags & _PRIORITY:
                payload = payload[5:]
            self._silent = kind == _PUSH_PROMISE
            self._end = flags & _END_STREAM != 0
            self._continuations = 0
            if flags & _END_HEADERS:
                self._tell(stream, payload)
                return
            self._stream = stream
        self._block += payload
        if len(self._block) > self._settings.h2_block_bytes:
            raise Malformed("h2-block")
        if flags & _END_HEADERS:
            block = bytes(self._block)
            self._block.clear()
            self._stream = 0
            self._tell(stream, block)

    def _tell(self, stream: int, block: bytes) -> None:
        headers = self._reader.read(block)  # promises too: the table is one
        if not self._silent:
            self._headers(stream, headers, self._end)


def _without_padding(payload: bytes, flags: int) -> bytes:
    if not flags & _PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise Malformed("h2-padding")
    return payload[1 : len(payload) - payload[0]]
