"""The end of a client that was cut off: it gets our last words, and has little time and few bytes to take them."""

from __future__ import annotations

from sidecar.dataplane.legs import Leg
from sidecar.dataplane.live import Connection
from sidecar.dataplane.reactor import Reactor


class Linger:
    """Ends our direction of ``leg``, and throws away what still comes, up to a bound; behind it is a reset.

    :param connection: goes on counting until the client is gone, and ends here; so that those who were cut off can not
        hold more than others
    :param most: bytes that are read
    :param seconds: that the client has to end its direction
    """

    __slots__ = ("_connection", "_ended", "_left", "_leg", "_timer")

    def __init__(self, reactor: Reactor, connection: Connection, leg: Leg, most: int, seconds: float) -> None:
        self._connection = connection
        self._leg = leg
        self._left = most
        self._ended = False
        self._timer = reactor.call_later(seconds, self._reset)
        connection.owned_by(self._reset)
        leg.lane = self
        leg.end()
        leg.resume()

    def _reset(self) -> None:
        self._leg.reset()
        self._over()

    def _over(self) -> None:
        self._timer.cancel()
        self._connection.finish()

    def received(self, leg: Leg, data: memoryview) -> None:
        self._left -= len(data)
        if self._left < 0:
            self._reset()

    def ended(self, leg: Leg) -> None:
        """It goes by itself when what we wrote is sent; the timer stays for one that never takes it."""
        self._ended = True
        if not leg.unsent:
            self._over()

    def drained(self, leg: Leg) -> None:
        if self._ended:
            self._over()

    def lost(self, leg: Leg, why: str) -> None:
        self._over()
