"""What is asked of every request and response in the lane, in the order in which it is asked.

A request's head: its form; the policy on its operation; our own headers off and on again; header rules; the user's
addons; and, if any of those changed it, its form and the policy once more. Whatever was decided, exactly one report
goes to the flow sink.

What a person sees (taps) and what an addon does never decides that a request passes.
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from mitmproxy import http
from mitmproxy.net.http.validate import validate_headers
from mitmproxy.proxy.layer import Layer
from mitmproxy.websocket import WebSocketData

from sidecar.http.head import RequestHead
from sidecar.http.operation import UNCLEAR, is_clean, operation_of
from sidecar.http.rewrite import Identifiers, certificate_line
from sidecar.inspect import forms
from sidecar.inspect.exchange import ADDON_FAILED, INTERNAL, UNREADABLE, Exchange, Refusal, grpc_status_of
from sidecar.inspect.http1 import BadHead, StrictServer
from sidecar.inspect.hub import Inspection
from sidecar.inspect.settings import HeaderRule, OnAddonError
from sidecar.inspect.stream import Stream

if TYPE_CHECKING:
    from sidecar.inspect.lane import InspectLane
    from sidecar.inspect.watching import Watcher

_log = logging.getLogger(__name__)

_GRPC: Final = b"application/grpc"
#: Headers by which some frameworks take another method or path than the request line's.
_OVERRIDES: Final = frozenset(
    f"x{a}{name}".replace("-", a).encode()
    for a in "-_"
    for name in ("http-method", "http-method-override", "method-override", "original-url", "rewrite-url")
)
#: What a request that is no operation is answered with where rules by operation hold.
UNCLEAR_REQUEST: Final = Refusal(403, "unclear-request")
_IDENTIFIERS: Final = Identifiers("00")


class Judge:
    """Of one connection."""

    def __init__(self, lane: InspectLane, hub: Inspection) -> None:
        self._lane = lane
        self._hub = hub
        self._settings = hub.settings
        self._record = record = lane.record
        self._port = lane.context.port
        self._source = record.source
        self._by_operation = lane.context.by_operation
        self._rules = tuple(rule for rule in hub.settings.headers if not rule.ports or self._port in rule.ports)
        self._addons = hub.addons
        self._certificate = _certificate(lane) if record.source.verified else b""
        self._applied: dict[Stream, tuple[HeaderRule, ...]] = {}
        self._watchers: dict[Stream, Watcher] = {}
        self._upgraded: Stream | None = None

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
        self._watch_request(stream)
        refusal = self._verdict(request, head, exchange)
        if refusal is not None:
            return refusal
        self._prepare(stream, request, exchange)
        if self._addons is not None:
            refusal = self._ask_addons(stream, "requestheaders", ended=ended)
        exchange.request_bytes += forms.size_of(request.headers) + len(request.data.path) + len(request.data.method)
        return refusal

    def _head_of(self, request: http.Request) -> RequestHead | None:
        half = self._lane.layers.client
        return half.head if isinstance(half, StrictServer) else None

    def _exchange(self, request: http.Request, head: RequestHead | None) -> Exchange:
        data = request.data
        method = data.method.decode("latin-1")
        path = data.path.partition(b"?")[0].decode("latin-1")
        headers = request.headers
        grpc = head is None and forms.first(headers, b"content-type").startswith(_GRPC)
        host = data.authority or forms.first(headers, b"host")
        return Exchange(
            self._operation(request, head),
            self._record.decision,
            "grpc" if grpc else "http" if head is not None else "http2",
            monotonic(),
            method,
            path,
            host.decode("latin-1"),
            forms.first(headers, b"user-agent").decode("latin-1"),
        )

    def _operation(self, request: http.Request, head: RequestHead | None) -> str:
        if head is not None:
            return head.operation
        method, path = request.data.method.decode("latin-1"), request.data.path
        if any(name.lower() in _OVERRIDES for name, _ in request.headers.fields):
            return f"{method} {UNCLEAR}"
        return operation_of(method, path)

    def _verdict(self, request: http.Request, head: RequestHead | None, exchange: Exchange) -> Refusal | None:
        try:
            forms.check_request(request, http2=head is None)
        except BadHead as error:
            self.unreadable(str(error))
            return UNREADABLE
        decision = exchange.decision = self._hub.judge(self._source, self._port, exchange.operation)
        self._hub_protocol(exchange)
        if not decision.allowed:
            return Refusal.of(decision)
        if self._by_operation:
            clean = head.unclear == "" if head is not None else _clear(request, exchange.operation)
            if not clean:
                return UNCLEAR_REQUEST
        return None

    def _hub_protocol(self, exchange: Exchange) -> None:
        if self._record.protocol != exchange.protocol:
            self._record.protocol = exchange.protocol

    def _prepare(self, stream: Stream, request: http.Request, exchange: Exchange) -> None:
        """Our own headers, then the header rules."""
        headers = request.headers
        forms.without(headers, forms.OURS)
        added = []
        if self._certificate:
            added.append((b"x-forwarded-client-cert", self._certificate))
        if stream.upgrade and self._addons is not None and self._addons.wants("websocket_message"):
            # what is compressed could become any size before an addon sees it
            forms.without(headers, frozenset({b"sec-websocket-extensions"}))
        request_id = forms.first(headers, b"x-request-id").decode("latin-1")
        traced = bool(forms.first(headers, b"traceparent"))
        if not (request_id and traced):
            for line in _IDENTIFIERS.lines(traced, request_id).split(b"\r\n"):
                name, colon, value = line.partition(b": ")
                if colon:
                    added.append((name, value))
            request_id = request_id or _IDENTIFIERS.last
        exchange.request_id = request_id
        if added:
            headers.fields = (*headers.fields, *added)
        if self._rules:
            rules = tuple(rule for rule in self._rules if rule.speaks_of(exchange.operation, self._port))
            if rules:
                self._applied[stream] = rules
                for rule in rules:
                    _change(headers, rule.request_remove, rule.request_set)

    # --- addons

    def _ask_addons(self, stream: Stream, hook: str, *, ended: bool) -> Refusal | None:
        """Give the request to the addons, and judge what they made of it."""
        assert self._addons is not None
        flow, exchange = stream.flow, stream.exchange
        assert exchange is not None
        request = flow.request
        framing = forms.framing(request.headers)
        ours = tuple(field for field in request.headers.fields if field[0].lower() in forms.OURS)
        version, authority, scheme = request.data.http_version, request.data.authority, request.data.scheme
        if not self._addons.call(hook, flow) and self._settings.on_addon_error is OnAddonError.REFUSE:
            return ADDON_FAILED
        collected = hook == "request" and request.data.content is not None
        request.stream = not (collected or (hook == "requestheaders" and self._collects and not ended))
        # what frames the message, where it goes and what we vouch for is not theirs to change
        fixed = frozenset(forms.FRAMING) | forms.OURS
        kept = tuple(field for field in request.headers.fields if field[0].lower() not in fixed)
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
        decision = exchange.decision = self._hub.judge(self._source, self._port, exchange.operation)
        if not decision.allowed:
            return Refusal.of(decision)
        overridden = any(name.lower() in _OVERRIDES for name, _ in request.headers.fields)
        if self._by_operation and (overridden or not _clear(request, exchange.operation)):
            return UNCLEAR_REQUEST
        return None

    def request_collected(self, stream: Stream) -> Refusal | None:
        """The whole body is there; the addons see it, and the request is judged once more."""
        stream.request_ended = True
        assert stream.exchange is not None
        refusal = self._ask_addons(stream, "request", ended=True)
        content = stream.flow.request.raw_content or b""
        stream.exchange.request_bytes += len(content)
        if stream.request_tee is not None:
            stream.request_tee(content)
        stream.exchange.streamed = True
        if refusal is not None:
            self._hub.refused += 1
        return refusal

    def request_end(self, stream: Stream) -> None:
        """The last byte of a streamed request came."""
        if self._addons is not None:
            self._addons.call("request", stream.flow)

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
        forms.without(headers, frozenset({b"x-hedgerow-reason"}))
        for rule in self._applied.pop(stream, ()):
            _change(headers, rule.response_remove, rule.response_set)
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
        response.stream = ended or status == 101 or not self._collects
        try:
            forms.check_fields(response.headers.fields, http2=response.is_http2)
        except ValueError:
            return False
        return True

    def response_end(self, stream: Stream) -> None:
        """The last byte of a streamed response came."""
        if self._addons is not None:
            self._addons.call("response", stream.flow)

    def response_collected(self, stream: Stream) -> None:
        """The whole response is there, and nothing of it was sent."""
        response, exchange = stream.flow.response, stream.exchange
        assert response is not None
        assert exchange is not None
        if self._addons is not None:
            framing, version = forms.framing(response.headers), response.data.http_version
            self._addons.call("response", stream.flow)
            after = stream.flow.response
            if after is None:  # taken away: then it is what it was
                after = stream.flow.response = response
            elif after is not response:  # exchanged as a whole
                after.data.http_version = version
                framing = ()
            kept = tuple(field for field in after.headers.fields if field[0].lower() not in forms.FRAMING)
            after.headers.fields = (*framing, *kept)
            _frame_collected(after)
            try:
                forms.check_fields(after.headers.fields, http2=after.is_http2)
            except ValueError:
                after.headers = http.Headers(((b"content-length", b"%d" % len(after.raw_content or b"")),))
            response = after
        content = response.raw_content or b""
        exchange.response_bytes += len(content)
        if stream.response_tee is not None:
            stream.response_tee(content)

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
        self._lane.context.fabric.connections.flows.request(exchange.report(self._record, now))
        watcher = self._watchers.pop(stream, None)
        if watcher is not None:
            watcher.over(stream, exchange, now)

    def unreadable(self, why: str) -> None:
        """A head whose form was refused."""
        self._hub.unreadable += 1
        source = self._record.source_identity or self._record.source.address
        text = "a request of %s to port %d was refused for its form: %s"
        self._lane.context.fabric.complaints.say(logging.WARNING, text, source, self._port, why)

    def denied_now(self, streams: list[Stream]) -> list[Stream]:
        """Which of the running requests the policy in force denies."""
        self._by_operation = self._lane.context.by_operation
        denied = []
        for stream in streams:
            exchange = stream.exchange
            if exchange is None or exchange.done:
                continue
            decision = self._hub.judge(self._source, self._port, exchange.operation)
            if not decision.allowed:
                exchange.decision = decision
                denied.append(stream)
        if self._upgraded is not None and self._upgraded.exchange is not None and not denied:
            operation = self._upgraded.exchange.operation
            if not self._hub.judge(self._source, self._port, operation).allowed:
                denied.append(self._upgraded)
        return denied

    # --- behind 101, and watching

    def upgraded(self, stream: Stream) -> Layer | None:
        """What reads the bytes behind 101; None: nobody."""
        self._upgraded = stream
        if forms.first(stream.flow.request.headers, b"upgrade").lower() == b"websocket":
            stream.flow.websocket = WebSocketData()
        if stream.exchange is not None:
            self._report(stream, stream.exchange)
        if self._addons is not None and self._addons.wants("websocket_message") and stream.flow.websocket is not None:
            from sidecar.inspect.websocket import BoundedWebsocket

            return BoundedWebsocket(stream.context, stream.flow, self._websocket_message)
        return None

    def _websocket_message(self, flow: http.HTTPFlow) -> bool:
        assert self._addons is not None
        return self._addons.call("websocket_message", flow) or self._settings.on_addon_error is OnAddonError.PASS

    def websocket_hook(self, stream: Stream, hook: Any) -> None:
        """mitmproxy tells that a WebSocket begins or ends; messages are :meth:`_websocket_message`'s."""

    def watch(self, from_client: bool, data: memoryview) -> None:
        """Bytes pass behind 101."""

    def _watch_request(self, stream: Stream) -> None:
        taps = self._hub.taps
        if taps is None or not taps.wants(self._port):
            return
        from sidecar.inspect.watching import watch

        watcher = watch(taps, self._lane, stream)
        if watcher is not None:
            self._watchers[stream] = watcher


def _clear(request: http.Request, operation: str) -> bool:
    return not operation.endswith(UNCLEAR) and (request.data.path == b"*" or is_clean(request.data.path))


def _certificate(lane: InspectLane) -> bytes:
    record = lane.record
    ours = str(lane.context.fabric.credentials.identity)
    line = certificate_line(ours, record.source_identity, record.source_certificate)
    return line.partition(b": ")[2].removesuffix(b"\r\n")


def _change(headers: http.Headers, removed: frozenset[bytes], given: tuple[tuple[bytes, bytes], ...]) -> None:
    if removed:
        forms.without(headers, removed)
    for name, value in given:
        forms.set_field(headers, name, value)


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
