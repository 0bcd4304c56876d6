"""Reports flows to the controller, each exactly once.

Every ``interval`` the tracker is harvested into the outbox, whether the controller is there or not; a session sends
what waits there and removes what is acknowledged. A new session first repeats what the last one left unacknowledged:
the controller recognises it by boot id and sequence.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from grpc.aio import StreamStreamCall

from graph.errors import InvalidValue
from graph.wire import hedgerow_pb2 as pb
from graph.wire import hedgerow_pb2_grpc as rpc
from graph.wire.codec import flow_to_message
from sidecar.authority import PolicyAuthority
from sidecar.channel import Session, converse
from sidecar.errors import ControllerRefused, ControllerUnavailable
from sidecar.flows import FlowSource
from sidecar.outbox import Batch, Outbox

log = logging.getLogger(__name__)


class TelemetryClient:
    """Reports what ``tracker`` collects.

    :param interval: seconds between two harvests
    :param clock: seconds since the epoch
    """

    def __init__(
        self,
        tracker: FlowSource,
        authority: PolicyAuthority,
        boot_id: str,
        interval: float,
        clock: Callable[[], float],
        outbox: Outbox | None = None,
    ) -> None:
        self._tracker = tracker
        self._authority = authority
        self._boot_id = boot_id
        self._interval = interval
        self._clock = clock
        self.outbox = outbox if outbox is not None else Outbox()
        self._work = asyncio.Event()
        self._emptied = asyncio.Event()
        self.connected = False

    async def run(self) -> None:
        """Harvest at every interval, until cancelled."""
        while True:
            await asyncio.sleep(self._interval)
            self.collect()

    def collect(self) -> None:
        """Harvest now."""
        flows = self._tracker.harvest(self._clock())
        shed = self._tracker.take_shed()
        if flows or shed:
            self.outbox.add(flows, shed)
            self._emptied.clear()
            self._work.set()

    async def flush(self, deadline: float) -> bool:
        """Harvest a last time and wait until all is acknowledged.

        :param deadline: seconds to wait at most
        :returns: whether it was
        """
        self.collect()
        if self.outbox.empty:
            return True
        self._emptied.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._emptied.wait(), deadline)
        return self.outbox.empty

    async def session(self, session: Session) -> None:
        """One report stream, for :meth:`sidecar.channel.ControllerLink.keep`."""

        def take(ack: pb.FlowAck) -> None:
            session.established()
            self.connected = True
            self._acknowledge(ack)

        call = rpc.TelemetryStub(session.channel).ReportFlows()
        try:
            await converse(call, self._send(call), take)
        except ControllerRefused as error:
            if error.invalid:  # it would be refused forever, and everything behind it would wait
                lost = self.outbox.abandon_oldest()
                log.error("the controller can not read a report, %d connections are not counted: %s", lost, error)
            raise
        finally:
            self.connected = False

    async def _send(self, call: StreamStreamCall[pb.FlowBatch, pb.FlowAck]) -> None:
        for unacknowledged in self.outbox.unacknowledged():
            await call.write(self._message(unacknowledged))
        while True:
            self._work.clear()
            while (batch := self.outbox.next()) is not None:
                await call.write(self._message(batch))
            await self._work.wait()

    def _acknowledge(self, ack: pb.FlowAck) -> None:
        if ack.boot_id != self._boot_id:
            return
        try:
            self.outbox.acknowledge(ack.sequence)
        except ValueError as error:
            raise ControllerUnavailable(f"the controller breaks the protocol: {error}") from None
        self._work.set()  # there is room for the next
        if self.outbox.empty:
            self._emptied.set()

    def _message(self, batch: Batch) -> pb.FlowBatch:
        flows: list[pb.Flow] = []
        for flow in batch.flows:
            try:
                flows.append(flow_to_message(flow))
            except InvalidValue as error:
                log.error("a flow can not be reported: %s", error)
        return pb.FlowBatch(
            boot_id=self._boot_id,
            sequence=batch.sequence,
            policy_version=self._authority.version,
            flows=flows,
            shed_flows=batch.shed,
        )
