"""Reports reach a controller that comes and goes: nothing is lost, nothing is counted twice."""

from __future__ import annotations

import asyncio
import time

import pytest

from graph.model import Direction, Peer, Verdict, WorkloadRef
from graph.policy import Decision, Reason
from sidecar.authority import PolicyAuthority
from sidecar.dataplane.contracts import Record
from sidecar.flows import FlowTracker
from sidecar.outbox import Outbox
from sidecar.settings import Unsynced
from sidecar.telemetry import TelemetryClient
from tests.sidecar.fake_controller import ADDRESS, INSTANCE, WORKLOAD, running, snapshot, until

FRONT = Peer(workload=WorkloadRef("shop", "front"), address="10.77.0.2", verified=True)
CART = Peer(workload=WORKLOAD, address=ADDRESS, verified=True)
ALLOWED = Decision(Verdict.ALLOW, Verdict.ALLOW, Reason.ALLOW_RULE)


class Reporter:
    def __init__(self, joined, outbox=None):
        loop = asyncio.get_running_loop()
        self.tracker = FlowTracker(INSTANCE)
        self.authority = PolicyAuthority(
            joined.credentials.identity, Unsynced.DENY, (ADDRESS,), time.time, loop.call_later
        )
        self.client = TelemetryClient(self.tracker, self.authority, "boot-1", 0.02, time.time, outbox)
        self.joined = joined

    def connection(self, port=8080, sent=10):
        record = Record(Direction.INBOUND, FRONT, CART, port, ALLOWED, time.time(), bytes_sent=sent, closed=True)
        self.tracker.opened(record)

    def reporting(self):
        return running(self.client.run(), self.joined.link.keep("telemetry", self.client.session))


@pytest.fixture
async def reporter(joined):
    return Reporter(joined)


def total(controller):
    return sum(flow.connections for flow in controller.flows), sum(flow.bytes_sent for flow in controller.flows)


async def test_flows_arrive_with_boot_sequence_and_policy_version(controller, reporter):
    reporter.authority.apply(snapshot(7))
    async with reporter.reporting():
        reporter.connection()
        await until(lambda: controller.flows)
        reporter.connection()
        await until(lambda: total(controller) == (2, 20))
        await until(lambda: reporter.client.outbox.empty)
        assert reporter.client.connected
    assert sorted(controller.batches) == [("boot-1", 1), ("boot-1", 2)]
    assert {batch.policy_version for batch in controller.batches.values()} == {7}
    assert str(controller.flows[0].edge) == "shop/front->shop/cart:8080/TCP"
    assert controller.flows[0].reporter == INSTANCE


async def test_nothing_is_sent_when_nothing_happened(controller, reporter):
    async with reporter.reporting():
        reporter.connection()
        await until(lambda: reporter.client.outbox.acknowledged)
        for _ in range(20):
            reporter.client.collect()
    assert controller.received == 1


async def test_a_killed_controller_loses_nothing_and_counts_nothing_twice(controller, reporter):
    sent = 0
    async with reporter.reporting():
        for restart in range(4):
            for _ in range(25):
                reporter.connection(port=8000 + restart)
                sent += 1
                await asyncio.sleep(0)
            await until(lambda: controller.flows)
            await controller.stop()
            for _ in range(25):  # and while it is away
                reporter.connection(port=9000 + restart)
                sent += 1
            reporter.client.collect()
            await controller.start()
            await until(lambda: reporter.client.outbox.empty)
    assert total(controller) == (sent, 10 * sent)


async def test_what_was_stored_and_not_acknowledged_is_sent_again_and_recognised(controller, reporter):
    controller.acknowledge = False
    async with reporter.reporting():
        for number in range(3):
            reporter.connection()
            await until(lambda wanted=number + 1: controller.received == wanted)
        await controller.stop()
        controller.acknowledge = True
        await controller.start()
        await until(lambda: reporter.client.outbox.empty)
    assert controller.received == 6  # each twice
    assert total(controller) == (3, 30)


async def test_reports_wait_bounded_while_the_controller_is_away(controller, joined):
    reporter = Reporter(joined, Outbox(max_waiting=4, max_flows=8))
    await controller.stop()
    async with reporter.reporting():
        for number in range(200):
            reporter.connection(port=1 + number % 20)
            reporter.client.collect()
        outbox = reporter.client.outbox
        assert outbox.waiting_flows <= 8
        await controller.start()
        await until(lambda: outbox.empty)
    told = sum(batch.shed_flows for batch in controller.batches.values())
    assert total(controller)[0] + told == 200
    assert told == outbox.total_shed > 0


async def test_a_controller_that_does_not_acknowledge_bounds_what_is_under_way(controller, joined):
    controller.acknowledge = False
    reporter = Reporter(joined, Outbox(max_unacked=3))
    async with reporter.reporting():
        for number in range(1, 4):
            reporter.connection()
            await until(lambda wanted=number: controller.received == wanted)
        for _ in range(10):
            reporter.connection()
            reporter.client.collect()
        assert len(reporter.client.outbox.unacknowledged()) == 3
    assert controller.received == 3


async def test_a_batch_that_the_controller_can_not_read_does_not_block_the_others(controller, reporter, caplog):
    controller.refuse_batches = "flows[0].port: 0 is not a port"
    async with reporter.reporting():
        reporter.connection()
        await until(lambda: reporter.client.outbox.total_shed == 1)
        assert "can not read a report" in caplog.text
        controller.refuse_batches = ""
        reporter.connection()
        await until(lambda: reporter.client.outbox.empty)
    assert total(controller) == (1, 10)
    assert sum(batch.shed_flows for batch in controller.batches.values()) == 1


async def test_the_last_report_is_flushed(controller, reporter):
    async with reporter.reporting():
        reporter.connection()
        assert await reporter.client.flush(10)
    assert total(controller) == (1, 10)


async def test_a_flush_without_controller_ends_in_time_and_says_no(controller, reporter):
    await controller.stop()
    async with reporter.reporting():
        reporter.connection()
        assert not await reporter.client.flush(0.05)
    assert reporter.client.outbox.waiting_flows or reporter.client.outbox.unacknowledged()


async def test_an_acknowledgement_of_another_boot_is_not_ours(controller, reporter):
    from graph.wire import hedgerow_pb2 as pb

    reporter.connection()
    reporter.client.collect()
    reporter.client.outbox.next()
    reporter.client._acknowledge(pb.FlowAck(boot_id="boot-0", sequence=1))
    assert not reporter.client.outbox.empty
    reporter.client._acknowledge(pb.FlowAck(boot_id="boot-1", sequence=1))
    assert reporter.client.outbox.empty
