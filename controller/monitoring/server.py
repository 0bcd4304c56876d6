"""The listener for machines: the kubelet's probes and Prometheus, without a secret and without a word about anybody.

``GET /healthz/live`` answers as long as the engine works, ``GET /healthz/ready`` when its state is loaded, and on a
cluster when that has been read once; ``GET /metrics`` is :mod:`controller.monitoring.metrics`. Anything else is 404.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from controller.cluster_state import ClusterState
from controller.monitoring.metrics import CONTENT_TYPE, ProcessState, page
from controller.rpc.server import port_error
from controller.seats import Seats
from controller.view import View
from graph.fields import Address

#: Kubelets and scrapers have a few; every pod of the cluster can reach the port.
MAX_CONNECTIONS = 256
#: What a probe or a scraper asks fits into this, in bytes.
_MAX_LINE = 2048
_SHUTDOWN_SECONDS = 1.0


def process_state(began: float) -> ProcessState:
    """What the kernel says of this process now.

    :param began: when it started, seconds since the epoch
    """
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    files = len(os.listdir("/proc/self/fd"))
    return ProcessState(time.process_time(), resident, files, began, sys.getallocatedblocks())


class _NotOfStrangers(logging.Filter):
    """Leaves out requests that are no HTTP: whoever reaches the port could otherwise fill the log with tracebacks."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


def _requests_log() -> logging.Logger:
    found = logging.getLogger("hedgerow.monitoring.requests")
    if not found.filters:
        found.addFilter(_NotOfStrangers())
    return found


class MonitoringServer:
    """Serves one controller's state.

    :param listen: where; ``monitoring_listen`` of the settings
    :param view: the state
    :param cluster: how it fares on its cluster; None without one
    """

    def __init__(
        self,
        listen: Address,
        version: str,
        view: Callable[[], View],
        cluster: Callable[[], ClusterState | None] = lambda: None,
    ) -> None:
        self._listen = listen
        self._version = version
        self._view = view
        self._cluster = cluster
        self._began = time.time()
        app = web.Application(client_max_size=0)
        app.add_routes(
            [
                web.get("/healthz/live", self._live),
                web.get("/healthz/ready", self._ready),
                web.get("/metrics", self._metrics),
            ]
        )
        self._runner = web.AppRunner(
            app,
            access_log=None,
            logger=_requests_log(),
            shutdown_timeout=_SHUTDOWN_SECONDS,
            keepalive_timeout=75.0,
            max_line_size=_MAX_LINE,
            max_field_size=_MAX_LINE,
        )
        self._server: asyncio.Server | None = None
        self.address: Address | None = None

    async def start(self) -> Address:
        """Listen and serve.

        :returns: where
        :raises controller.rpc.server.PortError: naming the setting and the remedy
        """
        await self._runner.setup()
        handlers = self._runner.server
        assert handlers is not None, "set up before"
        seats = Seats(MAX_CONNECTIONS, lambda: handlers.connections)

        def connect() -> asyncio.Protocol:
            seats.make_room()
            return handlers()

        try:
            self._server = await asyncio.get_running_loop().create_server(
                connect, self._listen.host, self._listen.port, backlog=64
            )
        except OSError as error:
            await self._runner.cleanup()
            raise port_error("monitoring_listen", self._listen, error) from None
        host, port = self._server.sockets[0].getsockname()[:2]
        self.address = Address(host, port)
        return self.address

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._runner.cleanup()

    async def _live(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")  # the engine and this run on one loop: whoever answers, works

    async def _ready(self, _: web.Request) -> web.Response:
        cluster = self._cluster()
        waiting = {*(cluster.waiting if cluster is not None else ()), *(() if self._view().ready else ("engine",))}
        if not waiting:
            return web.Response(text="ready\n")
        # why is for the log and for those with a token: this port is open to the cluster
        return web.Response(text=f"waiting for: {', '.join(sorted(waiting))}\n", status=503)

    async def _metrics(self, _: web.Request) -> web.Response:
        text = page(self._view(), self._version, process_state(self._began), self._cluster())
        return web.Response(body=text.encode(), headers={"Content-Type": CONTENT_TYPE})
