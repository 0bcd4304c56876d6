"""Lets several sinks hear of every connection and request, at the cost of one call each.

A fault in one of them is logged and costs nobody else a record, and no connection its life.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from sidecar.dataplane.contracts import FlowSink, Record, Request

log = logging.getLogger(__name__)

#: Faults of sinks that are logged; beyond, they are only counted: a broken sink must not fill the disk.
_LOGGED = 10


class Fanout:
    """Implements :class:`sidecar.dataplane.contracts.FlowSink`. Sinks may come and go at any time."""

    __slots__ = ("_closed", "_opened", "_request", "_sinks", "faults")

    def __init__(self, *sinks: FlowSink) -> None:
        self._sinks: tuple[FlowSink, ...] = ()
        self._opened: tuple[Callable[[Record], None], ...] = ()
        self._closed: tuple[Callable[[Record], None], ...] = ()
        self._request: tuple[Callable[[Request], None], ...] = ()
        #: Records that a sink failed on.
        self.faults = 0
        self._listen(sinks)

    def add(self, sink: FlowSink) -> None:
        """Let ``sink`` hear what comes from now on."""
        if sink not in self._sinks:
            self._listen((*self._sinks, sink))

    def remove(self, sink: FlowSink) -> None:
        """Let it hear nothing any more."""
        self._listen(tuple(one for one in self._sinks if one is not sink))

    def opened(self, record: Record) -> None:
        for hear in self._opened:
            try:
                hear(record)
            except Exception:
                self._fault()

    def closed(self, record: Record) -> None:
        for hear in self._closed:
            try:
                hear(record)
            except Exception:
                self._fault()

    def request(self, request: Request) -> None:
        for hear in self._request:
            try:
                hear(request)
            except Exception:
                self._fault()

    def _listen(self, sinks: tuple[FlowSink, ...]) -> None:
        self._sinks = sinks
        self._opened = tuple(sink.opened for sink in sinks)
        self._closed = tuple(sink.closed for sink in sinks)
        self._request = tuple(sink.request for sink in sinks)

    def _fault(self) -> None:
        self.faults += 1
        if self.faults <= _LOGGED:
            log.exception("a fault of ours in telemetry lost one record; please report it")
