"""A client has said nothing in time: whoever speaks first decides what the connection is.

The server: then it is opaque, and a sign that clients of this port wait for it. The client: then its bytes are told
apart as if it had not waited, so that waiting is no way past the lane that judges requests and strips what only we may
say; the application's connection, on which nothing was said, is given up, and the lane makes its own.

What a server of HTTP says by itself is no greeting: that a request comes too late (after which the client's first line
is read on, should it come nevertheless), or the settings of HTTP/2, which some send before they have heard anything.
Those are kept until the client has spoken.
"""

from __future__ import annotations

from sidecar.dataplane.detect import Kind, detect, unfinished
from sidecar.dataplane.lane_context import LaneContext
from sidecar.dataplane.lanes import enter_lane, is_http
from sidecar.dataplane.late_request import LateRequest
from sidecar.dataplane.legs import NOBODY, Leg

#: What some servers of HTTP say to a client that waits too long.
_LATE = b"HTTP/"
#: The head of a SETTINGS frame, the most settings that one has in earnest, and what it costs to have a few more frames.
_FRAME_HEAD = 9
_SETTINGS_BYTES = 600
_KEPT = 65_536


class ServerFirst(LateRequest):
    """Relays between ``client`` and ``server``, and looks until one of them has spoken."""

    __slots__ = ("_held", "_settings", "_silent")

    def __init__(self, context: LaneContext, client: Leg, server: Leg) -> None:
        super().__init__(context, client, server)
        self._silent = True  # nobody has spoken
        self._held = bytearray()  # of a client that has begun to
        self._settings = bytearray()  # of a server of HTTP/2

    def received(self, leg: Leg, data: memoryview) -> None:
        if not self._silent:
            super().received(leg, data)
        elif leg is self._client:
            self._held += data
            kind = detect(bytes(self._held))
            if kind is not Kind.MORE:
                self._decide(kind)
        elif not (self._settings or _may_be_settings(data)):
            if bytes(data[: len(_LATE)]) != _LATE:
                self._line = None  # its application is none of HTTP
                if not self._held:
                    fabric = self._context.fabric
                    fabric.detection.greeted(self._context.port, fabric.reactor.loop.time())
            self._decide(unfinished(bytes(self._held)))
            if not self._over:
                super().received(leg, data)
        else:
            self._settings += data
            if len(self._settings) > _KEPT:
                leg.pause()

    def ended(self, leg: Leg) -> None:
        if self._silent:  # and when it was the server: nobody else is asked what its client would get no answer to
            self._decide(Kind.OTHER)
        super().ended(leg)

    def _decide(self, kind: Kind) -> None:
        self._silent = False
        held, self._held = bytes(self._held), bytearray()
        if is_http(kind):
            self._over = True
            self._server.lane = NOBODY
            self._server.reset()
            enter_lane(self._context, kind, self._client)
            self._client.lane.received(self._client, memoryview(held))
            return
        if held:
            super().received(self._client, memoryview(held))
        if self._settings and not self._over:
            said, self._settings = bytes(self._settings), bytearray()
            super().received(self._server, memoryview(said))
            if len(said) > _KEPT and not self._client.unsent:
                self._server.resume()


def _may_be_settings(data: memoryview) -> bool:
    """Whether these first bytes are a SETTINGS frame of HTTP/2 (RFC 9113 section 6.5)."""
    if len(data) < _FRAME_HEAD:
        return False
    length = int.from_bytes(data[:3])
    return length % 6 == 0 and length <= _SETTINGS_BYTES and bytes(data[3:_FRAME_HEAD]) == b"\x04\0\0\0\0\0"
