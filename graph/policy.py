"""The one place where a verdict is made.

The sidecar, the simulator, the "why" query and drift detection all call :func:`decide`. The governing rules:

1. What is not known to be allowed is denied, unless the workload's mode is ``learn`` or ``audit``.
2. Precedence: essential baseline > quarantine > baseline > strict TLS > deny override > allow override >
   static deny > learned and static allow > the mode's default.
3. A rule about identities never matches a source that did not prove its identity.
4. ``pending`` is the same decision as if the mode were ``enforce``: what would happen if the fence were closed.
5. How narrow a rule is decides nothing: of two overrides a deny of a whole network goes above an allow of one address
   in it, and a deny of ``*.example.com`` above an allow of ``api.example.com``.
6. What is allowed *outside* is never allowed to a workload: a rule that allows such a network does not speak of a peer
   that is known to be more than an address. A rule that denies one speaks of everybody at its addresses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from graph.model import Connection, Direction, InboundTls, Mode, Origin, Rule, Snapshot, Verdict

#: Stands for every operation that no rule names; none can be named so.
_NO_RULE_NAMES_IT = "\x00"


class Reason(StrEnum):
    """Why a decision came out as it did, the most specific statement that applies."""

    BASELINE = "baseline"
    QUARANTINE = "quarantine"
    PLAINTEXT_REFUSED = "plaintext-refused"
    DENY_OVERRIDE = "deny-override"
    ALLOW_OVERRIDE = "allow-override"
    STATIC_DENY = "static-deny"
    ALLOW_RULE = "allow-rule"
    LEARNING = "learning"
    AUDIT = "audit"
    NO_RULE = "no-rule"
    NOT_THIS_WORKLOAD = "not-this-workload"
    # made by the sidecar before there is anything to decide on
    UNRESOLVED = "unresolved"
    UNTRUSTED_PEER = "untrusted-peer"
    UNINSPECTED = "uninspected"


@dataclass(frozen=True, slots=True)
class Decision:
    """Both verdicts on a connection, and why.

    :param verdict: what happens to it
    :param pending: what would happen in mode ``enforce``
    :param rule: the rule that decided ``pending``, where one did
    """

    verdict: Verdict
    pending: Verdict
    reason: Reason
    rule: Rule | None = None

    @property
    def allowed(self) -> bool:
        return self.verdict is Verdict.ALLOW

    @property
    def rule_id(self) -> str:
        return self.rule.id if self.rule is not None else ""


def matches(rule: Rule, connection: Connection, now: float) -> bool:
    """Whether ``rule`` speaks of ``connection`` at ``now`` (seconds since the epoch)."""
    if (
        rule.operations
        and connection.operation not in rule.operations
        and (connection.operation or rule.effect is Verdict.ALLOW)
    ):
        return False  # an unknown operation is doubt: it is never allowed by, and always denied by, such a rule
    return _speaks_of(rule, connection, now)


def _speaks_of(rule: Rule, connection: Connection, now: float) -> bool:
    """Whether ``rule`` speaks of some operation of ``connection``."""
    if rule.protocol is not connection.protocol or rule.expired(now):
        return False
    if rule.ports and not any(connection.port in ports for ports in rule.ports):
        return False
    unproved = connection.direction is Direction.INBOUND and not connection.source.verified
    if unproved and rule.source.by_identity:
        return False
    if rule.effect is Verdict.ALLOW and (
        (rule.source.outside and connection.source.is_known)
        or (rule.destination.outside and connection.destination.is_known)
    ):
        return False
    return rule.source.matches(connection.source) and rule.destination.matches(connection.destination)


def decide(snapshot: Snapshot, connection: Connection, now: float) -> Decision:
    """Judge one connection by the policy of the workload at one end of it.

    :param snapshot: the policy of the destination for an inbound connection, of the source for an outbound one
    :param now: seconds since the epoch, for expiries
    """
    inbound = connection.direction is Direction.INBOUND
    mine = connection.destination if inbound else connection.source
    if mine.workload != snapshot.workload:
        return Decision(Verdict.DENY, Verdict.DENY, Reason.NOT_THIS_WORKLOAD)
    mode = snapshot.inbound_mode if inbound else snapshot.outbound_mode
    plaintext = inbound and snapshot.inbound_tls is InboundTls.STRICT and not connection.source.verified

    baseline = override_deny = override_allow = static_deny = allow = None
    for rule in snapshot.rules:
        if not matches(rule, connection, now):
            continue
        if rule.origin is Origin.BASELINE:
            if rule.essential:
                return Decision(Verdict.ALLOW, Verdict.ALLOW, Reason.BASELINE, rule)
            baseline = baseline or rule
        elif rule.origin is Origin.OVERRIDE:
            if rule.effect is Verdict.DENY:
                override_deny = override_deny or rule
            else:
                override_allow = override_allow or rule
        elif rule.effect is Verdict.DENY:
            static_deny = static_deny or rule
        else:
            allow = allow or rule

    if mode is Mode.QUARANTINE:
        return Decision(Verdict.DENY, Verdict.DENY, Reason.QUARANTINE)
    if baseline is not None:
        return Decision(Verdict.ALLOW, Verdict.ALLOW, Reason.BASELINE, baseline)
    if plaintext:
        return Decision(Verdict.DENY, Verdict.DENY, Reason.PLAINTEXT_REFUSED)
    if override_deny is not None:
        return Decision(Verdict.DENY, Verdict.DENY, Reason.DENY_OVERRIDE, override_deny)
    if override_allow is not None:
        return Decision(Verdict.ALLOW, Verdict.ALLOW, Reason.ALLOW_OVERRIDE, override_allow)
    if static_deny is not None:
        return _by_mode(mode, Verdict.DENY, Reason.STATIC_DENY, static_deny)
    if allow is not None:
        return Decision(Verdict.ALLOW, Verdict.ALLOW, Reason.ALLOW_RULE, allow)
    return _by_mode(mode, Verdict.DENY, Reason.NO_RULE, None)


def admit(snapshot: Snapshot, connection: Connection, now: float) -> tuple[Decision, bool]:
    """Judge a connection before its first operation is known: may it be opened, and must operations be judged too?

    It may be opened when :func:`decide` allows it as it is, or when a rule allows some operation of it; each operation
    is then judged by :func:`decide`, and bytes that are no operation are judged as the empty one.

    :param connection: with an empty ``operation``
    :return: the decision on the opening, and whether operations can come out differently from it
    """
    whole = decide(snapshot, connection, now)
    named = [rule for rule in snapshot.rules if rule.operations and _speaks_of(rule, connection, now)]
    if not named:
        return whole, False
    best = whole
    for operation in sorted({name for rule in named for name in rule.operations} | {_NO_RULE_NAMES_IT}):
        one = decide(snapshot, replace(connection, operation=operation), now)
        if (one.allowed, one.pending is Verdict.ALLOW) > (best.allowed, best.pending is Verdict.ALLOW):
            best = one
    return best, True


def _by_mode(mode: Mode, pending: Verdict, reason: Reason, rule: Rule | None) -> Decision:
    if mode is Mode.LEARN:
        return Decision(Verdict.ALLOW, pending, Reason.LEARNING, rule)
    if mode is Mode.AUDIT:
        return Decision(Verdict.ALLOW, pending, Reason.AUDIT, rule)
    return Decision(pending, pending, reason, rule)
