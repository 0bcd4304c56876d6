"""Istio's standard metrics, so that Kiali and the dashboards that people have already show a mesh of ours.

Names are those of https://istio.io/latest/docs/reference/config/metrics/ and of the filter that implements it
(istio/proxy, ``source/extensions/filters/http/istio_stats/istio_stats.cc``); labels are in
:mod:`sidecar.metrics.istio_labels`; buckets are Envoy's defaults (envoy, ``source/common/stats/histogram_impl.cc``).
Where Istio's two data planes differ:

* Bytes of TCP are counted as the client's side sees them: *received* is what came from the source, *sent* what went
  back to it, at both reporters.
* A connection that carried requests that we saw is in the ``istio_requests_total`` group alone, as with Istio's
  sidecars; Kiali would draw two edges otherwise.
* Messages of gRPC are counted as Istio's sidecars count them (:mod:`sidecar.http.grpc_messages`): of calls alone, also
  of those that still run, and with a call's first message in either direction there is a series for both.

Counting rules: every connection, request, message and byte is counted once. Bytes and messages of live connections are
added when a page is made; what moved after that, when they end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, cast

from graph.model import Direction, Verdict
from sidecar.access_log import connection_flags
from sidecar.dataplane.contracts import Record, Request
from sidecar.metrics.exposition import Kind, Page
from sidecar.metrics.istio_labels import (
    GRPC_CODES,
    MESSAGE_LABELS,
    NOTHING_TOLD,
    REQUEST_LABELS,
    TCP_LABELS,
    Labels,
    SeriesKey,
    folded,
    key_of,
    message_key_of,
    text_of,
)
from sidecar.metrics.registry import MAX_SERIES, Bounded, Histogram

#: Envoy's default bounds, for milliseconds and for bytes alike.
BUCKETS: Final = (
    *(0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000),
    *(300_000, 600_000, 1_800_000, 3_600_000),
)

_REQUESTS = "istio_requests_total"
_HISTOGRAMS: Final = (
    ("istio_request_duration_milliseconds", "Duration of requests"),
    ("istio_request_bytes", "Size of requests"),
    ("istio_response_bytes", "Size of responses"),
)
_TCP: Final = (
    ("istio_tcp_connections_opened_total", "Connections opened"),
    ("istio_tcp_connections_closed_total", "Connections closed"),
    ("istio_tcp_sent_bytes_total", "Bytes sent back to the source"),
    ("istio_tcp_received_bytes_total", "Bytes received from the source"),
)
_MESSAGES: Final = (
    ("istio_request_messages_total", "gRPC messages of requests"),
    ("istio_response_messages_total", "gRPC messages of responses"),
)
#: Every family that this module writes.
NAMES: Final = (_REQUESTS, *(name for group in (_HISTOGRAMS, _MESSAGES, _TCP) for name, _ in group))

_HTTP: Final = frozenset({"http", "http2", "grpc"})
#: Live connections that are brought up to date between two turns of others.
_AT_ONCE: Final = 256


class _Requests:
    """The cell of one label set: Istio's four request families."""

    __slots__ = ("duration", "labels", "received", "sent")

    def __init__(self, labels: str) -> None:
        self.labels = labels
        self.duration = Histogram(BUCKETS)
        self.received = Histogram(BUCKETS)
        self.sent = Histogram(BUCKETS)


class _Tcp:
    """The cell of one label set: Istio's four TCP families."""

    __slots__ = ("closed", "labels", "opened", "received", "sent")

    def __init__(self, labels: str) -> None:
        self.labels = labels
        self.opened = 0
        self.closed = 0
        self.sent = 0
        self.received = 0


class _Messages:
    """The cell of one label set: messages of gRPC."""

    __slots__ = ("answers", "labels", "questions")

    def __init__(self, labels: str) -> None:
        self.labels = labels
        self.questions = 0
        self.answers = 0


class _Live:
    """A connection that is open: how much of it was counted, and where its requests are counted."""

    __slots__ = (
        "answers",
        "code",
        "denied",
        "grpc",
        "opened",
        "protocol",
        "questions",
        "received",
        "record",
        "requests",
        "sent",
        "tcp",
    )

    def __init__(self, record: Record) -> None:
        self.record = record
        self.sent = 0
        self.received = 0
        self.questions = 0
        self.answers = 0
        self.opened = False
        self.tcp: _Tcp | None = None
        # the last request's cell, and what made it that one: the next request nearly always has the same
        self.requests: _Requests | None = None
        self.protocol = ""
        self.code = 0
        self.grpc = 0
        self.denied = False


class IstioMetrics:
    """Implements :class:`sidecar.dataplane.contracts.FlowSink` and :class:`sidecar.metrics.registry.Collector`.

    :param labels: of our own pod
    :param limit: label sets of the request metrics, of the TCP metrics, and of the message metrics
    """

    def __init__(self, labels: Labels = NOTHING_TOLD, limit: int = MAX_SERIES) -> None:
        self._live: dict[int, _Live] = {}
        self._fresh: dict[int, Record] = {}  # of which nothing was counted yet: most end before a page is made
        self._cells: dict[tuple[object, ...], _Tcp] = {}  # by what makes their keys, which are longer
        self._limit = limit
        self._requests: Bounded[SeriesKey, _Requests] = Bounded(
            limit, lambda key: _Requests(text_of(key, REQUEST_LABELS, labels)), folded
        )
        self._tcp: Bounded[SeriesKey, _Tcp] = Bounded(limit, lambda key: _Tcp(text_of(key, TCP_LABELS, labels)), folded)
        self._messages: Bounded[SeriesKey, _Messages] = Bounded(
            limit, lambda key: _Messages(text_of(key, MESSAGE_LABELS, labels)), folded
        )
        #: Connections refused by the policy or for want of knowledge, by direction and reason.
        self.refused: dict[tuple[str, ...], int] = {}
        #: Requests refused, by reason.
        self.refused_requests: dict[tuple[str, ...], int] = {}
        #: Connections and requests that were allowed and that mode ``enforce`` would refuse.
        self.would_refuse = 0

    @property
    def folded(self) -> int:
        return self._requests.folded + self._tcp.folded + self._messages.folded

    def request_cells(self) -> list[tuple[SeriesKey, _Requests]]:
        """What was counted of requests, by key; likewise :meth:`tcp_cells` and :meth:`message_cells`. For
        :mod:`sidecar.metrics.sums`."""
        return self._requests.items()

    def tcp_cells(self) -> list[tuple[SeriesKey, _Tcp]]:
        return self._tcp.items()

    def message_cells(self) -> list[tuple[SeriesKey, _Messages]]:
        return self._messages.items()

    def request_cell(self, key: tuple[object, ...]) -> _Requests:
        """Where a key's requests are counted, which :meth:`request_cells` of another process has named."""
        return self._requests.get(cast(SeriesKey, key))

    def tcp_cell(self, key: tuple[object, ...]) -> _Tcp:
        return self._tcp.get(cast(SeriesKey, key))

    def message_cell(self, key: tuple[object, ...]) -> _Messages:
        return self._messages.get(cast(SeriesKey, key))

    def live(self) -> list[Record]:
        """The connections that are open now."""
        return [*(live.record for live in self._live.values()), *self._fresh.values()]

    # the flow sink

    def opened(self, record: Record) -> None:
        decision = record.decision
        if not record.closed:
            self._fresh[id(record)] = record  # the entry holds the record, so its id is nobody else's
            if decision.pending is Verdict.DENY:
                self.would_refuse += 1
            return
        key = (record.direction.value, decision.reason.value)
        self.refused[key] = self.refused.get(key, 0) + 1
        self._finish(_Live(record))

    def closed(self, record: Record) -> None:
        if self._fresh.pop(id(record), None) is None:
            live = self._live.pop(id(record), None)
            if live is not None:
                self._finish(live)
        elif record.protocol in _HTTP:
            self._finish(_Live(record))
        else:  # the usual: all that there is to count of it, at once
            cell = self._cell(record)
            cell.opened += 1
            cell.closed += 1
            cell.received += record.bytes_sent
            cell.sent += record.bytes_received

    def request(self, request: Request) -> None:
        live = self._live.get(id(request.record)) or self._begin(request.record)
        cell = live.requests
        denied = request.decision.verdict is Verdict.DENY
        if (
            cell is None
            or live.code != request.status
            or live.grpc != request.grpc_status
            or live.denied is not denied
            or live.protocol != request.protocol
        ):
            cell = self._cell_for(live, request, denied)
        cell.duration.observe(request.seconds * 1000)
        cell.received.observe(request.request_bytes)
        cell.sent.observe(request.response_bytes)
        if denied:
            key = (request.decision.reason.value,)
            self.refused_requests[key] = self.refused_requests.get(key, 0) + 1
        elif request.decision.pending is Verdict.DENY:
            self.would_refuse += 1

    # the page

    def settle(self) -> Iterator[None]:
        for index, record in enumerate(self.live()):
            live = self._live.get(id(record))
            if live is None and id(record) in self._fresh:
                live = self._begin(record)
            if live is not None and not record.closed:
                self._add(live)
                self._add_messages(live)
            if index % _AT_ONCE == _AT_ONCE - 1:
                yield

    def expose(self, page: Page) -> Iterator[None]:
        requests = [cell for _, cell in self._requests.items()]
        page.family(_REQUESTS, Kind.COUNTER, "Requests")
        for cell in requests:
            page.sample(_REQUESTS, cell.labels, sum(cell.duration.counts))
        for index, (name, help_text) in enumerate(_HISTOGRAMS):
            page.family(name, Kind.HISTOGRAM, help_text)
            for cell in requests:
                histogram = (cell.duration, cell.received, cell.sent)[index]
                page.histogram(name, cell.labels, histogram.bounds, histogram.counts, histogram.total)
                yield
        messages = [cell for _, cell in self._messages.items()]
        for index, (name, help_text) in enumerate(_MESSAGES):
            page.family(name, Kind.COUNTER, help_text)
            for counted in messages:
                page.sample(name, counted.labels, (counted.questions, counted.answers)[index])
            yield
        tcp = [cell for _, cell in self._tcp.items()]
        for index, (name, help_text) in enumerate(_TCP):
            page.family(name, Kind.COUNTER, help_text)
            for one in tcp:
                page.sample(name, one.labels, (one.opened, one.closed, one.sent, one.received)[index])
            yield

    # counting

    def _begin(self, record: Record) -> _Live:
        """What is counted of a connection from now on; it is kept if the connection is open."""
        live = _Live(record)
        if self._fresh.pop(id(record), None) is not None:
            self._live[id(record)] = live
        return live

    def _cell(self, record: Record) -> _Tcp:
        """Where a connection is counted, as it is known by now."""
        flags = connection_flags(record)
        short = (
            record.direction is Direction.INBOUND, record.source, record.destination,
            record.source_identity, record.destination_identity, record.service, flags,
        )  # fmt: skip
        cell = self._cells.get(short)
        if cell is None:
            folded = self._tcp.folded
            cell = self._tcp.get(key_of(record, flags, "tcp", 0, -1))
            if self._tcp.folded == folded:  # what has no series of its own is counted as that every time
                if len(self._cells) >= self._limit:
                    self._cells.clear()
                self._cells[short] = cell
        return cell

    def _cell_for(self, live: _Live, request: Request, denied: bool) -> _Requests:
        protocol = "grpc" if request.protocol == "grpc" else "http"
        grpc = request.grpc_status
        if protocol != "grpc":
            grpc = -1
        elif grpc >= len(GRPC_CODES):
            grpc = 2
        flags = "UF" if request.record.failed and not denied else "-"
        cell = self._requests.get(key_of(request.record, flags, protocol, request.status, grpc))
        live.requests = cell
        live.protocol, live.code, live.grpc = request.protocol, request.status, request.grpc_status
        live.denied = denied
        return cell

    def _finish(self, live: _Live) -> None:
        if self._add(live) and live.tcp is not None:
            live.tcp.closed += 1
        self._add_messages(live)

    def _add(self, live: _Live) -> bool:
        """Add what is new of a connection, unless its requests are counted instead."""
        record = live.record
        if live.requests is not None and not live.opened:
            return False
        if record.protocol in _HTTP and record.direction is Direction.INBOUND and not record.closed and not live.opened:
            return False  # its first request is on its way
        cell = live.tcp
        if cell is None or record.closed:
            cell = live.tcp = self._cell(record)
        if not live.opened:
            live.opened = True
            cell.opened += 1
        cell.received += record.bytes_sent - live.sent
        cell.sent += record.bytes_received - live.received
        live.sent, live.received = record.bytes_sent, record.bytes_received
        return True

    def _add_messages(self, live: _Live) -> None:
        """Add what is new of a connection's messages of gRPC."""
        record = live.record
        questions, answers = record.request_messages, record.response_messages
        if questions != live.questions or answers != live.answers:
            cell = self._messages.get(message_key_of(record))
            cell.questions += questions - live.questions
            cell.answers += answers - live.answers
            live.questions, live.answers = questions, answers
