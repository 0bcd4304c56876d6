"""The epoll set of the data path, itself one descriptor of the asyncio loop.

Rules:

1. One turn handles a bounded number of batches, for a bounded time, and then returns to asyncio, where everything else
   runs. What is left, of a batch too, is taken up in the next iteration of the loop.
2. Within a batch every source is called once, then every stream that has more to read gets one frame as long as the
   turn has time, those first that waited longest, then every tunnel is flushed once. So many that send without end cost
   those who send little no more than one of them does. One TLS write and one ``send`` per tunnel and batch is what
   makes many small messages cheap.
3. A descriptor that is closed within a batch is closed at the batch's end: its number can not come back while events
   for the old owner are still being handed out. Closing takes it out of the set, as long as nobody else holds the
   socket; who shares one calls :meth:`Reactor.forget` first.
4. An exception of a source ends that source and no other.
5. What can wait a moment waits until those have been served who are here (:mod:`sidecar.dataplane.chores`), and is done
   in small portions between batches: whoever becomes ready meanwhile waits for one portion, and not for all of it.
6. So do sources that give way, and those whose last read took long: there may be a thousand of them. Nobody else is
   behind them, and they are served in the order in which they became ready.
"""

from __future__ import annotations

import asyncio
import logging
import select
import socket
from collections.abc import Callable
from time import monotonic
from typing import Any, Protocol

from sidecar.dataplane.chores import SLICE, Alarm, Chores

IN = select.EPOLLIN
OUT = select.EPOLLOUT
RDHUP = select.EPOLLRDHUP
EDGE = select.EPOLLET
ERROR = select.EPOLLERR
HUP = select.EPOLLHUP
#: Any event but "writable".
NOT_OUT = ~select.EPOLLOUT
#: The peer will send no more, or the connection is gone.
GONE = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR

#: One read from a tunnel's socket, bytes.
RECEIVE = 262_144
#: Seconds after which a turn calls no further source: others wait for the loop too.
_LONGEST_TURN = 0.002
#: Room for what one such read decrypts to, behind an unfinished record.
PLAIN = RECEIVE + 32_768

#: Closes a socket that nobody has made a file of, which is all that the method of ``socket.socket`` asks about.
_close = socket.SocketType.close

_log = logging.getLogger(__name__)


class Source(Protocol):
    """Owns a registered descriptor."""

    def on_event(self, events: int) -> None:
        """Handle ``events``, an epoll mask."""

    def abort(self, why: str) -> None:
        """Give up at once, releasing everything. Must not raise."""


class Pump(Protocol):
    """Has more to read than one frame."""

    queued: bool

    def pump(self) -> None: ...

    def abort(self, why: str) -> None: ...


class Flushable(Protocol):
    """Has frames to send at the end of the batch."""

    def flush(self) -> None: ...

    def abort(self, why: str) -> None: ...


class _GivesWay:
    """Takes the events of a source that gives way, and tells it of them when its turn has come."""

    __slots__ = ("_events", "_fd", "_reactor", "no_more", "source")

    def __init__(self, reactor: Reactor, fd: int, source: Source) -> None:
        self._reactor = reactor
        self._fd = fd
        self.source = source
        self._events = 0  # since it was told last
        #: Until that is told, and no longer.
        self.no_more = False

    @property
    def waits(self) -> bool:
        """Whether there is something to tell."""
        return self._events != 0

    def on_event(self, events: int) -> None:
        if not self._events:
            self._reactor.chores.put(self)
        self._events |= events

    def ring(self) -> None:
        events, self._events = self._events, 0
        self._reactor.tell(self._fd, self, events)

    def abort(self, why: str) -> None:
        self.source.abort(why)


class _Behind:
    """Reads once more of a stream when its turn among the chores has come."""

    __slots__ = ("_reactor", "_stream")

    def __init__(self, reactor: Reactor, stream: Pump) -> None:
        self._reactor = reactor
        self._stream = stream

    def ring(self) -> None:
        self._reactor.pump_now(self._stream)


def _owner(source: Source | None) -> Source | None:
    """Who is told in the end."""
    return source.source if isinstance(source, _GivesWay) else source


class Reactor:
    """Runs sources on one asyncio loop.

    :param batch: events taken from the kernel at once
    :param rounds: batches in one turn, at most
    :ivar batches: how many there were: with each, whoever has become ready has his turn
    """

    __slots__ = (
        "_again",
        "_batch",
        "_dirty",
        "_epoll",
        "_graveyard",
        "_in_turn",
        "_left",
        "_loop",
        "_rounds",
        "_scheduled",
        "_sources",
        "batches",
        "buffers",
        "chores",
        "loop",
        "plain",
        "plain_view",
        "received",
        "received_view",
    )

    def __init__(self, *, batch: int = 128, rounds: int = 8) -> None:
        self._epoll = select.epoll()
        self._sources: dict[int, Source] = {}
        self._batch = batch
        self._rounds = rounds
        #: The one that it was started on, which comes first.
        self.loop: asyncio.AbstractEventLoop
        self._loop: asyncio.AbstractEventLoop | None = None  # as long as it runs
        self._in_turn = False
        self._scheduled = False
        self._graveyard: list[socket.socket] = []
        self._dirty: list[Flushable] = []
        self._again: list[Pump] = []
        self._left: list[tuple[Source | None, int, int]] = []  # of a batch that took too long
        self.batches = 0
        #: What can wait a moment.
        self.chores = Chores(self._chore)
        # Shared by all sources, because each is done with them before the next is called.
        self.received = bytearray(RECEIVE)
        self.received_view = memoryview(self.received)
        self.plain = bytearray(PLAIN)
        self.plain_view = memoryview(self.plain)
        #: Send buffers of tunnels that have nothing to send.
        self.buffers: list[bytearray] = []

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to handle events on ``loop``."""
        self._loop = self.loop = loop
        loop.add_reader(self._epoll.fileno(), self._turn)

    def stop(self) -> None:
        """Abort what is still registered, close the set. Nothing can be registered afterwards."""
        for source in list(self._sources.values()):
            source.abort("the data path stops")
        self._bury()
        self._left.clear()
        self.chores.clear()
        loop: Any = self._loop  # uvloop answers None where asyncio answers a bool, which compiled code would check
        if loop is not None:
            loop.remove_reader(self._epoll.fileno())
            self._loop = None
        self._epoll.close()

    def register(self, sock: socket.socket, events: int, source: Source) -> None:
        """Call ``source`` when one of ``events`` happens on ``sock``."""
        fd = sock.fileno()
        self._epoll.register(fd, events)
        self._sources[fd] = source

    def hand_over(self, sock: socket.socket, events: int, source: Source) -> None:
        """Give a registered ``sock`` to another source."""
        fd = sock.fileno()
        self._sources[fd] = source
        self._epoll.modify(fd, events)

    def give_way(self, sock: socket.socket) -> None:
        """Have the source of a registered, edge-triggered ``sock`` called when those have been served who do not give
        way, until another source gets the socket. What it was told of already stays true."""
        fd = sock.fileno()
        source = self._sources[fd]
        if not isinstance(source, _GivesWay):
            self._sources[fd] = _GivesWay(self, fd, source)
        else:
            source.no_more = False

    def give_way_no_more(self, sock: socket.socket) -> None:
        """Have the source of ``sock`` called with the others again, once it was told of what it waits for."""
        fd = sock.fileno()
        source = self._sources.get(fd)
        if isinstance(source, _GivesWay):
            if source.waits:
                source.no_more = True
            else:
                self._sources[fd] = source.source

    def tell(self, fd: int, source: _GivesWay, events: int) -> None:
        """Tell who is behind ``source`` of ``events``, if the descriptor is still his."""
        if self._sources.get(fd) is source:
            try:
                source.source.on_event(events)
            except Exception:
                self.contain(source)
            if source.no_more and self._sources.get(fd) is source:
                self._sources[fd] = source.source

    def modify(self, sock: socket.socket, events: int) -> None:
        self._epoll.modify(sock.fileno(), events)

    def forget(self, sock: socket.socket) -> None:
        """Stop watching ``sock`` without closing it."""
        if self._sources.pop(sock.fileno(), None) is not None:
            self._epoll.unregister(sock.fileno())

    def close(self, sock: socket.socket) -> None:
        """Stop watching ``sock`` and close it, at once or at the end of the batch."""
        if not self._in_turn:
            self._sources.pop(sock.fileno(), None)
            sock.close()
        elif (fd := sock.fileno()) >= 0:
            self._sources.pop(fd, None)
            self._graveyard.append(sock)

    def mark_dirty(self, tunnel: Flushable) -> None:
        """Have ``tunnel`` flushed at the end of the batch. The caller asks once until that happens."""
        self._dirty.append(tunnel)
        if not self._in_turn:
            self._schedule()

    def pump_again(self, stream: Pump) -> None:
        """Have ``stream`` pumped once more after everybody else. The caller asks once until that happens."""
        stream.queued = True
        self._again.append(stream)
        if not self._in_turn:
            self._schedule()

    def pump_behind(self, stream: Pump) -> None:
        """Have ``stream`` pumped when those have been served who are here, also those who come meanwhile: for one whose
        reads take long. The caller asks once until that happens."""
        stream.queued = True
        self.chores.put(_Behind(self, stream))

    def pump_now(self, stream: Pump) -> None:
        """Pump ``stream``, whose turn has come."""
        stream.queued = False
        try:
            stream.pump()
        except Exception:
            self.contain(stream)

    def call_later(self, delay: float, call: Callable[..., object], *arguments: Any) -> Alarm:
        """Have ``call(*arguments)`` called after ``delay`` seconds, when its turn comes: for what many may wait for at
        the same time."""
        return self.chores.later(self.loop, delay, call, *arguments)

    def contain(self, owner: Source | Pump | Flushable | None) -> None:
        """Report the exception that is handled now, and end ``owner``, who raised it."""
        _log.exception("a fault in the data path ended one connection; please report it")
        if owner is not None:
            owner.abort("internal fault")

    def _chore(self) -> None:
        if not self._in_turn:
            self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled and self._loop is not None:
            self._scheduled = True
            self._loop.call_soon(self._resume)

    def _resume(self) -> None:
        self._scheduled = False
        if self._loop is not None:
            self._turn()

    def _turn(self) -> None:
        if self._scheduled:
            return  # one turn in an iteration of the loop, and it comes
        self._in_turn = True
        poll = self._epoll.poll
        began = monotonic()
        end = began + _LONGEST_TURN
        sources, chores = self._sources, self.chores
        try:
            for _ in range(self._rounds):
                self.batches += 1
                if self._left:
                    self._take_up(end)
                events = poll(0, self._batch) if not self._left else []
                last = len(events)
                for number, (fd, mask) in enumerate(events, 1):
                    source = sources.get(fd)
                    if source is not None:
                        try:
                            source.on_event(mask)
                        except Exception:
                            self.contain(source)
                    if number < last and monotonic() > end:
                        self._left = [(sources.get(fd), fd, mask) for fd, mask in events[number:]]
                        break
                if self._again:
                    self._pump(end)
                self._settle()
                if chores:
                    # half as long as those took who are here, so that they can not keep it from being done at all
                    chores.work(max(SLICE, (monotonic() - began) / 2))
                    self._settle()
                    began = monotonic()
                if (not self._again and not chores and last < self._batch) or monotonic() > end:
                    break
        finally:
            self._in_turn = False
        if self._again or self._dirty or self._left or chores:
            self._schedule()

    def _take_up(self, end: float) -> None:
        """Go on with a batch, in an iteration of the loop in which a descriptor may be somebody else's. Its owner
        may have begun to give way, or do so no more."""
        left, self._left = self._left, []
        for number, (before, fd, mask) in enumerate(left, 1):
            source = self._sources.get(fd)
            if source is not None and _owner(source) is _owner(before):
                try:
                    source.on_event(mask)
                except Exception:
                    self.contain(source)
            if monotonic() > end:
                self._left = left[number:]
                return

    def _settle(self) -> None:
        """Send what was written, and close what was let go of."""
        if self._dirty:
            self._flush()
        if self._graveyard:
            self._bury()

    def _pump(self, end: float) -> None:
        streams, self._again = self._again, []
        for number, stream in enumerate(streams, 1):
            self.pump_now(stream)
            if number < len(streams) and monotonic() > end:
                self._again[:0] = streams[number:]
                break

    def _flush(self) -> None:
        tunnels, self._dirty = self._dirty, []
        for tunnel in tunnels:
            try:
                tunnel.flush()
            except Exception:
                self.contain(tunnel)

    def _bury(self) -> None:
        for sock in self._graveyard:
            _close(sock)
        self._graveyard.clear()
