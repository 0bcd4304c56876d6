"""Batches until they are acknowledged: the same under the same number, bounded, and nothing vanishes uncounted."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sidecar.outbox import Outbox
from tests.sidecar.reports import FLOW


def flows(*ports):
    return [replace(FLOW, port=port) for port in ports]


def test_a_report_gets_its_number_when_it_is_sent_and_keeps_it():
    outbox = Outbox()
    outbox.add(flows(1))
    outbox.add(flows(2))
    first, second = outbox.next(), outbox.next()
    assert (first.sequence, second.sequence) == (1, 2)
    assert outbox.next() is None
    assert outbox.unacknowledged() == (first, second)
    outbox.acknowledge(1)
    assert outbox.unacknowledged() == (second,)
    outbox.acknowledge(2)
    assert outbox.empty
    assert outbox.acknowledged == 2


def test_acknowledgements_are_cumulative_and_may_repeat():
    outbox = Outbox()
    for port in (1, 2, 3):
        outbox.add(flows(port))
        outbox.next()
    outbox.acknowledge(3)
    outbox.acknowledge(1)
    assert outbox.empty


def test_an_acknowledgement_of_what_was_never_sent_is_an_error():
    outbox = Outbox()
    outbox.add(flows(1))
    with pytest.raises(ValueError, match="batch 1 was acknowledged and 0"):
        outbox.acknowledge(1)
    assert not outbox.empty


def test_what_was_sent_is_never_merged():
    outbox = Outbox(max_waiting=1)
    outbox.add(flows(1))
    sent = outbox.next()
    for _ in range(5):
        outbox.add(flows(1))
    assert outbox.unacknowledged() == (sent,)
    merged = outbox.next()
    assert merged.flows[0].connections == 5
    assert outbox.next() is None


def test_only_so_many_batches_are_under_way():
    outbox = Outbox(max_unacked=2)
    for port in (1, 2, 3):
        outbox.add(flows(port))
    assert outbox.next()
    assert outbox.next()
    assert outbox.next() is None
    outbox.acknowledge(1)
    assert outbox.next().sequence == 3


def test_beyond_the_bound_flows_are_shed_and_told():
    outbox = Outbox(max_waiting=1, max_flows=2)
    outbox.add(flows(1, 2))
    outbox.add(flows(1, 3, 4), shed=5)
    assert outbox.waiting_flows == 2
    batch = outbox.next()
    assert batch.shed == 7
    assert {flow.port: flow.connections for flow in batch.flows} == {1: 2, 2: 1}
    assert outbox.total_shed == 7


def test_a_big_report_becomes_several_batches():
    outbox = Outbox(max_batch=3)
    outbox.add(flows(*range(1, 9)))
    batches = [outbox.next() for _ in range(3)]
    assert [len(batch.flows) for batch in batches] == [3, 3, 2]
    assert outbox.next() is None
    assert outbox.total_shed == 0


def test_a_flow_that_waits_in_an_older_report_is_merged_there():
    outbox = Outbox(max_waiting=2, max_batch=1)
    outbox.add(flows(1))
    outbox.add(flows(2))
    outbox.add(flows(1, 2, 3))
    assert [batch.flows[0].connections for batch in (outbox.next(), outbox.next())] == [2, 2]
    assert outbox.total_shed == 1


def test_a_loss_alone_is_told_too():
    outbox = Outbox()
    outbox.add([], shed=3)
    assert not outbox.empty
    batch = outbox.next()
    assert (batch.flows, batch.shed) == ((), 3)


def test_what_the_controller_will_never_take_is_given_up_and_counted():
    outbox = Outbox()
    outbox.add(flows(1, 2), shed=1)
    outbox.next()
    assert outbox.abandon_oldest() == 2
    assert outbox.abandon_oldest() == 0
    batch = outbox.next()
    assert batch.sequence == 2  # a number is never used again for something else
    assert batch.shed == 3
    assert outbox.total_shed == 3


class Reporting(RuleBasedStateMachine):
    """A controller that comes and goes: every connection is stored once, waits, or is counted as shed."""

    def __init__(self):
        super().__init__()
        self.outbox = Outbox(max_unacked=3, max_waiting=3, max_flows=6, max_batch=4)
        self.stored = {}
        self.added = 0
        self.shed_stored = 0

    @rule(ports=st.lists(st.integers(1, 12), max_size=6))
    def adds(self, ports):
        self.outbox.add(flows(*ports))
        self.added += len(ports)

    @rule(count=st.integers(1, 4), acknowledged=st.booleans())
    def sends(self, count, acknowledged):
        for _ in range(count):
            batch = self.outbox.next()
            if batch is None:
                return
            assert self.stored.setdefault(batch.sequence, batch) is batch
            if acknowledged:
                self.outbox.acknowledge(batch.sequence)

    @rule()
    def reconnects(self):
        for batch in self.outbox.unacknowledged():
            assert self.stored.setdefault(batch.sequence, batch) == batch

    @rule()
    def acknowledges(self):
        if self.stored:
            self.outbox.acknowledge(max(self.stored))

    @invariant()
    def nothing_vanishes(self):
        stored = sum(flow.connections for batch in self.stored.values() for flow in batch.flows)
        waiting = sum(flow.connections for report in self.outbox._waiting for flow in report.values())
        assert stored + waiting + self.outbox.total_shed == self.added

    @invariant()
    def bounds_hold(self):
        assert self.outbox.waiting_flows == sum(map(len, self.outbox._waiting)) <= 6
        assert all(0 < len(report) <= 4 for report in self.outbox._waiting)
        assert len(self.outbox.unacknowledged()) <= 3
        assert len(self.outbox._waiting) <= 3


TestReporting = Reporting.TestCase
TestReporting.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
