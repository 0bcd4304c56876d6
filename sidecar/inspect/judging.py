"""What is asked of every request and response in the lane, in the order in which it is asked.

A request's head: its form; the policy on its operation; our own headers off and on again; header rules; the user's
addons; and, if any of those changed it, its form and the policy once more. Whatever was decided, exactly one report
goes to the flow sink.

What a person sees (taps) and what an addon does never decides that a request passes.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from mitmproxy import http
from mitmproxy.net.http.validate import validate_headers
from mitmproxy.proxy.layer import Layer
from mitmproxy.websocket import WebSocketData

from sidecar.http.grpc_messages import Messages, is_grpc
from sidecar.http.head import RequestHead
from sidecar.inspect import forms
from sidecar.inspect.admission import OTHER_HOST, UNCLEAR_REQUEST, Admission, change, is_clear, overridden
from sidecar.inspect.exchange import ADDON_FAILED, INTERNAL, UNREADABLE, Exchange, Refusal, grpc_status_of
from sidecar.inspect.http1 import BadHead
from sidecar.inspect.hub import Inspection
from sidecar.inspect.settings import OnAddonError
from sidecar.inspect.stream import Stream

#: Fields of responses that only we may set; and those by which a host outside would have its client come another way,
#: such as over QUIC, where nobody reads (RFC 7838).
_OURS: Final = frozenset({b"x-hedgerow-reason"})
_NOT_FROM_OUTSIDE: Final = _OURS | {b"alt-svc"}

if TYPE_CHECKING:
    from sidecar.inspect.connection import InspectedConnection
    from sidecar.inspect.watching import Watcher
    from sidecar.inspect.websocket_tap import MessageWatcher


class Judge(Admission):
    """Of one connection."""

    def __init__(self, lane: InspectedConnection, hub: Inspection) -> None:
        super().__init__(lane, hub)
        self._watchers: dict[Stream, Watcher] = {}
        self._messages: MessageWatcher | None = None

    @property
    def collecting(self) -> str | None:
        """mitmproxy's option ``stream_large_bodies`` where addons want to see bodies."""
        return str(self._settings.addon_bodies) if self._collects else None

    @property
    def _collects(self) -> bool:
        return self._addons is not None and self._settings.addon_bodies > 0

    # --- requests

    def request_head(self, stream: Stream, request: http.Request, *, ended: bool) -> Refusal | None:
        """Judge a request; where it may pass, its head is as it will be written."""
        self._hub.requests += 1
        head = self._head_of(request)
        stream.upgrade = head is not None and head.upgrade
        exchange = stream.exchange = self._exchange(request, head)
        if exchange.grpc:
            stream.request_messages = Messages()
        self._watch_request(stream)
        refusal = self._verdict(request, head, exchange)
        if refusal is not None:
            return refusal
        self._prepare(stream, request, exchange)
        if self._addons is not None:
            refusal = self._ask_addons(stream, "requestheaders", ended=ended)
        exchange.request_bytes += forms.size_of(request.headers) + len(request.data.path) + len(request.data.method)
        return refusal

    # --- addons

    def _ask_addons(self, stream: Stream, hook: str, *, ended: bool) -> Refusal | None:
        """Give the request to the addons, and judge what they made of it."""
        assert self._addons is not None
        flow, exchange = stream.flow, stream.exchange
        assert exchange is not None
        request = flow.request
        framing = forms.framing(request.headers)
        ours = forms.ours(request.headers)
        version, authority, scheme = request.data.http_version, request.data.authority, request.data.scheme
        if not self._addons.call(hook, flow) and self._settings.on_addon_error is OnAddonError.REFUSE:
            return ADDON_FAILED
        collected = hook == "request" and request.data.content is not None
        # one without a body is collected as it is, so that what addons make of it holds whatever the setting is
        collects = self._addons.wants("request") if ended else self._collects
        request.stream = not (collected or (hook == "requestheaders" and collects))
        # what frames the message, where it goes and what we vouch for is not theirs to change
        forms.without_ours(request.headers)
        kept = tuple(field for field in request.headers.fields if field[0].lower() not in forms.FRAMING)
        request.headers.fields = (*framing, *kept, *ours)
        request.data.http_version, request.data.authority, request.data.scheme = version, authority, scheme
        if collected:
            _frame_collected(request)
        if flow.error is not None:  # flow.kill()
            return Refusal(403, "addon-refused")
        if flow.response is not None:  # it answers in the application's place, through our own form of an answer
            given, flow.response = flow.response, None
            return Refusal(given.status_code if 400 <= given.status_code <= 599 else 403, "addon-refused")
        head = self._head_of(request)
        target = request.data.path
        if head is None or target != head.target or request.data.method != head.method.encode():
            exchange.method = request.data.method.decode("latin-1")
            exchange.path = target.partition(b"?")[0].decode("latin-1")
            if stream.upgrade:
                return UNREADABLE  # an upgrade that became something else
            exchange.operation = self._operation(request, None)
        return self._changed_verdict(request, head, exchange)

    def _changed_verdict(self, request: http.Request, head: RequestHead | None, exchange: Exchange) -> Refusal | None:
        try:
            forms.check_request(request, http2=head is None)
        except BadHead as error:
            self.unreadable(f"addon: {error}")
            return UNREADABLE
        if self._outbound and not self._is_for(request):
            return OTHER_HOST
        decision = exchange.decision = self._ask_all(exchange.operation, head)
        if not decision.allowed:
            return Refusal.of(decision)
        if self._by_operation and (overridden(request) or not is_clear(request, exchange.operation)):
            return UNCLEAR_REQUEST
        return None

    def request_collected(self, stream: Stream) -> Refusal | None:
        """The whole body is there; the addons see it, and the request is judged once more."""
        stream.request_ended = True
        assert stream.exchange is not None
        refusal = self._ask_addons(stream, "request", ended=True)
        content = stream.flow.request.raw_content or b""
        stream.exchange.request_bytes += len(content)
        if refusal is None:
            stream.count_request(content)
        if stream.request_tee is not None:
            stream.request_tee(content)
        stream.exchange.streamed = True
        if refusal is not None:
            self._hub.refused += 1
        return refusal

    def request_end(self, stream: Stream) -> bool:
        """The last byte of a streamed request came; whether it may go on.

        What an addon changes now comes too late. What it refuses, or fails in, is ended: the application may have acted
        on it, and its answer goes to nobody.
        """
        if self._addons is None:
            return True
        flow, answer = stream.flow, stream.flow.response
        done = self._addons.call("request", flow) or self._settings.on_addon_error is OnAddonError.PASS
        return done and flow.error is None and flow.response is answer

    # --- responses

    def response_head(self, stream: Stream, response: http.Response, *, ended: bool) -> bool:
        """Whether the response may pass; its head is then as it will be written."""
        exchange = stream.exchange
        assert exchange is not None
        http2 = response.is_http2
        try:
            forms.check_fields(response.headers.fields, http2=http2)
            validate_headers(response)
        except ValueError:
            return False
        if response.status_code == 101 and not stream.upgrade:
            return False
        exchange.status = response.status_code
        exchange.grpc_status = grpc_status_of(forms.first(response.headers, b"grpc-status"))
        exchange.response_bytes += forms.size_of(response.headers)
        headers = response.headers
        if exchange.grpc and response.status_code == 200 and is_grpc(forms.first(headers, b"content-type")):
            stream.response_messages = Messages()
        forms.without(headers, _NOT_FROM_OUTSIDE if self._outbound else _OURS)
        for rule in self._applied.pop(stream, ()):
            change(headers, rule.response_remove, rule.response_set)
        if not http2 and self._lane.leaving and response.status_code != 101:
            forms.set_field(headers, b"connection", b"close")
        return self._addons is None or self._addons_on_response(stream, response, ended=ended)

    def _addons_on_response(self, stream: Stream, response: http.Response, *, ended: bool) -> bool:
        assert self._addons is not None
        framing, status = forms.framing(response.headers), response.status_code
        done = self._addons.call("responseheaders", stream.flow)
        if not done and self._settings.on_addon_error is OnAddonError.REFUSE:
            return False
        if stream.flow.response is not response or stream.flow.error is not None:
            return False
        kept = tuple(field for field in response.headers.fields if field[0].lower() not in forms.FRAMING)
        response.headers.fields = (*framing, *kept)
        if (status == 101) != (response.status_code == 101) or not 100 < response.status_code < 600:
            return False
        collects = self._addons.wants("response") if ended else self._collects
        response.stream = status == 101 or not collects
        try:
            forms.check_fields(response.headers.fields, http2=response.is_http2)
        except ValueError:
            return False
        return True

    def response_end(self, stream: Stream) -> None:
        """The last byte of a streamed response came."""
        if self._addons is not None:
            self._addons.call("response", stream.flow)

    def response_collected(self, stream: Stream) -> bool:
        """The whole response is there, and nothing of it was sent; whether it may be."""
        response, exchange = stream.flow.response, stream.exchange
        assert response is not None
        assert exchange is not None
        if self._addons is not None:
            framing, version = forms.framing(response.headers), response.data.http_version
            if not self._addons.call("response", stream.flow) and self._settings.on_addon_error is OnAddonError.REFUSE:
                return False
            after = stream.flow.response
            if after is None:  # taken away: then it is what it was
                after = stream.flow.response = response
            elif after is not response:  # exchanged as a whole
                after.data.http_version = version
                framing = ()
            kept = tuple(field for field in after.headers.fields if field[0].lower() not in forms.FRAMING)
            after.headers.fields = (*framing, *kept)
            if stream.flow.request.method == "HEAD" or after.status_code in (204, 304):
                after.raw_content = b""  # a length that it says is not that of a body here
            else:
                _frame_collected(after)
            try:
                forms.check_fields(after.headers.fields, http2=after.is_http2)
            except ValueError:
                after.headers = http.Headers(((b"content-length", b"%d" % len(after.raw_content or b"")),))
            response = after
        content = response.raw_content or b""
        exchange.response_bytes += len(content)
        stream.count_response(content)
        if stream.response_tee is not None:
            stream.response_tee(content)
        return True

    def answered_by_us(self, stream: Stream) -> None:
        """A request that was collected is refused."""

    # --- ends

    def refused(self, stream: Stream, response: http.Response) -> None:
        """We answered in the application's place."""
        self._hub.refused += 1
        exchange = stream.exchange
        if exchange is not None:
            exchange.response_bytes += forms.size_of(response.headers) + len(response.raw_content or b"")
            if not response.is_http2 and self._lane.leaving:
                forms.set_field(response.headers, b"connection", b"close")
            self._report(stream, exchange)

    def failed(self, stream: Stream, why: str) -> None:
        """It ended before its end."""
        if stream.exchange is not None:
            if stream.exchange.grpc and stream.exchange.grpc_status < 0 and stream.exchange.streamed:
                stream.exchange.grpc_status = INTERNAL if "denied" not in why else 7
            self._report(stream, stream.exchange)
        if self._addons is not None:
            self._addons.call("error", stream.flow)

    def over(self, stream: Stream) -> None:
        """Nothing more comes of it."""
        self._applied.pop(stream, None)
        if stream.exchange is not None:
            self._report(stream, stream.exchange)

    def _report(self, stream: Stream, exchange: Exchange) -> None:
        if exchange.done:
            return
        now = monotonic()
        name = self._lane.site.name(self._port, exchange.operation, self._peer.host)
        self._lane.context.fabric.connections.flows.request(exchange.report(self.record, name, now))
        watcher = self._watchers.pop(stream, None)
        if watcher is not None:
            watcher.over(stream, exchange, now)

    # --- behind 101, and watching

    def upgraded(self, stream: Stream) -> Layer | None:
        """What reads the bytes behind 101 on their way; None: nobody."""
        self._upgraded = stream
        websocket = forms.first(stream.flow.request.headers, b"upgrade").lower() == b"websocket"
        if websocket:
            stream.flow.websocket = WebSocketData()
        if stream.exchange is not None:
            self._report(stream, stream.exchange)
            if websocket and self._hub.taps is not None:
                from sidecar.inspect.websocket_tap import MessageWatcher

                self._messages = MessageWatcher(self._hub.taps, self._lane, stream.exchange, stream.flow)
        if self._addons is not None and self._addons.wants("websocket_message") and websocket:
            from sidecar.inspect.websocket import BoundedWebsocket

            return BoundedWebsocket(stream.context, stream.flow, self._websocket_message, self._settings.limits.message)
        return None

    def handed_on(self) -> tuple[str, MessageWatcher | None]:
        """The connection goes on without us: under which operation, and who watches its messages."""
        assert self._upgraded is not None
        return self._upgrade_of(self._upgraded), self._messages

    def _websocket_message(self, flow: http.HTTPFlow) -> bool:
        assert self._addons is not None
        assert flow.websocket is not None
        message = flow.websocket.messages[-1]
        if self._messages is not None:
            self._messages.whole(message.content, from_client=message.from_client, is_text=message.is_text)
        return self._addons.call("websocket_message", flow) or self._settings.on_addon_error is OnAddonError.PASS

    def websocket_hook(self, stream: Stream, hook: Any) -> None:
        """mitmproxy tells that a WebSocket begins or ends; messages are :meth:`_websocket_message`'s."""

    def _watch_request(self, stream: Stream) -> None:
        taps = self._hub.taps
        if taps is None or not taps.wants(self._port):
            return
        from sidecar.inspect.watching import watch

        watcher = watch(taps, self._lane, stream)
        if watcher is not None:
            self._watchers[stream] = watcher


def _frame_collected(message: http.Request | http.Response) -> None:
    """Have the head say how long the body is now."""
    content = message.raw_content or b""
    headers = message.headers
    if forms.first(headers, b"transfer-encoding"):
        if "chunked" in headers["transfer-encoding"].lower():
            return
        forms.without(headers, frozenset({b"transfer-encoding"}))
    said, length = forms.first(headers, b"content-length"), b"%d" % len(content)
    if said != length and (content or said):
        forms.set_field(headers, b"content-length", length)
