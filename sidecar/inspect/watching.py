"""Collects what a tap shows of one request."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Final

from graph.tap import MAX_BODY, Shown
from sidecar.inspect.exchange import Exchange
from sidecar.inspect.redact import Redactor
from sidecar.inspect.stream import Stream
from sidecar.inspect.taps import Tap, Taps

if TYPE_CHECKING:
    from sidecar.inspect.connection import InspectedConnection

#: What an event costs beside its fields and bodies, bytes.
_OVERHEAD: Final = 1024


class Body:
    """The beginning of a body, and the size of all of it."""

    __slots__ = ("kept", "limit", "size")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.kept = bytearray()
        self.size = 0

    def take(self, data: bytes) -> None:
        self.size += len(data)
        room = self.limit - len(self.kept)
        if room > 0:
            self.kept += data[:room]


class Watcher:
    """Of one request: tees its bodies where somebody wants them, and shows it at its end."""

    __slots__ = ("_at", "_fields", "_lane", "_path", "_redactor", "_request", "_response", "_taps", "_watching")

    def __init__(self, taps: Taps, watching: tuple[Tap, ...], lane: InspectedConnection, stream: Stream) -> None:
        self._taps = taps
        self._watching = watching
        self._lane = lane
        self._redactor = redactor_of(lane)
        self._at = time.time()
        request = stream.flow.request
        self._fields = request.headers.fields  # as the client sent them
        self._path = request.data.path.decode("latin-1")
        wanted = [tap.spec.body_bytes for tap in watching if tap.spec.bodies]
        limit = max(wanted, default=0)
        # a truncated document can not be redacted by its keys: more is kept than is shown
        self._request = Body(min(4 * limit, MAX_BODY))
        self._response = Body(min(4 * limit, MAX_BODY))
        stream.request_tee = self._request.take
        stream.response_tee = self._response.take

    def over(self, stream: Stream, exchange: Exchange, now: float) -> None:
        """The request is over: show it to those who still watch."""
        status = exchange.status
        for tap in self._watching:
            if self._taps.running_tap(tap) and tap.spec.of_status(status):
                self._taps.show(tap, partial(self._make, tap, stream, exchange, now), now)

    def _make(self, tap: Tap, stream: Stream, exchange: Exchange, now: float, shed: int) -> tuple[Shown, int]:
        redact, spec = self._redactor, tap.spec
        flow = stream.flow
        trailers = flow.request.trailers.fields if flow.request.trailers is not None else ()
        limit = spec.body_bytes
        body = bytes(self._request.kept) if spec.bodies else None
        request = redact.message(self._fields, trailers, self._request.size, body, limit)
        response = None
        if flow.response is not None:
            trailers = flow.response.trailers.fields if flow.response.trailers is not None else ()
            body = bytes(self._response.kept) if spec.bodies else None
            response = redact.message(flow.response.headers.fields, trailers, self._response.size, body, limit)
        record, decision = self._lane.record, exchange.decision
        shown = Shown(
            tap=spec.id,
            at=self._at,
            source=str(record.source.ref()),
            source_address=record.source.address,
            destination=str(record.destination.ref()),
            port=record.port,
            operation=exchange.operation,
            protocol=exchange.protocol,
            method=exchange.method,
            path=redact.path(self._path)[:2048],
            host=exchange.host[:512],
            status=exchange.status,
            grpc_status=exchange.grpc_status,
            verdict=decision.verdict,
            pending=decision.pending,
            reason=str(decision.reason),
            rule_id=decision.rule_id,
            seconds=max(0.0, now - exchange.started),
            request=request,
            response=response,
            shed=shed,
        )
        size = _OVERHEAD
        for message in (request, response):
            if message is not None:
                size += len(message.body) + sum(len(name) + len(value) for name, value in message.fields)
        return shown, size


def watch(taps: Taps, lane: InspectedConnection, stream: Stream) -> Watcher | None:
    """A watcher for a request that somebody watches; None when nobody does."""
    exchange = stream.exchange
    assert exchange is not None
    watching = taps.of_request(lane.record.source.workload, lane.record.port, exchange.operation)
    return Watcher(taps, watching, lane, stream) if watching else None


def redactor_of(lane: InspectedConnection) -> Redactor:
    """What this sidecar's settings hide."""
    settings = lane.hub.settings
    return Redactor(settings.visible, settings.hidden)
