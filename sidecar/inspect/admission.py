"""What is decided of a request by its head: its form, its operation, the policy's verdict, and how the head goes on.

The order in which it is asked, and who is asked beside, is :mod:`sidecar.inspect.judging`'s.
"""

from __future__ import annotations

import logging
import re
from time import monotonic
from typing import TYPE_CHECKING, Final

from mitmproxy import http

from graph.policy import Decision, Reason
from sidecar.dataplane.live import refusal
from sidecar.http.grpc_messages import is_grpc
from sidecar.http.head import RequestHead, is_override
from sidecar.http.operation import UNCLEAR, is_clean, operation_of
from sidecar.http.rewrite import certificate_line
from sidecar.inspect import forms
from sidecar.inspect.exchange import UNREADABLE, Exchange, Refusal
from sidecar.inspect.http1 import BadHead, StrictServer
from sidecar.inspect.hub import Inspection
from sidecar.inspect.settings import HeaderRule
from sidecar.inspect.stream import Stream

if TYPE_CHECKING:
    from sidecar.inspect.connection import InspectedConnection

#: A request that names another host than the connection was judged by (RFC 9110 section 15.5.20).
OTHER_HOST: Final = Refusal(421, "other-host")
_PORT: Final = re.compile(rb"(.*?)(?::([0-9]{1,5}))?", re.DOTALL)
#: What a request that is no operation is answered with where rules by operation hold.
UNCLEAR_REQUEST: Final = Refusal(403, "unclear-request")


class Admission:
    """Of one connection."""

    def __init__(self, lane: InspectedConnection, hub: Inspection) -> None:
        self._lane = lane
        self._hub = hub
        self._settings = hub.settings
        self.record = record = lane.record
        self._port = lane.context.port
        self._outbound = lane.outbound
        self._peer = record.destination if lane.outbound else record.source
        self._by_operation = lane.context.by_operation
        rules = () if lane.outbound else hub.settings.headers  # those speak of our application's ports
        self._rules = tuple(rule for rule in rules if not rule.ports or self._port in rule.ports)
        self._addons = hub.addons
        self._certificate = _certificate(lane) if record.source.verified and not lane.outbound else b""
        self._applied: dict[Stream, tuple[HeaderRule, ...]] = {}
        self._upgraded: Stream | None = None

    def _head_of(self, request: http.Request) -> RequestHead | None:
        half = self._lane.layers.client
        return half.head if isinstance(half, StrictServer) else None

    def _exchange(self, request: http.Request, head: RequestHead | None) -> Exchange:
        data = request.data
        method = data.method.decode("latin-1")
        path = data.path.partition(b"?")[0].decode("latin-1")
        headers = request.headers
        grpc = head is None and is_grpc(forms.first(headers, b"content-type"))
        host = data.authority or forms.first(headers, b"host")
        return Exchange(
            self._operation(request, head),
            self.record.decision,
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
        if overridden(request):
            return f"{method} {UNCLEAR}"
        return operation_of(method, path)

    def _verdict(self, request: http.Request, head: RequestHead | None, exchange: Exchange) -> Refusal | None:
        try:
            forms.check_request(request, http2=head is None)
        except BadHead as error:
            self.unreadable(str(error))
            return UNREADABLE
        if self._outbound and not self._is_for(request):
            exchange.decision = refusal(Reason.NO_RULE)
            return OTHER_HOST
        decision = exchange.decision = self._ask_all(exchange.operation, head)
        self._hub_protocol(exchange)
        if not decision.allowed:
            return Refusal.of(decision)
        return UNCLEAR_REQUEST if self._is_doubtful(request, head, exchange) else None

    def _is_doubtful(self, request: http.Request, head: RequestHead | None, exchange: Exchange) -> bool:
        """Whether rules by operation hold, and somebody could see another operation in it."""
        return self._by_operation and _is_unclear(request, head, exchange)

    def _upgrade_of(self, stream: Stream) -> str:
        """The operation of a request that asked for another protocol; empty, so that it is denied whatever a rule
        denies, where somebody could see another one in it."""
        exchange, request = stream.exchange, stream.flow.request
        assert exchange is not None
        return "" if _is_unclear(request, self._head_of(request), exchange) else exchange.operation

    def _ask(self, operation: str) -> Decision:
        return self._hub.judge(self._peer, self._port, operation, outbound=self._outbound)

    def _ask_all(self, operation: str, head: RequestHead | None) -> Decision:
        """The decision on a request, whatever its server may take it for."""
        decision = self._ask(operation)
        return ((head.hides(self._ask) if head is not None else None) or decision) if decision.allowed else decision

    def _is_for(self, request: http.Request) -> bool:
        """Whether a request to what is outside the mesh is for the host that its connection was judged by. Behind one
        address, and one certificate, there may be many."""
        host = self._peer.host
        if not host:
            return True  # rules by address speak of it, whoever is there
        said = _PORT.fullmatch((request.data.authority or forms.first(request.headers, b"host")).lower())
        assert said is not None  # it matches everything
        return said[1] == host.encode("ascii") and said[2] in (None, b"%d" % self._port)

    def _hub_protocol(self, exchange: Exchange) -> None:
        if self.record.protocol != exchange.protocol:
            self.record.protocol = exchange.protocol

    def _prepare(self, stream: Stream, request: http.Request, exchange: Exchange) -> None:
        """Our own headers, then the header rules."""
        headers = request.headers
        forms.without_ours(headers)
        if self._outbound:  # what is ours is nobody's business out there
            exchange.request_id = forms.first(headers, b"x-request-id").decode("latin-1")
            if not request.is_http2:  # for addons; the line that is written has neither
                request.data.scheme = b"https" if self._lane.context.tls else b"http"
                request.data.host, request.data.port = self._peer.host or self._peer.address, self._port
            if stream.upgrade and self._addons is not None and self._addons.wants("websocket_message"):
                forms.without(headers, frozenset({b"sec-websocket-extensions"}))
            return
        added = []
        if self._certificate:
            added.append((b"x-forwarded-client-cert", self._certificate))
        if stream.upgrade and self._addons is not None and self._addons.wants("websocket_message"):
            # what is compressed could become any size before an addon sees it
            forms.without(headers, frozenset({b"sec-websocket-extensions"}))
        request_id = forms.first(headers, b"x-request-id").decode("latin-1")
        traced = bool(forms.first(headers, b"traceparent"))
        if not (request_id and traced):
            for line in self._lane.site.identifiers.lines(traced, request_id).split(b"\r\n"):
                name, colon, value = line.partition(b": ")
                if colon:
                    added.append((name, value))
            request_id = request_id or self._lane.site.identifiers.last
        exchange.request_id = request_id
        if added:
            headers.fields = (*headers.fields, *added)
        if self._rules:
            rules = tuple(rule for rule in self._rules if rule.speaks_of(exchange.operation, self._port))
            if rules:
                self._applied[stream] = rules
                for rule in rules:
                    change(headers, rule.request_remove, rule.request_set)

    def denied_now(self, streams: list[Stream]) -> list[Stream]:
        """Which of the running requests the policy in force denies."""
        self._by_operation = self._lane.context.by_operation
        denied = []
        for stream in streams:
            exchange = stream.exchange
            if exchange is None or exchange.done:
                continue
            request = stream.flow.request
            head = self._head_of(request)  # HTTP/1 has one request at a time, and its head is the last that was read
            decision = self._ask_all(exchange.operation, head)
            if not decision.allowed:
                exchange.decision = decision
                denied.append(stream)
            elif self._is_doubtful(request, head, exchange):
                denied.append(stream)
        upgraded = self._upgraded
        if upgraded is not None and not denied and not self._ask(self._upgrade_of(upgraded)).allowed:
            denied.append(upgraded)
        return denied

    def unreadable(self, why: str) -> None:
        """A head whose form was refused."""
        self._hub.unreadable += 1
        self._lane.context.fabric.guards.counters.requests_malformed += 1
        source = self.record.source_identity or self.record.source.address
        text = "a request of %s to port %d was refused for its form: %s"
        self._lane.context.fabric.complaints.say(logging.WARNING, text, source, self._port, why)


def _is_unclear(request: http.Request, head: RequestHead | None, exchange: Exchange) -> bool:
    """Whether somebody could see another operation in it."""
    return head.unclear != "" if head is not None else not is_clear(request, exchange.operation)


def overridden(request: http.Request) -> bool:
    """Whether a header names another method or path than the request line, as some frameworks read them."""
    return any(name[:1] in b"xX" and is_override(name) for name, _ in request.headers.fields)


def is_clear(request: http.Request, operation: str) -> bool:
    """Whether nobody can see another operation in it."""
    return not operation.endswith(UNCLEAR) and (request.data.path == b"*" or is_clean(request.data.path))


def _certificate(lane: InspectedConnection) -> bytes:
    record = lane.record
    ours = str(lane.context.fabric.credentials.identity)
    line = certificate_line(ours, record.source_identity, record.source_certificate)
    return line.partition(b": ")[2].removesuffix(b"\r\n")


def change(headers: http.Headers, removed: frozenset[bytes], given: tuple[tuple[bytes, bytes], ...]) -> None:
    """Do what a header rule says."""
    if removed:
        forms.without(headers, removed)
    for name, value in given:
        forms.set_field(headers, name, value)
