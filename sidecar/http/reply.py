"""The way of responses in the ``http`` lane, from the application to the client. Rules: :mod:`sidecar.http.lane`."""

from __future__ import annotations

import logging

from sidecar.http.answer import ResponseHead, read_response, with_close
from sidecar.http.chunks import ChunkReader
from sidecar.http.errors import Malformed
from sidecar.http.exchange import (
    ANSWERED,
    AWAITED,
    BODY,
    CHUNKS,
    COUNTED,
    GONE,
    HEAD,
    NONE,
    OPEN,
    OVER,
    REPEATED,
    SENT,
    UPGRADE,
    Exchange,
)
from sidecar.http.head import CHUNKED
from sidecar.http.rewrite import answer
from sidecar.http.upgraded import UpgradedRelay


class Replies(Exchange):
    """Passes responses on, and knows where each ends."""

    __slots__ = ()

    def _next(self) -> None:
        """Go on with what the client sent meanwhile."""
        raise NotImplementedError

    def _request_sent(self) -> None:
        """The last byte of the request is with the application."""
        if self._reply == ANSWERED:
            self._settle(self._site.clock())
        elif self._reply == GONE:
            self._pass_end()
        else:
            self._state = SENT

    def _pass_end(self) -> None:
        """The client will send no more, and the application is told so at the end of the request."""
        self._unclean = True
        self._replay = b""  # that the application ends now may be its answer to that
        if self._app is not None:
            self._app.end()
        if self._reply in (GONE, ANSWERED):
            self._report_open()
            self._end_client()
        elif self._state == BODY:
            self._state = SENT

    # responses

    def _answered(self, data: memoryview) -> None:
        """Bytes of the application."""
        reply = self._reply
        size = len(data)
        if reply == AWAITED:
            held = self._reply_held
            if held:
                self._reply_held = b""
                self._heads(held + bytes(data))
            else:
                self._heads(bytes(data))
        elif reply == COUNTED:
            left = self._left - size
            if left > 0:
                self._left = left
                self._pass(data)
            else:
                self._unclean = left < 0
                self._tell(data[:left] if left else data)
                self._finish()
        elif reply == CHUNKS:
            chunks = self._reply_chunks
            assert chunks is not None
            if not self._reply_held and chunks.skip(size):
                self._pass(data)
            else:
                held, self._reply_held = self._reply_held, b""
                self._chunked(chunks, held + bytes(data), 0, b"")
        elif reply == OPEN:
            self._pass(data)
        elif reply != GONE:  # nobody asked
            self._drop_app()
            if reply == ANSWERED:  # the rest of the request has nobody to go to
                self._report_open()
                self._end_client()

    def _heads(self, data: bytes) -> None:
        """Interim responses, and the head of the final one."""
        head = self._head
        assert head is not None
        while True:
            got = self._last_reply
            if got is None or not data.startswith(got.raw):
                try:
                    got = read_response(data, self._site.settings.head_bytes)
                except Malformed as error:
                    self._bad_reply(error.reason)
                    return
                if got is None:
                    self._reply_held = data
                    return
                self._last_reply = got if len(got.raw) <= REPEATED else None
            self._replay = b""
            if got.status >= 200:
                break
            if got.status == 101:
                self._upgrade(got, data)
                return
            self._pass(got.raw)
            data = data[len(got.raw) :]
            if not data:
                return
        self._status = got.status
        if got.bound or head.bound:
            self._bound = True
        if got.idle:
            self._idle_limit = min(self._site.settings.pool_idle, max(got.idle - 1, got.idle / 2))
        self._closing = not (got.keep and head.keep)
        if not (got.keep and head.reuse):
            self._unclean = True
        size = len(got.raw)
        raw = b""
        if got.keep and (not head.keep or self._site.unwelcome(self._port)):
            self._closing = True
            raw = with_close(got.raw)
        length = got.length
        if head.method == "HEAD" or got.status == 204 or got.status == 304:
            length = 0
        if length >= 0:
            left = size + length - len(data)
            if left > 0:
                self._reply = COUNTED
                self._left = left
                self._pass(raw + data[size:] if raw else data)
                return
            if left:
                self._unclean = True
                data = data[:left]
            self._tell(raw + data[size:] if raw else data)
            if self._state == BODY:
                self._finish()
            else:
                self._settle(self._site.clock())
        elif length == CHUNKED:
            self._reply = CHUNKS
            chunks = self._reply_chunks = ChunkReader(self._site.settings.head_bytes, response=True)
            self._chunked(chunks, data, size, raw or got.raw)
        else:
            self._reply = OPEN
            self._closing = self._unclean = True
            self._pass(raw + data[size:] if raw else data)

    def _chunked(self, chunks: ChunkReader, data: bytes, start: int, raw: bytes) -> None:
        """A piece of a chunked body, behind the head ``raw``."""
        try:
            end = chunks.take(data, start)
        except Malformed as error:
            self._bad_reply(error.reason)
            return
        out = raw + data[start:end] if raw or end < len(data) else data
        if chunks.done:
            self._unclean = self._unclean or end < len(data)
            self._tell(out)
            self._finish()
        else:
            self._reply_held = data[end:]
            if out:
                self._pass(out)

    def _tell(self, data: bytes | memoryview) -> None:
        """Send to the client."""
        size = len(data)
        self._record.bytes_received += size
        self._response_bytes += size
        self._client.write(data)

    def _pass(self, data: bytes | memoryview) -> None:
        """Send to the client part of a response."""
        self._tell(data)
        if self._client.unsent and self._app is not None and not self._app_paused:
            self._app_paused = True
            self._app.pause()

    def _finish(self) -> None:
        """The response is complete."""
        now = self._site.clock()
        if self._state == BODY:
            self._reply = ANSWERED
            if self._closing:
                self._report(now)
                self._end_client()
            return
        self._settle(now)

    def _settle(self, now: float) -> None:
        """Request and response are complete."""
        self._report(now)
        self._reply = NONE
        self._idle_since = now
        if self._unclean:
            self._drop_app()
            if self._state == OVER:
                return
        if self._closing:
            self._end_client()
            return
        self._state = HEAD
        if self._held or self._client_ended or self._client_paused or self._client.unsent:
            if self._app_paused and self._app is not None:
                self._app_paused = False
                self._app.resume()
            if not self._client.unsent:
                self._next()

    def _upgrade(self, got: ResponseHead, data: bytes) -> None:
        """The application goes on in the protocol that the client proposed."""
        app, client, head = self._app, self._client, self._head
        if self._state != UPGRADE or not got.upgrade or app is None or head is None:
            self._bad_reply("unasked-upgrade")
            return
        site, held = self._site, bytes(self._held)
        self._held.clear()
        self._status = 101
        self._tell(got.raw)
        self._report(site.clock())
        site.forget(self)
        self._state = OVER
        self._app = None
        self._record.bytes_sent -= len(held)  # counted again when it is passed on
        operation = "" if head.unclear else head.operation  # whatever a rule speaks of may be meant by it
        relay = UpgradedRelay(site, self._connection, self._port, operation, client, app)
        rest = data[len(got.raw) :]
        if rest:
            relay.received(app, memoryview(rest))
        if held:
            relay.received(client, memoryview(held))
        if self._client_ended:
            relay.ended(client)
        elif self._client_paused and not app.unsent:
            client.resume()

    def _bad_reply(self, reason: str) -> None:
        """A response that has no one meaning."""
        site = self._site
        site.malformed[reason] += 1
        text = "refused a response of our application on port %d: %s"
        site.fabric.complaints.say(logging.WARNING, text, self._port, reason)
        app, self._app = self._app, None
        if app is not None:
            app.reset()
        head = self._head
        if self._reply != AWAITED or head is None:
            self._fail_client()
            return
        self._status, self._detail = 502, "bad-response"
        text = f"the application's response is refused: {reason}"
        self._tell(answer(502, "bad-response", text, close=True, head_only=head.method == "HEAD"))
        self._report(site.clock())
        self._end_client()

    # the application's connection ends

    def _app_ended(self) -> None:
        """The application will send no more."""
        app, reply = self._app, self._reply
        assert app is not None
        if reply == OPEN:
            self._app = None
            app.end()
            self._finish()
        elif reply in (NONE, ANSWERED):
            self._app = None
            app.end()
            if self._bound or reply == ANSWERED:
                self._report_open()
                self._end_client()
        elif reply == AWAITED and self._replay and not self._reply_held:
            self._app = None
            app.end()
            self._retry()
        else:  # in the middle: so the client sees it
            self._unclean = True
            if self._state == BODY:
                self._reply = GONE
                self._client.end()
            else:
                self._report_open()
                self._end_client()

    def _app_lost(self) -> None:
        """The application has reset its connection, or could not be reached."""
        app, reply = self._app, self._reply
        assert app is not None
        self._app = None
        if reply == AWAITED and self._replay and not self._reply_held:
            self._retry()
        elif reply in (NONE, ANSWERED):
            if self._bound or reply == ANSWERED:
                self._report_open()
                self._end_client()
        else:
            self._fail_client(failed=not app.reached)

    def _retry(self) -> None:
        """Send the request once more, on a new connection."""
        replay, self._replay = self._replay, b""
        self._site.retries += 1
        self._reused = self._app_paused = self._unclean = False
        app = self._app = self._context.dial(self)
        if app is None:
            self._fail_client()
            return
        app.write(replay)
        if self._client_ended and not self._held:
            self._pass_end()

    def _drop_app(self) -> None:
        """Be done with a connection that can not be used again."""
        app, self._app = self._app, None
        if app is not None:
            self._site.part(app)
        if self._bound and self._reply == NONE:
            self._end_client()
