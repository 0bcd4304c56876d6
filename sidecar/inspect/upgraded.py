"""A connection behind a response 101: opaque again, still under its operation, and read beside its bytes for taps.

Inspected connections give way to all others, because what is done with their bytes takes long. Here the frames of a
WebSocket are read one by one as long as taps are there to be asked, whether somebody watches now or not: without those
of before nobody would know where one begins. So such a connection goes on to give way. One that nobody reads, of
another protocol or of frames that are none, is a plain stream, which gives way no more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.dataplane.legs import Leg
from sidecar.http.upgraded import UpgradedRelay

if TYPE_CHECKING:
    from sidecar.inspect.connection import InspectedConnection
    from sidecar.inspect.websocket_tap import MessageWatcher


class WatchedUpgrade(UpgradedRelay):
    """Relays, and shows what passes to whom it may concern.

    :param lane: that brought it here
    :param watcher: None when nobody can watch
    """

    __slots__ = ("_watcher",)

    def __init__(
        self, lane: InspectedConnection, operation: str, watcher: MessageWatcher | None, client: Leg, server: Leg
    ) -> None:
        self._watcher = watcher
        super().__init__(lane.site, lane.context.connection, lane.context.port, operation, client, server)
        if watcher is None:
            self._give_way_no_more()

    def received(self, leg: Leg, data: memoryview) -> None:
        watcher = self._watcher
        if watcher is not None and not watcher.pass_by(data, from_client=leg is self._client):
            self._watcher = None
            self._give_way_no_more()
        super().received(leg, data)

    def _give_way_no_more(self) -> None:
        self._client.give_way_no_more()
        self._server.give_way_no_more()
