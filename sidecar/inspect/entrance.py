"""The way into the ``inspect`` lane: what a connection needs there is made when its turn comes.

Making it takes about as long as serving a request. A thousand clients that come at once, and then say nothing, would
keep everybody else waiting while nobody works for them.
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING

from sidecar.dataplane.detect import Kind
from sidecar.dataplane.legs import NOBODY, Lane, Leg
from sidecar.inspect.hub import Inspection
from sidecar.inspect.lane import InspectLane
from sidecar.inspect.turns import Turns

if TYPE_CHECKING:
    from sidecar.dataplane.lane_context import LaneContext

_log = logging.getLogger(__name__)


def enter(context: LaneContext, client: Leg, kind: Kind) -> Lane:
    """The lane of ``client`` from now on: the ``inspect`` lane, or who waits for it."""
    turns, reactor = Inspection.of(context.fabric).turns, context.fabric.reactor
    if not turns.free(reactor):
        return _Entrance(context, client, kind, turns)
    began = monotonic()
    try:
        return InspectLane(context, client, kind)
    finally:
        turns.used(reactor, monotonic() - began)


class _Entrance:
    """The lane of a client that waits. What it had said before, and how it ended, is told to the lane behind."""

    __slots__ = ("_client", "_context", "_ended", "_held", "_kind", "_over")

    def __init__(self, context: LaneContext, client: Leg, kind: Kind, turns: Turns) -> None:
        self._context = context
        self._client = client
        self._kind = kind
        self._held = bytearray()  # bounded by what one read gives: more is not read
        self._ended = False
        self._over = False
        context.connection.owned_by(self._reset)
        client.pause()
        turns.wait(context.fabric.reactor, self._enter)

    def received(self, leg: Leg, data: memoryview) -> None:
        self._held += data

    def ended(self, leg: Leg) -> None:
        self._ended = True

    def drained(self, leg: Leg) -> None:
        """Nothing was written."""

    def lost(self, leg: Leg, why: str) -> None:
        self._end()

    def _reset(self) -> None:
        """The policy or a limit of the data path ends it."""
        self._client.reset()
        self._end()

    def _end(self) -> None:
        self._over = True
        self._held.clear()
        self._context.connection.finish(failed=True)

    def _enter(self) -> None:
        """It is our turn."""
        if self._over:
            return
        client, held = self._client, bytes(self._held)
        self._held.clear()
        try:
            lane = client.lane = InspectLane(self._context, client, self._kind)
        except Exception:
            _log.exception("a fault in the inspect lane ended one connection; please report it")
            client.lane = NOBODY
            self._reset()
            return
        client.resume()
        if held:
            lane.received(client, memoryview(held))
        if self._ended:
            lane.ended(client)
