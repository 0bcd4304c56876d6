"""What a worker tells the supervisor of the connections that it carries: flows, metrics, statistics.

Flows are numbered harvests. One that the supervisor has not acknowledged is not gone yet, and while too many are under
way no more is harvested: it adds up in the tracker, which is bounded and counts what it sheds.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from typing import Final

from graph.errors import InvalidValue
from graph.flow import Flow
from graph.wire import hedgerow_pb2 as pb
from graph.wire.codec import flow_to_message
from sidecar.access_log import AccessLog
from sidecar.data_path import carrying
from sidecar.dataplane.proxy import DataPlane
from sidecar.flows import FlowTracker, connections_in
from sidecar.metrics.fanout import Fanout
from sidecar.metrics.istio import IstioMetrics
from sidecar.metrics.own import open_descriptors, resident_bytes
from sidecar.metrics.sums import Telling
from sidecar.workers.frames import Kind
from sidecar.workers.remote import RemoteDirectory, Send

log = logging.getLogger(__name__)

#: Seconds between two reports of statistics and metrics.
REPORT_INTERVAL: Final = 1.0
#: Flows in one frame.
_AT_ONCE: Final = 800
#: Harvests under way at once.
_UNDER_WAY: Final = 16


class Reports:
    """Tells at intervals, and once more at the end.

    :param flow_interval: seconds between two harvests of flows
    """

    def __init__(
        self,
        send: Send,
        tracker: FlowTracker,
        istio: IstioMetrics,
        sinks: Fanout,
        access_log: AccessLog,
        data_plane: DataPlane,
        directory: RemoteDirectory,
        flow_interval: float,
    ) -> None:
        self._send = send
        self._tracker = tracker
        self._metrics = Telling(istio)
        self._istio = istio
        self._sinks = sinks
        self._access_log = access_log
        self._data_plane = data_plane
        self._directory = directory
        self._flow_interval = flow_interval
        self._number = 0
        self._taken = 0
        self._all_taken = asyncio.Event()

    async def harvest_always(self) -> None:
        """Send flows at their interval, until cancelled."""
        while True:
            await asyncio.sleep(self._flow_interval)
            if self._number - self._taken < _UNDER_WAY:
                self._harvest()

    async def report_always(self) -> None:
        """Send everything else, until cancelled."""
        while True:
            await asyncio.sleep(REPORT_INTERVAL)
            self._directory.tell_uses()
            for _ in self._metrics.settle():
                await asyncio.sleep(0)
            self._report()

    async def last(self, deadline: float) -> bool:
        """Send what is left; whether all flows were acknowledged in time.

        :param deadline: seconds
        """
        for _ in self._metrics.settle():
            pass
        self._report()
        self._harvest()
        try:
            async with asyncio.timeout(deadline):
                while self._taken < self._number:
                    self._all_taken.clear()
                    await self._all_taken.wait()
        except TimeoutError:
            return False
        return True

    def taken(self, number: int) -> bool:
        """The supervisor has a harvest, and all before. False: there was none of that number."""
        if not self._taken <= number <= self._number:
            return False
        self._taken = number
        self._all_taken.set()
        return True

    def _harvest(self) -> None:
        flows = self._tracker.harvest(time.time())
        shed = self._tracker.take_shed()
        for start in range(0, len(flows), _AT_ONCE):
            self._send_flows(flows[start : start + _AT_ONCE], shed)
            shed = 0
        if shed:
            self._send_flows((), shed)

    def _send_flows(self, flows: Sequence[Flow], shed: int) -> None:
        messages = []
        for flow in flows:
            try:
                messages.append(flow_to_message(flow))
            except InvalidValue as error:
                log.error("a flow can not be reported: %s", error)
                shed += connections_in((flow,))
        self._number += 1
        head = {"number": self._number, "shed": shed, **self._counts()}
        self._send(Kind.FLOWS, head, (pb.FlowBatch(flows=messages).SerializeToString(),))

    def _counts(self) -> dict[str, int]:
        return {
            "live": self._tracker.live,
            "records": self._tracker.total_records,
            "total_shed": self._tracker.total_shed,
        }

    def _report(self) -> None:
        stats = {
            **carrying(self._data_plane),
            "flows": self._counts(),
            "access_log": {"lines": self._access_log.lines, "shed": self._access_log.shed},
            "telemetry": {"faults": self._sinks.faults, "folded": self._istio.folded},
            "process": {
                "pid": os.getpid(),
                "resident_bytes": resident_bytes(),
                "cpu_seconds": round(time.process_time(), 3),
                "open_descriptors": open_descriptors(),
            },
        }
        self._send(Kind.REPORT, {"stats": stats, "sums": self._metrics.take()})
