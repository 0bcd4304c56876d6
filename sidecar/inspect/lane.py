"""The ``inspect`` lane: guards before the parsers, and whose turn it is.

Rules:

1. Bytes pass a guard before the parser sees them; a broken limit ends the connection, with GOAWAY or a status where
   the protocol has one, and is counted.
2. A request is judged when its head is complete, before the application hears of the connection, and again whenever
   the policy changes while it runs (:class:`~sidecar.inspect.judging.Judge`).
3. Everything is a function call: no task and no queue on the way of a request. What one client sends in a burst is
   worked off in slices, between which all others have their turn.
4. What one side does not take is not read from the other; and nothing is kept beyond the limits.
5. A connection of the application serves one client. What the application does to it (ends, resets, closes) happens
   to the client.
6. Behind a response 101 nothing is parsed on the way (:mod:`sidecar.inspect.upgraded`), unless an addon wants messages.
"""

from __future__ import annotations

from time import monotonic
from typing import Final

from sidecar.dataplane.legs import Leg
from sidecar.inspect.connection import InspectedConnection
from sidecar.inspect.frame_guard import Breach
from sidecar.inspect.http1 import Http1Half
from sidecar.inspect.http2 import BoundedServer
from sidecar.inspect.upgraded import WatchedUpgrade

#: Frames handed to the parser at once, and bytes of them (one large head takes milliseconds), and bytes of HTTP/1: what
#: is between two looks at the clock.
_FRAMES: Final = 16
_FRAME_BYTES: Final = 16_384
_BYTES: Final = 65_536


class InspectLane(InspectedConnection):
    """The lane of ``client`` and of one connection of the application."""

    def received(self, leg: Leg, data: memoryview) -> None:
        if self._over:
            return
        if leg is self._client:
            self.record.bytes_sent += len(data)
            if self._closing:
                self._throw_away(len(data))
                return
            self._inbox += data
            if not self._resuming:
                self._guarded(self._work)
        else:
            self.record.bytes_received += len(data)
            if self._closing:
                return
            taken = bytes(data)
            self._guarded(lambda: self._from_server(taken))
        self._settle()

    def ended(self, leg: Leg) -> None:
        if self._over:
            return
        if leg is self._client:
            self._client_ended = True
            if not self._inbox and not self._closing:
                self._guarded(self._client_over)
        else:
            self._server_ended = True
            if not self._closing:
                self._guarded(self._server_over)
        self._connection.half_closed(self._loop)
        self._settle()

    def drained(self, leg: Leg) -> None:
        if not self._over:
            self._settle()

    def lost(self, leg: Leg, why: str) -> None:
        if self._over:
            return
        if self.outbound and leg is self._server and not self.layers.streams and not self._closing:
            self._close_client()  # idle: whatever it got is whole
            return
        failed = leg is self._server and not self.record.bytes_received
        if leg is self._client:
            if self._server is not None:
                self._server.reset()
        elif not self._closing:
            self._client.reset()
        elif not self._client.closed:
            return  # the client still gets what is left for it
        self._finish(why, failed=failed)

    # --- work

    def _work(self) -> None:
        """Hand what the client sent to the parser, for at most a slice of time."""
        until = monotonic() + self._limits.slice
        inbox = self._inbox
        while inbox and not self._closing and not self.layers.raw:
            now = monotonic()
            if now >= until:
                self._later()
                return
            if self._guard is not None:
                with memoryview(inbox)[:_FRAME_BYTES] as view:
                    taken, data = self._guard.feed(view, now, _FRAMES)
                del inbox[:taken]
                if data:
                    self.layers.from_client(data)
                self._count_resets(now)
            elif self._may_read():
                data = bytes(inbox[:_BYTES])
                del inbox[:_BYTES]
                self.layers.from_client(data)
                self._read_again(until)
            else:
                break
        if self.layers.raw:
            self._upgrade()
        elif self._client_ended and not inbox and not self._closing:
            self._client_over()

    def _may_read(self) -> bool:
        """Whether the HTTP/1 parser keeps little enough to be given more."""
        half = self._http1
        if half.held <= self._limits.head_bytes:
            return True
        if half.in_head:
            raise Breach("head-bytes")
        if half.state == half.read_body:
            raise Breach("chunk-line")
        return False  # pipelined requests wait for the one before

    def _read_again(self, until: float) -> None:
        """Begin with the next pipelined request where the last one ended."""
        half = self._http1
        while half.again and not self._closing:
            if monotonic() >= until:
                self._later()
                return
            half.again = False
            self.layers.from_client(b"")
        if half.in_head and half.held > self._limits.head_bytes:
            raise Breach("head-bytes")

    def _from_server(self, data: bytes) -> None:
        guard = self._server_guard
        if guard is not None:
            at = 0
            while at < len(data):
                taken, passed = guard.feed(data[at:], monotonic(), 1 << 20)
                at += taken
                if passed:
                    self.layers.from_server(passed)
            if guard.gone is not None:
                self._pass_goaway()
            return
        self.layers.from_server(data)
        half = self.layers.server
        assert isinstance(half, Http1Half)
        if self.layers.raw:
            self._upgrade()
        elif half.held > self._limits.head_bytes:
            self._bad_application("head-bytes")
        elif (self._http1.again or self._inbox) and not self._resuming:
            self._go_on()  # the response is over: perhaps the next request waits already

    def _go_on(self) -> None:
        if not self.http2:
            self._read_again(monotonic() + self._limits.slice)
        if not self._resuming:
            self._work()

    def _later(self) -> None:
        if not self._resuming:
            self._resuming = True
            self._loop.call_soon(self._resume)

    def _resume(self) -> None:
        self._resuming = False
        if not self._over:
            self._guarded(self._go_on)
            self._settle()

    def _count_resets(self, now: float) -> None:
        half = self.layers.client
        assert isinstance(half, BoundedServer)
        made = half.h2_conn.resets - self._resets_seen
        if made > 0 and self._guard is not None:
            self._resets_seen += made
            self._guard.we_reset(now, made)

    # --- behind 101

    def _upgrade(self) -> None:
        """Hand both legs on, with what was read of them already."""
        client, server = self.layers.client, self.layers.server
        assert isinstance(client, Http1Half)
        assert isinstance(server, Http1Half)
        assert self._server is not None
        asked, answered = client.rest() + bytes(self._inbox), server.rest()
        operation, watcher = self.layers.judge.handed_on()
        self._let_go()
        self.record.bytes_sent -= len(asked)  # counted again when it is passed on
        self.record.bytes_received -= len(answered)
        relay = WatchedUpgrade(self, operation, watcher, self._client, self._server)
        if answered:
            relay.received(self._server, memoryview(answered))
        if asked:
            relay.received(self._client, memoryview(asked))
        for leg, ended in ((self._client, self._client_ended), (self._server, self._server_ended)):
            if ended:
                relay.ended(leg)
        for leg, other in ((self._client, self._server), (self._server, self._client)):
            if not other.unsent:
                leg.resume()
