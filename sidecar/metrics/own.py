"""Our own metrics: what a person who runs sidecars wants to know and Istio has no name for.

The numbers are kept by those whom they are about; here is only what each is called and where it stands in what the
sidecar says of itself (``/stats``). What is not there yet, because there is no certificate, is left out.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from sidecar.metrics.exposition import Kind, Page, labels_text
from sidecar.metrics.registry import Histogram, Registry

type Stats = Mapping[str, object]

#: Seconds by which the event loop was late.
LAG_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
#: Seconds between two looks at that.
_LAG_INTERVAL: Final = 1.0

#: Name, help, path in the statistics, and the label under which the entries of a mapping there are told apart.
_FROM_STATS: Final = (
    ("hedgerow_ready", "1 when a workload behind this sidecar would be served", "ready", ""),
    ("hedgerow_certificate_expiry_seconds", "Seconds until the certificate in force ends", "certificate.remaining", ""),
    ("hedgerow_certificate_renewals_total", "Renewed certificates", "certificate.renewals", ""),
    ("hedgerow_policy_version", "Version of the policy snapshot in force; 0 before the first", "policy.version", ""),
    ("hedgerow_policy_rejected", "1 when the newest snapshot of the controller was refused", "policy.rejected", ""),
    ("hedgerow_policy_connected", "1 when the controller pushes policies to us", "policy.connected", ""),
    ("hedgerow_directory_connected", "1 when the controller answers who is where", "directory.connected", ""),
    ("hedgerow_directory_addresses", "Addresses that are watched", "directory.addresses", ""),
    ("hedgerow_telemetry_connected", "1 when the controller takes reports of flows", "flows.connected", ""),
    ("hedgerow_flows_waiting", "Flows that wait to be reported", "flows.waiting", ""),
    ("hedgerow_flow_records_total", "Connections that the flow tracker heard of", "flows.records", ""),
    ("hedgerow_flows_shed_total", "Connections whose reports were dropped for want of room", "flows.shed", ""),
    ("hedgerow_flows_acknowledged_total", "Flows that the controller has stored", "flows.acknowledged", ""),
    ("hedgerow_connections", "Connections that are open", "connections", ""),
    ("hedgerow_tunnels", "Tunnels that are open", "tunnels", "direction"),
    ("hedgerow_streams", "Streams that are open in tunnels", "streams", "direction"),
    ("hedgerow_shedding", "1 when new connections are refused for want of memory", "limits.shedding", ""),
    ("hedgerow_limited_total", "What each limit refused, dropped or ended", "limits", "limit"),
    ("hedgerow_detection_timeouts_total", "Clients that said nothing while their protocol was looked for",
     "detection.timeouts", ""),
    ("hedgerow_detection_hidden_total", "Connections that were ended because their first line became a request late",
     "detection.hidden", ""),
    ("hedgerow_egress_unbound_total", "Connections that claimed a name which DNS has not bound to their address",
     "unbound_claims", ""),
    ("hedgerow_egress_uninspected_total", "Connections to inspected hosts that came to nothing or were not read",
     "egress_inspection", "reason"),
    ("hedgerow_dns_addresses", "Addresses whose names the DNS proxy has seen", "dns.addresses", ""),
    ("hedgerow_dns_total", "What the DNS proxy did", "dns", "what"),
    ("hedgerow_access_log_lines_total", "Lines of the access log", "access_log.lines", ""),
    ("hedgerow_access_log_shed_total", "Lines that a slow reader of the access log has not got", "access_log.shed", ""),
    ("hedgerow_telemetry_faults_total", "Records that were lost by a fault of ours", "telemetry.faults", ""),
)  # fmt: skip
NAMES: Final = tuple(name for name, *_ in _FROM_STATS)
#: Entries of mappings that are levels among counts.
_ALONE: Final = ("addresses",)


class _FromStats:
    """Writes the table above."""

    folded = 0

    def __init__(self, stats: Callable[[], Stats]) -> None:
        self._stats = stats

    def settle(self) -> Iterator[None]:
        yield from ()

    def expose(self, page: Page) -> Iterator[None]:
        stats = self._stats()
        for name, help_text, path, label in _FROM_STATS:
            value = _at(stats, path)
            if label:
                entries = _numbers(value, _ALONE)
            else:
                number = _number(value)
                entries = {} if number is None else {"": number}
            if entries:
                page.family(name, Kind.COUNTER if name.endswith("_total") else Kind.GAUGE, help_text)
            for key, one in sorted(entries.items()):
                page.sample(name, labels_text((label,), (key,)) if label else "", one)
        yield


def _at(stats: Stats, path: str) -> object:
    value: object = stats
    for name in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


def _number(value: object) -> float | None:
    if isinstance(value, str):  # why something is as it is; empty: it is not
        return int(bool(value))
    return value if isinstance(value, int | float) and not isinstance(value, bool) else _flag(value)


def _flag(value: object) -> int | None:
    return int(value) if isinstance(value, bool) else None


def _numbers(value: object, without: Sequence[str]) -> dict[str, float]:
    """The numbers of a mapping, without those that are families of their own; flags always are."""
    if not isinstance(value, Mapping):
        return {}
    return {
        str(key): one
        for key, one in value.items()
        if isinstance(one, int | float) and not isinstance(one, bool) and key not in without
    }


class LoopLag:
    """Looks once a second how late the event loop is."""

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._arm(self._loop)

    def stop(self) -> None:
        """Look no more. Calling it again changes nothing."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(_LAG_INTERVAL, self._look, loop, time.monotonic() + _LAG_INTERVAL)

    def _look(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        self._histogram.observe(max(0.0, time.monotonic() - due))
        self._arm(loop)


def register(registry: Registry, stats: Callable[[], Stats], version: str) -> LoopLag:
    """Show our own metrics; the caller starts what is returned."""
    registry.add(_FromStats(stats), *NAMES)
    # Grafana's dashboards of Istio count proxies by this one
    registry.gauge("istio_build", "Build of this proxy", "component", "tag").cell("proxy", version).value = 1
    registry.read("hedgerow_process_resident_bytes", "Memory of the sidecar's process", resident_bytes)
    registry.read("hedgerow_process_cpu_seconds_total", "Processor time of the sidecar's process", time.process_time)
    registry.read("hedgerow_process_open_descriptors", "Open descriptors of the sidecar's process", open_descriptors)
    began = registry.gauge("hedgerow_process_start_time_seconds", "When the sidecar began, since the epoch")
    began.cell().value = round(time.time(), 3)
    lag = registry.histogram("hedgerow_event_loop_lag_seconds", "How late the event loop was", LAG_BUCKETS)
    return LoopLag(lag.cell())


def resident_bytes() -> int:
    """Our resident set."""
    return _statm()[1]


def file_bytes() -> int:
    """What of it are pages of files, which the kernel can take back at any time: program code, mostly."""
    return _statm()[2]


def _statm() -> list[int]:
    """Bytes in all, resident, and resident of files, proc(5)."""
    file = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)  # open() would leave a string behind each time
    try:
        pages = os.read(file, 256).split()
    finally:
        os.close(file)
    return [int(each) * os.sysconf("SC_PAGE_SIZE") for each in pages[:3]]


def open_descriptors() -> int:
    """How many descriptors are open, without the one that it takes to look."""
    return len(os.listdir("/proc/self/fd")) - 1
