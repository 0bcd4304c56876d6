"""The data path of one sidecar: listeners, tunnels, streams. Wires the parts and owns their life.

Everything runs on the thread of the asyncio loop that :meth:`DataPlane.start` is called on.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import Callable
from functools import partial

from sidecar.dataplane import sockets
from sidecar.dataplane.balance import Balancer
from sidecar.dataplane.carrier import Budget
from sidecar.dataplane.complaints import Complaints
from sidecar.dataplane.contracts import Authority, Credentials, Directory, FlowSink
from sidecar.dataplane.fabric import Fabric
from sidecar.dataplane.inbound import Inbound
from sidecar.dataplane.live import Connections
from sidecar.dataplane.outbound import Outbound
from sidecar.dataplane.pool import Pool
from sidecar.dataplane.reactor import Reactor
from sidecar.dataplane.settings import DataPlaneSettings
from sidecar.dataplane.sockets import Address
from sidecar.dataplane.tunnel import Tunnel

_log = logging.getLogger("sidecar.dataplane")


class DataPlane:
    """Carries the connections of one pod.

    :param authority: judges them; ``directory`` knows who is where; ``credentials`` prove who we are; ``flows`` hears
        of each
    """

    def __init__(
        self,
        settings: DataPlaneSettings,
        authority: Authority,
        directory: Directory,
        credentials: Credentials,
        flows: FlowSink,
    ) -> None:
        self._settings = settings
        reactor, chance = Reactor(), random.Random()  # noqa: S311 - no secret
        self._fabric = Fabric(
            reactor=reactor,
            settings=settings,
            authority=authority,
            directory=directory,
            credentials=credentials,
            connections=Connections(authority, flows, settings.half_closed_idle),
            balancer=Balancer(chance, backoff=settings.backoff, longest=settings.backoff_max),
            budget=Budget(settings.buffered_bytes),
            complaints=Complaints(_log, lambda delay, call: reactor.loop.call_later(delay, call)),
            random=chance,
        )
        self._pool = Pool(self._fabric)
        self._outbound = Outbound(self._fabric, self._pool)
        self._inbound = Inbound(self._fabric)
        self._started = False

    @property
    def live_connections(self) -> int:
        """Connections that are alive now."""
        return self._fabric.connections.count

    @property
    def outbound_tunnels(self) -> list[Tunnel]:
        """Tunnels that we dialled."""
        return self._pool.tunnels()

    @property
    def inbound_tunnels(self) -> list[Tunnel]:
        """Tunnels that peers dialled."""
        return self._inbound.tunnels

    async def start(self) -> None:
        """Listen and carry.

        :raises ConfigError: when an address can not be listened on; nothing is listened on then
        """
        settings = self._settings
        takers: list[tuple[Address, Callable[[socket.socket], None]]] = [
            *((address, self._outbound.listen) for address in settings.outbound_listen),
            *(
                (pair.listen, partial(self._outbound.listen, declared=pair.destination))
                for pair in settings.explicit_outbound
            ),
            *((address, self._inbound.listen) for address in settings.inbound_listen),
            *(
                (pair.listen, partial(self._inbound.listen, declared=(pair.listen.port, pair.application)))
                for pair in settings.explicit_inbound
            ),
        ]
        opened: list[socket.socket] = []
        try:
            for address, _ in takers:
                opened.append(sockets.listener(address, mark=settings.mark))
        except BaseException:
            for sock in opened:
                sock.close()
            raise
        self._fabric.reactor.start(asyncio.get_running_loop())
        self._started = True
        for sock, (_, take) in zip(opened, takers, strict=True):
            take(sock)

    async def drain(self, deadline: float) -> None:
        """Take no more connections from others, and wait until those that are alive have ended.

        :param deadline: seconds to wait at most
        """
        self._inbound.drain()
        empty = asyncio.Event()
        self._fabric.connections.when_empty(empty.set)
        try:
            async with asyncio.timeout(deadline):
                await empty.wait()
        except TimeoutError:
            return

    def stop(self) -> None:
        """End everything now: connections are reset, listeners closed. Calling it again changes nothing."""
        if not self._started:
            return
        self._started = False
        self._outbound.stop()
        self._fabric.connections.end_all()
        self._pool.stop()
        self._inbound.stop()
        self._fabric.reactor.stop()
        self._fabric.complaints.stop()
