"""The ``inspect`` lane: the guards, mitmproxy's layers and the two legs of one connection, and who asks whom.

Rules:

1. Bytes pass a guard before the parser sees them; a broken limit ends the connection, with GOAWAY or a status where
   the protocol has one, and is counted.
2. A request is judged when its head is complete, before the application hears of the connection, and again whenever
   the policy changes while it runs (:class:`~sidecar.inspect.judging.Judge`).
3. Everything is a function call: no task, no queue, no timer on the way of a request. What one client sends in a burst
   is worked off in slices, between which all others have their turn.
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

from mitmproxy.connection import Client, ConnectionState, Server
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import Layer
from mitmproxy.proxy.layers.http import DropStream, SendHttp
from mitmproxy.proxy.layers.http._base import HttpConnection, HttpEvent, ReceiveHttp
from mitmproxy.proxy.layers.http._events import ErrorCode, RequestHeaders

from sidecar.dataplane.detect import Kind
from sidecar.dataplane.legs import Leg
from sidecar.inspect.frame_guard import PROTOCOL_ERROR, Breach, FrameGuard, goaway
from sidecar.inspect.http1 import HEAD_TOO_LARGE, TOO_SLOW, Http1Half, StrictClient, StrictServer
from sidecar.inspect.http2 import BoundedClient, BoundedHalf, BoundedServer
from sidecar.inspect.hub import Inspection
from sidecar.inspect.judging import Judge
from sidecar.inspect.options import LayerOptions
from sidecar.inspect.stream import Stream

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

_UNUSED: Final = Inspection()


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
        hub = fabric.taps
        self.hub: Inspection = hub if isinstance(hub, Inspection) else _UNUSED
        self._limits = self.hub.settings.limits
        self._client_leg = client
        self._server_leg: Leg | None = None
        self._loop = fabric.reactor.loop
        self.http2 = kind is Kind.HTTP2
        self._inbox = bytearray()
        self._server_inbox = bytearray()
        self._resuming = False
        self._over = False
        self._closing = False  # nothing of the client counts any more, it gets what is left
        self._raw = False  # behind 101: bytes as they are
        self._client_ended = False
        self._client_told = False
        self._server_ended = False
        self._thrown_away = 0
        self._timer: asyncio.TimerHandle | None = None
        self._held_since: tuple[float, int] | None = None
        self._head_since: tuple[int, float] | None = None  # HTTP/1: of which request the head is on its way
        self._sent = 0
        self._resets_seen = 0
        self.judge = Judge(self, self.hub)

        alpn = b"h2" if self.http2 else b"http/1.1"
        now = self.record.opened_at
        opened = ConnectionState.OPEN
        source = (self.record.source.address or "", 0)
        here = (context.application.host, context.application.port)
        self._client = Client(peername=source, sockname=here, state=opened, timestamp_start=now, alpn=alpn)
        options = LayerOptions(stream_large_bodies=self.judge.collecting)
        self._context = Context(self._client, options)  # type: ignore[arg-type]  # all of the options that are asked for
        server = Server(address=here, peername=here, timestamp_start=now, alpn=alpn)
        server.state = opened
        self._server = self._context.server = server
        self._streams: dict[int, Stream] = {}
        self._halves: dict[object, HttpConnection] = {}
        self._guard = FrameGuard(self._limits, from_client=True) if self.http2 else None
        self._server_guard = FrameGuard(self._limits, from_client=False) if self.http2 else None
        self._connection.owned_by(self.reset)
        self.hub.enter(self, fabric.authority)
        half: HttpConnection
        if self.http2:
            half = BoundedServer(_fork(self._context), self._limits)
        else:
            half = StrictServer(_fork(self._context), self._limits.head_bytes, self.judge.unreadable)
        self.client_half = half
        self._halves[self._client] = half
        self._server_half: HttpConnection | None = None
        self._pump(half, events.Start())

    # --- what the legs tell

    def received(self, leg: Leg, data: memoryview) -> None:
        if self._over:
            return
        if leg is self._client_leg:
            self.record.bytes_sent += len(data)
            if self._closing:
                self._throw_away(len(data))
                return
            if self._raw:
                self._pass_on(self._server_leg, data, from_client=True)
            else:
                self._inbox += data
                if not self._resuming:
                    self._guarded(self._work)
        else:
            self.record.bytes_received += len(data)
            if self._closing:
                return
            if self._raw:
                self._pass_on(self._client_leg, data, from_client=False)
            else:
                self._server_inbox += data
                self._guarded(self._from_server)
        self._settle()

    def ended(self, leg: Leg) -> None:
        if self._over:
            return
        if leg is self._client_leg:
            self._client_ended = True
            if self._closing:
                self._finish_when_sent()
            elif self._raw:
                self._end(self._server_leg)
            elif not self._inbox:
                self._guarded(self._client_over)
        else:
            self._server_ended = True
            if self._raw:
                self._end(self._client_leg)
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
        failed = leg is self._server_leg and not self.record.bytes_received
        if leg is self._client_leg:
            if self._server_leg is not None:
                self._server_leg.reset()
        elif not self._closing:
            self._client_leg.reset()
        elif not self._client_leg.closed:
            return  # the client still gets what is left for it
        self._finish(why, failed=failed)

    # --- what others tell

    def reset(self) -> None:
        """The policy or a limit of the data path ends it."""
        if not self._over:
            self._client_leg.reset()
            if self._server_leg is not None:
                self._server_leg.reset()
            self._finish("ended by the policy")

    def recheck(self) -> None:
        """The policy has changed."""
        if self._over:
            return
        denied = self.judge.denied_now(list(self._streams.values()))
        if not denied:
            return
        if not self.http2:
            self.reset()
            return
        self._guarded(lambda: self._end_streams(denied))
        self._settle()

    def leave(self) -> None:
        """We are draining: no new requests on this connection, please."""
        if self._over or self._closing or self._raw:
            return
        if self._guard is not None:
            self._client_leg.write(goaway(self._guard.last_stream, 0))
        elif not self._streams and isinstance(self.client_half, Http1Half) and not self.client_half.held:
            self._close_client()
            self._settle()

    # --- work

    def _work(self) -> None:
        """Hand what the client sent to the parser, for at most a slice of time."""
        until = monotonic() + self._limits.slice
        inbox = self._inbox
        while inbox and not self._closing and not self._raw:
            now = monotonic()
            if now >= until:
                self._later()
                return
            if self._guard is not None:
                with memoryview(inbox) as view:
                    taken, data = self._guard.feed(view, now, _FRAMES)
                del inbox[:taken]
                if data:
                    self._pump(self.client_half, events.DataReceived(self._client, data))
                self._count_resets(now)
            elif self._may_read():
                data = bytes(inbox[:_BYTES])
                del inbox[:_BYTES]
                self._pump(self.client_half, events.DataReceived(self._client, data))
                self._read_again(until)
            else:
                break
        if self._raw:
            self._enter_raw()
        elif self._client_ended and not inbox and not self._closing:
            self._client_over()

    def _may_read(self) -> bool:
        """Whether the HTTP/1 parser keeps little enough to be given more."""
        half = self.client_half
        assert isinstance(half, StrictServer)
        if half.held > self._limits.head_bytes:
            if half.in_head:
                raise Breach("head-bytes")
            if half.state == half.read_body:
                raise Breach("chunk-line")
            return False  # pipelined requests wait for the one before
        return True

    def _read_again(self, until: float) -> None:
        """Begin with the next pipelined request where the last one ended."""
        half = self.client_half
        assert isinstance(half, StrictServer)
        while half.again and not self._closing:
            if monotonic() >= until:
                self._later()
                return
            half.again = False
            self._pump(half, events.DataReceived(self._client, b""))
        if half.in_head and half.held > self._limits.head_bytes:
            raise Breach("head-bytes")

    def _from_server(self) -> None:
        inbox = self._server_inbox
        half = self._server_half
        assert half is not None
        if self._server_guard is not None:
            now = monotonic()
            while inbox:
                with memoryview(inbox) as view:
                    taken, data = self._server_guard.feed(view, now, 1 << 20)
                del inbox[:taken]
                if data:
                    self._pump(half, events.DataReceived(self._server, data))
            if self._server_guard.gone is not None:
                self._pass_goaway()
        else:
            data = bytes(inbox)
            inbox.clear()
            assert isinstance(half, StrictClient)
            self._pump(half, events.DataReceived(self._server, data))
            if half.held > self._limits.head_bytes:
                self._bad_application("head-bytes")
                return
            if self._raw:
                self._enter_raw()
                return
            self._work_on()

    def _work_on(self) -> None:
        """A response is over: perhaps the next request waits already."""
        half = self.client_half
        if isinstance(half, StrictServer) and (half.again or self._inbox) and not self._resuming:
            until = monotonic() + self._limits.slice
            self._read_again(until)
            if not self._resuming:
                self._work()

    def _later(self) -> None:
        if not self._resuming:
            self._resuming = True
            self._loop.call_soon(self._resume)

    def _resume(self) -> None:
        self._resuming = False
        if self._over:
            return

        def work() -> None:
            if not self.http2:
                self._read_again(monotonic() + self._limits.slice)
            if not self._resuming:
                self._work()

        self._guarded(work)
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
            self._client_leg.reset()
            self._finish("the application could not be called", failed=True)
        except Exception:
            _log.exception("a fault in the inspect lane ended one connection; please report it")
            self.reset()

    # --- what mitmproxy's layers ask

    def _pump(self, layer: Layer, event: events.Event) -> None:
        """Give a layer an event and do what it asks, each thing before the layer goes on."""
        generator = layer.handle_event(event) if isinstance(layer, Stream) else layer._handle_event(event)
        for command in generator:
            if isinstance(command, commands.SendData):
                self._send(command.connection, command.data)
            elif isinstance(command, ReceiveHttp):
                self._receive(command.event)
            elif isinstance(command, SendHttp):
                half = self._halves.get(command.connection)
                if half is not None:
                    self._pump(half, command.event)
            elif isinstance(command, DropStream):
                self._drop(command.stream_id)
            elif isinstance(command, commands.CloseConnection):
                self._close(command.connection, half=getattr(command, "half_close", False))
            elif not isinstance(command, commands.Log | commands.RequestWakeup):
                raise AssertionError(f"unexpected: {type(command).__name__}")

    def _receive(self, event: HttpEvent) -> None:
        stream_id = event.stream_id
        if isinstance(event, RequestHeaders):
            stream = self._streams[stream_id] = Stream(_fork(self._context), stream_id, self)
            self._pump(stream, event)
            return
        found = self._streams.get(stream_id)
        if found is not None:
            self._pump(found, event)

    def _send(self, connection: object, data: bytes) -> None:
        if connection is self._client:
            self._sent += len(data)
            self._client_leg.write(data)
        elif self._server_leg is not None:
            self._server_leg.write(data)

    def _drop(self, stream_id: int) -> None:
        stream = self._streams.pop(stream_id, None)
        if stream is not None:
            self.judge.over(stream)
        if isinstance(self._server_half, BoundedClient):
            self._server_half.forget(stream_id)
        if isinstance(self.client_half, BoundedServer):
            self.client_half.streams.pop(stream_id, None)

    def _close(self, connection: object, *, half: bool) -> None:
        if connection is self._client:
            self._close_client()
        elif self._server_leg is not None and not self._raw:
            if half or not self._server_ended:
                self._server_leg.end()
            if not half and not self.http2:
                self._server.state = ConnectionState.CLOSED

    # --- what streams ask

    def reach_application(self) -> list[commands.Command]:
        """Have a connection to the application; it may still be under way, what is written waits then.

        :return: nothing more to do
        """
        if self._server_half is not None:
            return []
        leg = self.context.dial(self)
        if leg is None:
            raise _NoApplicationError
        self._server_leg = leg
        half: HttpConnection
        if self.http2:
            half = client = BoundedClient(_fork(self._context), self._limits)
            server = self.client_half
            assert isinstance(server, BoundedHalf)
            server.other, client.other = client, server
        else:
            half = StrictClient(_fork(self._context))
        self._server_half = half
        self._halves[self._server] = half
        self._pump(half, events.Start())
        return []

    def discarded(self, size: int) -> None:
        """Bytes of a refused request came."""
        self._thrown_away += size
        if self._thrown_away > self._limits.discarded:
            raise Breach("discarded")

    def upgraded(self, stream: Stream) -> Layer | None:
        """A response 101 passes; what reads what is behind it? None: nobody, the lane relays."""
        layer = self.judge.upgraded(stream)
        if layer is None:
            self._raw = True
        else:
            for half in (self.client_half, self._server_half):
                if isinstance(half, Http1Half):
                    half.piped = True
        return layer

    @property
    def leaving(self) -> bool:
        """Whether the client is to be told with its next response that it is the last one."""
        return self.context.fabric.draining

    # --- behind 101

    def _enter_raw(self) -> None:
        client, server = self.client_half, self._server_half
        assert isinstance(client, Http1Half)
        assert isinstance(server, Http1Half)
        first, answered = client.rest() + bytes(self._inbox), server.rest() + bytes(self._server_inbox)
        self._inbox.clear()
        self._server_inbox.clear()
        if first:
            self._pass_on(self._server_leg, memoryview(first), from_client=True)
        if answered:
            self._pass_on(self._client_leg, memoryview(answered), from_client=False)
        if self._client_ended:
            self._end(self._server_leg)
        if self._server_ended:
            self._end(self._client_leg)

    def _pass_on(self, leg: Leg | None, data: memoryview, *, from_client: bool) -> None:
        self.judge.watch(from_client, data)
        if leg is not None:
            leg.write(data)

    def _end(self, leg: Leg | None) -> None:
        if leg is not None:
            leg.end()

    # --- ends

    def _client_over(self) -> None:
        """It sends no more."""
        if self._client_told:
            return
        self._client_told = True
        self._client.state &= ~ConnectionState.CAN_READ
        half = self.client_half
        self._pump(half, events.ConnectionClosed(self._client))
        if self.http2 and not self._closing:
            self._close_client()

    def _server_over(self) -> None:
        self._server.state &= ~ConnectionState.CAN_READ
        if isinstance(self.client_half, StrictServer):
            self.client_half.application_gone = True
        half = self._server_half
        assert half is not None
        if self.http2:  # the client sees what it would have seen: its connection ends
            self._fail_streams("the application ended the connection")
        else:
            self._pump(half, events.ConnectionClosed(self._server))
            if isinstance(half, Http1Half) and self._streams and half.state != half.done:
                return
        self._close_client()

    def _end_streams(self, streams: list[Stream]) -> None:
        for stream in streams:
            for command in stream.abort(ErrorCode.CANCEL, "denied"):
                if isinstance(command, SendHttp):
                    half = self._halves.get(command.connection)
                    if half is not None:
                        self._pump(half, command.event)
                elif isinstance(command, DropStream):
                    self._drop(command.stream_id)

    def _fail_streams(self, why: str) -> None:
        for stream_id, stream in list(self._streams.items()):
            self.judge.failed(stream, why)
            self._drop(stream_id)

    def _close_client(self) -> None:
        """The client gets what was written, and then the end."""
        if self._closing or self._over:
            return
        self._closing = True
        self._client.state = ConnectionState.CLOSED
        self._inbox.clear()
        self._client_leg.end()
        self._client_leg.resume()
        if self._server_leg is not None:
            self._server_leg.end()
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
        if self._guard is not None:
            last = self._guard.last_stream
            self._client_leg.write(goaway(last, breach.code, breach.kind.encode()))
        elif not self._streams and isinstance(self.client_half, Http1Half) and self.client_half.in_head:
            self._client_leg.write(TOO_SLOW if breach.kind == "head-seconds" else HEAD_TOO_LARGE)
        self._client_leg.end()
        if self._server_leg is not None:
            self._server_leg.reset()
        self._finish(breach.kind)
        self._client_leg.lane = _Draining(self._client_leg, self._limits.discarded)

    def _bad_application(self, kind: str) -> None:
        self.hub.breaches[f"application-{kind}"] += 1
        self._client_leg.reset()
        if self._server_leg is not None:
            self._server_leg.reset()
        self._finish(f"the application broke a limit: {kind}")

    def _finish_when_sent(self) -> None:
        if self._client_ended and not self._client_leg.unsent:
            self._finish("")

    def _finish(self, why: str, *, failed: bool = False) -> None:
        if self._over:
            return
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._fail_streams(why or "the connection is over")
        self._inbox.clear()
        self._server_inbox.clear()
        self._halves.clear()
        self.hub.left(self)
        if self._server_leg is not None and not self._server_leg.closed and not self._raw:
            self._server_leg.reset() if not self._server_ended else self._server_leg.end()
        self._connection.finish(failed=failed)

    # --- pace

    def _settle(self) -> None:
        """Read where there is room, and look at the clock where something hangs."""
        if self._over:
            return
        client, server = self._client_leg, self._server_leg
        if self._closing:
            if self._client_ended and not client.unsent:
                self._finish("")
            return
        if self._raw and self._client_ended and self._server_ended:
            if not client.unsent and (server is None or not server.unsent):
                self._finish("")
            return
        full = (
            client.unsent > _UNSENT
            or self._resuming
            or len(self._inbox) >= _INBOX
            or (server is not None and server.unsent > 0)
        )
        if not full and not self.http2 and not self._raw:
            half = self.client_half
            assert isinstance(half, StrictServer)
            full = half.held > self._limits.head_bytes
        client.pause() if full else client.resume()
        if server is not None:
            server.pause() if client.unsent else server.resume()
        self._watch_clock()

    def _watch_clock(self) -> None:
        """A timer runs only while a head is on its way or a receiver keeps us waiting."""
        if self._hanging() and self._timer is None:
            self._timer = self._loop.call_later(self._limits.head_seconds / 4, self._look)

    def _hanging(self) -> bool:
        if self._guard is not None:
            return self._guard.head_since is not None or self._kept() > 0
        half = self.client_half
        if not isinstance(half, StrictServer) or self._raw or not half.in_head:
            self._head_since = None
            return False
        if self._head_since is None or self._head_since[0] != half.stream_id:
            self._head_since = (half.stream_id, monotonic())
        return True

    def _kept(self) -> int:
        """Bytes that the client gives no window for."""
        return self.client_half.holds if isinstance(self.client_half, BoundedHalf) else 0

    def _look(self) -> None:
        self._timer = None
        if self._over or self._closing:
            return
        now = monotonic()
        if self._guard is not None:
            began = self._guard.head_since
            if began is not None and now - began >= self._limits.head_seconds:
                self._breach(Breach("head-seconds"))
                return
            if self._kept():
                if self._held_since is None or self._held_since[1] != self._sent:
                    self._held_since = (now, self._sent)
                elif now - self._held_since[0] >= self._limits.stall:
                    self._breach(Breach("stall"))
                    return
            else:
                self._held_since = None
        elif self._hanging() and self._head_since and now - self._head_since[1] >= self._limits.head_seconds:
            self._breach(Breach("head-seconds"))
            return
        self._watch_clock()

    def _count_resets(self, now: float) -> None:
        half = self.client_half
        assert isinstance(half, BoundedServer)
        made = half.h2_conn.resets - self._resets_seen
        if made > 0:
            self._resets_seen += made
            assert self._guard is not None
            self._guard.we_reset(now, made)

    def _pass_goaway(self) -> None:
        """The application drains: the client is told, and what runs goes on."""
        guard, mine = self._server_guard, self._guard
        assert guard is not None
        assert mine is not None
        said, guard.gone = guard.gone, None
        if said is None:
            return
        code = said.code if said.code <= 0xD else PROTOCOL_ERROR
        half = self._server_half
        assert isinstance(half, BoundedClient)
        last = half.client_stream(said.last_stream) or mine.last_stream
        self._client_leg.write(goaway(last, code))


def _fork(context: Context) -> Context:
    """A context of the same connections; mitmproxy's own makes a new connection first and throws it away."""
    made = Context.__new__(Context)
    made.client, made.server, made.options, made.layers = context.client, context.server, context.options, []
    return made


class _NoApplicationError(Exception):
    """The application could not be called."""


class _Draining:
    """Reads what a client that was cut off still sends, so that it gets our last words, up to a bound."""

    __slots__ = ("_left", "_leg")

    def __init__(self, leg: Leg, left: int) -> None:
        self._leg = leg
        self._left = left
        leg.resume()

    def received(self, leg: Leg, data: memoryview) -> None:
        self._left -= len(data)
        if self._left < 0:
            leg.reset()

    def ended(self, leg: Leg) -> None: ...
    def drained(self, leg: Leg) -> None: ...
    def lost(self, leg: Leg, why: str) -> None: ...
