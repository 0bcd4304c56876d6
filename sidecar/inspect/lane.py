"""The ``inspect`` lane: the legs of one connection, the guards before the parsers, and how it ends.

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
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Final

from sidecar.dataplane.detect import Kind
from sidecar.dataplane.legs import Leg
from sidecar.inspect.frame_guard import PROTOCOL_ERROR, Breach, FrameGuard, goaway
from sidecar.inspect.http1 import HEAD_TOO_LARGE, TOO_SLOW, Http1Half, StrictServer
from sidecar.inspect.http2 import BoundedClient, BoundedServer
from sidecar.inspect.hub import Inspection
from sidecar.inspect.judging import Judge
from sidecar.inspect.layers import Layers
from sidecar.inspect.linger import Linger

if TYPE_CHECKING:
    from sidecar.dataplane.serving import LaneContext

_log = logging.getLogger(__name__)

#: Frames handed to the parser at once, and bytes of HTTP/1: what is between two looks at the clock.
_FRAMES: Final = 16
_BYTES: Final = 65_536
#: Bytes that wait for their turn before the client is not read any more.
_INBOX: Final = 65_536
#: Bytes not taken by the client before it is not read any more: it would only ask for more.
_UNSENT: Final = 65_536


class InspectLane:
    """One connection to our application.

    :param context: what the data path knows of it
    :param client: where its bytes come from
    :param kind: what they are
    """

    def __init__(self, context: LaneContext, client: Leg, kind: Kind) -> None:
        self.context = context
        fabric = context.fabric
        self._connection = context.connection
        self.record = context.connection.record
        self.hub = Inspection.of(fabric)
        self._limits = limits = self.hub.settings.limits
        self._client = client
        self._server: Leg | None = None
        self._loop = fabric.reactor.loop
        self.http2 = http2 = kind is Kind.HTTP2
        self._inbox = bytearray()  # waits for its turn
        self._resuming = False
        self._over = False
        self._closing = False  # nothing of the client counts any more, it gets what is left
        self._raw = False  # behind 101: bytes as they are
        self._client_ended = self._client_told = self._server_ended = False
        self._thrown_away = 0
        self._timer: asyncio.TimerHandle | None = None
        self._held_since: tuple[float, int] | None = None  # a window is full: since when, and what was sent then
        self._head_since: tuple[int, float] | None = None  # HTTP/1: of which request the head is on its way
        self._sent = 0
        self._resets_seen = 0
        self._guard = FrameGuard(limits, from_client=True) if http2 else None
        self._server_guard = FrameGuard(limits, from_client=False) if http2 else None
        self._connection.owned_by(self.reset)
        self.hub.enter(self, fabric.authority)
        source, opened = self.record.source.address or "", self.record.opened_at
        judge = Judge(self, self.hub)
        self.layers = Layers(self, judge, limits, source, context.application, opened, http2=http2)
        self.layers.start()

    @property
    def leaving(self) -> bool:
        """Whether the client is to be told with its next response that it is the last one."""
        return self.context.fabric.draining

    # --- what the legs tell

    def received(self, leg: Leg, data: memoryview) -> None:
        if self._over:
            return
        if leg is self._client:
            self.record.bytes_sent += len(data)
            if self._closing:
                self._throw_away(len(data))
                return
            if self._raw:
                self._pass_on(self._server, data, from_client=True)
            else:
                self._inbox += data
                if not self._resuming:
                    self._guarded(self._work)
        else:
            self.record.bytes_received += len(data)
            if self._closing:
                return
            if self._raw:
                self._pass_on(self._client, data, from_client=False)
            else:
                taken = bytes(data)
                self._guarded(lambda: self._from_server(taken))
        self._settle()

    def ended(self, leg: Leg) -> None:
        if self._over:
            return
        if leg is self._client:
            self._client_ended = True
            if self._raw and self._server is not None:
                self._server.end()
            elif not self._inbox and not self._closing:
                self._guarded(self._client_over)
        else:
            self._server_ended = True
            if self._raw:
                self._client.end()
            elif not self._closing:
                self._guarded(self._server_over)
        self._connection.half_closed(self._loop)
        self._settle()

    def drained(self, leg: Leg) -> None:
        if not self._over:
            self._settle()

    def lost(self, leg: Leg, why: str) -> None:
        if self._over:
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

    # --- what others tell

    def reset(self) -> None:
        """The policy or a limit of the data path ends it."""
        if not self._over:
            self._client.reset()
            if self._server is not None:
                self._server.reset()
            self._finish("denied")

    def recheck(self) -> None:
        """The policy has changed."""
        if self._over:
            return
        denied = self.layers.judge.denied_now(list(self.layers.streams.values()))
        if denied and not self.http2:
            self.reset()
        elif denied:
            self._guarded(lambda: self.layers.end(denied))
            self._settle()

    def leave(self) -> None:
        """We are draining: no new requests on this connection, please."""
        if self._over or self._closing or self._raw:
            return
        half = self.layers.client
        if self._guard is not None:
            self._client.write(goaway(self._guard.last_stream, 0))
        elif not self.layers.streams and isinstance(half, Http1Half) and not half.held:
            self._close_client()
            self._settle()

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
                with memoryview(inbox) as view:
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
            self._enter_raw()
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

    @property
    def _http1(self) -> StrictServer:
        half = self.layers.client
        assert isinstance(half, StrictServer)
        return half

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
            self._enter_raw()
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

    def _guarded(self, work: Callable[[], None]) -> None:
        """Do what may break a limit, or find a fault in a parser; neither gets further than this connection."""
        if self._over:
            return
        try:
            work()
        except Breach as breach:
            self._breach(breach)
        except _NoApplicationError:
            self._client.reset()
            self._finish("the application could not be called", failed=True)
        except Exception:
            _log.exception("a fault in the inspect lane ended one connection; please report it")
            self.reset()

    # --- what the layers ask

    def send(self, data: bytes, *, to_client: bool) -> None:
        if to_client:
            self._sent += len(data)
            self._client.write(data)
        elif self._server is not None:
            self._server.write(data)

    def close(self, *, client: bool) -> None:
        if client:
            self._close_client()
        elif self._server is not None and not self.layers.raw:
            self._server.end()

    def call_application(self) -> None:
        """:raises _NoApplicationError: when it could not be called"""
        self._server = self.context.dial(self)
        if self._server is None:
            raise _NoApplicationError

    # --- behind 101

    def _enter_raw(self) -> None:
        self._raw = True
        client, server = self.layers.client, self.layers.server
        assert isinstance(client, Http1Half)
        assert isinstance(server, Http1Half)
        asked, answered = client.rest() + bytes(self._inbox), server.rest()
        self._inbox.clear()
        if asked:
            self._pass_on(self._server, memoryview(asked), from_client=True)
        if answered:
            self._pass_on(self._client, memoryview(answered), from_client=False)
        if self._client_ended and self._server is not None:
            self._server.end()
        if self._server_ended:
            self._client.end()

    def _pass_on(self, leg: Leg | None, data: memoryview, *, from_client: bool) -> None:
        self.layers.judge.watch(from_client, data)
        if leg is not None:
            leg.write(data)

    # --- ends

    def _client_over(self) -> None:
        """It sends no more."""
        if not self._client_told:
            self._client_told = True
            self.layers.client_ended()
            if self.http2:
                self._close_client()

    def _server_over(self) -> None:
        self.layers.server_ended()
        half = self.layers.server
        if isinstance(half, Http1Half) and self.layers.streams and half.state != half.done:
            return
        self._close_client()

    def _close_client(self) -> None:
        """The client gets what was written, and then the end."""
        if self._closing or self._over:
            return
        self._closing = True
        self._inbox.clear()
        self._client.end()
        self._client.resume()
        if self._server is not None:
            self._server.end()
        self._connection.half_closed(self._loop)

    def _throw_away(self, size: int) -> None:
        """The connection is over and the client has not noticed yet."""
        self._thrown_away += size
        if self._thrown_away > self._limits.discarded:
            self.reset()

    def _breach(self, breach: Breach) -> None:
        if self._over:
            return
        self.hub.breaches[breach.kind] += 1
        text = "a client of port %d at %s was cut off: %s"
        source = self.record.source_identity or self.record.source.address
        self.context.fabric.complaints.say(logging.WARNING, text, self.context.port, source, breach.kind)
        half = self.layers.client
        if self._guard is not None:
            self._client.write(goaway(self._guard.last_stream, breach.code, breach.kind.encode()))
        elif not self.layers.streams and isinstance(half, Http1Half) and half.in_head:
            self._client.write(TOO_SLOW if breach.kind == "head-seconds" else HEAD_TOO_LARGE)
        if self._server is not None:
            self._server.reset()
        self._finish(breach.kind)
        Linger(self._loop, self._client, self._limits.discarded, self._limits.head_seconds)

    def _bad_application(self, kind: str) -> None:
        self.hub.breaches[f"application-{kind}"] += 1
        self._client.reset()
        if self._server is not None:
            self._server.reset()
        self._finish(f"the application broke a limit: {kind}")

    def _finish(self, why: str, *, failed: bool = False) -> None:
        if self._over:
            return
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.layers.fail(why or "the connection is over")
        self._inbox.clear()
        self.hub.left(self)
        if self._server is not None and not self._server_ended and not self._server.closed:
            self._server.reset()
        self._connection.finish(failed=failed)

    # --- pace

    def _settle(self) -> None:
        """Read where there is room, and look at the clock where something hangs."""
        if self._over:
            return
        client, server = self._client, self._server
        if self._closing:
            if self._client_ended and not client.unsent:
                self._finish("")
            return
        if self._raw and self._client_ended and self._server_ended:
            if not client.unsent and (server is None or not server.unsent):
                self._finish("")
            return
        client.pause() if self._full() else client.resume()
        if server is not None:
            server.pause() if client.unsent else server.resume()
        if self._hanging() and self._timer is None:
            self._timer = self._loop.call_later(self._limits.head_seconds / 4, self._look)

    def _full(self) -> bool:
        """Whether the client is not to be read for now."""
        if self._resuming or self._client.unsent > _UNSENT or len(self._inbox) >= _INBOX:
            return True
        if self._server is not None and self._server.unsent > 0:
            return True
        return not self.http2 and not self._raw and self._http1.held > self._limits.head_bytes

    def _hanging(self) -> bool:
        """Whether a head is on its way, or a receiver keeps us waiting."""
        if self._guard is not None:
            return self._guard.head_since is not None or self._kept > 0
        half = self._http1
        if self._raw or not half.in_head:
            self._head_since = None
            return False
        if self._head_since is None or self._head_since[0] != half.stream_id:
            self._head_since = (half.stream_id, monotonic())
        return True

    @property
    def _kept(self) -> int:
        """Bytes that the client gives no window for."""
        half = self.layers.client
        return half.holds if isinstance(half, BoundedServer) else 0

    def _look(self) -> None:
        self._timer = None
        if self._over or self._closing:
            return
        now = monotonic()
        began = self._guard.head_since if self._guard is not None else None
        if self._guard is None and self._hanging() and self._head_since is not None:
            began = self._head_since[1]
        if began is not None and now - began >= self._limits.head_seconds:
            self._breach(Breach("head-seconds"))
        elif self._stalled(now):
            self._breach(Breach("stall"))
        else:
            self._settle()

    def _stalled(self, now: float) -> bool:
        if not self._kept:
            self._held_since = None
        elif self._held_since is None or self._held_since[1] != self._sent:
            self._held_since = (now, self._sent)
        else:
            return now - self._held_since[0] >= self._limits.stall
        return False

    def _count_resets(self, now: float) -> None:
        half = self.layers.client
        assert isinstance(half, BoundedServer)
        made = half.h2_conn.resets - self._resets_seen
        if made > 0 and self._guard is not None:
            self._resets_seen += made
            self._guard.we_reset(now, made)

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


class _NoApplicationError(Exception):
    """The application could not be called."""
