"""The life of an edge: every state against every event, what teaches and what never may."""

from __future__ import annotations

import pytest

from controller.learner import (
    EdgeEvent,
    EdgeState,
    LearnedEdge,
    Tally,
    after,
    approve,
    observe,
    rule_of,
    step,
    waiting_for,
)
from controller.learner.edge import MAX_IDENTITIES, MAX_REPORTERS
from graph.errors import InvalidValue
from graph.model import Direction, Verdict
from graph.policy import Reason
from tests.controller.edges import FRONT_ID, GATE, OUTSIDE, START, A, C, P, R, S, edge_in, flow, sent


def observed(edge: LearnedEdge | None, now: float) -> LearnedEdge | None:
    """Both ends report the same connections."""
    return observe(observe(edge, sent(), now), flow(), now)


@pytest.mark.parametrize(
    ("state", "event", "expected"),
    [
        (C, EdgeEvent.SEEN, C),
        (C, EdgeEvent.STEADY, P),
        (C, EdgeEvent.PROVED, A),
        (C, EdgeEvent.APPROVED, A),
        (C, EdgeEvent.IDLE, C),
        (C, EdgeEvent.GONE, R),
        (P, EdgeEvent.SEEN, P),
        (P, EdgeEvent.STEADY, P),
        (P, EdgeEvent.PROVED, A),
        (P, EdgeEvent.APPROVED, A),
        (P, EdgeEvent.IDLE, P),
        (P, EdgeEvent.GONE, R),
        (A, EdgeEvent.SEEN, A),
        (A, EdgeEvent.STEADY, A),
        (A, EdgeEvent.PROVED, A),
        (A, EdgeEvent.APPROVED, A),
        (A, EdgeEvent.IDLE, S),
        (A, EdgeEvent.GONE, R),
        (S, EdgeEvent.SEEN, A),
        (S, EdgeEvent.STEADY, S),
        (S, EdgeEvent.PROVED, S),
        (S, EdgeEvent.APPROVED, A),
        (S, EdgeEvent.IDLE, S),
        (S, EdgeEvent.GONE, R),
        (R, EdgeEvent.SEEN, C),
        (R, EdgeEvent.STEADY, R),
        (R, EdgeEvent.PROVED, R),
        (R, EdgeEvent.APPROVED, R),
        (R, EdgeEvent.IDLE, R),
        (R, EdgeEvent.GONE, R),
    ],
)
def test_every_state_against_every_event(state, event, expected):
    assert after(state, event) is expected


def test_only_active_and_stale_edges_hold():
    assert {state for state in EdgeState if edge_in(state).allows} == {A, S}


# What moves an edge


def test_a_proved_steady_edge_becomes_active_by_itself():
    edge = observed(None, START)
    assert edge.state is C
    assert step(edge, GATE, START + 9.9) is edge, "too young"
    active = step(edge, GATE, START + 10)
    assert (active.state, active.state_since) == (A, START + 10)
    assert rule_of(active).owner == "learner"


def test_too_few_connections_stay_a_candidate():
    edge = observe(None, flow(connections=2), START)
    assert step(edge, GATE, START + 500).state is C


@pytest.mark.parametrize(
    ("told", "why"),
    [(sent(connections=100), "was reported by its source alone"), (flow(connections=100), "by its destination alone")],
)
def test_the_word_of_one_end_alone_proves_nothing(told, why):
    edge = step(observe(None, told, START), GATE, START + 10)
    assert edge.state is P
    assert why in waiting_for(edge, GATE, START + 10)


def test_what_one_end_adds_to_what_both_say_proves_nothing():
    edge = observe(observe(None, sent(connections=1), START), flow(connections=100), START)
    assert step(edge, GATE, START + 10).state is P


def test_a_source_that_did_not_verify_the_destination_proves_nothing():
    edge = observe(observe(None, sent(verified=False), START), flow(), START)
    assert step(edge, GATE, START + 10).state is P


def test_a_destination_without_a_sidecar_needs_only_the_word_of_the_source():
    edge = observe(None, sent(verified=False), START)
    assert step(edge, GATE, START + 10, destination_meshed=False).state is A


@pytest.mark.parametrize(
    "changes",
    [
        {"verified": False, "source_identity": ""},
        {"source_identity": ""},
        {"source_identity": "not an identity"},
        {"source_identity": "spiffe://hedgerow.local/ns/shop/sa/default"},  # an account is not a workload
        {"source_identity": "spiffe://hedgerow.local/ns/shop/sa/default/wl/other"},
        {"source_identity": "spiffe://hedgerow.local/ns/other/sa/default/wl/front"},
    ],
)
def test_a_source_that_did_not_prove_to_be_this_workload_waits_for_approval(changes):
    edge = step(observe(None, flow(**changes), START), GATE, START + 10)
    assert edge.state is P
    assert not edge.identities
    assert "needs approval" in waiting_for(edge, GATE, START + 10)
    approved = approve(edge, "kim", START + 11)
    assert (approved.state, approved.approved_by, approved.approved_at) == (A, "kim", START + 11)


def test_a_proposed_edge_becomes_active_when_it_is_proved_later():
    edge = step(observe(None, flow(verified=False), START), GATE, START + 10)
    edge = step(observed(edge, START + 20), GATE, START + 20)
    assert edge.state is A


@pytest.mark.parametrize("ends", [{"source": OUTSIDE}, {"destination": OUTSIDE}])
@pytest.mark.parametrize("direction", Direction)
def test_an_end_outside_the_inventory_waits_for_approval(ends, direction):
    edge = observe(None, flow(direction=direction, **ends), START)
    for meshed in (True, False):
        assert step(edge, GATE, START + 10, destination_meshed=meshed).state is P
    assert "outside the inventory" in " ".join(edge.evidence())


def test_what_never_reached_an_application_stays_a_candidate():
    edge = observe(None, flow(connections=50, failed=50), START)
    assert step(edge, GATE, START + 500).state is C
    assert "never reached" in waiting_for(edge, GATE, START + 500)


def test_a_failure_may_be_reported_after_its_connection():
    edge = observe(observe(None, flow(connections=5), START), flow(connections=0, failed=4), START)
    assert edge.inbound == Tally(5, 4, 1)
    assert step(edge, GATE, START + 10).state is C


def test_disuse_makes_an_edge_stale_and_then_retires_it():
    edge = edge_in(A)
    assert step(edge, GATE, START + 999) is edge
    stale = step(edge, GATE, START + 1000)
    assert stale.state is S
    assert stale.allows
    gone = step(stale, GATE, START + 2000)
    assert gone.state is R
    assert not gone.allows


def test_a_stale_edge_is_active_again_when_it_is_used():
    used = observe(edge_in(S), flow(reason=Reason.ALLOW_RULE, rule_id="learned/x"), START + 1500)
    assert (used.state, used.last_seen, used.state_since) == (A, START + 1500, START + 1500)
    assert step(used, GATE, START + 1501) is used


def test_a_retired_edge_starts_from_nothing():
    old = edge_in(R, approved_by="kim", approved_at=START, identities=frozenset({FRONT_ID}), inbound=Tally(900, 0, 900))
    new = observe(old, flow(), START + 5000)
    assert new == observe(None, flow(), START + 5000)
    assert step(new, GATE, START + 5001).state is C


@pytest.mark.parametrize("state", [C, P])
def test_an_unused_candidate_is_retired_too(state):
    assert step(edge_in(state, inbound=Tally(1, 0, 1)), GATE, START + 1500).state is state
    assert step(edge_in(state), GATE, START + 2000).state is R


def test_the_clock_of_a_sidecar_does_not_count():
    edge = observe(None, flow(first_seen=1.0, last_seen=9e9), START)
    assert (edge.first_seen, edge.last_seen) == (START, START)


# What teaches


@pytest.mark.parametrize(
    "changes",
    [
        {"verdict": Verdict.DENY, "reason": Reason.NO_RULE},
        {"verdict": Verdict.DENY, "reason": Reason.LEARNING},
        {"reason": Reason.ALLOW_OVERRIDE, "rule_id": "override/1"},
        {"reason": Reason.ALLOW_RULE, "rule_id": "static/1"},
        {"reason": Reason.BASELINE, "rule_id": "baseline/probes"},
        {"reason": Reason.LEARNING, "rule_id": "static/deny"},  # a static deny spoke against it
        {"reason": Reason.AUDIT, "rule_id": "static/deny"},
        {"reason": Reason.UNRESOLVED},
        {"reason": "something new"},
    ],
)
@pytest.mark.parametrize("state", [None, C, P, R])
def test_what_never_teaches(changes, state):
    before = edge_in(state) if state else None
    assert observe(before, flow(**changes), START + 1) is before


@pytest.mark.parametrize("reason", [Reason.ALLOW_RULE, Reason.ALLOW_OVERRIDE, Reason.LEARNING, Reason.AUDIT])
@pytest.mark.parametrize("state", [A, S])
def test_an_edge_that_holds_is_used_whatever_else_allowed_it(reason, state):
    used = observe(edge_in(state), flow(reason=reason, rule_id="x"), START + 50)
    assert used.last_seen == START + 50
    assert used.state is A


@pytest.mark.parametrize("state", [A, S])
def test_a_denied_flow_keeps_nothing_alive(state):
    edge = edge_in(state)
    assert observe(edge, flow(verdict=Verdict.DENY, reason=Reason.DENY_OVERRIDE), START + 50) is edge


def test_audit_mode_teaches_as_learn_mode_does():
    assert observe(None, flow(reason=Reason.AUDIT), START).connections == 3


def test_both_ends_reports_of_the_same_connections_are_not_added():
    edge = observe(observe(None, flow(), START), sent(), START)
    assert (edge.connections, edge.verified, edge.failed) == (3, 3, 0)
    assert edge.reporters == {"cart-1", "front-1"}
    assert edge.replicas == 1


def test_a_flow_of_another_edge_is_refused():
    with pytest.raises(InvalidValue, match="pass the edge"):
        observe(edge_in(A), flow(port=9), START)


def test_memory_is_bounded():
    edge = None
    for number in range(MAX_REPORTERS + 50):
        edge = observe(edge, sent(reporter=f"front-{number}"), START)
        identity = f"spiffe://td-{number}/ns/shop/sa/default/wl/front"
        edge = observe(edge, flow(reporter=f"cart-{number}", source_identity=identity), START)
    assert len(edge.source_reporters) == len(edge.destination_reporters) == MAX_REPORTERS
    assert len(edge.identities) == MAX_IDENTITIES
    assert "used by 64+" in " ".join(edge.evidence())


# Approval


@pytest.mark.parametrize("state", [C, P, S])
def test_a_person_can_approve_what_is_not_active_yet(state):
    edge = approve(edge_in(state), "kim", START + 5)
    assert (edge.state, edge.state_since, edge.approved_by) == (A, START + 5, "kim")
    assert rule_of(edge).owner == "kim"
    assert "approved by kim" in " ".join(edge.evidence())


def test_approving_an_active_edge_changes_nothing():
    edge = edge_in(A, approved_by="kim", approved_at=START)
    assert approve(edge, "lee", START + 5) is edge


def test_a_retired_edge_can_not_be_approved():
    with pytest.raises(InvalidValue, match="override"):
        approve(edge_in(R), "kim", START)


def test_nobody_can_not_approve():
    with pytest.raises(InvalidValue, match="owner"):
        approve(edge_in(P), "", START)
