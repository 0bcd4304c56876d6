"""``decide()``: the precedence as a table, and the properties that hold whatever the rules are."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from graph.model import (
    Connection,
    Direction,
    InboundTls,
    Mode,
    Origin,
    Peer,
    PortRange,
    Protocol,
    Rule,
    Selector,
    Snapshot,
    Verdict,
    WorkloadRef,
)
from graph.policy import Decision, Reason, admit, decide, matches
from tests.graph.strategies import connections, rules, snapshots

CART, FRONT = WorkloadRef("shop", "cart"), WorkloadRef("shop", "front")
NOW = 100.0
ALLOW, DENY = Verdict.ALLOW, Verdict.DENY
LEARN, AUDIT, ENFORCE, QUARANTINE = Mode.LEARN, Mode.AUDIT, Mode.ENFORCE, Mode.QUARANTINE


def peer(ref: WorkloadRef, *, verified: bool = True, address: str = "10.0.0.1") -> Peer:
    return Peer(ref, ref.namespace, "default", address, verified)


def rule(origin: Origin, effect: Verdict = ALLOW, **changes: object) -> Rule:
    made = Rule(f"{origin}/{effect}", Selector.of(FRONT), Selector.of(CART), origin=origin, effect=effect)
    return replace(made, **changes)  # type: ignore[arg-type]  # a test's shorthand


ESSENTIAL = rule(Origin.BASELINE, id="baseline/essential", essential=True)
BASELINE = rule(Origin.BASELINE)
DENY_OVERRIDE = rule(Origin.OVERRIDE, DENY)
ALLOW_OVERRIDE = rule(Origin.OVERRIDE)
STATIC_DENY = rule(Origin.STATIC, DENY)
STATIC_ALLOW = rule(Origin.STATIC)
LEARNED = rule(Origin.LEARNED)


def inbound(*held: Rule, mode: Mode = ENFORCE, tls: InboundTls = InboundTls.PERMISSIVE) -> Snapshot:
    return Snapshot(CART, "hedgerow.local", 1, mode, ENFORCE, tls, held)


def to_cart(*, verified: bool = True, port: int = 8080, operation: str = "") -> Connection:
    return Connection(Direction.INBOUND, peer(FRONT, verified=verified), peer(CART), port, Protocol.TCP, operation)


# The precedence of rule 2 in graph.policy, strongest first. Each row is what the rules say in the modes that ask them
# (learn, audit, enforce), and the reason; "mode" stands for what _by_mode makes of a pending denial.
LADDER: list[tuple[Rule, Verdict, Reason, bool]] = [
    # rule, verdict, reason, and whether it holds in every mode
    (BASELINE, ALLOW, Reason.BASELINE, True),
    (DENY_OVERRIDE, DENY, Reason.DENY_OVERRIDE, True),
    (ALLOW_OVERRIDE, ALLOW, Reason.ALLOW_OVERRIDE, True),
    (STATIC_DENY, DENY, Reason.STATIC_DENY, False),
    (STATIC_ALLOW, ALLOW, Reason.ALLOW_RULE, True),
]
MODE_REASON = {LEARN: Reason.LEARNING, AUDIT: Reason.AUDIT}


@pytest.mark.parametrize("mode", [LEARN, AUDIT, ENFORCE])
@pytest.mark.parametrize("stronger", range(len(LADDER)))
@pytest.mark.parametrize("reverse", [False, True], ids=["strong first", "strong last"])
def test_a_stronger_rule_wins_over_all_weaker_ones_in_any_order(mode: Mode, stronger: int, reverse: bool) -> None:
    held = [row[0] for row in LADDER[stronger:]]
    winner, verdict, reason, every_mode = LADDER[stronger]
    decision = decide(inbound(*(reversed(held) if reverse else held), mode=mode), to_cart(), NOW)
    if every_mode or mode is ENFORCE:
        assert decision == Decision(verdict, verdict, reason, winner)
    else:
        assert decision == Decision(ALLOW, verdict, MODE_REASON[mode], winner)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (LEARN, Decision(ALLOW, DENY, Reason.LEARNING)),
        (AUDIT, Decision(ALLOW, DENY, Reason.AUDIT)),
        (ENFORCE, Decision(DENY, DENY, Reason.NO_RULE)),
        (QUARANTINE, Decision(DENY, DENY, Reason.QUARANTINE)),
    ],
)
def test_without_a_rule_the_mode_decides(mode: Mode, expected: Decision) -> None:
    assert decide(inbound(mode=mode), to_cart(), NOW) == expected


@pytest.mark.parametrize("held", [row[0] for row in LADDER] + [LEARNED], ids=lambda each: each.id)
def test_quarantine_cuts_off_everything_but_the_essential(held: Rule) -> None:
    assert decide(inbound(held, mode=QUARANTINE), to_cart(), NOW) == Decision(DENY, DENY, Reason.QUARANTINE)
    both = inbound(held, ESSENTIAL, mode=QUARANTINE)
    assert decide(both, to_cart(), NOW) == Decision(ALLOW, ALLOW, Reason.BASELINE, ESSENTIAL)


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("tls", list(InboundTls))
def test_the_essential_holds_always(mode: Mode, tls: InboundTls) -> None:
    open_to_all = replace(ESSENTIAL, source=Selector())
    held = inbound(DENY_OVERRIDE, open_to_all, mode=mode, tls=tls)
    for verified in (True, False):
        assert decide(held, to_cart(verified=verified), NOW).rule == open_to_all


@pytest.mark.parametrize("mode", [LEARN, AUDIT, ENFORCE])
def test_strict_refuses_plaintext_whatever_is_allowed(mode: Mode) -> None:
    anybody = [replace(each, source=Selector()) for each in (ALLOW_OVERRIDE, STATIC_ALLOW)]
    held = inbound(*anybody, mode=mode, tls=InboundTls.STRICT)
    assert decide(held, to_cart(verified=False), NOW) == Decision(DENY, DENY, Reason.PLAINTEXT_REFUSED)
    assert decide(held, to_cart(verified=True), NOW).allowed
    probes = replace(BASELINE, source=Selector(cidr="10.0.0.0/8"))
    assert decide(inbound(probes, mode=mode, tls=InboundTls.STRICT), to_cart(verified=False), NOW).rule == probes


def test_strict_is_about_inbound_connections_only() -> None:
    snapshot = replace(inbound(tls=InboundTls.STRICT), workload=FRONT, rules=(LEARNED,))
    outward = Connection(Direction.OUTBOUND, peer(FRONT, verified=False), peer(CART), 8080)
    assert decide(snapshot, outward, NOW) == Decision(ALLOW, ALLOW, Reason.ALLOW_RULE, LEARNED)


def test_each_direction_has_its_own_mode() -> None:
    snapshot = Snapshot(CART, "hedgerow.local", 1, inbound_mode=ENFORCE, outbound_mode=LEARN)
    outward = Connection(Direction.OUTBOUND, peer(CART), peer(FRONT), 8080)
    assert decide(snapshot, to_cart(), NOW).verdict is DENY
    assert decide(snapshot, outward, NOW) == Decision(ALLOW, DENY, Reason.LEARNING)


@pytest.mark.parametrize("origin", [Origin.LEARNED, Origin.STATIC, Origin.OVERRIDE, Origin.BASELINE])
@pytest.mark.parametrize(
    "selector",
    [Selector("shop"), Selector("shop", "front"), Selector("shop", service_account="default")],
    ids=str,
)
def test_an_unproved_source_matches_no_rule_about_identities(origin: Origin, selector: Selector) -> None:
    held = inbound(rule(origin, source=selector))
    assert decide(held, to_cart(verified=True), NOW).allowed
    assert decide(held, to_cart(verified=False), NOW) == Decision(DENY, DENY, Reason.NO_RULE)


def test_an_unproved_source_matches_rules_about_addresses() -> None:
    held = inbound(rule(Origin.LEARNED, source=Selector(cidr="10.0.0.0/8")))
    assert decide(held, to_cart(verified=False), NOW).allowed
    both = inbound(rule(Origin.LEARNED, source=Selector("shop", cidr="10.0.0.0/8")))
    assert not decide(both, to_cart(verified=False), NOW).allowed


OUTSIDE = Selector(cidr="10.0.0.0/8", outside=True)


def test_what_is_opened_outside_is_opened_to_an_address_and_to_nobody_who_is_known() -> None:
    held = inbound(rule(Origin.OVERRIDE, source=OUTSIDE))
    unknown = replace(to_cart(), source=Peer(address="10.0.0.1"))
    assert decide(held, unknown, NOW).reason is Reason.ALLOW_OVERRIDE
    for known in (peer(FRONT), Peer(None, "shop", "default", "10.0.0.1", verified=True), peer(FRONT, verified=False)):
        assert decide(held, replace(to_cart(), source=known), NOW) == Decision(DENY, DENY, Reason.NO_RULE)
        assert admit(held, replace(to_cart(), source=known), NOW)[0].reason is Reason.NO_RULE
    outward = replace(inbound(), workload=FRONT, rules=(rule(Origin.OVERRIDE, destination=OUTSIDE),))
    for called, reason in (
        (Peer(address="10.0.0.1"), Reason.ALLOW_OVERRIDE),
        (peer(CART, verified=False), Reason.NO_RULE),
    ):
        asked = Connection(Direction.OUTBOUND, peer(FRONT), called, 443)
        assert decide(outward, asked, NOW).reason is reason


def test_what_is_denied_outside_is_denied_to_everybody_at_its_addresses() -> None:
    held = inbound(rule(Origin.OVERRIDE), rule(Origin.OVERRIDE, DENY, source=OUTSIDE))
    assert decide(held, to_cart(), NOW).reason is Reason.DENY_OVERRIDE
    elsewhere = replace(to_cart(), source=peer(FRONT, address="192.0.2.1"))
    assert decide(held, elsewhere, NOW).reason is Reason.ALLOW_OVERRIDE


@given(st.data(), snapshots)
def test_no_allow_outside_matters_to_a_peer_that_is_known(data: st.DataObject, snapshot: Snapshot) -> None:
    connection = data.draw(connections(snapshot.workload))
    inward = connection.direction is Direction.INBOUND
    if not (connection.source if inward else connection.destination).is_known:
        return
    others = tuple(
        each
        for each in snapshot.rules
        if each.effect is DENY or not (each.source if inward else each.destination).outside
    )
    assert decide(snapshot, connection, NOW) == decide(replace(snapshot, rules=others), connection, NOW)


@pytest.mark.parametrize(
    ("expires_at", "now", "holds"), [(0.0, 1e9, True), (100.0, 99.9, True), (100.0, 100.0, False), (100.0, 1e9, False)]
)
def test_rules_hold_until_they_expire(expires_at: float, now: float, holds: bool) -> None:
    for effect in Verdict:
        held = rule(Origin.OVERRIDE, effect, expires_at=expires_at)
        fallback = Decision(DENY, DENY, Reason.NO_RULE)
        decision = decide(inbound(held), to_cart(), now)
        assert (decision.rule == held) is holds
        assert holds or decision == fallback


@pytest.mark.parametrize("ports", [(), (PortRange(8000, 8080),), (PortRange(1, 2), PortRange(8080, 9000))])
def test_ports_that_match(ports: tuple[PortRange, ...]) -> None:
    assert decide(inbound(rule(Origin.LEARNED, ports=ports)), to_cart(), NOW).allowed


def test_ports_and_protocols_that_do_not_match() -> None:
    for held in (
        rule(Origin.LEARNED, ports=(PortRange(8081, 9000), PortRange(1, 8079))),
        rule(Origin.LEARNED, protocol=Protocol.UDP),
    ):
        assert decide(inbound(held), to_cart(), NOW).reason is Reason.NO_RULE


@pytest.mark.parametrize(
    ("operation", "allowed_by_allow", "denied_by_deny"),
    [("GET /cart", True, True), ("POST /cart", False, False), ("", False, True)],
)
def test_an_unknown_operation_is_doubt(operation: str, allowed_by_allow: bool, denied_by_deny: bool) -> None:
    reading = ("GET /cart",)
    connection = to_cart(operation=operation)
    allow = decide(inbound(rule(Origin.LEARNED, operations=reading)), connection, NOW)
    assert allow.allowed is allowed_by_allow
    deny = decide(inbound(LEARNED, rule(Origin.OVERRIDE, DENY, operations=reading)), connection, NOW)
    assert deny.allowed is not denied_by_deny


@pytest.mark.parametrize("mode", list(Mode))
def test_the_policy_of_another_workload_allows_nothing(mode: Mode) -> None:
    wrong = replace(inbound(replace(ESSENTIAL, source=Selector()), LEARNED, mode=mode), workload=FRONT)
    assert decide(wrong, to_cart(), NOW) == Decision(DENY, DENY, Reason.NOT_THIS_WORKLOAD)
    nobody = Connection(Direction.INBOUND, peer(FRONT), Peer(address="10.0.0.9"), 8080)
    assert decide(wrong, nobody, NOW).reason is Reason.NOT_THIS_WORKLOAD


def test_a_decision_names_the_rule_that_made_it() -> None:
    decision = decide(inbound(LEARNED, mode=LEARN), to_cart(), NOW)
    assert decision.rule_id == LEARNED.id
    assert decide(inbound(mode=LEARN), to_cart(), NOW).rule_id == ""


# Opening a connection before its operations are known -----------------------------------------------------------------

READS = ("GET /cart", "GET /cart/{id}")


@pytest.mark.parametrize(
    ("held", "mode", "opens", "pending", "by_operation"),
    [
        ((), ENFORCE, False, DENY, False),
        ((LEARNED,), ENFORCE, True, ALLOW, False),
        ((rule(Origin.OVERRIDE, operations=READS),), ENFORCE, True, ALLOW, True),
        ((rule(Origin.OVERRIDE, operations=READS),), AUDIT, True, ALLOW, True),
        ((rule(Origin.OVERRIDE, operations=READS),), QUARANTINE, False, DENY, True),
        ((rule(Origin.OVERRIDE, DENY, operations=READS),), ENFORCE, False, DENY, True),
        ((rule(Origin.OVERRIDE, DENY, operations=READS),), LEARN, True, DENY, True),
        ((LEARNED, rule(Origin.OVERRIDE, DENY, operations=READS)), ENFORCE, True, ALLOW, True),
        ((rule(Origin.OVERRIDE, operations=READS), rule(Origin.OVERRIDE, DENY, id="x")), ENFORCE, False, DENY, True),
        ((rule(Origin.OVERRIDE, operations=READS, ports=(PortRange.single(9),)),), ENFORCE, False, DENY, False),
        ((rule(Origin.OVERRIDE, operations=READS, expires_at=NOW),), ENFORCE, False, DENY, False),
    ],
)
def test_a_connection_opens_when_something_may_be_asked_over_it(
    held: tuple[Rule, ...], mode: Mode, opens: bool, pending: Verdict, by_operation: bool
) -> None:
    decision, each_one = admit(inbound(*held, mode=mode), to_cart(), NOW)
    assert (decision.allowed, decision.pending, each_one) == (opens, pending, by_operation)


def test_what_opens_a_connection_for_one_operation_is_named() -> None:
    narrow = rule(Origin.OVERRIDE, operations=READS)
    decision, _ = admit(inbound(narrow), to_cart(), NOW)
    assert decision == Decision(ALLOW, ALLOW, Reason.ALLOW_OVERRIDE, narrow)
    assert not decide(inbound(narrow), to_cart(), NOW).allowed, "bytes that are no operation stay refused"
    assert not decide(inbound(narrow), to_cart(operation="POST /cart"), NOW).allowed


# Whatever the rules are -----------------------------------------------------------------------------------------------

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
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # a random.Random
    first, second = decide(snapshot, connection, now), decide(replace(snapshot, rules=tuple(shuffled)), connection, now)
    assert (first.verdict, first.pending, first.reason) == (second.verdict, second.pending, second.reason)


@given(snapshots, connections(), TIMES)
def test_only_the_own_workload_is_ever_allowed(snapshot: Snapshot, connection: Connection, now: float) -> None:
    mine = connection.destination if connection.direction is Direction.INBOUND else connection.source
    assume(mine.workload != snapshot.workload)
    assert decide(snapshot, connection, now) == Decision(DENY, DENY, Reason.NOT_THIS_WORKLOAD)
