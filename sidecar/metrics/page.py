"""The page that Prometheus scrapes: our metrics and, where wanted, the application's behind them.

Rules:

1. Making a page never keeps the data path waiting: it is made in pieces of a millisecond, between which the loop turns,
   and pages together take a tenth of the loop's time at most, however often they are asked for. Who asks meanwhile gets
   the page that is being made, or the last one.
2. The application's page is bounded in size and time, and a bad one costs only itself.
3. What the application says is about the application: a line of a family of ours or of Istio's is left out.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Iterator
from http import HTTPStatus
from typing import Final

from sidecar.admin.server import Answer, Request
from sidecar.fetch import FetchFailed, fetch
from sidecar.metrics.exposition import OPENMETRICS, TEXT, negotiate
from sidecar.metrics.registry import Registry
from sidecar.observation import MergedMetrics

log = logging.getLogger(__name__)

#: Seconds of work between two turns of others.
_AT_ONCE: Final = 0.001
#: Of the loop's time, how much pages may take.
_SHARE: Final = 0.1
#: Bytes of the application's page that are looked at between two turns of others.
_LOOK: Final = 128 << 10

#: A line of a family that is not the application's to tell of, in any of the spellings that Prometheus reads.
_OURS = re.compile(rb"[ \t]*(?:#[ \t]*(?:HELP|TYPE|UNIT)[ \t]+)?(?:\{|\"?(?:istio|hedgerow)_)")


class MetricsPage:
    """Answers ``/metrics`` and ``/stats/prometheus``.

    :param registry: ours
    :param merged: where the application's are, if they are wanted
    :param address: where the application listens, unless ``merged`` says it
    """

    def __init__(self, registry: Registry, merged: MergedMetrics | None = None, address: str = "") -> None:
        self._registry = registry
        self._merged = merged
        self._address = address
        self._making: dict[str, asyncio.Task[tuple[bytes, ...]]] = {}
        self._made: dict[str, tuple[float, tuple[bytes, ...]]] = {}  # until when each is good enough
        #: Scrapes of the application's page, by result.
        self.merges: dict[tuple[str, ...], int] = {}

    async def answer(self, request: Request) -> Answer:
        """The page, in the format that ``request`` prefers."""
        # an application's page in another format can not stand behind ours, and all of them speak plain text
        kind = TEXT if self._merged is not None else negotiate(request.fields.get("accept", ""))
        body = await self._page(kind)
        if self._merged is not None:
            body = (*body, *await self._application(self._merged, request))
        return Answer(HTTPStatus.OK, kind, body)

    async def stop(self) -> None:
        """Give up what is being made."""
        making = list(self._making.values())
        for task in making:
            task.cancel()
        await asyncio.gather(*making, return_exceptions=True)
        self._made.clear()

    async def _page(self, kind: str) -> tuple[bytes, ...]:
        until, page = self._made.get(kind, (0.0, ()))
        if time.monotonic() < until:
            return page
        making = self._making.get(kind)
        if making is None:
            making = self._making[kind] = asyncio.create_task(self._make(kind))
            making.add_done_callback(lambda _: self._making.pop(kind, None))
        return await asyncio.shield(making)  # shielded: others may wait for it too

    async def _make(self, kind: str) -> tuple[bytes, ...]:
        pieces: list[bytes] = []
        spent = 0.0
        began = time.perf_counter()
        for piece in self._registry.pieces(openmetrics=kind == OPENMETRICS):
            if piece:
                pieces.append(piece)
            now = time.perf_counter()
            if now - began > _AT_ONCE:
                spent += now - began
                await asyncio.sleep(0)
                began = time.perf_counter()
        spent += time.perf_counter() - began
        pause = spent / _SHARE
        page = tuple(pieces)
        self._made[kind] = (time.monotonic() + pause, page)
        asyncio.get_running_loop().call_later(pause, self._made.pop, kind, None)
        return page

    async def _application(self, merged: MergedMetrics, request: Request) -> tuple[bytes, ...]:
        address = merged.address or self._address
        host = f"[{address}]" if ":" in address else address
        headers = [
            ("Host", f"{host}:{merged.port}"),
            ("Accept", "text/plain;version=0.0.4"),
            ("User-Agent", "hedgerow"),
        ]
        try:
            async with asyncio.timeout(_patience(request, merged.timeout)):
                fetched = await fetch(address, merged.port, merged.path, headers, limit=merged.max_bytes)
            if fetched.status != HTTPStatus.OK or not fetched.whole:
                too_long = f"more than {merged.max_bytes} bytes, which is merge_metrics.max_bytes"
                raise FetchFailed(f"status {fetched.status}" if fetched.whole else too_long)
            if "openmetrics" in fetched.fields.get("content-type", "").lower():
                raise FetchFailed("it is OpenMetrics, and plain text was asked for")
        except (FetchFailed, TimeoutError) as error:
            log.info("the application's metrics on port %d are left out: %s", merged.port, error or "no answer in time")
            self._count("failure")
            return ()
        self._count("success")
        pieces = []
        for piece in _own_lines(fetched.body):
            pieces.append(piece)
            await asyncio.sleep(0)
        return tuple(pieces)

    def _count(self, result: str) -> None:
        self.merges[(result,)] = self.merges.get((result,), 0) + 1


def _patience(request: Request, most: float) -> float:
    """Seconds for the application: less than the scraper has (its own header), so that ours arrive in any case."""
    try:
        wanted = float(request.fields.get("x-prometheus-scrape-timeout-seconds", most)) * 0.8
    except ValueError:
        return most
    return wanted if 0 < wanted < most else most


def _own_lines(body: bytes) -> Iterator[bytes]:
    """The application's page without what rule 3 leaves out, in pieces of whole lines."""
    at = 0
    while at < len(body):
        end = body.find(b"\n", at + _LOOK) + 1 or len(body)
        lines = [line for line in body[at:end].splitlines() if not _OURS.match(line)]
        yield b"\n".join([*lines, b""])
        at = end
