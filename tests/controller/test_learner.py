"""The life of an edge: every state against every event, what teaches and what never may, and the words about it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.learner import (
    EdgeEvent,
    EdgeState,
    Gate,
    LearnedEdge,
    Tally,
    after,
    approve,
    observe,
    readiness,
    rule_of,
    step,
    waiting_for,
)
from controller.learner.edge import MAX_IDENTITIES, MAX_REPORTERS
from graph.errors import InvalidValue
from graph.flow import EdgeKey, Flow
from graph.model import Direction, Origin, PortRange, Protocol, Verdict, WorkloadRef
from graph.policy import Reason

FRONT, CART = WorkloadRef("shop", "front"), WorkloadRef("shop", "cart")
OUTSIDE = WorkloadRef.external("192.0.2.7")
FRONT_ID = "spiffe://hedgerow.local/ns/shop/sa/default/wl/front"
GATE = Gate(min_connections=3, min_seconds=10, quiet_seconds=20, stale_after=1000, retire_after=2000)
START = 1_000_000.0


def flow(**changes: object) -> Flow:
    """Three connections that cart took from front, whose identity was proved."""
    fields: dict[str, object] = {
        "source": FRONT,
        "destination": CART,
        "port": 8080,
        "protocol": Protocol.TCP,
        "direction": Direction.INBOUND,
        "reporter": "cart-1",
        "verified": True,
        "verdict": Verdict.ALLOW,
        "pending": Verdict.DENY,
        "reason": Reason.LEARNING,
        "source_identity": FRONT_ID,
        "connections": 3,
    }
    return Flow(**{**fields, **changes})


def sent(**changes: object) -> Flow:
    """The same as front's own sidecar tells it."""
    return flow(**{"direction": Direction.OUTBOUND, "reporter": "front-1", "source_identity": "", **changes})


def observed(edge: LearnedEdge | None, now: float) -> LearnedEdge | None:
    """Both ends report the same connections."""
    return observe(observe(edge, sent(), now), flow(), now)


def edge_in(state: EdgeState, **changes: object) -> LearnedEdge:
    fields: dict[str, object] = {
        "key": EdgeKey(FRONT, CART, 8080),
        "state": state,
        "first_seen": START,
        "last_seen": START,
        "state_since": START,
        "inbound": Tally(5, 0, 5),
    }
    return LearnedEdge(**{**fields, **changes})


C, P, A, S, R = EdgeState


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


# Rule, evidence, readiness


def test_the_rule_says_exactly_the_edge():
    rule = rule_of(edge_in(A))
    assert rule.id == "learned/shop/front->shop/cart:8080/TCP"
    assert (rule.ports, rule.protocol, rule.origin) == ((PortRange.single(8080),), Protocol.TCP, Origin.LEARNED)
    assert (str(rule.source), str(rule.destination)) == ("shop/front", "shop/cart")
    assert rule.evidence == edge_in(A).evidence()


def test_the_rule_of_an_outside_end_is_its_one_address():
    rule = rule_of(edge_in(A, key=EdgeKey(CART, OUTSIDE, 443)))
    assert rule.destination.cidr == "192.0.2.7/32"


def test_evidence_reads_as_sentences():
    edge = observe(None, flow(connections=4, failed=1), 0.0, source_replicas=3)
    edge = observe(edge, sent(connections=4, failed=1), 60.0, source_replicas=3)
    assert edge.evidence() == (
        "4 connections since 1970-01-01 00:00 UTC, 1 of them failed",
        "used by 1 of 3 replicas of shop/front",
        f"verified by mutual TLS as {FRONT_ID}",
    )


def test_evidence_names_the_missing_proof():
    assert "shop/front never proved its identity to shop/cart" in observe(None, flow(verified=False), START).evidence()


def test_a_workload_that_was_never_seen_is_not_ready():
    assert not readiness([], GATE, START).ready
    assert not readiness([edge_in(R)], GATE, START).ready


def test_a_workload_is_ready_when_all_its_edges_hold_and_it_is_quiet():
    edges = [edge_in(A), edge_in(S, key=EdgeKey(FRONT, CART, 9)), edge_in(R, key=EdgeKey(FRONT, CART, 10))]
    early = readiness(edges, GATE, START + 19)
    assert not early.ready
    assert early.waiting_for == ("1 s more without a new edge",)
    assert readiness(edges, GATE, START + 20).ready


@pytest.mark.parametrize(
    ("state", "said"), [(C, "needs its next check"), (P, "reported by its destination alone and needs approval")]
)
def test_an_edge_that_does_not_hold_yet_is_waited_for(state, said):
    found = readiness([edge_in(A), edge_in(state, key=EdgeKey(FRONT, CART, 9))], GATE, START + 500)
    assert not found.ready
    assert found.waiting_for == (f"shop/front->shop/cart:9/TCP {'was ' if state is P else ''}{said}",)


def test_a_young_candidate_says_what_it_lacks():
    edge = edge_in(C, inbound=Tally(1, 0, 1))
    assert waiting_for(edge, GATE, START + 4) == f"{edge.key} needs 2 more connections and 6 s more"


def test_knocking_on_a_closed_door_does_not_keep_the_fence_open():
    knocks = edge_in(C, key=EdgeKey(FRONT, CART, 9), inbound=Tally(90, 90, 0))
    assert readiness([edge_in(A), knocks], GATE, START + 500).ready
    assert not readiness([edge_in(A), replace(knocks, first_seen=START + 490)], GATE, START + 500).ready


# The store


_names = st.frozensets(st.text(max_size=8), max_size=4)
_tallies = st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)).map(
    lambda parts: Tally(sum(parts), parts[0], parts[1])
)
_times = st.floats(0, 1e11)


@given(
    st.builds(
        LearnedEdge,
        st.just(EdgeKey(FRONT, OUTSIDE, 53, Protocol.UDP)),
        st.sampled_from(EdgeState),
        _times,
        _times,
        _times,
        _tallies,
        _tallies,
        _names,
        _names,
        st.integers(0, 99),
        _names,
        st.text(max_size=5),
        _times,
    )
)
def test_what_is_stored_is_read_again(edge):
    assert LearnedEdge.from_dict(json.loads(json.dumps(edge.to_dict()))) == edge


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"surprise": 1}, "surprise"),
        ({"edge": "nonsense"}, "edge"),
        ({"edge": 5}, "edge"),
        ({"state": "enforced"}, "state"),
        ({"state": None}, "state"),
        ({"first_seen": "now"}, "first_seen"),
        ({"last_seen": -1}, "last_seen"),
        ({"state_since": float("nan")}, "state_since"),
        ({"state_since": True}, "state_since"),
        ({"inbound": [1, 2]}, "inbound"),
        ({"inbound": [1, 1, 1]}, "inbound"),
        ({"outbound": [1, -1, 0]}, "outbound"),
        ({"outbound": {}}, "outbound"),
        ({"source_reporters": "front-1"}, "source_reporters"),
        ({"identities": [1]}, "identities"),
        ({"identities": [str(n) for n in range(99)]}, "identities"),
        ({"source_replicas": 1.5}, "source_replicas"),
        ({"approved_by": None}, "approved_by"),
    ],
)
def test_a_stored_edge_that_is_not_ours_is_refused(change, field):
    with pytest.raises(InvalidValue) as caught:
        LearnedEdge.from_dict({**edge_in(A).to_dict(), **change})
    assert field in caught.value.field


@pytest.mark.parametrize("name", sorted(edge_in(A).to_dict()))
def test_a_stored_edge_with_a_field_missing_is_refused(name):
    data = edge_in(A).to_dict()
    del data[name]
    with pytest.raises(InvalidValue, match=rf"learned\.{name}: missing"):
        LearnedEdge.from_dict(data)


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_connections": 0},
        {"min_seconds": -1},
        {"quiet_seconds": float("inf")},
        {"stale_after": 0},
        {"stale_after": 10, "retire_after": 5},
    ],
)
def test_a_gate_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(InvalidValue, match=r"learning\."):
        Gate(**wrong)
