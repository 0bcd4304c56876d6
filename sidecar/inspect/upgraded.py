"""A connection behind a response 101: opaque again, still under its operation, and read beside its bytes for taps."""

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

    def received(self, leg: Leg, data: memoryview) -> None:
        if self._watcher is not None:
            self._watcher.pass_by(data, from_client=leg is self._client)
        super().received(leg, data)
