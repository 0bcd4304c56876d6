"""Everything by which a sidecar is watched, joined: metrics and probes on port 15020, administration on loopback 15000,
the access log. It hears of every connection through :attr:`Observer.flows`.

It serves from the start, and shows what there is: before there is a certificate, :attr:`Observer.inside` is None.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol

from graph.model import Snapshot
from sidecar.access_log import AccessLog, LogWriter, Mode
from sidecar.admin import views
from sidecar.admin.pages import AdminPages, NotYet, View
from sidecar.admin.server import Answer, HttpServer, Refused, Request
from sidecar.credentials import CredentialStore
from sidecar.dataplane.contracts import FlowSink
from sidecar.dataplane.tunnel import Tunnel
from sidecar.metrics import own
from sidecar.metrics.fanout import Fanout
from sidecar.metrics.istio import NAMES, IstioMetrics
from sidecar.metrics.istio_labels import Labels
from sidecar.metrics.page import MetricsPage
from sidecar.metrics.registry import Reading, Registry
from sidecar.probes import Prober
from sidecar.readiness import readiness
from sidecar.settings import Address, Settings


class Carrier(Protocol):
    """The data path, as far as it is looked at; :class:`~sidecar.dataplane.proxy.DataPlane` is one."""

    @property
    def outbound_tunnels(self) -> list[Tunnel]: ...

    @property
    def inbound_tunnels(self) -> list[Tunnel]: ...


class Elsewhere(Protocol):
    """Other processes that carry this sidecar's connections; :class:`~sidecar.workers.supervisor.Workers` has some."""

    def log_level(self, level: str, logger: str) -> None:
        """Log more or less there too."""

    def access_log(self, mode: str) -> None:
        """Change what the access log tells there too."""

    async def show(self, what: str) -> list[object]:
        """A page of each: ``tunnels``, ``connections`` or ``memory``."""


class PolicyHolder(Protocol):
    """Knows the policy in force; :class:`~sidecar.authority.PolicyAuthority` does."""

    @property
    def snapshot(self) -> Snapshot: ...


@dataclass(frozen=True, slots=True)
class Inside:
    """What there is to look at, once there is a certificate.

    :param data_plane: None when it is all ``elsewhere``
    """

    credentials: CredentialStore
    authority: PolicyHolder
    data_plane: Carrier | None
    elsewhere: Elsewhere | None = None


class Observer:
    """Made once for a run.

    :param missing: as for :func:`sidecar.readiness.readiness`
    :param stats: what ``/stats`` shows
    :param quit: begins the orderly end
    :param version: of this software
    """

    def __init__(
        self,
        settings: Settings,
        missing: Callable[[], list[str]],
        stats: Callable[[], own.Stats],
        quit: Callable[[], None],
        version: str,
    ) -> None:
        self._missing = missing
        self._stats = stats
        #: Set once there is a certificate.
        self.inside: Inside | None = None
        labels = settings.metrics
        self._istio = IstioMetrics(Labels(labels.app, labels.version, labels.cluster), labels.series)
        self._telemetry = settings.telemetry
        self._flows = Fanout(self._istio) if self._telemetry else Fanout()
        self._access_log = AccessLog(LogWriter(), listen=self._access_log_switched)
        self._access_log.mode = Mode(settings.access_log)
        address = settings.addresses[0]
        own_ports = frozenset(one.port for _, one in settings.listeners())
        self._prober = Prober(settings.probes, address, own_ports)
        registry = Registry()
        self._page = MetricsPage(registry, settings.merge_metrics, address)
        self._lag = self._register(registry, version, settings.workers)
        pages = AdminPages(self._views(settings), missing, self._access_log, quit, self._relogged, self._access_logged)
        self._servers: list[tuple[Address, HttpServer]] = []
        if settings.admin_listen is not None:
            methods = ("GET", "HEAD", "POST")
            admin = HttpServer(settings.admin_listen, "admin_listen", pages.answer, methods)
            self._servers.append((settings.admin_listen, admin))
        if settings.stats_listen is not None:
            stats_server = HttpServer(settings.stats_listen, "stats_listen", self._outside)
            self._servers.append((settings.stats_listen, stats_server))

    @property
    def flows(self) -> FlowSink:
        """Hears of every connection."""
        return self._flows

    @property
    def metrics(self) -> IstioMetrics | None:
        """Where connections and requests are counted; None when they are not."""
        return self._istio if self._telemetry else None

    @property
    def access_log_mode(self) -> str:
        """What the access log tells now."""
        return self._access_log.mode.value

    def also_tell(self, sink: FlowSink) -> None:
        """Let ``sink`` hear of every connection too."""
        self._flows.add(sink)

    @property
    def servers(self) -> list[tuple[Address, HttpServer]]:
        """What listens, under the addresses of the settings."""
        return list(self._servers)

    @property
    def listeners(self) -> list[tuple[Address, socket.socket]]:
        """What is listened on, for another process that takes over."""
        return [(address, server.listener) for address, server in self._servers if server.listener is not None]

    async def start(self, inherit: Callable[[Address], socket.socket | None] = lambda _: None) -> None:
        """Serve.

        :param inherit: the socket of the process before us for an address, if there is one
        :raises ConfigError: when a port can not be had
        """
        for address, server in self._servers:
            await server.start(inherit(address))
        self._lag.start()

    def release(self) -> None:
        """Accept no more: another process does."""
        for _, server in self._servers:
            server.release()

    async def stop(self) -> None:
        """End everything. Calling it again changes nothing."""
        self._lag.stop()
        for _, server in self._servers:
            await server.stop()
        await self._prober.stop()
        await self._page.stop()
        self._access_log.stop()

    def _access_log_switched(self, on: bool) -> None:
        if on:
            self._flows.add(self._access_log)
        else:
            self._flows.remove(self._access_log)

    # the port for everybody

    async def _outside(self, request: Request) -> Answer:
        match request.path:
            case "/metrics" | "/stats/prometheus":  # scrapers may add parameters; they mean nothing to us
                return await self._page.answer(request)
            case "/healthz/ready":
                return readiness(self._missing)
            case path if path.startswith("/app-health/"):
                return await self._prober.answer(request)
        raise Refused(HTTPStatus.NOT_FOUND, "try /metrics or /healthz/ready")

    # the inside

    def _views(self, settings: Settings) -> dict[str, View]:
        counted: dict[str, View] = {
            "/connections": lambda: self._page_of(
                "connections", lambda _: views.connections(self._istio.live(), time.time())
            )
        }
        return {
            "/config": lambda: views.config(settings),
            "/certs": lambda: views.certificates(self._seen().credentials),
            "/snapshot": lambda: views.snapshot(self._seen().authority.snapshot),
            "/tunnels": lambda: self._page_of(
                "tunnels", lambda carrier: views.tunnels(carrier.outbound_tunnels, carrier.inbound_tunnels)
            ),
            **(counted if self._telemetry else {}),
            "/stats": self._all_stats,
            "/memory": self._memory,
        }

    def _page_of(self, what: str, made: Callable[[Carrier], object]) -> object:
        """A page of what carries connections: made here, or asked for where that is."""
        inside = self._seen()
        if inside.data_plane is not None:
            return made(inside.data_plane)
        assert inside.elsewhere is not None
        return inside.elsewhere.show(what)

    def _memory(self) -> object:
        inside = self.inside
        if inside is None or inside.elsewhere is None:
            return views.memory()
        return _with_workers(views.memory(), inside.elsewhere)

    def _relogged(self, level: str, logger: str) -> None:
        if self.inside is not None and self.inside.elsewhere is not None:
            self.inside.elsewhere.log_level(level, logger)

    def _access_logged(self, mode: str) -> None:
        if self.inside is not None and self.inside.elsewhere is not None:
            self.inside.elsewhere.access_log(mode)

    def _seen(self) -> Inside:
        if self.inside is None:
            raise NotYet
        return self.inside

    def _all_stats(self) -> own.Stats:
        """The sidecar's statistics, and what is known only here."""
        told = self._stats()
        log = self._access_log
        lines = _plus(told.get("access_log"), {"lines": log.lines, "shed": log.shed})
        stats: dict[str, object] = {
            **told,
            "ready": not self._missing(),
            "access_log": {"mode": log.mode.value, **lines},
            "telemetry": _plus(told.get("telemetry"), {"faults": self._flows.faults, "folded": self._istio.folded}),
        }
        if self.inside is not None:
            remaining = self.inside.credentials.not_after - time.time()
            certificate = stats.get("certificate")
            known = certificate if isinstance(certificate, dict) else {}
            stats["certificate"] = {**known, "remaining": round(remaining, 3)}
        return stats

    def _register(self, registry: Registry, version: str, workers: int) -> own.LoopLag:
        lag = own.register(registry, self._all_stats, version)
        if self._telemetry:
            self._register_traffic(registry)
        if workers > 1:
            self._register_workers(registry)
        probes = "Probes of the application, by result"
        results = ("container", "kind", "result")
        registry.read("hedgerow_probes_total", probes, lambda: self._prober.results, *results)
        merges = "Scrapes of the application's own metrics, by result"
        registry.read("hedgerow_merged_scrapes_total", merges, lambda: self._page.merges, "result")
        return lag

    def _register_workers(self, registry: Registry) -> None:
        """What differs between the processes that carry connections."""

        def read(key: str) -> Callable[[], Reading]:
            return lambda: _of_workers(self._stats(), key)

        registry.read("hedgerow_worker_connections", "Open connections of a worker", read("connections"), "worker")
        resident = "Memory of a worker's process"
        registry.read("hedgerow_worker_resident_bytes", resident, read("resident_bytes"), "worker")
        cpu = "Processor time of a worker's process, since its start"
        registry.read("hedgerow_worker_cpu_seconds", cpu, read("cpu_seconds"), "worker")
        starts = "Times that a worker was started"
        registry.read("hedgerow_worker_starts_total", starts, read("starts"), "worker")

    def _register_traffic(self, registry: Registry) -> None:
        """What is known of connections and requests alone."""
        registry.add(self._istio, *NAMES)
        refused = "Connections that were refused, by direction and reason"
        registry.read("hedgerow_connections_refused_total", refused, lambda: self._istio.refused, "direction", "reason")
        refused = "Requests that were refused, by reason"
        registry.read("hedgerow_requests_refused_total", refused, lambda: self._istio.refused_requests, "reason")
        would = "Connections and requests that were allowed and that mode enforce would refuse"
        registry.read("hedgerow_would_refuse_total", would, lambda: self._istio.would_refuse)


async def _with_workers(page: object, elsewhere: Elsewhere) -> object:
    return {"supervisor": page, "workers": await elsewhere.show("memory")}


def _plus(told: object, own_counts: Mapping[str, int]) -> dict[str, int]:
    """What we have counted, and what others of this sidecar have."""
    others = told if isinstance(told, Mapping) else {}
    return {name: count + others.get(name, 0) for name, count in own_counts.items()}


def _of_workers(stats: own.Stats, key: str) -> dict[tuple[str, ...], float]:
    workers = stats.get("workers")
    return {(str(one["worker"]),): one[key] for one in workers} if isinstance(workers, list) else {}
