"""Taps that run in workers: commands go to each, what they show comes back, and is bounded here as everywhere.

The supervisor's tap is the one that counts: its rate, its number of events and its end hold for all workers together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from graph.tap import Shown, TapSpec
from graph.wire import hedgerow_pb2 as pb
from graph.wire.taps import start_to_message
from sidecar.inspect.taps import Taps


class RelayedTaps(Taps):
    """Tells workers of every tap.

    :ivar tell: sends a command to every worker
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.tell: Callable[[bytes], None] = lambda command: None

    def start(self, spec: TapSpec) -> None:
        super().start(spec)
        self.tell(_start(spec))

    def stop(self, name: str) -> None:
        super().stop(name)
        self.tell(pb.TapCommand(stop=pb.TapStop(id=name)).SerializeToString())

    def commands(self) -> list[bytes]:
        """What a worker has to be told that begins now."""
        return [_start(tap.spec) for tap in self._taps.values()]

    def came(self, event: Shown, size: int) -> None:
        """A worker shows a request.

        :param size: bytes of it
        """
        tap = self._taps.get(event.tap)
        if tap is not None:
            self.show(tap, lambda shed: (replace(event, shed=event.shed + shed), size), self._loop.time())


def _start(spec: TapSpec) -> bytes:
    return pb.TapCommand(start=start_to_message(spec)).SerializeToString()
