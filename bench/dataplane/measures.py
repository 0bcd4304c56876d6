"""What is measured, against whom, and how much of it is asked: issue 4's table, as values.

A *load* is one slice of traffic through one pair; a *measure* is a figure of a load, compared between pairs. Figures
of the same load come from the same slices, so that they cost no further time.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

OURS = "hedgerow"
#: The same pair in a second slice of the same round: how far apart two equal things come out.
AGAIN = "hedgerow-again"
#: Our pair with telemetry off.
QUIET = "hedgerow-quiet"
#: Our pair that inspects. It is one of its own, because an engine that was loaded stays in its process.
INSPECTING = "hedgerow-inspecting"
#: No proxy at all: what client, server and kernel can do.
DIRECT = "direct"
ENVOY_TCP = "envoy-tcp"
ENVOY_CONNECT = "envoy-connect"
ENVOY_HTTP = "envoy-http"
HAPROXY_TCP = "haproxy-tcp"
HAPROXY_HTTP = "haproxy-http"
MITMDUMP = "mitmdump"

STREAM_PEERS = (ENVOY_TCP, ENVOY_CONNECT, HAPROXY_TCP)


class Better(StrEnum):
    HIGHER = "higher"
    LOWER = "lower"


class Lane(StrEnum):
    """What our sidecars are to do with the bytes, and so which port of the server a load goes to."""

    STREAM = "stream"
    HTTP = "http"
    GRPC = "grpc"
    INSPECT = "inspect"


class Tool(StrEnum):
    WRK = "wrk"
    H2LOAD = "h2load"
    CURL = "curl"


@dataclass(frozen=True, slots=True)
class Load:
    """Traffic of one kind.

    :param connections: at once
    :param streams: requests at once on each connection (HTTP/2)
    :param close: a new connection for every request
    :param peers: pairs that it is sent through beside ours
    """

    name: str
    lane: Lane
    tool: Tool
    peers: tuple[str, ...]
    connections: int = 1
    streams: int = 1
    close: bool = False


@dataclass(frozen=True, slots=True)
class Requirement:
    """Ours ÷ the best of ``against`` is to be at least ``factor``, or at most where lower is better."""

    against: tuple[str, ...]
    factor: float


@dataclass(frozen=True, slots=True)
class Measure:
    """One row of the table.

    :param load: the load that it is a figure of; empty for memory, which is taken from processes of its own
    :param figure: which figure of it
    :param requirements: the first gives the ratio and the target of the row; all have to hold
    """

    name: str
    unit: str
    better: Better
    load: str
    figure: str
    requirements: tuple[Requirement, ...]


LOADS = {
    load.name: load
    for load in (
        Load("stream-32", Lane.STREAM, Tool.WRK, (*STREAM_PEERS, QUIET, DIRECT), connections=32),
        Load("stream-8", Lane.STREAM, Tool.WRK, STREAM_PEERS, connections=8),
        Load("single", Lane.STREAM, Tool.WRK, (ENVOY_TCP, HAPROXY_TCP, DIRECT)),
        Load("http-32", Lane.HTTP, Tool.WRK, (HAPROXY_HTTP, ENVOY_HTTP), connections=32),
        Load("connections", Lane.STREAM, Tool.WRK, (ENVOY_CONNECT, HAPROXY_HTTP), connections=32, close=True),
        Load("bulk", Lane.STREAM, Tool.CURL, STREAM_PEERS),
        Load("inspect", Lane.INSPECT, Tool.H2LOAD, (MITMDUMP,), connections=4, streams=8),
        Load("grpc", Lane.GRPC, Tool.H2LOAD, (ENVOY_HTTP,), connections=4, streams=8),
    )
}

_HIGHER, _LOWER = Better.HIGHER, Better.LOWER
_BEST_STREAM = (Requirement(STREAM_PEERS, 1.3),)

MEASURES = {
    measure.name: measure
    for measure in (
        Measure("stream_rps", "requests/s", _HIGHER, "stream-32", "rps", _BEST_STREAM),
        Measure("stream_rps_8", "requests/s", _HIGHER, "stream-8", "rps", (Requirement(STREAM_PEERS, 1.1),)),
        Measure(
            "http_rps",
            "requests/s",
            _HIGHER,
            "http-32",
            "rps",
            (Requirement((HAPROXY_HTTP,), 1.2), Requirement((ENVOY_HTTP,), 3.0)),
        ),
        Measure("stream_p99", "ms", _LOWER, "stream-32", "p99", (Requirement(STREAM_PEERS, 0.8),)),
        Measure("http_p99", "ms", _LOWER, "http-32", "p99", (Requirement((HAPROXY_HTTP, ENVOY_HTTP), 0.8),)),
        Measure("single_p50", "ms", _LOWER, "single", "p50", (Requirement((ENVOY_TCP, HAPROXY_TCP), 1.15),)),
        Measure(
            "conn_rate",
            "connections/s",
            _HIGHER,
            "connections",
            "rps",
            (Requirement((ENVOY_CONNECT,), 1.3), Requirement((HAPROXY_HTTP,), 0.8)),
        ),
        Measure("bulk", "bytes/s", _HIGHER, "bulk", "bytes", (Requirement(STREAM_PEERS, 0.8),)),
        Measure("cpu_per_request", "µs/side", _LOWER, "stream-32", "cpu", (Requirement(STREAM_PEERS, 0.9),)),
        Measure("rss_idle", "bytes", _LOWER, "", "idle", (Requirement((ENVOY_TCP, ENVOY_CONNECT), 0.8),)),
        Measure("rss_10k", "bytes", _LOWER, "", "after", (Requirement((ENVOY_TCP, ENVOY_CONNECT), 1.0),)),
        Measure("inspect_rps", "requests/s", _HIGHER, "inspect", "rps", (Requirement((MITMDUMP,), 1.5),)),
        Measure("telemetry_cost", "requests/s", _HIGHER, "stream-32", "rps", (Requirement((QUIET,), 0.97),)),
        Measure("grpc_rps", "requests/s", _HIGHER, "grpc", "rps", (Requirement((ENVOY_HTTP,), 1.2),)),
    )
}


def loads_of(measures: list[Measure]) -> list[tuple[Load, tuple[str, ...]]]:
    """The loads that these measures need, each with the pairs that it goes through, ours twice."""
    wanted: dict[str, set[str]] = {}
    for measure in measures:
        if measure.load:
            compared = {name for requirement in measure.requirements for name in requirement.against}
            wanted.setdefault(measure.load, set()).update(compared)
    return [
        (load, (OURS, AGAIN, *(name for name in load.peers if name in wanted[load.name] or name == DIRECT)))
        for load in LOADS.values()
        if load.name in wanted
    ]
