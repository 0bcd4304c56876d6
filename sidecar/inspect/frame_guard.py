"""Reads HTTP/2 frames before mitmproxy does, counts what can be used to hurt, and says when it is enough. Pure.

What it does not do: it knows no HPACK and keeps no state of streams; those are the parser's, which is bounded in
:mod:`sidecar.inspect.http2`. Governing rules:

1. A byte is handed on only after its frame's header was looked at, and a head (HEADERS and its CONTINUATIONs) never
   grows beyond its limit on its way.
2. What is handed on in one call is bounded by a number of frames, so that nobody's burst keeps others waiting.
3. What is half sent, but for a body, is looked at from outside: since when that is so is in ``half_since``.
4. GOAWAY is withheld: the parser takes it for the end of everything, while RFC 9113 section 6.8 lets what runs finish.

Sources: RFC 9113 sections 4, 6 and 10.5; CVE-2019-9511 to 9518, CVE-2023-44487, CVE-2024-27316 (CONTINUATION),
CVE-2025-8671 (its other half, the resets that we are made to send, is counted by :meth:`FrameGuard.we_reset`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sidecar.inspect.rates import Rate
from sidecar.inspect.settings import Limits

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER: Final = 9

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM: Final = 1
ACK: Final = 1
END_HEADERS: Final = 4
PADDED: Final = 8

PROTOCOL_ERROR: Final = 1
FRAME_SIZE_ERROR: Final = 6
ENHANCE_YOUR_CALM: Final = 11

#: The largest frame that we allow in either direction, bytes.
FRAME_BYTES: Final = 65_536
#: A SETTINGS frame with more entries than this is no honest one: six are defined.
_SETTINGS_BYTES: Final = 6 * 64
_GOAWAY_BYTES: Final = 4096
#: The payload's length of the kinds that have a fixed one.
_FIXED: Final = {PRIORITY: 5, RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}


class Breach(Exception):
    """A limit was broken; the connection has to end.

    :param kind: a stable word for counters
    :param code: HTTP/2's error code to end it with
    """

    def __init__(self, kind: str, code: int = ENHANCE_YOUR_CALM) -> None:
        super().__init__(kind)
        self.kind = kind
        self.code = code


@dataclass(frozen=True, slots=True)
class GoAway:
    """What a withheld GOAWAY said."""

    last_stream: int
    code: int


class FrameGuard:
    """Watches one direction of one connection.

    :param limits: for the frames of a client; an application's are only measured, not counted
    :ivar last_stream: the highest stream that the client opened
    :ivar half_since: when a head, or any frame but one of a body, began that is still on its way, or the preface, which
        the first frame belongs to; None: none is. May be set anew for a sender that was not read for a while
    :ivar gone: the withheld GOAWAY, if one came
    :ivar answered: how many requests of the client were answered so far; to be set from outside
    """

    __slots__ = (
        "_begun",
        "_block",
        "_blocks",
        "_credited",
        "_data",
        "_early",
        "_empty",
        "_from_client",
        "_header",
        "_left",
        "_limits",
        "_opens",
        "_others",
        "_pings",
        "_preface",
        "_resets",
        "_settings",
        "_stream",
        "_untold",
        "_updates",
        "_withheld",
        "_withholding",
        "answered",
        "gone",
        "half_since",
        "last_stream",
    )

    def __init__(self, limits: Limits, *, from_client: bool) -> None:
        self._limits = limits
        self._from_client = from_client
        self._preface = len(PREFACE) if from_client else 0  # bytes of it still to come
        self._begun = not from_client  # the first frame is whole
        self._data = False  # the frame is one of a body
        self._header = bytearray()
        self._left = 0  # bytes of the frame's payload still to come
        self._withholding = False
        self._withheld = bytearray()
        self._block = 0  # bytes of the head on its way
        self._blocks = 0  # its frames
        self._stream = 0  # whose head is on its way; 0: none
        self._opens = Rate(limits.opens)
        self._resets = Rate(limits.resets)
        self._settings = Rate(limits.settings)
        self._pings = Rate(limits.pings)
        self._updates = Rate(limits.updates)
        self._empty = Rate(limits.empty_frames)
        self._others = Rate(limits.others)
        self._early = 0  # resets beyond answers
        self._credited = 0  # answers that were set off against resets
        self._untold = 0  # requests that were refused before the client knew how many it may have
        self.answered = 0
        self.last_stream = 0
        self.half_since: float | None = None
        self.gone: GoAway | None = None

    def feed(self, data: bytes | memoryview, now: float, frames: int) -> tuple[int, bytes]:
        """Look at the next bytes.

        :param now: seconds of a clock that does not go back
        :param frames: that may begin in this call
        :return: how many bytes were looked at, and those of them that may be handed on
        :raises Breach: when a limit is broken; nothing of ``data`` may be handed on then
        """
        out = bytearray()
        at, end = 0, len(data)
        if self._preface:
            at = min(self._preface, end)
            start = len(PREFACE) - self._preface
            if data[:at] != PREFACE[start : start + at]:
                raise Breach("preface", PROTOCOL_ERROR)
            self._preface -= at
            out += data[:at]
        while at < end:
            if self._left:
                size = min(self._left, end - at)
                if self._withholding:
                    self._withheld += data[at : at + size]
                else:
                    out += data[at : at + size]
                self._left -= size
                at += size
                if not self._left:
                    self._end_frame()
                continue
            size = min(HEADER - len(self._header), end - at)
            if not self._header and frames <= 0:
                break
            self._header += data[at : at + size]
            at += size
            if len(self._header) == HEADER:
                frames -= 1
                header = bytes(self._header)
                self._header.clear()
                self._look(header, now)
                if not self._withholding:
                    out += header
                if not self._left:
                    self._end_frame()
        if self._begun and not self._header and not self._stream and (self._data or not self._left):
            self.half_since = None
        elif self.half_since is None:
            self.half_since = now
        return at, bytes(out)

    def we_reset(self, now: float, count: int) -> None:
        """Count streams that we had to reset because of what the client sent.

        :raises Breach: when that is too often
        """
        self._count_resets(now, count, "made-you-reset")

    def we_refused(self, now: float, count: int, untold: int) -> None:
        """Count requests that were refused because too many are alive at once (RFC 9113 section 5.1.2).

        A client that knows how many it may have and goes on has us work for nothing, as one that resets; one that could
        not know it is forgiven what an honest client may begin in a second, however long it waits to acknowledge.

        :param untold: of them, those whose client had not acknowledged our settings
        :raises Breach: when they are too many
        """
        self._untold += untold
        if self._untold > self._limits.opens:
            raise Breach("streams")
        if count > untold:
            self._count_resets(now, count - untold, "streams")

    def _look(self, header: bytes, now: float) -> None:
        length = int.from_bytes(header[:3])
        kind, flags = header[3], header[4]
        stream = int.from_bytes(header[5:9]) & 0x7FFFFFFF
        if length > FRAME_BYTES:
            raise Breach("frame-size", FRAME_SIZE_ERROR)
        if kind in _FIXED and length != _FIXED[kind]:
            raise Breach("frame-size", FRAME_SIZE_ERROR)
        self._left = length
        self._data = kind == DATA
        if self._stream and (kind != CONTINUATION or stream != self._stream):
            raise Breach("interleaved-head", PROTOCOL_ERROR)
        if kind == DATA:
            if self._from_client and not flags & END_STREAM and length <= (flags & PADDED != 0):
                self._count(self._empty, now, "empty-data")
        elif kind == HEADERS:
            self._begin_head(stream, now)
            self._add_to_head(length, flags)
        elif kind == CONTINUATION:
            if not self._stream:
                raise Breach("continuation", PROTOCOL_ERROR)
            self._add_to_head(length, flags)
        elif kind == GOAWAY:
            if not 8 <= length <= _GOAWAY_BYTES:
                raise Breach("frame-size", FRAME_SIZE_ERROR)
            self._count(self._others, now, "goaway")
            self._withholding = True
        elif kind == SETTINGS and length > _SETTINGS_BYTES:
            raise Breach("settings")
        elif self._from_client:
            self._count_other(kind, now)

    def _count_other(self, kind: int, now: float) -> None:
        if kind == WINDOW_UPDATE:
            self._count(self._updates, now, "window-updates")
        elif kind == RST_STREAM:
            self._count_resets(now, 1, "rapid-reset")
        elif kind == PING:
            self._count(self._pings, now, "pings")
        elif kind == SETTINGS:
            self._count(self._settings, now, "settings")
        elif kind == PUSH_PROMISE:
            raise Breach("push", PROTOCOL_ERROR)
        else:
            self._count(self._others, now, "other-frames")

    def _count_resets(self, now: float, count: int, kind: str) -> None:
        """A rate alone lets many connections have us work for nothing, each of them at the pace at which we can, for as
        long as what they sent lasts: after they are gone, too."""
        self._early = max(0, self._early + self._credited - self.answered) + count
        self._credited = self.answered
        if self._early > self._limits.early_resets or not self._resets.take(now, count):
            raise Breach(kind)

    def _begin_head(self, stream: int, now: float) -> None:
        self._stream = stream
        self._block = self._blocks = 0
        if not stream:
            raise Breach("head", PROTOCOL_ERROR)
        if self._from_client:  # a trailer section is one more head, and counts as one
            self._count(self._opens, now, "opens")
        self.last_stream = max(self.last_stream, stream)

    def _add_to_head(self, length: int, flags: int) -> None:
        self._block += length
        self._blocks += 1
        if self._block > self._limits.head_bytes:
            raise Breach("head-bytes")
        if self._blocks > self._limits.continuations + 1:
            raise Breach("continuations")
        if flags & END_HEADERS:
            self._stream = 0

    def _end_frame(self) -> None:
        """What comes next is another frame."""
        self._begun = True
        if not self._stream:
            self.half_since = None
        if self._withholding:
            self._read_goaway()

    def _read_goaway(self) -> None:
        said = bytes(self._withheld)
        self._withheld.clear()
        self._withholding = False
        self.gone = GoAway(int.from_bytes(said[:4]) & 0x7FFFFFFF, int.from_bytes(said[4:8]))

    @staticmethod
    def _count(rate: Rate, now: float, kind: str) -> None:
        if not rate.take(now):
            raise Breach(kind)
