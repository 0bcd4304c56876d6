"""The end of a client that was cut off: it gets our last words, and has little time and few bytes to take them."""

from __future__ import annotations

import asyncio

from sidecar.dataplane.legs import Leg


class Linger:
    """Ends our direction of ``leg``, and throws away what still comes, up to a bound; behind it is a reset.

    :param most: bytes that are read
    :param seconds: that the client has to end its direction
    """

    __slots__ = ("_left", "_leg", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, leg: Leg, most: int, seconds: float) -> None:
        self._leg = leg
        self._left = most
        leg.lane = self
        leg.end()
        leg.resume()
        self._timer = loop.call_later(seconds, self._late)

    def _late(self) -> None:
        self._leg.reset()

    def received(self, leg: Leg, data: memoryview) -> None:
        self._left -= len(data)
        if self._left < 0:
            self._timer.cancel()
            leg.reset()

    def ended(self, leg: Leg) -> None:
        """It goes by itself when what we wrote is sent; the timer stays for one that never takes it."""
        if not leg.unsent:
            self._timer.cancel()

    def drained(self, leg: Leg) -> None: ...

    def lost(self, leg: Leg, why: str) -> None:
        self._timer.cancel()
