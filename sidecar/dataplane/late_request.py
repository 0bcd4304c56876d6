"""Relays what was taken for opaque before its first line had ended, and reads that line to its end.

Should it turn out to be a request of HTTP, the application gets no more of it: both ends see a reset. Only what was
said before has reached it, and that was no request.
"""

from __future__ import annotations

import logging

from sidecar.dataplane.first_line import FirstLine
from sidecar.dataplane.lane_context import LaneContext
from sidecar.dataplane.leg_relay import LegRelay
from sidecar.dataplane.legs import Leg


class LateRequest(LegRelay):
    """Between ``client`` and ``server``."""

    __slots__ = ("_context", "_line")

    def __init__(self, context: LaneContext, client: Leg, server: Leg) -> None:
        super().__init__(context.connection, client, server)
        self._context = context
        self._line: FirstLine | None = FirstLine()

    def received(self, leg: Leg, data: memoryview) -> None:
        if self._over:
            return
        if self._line is not None and leg is self._client:
            request = self._line.take(bytes(data))
            if request:
                self._end_request()
                return
            if request is not None:
                self._line = None
        super().received(leg, data)

    def _end_request(self) -> None:
        fabric, record = self._context.fabric, self._connection.record
        fabric.detection.hidden += 1
        text = "ended a connection of %s to port %d: it became a request after it was taken for something else"
        who = record.source_identity or record.source.address
        fabric.complaints.say(logging.WARNING, text, who, self._context.port)
        self.reset()
