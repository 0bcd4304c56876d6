"""One connection of our application that has to wait: for the directory, for a tunnel, or for another endpoint.

Rules:

1. Endpoints are tried one after the other, each judged before it is tried.
2. A connection that has reached no application is tried at the other endpoints (:mod:`sidecar.dataplane.elsewhere`).
   Where the destination has answered before, and for a moment nobody does, it waits for one that does, as long as the
   settings' ``patience``: an application that ends, or begins again, costs its clients time, and no connection.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from functools import partial

from graph.directory import Destination, Endpoint, Transport
from graph.model import Direction, Peer
from graph.policy import Reason
from sidecar.dataplane import mtls, outward, sockets
from sidecar.dataplane.balance import CANDIDATES
from sidecar.dataplane.contracts import Record
from sidecar.dataplane.departure import carry, count_load, destination_peer, proved_peer
from sidecar.dataplane.dial import DialFailed
from sidecar.dataplane.egress import Egress
from sidecar.dataplane.fabric import Fabric
from sidecar.dataplane.live import Connection, new_record, refusal, report_refused
from sidecar.dataplane.pool import Pool
from sidecar.dataplane.relay import Relay
from sidecar.dataplane.sockets import Address
from sidecar.errors import Unresolved

_log = logging.getLogger(__name__)

#: Endpoints of one destination whose peers are remembered.
_PEERS = 64
#: Seconds between two looks at who is there now.
_LOOK = 0.05


class Target:
    """A destination as applications name it, and whether it has ever answered. Implements
    :class:`sidecar.dataplane.elsewhere.Elsewhere` for connections that are tried for the first time."""

    __slots__ = ("_begin_again", "_destination", "_patience", "_peers", "address", "answers", "warmed")

    def __init__(
        self, begin_again: Callable[[Target, socket.socket, bytes, float], None], address: Address, patience: float
    ) -> None:
        self._begin_again = begin_again
        self._patience = patience
        self.address = address
        self.answers = False
        #: The directory's last answer of which endpoints were dialled ahead (:mod:`sidecar.dataplane.warmth`).
        self.warmed: Destination | None = None
        self._destination: Destination | None = None  # of which the peers are known
        self._peers: dict[int, tuple[Endpoint, Peer, Peer]] = {}  # by the endpoint's identity as an object

    def peers(self, destination: Destination, endpoint: Endpoint) -> tuple[Peer, Peer]:
        """Whom the policy is asked about at ``endpoint``, one of ``destination``, and the same when it has proved that.
        The directory's answer stays the same object until it changes, and so do these."""
        if destination is not self._destination:
            self._peers.clear()
            self._destination = destination
        known = self._peers.get(id(endpoint))
        if known is None:
            if len(self._peers) >= _PEERS:
                self._peers.clear()
            expected = destination_peer(destination, endpoint, self.address)
            known = self._peers[id(endpoint)] = (endpoint, expected, proved_peer(expected, endpoint))
        return known[1], known[2]

    def reached(self) -> None:
        self.answers = True

    def begin_again(self, sock: socket.socket, early: bytes) -> None:
        self.go_on(sock, early, asyncio.get_running_loop().time() + self._patience)

    def go_on(self, sock: socket.socket, early: bytes, until: float) -> None:
        """Try once more, until then."""
        self._begin_again(self, sock, early, until)


class _Again:
    """A connection that was tried before. Implements :class:`sidecar.dataplane.elsewhere.Elsewhere`."""

    __slots__ = ("_target", "_until")

    def __init__(self, target: Target, until: float) -> None:
        self._target = target
        self._until = until

    def reached(self) -> None:
        self._target.reached()

    def begin_again(self, sock: socket.socket, early: bytes) -> None:
        self._target.go_on(sock, early, self._until)


class Attempt:
    """One connection that has to wait: for the directory, for a tunnel, or for another endpoint."""

    __slots__ = (
        "_connection",
        "_destination",
        "_early",
        "_egress",
        "_endpoints",
        "_fabric",
        "_known",
        "_left",
        "_pool",
        "_sock",
        "_target",
        "_task",
        "_until",
    )

    def __init__(
        self,
        fabric: Fabric,
        pool: Pool,
        egress: Egress,
        sock: socket.socket,
        target: Target,
        destination: Destination | None,
        endpoints: list[Endpoint] | None,
    ) -> None:
        self._fabric = fabric
        self._pool = pool
        self._egress = egress
        self._endpoints = endpoints  # in the order in which to try them, where that was asked for already
        self._sock: socket.socket | None = sock
        self._known = target
        self._target = target.address
        self._destination = destination
        self._left: list[Endpoint] | None = None  # of those that are there now, who was not tried yet
        self._early = b""  # what the client has said, when this is not the first try
        self._until = 0.0  # when to give up then
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None

    def again(self, early: bytes, until: float) -> None:
        """It was tried before; give up at ``until``.

        :param early: what the client has said, which counts as held until the client is handed over
        """
        self._early, self._until = early, until
        self._fabric.budget.left -= len(early)  # whoever kept it has only just given it back

    def start(self, done: Callable[[Attempt], None]) -> None:
        self._task = self._fabric.reactor.loop.create_task(self._run())
        self._task.add_done_callback(lambda task: self._done(task, done))

    def end(self, connection: Connection | None = None) -> None:
        """Refuse the client now: the policy has changed, or we stop."""
        self._refuse_client()
        for ended in (connection, self._connection):
            if ended is not None:
                ended.finish()
        if self._task is not None:
            self._task.cancel()

    def _done(self, task: asyncio.Task[None], done: Callable[[Attempt], None]) -> None:
        done(self)
        if not task.cancelled() and (fault := task.exception()) is not None:
            _log.error("a fault in the data path refused one connection; please report it", exc_info=fault)
            self.end()

    async def _run(self) -> None:
        destination = self._destination or await self._resolve()
        if destination is None:
            record = self._record(Peer(address=self._target.host), self._target.port)
            record.decision = refusal(Reason.UNRESOLVED)
            report_refused(self._fabric.connections.flows, record)
            self._refuse_client()
            return
        host = ""
        if destination.outside and self._sock is not None:
            host = await self._egress.host(self._sock, self._target)
        if destination.outside:  # what was answered since; a change from here on finds us in the register
            destination = self._fabric.directory.cached(self._target.host, self._target.port) or destination
            host = host if destination.outside else ""
        untrusted = False
        self._destination = destination
        while (endpoint := await self._next(destination, untrusted)) is not None:
            destination = self._destination
            if self._connection is not None:
                self._connection.withdraw()
            peer = destination_peer(destination, endpoint, self._target, host)
            record = self._record(peer, endpoint.port)
            record.source_identity = str(self._fabric.credentials.identity)
            record.service = destination.service
            asked = (self._target.host, self._target.port)
            connection = self._connection = self._fabric.connections.judge(record, self.end, asked)
            if not connection.allowed:
                self._refuse_client()
                return
            try:
                await self._reach(destination, endpoint, connection)
            except DialFailed as error:
                _log.info("%s", error)
                untrusted = error.untrusted
            else:
                return
        if self._connection is None:  # nothing runs there now
            record = self._record(destination_peer(destination, None, self._target), self._target.port)
            record.service = destination.service
            self._connection = self._fabric.connections.judge(record, self.end)
        self._refuse_client()
        if untrusted:
            self._connection.refuse(refusal(Reason.UNTRUSTED_PEER))
        elif self._connection.allowed:
            self._connection.finish(failed=True)

    def _record(self, peer: Peer, port: int) -> Record:
        """A record of this connection to ``peer``, which begins now."""
        return new_record(Direction.OUTBOUND, self._fabric.ourselves.peer(verified=True), peer, port)

    async def _resolve(self) -> Destination | None:
        settings, target = self._fabric.settings, self._target
        try:
            async with asyncio.timeout(settings.resolve_timeout):
                return await self._fabric.directory.resolve(target.host, target.port)
        except (Unresolved, TimeoutError) as error:
            why = str(error) or f"no answer within {settings.resolve_timeout:g} s"
            text = "refused a connection to %s, which the directory did not resolve: %s"
            self._fabric.complaints.say(logging.WARNING, text, target, why)
            return None

    async def _next(self, destination: Destination, untrusted: bool) -> Endpoint | None:
        """Where to try next; None: nowhere, any more.

        :param untrusted: the last one was somebody else than it should have been
        """
        fabric = self._fabric
        loop, balancer = fabric.reactor.loop, fabric.balancer
        again = self._until > 0
        while True:
            if self._left is None:
                self._left = self._candidates(destination)
            while self._left:
                endpoint = self._left.pop(0)
                # where this connection was in vain before, an endpoint that failed is left alone for its time
                if not again or (balancer.retry_at(endpoint) <= loop.time() and self._takes_early(endpoint)):
                    return endpoint
            if destination.outside or untrusted or not self._known.answers:
                return None
            self._until = self._until or loop.time() + fabric.settings.patience
            if loop.time() >= self._until:
                return None
            # The directory tells nobody of a change; one look is cheaper than what is waited for.
            await asyncio.sleep(_LOOK)
            again = True
            destination = fabric.directory.cached(self._target.host, self._target.port) or destination
            self._destination, self._endpoints, self._left = destination, None, None

    def _takes_early(self, endpoint: Endpoint) -> bool:
        """Whether what the client has said can be said to this endpoint: only tunnels take it."""
        own = endpoint.address in self._fabric.settings.addresses
        return not self._early or bool(endpoint.identity and endpoint.transport is not Transport.MTLS and not own)

    def _candidates(self, destination: Destination) -> list[Endpoint]:
        """Where to try, in this order."""
        if destination.outside:
            return [Endpoint(self._target.host, self._target.port)]
        if self._endpoints is None:
            self._endpoints = self._fabric.balancer.order(destination.endpoints, self._fabric.reactor.loop.time())
        return self._endpoints[:CANDIDATES]

    async def _reach(self, destination: Destination, endpoint: Endpoint, connection: Connection) -> None:
        """Carry the connection to ``endpoint``.

        :raises DialFailed: when it can not be reached
        """
        fabric = self._fabric
        if not endpoint.identity and outward.is_read(fabric, connection.record):
            await self._reach_outside(endpoint, connection)
            return
        # A connection to ourselves stays in the pod: the application's own socket is on the loopback device.
        if (destination.meshed or endpoint.identity) and endpoint.address not in fabric.settings.addresses:
            if endpoint.transport is Transport.MTLS:
                await self._reach_proxy(endpoint, connection)
                return
            tunnel = await self._pool.open(endpoint)
            if (client := self._take_client()) is not None:
                elsewhere = _Again(self._known, self._until) if self._until else self._known
                proved = proved_peer(connection.record.destination, endpoint)
                carry(fabric, client, connection, endpoint, proved, tunnel, elsewhere, self._early)
            return
        server = await self._connect(endpoint)
        client = self._take_client()
        if client is None:
            server.close()
            return
        fabric.balancer.succeeded(endpoint)
        count_load(fabric, connection, endpoint)
        Relay(fabric.reactor, client, server, connection)
        connection.announce()

    async def _reach_outside(self, endpoint: Endpoint, connection: Connection) -> None:
        """Carry the connection to what is outside the mesh, and judge what is asked of it.

        :raises DialFailed: when it can not be reached, or is not who it should be
        """
        if self._sock is None:
            return
        begin = partial(count_load, self._fabric, connection, endpoint)
        work = outward.Outward(self._fabric, connection, endpoint, self._take_client, self._connect, begin)
        await work.carry(*await self._egress.opening(self._sock, self._target))

    async def _reach_proxy(self, endpoint: Endpoint, connection: Connection) -> None:
        """Carry the connection to another mesh's proxy.

        :raises DialFailed: when it can not be reached, or is not who it should be
        """
        dialled = await mtls.dial(self._fabric, endpoint)
        client = self._take_client()
        if client is None:  # refused meanwhile
            self._fabric.reactor.close(dialled[0])
            return
        count_load(self._fabric, connection, endpoint)
        mtls.carry(self._fabric, client, connection, endpoint, dialled)

    async def _connect(self, endpoint: Endpoint) -> socket.socket:
        """A plain connection.

        :raises DialFailed: when there is none in time; the failure is counted
        """
        fabric = self._fabric
        address = Address(endpoint.address, endpoint.port)
        timeout = fabric.settings.connect_timeout
        try:
            server = sockets.outgoing(address.family, fabric.settings.mark)
        except OSError as error:
            raise DialFailed(f"no connection to {address}: {error.strerror}") from error
        try:
            async with asyncio.timeout(timeout):
                await asyncio.get_running_loop().sock_connect(server, address)
        except TimeoutError:
            server.close()
            why = f"no answer within {timeout:g} s"
        except OSError as error:
            server.close()
            why = error.strerror or str(error)
        except BaseException:
            server.close()
            raise
        else:
            return server
        fabric.balancer.failed(endpoint, asyncio.get_running_loop().time())
        raise DialFailed(f"no connection to {address}: {why}")

    def _take_client(self) -> socket.socket | None:
        """Hand the client's socket over; None when it was refused meanwhile."""
        sock, self._sock = self._sock, None
        if sock is not None:
            self._fabric.budget.left += len(self._early)
        return sock

    def _refuse_client(self) -> None:
        sock = self._take_client()
        if sock is not None:
            sockets.reset(sock)
            self._fabric.reactor.close(sock)  # its first bytes may be being looked at
