"""One client's connection in the ``http`` lane and the request that is under way on it: what is known, and how it ends.

:mod:`sidecar.http.reply` adds the way of responses, :mod:`sidecar.http.lane` that of requests, where the rules are.
"""

from __future__ import annotations

from typing import Final

from sidecar.dataplane.contracts import Request
from sidecar.dataplane.lane_context import LaneContext
from sidecar.dataplane.legs import Leg
from sidecar.http.answer import ResponseHead
from sidecar.http.chunks import ChunkReader
from sidecar.http.head import RequestHead
from sidecar.http.rewrite import certificate_line
from sidecar.http.site import HttpSite

# What the client is doing.
HEAD: Final = 0  #: it may begin a request, or has begun a head
BODY: Final = 1  #: it sends the body of a request that was judged
SENT: Final = 2  #: its request is with the application
UPGRADE: Final = 3  #: the same, and it may go on in another protocol
DROP: Final = 4  #: it sends the body of a request that was refused
OVER: Final = 5  #: we have said our last word

# What the application is doing.
NONE: Final = 0  #: nothing was asked
AWAITED: Final = 1  #: the head of a response is next
COUNTED: Final = 2  #: a body of a known length
CHUNKS: Final = 3  #: a chunked body
OPEN: Final = 4  #: a body that ends with its connection
ANSWERED: Final = 5  #: its response is complete, the request is not
GONE: Final = 6  #: it has ended its direction in the middle, and may still read the request

#: A head that is longer is not kept for comparison with the next one, bytes.
REPEATED: Final = 4096
_FOREVER: Final = float("inf")


class Exchange:
    """The state of one client's connection. What it is told by legs and by the site is the subclasses' matter."""

    __slots__ = (
        "_app",
        "_app_paused",
        "_began",
        "_body_left",
        "_bound",
        "_certificate",
        "_chunks",
        "_client",
        "_client_ended",
        "_client_paused",
        "_closing",
        "_connection",
        "_context",
        "_deadline",
        "_decision",
        "_detail",
        "_drop_left",
        "_epoch",
        "_head",
        "_held",
        "_idle_limit",
        "_idle_since",
        "_last_reply",
        "_left",
        "_name",
        "_pool",
        "_port",
        "_record",
        "_replay",
        "_reply",
        "_reply_chunks",
        "_reply_held",
        "_request_bytes",
        "_request_id",
        "_response_bytes",
        "_reused",
        "_site",
        "_state",
        "_status",
        "_unclean",
        "_verdicts",
    )

    def __init__(self, context: LaneContext, client: Leg, site: HttpSite) -> None:
        self._context = context
        self._client = client
        self._site = site
        self._connection = context.connection
        self._record = record = context.connection.record
        self._port = context.port
        self._pool = site.pool(context.application)
        self._verdicts = site.verdicts(record.source, context.port)
        theirs = record.source_identity if record.source.verified else ""
        self._certificate = certificate_line(record.destination_identity, theirs, record.source_certificate)
        record.protocol = "http"
        self._state = HEAD
        self._held = bytearray()  # came from the client and is not read yet
        self._client_ended = False
        self._client_paused = False
        self._deadline = 0.0  # of the head that is waited for, then of the client's end; 0: none
        self._drop_left = 0  # bytes that are read and dropped
        # the request under way
        self._head: RequestHead | None = None
        self._decision = record.decision
        self._epoch = -1  # that the decision was made in
        self._name = ""
        self._request_id = ""
        self._began = self._idle_since = site.clock()
        self._request_bytes = self._response_bytes = 0
        self._body_left = 0
        self._chunks: ChunkReader | None = None
        self._replay = b""  # all of it, when it may be sent again
        # the application
        self._app: Leg | None = None
        self._app_paused = False
        self._reused = False  # the connection has carried requests before
        self._bound = False  # it knows who its client is, and serves nobody else
        self._unclean = False  # it can not carry another request
        self._idle_limit = site.settings.pool_idle
        self._reply = NONE
        self._reply_held = b""
        self._reply_chunks: ChunkReader | None = None
        self._last_reply: ResponseHead | None = None
        self._left = 0
        self._status = 0
        self._detail = ""
        self._closing = False  # the client's connection ends with this response

    # what it is told: see sidecar.http.lane

    def received(self, leg: Leg, data: memoryview) -> None:
        raise NotImplementedError

    def ended(self, leg: Leg) -> None:
        raise NotImplementedError

    def drained(self, leg: Leg) -> None:
        raise NotImplementedError

    def lost(self, leg: Leg, why: str) -> None:
        raise NotImplementedError

    def sweep(self, now: float) -> None:
        raise NotImplementedError

    # verdicts

    def _judge(self, head: RequestHead) -> None:
        """Ask the policy in force about ``head``."""
        site = self._site
        self._epoch = site.epoch
        verdicts = self._verdicts
        if verdicts.epoch != site.epoch:
            verdicts = self._verdicts = site.verdicts(self._record.source, self._port)
        if verdicts.by_operation:
            self._decision = decision = verdicts.of("" if head.unclear else head.operation)
            if head.ignored and decision.allowed:
                self._decision = head.hides(verdicts.of) or decision
        else:
            self._decision = self._record.decision
        self._name = site.name(self._port, head.operation)

    def judge_again(self) -> None:
        """The policy has changed: a request under way that it denies ends with a reset."""
        head = self._head
        if head is not None and self._reply != NONE:
            self._judge(head)
            if not self._decision.allowed:
                self.reset()

    # the application's connection

    def _attach(self, again: bool) -> Leg | None:
        """A connection of the application for the request that begins; None when there is none to be had.

        :param again: the request may be sent again if the connection turns out to be stale
        """
        app, site = self._app, self._site
        now = self._began
        if app is not None:
            usable = not app.closed
            idle = now - self._idle_since
            longest = self._idle_limit if again else min(self._idle_limit, site.settings.pool_unsafe_idle)
            if usable and (idle <= longest or self._bound):
                self._reused = True
                return app
            self._app = None
            if usable:
                self._pool.give(app, self._idle_since, self._idle_since + self._idle_limit)
            elif self._bound:
                return None
        app = self._pool.take(self, now, _FOREVER if again else site.settings.pool_unsafe_idle)
        self._reused = app is not None
        if app is None:
            app = self._context.dial(self)
        self._app = app
        self._app_paused = self._unclean = False
        self._idle_limit = site.settings.pool_idle
        return app

    def _release(self) -> None:
        """Let others have the application's connection, if it is good for that."""
        app, self._app = self._app, None
        if app is None or app.closed:
            return
        if self._reply == NONE and not (self._unclean or self._bound):
            if self._app_paused:
                app.resume()
            self._pool.give(app, self._idle_since, self._idle_since + self._idle_limit)
        elif self._reply == NONE:
            self._site.part(app)
        else:
            app.reset()
        self._app_paused = False

    # the client's connection

    def _hold(self, data: memoryview | bytes) -> None:
        """Keep what can not be read yet."""
        self._held += data
        if len(self._held) > self._site.settings.head_bytes:
            self._pause_client()

    def _pause_client(self) -> None:
        if not self._client_paused:
            self._client_paused = True
            self._client.pause()

    def _end_client(self) -> None:
        """Say nothing more to the client, and wait until it ends too."""
        if self._state == OVER:
            return
        self._release()
        self._state = OVER
        self._held.clear()
        self._deadline = 0.0
        self._drop_left = self._site.settings.linger_bytes
        self._client.end()
        if self._client_paused:
            self._client_paused = False
            self._client.resume()
        self._close_when_sent()

    def _close_when_sent(self) -> None:
        if self._client_ended and not self._client.unsent:
            self._done()

    def _fail_client(self, *, failed: bool = False) -> None:
        """End both connections with a reset."""
        self._client.reset()
        self._abandon(failed=failed)

    def _give_up(self) -> None:
        """The client does not end."""
        self._client.reset()
        self._done()

    def reset(self) -> None:
        """The policy ends this connection."""
        self._fail_client()

    def _abandon(self, *, failed: bool = False) -> None:
        """The client is gone."""
        self._state = OVER
        self._held.clear()
        self._report_open()
        self._release()
        self._done(failed=failed)

    def _done(self, *, failed: bool = False) -> None:
        self._site.forget(self)
        self._connection.finish(failed=failed)

    # reports

    def _report_open(self) -> None:
        """Report the request under way, if there is one, as far as it came."""
        if self._head is not None and self._reply != NONE:
            self._report(self._site.clock())

    def _report(self, now: float) -> None:
        head = self._head
        if head is None:
            return
        self._head = None
        self._site.fabric.connections.flows.request(
            Request(
                self._record,
                self._name,
                self._decision,
                "http",
                self._status,
                now - self._began,
                self._request_bytes,
                self._response_bytes,
                -1,
                head.method,
                head.path,
                head.host,
                head.user_agent,
                self._request_id,
                self._detail,
            )
        )
        self._response_bytes = 0
