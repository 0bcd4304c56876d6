"""The data path as the rest of a run sees it, and the usual one: in this very process."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Callable, Sequence
from typing import Protocol

from sidecar.dataplane.proxy import DataPlane
from sidecar.dataplane.sockets import Address, Inherited
from sidecar.inspect.hub import Inspection


class DataPath(Protocol):
    """Carries the pod's connections."""

    @property
    def listeners(self) -> list[tuple[Address, socket.socket]]:
        """What is listened on, for another process that takes over."""

    async def listen(self, inherited: Inherited | None) -> None:
        """Have everything that connections need, and the sockets, without taking any.

        :raises ConfigError: when an address can not be listened on
        """

    async def start(self) -> None:
        """Take connections."""

    def warm(self, used: Callable[[], Sequence[Address]]) -> None:
        """Have tunnels dialled before they are wanted, when this begins to carry connections or a part of it does.

        :param used: the destinations in use at that moment, as applications name them, those used last first
        """

    async def drain(self, deadline: float, *, replaced: bool) -> None:
        """As :meth:`sidecar.dataplane.proxy.DataPlane.drain`."""

    async def stop(self) -> None:
        """End everything now; every account is closed afterwards. Calling it again changes nothing."""

    def missing(self) -> list[str]:
        """What is not there yet, for people."""

    def stats(self) -> dict[str, object]:
        """What ``/stats`` shows of it."""


class InProcess:
    """Implements :class:`DataPath` by one data plane on this event loop."""

    def __init__(self, data_plane: DataPlane, inspection: Inspection) -> None:
        self._data_plane = data_plane
        self._inspection = inspection

    @property
    def listeners(self) -> list[tuple[Address, socket.socket]]:
        return self._data_plane.listeners

    async def listen(self, inherited: Inherited | None) -> None:
        self._data_plane.listen(inherited)

    async def start(self) -> None:
        await self._data_plane.start()

    def warm(self, used: Callable[[], Sequence[Address]]) -> None:
        self._data_plane.warm_ahead(used())

    async def drain(self, deadline: float, *, replaced: bool) -> None:
        self._inspection.drain()
        await self._data_plane.drain(deadline, replaced=replaced)

    async def stop(self) -> None:
        self._data_plane.stop()

    def missing(self) -> list[str]:
        return []

    def stats(self) -> dict[str, object]:
        return carrying(self._data_plane)


def carrying(data_plane: DataPlane) -> dict[str, object]:
    """What one data plane carries now, and what its limits have cost."""
    return {
        "tunnels": {"outbound": len(data_plane.outbound_tunnels), "inbound": len(data_plane.inbound_tunnels)},
        "streams": {
            "outbound": sum(len(tunnel.streams) for tunnel in data_plane.outbound_tunnels),
            "inbound": sum(len(tunnel.streams) for tunnel in data_plane.inbound_tunnels),
        },
        "buffered": data_plane.buffered,
        "connections": data_plane.live_connections,
        "detection": {"timeouts": data_plane.detection.timeouts, "hidden": data_plane.detection.hidden},
        "limits": {"shedding": data_plane.shedding, **dataclasses.asdict(data_plane.counters)},
        "unbound_claims": data_plane.unbound_claims,
        "egress_inspection": dict(data_plane.uninspected),
    }
