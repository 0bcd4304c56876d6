"""HTTP/1.1 on one client's connection: every request is judged before a byte of it leaves for the application.

Rules:

1. One request at a time: the next head is not read before the last response is complete, so that responses and
   refusals keep the order of the requests, and a request is judged by the policy in force when it is sent.
2. What was judged is what is sent (:mod:`sidecar.http.head`), less ``x-forwarded-client-cert``, ``x-hedgerow-*``, an
   ``h2c`` upgrade and a lone ``Connection: close``, and with the lines of :mod:`sidecar.http.rewrite`.
3. A head that is repeated is not read again: the same bytes mean the same.
4. A connection of the application serves its client until that pauses, and then whoever comes next
   (:mod:`sidecar.http.pool`). A request is sent a second time only when it is idempotent, all of it is still here, the
   connection was not new, and not a byte of a response came.
5. Ends and resets pass in both directions as they would without us. Only that the application closes an idle
   connection is kept from the client, whose next request gets another one.

The way back, from the application to the client, is :mod:`sidecar.http.reply`.
"""

from __future__ import annotations

import logging

from sidecar.dataplane.lane_context import LaneContext
from sidecar.dataplane.legs import Leg
from sidecar.http.chunks import ChunkReader
from sidecar.http.errors import Malformed
from sidecar.http.exchange import AWAITED, BODY, DROP, HEAD, OVER, REPEATED, SENT, UPGRADE
from sidecar.http.head import CHUNKED, IDEMPOTENT, RequestHead, read_request, suspicious
from sidecar.http.reply import Replies
from sidecar.http.rewrite import answer
from sidecar.http.site import HttpSite


class HttpLane(Replies):
    """The lane of ``client`` and of whichever connection of the application serves it.

    :param context: the connection, which was allowed to open
    """

    __slots__ = ("_last", "_prefix")

    def __init__(self, context: LaneContext, client: Leg, site: HttpSite | None = None) -> None:
        super().__init__(context, client, site if site is not None else HttpSite.of(context.fabric))
        self._last: RequestHead | None = None
        self._prefix = b""
        client.lane = self
        context.connection.owned_by(self.reset)
        self._site.watch(self, context.port)

    # from the legs

    def received(self, leg: Leg, data: memoryview) -> None:
        if leg is not self._client:
            if leg is self._app:
                self._answered(data)
            return
        size = len(data)
        self._record.bytes_sent += size
        state = self._state
        if state == HEAD and not self._held and not leg.unsent:
            self._requests(bytes(data))
        elif state == BODY:
            if size < self._body_left and self._app is not None:
                self._body_left -= size
                self._request_bytes += size
                self._app.write(data)
                if self._app.unsent:
                    self._pause_client()
            else:
                self._body(bytes(data))
        elif state == OVER:
            self._drop_left -= size
            if self._drop_left < 0:
                self._give_up()
        elif state == DROP:
            self._drop(bytes(data))
        else:
            self._hold(data)
            if state == HEAD and not leg.unsent:
                self._more_head(size)

    def ended(self, leg: Leg) -> None:
        if leg is not self._client:
            if leg is self._app:
                self._app_ended()
            return
        self._client_ended = True
        state = self._state
        if state == BODY or (state in (SENT, UPGRADE) and not self._held):
            self._pass_end()
        elif state == OVER:
            self._close_when_sent()
        elif state not in (SENT, UPGRADE) and not (self._held and leg.unsent):
            self._end_client()  # no further request can become whole
        self._connection.half_closed(self._site.fabric.reactor.loop)

    def drained(self, leg: Leg) -> None:
        if leg is self._client:
            if self._app_paused and self._app is not None:
                self._app_paused = False
                self._app.resume()
            if self._state == OVER:
                self._close_when_sent()
            elif self._state == HEAD:
                self._next()
        elif leg is self._app and self._client_paused and len(self._held) <= self._site.settings.head_bytes:
            self._client_paused = False
            self._client.resume()

    def lost(self, leg: Leg, why: str) -> None:
        if leg is self._client:
            self._abandon()
        elif leg is self._app:
            self._app_lost()

    # from the site

    def sweep(self, now: float) -> None:
        """End a head, a farewell or an attachment that takes too long."""
        state, settings = self._state, self._site.settings
        if state == OVER:
            if self._client.unsent:
                self._deadline = 0.0
            elif not self._deadline:
                self._deadline = now + settings.linger
            elif now >= self._deadline:
                self._give_up()
        elif state == HEAD and not self._client.unsent:
            if self._held:
                if self._deadline and now >= self._deadline:
                    self._refuse("head-timeout", 408)
            elif now - self._idle_since >= settings.attached_idle:
                if self._app is not None and not self._bound:
                    self._release()
                if self._site.unwelcome(self._port):
                    self._end_client()

    # requests

    def _next(self) -> None:
        """Go on with what was held."""
        held = self._held
        if held:
            data = bytes(held)
            held.clear()
            self._requests(data)
        state, client = self._state, self._client
        if state == HEAD and not client.unsent and self._client_ended:
            self._end_client()
        elif self._client_paused and len(held) <= self._site.settings.head_bytes:
            app = self._app
            if not (state == HEAD and client.unsent) and not (state == BODY and app is not None and app.unsent):
                self._client_paused = False
                client.resume()

    def _requests(self, data: bytes) -> None:
        """Send requests until one waits for its response; the rest is held."""
        site, last = self._site, self._last
        while data:
            if last is None or not data.startswith(last.raw):
                try:
                    head = read_request(data, site.settings.head_bytes)
                except Malformed as error:
                    self._refuse(error.reason)
                    return
                if head is None:
                    self._deadline = site.clock() + site.settings.head_timeout
                    break
                self._last = last = head
                self._prefix = head.kept + self._certificate
                self._epoch = -1
            data = self._begin(last, data)
            if self._state != HEAD or self._client.unsent:
                break
            last = self._last
        if data and self._state != OVER:
            self._hold(data)
        elif self._client_ended and self._state in (BODY, SENT, UPGRADE):
            self._pass_end()  # it had ended before its turn came

    def _more_head(self, size: int) -> None:
        """Part of a head came behind what was held of it."""
        held = self._held
        if held.find(b"\r\n\r\n", max(0, len(held) - size - 3)) < 0:
            if len(held) >= self._site.settings.head_bytes:
                self._refuse("head-too-large", 431)
            elif suspicious(held, len(held) - size):
                self._refuse("head-framing")
            return
        data = bytes(held)
        held.clear()
        self._requests(data)

    def _begin(self, head: RequestHead, data: bytes) -> bytes:
        """Judge the request at the beginning of ``data`` and send what is there of it; answers with the rest."""
        site = self._site
        self._head = head
        self._began = site.clock()
        self._status = 0
        self._response_bytes = 0
        self._deadline = 0.0
        if self._epoch != site.epoch:
            self._judge(head)
        if not self._decision.allowed:
            return self._deny(head, data)
        size = len(head.raw)
        length = head.length
        end = size
        whole = True
        if length:
            if length > 0:
                end = min(size + length, len(data))
                self._body_left = size + length - end
                whole = not self._body_left
            else:
                chunks = ChunkReader(site.settings.head_bytes)
                try:
                    end = chunks.take(data, size)
                except Malformed as error:
                    self._refuse(error.reason)
                    return b""
                whole = chunks.done
                self._chunks = None if whole else chunks
        identifiers = site.identifiers
        lines = identifiers.lines(head.traced, head.request_id)
        self._request_id = head.request_id or identifiers.last
        out = self._prefix + lines
        if end > size:
            out += data[size:end]
        app = self._app
        idle = self._began - self._idle_since
        if app is not None and idle <= self._idle_limit and idle <= site.settings.pool_unsafe_idle and not app.closed:
            self._reused = True
        else:
            app = self._attach(whole and head.method in IDEMPOTENT)
            if app is None:
                self._request_bytes = end
                self._reply = AWAITED  # in vain, and told as that
                self._fail_client(failed=not self._record.bytes_received)
                return b""
        self._request_bytes = end
        self._reply = AWAITED
        if not whole:
            self._state = BODY
            self._replay = b""
        else:
            self._state = UPGRADE if head.upgrade else SENT
            self._replay = out if self._reused and head.method in IDEMPOTENT else b""
        app.write(out)
        if not whole and app.unsent:
            self._pause_client()
        if len(head.raw) > REPEATED:
            self._last = None
        return data[end:] if end < len(data) else b""

    def _body(self, data: bytes) -> None:
        """More of a request's body; what is behind it is held."""
        app = self._app
        assert app is not None
        chunks = self._chunks
        if self._held:  # the beginning of a line of chunked framing
            data = bytes(self._held) + data
            self._held.clear()
        size = len(data)
        if chunks is None:
            end = min(size, self._body_left)
            self._body_left -= end
            whole = not self._body_left
        elif chunks.skip(size):
            end, whole = size, False
        else:
            try:
                end = chunks.take(data, 0)
            except Malformed as error:
                self._bad_body(error.reason)
                return
            whole = chunks.done
        self._request_bytes += end
        if end:
            app.write(data if end == size else memoryview(data)[:end])
        if end < size:
            self._hold(memoryview(data)[end:])
        if whole:
            self._chunks = None
            self._request_sent()
        elif app.unsent:
            self._pause_client()

    def _drop(self, data: bytes) -> None:
        """The body of a refused request."""
        left = self._drop_left - len(data)
        self._drop_left = max(left, 0)
        if left <= 0:
            self._state = HEAD
            if left:
                self._hold(memoryview(data)[left:])
            self._next()

    # refusals

    def _deny(self, head: RequestHead, data: bytes) -> bytes:
        """Answer a request that the policy denies; answers with what is behind it."""
        site, reason = self._site, str(self._decision.reason)
        self._request_id = head.request_id
        if head.unclear:
            self._refuse(head.unclear)
            return b""
        size = len(head.raw)
        body = head.length
        close = body == CHUNKED or body > site.settings.refused_body or head.expect or not head.keep
        close = close or site.unwelcome(self._port)
        peer = self._record.source
        who = str(peer.workload) if peer.workload is not None else peer.address
        text = f"{head.operation} is not allowed for {who} on port {self._port} ({reason})"
        self._request_bytes = size + max(body, 0)
        self._tell(answer(403, reason, text, close=close, head_only=head.method == "HEAD"))
        self._status = 403
        self._report(site.clock())
        if close:
            self._end_client()
            return b""
        rest = len(data) - size
        if rest < body:
            self._state = DROP
            self._drop_left = body - rest
            return b""
        return data[size + body :]

    def _refuse(self, reason: str, status: int = 400) -> None:
        """Answer what can not be understood, and end the connection."""
        site = self._site
        site.malformed[reason] += 1
        site.fabric.guards.counters.requests_malformed += 1
        record = self._record
        text = "refused a request of %s to port %d: %s"
        site.fabric.complaints.say(
            logging.INFO, text, record.source_identity or record.source.address, self._port, reason
        )
        self._tell(answer(status, reason, f"this request is refused: {reason}", close=True))
        head = self._head
        if head is not None:
            self._status, self._detail = status, reason
            self._request_bytes = len(head.raw)
            self._report(site.clock())
        self._end_client()

    def _bad_body(self, reason: str) -> None:
        """The body of a request that is under way breaks off: the application must not take what came for all of it."""
        app, self._app = self._app, None
        if app is not None:
            app.reset()
        if self._reply == AWAITED and not self._reply_held:
            self._refuse(reason)
            return
        self._site.malformed[reason] += 1
        self._site.fabric.guards.counters.requests_malformed += 1
        self._fail_client()
