"""Istio's standard metrics, so that Kiali and the dashboards that people have already show a mesh of ours.

Names, labels and what each label falls back to are those of https://istio.io/latest/docs/reference/config/metrics/
and of the filter that implements it (istio/proxy, ``source/extensions/filters/http/istio_stats/istio_stats.cc``);
buckets are Envoy's defaults (envoy, ``source/common/stats/histogram_impl.cc``). Where Istio's two data planes differ,
or a label asks for what a sidecar of ours does not know:

* Bytes of TCP are counted as the client's side sees them: *received* is what came from the source, *sent* what went
  back to it, at both reporters.
* A connection that carried requests that we saw is in the ``istio_requests_total`` group alone, as with Istio's
  sidecars; Kiali would draw two edges otherwise.
* ``connection_security_policy`` is ``mutual_tls`` at both reporters (ztunnel's way), else ``none`` at the destination
  and ``unknown`` at the source.
* ``response_flags``: Envoy's ``UF`` for what did not reach the application and ``NR`` for what nobody resolved;
  ``DENY``, ztunnel's word, for a connection that the policy refused. A refused request is a 403 with ``-``, as
  Istio's own RBAC reports it.
* ``app``, ``version`` and ``cluster`` are known of our own pod alone, from the settings. So that both reporters of an
  edge name its ends alike, ``canonical_service`` is always the workload's name and ``canonical_revision`` always
  ``latest``, which is what Istio falls back to.
* ``destination_service`` is the service that was asked for where that is known, else the workload under that form of
  name. The ``Host`` field of a request is never believed for it.

Counting rules: every connection, request and byte is counted once. Bytes of live connections are added when a page is
made; what moved after that, when they end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, cast

from graph.model import EXTERNAL_NAMESPACE, Direction, Verdict
from sidecar.access_log import connection_flags
from sidecar.dataplane.contracts import Record, Request
from sidecar.metrics.exposition import Kind, Page, labels_text
from sidecar.metrics.registry import MAX_SERIES, OVERFLOW, Bounded, Histogram

_PEERS: Final = tuple(
    f"{end}_{what}"
    for end in ("source", "destination")
    for what in (
        "workload",
        "canonical_service",
        "canonical_revision",
        "workload_namespace",
        "principal",
        "app",
        "version",
        "cluster",
    )
)
#: Labels of the TCP metrics, in the order in which they are written.
TCP_LABELS: Final = (
    "reporter",
    *_PEERS,
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "request_protocol",
    "response_flags",
    "connection_security_policy",
)
#: Labels of the request metrics.
REQUEST_LABELS: Final = (*TCP_LABELS, "response_code", "grpc_response_status")

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
#: Every family that this module writes.
NAMES: Final = (_REQUESTS, *(name for name, _ in _HISTOGRAMS), *(name for name, _ in _TCP))

_UNKNOWN: Final = "unknown"
_HTTP: Final = frozenset({"http", "http2", "grpc"})
#: Live connections that are brought up to date between two turns of others.
_AT_ONCE: Final = 256
#: gRPC's own codes end at 16; what a peer makes up beyond them is UNKNOWN (https://grpc.io/docs/guides/status-codes/).
_GRPC_CODES: Final = tuple(str(code) for code in range(17))


@dataclass(frozen=True, slots=True)
class Labels:
    """What a person told us of our own pod; empty: unknown.

    :param app: the pod's label ``app``; ``version`` likewise
    :param cluster: the name of the cluster
    """

    app: str = ""
    version: str = ""
    cluster: str = ""


class _Key(NamedTuple):
    """What two connections must share to be one series. Made of texts alone: they know their hash already."""

    inbound: bool
    source: str
    source_namespace: str
    source_identity: str
    destination: str
    destination_namespace: str
    destination_identity: str
    service: str
    host: str
    secured: bool
    flags: str
    protocol: str
    code: int
    grpc: int


type _Tuple = tuple[bool, str, str, str, str, str, str, str, str, bool, str, str, int, int]


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


class _Live:
    """A connection that is open: how much of it was counted, and where its requests are counted."""

    __slots__ = ("code", "denied", "grpc", "opened", "protocol", "received", "record", "requests", "sent", "tcp")

    def __init__(self, record: Record) -> None:
        self.record = record
        self.sent = 0
        self.received = 0
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
    :param limit: label sets of the request metrics, and of the TCP metrics
    """

    def __init__(self, labels: Labels = Labels(), limit: int = MAX_SERIES) -> None:
        self._own = labels
        self._live: dict[int, _Live] = {}
        self._requests: Bounded[_Tuple, _Requests] = Bounded(
            limit, lambda key: _Requests(self._labels(key, REQUEST_LABELS)), _folded
        )
        self._tcp: Bounded[_Tuple, _Tcp] = Bounded(limit, lambda key: _Tcp(self._labels(key, TCP_LABELS)), _folded)
        #: Connections refused by the policy or for want of knowledge, by direction and reason.
        self.refused: dict[tuple[str, ...], int] = {}
        #: Requests refused, by reason.
        self.refused_requests: dict[tuple[str, ...], int] = {}
        #: Connections and requests that were allowed and that mode ``enforce`` would refuse.
        self.would_refuse = 0

    @property
    def folded(self) -> int:
        return self._requests.folded + self._tcp.folded

    def request_cells(self) -> list[tuple[_Tuple, _Requests]]:
        """What was counted of requests, by key; likewise :meth:`tcp_cells`. For :mod:`sidecar.metrics.sums`."""
        return self._requests.items()

    def tcp_cells(self) -> list[tuple[_Tuple, _Tcp]]:
        return self._tcp.items()

    def request_cell(self, key: tuple[object, ...]) -> _Requests:
        """Where a key's requests are counted, which :meth:`request_cells` of another process has named."""
        return self._requests.get(cast(_Tuple, key))

    def tcp_cell(self, key: tuple[object, ...]) -> _Tcp:
        return self._tcp.get(cast(_Tuple, key))

    def live(self) -> list[Record]:
        """The connections that are open now."""
        return [live.record for live in self._live.values()]

    # the flow sink

    def opened(self, record: Record) -> None:
        decision = record.decision
        if not record.closed:
            self._live[id(record)] = _Live(record)  # the entry holds the record, so its id is nobody else's
            if decision.pending is Verdict.DENY:
                self.would_refuse += 1
            return
        key = (record.direction.value, decision.reason.value)
        self.refused[key] = self.refused.get(key, 0) + 1
        self._finish(_Live(record))

    def closed(self, record: Record) -> None:
        live = self._live.pop(id(record), None)
        if live is not None:
            self._finish(live)

    def request(self, request: Request) -> None:
        live = self._live.get(id(request.record)) or _Live(request.record)
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
        for index, live in enumerate(list(self._live.values())):
            if not live.record.closed:
                self._add(live)
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
        tcp = [cell for _, cell in self._tcp.items()]
        for index, (name, help_text) in enumerate(_TCP):
            page.family(name, Kind.COUNTER, help_text)
            for one in tcp:
                page.sample(name, one.labels, (one.opened, one.closed, one.sent, one.received)[index])
            yield

    # counting

    def _cell_for(self, live: _Live, request: Request, denied: bool) -> _Requests:
        protocol = "grpc" if request.protocol == "grpc" else "http"
        grpc = request.grpc_status
        if protocol != "grpc":
            grpc = -1
        elif grpc >= len(_GRPC_CODES):
            grpc = 2
        flags = "UF" if request.record.failed and not denied else "-"
        cell = self._requests.get(_key(request.record, flags, protocol, request.status, grpc))
        live.requests = cell
        live.protocol, live.code, live.grpc = request.protocol, request.status, request.grpc_status
        live.denied = denied
        return cell

    def _finish(self, live: _Live) -> None:
        if self._add(live) and live.tcp is not None:
            live.tcp.closed += 1

    def _add(self, live: _Live) -> bool:
        """Add what is new of a connection, unless its requests are counted instead."""
        record = live.record
        if live.requests is not None and not live.opened:
            return False
        if record.protocol in _HTTP and record.direction is Direction.INBOUND and not record.closed and not live.opened:
            return False  # its first request is on its way
        cell = live.tcp
        if cell is None or record.closed:
            cell = live.tcp = self._tcp.get(_key(record, connection_flags(record), "tcp", 0, -1))
        if not live.opened:
            live.opened = True
            cell.opened += 1
        cell.received += record.bytes_sent - live.sent
        cell.sent += record.bytes_received - live.received
        live.sent, live.received = record.bytes_sent, record.bytes_received
        return True

    # naming

    def _labels(self, key: _Tuple, names: tuple[str, ...]) -> str:
        made = _Key(*key)
        reporter = "destination" if made.inbound else "source"
        if made.flags == OVERFLOW:
            return labels_text(names, [reporter if name == "reporter" else OVERFLOW for name in names])
        mine, peer = self._own, Labels()
        source, destination = (peer, mine) if made.inbound else (mine, peer)
        made = made._replace(  # what is outside the mesh is in no namespace
            source_namespace=made.source_namespace.removeprefix(EXTERNAL_NAMESPACE),
            destination_namespace=made.destination_namespace.removeprefix(EXTERNAL_NAMESPACE),
        )
        values = {"reporter": reporter, "request_protocol": made.protocol, "response_flags": made.flags}
        values |= _end("source", made.source, made.source_namespace, made.source_identity, source)
        values |= _end(
            "destination", made.destination, made.destination_namespace, made.destination_identity, destination
        )
        values |= _service(made)
        unsecured = "none" if made.inbound else _UNKNOWN
        values["connection_security_policy"] = "mutual_tls" if made.secured else unsecured
        values["response_code"] = str(made.code)
        values["grpc_response_status"] = _GRPC_CODES[made.grpc] if made.grpc >= 0 else ""
        return labels_text(names, [values[name] for name in names])


def _key(record: Record, flags: str, protocol: str, code: int, grpc: int) -> _Tuple:
    source, destination = record.source, record.destination
    inbound = record.direction is Direction.INBOUND
    one, other = source.workload, destination.workload
    return (
        inbound,
        one.name if one is not None and not one.is_external else "",
        source.namespace,
        record.source_identity,
        other.name if other is not None and not other.is_external else "",
        destination.namespace,
        record.destination_identity,
        record.service,
        destination.host,
        source.verified if inbound else destination.verified,
        flags,
        protocol,
        code,
        grpc,
    )


def _folded(key: _Tuple) -> _Tuple:
    return (key[0], "", "", "", "", "", "", "", "", False, OVERFLOW, "", 0, -1)


def _end(end: str, workload: str, namespace: str, identity: str, labels: Labels) -> dict[str, str]:
    values = {
        "workload": workload,
        "canonical_service": workload,
        "canonical_revision": "latest",
        "workload_namespace": namespace,
        "principal": identity,
        "app": labels.app,
        "version": labels.version,
        "cluster": labels.cluster,
    }
    return {f"{end}_{name}": value or _UNKNOWN for name, value in values.items()}


def _service(key: _Key) -> dict[str, str]:
    namespace, _, name = key.service.rpartition("/")
    if key.host and not key.destination:
        host, name, namespace = key.host, key.host, _UNKNOWN
    elif not key.destination and not name:
        # what Istio calls a connection to something that is in no inventory, and lets through
        host = name = _UNKNOWN if key.inbound else "PassthroughCluster"
        namespace = _UNKNOWN
    else:
        name = name or key.destination
        namespace = namespace or key.destination_namespace or _UNKNOWN
        host = f"{name}.{namespace}.svc.cluster.local"
    return {
        "destination_service": host,
        "destination_service_name": name,
        "destination_service_namespace": namespace,
    }
