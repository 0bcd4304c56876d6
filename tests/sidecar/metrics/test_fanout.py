"""Everybody hears everything, and nobody's fault is anybody else's."""

from __future__ import annotations

import logging

from sidecar.metrics.fanout import Fanout
from tests.sidecar.metrics.records import record, request


class Sink:
    def __init__(self, broken=False):
        self.heard = []
        self.broken = broken

    def _hear(self, *what):
        self.heard.append(what)
        if self.broken:
            raise RuntimeError("broken")

    def opened(self, one):
        self._hear("opened", one)

    def closed(self, one):
        self._hear("closed", one)

    def request(self, one):
        self._hear("request", one)


def test_every_sink_hears_everything_in_order():
    first, second = Sink(), Sink()
    fanout = Fanout(first)
    fanout.add(second)
    fanout.add(second)
    one = record()
    asked = request(one)
    fanout.opened(one)
    fanout.request(asked)
    fanout.closed(one)
    assert first.heard == second.heard == [("opened", one), ("request", asked), ("closed", one)]


def test_who_has_left_hears_nothing():
    sink = Sink()
    fanout = Fanout(sink)
    fanout.remove(sink)
    fanout.opened(record())
    assert not sink.heard


def test_a_fault_is_counted_and_costs_nobody_else_anything(caplog):
    broken, healthy = Sink(broken=True), Sink()
    fanout = Fanout(broken, healthy)
    with caplog.at_level(logging.ERROR):
        for _ in range(30):
            fanout.opened(record())
            fanout.request(request(record()))
            fanout.closed(record())
    assert len(healthy.heard) == 90
    assert fanout.faults == 90
    assert len(caplog.records) == 10  # a broken sink does not fill the disk
