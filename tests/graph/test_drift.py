"""Drift: what was observed and no rule allows, what is allowed and nothing used."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from graph.drift import Drift, Observation, find_drift
from graph.flow import EdgeKey
from graph.model import (
    Direction,
    InboundTls,
    Mode,
    Origin,
    PortRange,
    Protocol,
    Rule,
    Selector,
    Snapshot,
    Verdict,
    WorkloadRef,
)
from graph.policy import Reason, admit, decide
from graph.views import EdgeVerdict, EdgeView, OperationView
from tests.graph.strategies import PORTS, refs, snapshots

FRONT, CART, DB = (WorkloadRef("shop", name) for name in ("front", "cart", "db"))
OUTSIDE = WorkloadRef.external("192.0.2.7")
NOW = 100.0


def rule(name: str, source: WorkloadRef, destination: WorkloadRef, port: int = 8080) -> Rule:
    return Rule(name, Selector.of(source), Selector.of(destination), (PortRange.single(port),))


def snapshot(ref: WorkloadRef, *held: Rule, mode: Mode = Mode.LEARN) -> Snapshot:
    return Snapshot(ref, "hedgerow.local", 1, mode, mode, rules=held)


FRONT_CART = rule("learned/front-cart", FRONT, CART)
CART_DB = rule("learned/cart-db", CART, DB, 5432)
MESH = {
    FRONT: snapshot(FRONT, FRONT_CART),
    CART: snapshot(CART, FRONT_CART, CART_DB),
    DB: snapshot(DB, CART_DB),
}


def seen(source: WorkloadRef, destination: WorkloadRef, port: int = 8080, **more: object) -> Observation:
    return Observation(EdgeKey(source, destination, port), **more)


def test_what_is_observed_and_allowed_is_no_drift() -> None:
    assert find_drift(MESH, [seen(FRONT, CART), seen(CART, DB, 5432)], NOW) == Drift()


def test_an_edge_without_a_rule_is_unexpected_also_where_the_mode_lets_it_pass() -> None:
    drift = find_drift(MESH, [seen(FRONT, CART), seen(FRONT, DB, 5432), seen(CART, DB, 5432)], NOW)
    (unexpected,) = drift.unexpected
    assert unexpected.key == EdgeKey(FRONT, DB, 5432)
    assert unexpected.inbound is not None
    assert unexpected.outbound is not None
    assert unexpected.inbound.verdict is Verdict.ALLOW
    assert unexpected.inbound.pending is Verdict.DENY
    assert drift.unused == ()


def test_one_end_that_would_refuse_is_enough() -> None:
    mesh = {**MESH, FRONT: snapshot(FRONT)}
    (unexpected,) = find_drift(mesh, [seen(FRONT, CART), seen(CART, DB, 5432)], NOW).unexpected
    assert unexpected.inbound is not None
    assert unexpected.inbound.pending is Verdict.ALLOW
    assert unexpected.outbound is not None
    assert unexpected.outbound.pending is Verdict.DENY


def test_an_end_without_a_policy_has_no_decision() -> None:
    (unexpected,) = find_drift(MESH, [seen(OUTSIDE, CART)], NOW).unexpected
    assert unexpected.outbound is None
    assert find_drift(MESH, [seen(OUTSIDE, WorkloadRef("ops", "plain"))], NOW).unexpected == ()


def test_rules_that_nothing_used_are_reported_once() -> None:
    drift = find_drift(MESH, [seen(CART, DB, 5432)], NOW)
    assert drift.unused == (FRONT_CART,), "though two workloads hold it"
    assert find_drift(MESH, [], NOW).unused == (CART_DB, FRONT_CART)
    assert find_drift(MESH, [seen(FRONT, CART, 8081), seen(CART, DB, 5432)], NOW).unused == (FRONT_CART,)


def test_a_rule_beside_a_wider_one_is_used_too() -> None:
    wide = Rule("static/all", Selector("shop"), Selector("shop"), origin=Origin.STATIC)
    mesh = {CART: snapshot(CART, wide, FRONT_CART)}
    assert find_drift(mesh, [seen(FRONT, CART)], NOW).unused == ()


def test_denies_baseline_and_expired_rules_are_never_unused() -> None:
    rules = (
        replace(FRONT_CART, id="override/deny", origin=Origin.OVERRIDE, effect=Verdict.DENY),
        replace(FRONT_CART, id="baseline/dns", origin=Origin.BASELINE),
        replace(FRONT_CART, id="override/old", origin=Origin.OVERRIDE, expires_at=NOW),
    )
    assert find_drift({CART: snapshot(CART, *rules)}, [], NOW).unused == ()


def test_quarantine_makes_edges_unexpected_and_no_rule_unused() -> None:
    mesh = {CART: snapshot(CART, FRONT_CART, mode=Mode.QUARANTINE)}
    drift = find_drift(mesh, [seen(FRONT, CART)], NOW)
    (unexpected,) = drift.unexpected
    assert unexpected.inbound is not None
    assert unexpected.inbound.reason is Reason.QUARANTINE
    assert drift.unused == ()


NARROW = replace(FRONT_CART, operations=("GET /cart", "HEAD /cart"))


def test_operations_that_the_destination_would_refuse_are_unexpected() -> None:
    mesh = {FRONT: snapshot(FRONT, NARROW), CART: snapshot(CART, NARROW)}
    asked = seen(FRONT, CART, operations=("GET /cart", "POST /cart", "other"))
    (unexpected,) = find_drift(mesh, [asked], NOW).unexpected
    assert unexpected.operations == ("POST /cart", "other")
    assert unexpected.inbound is not None
    assert unexpected.inbound.pending is Verdict.ALLOW, "the connection itself may be opened"
    assert find_drift(mesh, [replace(asked, operations=("GET /cart",))], NOW) == Drift()
    assert find_drift({FRONT: mesh[FRONT]}, [asked], NOW) == Drift(), "the source does not judge operations"


def test_a_rule_about_operations_is_used_by_one_of_them_and_in_doubt() -> None:
    mesh = {CART: snapshot(CART, NARROW)}
    assert find_drift(mesh, [seen(FRONT, CART, operations=("HEAD /cart",))], NOW).unused == ()
    assert find_drift(mesh, [seen(FRONT, CART, operations=("POST /cart",))], NOW).unused == (NARROW,)
    drift = find_drift(mesh, [seen(FRONT, CART)], NOW)
    assert drift.unused == ()
    (unexpected,) = drift.unexpected
    assert unexpected.operations == ("",), "what is not known to be one of them would be refused"


def test_a_host_is_judged_by_its_name_and_where_given_its_address() -> None:
    host = WorkloadRef.external_host("api.example.com")
    named = rule("override/1", CART, host, 443)
    tied = replace(named, id="override/2", destination=Selector(host="api.example.com", cidr="192.0.2.0/24"))
    other = WorkloadRef.external_host("www.example.com")
    assert find_drift({CART: snapshot(CART, named)}, [seen(CART, host, 443)], NOW) == Drift()
    assert len(find_drift({CART: snapshot(CART, named)}, [seen(CART, other, 443)], NOW).unexpected) == 1
    assert len(find_drift({CART: snapshot(CART, tied)}, [seen(CART, host, 443)], NOW).unexpected) == 1
    inside = seen(CART, host, 443, destination_address="192.0.2.9")
    assert find_drift({CART: snapshot(CART, tied)}, [inside], NOW) == Drift()


def test_what_is_asked_of_a_host_is_judged_where_it_is_asked() -> None:
    host = WorkloadRef.external_host("api.example.com")
    mesh = {CART: snapshot(CART, replace(rule("override/1", CART, host, 443), operations=("GET /a",)))}
    assert find_drift(mesh, [seen(CART, host, 443, operations=("GET /a",))], NOW) == Drift()
    (unexpected,) = find_drift(mesh, [seen(CART, host, 443, operations=("GET /a", "PUT /a"))], NOW).unexpected
    assert unexpected.operations == ("PUT /a",)
    assert not unexpected.refused


def test_unproved_sources_use_no_rule_about_identities() -> None:
    drift = find_drift({CART: snapshot(CART, FRONT_CART)}, [seen(FRONT, CART, source_verified=False)], NOW)
    assert len(drift.unexpected) == 1
    assert drift.unused == (FRONT_CART,)
    strict = replace(snapshot(CART, Rule("static/x", Selector(), Selector())), inbound_tls=InboundTls.STRICT)
    assert len(find_drift({CART: strict}, [seen(FRONT, CART, source_verified=False)], NOW).unexpected) == 1


def test_accounts_and_addresses_are_part_of_an_observation() -> None:
    by_account = Rule("static/a", Selector("shop", service_account="robot"), Selector.of(CART), origin=Origin.STATIC)
    by_address = Rule("static/b", Selector(cidr="10.0.0.0/8"), Selector.of(CART), origin=Origin.STATIC)
    mesh = {CART: snapshot(CART, by_account, by_address)}
    full = seen(FRONT, CART, source_account="robot", source_address="10.1.2.3")
    assert find_drift(mesh, [full], NOW) == Drift()
    assert find_drift(mesh, [replace(full, source_address="")], NOW).unused == (by_address,)
    assert find_drift(mesh, [seen(FRONT, CART)], NOW).unused == (by_account, by_address)


def test_observations_of_an_edge() -> None:
    def of(**counts: object) -> list[bool]:
        edge = EdgeView(EdgeKey(FRONT, CART, 8080), EdgeVerdict.ALLOW, **counts)
        return [each.source_verified for each in Observation.of(edge)]

    assert of(connections=5, verified=5) == [True]
    assert of(connections=5, verified=0) == [False]
    assert of(connections=5, verified=3) == [True, False]
    assert of(connections=5, verified=3, failed=2) == [True]
    assert of(denied=4) == [False]
    assert of(denied=4, source_identities=("spiffe://td/front",)) == [True]
    edge = EdgeView(EdgeKey(FRONT, CART, 8080), EdgeVerdict.ALLOW, connections=1, verified=1)
    (known,) = Observation.of(edge, {FRONT: "robot", CART: "default"})
    assert (known.source_account, known.destination_account) == ("robot", "default")
    asked = (OperationView("GET /", requests=1), OperationView("PUT /", denied=3))
    (known,) = Observation.of(replace(edge, operations=asked))
    assert known.operations == ("GET /",), "what was refused did not happen"


@given(
    st.lists(snapshots, max_size=4),
    st.lists(
        st.builds(
            Observation,
            st.builds(EdgeKey, refs, refs, PORTS, st.just(Protocol.TCP)),
            st.booleans(),
            operations=st.sampled_from([(), ("GET /cart",), ("GET /cart", "other")]),
        ),
        max_size=6,
    ),
)
def test_drift_says_what_decide_says(held: list[Snapshot], observations: list[Observation]) -> None:
    mesh = {each.workload: each for each in held}
    drift = find_drift(mesh, observations, NOW)
    expected = set()
    for each in observations:
        for direction, ref in ((Direction.INBOUND, each.key.destination), (Direction.OUTBOUND, each.key.source)):
            if ref not in mesh:
                continue
            asked = [replace(each.connection(direction), operation=operation) for operation in each.operations or ("",)]
            opened, by_operation = admit(mesh[ref], each.connection(direction), NOW)
            judged = [decide(mesh[ref], one, NOW).pending for one in asked]
            # who asks somebody outside judges that himself; among ourselves the one who is asked does
            judges = direction is Direction.INBOUND or each.key.destination.is_external
            if opened.pending is Verdict.DENY or (by_operation and judges and Verdict.DENY in judged):
                expected.add(each.key)
    assert {each.key for each in drift.unexpected} == expected
    deciding = set()
    for each in observations:
        for direction, ref in ((Direction.INBOUND, each.key.destination), (Direction.OUTBOUND, each.key.source)):
            if ref in mesh:
                decision = decide(mesh[ref], each.connection(direction), NOW)
                if decision.pending is Verdict.ALLOW:
                    deciding.add(decision.rule_id)
    assert not deciding & {each.id for each in drift.unused}, "a rule that decided was used"
