"""Keeps reports of flows until the controller says that it has stored them.

The governing rules:

1. A batch gets its sequence number when it is first sent, and never changes afterwards: the controller may have stored
   it even if its acknowledgement was lost, and recognises it by boot id and sequence.
2. What was never sent may still be merged: reports of one flow add up.
3. When merging is not enough, flows are shed and counted. Nothing waits, nothing grows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from graph.flow import Flow
from sidecar.flows import FlowKey, connections_in, merge


@dataclass(frozen=True, slots=True)
class Batch:
    """A report as it is sent, and sent again."""

    sequence: int
    flows: tuple[Flow, ...]
    shed: int


class Outbox:
    """The batches of one boot that wait for their acknowledgement.

    :param max_unacked: batches that may be under way at once
    :param max_waiting: reports that keep their own time span while nothing can be sent; later ones are merged
    :param max_flows: flows of all reports that were not yet sent, after merging
    :param max_batch: flows in one batch; with identities and rule ids of absurd length it still fits gRPC's 4 MiB
    """

    def __init__(
        self, max_unacked: int = 16, max_waiting: int = 32, max_flows: int = 16384, max_batch: int = 800
    ) -> None:
        self._max_unacked = max_unacked
        self._max_waiting = max_waiting
        self._max_flows = max_flows
        self._max_batch = max_batch
        self._unacked: deque[Batch] = deque()
        self._waiting: deque[dict[FlowKey, Flow]] = deque()
        self._waiting_flows = 0
        self._shed = 0
        self._sequence = 0
        self.total_shed = 0
        self.acknowledged = 0

    @property
    def empty(self) -> bool:
        """Whether everything was acknowledged."""
        return not (self._unacked or self._waiting or self._shed)

    @property
    def waiting_flows(self) -> int:
        """How many flows were not sent yet, after merging."""
        return self._waiting_flows

    def add(self, flows: Iterable[Flow], shed: int = 0) -> None:
        """Take one report.

        :param shed: connections that were already lost before they came here
        """
        self._count_shed(shed)
        report: dict[FlowKey, Flow] | None = None
        begun = False
        for flow in flows:
            key = FlowKey.of(flow)
            if not begun or (report is not None and len(report) >= self._max_batch and key not in report):
                begun = True
                report = self._begin()
            if report is not None and key in report:
                report[key] = merge(report[key], flow)
            elif report is not None and self._waiting_flows < self._max_flows:
                self._insert(report, key, flow)
            else:
                self._squeeze_in(key, flow)
        if self._waiting and not self._waiting[-1]:
            self._waiting.pop()

    def _begin(self) -> dict[FlowKey, Flow] | None:
        """A new report, None when enough wait already."""
        if len(self._waiting) >= self._max_waiting:
            return None
        report: dict[FlowKey, Flow] = {}
        self._waiting.append(report)
        return report

    def _insert(self, report: dict[FlowKey, Flow], key: FlowKey, flow: Flow) -> None:
        report[key] = flow
        self._waiting_flows += 1

    def _squeeze_in(self, key: FlowKey, flow: Flow) -> None:
        """Add a flow to a report that waits already, newest first; shed it when no one has it or room for it."""
        for report in reversed(self._waiting):
            if key in report:
                report[key] = merge(report[key], flow)
                return
        newest = self._waiting[-1] if self._waiting else None
        if newest is not None and len(newest) < self._max_batch and self._waiting_flows < self._max_flows:
            self._insert(newest, key, flow)
        else:
            self._count_shed(connections_in((flow,)))

    def unacknowledged(self) -> tuple[Batch, ...]:
        """What has to be sent again, in this order, after the connection was lost."""
        return tuple(self._unacked)

    def next(self) -> Batch | None:
        """Give the next report its sequence number; None when there is none, or enough are under way."""
        if len(self._unacked) >= self._max_unacked or not (self._waiting or self._shed):
            return None
        self._sequence += 1
        flows = tuple(self._waiting.popleft().values()) if self._waiting else ()
        self._waiting_flows -= len(flows)
        batch = Batch(self._sequence, flows, self._shed)
        self._shed = 0
        self._unacked.append(batch)
        return batch

    def acknowledge(self, sequence: int) -> None:
        """Forget everything up to ``sequence``, which the controller has stored.

        :raises ValueError: when that was never sent
        """
        if sequence > self._sequence:
            raise ValueError(f"batch {sequence} was acknowledged and {self._sequence} is the last that was sent")
        while self._unacked and self._unacked[0].sequence <= sequence:
            self.acknowledged += len(self._unacked.popleft().flows)

    def abandon_oldest(self) -> int:
        """Shed the oldest batch under way, which the controller will never take; returns the connections lost."""
        if not self._unacked:
            return 0
        batch = self._unacked.popleft()
        lost = connections_in(batch.flows)
        self._count_shed(lost)
        self._shed += batch.shed  # it was counted once and must still be told
        return lost

    def _count_shed(self, shed: int) -> None:
        self._shed += shed
        self.total_shed += shed
