"""mitmproxy's HTTP/1 connections, made strict, and completed where they stop.

What is different here:

1. A request's head is read by :mod:`sidecar.http.head`, as in the ``http`` lane; what can not be read in exactly one
   way is answered with 400 and the connection ends. mitmproxy gets what is left of it.
2. Trailers pass, interim responses pass, and a client that has ended its half still gets its answer.
3. Pipelined requests do not nest: :attr:`Http1Half.again` says that more is to be read, and the lane asks.
4. Nothing grows: see :attr:`Http1Half.held`, which the lane bounds.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import h11
from mitmproxy import http
from mitmproxy.connection import ConnectionState
from mitmproxy.net.http import http1, status_codes
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers.http._base import HttpEvent, ReceiveHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    RequestTrailers,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
    ResponseTrailers,
)
from mitmproxy.proxy.layers.http._http1 import Http1Client, Http1Connection, Http1Server, make_body_reader

from sidecar.http.errors import Malformed
from sidecar.http.head import RequestHead, read_request, suspicious
from sidecar.http.rewrite import answer
from sidecar.inspect.messages import request_of, response_of

_FIELD: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*")
_STATUS: Final = re.compile(rb"HTTP/1\.[01] [1-9][0-9][0-9]( [\t\x20-\x7e\x80-\xff]*)?")
#: Fields that have no place behind a body (RFC 9110 section 6.5.1).
NOT_IN_TRAILERS: Final = frozenset(
    {b"transfer-encoding", b"content-length", b"host", b"trailer", b"connection", b"upgrade", b"te", b"expect"}
    | {b"authorization", b"cookie", b"set-cookie", b"content-type", b"content-encoding", b"content-range"}
    | {b"x-forwarded-client-cert", b"x-hedgerow-reason"}
)


class BadHead(ValueError):
    """A head that could be read in two ways."""


@dataclass
class Interim(HttpEvent):
    """An interim response (1xx) of the application, for the client."""

    status: int
    headers: http.Headers


def check_fields(lines: list[bytes]) -> None:
    """Refuse field lines that somebody could read differently.

    :raises BadHead: naming the rule, not the content
    """
    for line in lines:
        if not _FIELD.fullmatch(line):
            raise BadHead("a header line is not name, colon, value")


class Http1Half(Http1Connection):
    """What both halves share.

    :ivar again: more than one message was in the buffer, and the next one can be read now
    :ivar piped: behind 101 another layer reads what comes; else the lane passes it on, and :meth:`rest` first
    """

    again = False
    piped = False
    _searched = 0
    _trailers: http.Headers | None = None

    @property
    def held(self) -> int:
        """Bytes that came and were not read."""
        return len(self.buf)

    @property
    def in_head(self) -> bool:
        """Whether a head has begun and is not complete."""
        return bool(self.buf) and self.state == self.read_headers

    def rest(self) -> bytes:
        """What came and was not read, which is whoever's who asks."""
        return bytes(self.buf.maybe_extract_at_most(len(self.buf)) or b"")

    def take_head(self) -> bytes | None:
        """The next head with its end; None as long as it is not complete."""
        data = self.buf._data
        if not self._searched and data.startswith(b"\r\n"):  # RFC 9112 section 2.2: one empty line before a request
            self.buf.maybe_extract_at_most(2)
            data = self.buf._data
        end = data.find(b"\r\n\r\n", max(self._searched - 3, 0))
        if end < 0:
            if suspicious(data, self._searched):
                raise BadHead("control-byte")
            self._searched = len(data)
            return None
        self._searched = 0
        head = self.buf.maybe_extract_at_most(end + 4)
        assert head is not None
        return bytes(head)

    def read_body(self, event: events.Event) -> CommandGenerator[None]:
        assert self.stream_id is not None
        server_side = isinstance(self, Http1Server)
        while True:
            try:
                if isinstance(event, events.DataReceived):
                    found = self.body_reader(self.buf)
                else:
                    found = self.body_reader.read_eof()
                if isinstance(found, h11.EndOfMessage) and found.headers:
                    trailers = _trailers(found.headers.raw_items())
                    kind = RequestTrailers if server_side else ResponseTrailers
                    yield ReceiveHttp(kind(self.stream_id, trailers))
            except (h11.ProtocolError, BadHead) as error:
                yield commands.CloseConnection(self.conn)
                yield ReceiveHttp(
                    self.ReceiveProtocolError(
                        self.stream_id, f"HTTP/1 protocol error: {error}", code=self.ReceiveProtocolError.code
                    )
                )
                self.state = self.done
                return
            if found is None:
                return
            if isinstance(found, h11.Data):
                if found.data:
                    yield ReceiveHttp(self.ReceiveData(self.stream_id, bytes(found.data)))
            else:
                yield ReceiveHttp(self.ReceiveEndOfMessage(self.stream_id))
                yield from self.mark_done(request=server_side, response=not server_side)
                if self.state == self.read_body:
                    self.state = self.wait
                return

    def mark_done(self, *, request: bool = False, response: bool = False) -> CommandGenerator[None]:
        self.request_done = self.request_done or request
        self.response_done = self.response_done or response
        if not (self.request_done and self.response_done):
            return
        assert self.request
        assert self.response
        if self.response.status_code == 101:
            if self.piped:
                yield from self.make_pipe()
            else:
                self.state = self.wait
        elif self._ends_here():
            yield commands.CloseConnection(self.conn)
            self.state = self.done
        else:
            self.request_done = self.response_done = False
            self.request = self.response = None
            self._next_message()
            self.state = self.read_headers
            self.again = bool(self.buf)

    def _ends_here(self) -> bool:
        """Whether this exchange is the connection's last."""
        assert self.request
        assert self.response
        try:
            until_eof = http1.expected_http_body_size(self.request, self.response) == -1
        except ValueError:  # an addon wrote nonsense
            until_eof = True
        return until_eof or any(
            http1.connection_close(one.http_version, one.headers)  # type: ignore[no-untyped-call]  # mitmproxy's
            for one in (self.request, self.response)
        )

    def _next_message(self) -> None:
        raise NotImplementedError

    def _end_of_body(self, headers: http.Headers) -> bytes:
        """What ends a chunked body; empty where the body is not chunked."""
        trailers, self._trailers = self._trailers, None
        if "chunked" not in headers.get("transfer-encoding", "").lower():
            return b""
        return b"0\r\n%s\r\n" % (bytes(trailers) if trailers else b"")


class StrictServer(Http1Half, Http1Server):
    """The half that speaks with the client.

    :param limit: bytes of a head
    :param refused: is told why a head was answered with 400
    :ivar head: of the request that is under way, as the guard has read it
    """

    head: RequestHead

    def __init__(self, context: Context, limit: int, refused: Callable[[str], None]) -> None:
        super().__init__(context)
        self._limit = limit
        self._refused = refused
        self.client_done = False  # it will send no more
        self.application_gone = False  # nothing more will come from there

    def says_bad(self, code: ErrorCode) -> bool:
        """Whether a response that ends with ``code`` before its head is answered for, in the application's place."""
        return not self.application_gone and not self.response and code.http_status_code() == BAD_GATEWAY

    def send(self, event: HttpEvent) -> CommandGenerator[None]:
        if isinstance(event, Interim):
            yield commands.SendData(self.conn, _interim(event))
        elif isinstance(event, ResponseTrailers):
            self._trailers = event.trailers
        elif isinstance(event, ResponseEndOfMessage):
            assert self.request
            assert self.response
            ending = self._end_of_body(self.response.headers)
            if ending and self.request.method != "HEAD":
                yield commands.SendData(self.conn, ending)
            yield from self.mark_done(response=True)
        elif isinstance(event, ResponseProtocolError) and self.application_gone and not self.response:
            yield commands.CloseConnection(self.conn)  # as the client would have seen it without us
            self.state = self.done
        elif isinstance(event, ResponseProtocolError) and self.says_bad(event.code):
            if self.conn.state & ConnectionState.CAN_WRITE:  # as the observed lane says it, and without naming anybody
                head_only = self.request is not None and self.request.method == "HEAD"
                said = answer(BAD_GATEWAY, BAD_RESPONSE, event.message, close=True, head_only=head_only)
                yield commands.SendData(self.conn, said)
                yield commands.CloseConnection(self.conn)
        elif isinstance(event, ResponseData) and not event.data:
            pass  # an empty chunk would end the body
        else:
            yield from super().send(event)

    def read_headers(self, event: events.ConnectionEvent) -> CommandGenerator[None]:
        if not isinstance(event, events.DataReceived):
            yield commands.CloseConnection(self.conn)
            self.state = self.done
            return
        try:
            raw = self.take_head()
            if raw is None:
                if self.client_done:  # what it said behind its last request will never be a whole one
                    yield commands.CloseConnection(self.conn)
                    self.state = self.done
                return
            head = read_request(raw, self._limit)
            if head is None:
                raise BadHead("header-line")
            request = request_of(head)
            size = http1.expected_http_body_size(request)
        except (ValueError, Malformed) as error:
            self._refused(str(error) if isinstance(error, BadHead | Malformed) else "header-line")
            yield commands.SendData(self.conn, BAD_REQUEST)
            yield commands.CloseConnection(self.conn)
            self.state = self.done
            return
        self.head = head
        self.request = request
        # where the body ends is settled before anybody sees the head: an answer may come at once
        self.body_reader = make_body_reader(size)
        self.state = self.read_body
        yield ReceiveHttp(RequestHeaders(self.stream_id, request, size == 0))
        if self.state == self.read_body:
            yield from self.read_body(event)
            if self.client_done and self.state == self.read_body:  # a pipelined one, whose rest will never come
                yield from self.read_body(events.ConnectionClosed(self.conn))

    @property
    def said_all(self) -> bool:
        """Whether the application has everything that the client will ever have said: it ended its half behind the
        request that is being answered, and what it said behind that is not a whole head."""
        if not self.client_done or self.state != self.wait:
            return False
        # behind a wish for another protocol it is the beginning of that protocol
        return not self.held or not (self.head.upgrade or self.buf._data.find(b"\r\n\r\n", 1) >= 0)

    def mark_done(self, *, request: bool = False, response: bool = False) -> CommandGenerator[None]:
        yield from super().mark_done(request=request, response=response)
        if self.client_done and not self.again and self.state == self.read_headers:
            yield commands.CloseConnection(self.conn)
            self.state = self.done

    def wait(self, event: events.Event) -> CommandGenerator[None]:
        if isinstance(event, events.ConnectionClosed):
            self.client_done = True  # it ended its half, and may well wait for the answer
        yield from ()

    def _ends_here(self) -> bool:
        return not self.head.keep or super()._ends_here()

    def _next_message(self) -> None:
        self.stream_id += 2


class StrictClient(Http1Half, Http1Client):
    """The half that speaks with the application.

    :param client: whom interim responses are for
    """

    def send(self, event: HttpEvent) -> CommandGenerator[None]:
        if isinstance(event, RequestTrailers):
            self._trailers = event.trailers
        elif isinstance(event, RequestEndOfMessage):
            assert self.request
            ending = self._end_of_body(self.request.headers)
            if ending:
                yield commands.SendData(self.conn, ending)
            yield from self.mark_done(request=True)
        elif isinstance(event, RequestData) and not event.data:
            pass
        else:
            yield from super().send(event)

    def read_headers(self, event: events.ConnectionEvent) -> CommandGenerator[None]:
        if not isinstance(event, events.DataReceived):
            yield from super().read_headers(event)
            return
        if not self.request:
            yield commands.CloseConnection(self.conn)
            self.state = self.done
            return
        assert self.stream_id is not None
        while True:
            try:
                raw = self.take_head()
                if raw is None:
                    return
                lines = raw[:-4].split(b"\r\n")
                if not _STATUS.fullmatch(lines[0]):
                    raise BadHead("the status line is not version, status, reason")
                check_fields(lines[1:])
                response = response_of(lines)
                size = http1.expected_http_body_size(self.request, response)
            except ValueError:
                yield commands.CloseConnection(self.conn)
                self.state = self.done
                yield ReceiveHttp(
                    ResponseProtocolError(
                        self.stream_id, "the application's response can not be read", ErrorCode.GENERIC_SERVER_ERROR
                    )
                )
                return
            if response.status_code >= 200 or response.status_code == 101:
                break
            yield from _to_client(self, Interim(self.stream_id, response.status_code, response.headers))
        self.response = response
        self.body_reader = make_body_reader(size)
        self.state = self.read_body
        yield ReceiveHttp(ResponseHeaders(self.stream_id, response, size == 0))
        if self.state == self.read_body:
            yield from self.read_body(event)

    def wait(self, event: events.Event) -> CommandGenerator[None]:
        if isinstance(event, events.ConnectionClosed):  # it has answered; the rest of the request is not wanted
            yield commands.CloseConnection(self.conn)
            self.state = self.done

    def _next_message(self) -> None:
        self.stream_id = None


def _to_client(half: StrictClient, event: HttpEvent) -> CommandGenerator[None]:
    from mitmproxy.proxy.layers.http import SendHttp

    yield SendHttp(event, half.context.client)


def _trailers(fields: list[tuple[bytes, bytes]]) -> http.Headers:
    if any(name.lower() in NOT_IN_TRAILERS for name, _ in fields):
        raise BadHead("a trailer that belongs into the head")
    return http.Headers(fields)


def _interim(event: Interim) -> bytes:
    reason = status_codes.RESPONSES.get(event.status, "").encode()
    return b"HTTP/1.1 %d %s\r\n%s\r\n" % (event.status, reason, bytes(event.headers))


#: What a client gets in place of a response that has no one meaning.
BAD_GATEWAY: Final = 502
BAD_RESPONSE: Final = "bad-response"
BAD_REQUEST: Final = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
HEAD_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
)
TOO_SLOW: Final = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
