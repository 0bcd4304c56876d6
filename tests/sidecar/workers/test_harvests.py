"""Flows of several workers: nothing is lost or counted twice, and what is lost with a worker is counted as shed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.workers.frames import Broken
from sidecar.workers.harvests import Harvests
from tests.sidecar.reports import FLOW


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(1, 5)), max_size=40), st.integers(1, 4))
def test_every_connection_is_in_the_sum_or_shed(came, most):
    harvests = Harvests(max_flows=most)
    numbers = dict.fromkeys(range(3), 0)
    for worker in numbers:
        harvests.began(worker)
    total = reported = shed = 0
    for worker, port, count in came:
        numbers[worker] += 1
        harvests.take(worker, numbers[worker], [replace(FLOW, port=port + 1, connections=count)], 0)
        total += count
        if count == 3:
            reported += sum(flow.connections for flow in harvests.harvest(0.0))
            shed += harvests.take_shed()
    reported += sum(flow.connections for flow in harvests.harvest(0.0))
    shed += harvests.take_shed()
    assert reported + shed == total


def test_flows_of_two_workers_are_one():
    harvests = Harvests()
    for worker, seen in ((1, 100.0), (2, 90.0)):
        harvests.began(worker)
        harvests.take(worker, 1, [replace(FLOW, first_seen=seen)], 0)
    (flow,) = harvests.harvest(0.0)
    assert (flow.connections, flow.bytes_sent, flow.first_seen, flow.last_seen) == (2, 20, 90.0, 101.0)
    assert harvests.harvest(0.0) == []


@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_harvest_that_is_not_the_next_is_broken(number):
    harvests = Harvests()
    harvests.began(1)
    harvests.take(1, 1, [FLOW], 0)
    with pytest.raises(Broken, match="comes after 1"):
        harvests.take(1, number, [FLOW], 0)
    assert [flow.connections for flow in harvests.harvest(0.0)] == [1]


def test_a_dead_worker_costs_what_it_carried_and_one_at_least():
    harvests = Harvests()
    for worker, live in ((1, 7), (2, 0)):
        harvests.began(worker)
        harvests.counted(worker, live, 50)
        harvests.ended(worker, orderly=False)
        harvests.ended(worker, orderly=False)
    assert harvests.take_shed() == 8
    assert (harvests.live, harvests.total_records) == (0, 100)


def test_one_that_has_told_everything_costs_nothing():
    harvests = Harvests()
    harvests.began(1)
    harvests.counted(1, 3, 50)
    harvests.take(1, 1, [FLOW], 2)
    harvests.ended(1, orderly=True)
    assert harvests.take_shed() == 2, "what it has shed itself"
    assert harvests.take_shed() == 0
    assert harvests.total_records == 50
