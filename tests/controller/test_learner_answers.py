"""What a learner says of an edge: its rule, its evidence, what is missing, and what is stored of it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.learner import EdgeState, Gate, LearnedEdge, Tally, observe, readiness, rule_of, waiting_for
from graph.errors import InvalidValue
from graph.flow import EdgeKey
from graph.model import Origin, PortRange, Protocol
from tests.controller.edges import CART, FRONT, FRONT_ID, GATE, OUTSIDE, START, A, C, P, R, S, edge_in, flow, sent

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
