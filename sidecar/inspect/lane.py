"""The ``inspect`` lane: guards before the parsers, and whose turn it is.

Rules:

1. Bytes pass a guard before the parser sees them; a broken limit ends the connection, with GOAWAY or a status where
   the protocol has one, and is counted.
2. A request is judged when its head is complete, before the application hears of the connection, and again whenever
   the policy changes while it runs (:class:`~sidecar.inspect.judging.Judge`).
3. Everything is a function call: no task and no queue on the way of a request. What one client sends in a burst, or
   the application answers, is worked off in slices, between which all others have their turn
   (:mod:`sidecar.inspect.turns`).
4. What one side does not take is not read from the other; and nothing is kept beyond the limits.
5. A connection of the application serves one client. What the application does to it (ends, resets, closes) happens
   to the client.
6. Behind a response 101 nothing is parsed on the way (:mod:`sidecar.inspect.upgraded`), unless an addon wants messages.
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import Final

from sidecar.dataplane.legs import Leg
from sidecar.http.frames import goaway
from sidecar.inspect.connection import InspectedConnection
from sidecar.inspect.frame_guard import PROTOCOL_ERROR, Breach
from sidecar.inspect.http1 import Http1Half
from sidecar.inspect.http2 import BoundedClient
from sidecar.inspect.upgraded import WatchedUpgrade

#: Frames handed to the parser at once at most, and bytes of them (one large head takes milliseconds), and bytes of
#: HTTP/1, at most and at least: what is between two looks at the clock.
_FRAMES: Final = 16
_FRAME_BYTES: Final = 16_384
_BYTES: Final = 65_536
_LEAST: Final = 512


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
        else:
            self.record.bytes_received += len(data)
            if self._closing:
                return
            self._answers += data
        self._guarded(self._begin)
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
            if not self._answers and not self._closing:
                self._guarded(self._server_over)
        self._connection.half_closed(self._reactor.loop)
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

    def _begin(self) -> None:
        """Do what there is to do, at once or as soon as it is our turn."""
        if self._resuming:
            return
        if self._turns.free(self._reactor):
            self._go_on()
        else:
            self._later()

    def _go_on(self) -> None:
        """Work for a slice of time: what the application said goes first, for it makes room."""
        began = monotonic()
        self._until = began + self._limits.slice
        try:
            if self._answers:
                self._pass_answers()
            if not self._resuming and not self._closing and not self._over:
                if not self.http2:
                    self._read_again()
                if not self._resuming:
                    self._work()
        finally:
            self._turns.used(self._reactor, monotonic() - began)

    def _work(self) -> None:
        """Hand what the client sent to the parser."""
        inbox = self._inbox
        while inbox and not self._closing and not self.layers.raw:
            now = monotonic()
            if now >= self._until:
                self._later()
                return
            if self._guard is not None:
                self._guard.answered = self._http2.answered
                with memoryview(inbox)[:_FRAME_BYTES] as view:
                    taken, data = self._guard.feed(view, now, self._frames)
                del inbox[:taken]
                if data:
                    self.layers.from_client(data)
                self._frames = self._adapted(self._frames, monotonic() - now, 1, _FRAMES)
                self._count_resets(now)
            elif self._may_read():
                data = bytes(inbox[: self._piece])
                del inbox[: self._piece]
                self.layers.from_client(data)
                self._piece = self._adapted(self._piece, monotonic() - now)
                self._read_again()
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

    def _read_again(self) -> None:
        """Begin with the next pipelined request where the last one ended."""
        half = self._http1
        while half.again and not self._closing:
            if monotonic() >= self._until:
                self._later()
                return
            half.again = False
            self.layers.from_client(b"")
        if not self._closing and not self.layers.raw:
            self._may_read()  # what keeps too much now is not read again, and would never be found out

    def _pass_answers(self) -> None:
        """Hand what the application sent to the parser."""
        answers, guard = self._answers, self._server_guard
        while answers and not self._closing and not self._over and not self.layers.raw:
            now = monotonic()
            if now >= self._until:
                self._later()
                return
            if guard is not None:
                with memoryview(answers)[:_FRAME_BYTES] as view:
                    taken, data = guard.feed(view, now, self._answer_frames)
                del answers[:taken]
                if data:
                    self.layers.from_server(data)
                self._answer_frames = self._adapted(self._answer_frames, monotonic() - now, 1, _FRAMES)
                if guard.gone is not None:
                    self._pass_goaway()
                continue
            data = bytes(answers[: self._answer_piece])
            del answers[: self._answer_piece]
            self.layers.from_server(data)
            self._answer_piece = self._adapted(self._answer_piece, monotonic() - now)
            half = self.layers.server
            assert isinstance(half, Http1Half)
            if not self.layers.raw and half.held > self._limits.head_bytes:
                self._bad_application("head-bytes")
        if self.layers.raw and not self._over:
            self._upgrade()
        elif self._server_ended and not answers and not self._closing and not self._over:
            self._server_over()

    def _adapted(self, piece: int, took: float, least: int = _LEAST, most: int = _BYTES) -> int:
        """The size of the next piece, bytes of HTTP/1 or frames: nobody knows before how many chunks or requests it
        holds, but the next one will be like this one."""
        if took > self._limits.slice:
            return max(least, piece >> 1)
        return min(most, piece << 1) if took < self._limits.slice / 2 else piece

    def _later(self) -> None:
        if not self._resuming:
            self._resuming = True
            self._turns.wait(self._reactor, self._resume)

    def _resume(self) -> None:
        self._resuming = False
        if self._guard is not None and self._client.gone and len(self._inbox) > _FRAME_BYTES:
            # nobody is there for the answers, and what it had sent may be many times what a rate allows in that time
            self._client.reset()
            self.lost(self._client, "the other end reset the connection")
        if not self._over:
            self._guarded(self._go_on)
            self._settle()

    def _count_resets(self, now: float) -> None:
        state, guard = self._http2.h2_conn, self._guard
        assert guard is not None
        made = state.resets - self._resets_seen
        refused = state.refused - self._refused_seen
        if refused:
            untold = state.untold - self._untold_seen
            self._refused_seen += refused
            self._untold_seen += untold
            self._tell_of_refused(refused)
            guard.we_refused(now, refused, untold)
        if made > 0:
            self._resets_seen += made
            guard.we_reset(now, made)

    def _tell_of_refused(self, count: int) -> None:
        fabric = self.context.fabric
        fabric.guards.counters.requests_refused += count
        text = "a client of port %d at %s had %d requests alive at once; what came beyond was refused (REFUSED_STREAM)"
        source = self.record.source_identity or self.record.source.address
        fabric.complaints.say(logging.INFO, text, self.context.port, source, self._limits.streams)

    def _pass_goaway(self) -> None:
        """The application drains: the client is told, and what runs goes on."""
        theirs, mine, half = self._server_guard, self._guard, self.layers.server
        assert theirs is not None
        assert mine is not None
        assert isinstance(half, BoundedClient)
        said, theirs.gone = theirs.gone, None
        if said is not None:
            last = half.client_stream(said.last_stream) or mine.last_stream
            self._client.write(goaway(last, said.code if said.code <= 0xD else PROTOCOL_ERROR))

    # --- behind 101

    def _upgrade(self) -> None:
        """Hand both legs on, with what was read of them already."""
        client, server = self.layers.client, self.layers.server
        assert isinstance(client, Http1Half)
        assert isinstance(server, Http1Half)
        assert self._server is not None
        asked, answered = client.rest() + bytes(self._inbox), server.rest() + bytes(self._answers)
        operation, watcher = self.layers.judge.handed_on()
        self._let_go()
        self.context.fabric.reactor.chores.soon(self.layers.let_go)  # a layer is at work now
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
