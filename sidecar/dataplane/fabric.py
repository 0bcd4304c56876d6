"""What the parts of the data path share, and how identities become peers."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from time import monotonic
from typing import Protocol
from weakref import WeakSet

from certs.spiffe import SpiffeId
from graph.model import Peer, WorkloadRef
from sidecar.dataplane import sockets
from sidecar.dataplane.balance import Balancer
from sidecar.dataplane.carrier import Budget
from sidecar.dataplane.complaints import Complaints
from sidecar.dataplane.contracts import Authority, Credentials, Directory, Names, Taps
from sidecar.dataplane.detect import Detection
from sidecar.dataplane.guards import Guards
from sidecar.dataplane.live import Connections
from sidecar.dataplane.reactor import IN, Reactor
from sidecar.dataplane.settings import DataPlaneSettings
from sidecar.dataplane.standing import Proved

_log = logging.getLogger(__name__)

#: Connections accepted from one listener before others have their turn, and seconds after which no further one is.
_ACCEPTS = 32
_ACCEPTING = 0.001
#: Seconds without accepting after the process ran out of descriptors.
_EXHAUSTED = 0.1


class Closable(Protocol):
    """Has something to let go of when the data path stops."""

    def close(self) -> None: ...


class Shared:
    """What the lanes of one data plane share; each kind is made with the first lane that wants it."""

    def __init__(self) -> None:
        self._made: dict[type, Closable] = {}

    def get[T: Closable](self, kind: type[T], make: Callable[[], T]) -> T:
        """The one of this ``kind``, made now if it was not before."""
        made = self._made.get(kind)
        if not isinstance(made, kind):
            made = self._made[kind] = make()
        return made

    def close(self) -> None:
        for made in self._made.values():
            made.close()
        self._made.clear()


class Ourselves:
    """This workload as an end of connections, at the first of its addresses, IPv4 before IPv6."""

    __slots__ = ("_address", "_credentials", "_identity", "_peers", "_text")

    def __init__(self, credentials: Credentials, addresses: Collection[str]) -> None:
        self._credentials = credentials
        self._address = min(addresses, key=lambda address: (":" in address, address)) if addresses else ""
        self._identity: SpiffeId | None = None
        self._peers: tuple[Peer, ...] = ()
        self._text = ""

    def proved(self) -> tuple[Peer, str]:
        """For an end that has seen our certificate: who we are, and the SPIFFE ID in it."""
        return self.peer(verified=True), self._text

    def peer(self, *, verified: bool) -> Peer:
        """:param verified: whether the other end has seen our certificate"""
        identity = self._credentials.identity
        if identity is not self._identity:
            self._identity = identity
            self._peers = peer_of(identity, self._address, False), peer_of(identity, self._address, True)
            self._text = str(identity)
        return self._peers[verified]


@dataclass(frozen=True, slots=True)
class Fabric:
    """Made once by the data plane, handed to each of its parts."""

    reactor: Reactor
    settings: DataPlaneSettings
    authority: Authority
    directory: Directory
    credentials: Credentials
    connections: Connections
    balancer: Balancer
    budget: Budget
    complaints: Complaints
    random: Random
    detection: Detection
    taps: Taps
    guards: Guards
    names: Names
    shared: Shared = field(default_factory=Shared)
    #: Connections with proxies of other meshes, as long as anybody has them.
    foreign: WeakSet[Proved] = field(default_factory=WeakSet)
    ourselves: Ourselves = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ourselves", Ourselves(self.credentials, self.settings.addresses))

    @property
    def draining(self) -> bool:
        """We take nothing new from others and want to be rid of what runs: clients are asked to connect elsewhere."""
        return self.guards.draining

    @property
    def full(self) -> bool:
        """Whether one more stream than there are would be too many; counts the one that is refused for it."""
        guards = self.guards
        if guards.shedding:
            guards.counters.streams_shed += 1
            return True
        if self.connections.count > self.settings.connections:
            guards.counters.streams_refused += 1
            return True
        return False


@lru_cache(maxsize=4096)
def peer_of(spiffe_id: SpiffeId, address: str, verified: bool) -> Peer:
    """The peer that an identity names; an account alone when the identity stops at ``/sa/…``."""
    workload = WorkloadRef(spiffe_id.namespace, spiffe_id.workload) if spiffe_id.workload else None
    return Peer(workload, spiffe_id.namespace, spiffe_id.service_account, address, verified)


class Acceptor:
    """Accepts connections from ``listener`` and hands each to ``accepted``, which then owns it."""

    __slots__ = ("_accepted", "_complaints", "_family", "_guards", "_listener", "_reactor")

    def __init__(self, fabric: Fabric, listener: socket.socket, accepted: Callable[[socket.socket], None]) -> None:
        self._reactor = reactor = fabric.reactor
        self._complaints = fabric.complaints
        self._guards = fabric.guards
        self._listener = listener
        self._family = listener.family
        self._accepted = accepted
        reactor.register(listener, IN, self)

    def on_event(self, events: int) -> None:
        end = monotonic() + _ACCEPTING
        for _ in range(_ACCEPTS):
            if not self._accept() or monotonic() >= end:
                return

    def _accept(self) -> bool:
        """Take one connection. False: there is none, or none can be taken now."""
        try:
            sock = sockets.accept(self._listener, self._family)
        except BlockingIOError:
            return False
        except ConnectionError:
            return True  # the client was gone before we came
        except OSError as error:
            self._guards.counters.accept_pauses += 1
            remedy = "raise the limit of open files"
            text = "cannot accept connections for a moment: %s; %s"
            self._complaints.say(logging.ERROR, text, error.strerror, remedy)
            self._reactor.forget(self._listener)
            self._reactor.loop.call_later(_EXHAUSTED, self._resume)
            return False
        if self._guards.shedding:
            self._guards.counters.connections_shed += 1
            self._complaints.say(logging.WARNING, "refused a connection: memory is short")
            sockets.refuse(sock)
            return True
        try:
            self._accepted(sock)
        except Exception:
            _log.exception("a fault in the data path refused one connection; please report it")
            sockets.refuse(sock)
        return True

    def abort(self, why: str) -> None:
        self.close()

    def finish(self) -> None:
        """Take what waits already, then stop listening: who was let in by the kernel is not turned away."""
        for _ in range(sockets.BACKLOG):
            if self._listener.fileno() < 0 or not self._accept():
                break
        self.close()

    def close(self) -> None:
        """Stop listening. What waits in the backlog is reset, unless another process listens on the same socket."""
        if self._listener.fileno() >= 0:
            # by hand: while another process holds the socket, closing it does not take it out of the epoll set
            self._reactor.forget(self._listener)
            self._reactor.close(self._listener)

    def _resume(self) -> None:
        if self._listener.fileno() >= 0:
            self._reactor.register(self._listener, IN, self)
