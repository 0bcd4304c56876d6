"""Messages of a WebSocket, read beside their bytes (RFC 6455 section 5) and shown to those who watch.

Every message is an event of its own, of the operation that opened the connection: what the client sent is its request,
what the application sent its response. Text is redacted, as JSON where it is JSON; binary and compressed messages are
withheld, of which one sees the size. What can not be read is passed on all the same, and nothing is shown any more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Final

from mitmproxy import http

from graph.tap import MAX_BODY, Message, Shown
from sidecar.inspect.exchange import Exchange
from sidecar.inspect.taps import Tap, Taps
from sidecar.inspect.watching import redactor_of

if TYPE_CHECKING:
    from sidecar.inspect.connection import InspectedConnection

_CONTINUATION: Final = 0
_TEXT: Final = 1
_BINARY: Final = 2
_CONTROL: Final = 8
_FIN: Final = 0x80
_COMPRESSED: Final = 0x40
_RESERVED: Final = 0x30
_MASKED: Final = 0x80
#: What an event costs beside its body, bytes.
_OVERHEAD: Final = 1024

type OnMessage = Callable[[int, bytes, int, bool], None]


class Unreadable(ValueError):
    """These are no frames of a WebSocket."""


class MessageReader:
    """Reads one direction. Pure.

    :param keep: asked at the beginning of each message, how many bytes of it are to be kept
    :param message: told of each complete one: kind, the beginning of it, its size, whether it is compressed
    """

    __slots__ = (
        "_compressed",
        "_head",
        "_keep",
        "_kept",
        "_kind",
        "_last",
        "_left",
        "_limit",
        "_mask",
        "_message",
        "_size",
        "_skipping",
    )

    def __init__(self, keep: Callable[[], int], message: OnMessage) -> None:
        self._keep = keep
        self._message = message
        self._head = bytearray()  # of a frame, not complete
        self._left = 0  # bytes of its payload still to come
        self._mask = b""  # turned to where the next byte of the payload is
        self._last = False  # it ends its message
        self._skipping = False  # it is none of a message
        self._kind = 0  # of the message that is on its way; 0: none is
        self._compressed = False
        self._limit = 0
        self._kept = bytearray()
        self._size = 0

    def feed(self, data: memoryview) -> None:
        """:raises Unreadable: when nothing more can be read"""
        at, end = 0, len(data)
        while at < end:
            if self._left:
                size = min(self._left, end - at)
                self._take(data[at : at + size])
                at += size
                self._left -= size
                if not self._left:
                    self._ended()
                continue
            self._head.append(data[at])
            at += 1
            if len(self._head) >= 2 and len(self._head) == _head_size(self._head[1]):
                self._begin(bytes(self._head))
                self._head.clear()
                if not self._left:
                    self._ended()

    def _begin(self, head: bytes) -> None:
        first, length = head[0], head[1] & 0x7F
        at = 2
        if length == 126:
            length, at = int.from_bytes(head[2:4]), 4
        elif length == 127:
            length, at = int.from_bytes(head[2:10]), 10
        self._mask = head[at:]
        self._left = length
        kind = first & 0x0F
        self._last = first & _FIN != 0
        if first & _RESERVED or length >> 63:
            raise Unreadable
        if kind >= _CONTROL:
            if not self._last or length > 125:
                raise Unreadable
            self._skipping = True
            return
        self._skipping = False
        if kind == _CONTINUATION:
            if not self._kind:
                raise Unreadable
        elif kind in (_TEXT, _BINARY) and not self._kind:
            self._kind = kind
            self._compressed = first & _COMPRESSED != 0
            self._limit = self._keep()
        else:
            raise Unreadable

    def _take(self, data: memoryview) -> None:
        if self._skipping:
            return
        self._size += len(data)
        piece = data[: self._limit - len(self._kept)]
        if piece and self._mask:
            mask = (self._mask * (len(piece) // 4 + 1))[: len(piece)]
            self._kept += (int.from_bytes(piece) ^ int.from_bytes(mask)).to_bytes(len(piece))
            turn = len(data) % 4
            self._mask = self._mask[turn:] + self._mask[:turn]
        elif piece:
            self._kept += piece

    def _ended(self) -> None:
        """A frame is complete."""
        if self._skipping or not self._last:
            return
        kind, kept, size = self._kind, bytes(self._kept), self._size
        self._kept.clear()
        self._kind = self._size = 0
        self._message(kind, kept, size, self._compressed)


def _head_size(second: int) -> int:
    """Bytes of a frame's head, by its second one."""
    return 2 + {126: 2, 127: 8}.get(second & 0x7F, 0) + (4 if second & _MASKED else 0)


class MessageWatcher:
    """Shows the messages of one WebSocket.

    :param exchange: that opened it
    """

    def __init__(self, taps: Taps, lane: InspectedConnection, exchange: Exchange, flow: http.HTTPFlow) -> None:
        self._taps = taps
        self._lane = lane
        self._exchange = exchange
        self._redactor = redactor_of(lane)
        self._path = self._redactor.path(flow.request.data.path.decode("latin-1"))[:2048]
        self._readers: tuple[MessageReader, MessageReader] | None = (
            MessageReader(self._wanted, lambda *message: self._complete(False, *message)),
            MessageReader(self._wanted, lambda *message: self._complete(True, *message)),
        )

    def pass_by(self, data: memoryview, *, from_client: bool) -> bool:
        """Bytes that are passed on. False: nothing of the connection can be read any more."""
        if self._readers is not None:
            try:
                self._readers[from_client].feed(data)
            except Unreadable:
                self._readers = None
        return self._readers is not None

    def whole(self, content: bytes, *, from_client: bool, is_text: bool) -> None:
        """A message that somebody else has read."""
        self._complete(from_client, _TEXT if is_text else _BINARY, content[: self._wanted()], len(content), False)

    def _watching(self) -> tuple[Tap, ...]:
        record = self._lane.record
        if not self._taps.wants(record.port):
            return ()
        watching = self._taps.of_request(record.source.workload, record.port, self._exchange.operation)
        return tuple(tap for tap in watching if tap.spec.of_status(101))

    def _wanted(self) -> int:
        # a truncated document can not be redacted by its keys: more is kept than is shown
        wanted = [tap.spec.body_bytes for tap in self._watching() if tap.spec.bodies]
        return min(4 * max(wanted, default=0), MAX_BODY)

    def _complete(self, from_client: bool, kind: int, kept: bytes, size: int, compressed: bool) -> None:
        now = monotonic()
        for tap in self._watching():

            def make(shed: int, tap: Tap = tap) -> tuple[Shown, int]:
                return self._make(tap, self._shown(tap, kind, kept, size, compressed), from_client, shed)

            self._taps.show(tap, make, now)

    def _shown(self, tap: Tap, kind: int, kept: bytes, size: int, compressed: bool) -> Message:
        if not tap.spec.bodies or not size:
            return Message(size=size)
        if compressed:
            return Message(size=size, withheld="compressed")
        if kind != _TEXT:
            return Message(size=size, withheld="not text")
        like_json = kept.lstrip(b" \t\r\n")[:1] in (b"{", b"[")
        name = b"application/json" if like_json else b"text/plain"
        body, withheld = self._redactor.body(name, b"", kept, size, tap.spec.body_bytes)
        return Message(size=size, body=body, withheld=withheld)

    def _make(self, tap: Tap, message: Message, from_client: bool, shed: int) -> tuple[Shown, int]:
        record, exchange = self._lane.record, self._exchange
        decision = exchange.decision
        shown = Shown(
            tap=tap.spec.id,
            at=time.time(),
            source=str(record.source.ref()),
            source_address=record.source.address,
            destination=str(record.destination.ref()),
            port=record.port,
            operation=exchange.operation,
            protocol="websocket",
            method="WEBSOCKET",
            path=self._path,
            host=exchange.host[:512],
            status=101,
            grpc_status=-1,
            verdict=decision.verdict,
            pending=decision.pending,
            reason=str(decision.reason),
            rule_id=decision.rule_id,
            seconds=0.0,
            request=message if from_client else Message(),
            response=None if from_client else message,
            shed=shed,
        )
        return shown, _OVERHEAD + len(message.body)
