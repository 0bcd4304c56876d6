"""Sums over connections: whatever happens in whatever order, nothing is lost and nothing is counted twice."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from graph.model import Direction, Peer, Selector, Verdict, WorkloadRef
from graph.model import Rule as ModelRule
from graph.policy import Decision, Reason
from sidecar.dataplane.contracts import Record
from sidecar.flows import FlowKey, FlowTracker, connections_in, merge

CART = Peer(workload=WorkloadRef("shop", "cart"), address="10.0.0.1", verified=True)
PEERS = [
    Peer(workload=WorkloadRef("shop", "front"), address="10.0.0.2", verified=True),
    Peer(workload=WorkloadRef("shop", "front"), address="10.0.0.2", verified=False),
    Peer(address="192.0.2.7"),
]
ALLOWED = Decision(
    Verdict.ALLOW,
    Verdict.ALLOW,
    Reason.ALLOW_RULE,
    ModelRule("learned/1", Selector(namespace="shop"), Selector(namespace="shop")),
)
LEARNING = Decision(Verdict.ALLOW, Verdict.DENY, Reason.LEARNING)
DENIED = Decision(Verdict.DENY, Verdict.DENY, Reason.NO_RULE)


def inbound(source=PEERS[0], port=8080, decision=ALLOWED, opened_at=100.0, **changes):
    return Record(Direction.INBOUND, source, CART, port, decision, opened_at, **changes)


def totals(flows):
    return (
        sum(flow.connections for flow in flows),
        sum(flow.bytes_sent for flow in flows),
        sum(flow.bytes_received for flow in flows),
        sum(flow.failed for flow in flows),
    )


def test_a_connection_is_one_flow_with_everything_known_about_it():
    tracker = FlowTracker("cart-1")
    record = inbound(source_identity="spiffe://t/ns/shop/sa/a/wl/front", destination_identity="spiffe://t/x")
    tracker.opened(record)
    record.bytes_sent, record.bytes_received = 10, 20
    record.closed = True
    tracker.closed(record)
    (flow,) = tracker.harvest(105.0)
    assert str(flow.edge) == "shop/front->shop/cart:8080/TCP"
    assert (flow.direction, flow.reporter, flow.verified) == (Direction.INBOUND, "cart-1", True)
    assert (flow.verdict, flow.pending, flow.reason, flow.rule_id) == (
        Verdict.ALLOW,
        Verdict.ALLOW,
        "allow-rule",
        "learned/1",
    )
    assert flow.source_identity.endswith("/wl/front")
    assert totals([flow]) == (1, 10, 20, 0)
    assert (flow.first_seen, flow.last_seen) == (100.0, 105.0)
    assert tracker.harvest(106.0) == []


def test_a_long_connection_is_reported_as_differences_and_its_last_bytes_are_not_lost():
    tracker = FlowTracker("cart-1")
    record = inbound()
    tracker.opened(record)
    record.bytes_sent = 5
    assert totals(tracker.harvest(101.0)) == (1, 5, 0, 0)
    assert tracker.harvest(102.0) == []
    record.bytes_sent, record.bytes_received = 12, 3
    (flow,) = tracker.harvest(103.0)
    assert totals([flow]) == (0, 7, 3, 0)
    assert (flow.first_seen, flow.last_seen) == (102.0, 103.0)
    record.bytes_received, record.failed, record.closed = 4, True, True
    tracker.closed(record)
    assert totals(tracker.harvest(104.0)) == (0, 0, 1, 1)
    assert tracker.live == 0


def test_a_refused_connection_counts_at_once():
    tracker = FlowTracker("cart-1")
    tracker.opened(inbound(PEERS[2], decision=DENIED, closed=True))
    (flow,) = tracker.harvest(101.0)
    assert str(flow.source) == "-/192.0.2.7"
    assert (flow.verdict, flow.reason, flow.connections) == (Verdict.DENY, "no-rule", 1)
    assert (flow.first_seen, flow.last_seen) == (100.0, 100.0)
    assert tracker.live == 0


def test_closing_twice_or_without_opening_counts_nothing():
    tracker = FlowTracker("cart-1")
    record = inbound()
    tracker.closed(record)
    tracker.opened(record)
    tracker.closed(record)
    tracker.closed(record)
    assert totals(tracker.harvest(101.0)) == (1, 0, 0, 0)


def test_a_connection_that_is_judged_again_moves_to_its_new_flow():
    tracker = FlowTracker("cart-1")
    record = inbound(decision=LEARNING)
    tracker.opened(record)
    record.bytes_sent = 5
    tracker.harvest(101.0)
    record.decision = ALLOWED
    record.bytes_sent = 9
    (flow,) = tracker.harvest(102.0)
    assert (flow.reason, flow.connections, flow.bytes_sent) == ("allow-rule", 0, 4)


def test_an_end_that_nobody_knows_is_shed_and_counted():
    tracker = FlowTracker("cart-1")
    tracker.opened(inbound(Peer()))
    assert tracker.harvest(101.0) == []
    assert tracker.take_shed() == 1
    assert tracker.take_shed() == 0


def test_what_does_not_fit_is_shed_and_counted_and_a_live_connection_waits_for_room():
    tracker = FlowTracker("cart-1", max_flows=2)
    for port in (1, 2, 3, 4):
        tracker.opened(inbound(port=port, closed=True))
    assert tracker.take_shed() == 2
    live = inbound(port=5)
    tracker.opened(live)
    live.bytes_sent = 9
    assert {flow.port for flow in tracker.harvest(101.0)} == {1, 2}
    (flow,) = tracker.harvest(102.0)  # there was no room before, now there is
    assert (flow.port, flow.connections, flow.bytes_sent) == (5, 1, 9)
    assert tracker.take_shed() == 0


def test_merging_adds_up():
    tracker = FlowTracker("cart-1")
    tracker.opened(inbound(opened_at=100.0, bytes_sent=1, closed=True))
    (first,) = tracker.harvest(101.0)
    second = replace(first, first_seen=50.0, last_seen=200.0, bytes_received=7, failed=1)
    both = merge(first, second)
    assert FlowKey.of(both) == FlowKey.of(first)
    assert totals([both]) == (2, 2, 7, 1)
    assert (both.first_seen, both.last_seen) == (50.0, 200.0)
    assert connections_in([both, replace(both, connections=0)]) == 3


class Tracking(RuleBasedStateMachine):
    """Any order of openings, bytes, harvests and closings: counted equals happened."""

    def __init__(self):
        super().__init__()
        self.now = 1000.0
        self.tracker = FlowTracker("cart-1", max_flows=4096)
        self.open = []
        self.flows = []
        self.happened = [0, 0, 0, 0]

    @rule(
        peer=st.sampled_from(PEERS),
        port=st.integers(1, 5),
        decision=st.sampled_from([ALLOWED, LEARNING, DENIED]),
        born_closed=st.booleans(),
    )
    def opens(self, peer, port, decision, born_closed):
        self.now += 1
        record = inbound(peer, port, decision, self.now, closed=born_closed)
        self.tracker.opened(record)
        self.happened[0] += 1
        if not born_closed:
            self.open.append(record)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), sent=st.integers(0, 1 << 40), received=st.integers(0, 1 << 40))
    def moves(self, data, sent, received):
        record = data.draw(st.sampled_from(range(len(self.open))))
        self.open[record].bytes_sent += sent
        self.open[record].bytes_received += received
        self.happened[1] += sent
        self.happened[2] += received

    @precondition(lambda self: self.open)
    @rule(data=st.data(), decision=st.sampled_from([ALLOWED, LEARNING, DENIED]))
    def is_judged_again(self, data, decision):
        self.open[data.draw(st.sampled_from(range(len(self.open))))].decision = decision

    @precondition(lambda self: self.open)
    @rule(data=st.data(), failed=st.booleans())
    def closes(self, data, failed):
        record = self.open.pop(data.draw(st.sampled_from(range(len(self.open)))))
        self.happened[3] += failed and not record.failed
        record.failed = record.failed or failed
        record.closed = True
        self.tracker.closed(record)

    @rule()
    def harvests(self):
        self.now += 1
        harvest = self.tracker.harvest(self.now)
        assert len({FlowKey.of(flow) for flow in harvest}) == len(harvest)
        assert all(flow.first_seen <= flow.last_seen <= self.now for flow in harvest)
        self.flows += harvest

    @invariant()
    def counts_are_right_after_a_harvest(self):
        assert self.tracker.live == len(self.open)
        assert self.tracker.total_shed == 0

    def teardown(self):
        self.harvests()
        assert list(totals(self.flows)) == self.happened


TestTracking = Tracking.TestCase
TestTracking.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.lists(st.integers(1, 60), max_size=80), st.integers(1, 10))
def test_shed_and_reported_connections_make_all_of_them(ports, max_flows):
    tracker = FlowTracker("cart-1", max_flows=max_flows)
    for port in ports:
        tracker.opened(inbound(port=port, closed=True))
    flows = tracker.harvest(200.0)
    assert len(flows) <= max_flows
    assert sum(flow.connections for flow in flows) + tracker.take_shed() == len(ports)
