"""One inspected connection: what is known of it, at which pace it goes, and how it ends.

What is done with its bytes is the matter of :mod:`sidecar.inspect.lane`, where the rules are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Final

from graph.model import Direction
from sidecar.dataplane.chores import Alarm
from sidecar.dataplane.detect import Kind
from sidecar.dataplane.legs import Leg
from sidecar.http.frames import ANY_STREAM, goaway
from sidecar.http.site import HttpSite
from sidecar.inspect.frame_guard import Breach, FrameGuard
from sidecar.inspect.http1 import HEAD_TOO_LARGE, TOO_SLOW, Http1Half, StrictServer
from sidecar.inspect.http2 import BoundedClient, BoundedServer
from sidecar.inspect.hub import Inspection
from sidecar.inspect.judging import Judge
from sidecar.inspect.layers import Layers
from sidecar.inspect.linger import Linger

if TYPE_CHECKING:
    from sidecar.dataplane.lane_context import LaneContext

_log = logging.getLogger(__name__)

#: Bytes that wait for their turn before the client is not read any more.
_INBOX: Final = 65_536
#: Bytes not taken by the client before it is not read any more: it would only ask for more.
_UNSENT: Final = 65_536
#: Bytes of HTTP/1 handed to the parser at once, until it is known what they cost.
_PIECE: Final = 4096
#: Frames of HTTP/2, likewise.
_FEW: Final = 4


class NoApplicationError(Exception):
    """The application could not be called."""


class InspectedConnection:
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
        #: Our application is the client, and what is outside the mesh takes the application's place.
        self.outbound = self.record.direction is Direction.OUTBOUND
        self.hub = Inspection.of(fabric)
        self.site = HttpSite.of(fabric)
        self._limits = limits = self.hub.settings.limits
        self._client = client
        self._server: Leg | None = None
        self._reactor = fabric.reactor
        self.http2 = http2 = kind is Kind.HTTP2
        self._inbox = bytearray()  # of the client, waits for its turn
        self._answers = bytearray()  # of the application, likewise
        self._turns = self.hub.turns
        self._resuming = False  # somebody will call us
        self._until = 0.0  # when our slice of time is over
        self._piece = self._answer_piece = _PIECE
        self._frames = self._answer_frames = _FEW
        self._over = False
        self._closing = False  # nothing of the client counts any more, it gets what is left
        self._client_ended = self._client_told = self._server_ended = False
        self._thrown_away = 0
        self._left: float | None = None  # since when the client knows that it should go
        self._timer: Alarm | None = None
        self._held_since: tuple[float, int] | None = None  # a window is full: since when, and what was sent then
        self._head_since: tuple[int, float] | None = None  # HTTP/1: of which request the head is on its way
        self._sent = 0
        self._resets_seen = self._refused_seen = self._untold_seen = 0
        self._guard = FrameGuard(limits, from_client=True) if http2 else None
        self._server_guard = FrameGuard(limits, from_client=False) if http2 else None
        client.give_way()
        self._connection.owned_by(self.reset)
        self.hub.enter(self, fabric.authority)
        self.site.watch(self, context.port)
        source, opened = self.record.source.address or "", self.record.opened_at
        judge = Judge(self, self.hub)
        host, tls = (self.record.destination.host, context.tls) if self.outbound else ("", False)
        self.layers = Layers(self, judge, limits, source, context.application, opened, http2=http2, host=host, tls=tls)
        self.layers.start()

    def begin(self) -> None:
        """Take the application's connection, which is there, before its client asks for anything: so that its end is
        the client's too."""

        def reach() -> None:
            self.layers.reach_application()

        self._guarded(reach)
        self._settle()

    @property
    def leaving(self) -> bool:
        """Whether the client is to be told with its next response that it is the last one."""
        return self.context.fabric.draining

    @property
    def _http1(self) -> StrictServer:
        half = self.layers.client
        assert isinstance(half, StrictServer)
        return half

    @property
    def _http2(self) -> BoundedServer:
        half = self.layers.client
        assert isinstance(half, BoundedServer)
        return half

    # --- what the legs tell: see sidecar.inspect.lane

    def received(self, leg: Leg, data: memoryview) -> None:
        raise NotImplementedError

    def ended(self, leg: Leg) -> None:
        raise NotImplementedError

    def drained(self, leg: Leg) -> None:
        raise NotImplementedError

    def lost(self, leg: Leg, why: str) -> None:
        raise NotImplementedError

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

    def judge_again(self) -> None:
        """The site tells of a new policy, too; the hub does it once its verdicts are forgotten."""

    def sweep(self, now: float) -> None:
        """Let the client go when we drain, as soon as it has nothing more to do."""
        if self._over or not self.leaving:
            return
        if not self.http2 or self._left is None:
            self.leave()
        elif now >= self._left + self.site.settings.sweep and not self.layers.streams and not self._inbox:
            self._close_client()
            self._settle()

    def leave(self) -> None:
        """We are draining: no new requests on this connection, please. What crosses that on its way is served."""
        if self._over or self._closing:
            return
        half = self.layers.client
        if self._guard is not None:
            if self._left is None:
                self._left = self.site.clock()
                self._client.write(goaway(ANY_STREAM, 0))
        elif not self.layers.streams and isinstance(half, Http1Half) and not half.held:
            self._close_client()
            self._settle()

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
        """:raises NoApplicationError: when it could not be called"""
        self._server = self.context.dial(self)
        if self._server is None:
            raise NoApplicationError
        self._server.give_way()

    # --- ends

    def _guarded(self, work: Callable[[], None]) -> None:
        """Do what may break a limit, or find a fault in a parser; neither gets further than this connection."""
        if self._over:
            return
        try:
            work()
        except Breach as breach:
            self._breach(breach)
        except NoApplicationError:
            self._client.reset()
            self._finish("the application could not be called", failed=True)
        except Exception:
            _log.exception("a fault in the inspect lane ended one connection; please report it")
            self.reset()

    def _client_over(self) -> None:
        """It sends no more."""
        if not self._client_told:
            self._client_told = True
            if not self.http2:  # whose requests are answered, as far as their application does that
                self.layers.client_ended()

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
        self._answers.clear()
        self._client.end()
        self._client.resume()
        if self._server is not None:
            self._server.end()
        self._connection.half_closed(self._reactor.loop)

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
        self._end_work(breach.kind)
        if self._client_ended and not self._client.unsent:
            self._client.end()
            self._connection.finish()
        else:
            limits, reactor = self._limits, self.context.fabric.reactor
            Linger(reactor, self._connection, self._client, limits.discarded, limits.head_seconds)

    def _bad_application(self, kind: str) -> None:
        self.hub.breaches[f"application-{kind}"] += 1
        self._client.reset()
        if self._server is not None:
            self._server.reset()
        self._finish(f"the application broke a limit: {kind}")

    def _finish(self, why: str, *, failed: bool = False) -> None:
        if self._over:
            return
        self._end_work(why or "the connection is over")
        self._connection.finish(failed=failed)

    def _end_work(self, why: str) -> None:
        """Nothing is read or judged any more, and the application hears no more of it."""
        self._let_go()
        self.layers.fail(why)
        self.context.fabric.reactor.chores.soon(self.layers.let_go)  # a layer may be at work now
        if self._server is not None and not self._server_ended and not self._server.closed:
            self._server.reset()

    def _let_go(self) -> None:
        """Nothing more happens here."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._inbox.clear()
        self._answers.clear()
        self.site.forget(self)
        self.hub.left(self)

    # --- pace

    def _settle(self) -> None:
        """Read where there is room, and look at the clock where something hangs."""
        if self._over:
            return
        client, server = self._client, self._server
        if self._client_told and not self._closing:
            self._pass_end()
        if self._closing:
            if self._client_ended and not client.unsent:
                self._finish("")
            return
        client.pause() if self._full() else client.resume()
        if server is not None:
            server.pause() if self._enough() else server.resume()
        if self._hanging() and self._timer is None:
            self._timer = self.context.fabric.reactor.call_later(self._limits.head_seconds / 4, self._look)

    def _pass_end(self) -> None:
        """Tell the application that its client will say no more: it may wait for that before it answers."""
        half = self.layers.server
        if not self.http2:
            said = self._http1.said_all
        elif self.layers.streams or self._kept:
            said = not (isinstance(half, BoundedClient) and (half.holds or half.stream_queue))
        else:
            self._close_client()
            return
        if said and self._server is not None:
            self._server.end()

    def _full(self) -> bool:
        """Whether the client is not to be read for now."""
        if self._resuming or self._client.unsent > _UNSENT or len(self._inbox) >= _INBOX:
            return True
        if self._server is not None and self._server.unsent > 0:
            return True
        return not self.http2 and self._http1.held > self._limits.head_bytes

    def _enough(self) -> bool:
        """Whether the application is not to be read for now: what it said waits for the client or for its turn, or it
        takes nothing of what we have to answer to its frames. A window of requests may always be on its way to it."""
        server = self._server
        assert server is not None
        held = server.unsent if self.http2 else 0
        return self._client.unsent > 0 or len(self._answers) > 0 or held > self._limits.connection_window + _UNSENT

    def _hanging(self) -> bool:
        """Whether something is half sent that should be whole soon, or a receiver keeps us waiting."""
        if self._guard is not None:
            return self._guard.half_since is not None or self._kept > 0
        half = self._http1
        if not half.in_head:
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
        if self._guard is not None and self._guard.half_since is not None and self._full():
            self._guard.half_since = now  # it is not read meanwhile, and may have sent the rest
        began = self._guard.half_since if self._guard is not None else None
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
