"""wrk, h2load and curl: their command lines, and what they say read into figures. Pure.

A slice in which anything failed is no slice: :class:`LoadFailed` ends the run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from bench.dataplane.measures import Lane, Load, Tool

#: What every request asks for; the server answers it with 1 KiB.
PATH = "/api"
BULK_PATH = "/bulk"
GRPC_PATH = "/shop.Cart/Get"
#: No rule allows it where rules speak of operations.
DENIED_PATH = "/denied"

_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}


class LoadFailed(Exception):
    """Requests failed, or a tool did not say what it always says."""


def command(load: Load, host: str, port: int, seconds: float, grpc_message: str = "") -> list[str]:
    """The command line of one slice.

    :param seconds: how long it sends; what curl fetches has an end of its own. wrk takes whole seconds, at least 1
    :param grpc_message: the file with the request's message
    """
    at = f"http://{host}:{port}"
    if load.tool is Tool.CURL:
        said = "%{http_code} %{size_download} %{speed_download}"
        return ["curl", "-s", "-o", "/dev/null", "-w", said, "--max-time", "60", at + BULK_PATH]
    if load.tool is Tool.WRK:
        closing = ["-H", "Connection: close"] if load.close else []
        timing = [f"-c{load.connections}", f"-d{max(1, round(seconds))}s"]
        return ["wrk", "-t1", *timing, "--latency", *closing, at + PATH]
    argv = ["h2load", f"-c{load.connections}", f"-m{load.streams}", f"-D{seconds:g}"]
    if load.lane is Lane.GRPC:
        argv += ["-d", grpc_message, "-H", "content-type: application/grpc", "-H", "te: trailers"]
        return [*argv, at + GRPC_PATH]
    return [*argv, at + PATH]


def read(load: Load, text: str, *, bulk_bytes: int = 0) -> dict[str, float]:
    """The figures in what the load's tool said.

    :param bulk_bytes: how much a download has to bring
    :returns: ``rps`` and ``requests``, ``p50`` and ``p99`` in milliseconds from wrk; ``bytes`` a second from curl
    :raises LoadFailed: with what it said
    """
    if load.tool is Tool.CURL:
        return read_curl(text, bulk_bytes)
    return read_wrk(text) if load.tool is Tool.WRK else read_h2load(text)


def read_wrk(text: str) -> dict[str, float]:
    for complaint in ("Socket errors", "Non-2xx"):
        if complaint in text:
            raise LoadFailed(f"wrk saw failures:\n{text}")
    rate = re.search(r"^Requests/sec:\s+([\d.]+)\s*$", text, re.MULTILINE)
    count = re.search(r"^\s*(\d+) requests in ", text, re.MULTILINE)
    if rate is None or count is None or int(count[1]) == 0:
        raise LoadFailed(f"wrk did not say what it did:\n{text}")
    figures = {"rps": float(rate[1]), "requests": float(count[1])}
    for part in (50, 99):
        found = re.search(rf"^\s+{part}%\s+([\d.]+)(us|ms|s|m)\s*$", text, re.MULTILINE)
        if found is None:
            raise LoadFailed(f"wrk did not say the percentile {part}:\n{text}")
        figures[f"p{part}"] = float(found[1]) * _MS[found[2]]
    return figures


def read_h2load(text: str) -> dict[str, float]:
    rate = re.search(r"^finished in [\d.]+m?s, ([\d.]+) req/s", text, re.MULTILINE)
    counts = _named(r"^requests: (.*)$", text)
    statuses = _named(r"^status codes: (.*)$", text)
    if rate is None or not {"done", "failed", "errored", "timeout"} <= counts.keys() or "2xx" not in statuses:
        raise LoadFailed(f"h2load did not say what it did:\n{text}")
    bad = counts["failed"] + counts["errored"] + counts["timeout"]
    bad += sum(number for name, number in statuses.items() if name != "2xx")
    if bad or not counts["done"]:
        raise LoadFailed(f"h2load saw failures:\n{text}")
    return {"rps": float(rate[1]), "requests": float(counts["done"])}


def _named(pattern: str, text: str) -> Mapping[str, int]:
    """``1 total, 2 started`` as a mapping."""
    line = re.search(pattern, text, re.MULTILINE)
    if line is None:
        return {}
    return {name: int(number) for number, name in re.findall(r"(\d+) (\w+)", line[1])}


def read_curl(text: str, expected: int) -> dict[str, float]:
    found = re.fullmatch(r"(\d{3}) (\d+) (\d+(?:\.\d+)?)", text.strip())
    if found is None:
        raise LoadFailed(f"curl said {text!r}")
    if found[1] != "200" or int(found[2]) != expected:
        raise LoadFailed(f"the download brought {found[2]} bytes with status {found[1]}, not {expected} with 200")
    return {"bytes": float(found[3]), "requests": 1.0}
