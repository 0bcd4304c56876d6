"""The data path of one sidecar: listeners, tunnels, streams. Wires the parts and owns their life.

Everything runs on the thread of the asyncio loop that :meth:`DataPlane.start` is called on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from sidecar.dataplane import sockets
from sidecar.dataplane.balance import Balancer
from sidecar.dataplane.complaints import Complaints
from sidecar.dataplane.contracts import Authority, Credentials, Directory, FlowSink, Names, NoNames, NoTaps, Taps
from sidecar.dataplane.departure import judge_known
from sidecar.dataplane.detect import Detection
from sidecar.dataplane.fabric import Acceptor, Fabric
from sidecar.dataplane.guards import Counters, Guards, Measured
from sidecar.dataplane.inbound import Inbound
from sidecar.dataplane.lease import Proof
from sidecar.dataplane.live import Connections
from sidecar.dataplane.outbound import Outbound
from sidecar.dataplane.pool import Pool
from sidecar.dataplane.reactor import Reactor
from sidecar.dataplane.settings import DataPlaneSettings
from sidecar.dataplane.sockets import Address, Inherited
from sidecar.dataplane.standing import Proved, Standing
from sidecar.dataplane.tunnel import Tunnel

_log = logging.getLogger("sidecar.dataplane")

#: Seconds between two looks whether peers have let go of their tunnels.
_DRAIN_LOOK = 0.02

type _Taker = Callable[[socket.socket], Acceptor]


class DataPlane:
    """Carries the connections of one pod.

    :param authority: judges them; ``directory`` knows who is where; ``credentials`` prove who we are; ``flows`` hears
        of each; ``taps`` knows what a person watches, ``names`` what DNS calls addresses outside the mesh
    :param gauge: measures our memory; made of the settings when None
    :param proved: hears of every tunnel's handshake with a peer that came to us, for other processes of this sidecar
    """

    def __init__(
        self,
        settings: DataPlaneSettings,
        authority: Authority,
        directory: Directory,
        credentials: Credentials,
        flows: FlowSink,
        taps: Taps | None = None,
        names: Names | None = None,
        gauge: Measured | None = None,
        proved: Callable[[Proof], None] | None = None,
    ) -> None:
        self._settings = settings
        reactor, chance = Reactor(), random.Random()  # noqa: S311  # jitter
        self._guards = guards = Guards(settings, gauge)
        self._fabric = Fabric(
            reactor=reactor,
            settings=settings,
            authority=authority,
            directory=directory,
            credentials=credentials,
            connections=Connections(authority, flows, settings.half_closed_idle, guards),
            balancer=Balancer(
                chance, backoff=settings.backoff, longest=settings.backoff_max, probe=settings.connect_timeout
            ),
            budget=guards.budget,
            complaints=Complaints(_log, lambda delay, call: reactor.loop.call_later(delay, call)),
            random=chance,
            guards=guards,
            detection=Detection(),
            taps=taps or NoTaps(),
            names=names or NoNames(),
        )
        directory.subscribe(partial(judge_known, self._fabric.connections))
        self._pool = Pool(self._fabric)
        self._outbound = Outbound(self._fabric, self._pool)
        self._inbound = Inbound(self._fabric, proved)
        meanwhile = settings.handshake_timeout + settings.connect_timeout
        complaints = self._fabric.complaints
        self._standing = Standing(reactor, credentials, complaints, self._whose_peers_are_proved, meanwhile)
        self._started = False
        self._ahead: Sequence[Address] = ()
        self._takers = self._takers_of(settings)
        self._opened: list[tuple[Address, socket.socket, _Taker]] = []

    @property
    def live_connections(self) -> int:
        """Connections that are alive now."""
        return self._fabric.connections.count

    @property
    def buffered(self) -> int:
        """Bytes that are held for receivers that do not read."""
        return self._settings.buffered_bytes - self._fabric.budget.left

    @property
    def detection(self) -> Detection:
        """What was learned of our ports' protocols, and how often in vain."""
        return self._fabric.detection

    @property
    def outbound_tunnels(self) -> list[Tunnel]:
        """Tunnels that we dialled."""
        return self._pool.tunnels()

    @property
    def unbound_claims(self) -> int:
        """Connections out of the mesh that claimed a name which DNS has not bound to their address."""
        return self._outbound.egress.unbound

    @property
    def uninspected(self) -> Mapping[str, int]:
        """Connections to hosts outside that should have been read and were not, by why."""
        from sidecar.inspect.hub import Inspection

        return Inspection.of(self._fabric).outward

    @property
    def inbound_tunnels(self) -> list[Tunnel]:
        """Tunnels that peers dialled."""
        return self._inbound.tunnels

    @property
    def counters(self) -> Counters:
        """What limits have cost since the start."""
        return self._guards.counters

    @property
    def shedding(self) -> bool:
        """Whether new connections are refused for want of memory."""
        return self._guards.shedding

    @property
    def listeners(self) -> list[tuple[Address, socket.socket]]:
        """What is listened on, under the addresses of the settings; for another process that takes over."""
        return [(address, sock) for address, sock, _ in self._opened if sock.fileno() >= 0]

    def listen(self, inherited: Inherited | None = None) -> None:
        """Have the listening sockets, without taking connections from them yet.

        :param inherited: of the process before us; those that are wanted are taken out
        :raises ConfigError: when an address can not be listened on; nothing is listened on then
        """
        try:
            for address, take in self._takers:
                held = inherited.take_all(address) if inherited is not None else []
                for sock in held or [sockets.listener(address, mark=self._settings.mark)]:
                    self._opened.append((address, sock, take))
        except BaseException:
            self._close_listeners()
            raise

    def adopt(self, address: Address, sock: socket.socket) -> Callable[[], None]:
        """Take connections from one more socket that listens on an address of the settings.

        :returns: what closes it again, without ending a connection
        :raises KeyError: when ``address`` is none of the settings
        """
        return dict(self._takers)[address](sock).close

    def warm_ahead(self, places: Sequence[Address]) -> None:
        """Dial tunnels that will be wanted, now or as soon as we carry; nobody waits for them.

        :param places: destinations as applications name them, those used last first
        """
        if self._started:
            self._outbound.warm_ahead(places)
        else:
            self._ahead = places

    def proved_elsewhere(self, proof: Proof) -> None:
        """A peer has made a tunnel's handshake with another process of this sidecar: it proves the same to us."""
        self._inbound.proved_elsewhere(proof)

    def _whose_peers_are_proved(self) -> list[Proved]:
        return [*self.outbound_tunnels, *self.inbound_tunnels, *self._fabric.foreign]

    def _takers_of(self, settings: DataPlaneSettings) -> list[tuple[Address, _Taker]]:
        """Who takes connections from which address, in the order in which they are listened on."""
        inbound, outbound = self._inbound.listen, self._outbound.listen
        return [
            *((address, outbound) for address in settings.outbound_listen),
            *((pair.listen, partial(outbound, declared=pair.destination)) for pair in settings.explicit_outbound),
            *((address, inbound) for address in settings.inbound_listen),
            *(
                (pair.listen, partial(inbound, declared=(pair.listen.port, pair.application)))
                for pair in settings.explicit_inbound
            ),
        ]

    async def start(self) -> None:
        """Carry; listen, where :meth:`listen` was not called before.

        :raises ConfigError: as that does
        """
        if not self._opened:
            self.listen()
        loop = asyncio.get_running_loop()
        self._fabric.reactor.start(loop)
        fabric = self._fabric
        self._guards.start(loop, fabric.connections.end_idle, fabric.reactor.chores.soon)
        self._standing.begin()
        self._started = True
        for _, sock, take in self._opened:
            take(sock)
        if self._ahead:
            self._outbound.warm_ahead(self._ahead)

    def _close_listeners(self) -> None:
        opened, self._opened = self._opened, []
        for _, sock, _ in opened:
            sock.close()

    async def drain(self, deadline: float, *, replaced: bool = False) -> None:
        """Take no more connections from others, and wait until those that are alive have ended and peers have let go
        of their tunnels: what crossed our farewell on the way is served, too.

        :param deadline: seconds to wait at most
        :param replaced: another process listens now; take no more from our own application either
        """
        self._guards.draining = True
        if replaced:
            self._outbound.drain()
        self._inbound.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline):
                while self._busy:
                    empty = asyncio.Event()
                    self._fabric.connections.when_empty(empty.set)
                    await empty.wait()
                    if self._busy:
                        await asyncio.sleep(_DRAIN_LOOK)

    @property
    def _busy(self) -> bool:
        return bool(self._fabric.connections.count or self._outbound.waiting or self._inbound.busy)

    def stop(self) -> None:
        """End everything now: connections are reset, listeners closed. Calling it again changes nothing."""
        if not self._started:
            self._close_listeners()
            return
        self._started = False
        self._opened.clear()  # closed by those who took connections from them
        self._guards.stop()
        self._outbound.stop()
        self._fabric.connections.end_all()
        self._pool.stop()
        self._inbound.stop()
        self._fabric.shared.close()
        self._fabric.reactor.stop()
        self._fabric.complaints.stop()
