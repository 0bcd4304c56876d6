"""The flows of all workers, added up until they are reported.

The governing rules:

1. A harvest is taken once: harvests of a worker are numbered, and come in order.
2. What a worker carried when it died is counted as shed: its connections as of its last word, and one at least.
3. Memory is bounded by ``max_flows``; what does not fit is shed and counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from graph.flow import Flow
from sidecar.flows import FlowKey, connections_in, merge
from sidecar.workers.frames import Broken


@dataclass(slots=True)
class _Told:
    """What one worker has told: its last harvest's number, open connections, and all that it heard of."""

    number: int = 0
    live: int = 0
    records: int = 0


class Harvests:
    """Implements :class:`sidecar.flows.FlowSource`.

    :param max_flows: how many flows are kept between two reports
    """

    def __init__(self, max_flows: int = 16_384) -> None:
        self._max_flows = max_flows
        self._flows: dict[FlowKey, Flow] = {}
        self._shed = 0
        self._workers: dict[int, _Told] = {}
        self._past_records = 0

    @property
    def live(self) -> int:
        return sum(worker.live for worker in self._workers.values())

    @property
    def total_records(self) -> int:
        return self._past_records + sum(worker.records for worker in self._workers.values())

    def harvest(self, now: float) -> list[Flow]:
        flows, self._flows = self._flows, {}
        return list(flows.values())

    def take_shed(self) -> int:
        shed, self._shed = self._shed, 0
        return shed

    def began(self, worker: int) -> None:
        """A worker has been started."""
        self._workers[worker] = _Told()

    def counted(self, worker: int, live: int, records: int) -> None:
        """How many connections a worker carries, and has heard of since its start."""
        told = self._workers[worker]
        told.live, told.records = live, max(told.records, records)

    def take(self, worker: int, number: int, flows: Iterable[Flow], shed: int) -> None:
        """A harvest has come.

        :param shed: connections whose accounts the worker has dropped
        :raises Broken: when it is not the next one
        """
        told = self._workers[worker]
        if number != told.number + 1:
            raise Broken(f"FLOWS: harvest {number} comes after {told.number}")
        told.number = number
        self._count_shed(shed)
        for flow in flows:
            key = FlowKey.of(flow)
            held = self._flows.get(key)
            if held is not None:
                self._flows[key] = merge(held, flow)
            elif len(self._flows) < self._max_flows:
                self._flows[key] = flow
            else:
                self._count_shed(connections_in((flow,)))

    def ended(self, worker: int, *, orderly: bool) -> None:
        """A worker has ended.

        :param orderly: it has told everything
        """
        told = self._workers.pop(worker, None)
        if told is None:
            return
        self._past_records += told.records
        if not orderly:
            self._count_shed(max(told.live, 1))

    def _count_shed(self, shed: int) -> None:
        self._shed += shed
