"""``decide()``: the properties that hold whatever the rules are."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import assume, given
from hypothesis import strategies as st

from graph.model import Connection, Direction, Origin, Peer, Rule, Selector, Snapshot
from graph.policy import Decision, Reason, admit, decide, matches
from tests.graph.strategies import connections, rules, snapshots
from tests.graph.verdicts import ALLOW, AUDIT, DENY, ENFORCE, LEARN, QUARANTINE

situations = snapshots.flatmap(lambda snapshot: st.tuples(st.just(snapshot), connections(snapshot.workload)))
TIMES = st.sampled_from([0.0, 100.0, 200.0])

#: Every operation that the strategies' rules name, one that none names, and the one that is not known.
EVERY_OPERATION = ("", "GET /cart", "POST /cart", "PATCH /elsewhere")


@given(situations, TIMES)
def test_a_connection_is_admitted_just_when_some_operation_of_it_is_allowed(
    situation: tuple[Snapshot, Connection], now: float
) -> None:
    snapshot, connection = situation
    unasked = replace(connection, operation="")
    decisions = [decide(snapshot, replace(connection, operation=each), now) for each in EVERY_OPERATION]
    opened, by_operation = admit(snapshot, unasked, now)
    assert opened.allowed is any(each.allowed for each in decisions)
    assert (opened.pending is ALLOW) is any(each.pending is ALLOW for each in decisions)
    assert by_operation or set(decisions) == {opened}, "only then need nobody look at operations"


@given(situations, TIMES)
def test_without_rules_about_operations_admitting_is_deciding(
    situation: tuple[Snapshot, Connection], now: float
) -> None:
    snapshot, connection = situation
    plain = replace(snapshot, rules=tuple(replace(each, operations=()) for each in snapshot.rules))
    unasked = replace(connection, operation="")
    assert admit(plain, unasked, now) == (decide(plain, unasked, now), False)


@given(situations, rules(effect=ALLOW), TIMES)
def test_adding_an_allow_never_turns_allow_into_deny(
    situation: tuple[Snapshot, Connection], added: Rule, now: float
) -> None:
    snapshot, connection = situation
    before = decide(snapshot, connection, now)
    after = decide(replace(snapshot, rules=(*snapshot.rules, added)), connection, now)
    assert after.allowed or not before.allowed
    assert after.pending is ALLOW or before.pending is DENY


@given(situations, rules(effect=DENY), TIMES)
def test_adding_a_deny_never_turns_deny_into_allow(
    situation: tuple[Snapshot, Connection], added: Rule, now: float
) -> None:
    snapshot, connection = situation
    before = decide(snapshot, connection, now)
    after = decide(replace(snapshot, rules=(*snapshot.rules, added)), connection, now)
    assert before.allowed or not after.allowed
    assert before.pending is ALLOW or after.pending is DENY


@given(situations, TIMES)
def test_a_deny_override_wins_over_everything_but_the_baseline(
    situation: tuple[Snapshot, Connection], now: float
) -> None:
    snapshot, connection = situation
    deny = Rule(
        "override/deny", Selector(), Selector(), protocol=connection.protocol, effect=DENY, origin=Origin.OVERRIDE
    )
    decision = decide(replace(snapshot, rules=(*snapshot.rules, deny)), connection, now)
    assert decision.allowed is (decision.reason is Reason.BASELINE)
    assert decision.reason is not Reason.ALLOW_OVERRIDE


@given(situations, TIMES)
def test_an_unproved_source_gets_nothing_from_identities(situation: tuple[Snapshot, Connection], now: float) -> None:
    snapshot, connection = situation
    unproved = replace(connection, direction=Direction.INBOUND, source=replace(connection.source, verified=False))
    unproved = replace(unproved, destination=Peer(snapshot.workload, snapshot.workload.namespace))
    without = replace(snapshot, rules=tuple(each for each in snapshot.rules if not each.source.by_identity))
    assert decide(snapshot, unproved, now) == decide(without, unproved, now)
    for each in snapshot.rules:
        assert not (each.source.by_identity and matches(each, unproved, now))


@given(situations, TIMES)
def test_in_enforce_what_would_happen_happens(situation: tuple[Snapshot, Connection], now: float) -> None:
    snapshot, connection = situation
    enforced = replace(snapshot, inbound_mode=ENFORCE, outbound_mode=ENFORCE)
    closed = decide(enforced, connection, now)
    assert closed.verdict is closed.pending
    for mode in (LEARN, AUDIT):
        relaxed = decide(replace(snapshot, inbound_mode=mode, outbound_mode=mode), connection, now)
        assert relaxed.pending is closed.pending, "pending does not depend on the mode"
        assert relaxed.rule == closed.rule
        assert relaxed.allowed or not closed.allowed, "a mode only ever relaxes"


@given(situations, TIMES)
def test_quarantine_passes_the_essential_alone(situation: tuple[Snapshot, Connection], now: float) -> None:
    snapshot, connection = situation
    decision = decide(replace(snapshot, inbound_mode=QUARANTINE, outbound_mode=QUARANTINE), connection, now)
    assert decision.verdict is decision.pending
    assert decision.allowed is (decision.rule is not None and decision.rule.essential)


@given(situations, TIMES)
def test_expired_rules_are_as_good_as_absent(situation: tuple[Snapshot, Connection], now: float) -> None:
    snapshot, connection = situation
    living = replace(snapshot, rules=tuple(each for each in snapshot.rules if not each.expired(now)))
    assert decide(snapshot, connection, now) == decide(living, connection, now)


@given(situations, TIMES, st.randoms(use_true_random=False))
def test_the_order_of_rules_changes_no_verdict(
    situation: tuple[Snapshot, Connection], now: float, random: object
) -> None:
    snapshot, connection = situation
    shuffled = list(snapshot.rules)
    random.shuffle(shuffled)
    first, second = decide(snapshot, connection, now), decide(replace(snapshot, rules=tuple(shuffled)), connection, now)
    assert (first.verdict, first.pending, first.reason) == (second.verdict, second.pending, second.reason)


@given(snapshots, connections(), TIMES)
def test_only_the_own_workload_is_ever_allowed(snapshot: Snapshot, connection: Connection, now: float) -> None:
    mine = connection.destination if connection.direction is Direction.INBOUND else connection.source
    assume(mine.workload != snapshot.workload)
    assert decide(snapshot, connection, now) == Decision(DENY, DENY, Reason.NOT_THIS_WORKLOAD)
