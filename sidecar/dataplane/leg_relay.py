"""The lane that passes bytes on as they are, between any two legs.

Backpressure, half-close and resets are kept; what one side does not take is not read from the other. Where both legs
are plain sockets, or a socket and a stream, :mod:`sidecar.dataplane.relay` and :mod:`sidecar.dataplane.stream` do the
same with less work.
"""

from __future__ import annotations

import asyncio

from sidecar.dataplane.legs import Leg
from sidecar.dataplane.live import Connection


class LegRelay:
    """Relays between the client's and the server's leg, which may be connecting still. Becomes the lane of both.

    It may also take two legs over in the middle of a connection: what the lane before was told of and has not passed
    on is given to :meth:`received`, or, of an end, to :meth:`ended`.

    :param connection: is ended with a reset when the policy denies it; its end is reported here
    """

    __slots__ = ("_client", "_client_ended", "_connection", "_over", "_server", "_server_ended")

    def __init__(self, connection: Connection, client: Leg, server: Leg) -> None:
        self._connection = connection
        self._client = client
        self._server = server
        self._client_ended = False
        self._server_ended = False
        self._over = False
        connection.owned_by(self.reset)
        client.lane = self
        server.lane = self

    def received(self, leg: Leg, data: memoryview) -> None:
        record = self._connection.record
        if leg is self._client:
            record.bytes_sent += len(data)
            other = self._server
        else:
            record.bytes_received += len(data)
            other = self._client
        other.write(data)
        if other.unsent:
            leg.pause()

    def drained(self, leg: Leg) -> None:
        if self._client_ended and self._server_ended:
            self._finish_when_sent()
        else:
            (self._server if leg is self._client else self._client).resume()

    def ended(self, leg: Leg) -> None:
        if leg is self._client:
            self._client_ended = True
            self._server.end()
        else:
            self._server_ended = True
            self._client.end()
        if self._client_ended and self._server_ended:
            self._finish_when_sent()
        else:
            self._connection.half_closed(asyncio.get_running_loop())

    def lost(self, leg: Leg, why: str) -> None:
        if self._over:
            return
        self._over = True
        (self._server if leg is self._client else self._client).reset()
        self._connection.finish(failed=not self._server.reached)

    def reset(self) -> None:
        """End both legs with a reset."""
        if self._over:
            return
        self._over = True
        self._client.reset()
        self._server.reset()
        self._connection.finish(failed=not self._server.reached)

    def _finish_when_sent(self) -> None:
        """Both sides have said their last word: it is over when the kernel has all of it."""
        if not self._over and not self._client.unsent and not self._server.unsent:
            self._over = True
            self._connection.finish()
