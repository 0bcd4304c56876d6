"""The snapshot in force: verdicts equal to graph.policy.decide's, defaults before the first, expiries on time."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.spiffe import SpiffeId
from graph.model import (
    Connection,
    Direction,
    InboundTls,
    Mode,
    Origin,
    Peer,
    PortRange,
    Rule,
    Selector,
    Snapshot,
    Verdict,
    WorkloadRef,
)
from graph.policy import Reason, decide
from sidecar.authority import MAX_INDEXED_PORTS, MAX_TIMER, PolicyAuthority
from sidecar.settings import Unsynced

CART = WorkloadRef("shop", "cart")
FRONT = Peer(workload=WorkloadRef("shop", "front"), address="10.0.0.2", verified=True)
IDENTITY = SpiffeId.for_workload("hedgerow.test", "shop", "default", "cart")
START = 1_000_000.0


class Time:
    """The event loop's call_later and the wall clock, moved by hand."""

    def __init__(self):
        self.now = START
        self.timers = []
        self.count = itertools.count()

    class Handle:
        cancelled = False

        def cancel(self):
            self.cancelled = True

    def call_later(self, delay, call):
        handle = self.Handle()
        heapq.heappush(self.timers, (self.now + delay, next(self.count), call, handle))
        return handle

    def advance(self, seconds):
        end = self.now + seconds
        while self.timers and self.timers[0][0] <= end:
            at, _, call, handle = heapq.heappop(self.timers)
            self.now = max(self.now, at)
            if not handle.cancelled:
                call()
        self.now = end

    @property
    def armed(self):
        return [at for at, _, _, handle in self.timers if not handle.cancelled]


@pytest.fixture
def time():
    return Time()


def authority(time, unsynced=Unsynced.DENY):
    return PolicyAuthority(IDENTITY, unsynced, ("10.0.0.1",), lambda: time.now, time.call_later)


def allow(id="learned/1", *ports, source="front", **changes):
    ranges = tuple(map(PortRange.single, ports))
    return Rule(id, Selector("shop", source), Selector("shop", "cart"), ranges, **changes)


def snapshot(*rules, version=1, mode=Mode.ENFORCE, tls=InboundTls.PERMISSIVE):
    return Snapshot(CART, "hedgerow.test", version, mode, mode, tls, rules)


def test_before_the_first_snapshot_everything_is_denied(time):
    held = authority(time)
    assert held.version == 0
    for decision in (held.inbound(FRONT, 8080), held.outbound(FRONT, 8080)):
        assert (decision.verdict, decision.reason) == (Verdict.DENY, Reason.NO_RULE)


def test_before_the_first_snapshot_learning_only_where_the_settings_say_so(time):
    held = authority(time, Unsynced.LEARN)
    for decision in (held.inbound(FRONT, 8080), held.outbound(FRONT, 8080)):
        assert (decision.verdict, decision.pending) == (Verdict.ALLOW, Verdict.DENY)
        assert decision.reason is Reason.LEARNING


def test_a_snapshot_replaces_the_default_and_tells_subscribers(time):
    held = authority(time, Unsynced.LEARN)
    told = []
    held.subscribe(lambda: told.append(held.version))
    held.apply(snapshot(allow("learned/1", 8080), version=3))
    assert told == [3]
    assert held.workload == CART
    assert held.inbound(FRONT, 8080).rule_id == "learned/1"
    assert not held.inbound(FRONT, 8081).allowed
    held.apply(snapshot(version=4))
    assert not held.inbound(FRONT, 8080).allowed  # nothing of the old index is left


def test_a_failing_subscriber_does_not_keep_a_new_deny_from_the_others(time, caplog):
    held = authority(time)
    told = []
    held.subscribe(lambda: 1 / 0)
    held.subscribe(lambda: told.append(1))
    held.apply(snapshot())
    assert told == [1]
    assert "ZeroDivisionError" in caplog.text


def test_a_rule_ends_at_its_moment_and_subscribers_are_told(time):
    held = authority(time)
    rules = (
        allow("override/1", 8080, origin=Origin.OVERRIDE, expires_at=START + 10),
        allow("override/2", 9090, origin=Origin.OVERRIDE, expires_at=START + 20),
    )
    held.apply(snapshot(*rules))
    told = []
    held.subscribe(
        lambda: told.append((time.now, held.inbound(FRONT, 8080).allowed, held.inbound(FRONT, 9090).allowed))
    )
    time.advance(9.9)
    assert told == []
    assert held.inbound(FRONT, 8080).allowed
    time.advance(60)
    assert told == [(START + 10, False, True), (START + 20, False, False)]
    assert len(time.armed) == 1, "the clock may be set back"


def test_a_deny_override_ends_too(time):
    held = authority(time)
    held.apply(
        snapshot(
            allow("learned/1"),
            replace(allow("override/1", origin=Origin.OVERRIDE, expires_at=START + 5), effect=Verdict.DENY),
        )
    )
    assert held.inbound(FRONT, 80).reason is Reason.DENY_OVERRIDE
    time.advance(5)
    assert held.inbound(FRONT, 80).allowed


def test_a_far_expiry_is_looked_at_again_because_clocks_are_set(time):
    held = authority(time)
    held.apply(snapshot(allow("override/1", origin=Origin.OVERRIDE, expires_at=START + 1e9)))
    told = []
    held.subscribe(lambda: told.append(time.now))
    assert time.armed == [START + MAX_TIMER]
    time.advance(MAX_TIMER)
    assert told == []
    assert len(time.armed) == 1
    time.now += 1e9  # somebody set the clock
    time.advance(MAX_TIMER)
    assert len(told) == 1


def test_what_expired_by_a_clock_that_was_ahead_is_in_force_when_it_is_right_again(time):
    ahead = [0.0]
    held = PolicyAuthority(IDENTITY, Unsynced.DENY, (), lambda: time.now + ahead[0], time.call_later)
    deny = replace(allow("override/1", origin=Origin.OVERRIDE, expires_at=START + 3600), effect=Verdict.DENY)
    held.apply(snapshot(allow("learned/1"), deny))
    told = []
    held.subscribe(lambda: told.append(held.inbound(FRONT, 80).allowed))
    assert not held.inbound(FRONT, 80).allowed
    ahead[0] = 86400
    assert held.inbound(FRONT, 80).allowed
    assert held.operation(FRONT, 80, "GET /").allowed
    time.advance(MAX_TIMER)
    assert told == [True]
    ahead[0] = 0
    assert not held.inbound(FRONT, 80).allowed, "at once"
    assert not held.operation(FRONT, 80, "GET /").allowed
    time.advance(MAX_TIMER)
    assert told == [True, False], "and whoever was let in meanwhile is judged again"


def test_an_end_between_two_looks_at_the_clock_is_not_missed(time):
    held = authority(time)
    held.apply(snapshot(allow("override/1", origin=Origin.OVERRIDE, expires_at=START + 10)))
    told = []
    held.subscribe(lambda: told.append(1))
    real, looks = held._clock, iter([START + 9.999])
    held._clock = lambda: next(looks, START + 10.001)  # the timer comes a little early, by the wall clock
    time.now = START + 10
    time.advance(0)
    assert told == []
    held._clock = real
    time.advance(1)
    assert told == [1]


def test_a_new_snapshot_and_closing_end_the_old_timer(time):
    held = authority(time)
    held.apply(snapshot(allow("override/1", origin=Origin.OVERRIDE, expires_at=START + 10)))
    held.apply(snapshot(version=2))
    assert not time.armed
    held.apply(snapshot(allow("override/1", origin=Origin.OVERRIDE, expires_at=START + 10), version=3))
    held.close()
    assert not time.armed


SOURCES = [
    FRONT,
    replace(FRONT, verified=False),
    Peer(workload=WorkloadRef("shop", "search"), verified=True, address="10.0.0.3"),
    Peer(address="192.0.2.7"),
]

rules = st.builds(
    lambda number, source, first, width, origin, deny, expires: Rule(
        f"{origin}/{number}",
        source,
        Selector(),
        () if first is None else (PortRange(first, first + width),),
        origin=origin,
        effect=Verdict.DENY if deny and origin in (Origin.OVERRIDE, Origin.STATIC) else Verdict.ALLOW,
        expires_at=expires,
    ),
    st.integers(0, 1_000_000),
    st.sampled_from([Selector("shop", "front"), Selector("shop"), Selector(), Selector(cidr="192.0.2.0/24")]),
    st.one_of(st.none(), st.integers(1, 20)),
    st.integers(0, 3),
    st.sampled_from(list(Origin)),
    st.booleans(),
    st.sampled_from([0.0, START - 1, START + 1]),
)


@given(
    st.lists(rules, max_size=8),
    st.sampled_from(list(Mode)),
    st.sampled_from(list(InboundTls)),
    st.lists(st.tuples(st.sampled_from(SOURCES), st.integers(1, 24), st.sampled_from(list(Direction))), max_size=10),
)
def test_the_index_never_changes_a_verdict(held_rules, mode, tls, questions):
    time = Time()
    held = authority(time)
    whole = snapshot(*held_rules, mode=mode, tls=tls)
    held.apply(whole)
    mine = Peer(CART, "shop", "default", "10.0.0.1", verified=True)
    for peer, port, direction in questions:
        if direction is Direction.INBOUND:
            expected = decide(whole, Connection(direction, peer, mine, port), time.now)
            assert held.inbound(peer, port) == expected
        else:
            expected = decide(whole, Connection(direction, mine, peer, port), time.now)
            assert held.outbound(peer, port) == expected


def test_a_port_scan_does_not_grow_the_index(time):
    held = authority(time)
    held.apply(snapshot(allow("learned/1", 60000)))
    for port in range(1, 3 * MAX_INDEXED_PORTS):
        assert not held.inbound(FRONT, port).allowed
    assert len(held._by_port) == MAX_INDEXED_PORTS
    assert held.inbound(FRONT, 60000).allowed
