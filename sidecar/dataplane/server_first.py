"""A client has said nothing in time: whoever speaks first decides what the connection is.

The server: then it is opaque, and a sign that clients of this port wait for it. The client: then its bytes are told
apart as if it had not waited, so that waiting is no way past the lane that judges requests and strips what only we may
say; the application's connection, on which nothing was said, is given up, and the lane makes its own.
"""

from __future__ import annotations

from sidecar.dataplane.detect import Kind, detect, unfinished
from sidecar.dataplane.lanes import LaneContext, enter_lane, is_http
from sidecar.dataplane.leg_relay import LegRelay
from sidecar.dataplane.legs import NOBODY, Leg

#: What some servers of HTTP say to a client that waits too long. It is no greeting.
_LATE = b"HTTP/"


class ServerFirst(LegRelay):
    """Relays between ``client`` and ``server``, and looks until one of them has spoken."""

    __slots__ = ("_context", "_held", "_silent")

    def __init__(self, context: LaneContext, client: Leg, server: Leg) -> None:
        super().__init__(context.connection, client, server)
        self._context = context
        self._silent = True  # nobody has spoken
        self._held = bytearray()  # of a client that has begun to

    def received(self, leg: Leg, data: memoryview) -> None:
        if not self._silent:
            super().received(leg, data)
        elif leg is self._client:
            self._held += data
            kind = detect(bytes(self._held))
            if kind is not Kind.MORE:
                self._decide(kind)
        else:
            if not self._held and bytes(data[: len(_LATE)]) != _LATE:
                fabric = self._context.fabric
                fabric.detection.greeted(self._context.port, fabric.reactor.loop.time())
            self._decide(unfinished(bytes(self._held)))
            if not self._over:
                super().received(leg, data)

    def ended(self, leg: Leg) -> None:
        if self._silent and leg is self._client:
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
        elif held:
            super().received(self._client, memoryview(held))
