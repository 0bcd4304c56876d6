"""Whether the peer of a tunnel is still there: pings after silence, and an end after none is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sidecar.dataplane import frames
from sidecar.dataplane.frames import FrameError, Rate
from sidecar.dataplane.sending import Sender
from sidecar.dataplane.settings import DataPlaneSettings


class Heartbeat:
    """Sends and answers the pings of one tunnel.

    :param gone: called with the reason when the peer is silent for too long
    """

    __slots__ = ("_asked", "_gone", "_loop", "_rate", "_sender", "_settings", "_timer", "answers", "heard")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sender: Sender,
        settings: DataPlaneSettings,
        gone: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._sender = sender
        self._settings = settings
        self._gone = gone
        self._rate = Rate(settings.pings_per_second)
        self._asked = False
        #: Set whenever a byte arrives.
        self.heard = True
        #: Pings that the peer has answered.
        self.answers = 0
        self._timer: asyncio.TimerHandle = loop.call_later(settings.keepalive, self._tick)

    def ask(self) -> None:
        """Send a ping. There is one on its way at most."""
        if not self._asked:
            self._asked = True
            self._sender.control(frames.PING | frames.SYN, 0, 1)

    def received(self, flags: int, number: int) -> None:
        """The peer sent a ping, or the answer to ours.

        :raises FrameError: when there are too many of them, or it answered what was not asked
        """
        if flags & frames.SYN:
            if not self._rate.take(self._loop.time()):
                raise FrameError(f"more than {self._settings.pings_per_second} pings a second")
            self._sender.control(frames.PING | frames.ACK, 0, number)
            return
        if not self._asked:
            raise FrameError("an answer to no ping")
        self._asked = False
        self.answers += 1

    def cancel(self) -> None:
        self._timer.cancel()

    def _tick(self) -> None:
        wait = self._settings.keepalive
        if not self.heard:
            wait = self._settings.keepalive_timeout
            if self._asked:
                self._gone(f"no answer to a ping within {wait:g} s")
                return
            self.ask()
        self.heard = False
        self._timer = self._loop.call_later(wait, self._tick)
