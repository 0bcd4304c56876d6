"""One request and its response on mitmproxy's stream, streamed and judged.

mitmproxy's state machine is kept; what is different:

1. Whoever is asked answers at once: hooks and the connection to the application are function calls here, so that no
   state waits for anything but bytes.
2. Bodies are streamed. They are collected only for addons, and only up to a bound.
3. The verdict comes before the first byte to the application, on exactly the form that is forwarded. A refused request
   gets our answer, and what is left of its body is thrown away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mitmproxy import http
from mitmproxy.http import HTTPFlow
from mitmproxy.net.http import status_codes
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers.http import DropStream, GetHttpConnection, HTTPMode, HttpStream, SendHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    RequestTrailers,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
    ResponseTrailers,
)
from mitmproxy.proxy.layers.http._hooks import HttpErrorHook, HttpRequestHook, HttpResponseHeadersHook

from sidecar.http.grpc_messages import Messages
from sidecar.http.head import is_override
from sidecar.inspect import forms
from sidecar.inspect.exchange import Exchange, Refusal, grpc_status_of
from sidecar.inspect.http1 import BAD_GATEWAY, BAD_RESPONSE, NOT_IN_TRAILERS, BadHead, StrictServer
from sidecar.inspect.http2 import Enough
from sidecar.inspect.messages import response

if TYPE_CHECKING:
    from sidecar.inspect.layers import Layers

type Commands = CommandGenerator[None]


class Stream(HttpStream):
    """One request. The judge is asked at every turn.

    :ivar exchange: what is known of it; None before its head was read
    :ivar request_messages: counts the messages of gRPC in the request's body; ``response_messages`` in the response's
    :ivar request_tee: sees the request's body as it passes; ``response_tee`` the response's
    """

    mode = HTTPMode.transparent  # mitmproxy looks it up in a layer that we do not have
    # most requests have none, and then keep none
    request_messages: Messages | None = None
    response_messages: Messages | None = None

    def __init__(self, context: Context, stream_id: int, layers: Layers) -> None:
        super().__init__(context, stream_id)
        self._layers = layers
        self._judge = layers.judge
        self._client = context.client
        self._server = context.server
        self.exchange: Exchange | None = None
        self.request_tee: Callable[[bytes], None] | None = None
        self.response_tee: Callable[[bytes], None] | None = None
        self.request_ended = False
        self.upgrade = False
        self.client_state = self.state_wait_for_request_headers

    def handle_event(self, event: events.Event) -> Commands:
        generator = self._handle_event(event)
        reply: Any = None
        while True:
            try:
                command = generator.send(reply)
            except StopIteration:
                return
            reply = None
            if isinstance(command, commands.StartHook):
                self._hook(command)
            elif isinstance(command, GetHttpConnection):
                yield from self._layers.reach_application()
                reply = (self._server, None)
            elif not isinstance(command, commands.Log):
                yield command

    def _hook(self, hook: commands.StartHook) -> None:
        """mitmproxy's own states ask; ours call the judge themselves."""
        if isinstance(hook, HttpErrorHook):
            error = self.flow.error
            self._judge.failed(self, error.msg if error is not None else "")
        elif isinstance(hook, HttpRequestHook):  # the body was collected for addons
            refusal = self._judge.request_collected(self)
            if refusal is not None:
                self.flow.response = _response(refusal, self.exchange, self.flow.request)
                self.flow.error = None  # flow.kill(): that is answered, too
        elif isinstance(hook, HttpResponseHeadersHook):
            self._judge.answered_by_us(self)
        else:
            self._judge.websocket_hook(self, hook)

    # --- request

    def state_wait_for_request_headers(self, event: RequestHeaders) -> Commands:
        flow = self.flow = HTTPFlow(self._client, self._server)
        request = flow.request = event.request
        flow.live = True
        request.stream = True
        refusal = self._judge.request_head(self, request, ended=event.end_stream)
        if refusal is not None:
            yield from self.refuse(refusal, ended=event.end_stream)
            return
        self.server_state = self.state_wait_for_response_headers
        if not request.stream:
            self.client_state = self.state_consume_request_body
            return
        yield from self._layers.reach_application()
        if self.exchange is not None:
            self.exchange.streamed = True
        yield SendHttp(RequestHeaders(self.stream_id, request, event.end_stream), self._server)
        self.client_state = self.state_stream_request_body

    def state_stream_request_body(self, event: RequestData | RequestTrailers | RequestEndOfMessage) -> Commands:
        if isinstance(event, RequestData):
            assert self.exchange is not None
            self.exchange.request_bytes += len(event.data)
            if self.request_messages is not None:
                self.count_request(event.data)
            if self.request_tee is not None:
                self.request_tee(event.data)
            yield SendHttp(event, self._server)
        elif isinstance(event, RequestTrailers):
            self.flow.request.trailers = event.trailers
            if _unfit(event.trailers):
                yield from self.abort(ErrorCode.GENERIC_CLIENT_ERROR, "trailers")
                return
            yield SendHttp(event, self._server)
        else:
            self.request_ended = True
            if not self._judge.request_end(self):
                yield from self.abort(ErrorCode.KILL, "refused by an addon")
                return
            self.client_state = self.state_done
            yield SendHttp(event, self._server)
            if self.server_state == self.state_done:
                yield from self.flow_done()

    def count_request(self, data: bytes) -> None:
        """This of the request's body goes to the application."""
        if self.request_messages is not None:
            self._judge.record.request_messages += self.request_messages.take(data, 0, len(data))

    def count_response(self, data: bytes) -> None:
        """This of the response's body goes to the client."""
        if self.response_messages is not None:
            self._judge.record.response_messages += self.response_messages.take(data, 0, len(data))

    def start_request_stream(self) -> Commands:
        """The body that was being collected for addons became too large."""
        if self.exchange is not None:
            self.exchange.streamed = True
        yield from super().start_request_stream()

    def refuse(self, refusal: Refusal, *, ended: bool) -> Commands:
        """Answer in the application's place."""
        response = _response(refusal, self.exchange, self.flow.request)
        self.flow.response = response
        self._judge.refused(self, response)
        self.client_state = self.state_discard
        self.server_state = self.state_errored
        self.flow.live = False
        body = response.raw_content
        yield SendHttp(ResponseHeaders(self.stream_id, response, not body), self._client)
        if body and self.flow.request.method != "HEAD":
            yield SendHttp(ResponseData(self.stream_id, body), self._client)
        yield SendHttp(ResponseEndOfMessage(self.stream_id), self._client)
        if self.flow.request.is_http2 and not ended:
            yield SendHttp(Enough(self.stream_id), self._client)
            yield DropStream(self.stream_id)  # nothing comes of a stream that was reset

    def state_discard(self, event: RequestData | RequestTrailers | RequestEndOfMessage) -> Commands:
        """Throw the body of a refused request away."""
        if isinstance(event, RequestData):
            self._layers.discarded(len(event.data))
        elif isinstance(event, RequestEndOfMessage):
            self.client_state = self.state_done
            yield DropStream(self.stream_id)

    # --- response

    def state_wait_for_response_headers(self, event: ResponseHeaders) -> Commands:
        response = self.flow.response = event.response
        response.stream = True
        if not self._judge.response_head(self, response, ended=event.end_stream):
            yield from self.abort(ErrorCode.RESPONSE_VALIDATION_FAILED, "the response can not be forwarded")
            return
        if not response.stream:
            self.server_state = self.state_consume_response_body
            return
        yield SendHttp(ResponseHeaders(self.stream_id, response, event.end_stream), self._client)
        self.server_state = self.state_stream_response_body

    def state_stream_response_body(self, event: events.Event) -> Commands:
        if isinstance(event, ResponseData):
            assert self.exchange is not None
            self.exchange.response_bytes += len(event.data)
            if self.response_messages is not None:
                self.count_response(event.data)
            if self.response_tee is not None:
                self.response_tee(event.data)
            yield SendHttp(event, self._client)
        elif isinstance(event, ResponseTrailers):
            assert self.flow.response is not None
            self.flow.response.trailers = event.trailers
            if self.exchange is not None:
                self.exchange.grpc_status = grpc_status_of(forms.first(event.trailers, b"grpc-status"))
            if _unfit(event.trailers):
                yield from self.abort(ErrorCode.RESPONSE_VALIDATION_FAILED, "trailers")
                return
            yield SendHttp(event, self._client)
        else:
            self._judge.response_end(self)
            self.server_state = self.state_done
            if self.client_state == self.state_done:
                yield from self.flow_done()
            else:  # the application answered before it had everything
                yield SendHttp(ResponseEndOfMessage(self.stream_id), self._client)

    def send_response(self, already_streamed: bool = False) -> Commands:
        """The response was collected for addons, or an addon made it."""
        if not self._judge.response_collected(self):
            yield from self.abort(ErrorCode.RESPONSE_VALIDATION_FAILED, "an addon failed")
            return
        yield from super().send_response(already_streamed)

    def flow_done(self) -> Commands:
        self.flow.live = False
        response = self.flow.response
        assert response is not None
        if response.status_code == 101:
            self.child_layer = self._layers.upgraded(self)
            if self.child_layer is not None:
                self._handle_event = self.passthrough  # as mitmproxy does
                yield from self.child_layer.handle_event(events.Start())
        else:
            yield DropStream(self.stream_id)
        yield SendHttp(ResponseEndOfMessage(self.stream_id), self._client)

    # --- ends

    def abort(self, code: ErrorCode, why: str) -> Commands:
        """End it on both sides, the response not having been sent whole."""
        self._note_answer(code)
        self._judge.failed(self, why)
        if self.client_state != self.state_errored:
            yield SendHttp(ResponseProtocolError(self.stream_id, why, code), self._client)
        if self.exchange is not None and self.exchange.streamed and self.server_state != self.state_done:
            yield SendHttp(RequestProtocolError(self.stream_id, why, ErrorCode.CANCEL), self._server)
        self.client_state = self.server_state = self.state_errored
        self.flow.live = False
        yield DropStream(self.stream_id)

    def handle_protocol_error(self, event: RequestProtocolError | ResponseProtocolError) -> Commands:
        if isinstance(event, ResponseProtocolError):
            self._note_answer(event.code)
        yield from super().handle_protocol_error(event)

    def _note_answer(self, code: ErrorCode) -> None:
        """The response ends with ``code``: an HTTP/1 client that has seen nothing of it gets an answer of ours."""
        half, there = self._layers.client, self.client_state != self.state_errored
        if self.exchange is not None and there and isinstance(half, StrictServer) and half.says_bad(code):
            self.exchange.status, self.exchange.detail = BAD_GATEWAY, BAD_RESPONSE

    def state_done(self, _: events.Event) -> Commands:
        """What comes for an exchange that is over on this side is late."""
        yield from ()

    state_uninitialized = state_done


def _response(refusal: Refusal, exchange: Exchange | None, request: http.Request) -> http.Response:
    grpc = exchange is not None and exchange.grpc
    status, fields, body = refusal.head(grpc=grpc, http2=request.is_http2)
    if exchange is not None:
        exchange.status = status
        exchange.detail = refusal.reason
        if grpc:
            exchange.grpc_status = refusal.grpc_status
    reason = status_codes.RESPONSES.get(status, "").encode()
    version = b"HTTP/2.0" if request.is_http2 else b"HTTP/1.1"
    return response(version, status, b"" if request.is_http2 else reason, http.Headers(fields), body)


def _unfit(trailers: http.Headers) -> bool:
    """Whether trailers hold what has no place behind a body."""
    try:
        forms.check_fields(trailers.fields, http2=False)
    except BadHead:
        return True
    unfit = (name.lower() in NOT_IN_TRAILERS or is_override(name) for name, _ in trailers.fields)
    return any(unfit) or bool(forms.ours(trailers))
