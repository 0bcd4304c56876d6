"""Server-sent events (HTML standard, section 9.2): the graph as it changes, and flows as they are counted.

Rules:

1. A client that reads slowly costs a bounded queue (:class:`controller.engine.Subscription`). When it overflows, the
   client gets the whole graph again, or is told that flows were left out; nothing is silently missing.
2. At most four deltas a second: what changes in between is one delta.
3. A client that takes nothing for :data:`WRITE_SECONDS` is let go. So is one whose token opens nothing any more, before
   anything else is said to it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from controller.engine import Engine, Subscription
from controller.errors import NotReady
from controller.view import Change, View
from controller.web.answers import PERMITTED
from controller.web.documents import flow_document
from controller.web.picture import graph_of
from graph.export import edge_document, graph_document, node_document
from graph.flow import EdgeKey
from graph.model import Verdict, WorkloadRef

DELTA_SECONDS = 0.25
COMMENT_SECONDS = 15.0
WRITE_SECONDS = 30.0

#: A comment line: keeps proxies from closing the connection, and finds out that the client is gone.
KEEP_ALIVE = b": still here\n\n"


def event(name: str, document: Any) -> bytes:
    """One event. A large list is broken over data lines, one entry each, as readers limit the length of a line."""
    lines = [f"event: {name}"]
    if not isinstance(document, dict) or not document:
        return _closed([*lines, f"data: {_compact(document)}"])
    parts = list(document.items())
    for index, (key, value) in enumerate(parts):
        opening = "{" if index == 0 else ""
        comma = "," if index + 1 < len(parts) else "}"
        if isinstance(value, list) and value:
            lines.append(f"data: {opening}{_compact(key)}:[")
            lines += [f"data: {_compact(entry)}," for entry in value[:-1]]
            lines += [f"data: {_compact(value[-1])}", f"data: ]{comma}"]
        else:
            lines.append(f"data: {opening}{_compact(key)}:{_compact(value)}{comma}")
    return _closed(lines)


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _closed(lines: list[str]) -> bytes:
    return ("\n".join(lines) + "\n\n").encode("utf-8")


@dataclass(slots=True)
class _Gathered:
    """What several changes together touched."""

    nodes: set[WorkloadRef] = field(default_factory=set)
    edges: set[EdgeKey] = field(default_factory=set)
    removed_nodes: set[WorkloadRef] = field(default_factory=set)
    removed_edges: set[EdgeKey] = field(default_factory=set)
    whole: bool = False

    def add(self, change: Change) -> None:
        self.whole = self.whole or change.resync or change.inventory
        self.nodes.update(change.nodes)
        self.nodes.update(change.snapshots)  # a new policy may be a new mode, which a node shows
        self.edges.update(change.edges)
        self.removed_nodes.update(change.removed_nodes)
        self.removed_edges.update(change.removed_edges)

    def __bool__(self) -> bool:
        return bool(self.whole or self.nodes or self.edges or self.removed_nodes or self.removed_edges)

    def event(self, view: View, now: float) -> bytes:
        """What has to be sent: what is gone is what is gone *now*, whichever way it went in between."""
        if self.whole:
            return event("graph", graph_document(graph_of(view, now)))
        nodes = {ref: view.nodes.get(ref) for ref in self.nodes | self.removed_nodes}
        edges = {key: view.traffic.get(key) for key in self.edges | self.removed_edges}
        return event(
            "delta",
            {
                "generation": view.generation,
                "at": now,
                "nodes": [node_document(node) for _, node in sorted(nodes.items()) if node is not None],
                "edges": [edge_document(edge) for _, edge in sorted(edges.items()) if edge is not None],
                "removed_nodes": [str(ref) for ref, node in sorted(nodes.items()) if node is None],
                "removed_edges": [str(key) for key, edge in sorted(edges.items()) if edge is None],
            },
        )


class Live:
    """Serves the live streams, a bounded number at once.

    :param clock: seconds since the epoch
    """

    def __init__(
        self,
        engine: Engine,
        clock: Callable[[], float],
        limit: int,
        delta_seconds: float = DELTA_SECONDS,
        comment_seconds: float = COMMENT_SECONDS,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._limit = limit
        self._delta_seconds = delta_seconds
        self._comment_seconds = comment_seconds
        self._open: set[Subscription] = set()

    def close(self) -> None:
        """End every stream."""
        for subscription in list(self._open):
            subscription.close()

    async def graph(self, request: web.Request) -> web.StreamResponse:
        return await self._stream(request, self._graph_events)

    async def flows(
        self, request: web.Request, workload: WorkloadRef | None, verdict: Verdict | None, namespace: str
    ) -> web.StreamResponse:
        return await self._stream(request, lambda changes: self._flow_events(changes, workload, verdict, namespace))

    async def _stream(
        self, request: web.Request, events: Callable[[Subscription], AsyncIterator[bytes]]
    ) -> web.StreamResponse:
        if len(self._open) >= self._limit:
            raise NotReady(f"{self._limit} live streams are open already", remedy="close one, or raise sse_clients")
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no"}
        )
        async with self._engine.subscribe() as changes:
            self._open.add(changes)
            try:
                await response.prepare(request)
                async for data in events(changes):
                    if not PERMITTED.get()():  # its token was replaced
                        break
                    async with asyncio.timeout(WRITE_SECONDS):
                        await response.write(data)
            except (_Ended, ConnectionError, TimeoutError):
                pass  # we are stopping, or the client is gone, or takes nothing
            finally:
                self._open.discard(changes)
        return response

    async def _graph_events(self, changes: Subscription) -> AsyncIterator[bytes]:
        yield event("graph", graph_document(graph_of(self._engine.view, self._clock())))
        sent_at = time.monotonic()
        gathered = _Gathered()
        while True:
            due = sent_at + self._delta_seconds if gathered else time.monotonic() + self._comment_seconds
            change = await _next(changes, due - time.monotonic())
            if change is not None:
                gathered.add(change)
            elif not gathered:
                yield KEEP_ALIVE
            if gathered and time.monotonic() >= sent_at + self._delta_seconds:
                data, gathered = gathered.event(self._engine.view, self._clock()), _Gathered()
                yield data
                sent_at = time.monotonic()

    async def _flow_events(
        self, changes: Subscription, workload: WorkloadRef | None, verdict: Verdict | None, namespace: str
    ) -> AsyncIterator[bytes]:
        while True:
            change = await _next(changes, self._comment_seconds)
            if change is None:
                yield KEEP_ALIVE
                continue
            if change.resync:
                yield event("missed", {})
            for flow in change.flows:
                if workload is not None and workload not in (flow.source, flow.destination):
                    continue
                if namespace and namespace not in (flow.source.namespace, flow.destination.namespace):
                    continue
                if verdict is None or flow.verdict is verdict:
                    yield event("flow", flow_document(flow))


class _Ended(Exception):
    """There will be no change any more."""


async def _next(changes: Subscription, seconds: float) -> Change | None:
    """The next change; None when there is none for so long.

    :raises _Ended: when there will be none any more
    """
    try:
        async with asyncio.timeout(max(seconds, 0)):
            return await anext(changes)
    except TimeoutError:
        return None
    except StopAsyncIteration:
        raise _Ended from None
