"""``decide()``: the precedence as a table, and what admits a connection before its operations are known."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
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
from graph.policy import Decision, Reason, admit, decide
from tests.graph.strategies import connections, snapshots
from tests.graph.verdicts import ALLOW, AUDIT, DENY, ENFORCE, LEARN, QUARANTINE

CART, FRONT = WorkloadRef("shop", "cart"), WorkloadRef("shop", "front")
NOW = 100.0


def peer(ref: WorkloadRef, *, verified: bool = True, address: str = "10.0.0.1") -> Peer:
    return Peer(ref, ref.namespace, "default", address, verified)


def rule(origin: Origin, effect: Verdict = ALLOW, **changes: object) -> Rule:
    made = Rule(f"{origin}/{effect}", Selector.of(FRONT), Selector.of(CART), origin=origin, effect=effect)
    return replace(made, **changes)


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
