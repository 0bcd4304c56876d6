"""What the lanes of one data plane share: verdicts, pools, names for reports, and one look a second at what takes long.

Rules:

1. A verdict is kept no longer than the policy that it was made by. Every change forgets all of them, and what is under
   way is judged again; what is denied now is reset.
2. No lane has a timer of its own: all are looked at every ``sweep`` seconds, while there are any, one after the other:
   between two of them whoever is served has his turn.
3. Everything kept here is bounded by the settings.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Protocol

from graph.model import Peer
from graph.policy import Decision
from sidecar.dataplane.contracts import Authority
from sidecar.dataplane.fabric import Fabric
from sidecar.dataplane.legs import Leg
from sidecar.dataplane.sockets import Address
from sidecar.http.operation import OTHER
from sidecar.http.pool import Pool
from sidecar.http.rewrite import Identifiers
from sidecar.http.settings import DEFAULTS, HttpSettings

_log = logging.getLogger(__name__)


class Watched(Protocol):
    """Is looked at from time to time, and after every change of the policy."""

    def sweep(self, now: float) -> None:
        """End what has taken too long at ``now``, seconds of the site's clock."""

    def judge_again(self) -> None:
        """The policy has changed: end what it denies."""


class Verdicts:
    """The verdicts on one peer's operations on one port, by the policy in force while ``epoch`` is the site's.

    :ivar by_operation: whether operations have to be judged at all
    """

    __slots__ = ("_authority", "_known", "_most", "_peer", "_port", "by_operation", "epoch")

    def __init__(self, authority: Authority, peer: Peer, port: int, epoch: int, most: int) -> None:
        self._authority = authority
        self._peer = peer
        self._port = port
        self._known: dict[str, Decision] = {}
        self._most = most
        self.epoch = epoch
        self.by_operation = authority.by_operation(peer, port)

    def of(self, operation: str) -> Decision:
        """The verdict on ``operation``; empty: it is not known."""
        decision = self._known.get(operation)
        if decision is None:
            if len(self._known) >= self._most:
                self._known.clear()
            decision = self._known[operation] = self._authority.operation(self._peer, self._port, operation)
        return decision


class HttpSite:
    """Made with the first lane of a data plane; closed with it.

    :param clock: seconds that only grow
    """

    def __init__(
        self, fabric: Fabric, settings: HttpSettings = DEFAULTS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.fabric = fabric
        self.settings = settings
        self.clock = clock
        self.identifiers = Identifiers(settings.trace_flags)
        #: Grows with every change of the policy.
        self.epoch = 0
        #: Requests and responses that were refused as malformed, by reason.
        self.malformed: Counter[str] = Counter()
        #: HTTP/2 connections whose observation was given up, by reason.
        self.unobserved: Counter[str] = Counter()
        #: Requests that were sent again because a pooled connection was stale.
        self.retries = 0
        self._watched: set[Watched] = set()
        self._parting: dict[Leg, float] = {}
        self._pools: dict[Address, Pool] = {}
        self._verdicts: dict[tuple[Peer, int], Verdicts] = {}
        self._names: dict[tuple[int, str], set[str]] = {}
        self._ports: set[int] = set()
        self._tapped: frozenset[int] = frozenset()
        self._timer: asyncio.TimerHandle | None = None
        self._sweeping = False
        self._closed = False
        fabric.authority.subscribe(self._changed)

    @classmethod
    def of(cls, fabric: Fabric) -> HttpSite:
        """The site of a data plane."""
        return fabric.shared.get(cls, lambda: cls(fabric, fabric.settings.http))

    # verdicts and names

    def verdicts(self, peer: Peer, port: int) -> Verdicts:
        """The verdicts in force now on operations of ``peer`` on ``port``."""
        key = (peer, port)
        known = self._verdicts.get(key)
        if known is None:
            if len(self._verdicts) >= self.settings.cached:
                self._verdicts.clear()
            most = self.settings.cached
            known = self._verdicts[key] = Verdicts(self.fabric.authority, peer, port, self.epoch, most)
        return known

    def name(self, port: int, operation: str, host: str = "") -> str:
        """What ``operation`` is reported as: itself, as long as there are not too many of that port.

        :param host: whose port that is; empty: our application's
        """
        names = self._names.get((port, host))
        if names is None:
            if len(self._names) >= self.settings.cached:
                self._names.clear()
            names = self._names[port, host] = set()
        if operation in names:
            return operation
        if len(names) >= self.settings.operations:
            return operation.partition(" ")[0] + " " + OTHER
        names.add(operation)
        return operation

    def _changed(self) -> None:
        self.epoch += 1
        self._verdicts.clear()
        for watched in list(self._watched):
            try:
                watched.judge_again()
            except Exception:  # one lane's fault must not keep a new deny from the others
                _log.exception("a fault in the http lane; please report it")

    # connections

    def pool(self, application: Address) -> Pool:
        """Idle connections to ``application``."""
        pool = self._pools.get(application)
        if pool is None:
            pool = self._pools[application] = Pool(self.settings.pool_connections)
        return pool

    def watch(self, watched: Watched, port: int) -> None:
        """Look at it until :meth:`forget`.

        :param port: the application's, that its client has called
        """
        self._watched.add(watched)
        self._ports.add(port)
        self._arm()

    def forget(self, watched: Watched) -> None:
        self._watched.discard(watched)

    def unwelcome(self, port: int) -> bool:
        """Whether clients of ``port`` are to come again on another connection: we drain, or a person wants to see their
        requests, which only new connections are looked into for."""
        return port in self._tapped or self.fabric.draining

    def part(self, leg: Leg) -> None:
        """Let an application's connection end in good order, and by itself."""
        if not leg.closed:
            leg.lane = _PARTING
            leg.end()
            self._parting[leg] = self.clock() + self.settings.linger
            self._arm()

    def _arm(self) -> None:
        """Have a look after ``sweep`` seconds, unless one is coming anyway."""
        if self._timer is None and not self._sweeping and not self._closed:
            self._timer = self.fabric.reactor.loop.call_later(self.settings.sweep, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._sweeping = True
        self.fabric.reactor.chores.begin(self._look())

    def _look(self) -> Iterator[None]:
        try:
            yield from self._sweep(self.clock)
        except Exception:
            self._looked()
            raise
        self._looked()

    def _looked(self) -> None:
        self._sweeping = False
        if self._watched or self._parting or any(self._pools.values()):
            self._arm()

    def sweep(self, now: float) -> None:
        """End what has taken too long, all of it at once."""
        for _ in self._sweep(lambda: now):
            pass

    def _sweep(self, clock: Callable[[], float]) -> Iterator[None]:
        """Look at one after the other."""
        self._tapped = frozenset(port for port in self._ports if self.fabric.taps.wants(port))
        for watched in list(self._watched):
            if watched in self._watched:
                watched.sweep(clock())
                yield
        for leg, until in list(self._parting.items()):
            if leg in self._parting and (leg.closed or clock() >= until):
                del self._parting[leg]
                leg.reset()
                yield
        for application, pool in list(self._pools.items()):
            pool.expire(clock())
            if not pool and not self._watched:
                self._pools.pop(application, None)

    def close(self) -> None:
        """Let all idle connections go. Lanes end with their connections."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for pool in self._pools.values():
            pool.clear()
        for leg in self._parting:
            leg.reset()
        self._parting.clear()


class _Parting:
    """The lane of connections that end."""

    def received(self, leg: Leg, data: memoryview) -> None:
        """Nobody wants it any more."""

    def ended(self, leg: Leg) -> None:
        """It closes by itself."""

    def drained(self, leg: Leg) -> None: ...

    def lost(self, leg: Leg, why: str) -> None: ...


_PARTING = _Parting()
