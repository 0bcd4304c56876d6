"""Connections of our application to others: captured, judged, and carried over a tunnel or passed on as they are.

Rules:

1. A destination that the directory does not know in time is refused. Nothing is guessed from the address.
2. What the directory calls meshed is reached by mutual TLS or not at all.
3. A refused client sees a TCP reset, and so does one whose destination could not be reached.
4. What is not in the inventory is judged by its address, and by the name under which the client asked DNS for it
   (:mod:`sidecar.dataplane.egress`). It is reached at the address that the client connected to, and at no other.

What can not be carried at once is an attempt (:mod:`sidecar.dataplane.attempt`).
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from time import time

from graph.directory import Destination, Endpoint
from graph.model import Direction
from sidecar.dataplane import sockets
from sidecar.dataplane.attempt import Attempt, Target
from sidecar.dataplane.contracts import Record
from sidecar.dataplane.departure import carry
from sidecar.dataplane.egress import Egress
from sidecar.dataplane.fabric import Acceptor, Fabric
from sidecar.dataplane.live import UNDECIDED, Connection
from sidecar.dataplane.pool import Pool
from sidecar.dataplane.sockets import Address
from sidecar.dataplane.tunnel import Tunnel
from sidecar.dataplane.warmth import keep_warm, warm_ahead

_log = logging.getLogger(__name__)
_INFO, _WARNING = logging.INFO, logging.WARNING

#: Destinations of which it is known that they have answered.
_KNOWN = 4096


class Outbound:
    """Takes the application's connections from its listeners."""

    __slots__ = ("_acceptors", "_ahead", "_fabric", "_pool", "_targets", "_waiting", "egress")

    def __init__(self, fabric: Fabric, pool: Pool) -> None:
        self._fabric = fabric
        self._pool = pool
        self.egress = Egress(fabric)
        self._acceptors: list[Acceptor] = []
        self._waiting: set[Attempt] = set()
        self._ahead: asyncio.Task[None] | None = None
        self._targets: OrderedDict[Address, Target] = OrderedDict()  # those used last are last

    def listen(self, listener: socket.socket, declared: Address | None = None) -> Acceptor:
        """Take connections from ``listener``.

        :param declared: where they are meant to go; None: capture knows
        """

        here = int(listener.getsockname()[1])
        accepted = partial(self._accepted, declared, listener.family, here)
        acceptor = Acceptor(self._fabric, listener, accepted)
        self._acceptors.append(acceptor)
        return acceptor

    @property
    def waiting(self) -> int:
        """Connections that are still on their way."""
        return len(self._waiting)

    def warm_ahead(self, places: Sequence[Address]) -> None:
        """Dial what will be used, before it is (:mod:`sidecar.dataplane.warmth`).

        :param places: destinations as applications name them, those used last first
        """
        self._not_ahead()
        self._ahead = asyncio.ensure_future(warm_ahead(self._fabric, self._pool, places, self._warmed))
        self._ahead.add_done_callback(_dialled_ahead)

    def _not_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.cancel()

    def _warmed(self, place: Address, destination: Destination) -> None:
        self._target(place).warmed = destination

    def drain(self) -> None:
        """Listen no more; what is on its way goes on."""
        self._not_ahead()
        for acceptor in self._acceptors:
            acceptor.finish()
        self._acceptors.clear()

    def stop(self) -> None:
        """Listen no more and give up what is still on its way."""
        self._not_ahead()
        for acceptor in self._acceptors:
            acceptor.close()
        self._acceptors.clear()
        for attempt in list(self._waiting):
            attempt.end()

    def _accepted(self, declared: Address | None, family: int, here: int, sock: socket.socket) -> None:
        """:param here: the port that ``sock`` was accepted on"""
        fabric = self._fabric
        if fabric.connections.count + len(self._waiting) >= fabric.settings.connections:
            fabric.complaints.say(_WARNING, "refused a connection: %d are alive already", fabric.settings.connections)
            fabric.guards.counters.connections_refused += 1
            sockets.refuse(sock)
            return
        target = declared or self._captured(sock, family, here)
        if target is None:
            sockets.refuse(sock)
            return
        destination = fabric.directory.cached(target.host, target.port)
        endpoints: list[Endpoint] | None = None
        known = self._target(target)
        if destination is not None and destination.endpoints:
            endpoints = fabric.balancer.order(destination.endpoints, fabric.reactor.loop.time())
            if endpoints and endpoints[0].identity and endpoints[0].address not in fabric.settings.addresses:
                tunnel = self._pool.ready(endpoints[0])
                if tunnel is not None:
                    self._carry_now(sock, known, destination, endpoints[0], tunnel)
                    if destination is not known.warmed:
                        self._keep_warm(known, destination)
                    return
        self._attempt(Attempt(fabric, self._pool, self.egress, sock, known, destination, endpoints), known)

    def _attempt(self, attempt: Attempt, target: Target) -> None:
        self._waiting.add(attempt)
        attempt.start(partial(self._attempted, target))

    def _attempted(self, target: Target, attempt: Attempt) -> None:
        """A connection has had to wait; the next ones to the same destination need not."""
        self._waiting.discard(attempt)
        destination = self._fabric.directory.cached(target.address.host, target.address.port)
        if destination is not None:
            self._keep_warm(target, destination)

    def _keep_warm(self, target: Target, destination: Destination) -> None:
        target.warmed = destination
        keep_warm(self._fabric, self._pool, target.address, destination)

    def _target(self, address: Address) -> Target:
        targets = self._targets
        target = targets.get(address)
        if target is None:
            target = targets[address] = Target(self._begin_again, address, self._fabric.settings.patience)
            if len(targets) > _KNOWN:
                targets.popitem(last=False)
        else:
            targets.move_to_end(address)
        return target

    def _begin_again(self, target: Target, sock: socket.socket, early: bytes, until: float) -> None:
        """Try a connection elsewhere that has reached nobody.

        :param until: when to give up, by the loop's clock
        """
        fabric = self._fabric
        destination = fabric.directory.cached(target.address.host, target.address.port)
        attempt = Attempt(fabric, self._pool, self.egress, sock, target, destination, None)
        attempt.again(early, until)
        self._attempt(attempt, target)

    def _captured(self, sock: socket.socket, family: int, here: int) -> Address | None:
        """Where a captured connection was to go; None when it must not be carried there."""
        target = sockets.original_destination(sock, family)
        # this end of it has the port on which it was accepted, so that only then its address needs to be asked for
        if target is None or (target.port == here and sockets.local_address(sock) in (None, target)):
            text = "refused a connection that was not captured but made to the capture port itself"
            self._fabric.complaints.say(_INFO, text)
            return None
        if target.port in self._fabric.settings.sidecar_ports and target.host in self._fabric.settings.addresses:
            self._fabric.complaints.say(_INFO, "refused a connection to port %d of our own", target.port)
            return None
        return target

    def _carry_now(
        self, sock: socket.socket, target: Target, destination: Destination, endpoint: Endpoint, tunnel: Tunnel
    ) -> None:
        """The usual case: the destination is known and its tunnel is warm, so nothing is waited for."""

        def end(connection: Connection) -> None:
            sockets.refuse(sock)
            connection.finish()

        fabric = self._fabric
        expected, proved = target.peers(destination, endpoint)
        ourselves, identity = fabric.ourselves.proved()
        record = Record(
            Direction.OUTBOUND,
            ourselves,
            expected,
            endpoint.port,
            UNDECIDED,
            time(),
            identity,
            service=destination.service,
        )
        connection = fabric.connections.judge(record, end)
        if record.closed:
            sockets.refuse(sock)
        else:
            carry(fabric, sock, connection, endpoint, proved, tunnel, target)


def _dialled_ahead(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (fault := task.exception()) is not None:
        _log.error("a fault of ours while tunnels were dialled ahead; please report it", exc_info=fault)
