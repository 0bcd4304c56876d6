"""Why a connection is allowed or not: the verdict of both ends' snapshots, and sentences that a person can act on.

The verdicts come from :func:`graph.policy.decide`, the function that the sidecars call. Nothing here decides anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from controller.learner import Gate, waiting_for
from controller.view import View
from controller.web.picture import peer
from graph.flow import EdgeKey
from graph.model import Connection, Direction, Mode, Origin, Rule, Verdict, WorkloadRef
from graph.policy import Decision, Reason, decide
from graph.views import EdgeView


@dataclass(frozen=True, slots=True)
class Explanation:
    """What becomes of a connection.

    :param inbound: the destination's decision, None when it has no sidecar; ``outbound`` the source's
    :param edge: what was observed of it, if anything
    """

    verdict: Verdict
    pending: Verdict
    inbound: Decision | None
    outbound: Decision | None
    inbound_mode: str
    outbound_mode: str
    edge: EdgeView | None
    sentences: tuple[str, ...]


def explain(view: View, key: EdgeKey, gate: Gate, now: float) -> Explanation:
    """Ask both ends about a connection, as it would be made now.

    :param key: whose ends are in the inventory or outside addresses
    :param gate: what learning waits for
    :param now: seconds since the epoch
    """
    outbound = _decision(view, key, Direction.OUTBOUND, now)
    inbound = _decision(view, key, Direction.INBOUND, now)
    made = [decision for decision in (outbound, inbound) if decision is not None]
    verdict = _worst([decision.verdict for decision in made])
    pending = _worst([decision.pending for decision in made])
    edge = view.traffic.get(key)
    return Explanation(
        verdict,
        pending,
        inbound,
        outbound,
        _mode(view, key.destination, Direction.INBOUND) if inbound else "",
        _mode(view, key.source, Direction.OUTBOUND) if outbound else "",
        edge,
        tuple(_sentences(view, key, gate, outbound, inbound, edge, now)),
    )


def _decision(view: View, key: EdgeKey, direction: Direction, now: float) -> Decision | None:
    mine = key.source if direction is Direction.OUTBOUND else key.destination
    snapshot = view.snapshots.get(mine)
    if snapshot is None:
        return None
    # a source with a sidecar proves itself to a destination with one; no other can
    proved = key.source in view.snapshots
    connection = Connection(
        direction,
        peer(view, key.source, verified=proved),
        peer(view, key.destination),
        key.port,
        key.protocol,
    )
    return decide(snapshot, connection, now)


def _worst(verdicts: list[Verdict]) -> Verdict:
    return Verdict.DENY if Verdict.DENY in verdicts else Verdict.ALLOW


def _mode(view: View, ref: WorkloadRef, direction: Direction) -> str:
    snapshot = view.snapshots[ref]
    return str(snapshot.outbound_mode if direction is Direction.OUTBOUND else snapshot.inbound_mode)


def _sentences(
    view: View,
    key: EdgeKey,
    gate: Gate,
    outbound: Decision | None,
    inbound: Decision | None,
    edge: EdgeView | None,
    now: float,
) -> list[str]:
    said = [
        _end(view, key.source, Direction.OUTBOUND, outbound),
        _end(view, key.destination, Direction.INBOUND, inbound),
    ]
    if outbound is None and inbound is None:
        said.append("Neither end has a sidecar, so nothing here sees or stops this connection.")
    learned = view.edges.get(key)
    if edge is None or not (edge.connections or edge.denied):
        said.append("It has never been observed.")
    elif learned is not None:
        said.append(f"It was observed and is {learned.state}: {'; '.join(learned.evidence())}.")
    else:
        said.append(
            f"It was observed {edge.connections} times and refused {edge.denied} times; nothing was learned from it."
        )
    if learned is not None and (missing := waiting_for(learned, gate, now)):
        said.append(f"Learning waits: {missing}.")
    said += _advice(view, key, outbound, inbound)
    return said


def _end(view: View, ref: WorkloadRef, direction: Direction, decision: Decision | None) -> str:
    doing = "lets it out" if direction is Direction.OUTBOUND else "takes it"
    refusing = "does not let it out" if direction is Direction.OUTBOUND else "refuses it"
    if decision is None:
        why = "is outside the inventory" if ref.is_external else "has no sidecar"
        if not ref.is_external and (workload := view.inventory.workloads.get(ref)) is not None and workload.meshed:
            why = "has no policy yet"
        return f"{ref} {why}: its end decides nothing."
    act = doing if decision.allowed else refusing
    return f"{ref} {act}: {_because(view, ref, direction, decision)}."


def _because(view: View, ref: WorkloadRef, direction: Direction, decision: Decision) -> str:
    mode = _mode(view, ref, direction)
    match decision.reason:
        case Reason.BASELINE:
            return f"it always may ({decision.rule.reason if decision.rule else 'baseline'})"
        case Reason.QUARANTINE:
            return "it is in quarantine, which leaves only the control plane"
        case Reason.PLAINTEXT_REFUSED:
            return "it takes only connections whose source proves its identity (inbound TLS is strict)"
        case Reason.DENY_OVERRIDE | Reason.ALLOW_OVERRIDE | Reason.STATIC_DENY | Reason.ALLOW_RULE:
            return _of_rule(decision.rule) if decision.rule else str(decision.reason)
        case Reason.LEARNING | Reason.AUDIT:
            against = _of_rule(decision.rule) if decision.rule else "no rule allows it"
            return f"its mode is {mode}, and {against}; in enforce it would be refused"
        case Reason.NO_RULE:
            return f"no rule allows it, and its mode is {mode}"
        case _:
            return str(decision.reason)


def _of_rule(rule: Rule) -> str:
    effect = "allows" if rule.effect is Verdict.ALLOW else "denies"
    if rule.origin is Origin.LEARNED:
        return f"a learned rule {effect} it"
    until = f" until {_moment(rule.expires_at)}" if rule.expires_at else ""
    owner = f" by {rule.owner}" if rule.owner else ""
    reason = f" ({rule.reason})" if rule.reason else ""
    what = "an override" if rule.origin is Origin.OVERRIDE else f"a {rule.origin} rule"
    return f"{what}{owner} {effect} it{until}{reason}"


def _advice(view: View, key: EdgeKey, outbound: Decision | None, inbound: Decision | None) -> list[str]:
    advice = []
    for ref, decision in ((key.source, outbound), (key.destination, inbound)):
        if decision is None or decision.allowed:
            continue
        match decision.reason:
            case Reason.NO_RULE:
                advice.append(
                    f"To open it: hedgerow allow {key.source} {key.destination}:{key.port} --for 1h --reason …"
                )
            case Reason.DENY_OVERRIDE if decision.rule is not None:
                advice.append(f"To end the override: hedgerow overrides revoke {decision.rule.id} --reason …")
            case Reason.QUARANTINE:
                advice.append(f"To end the quarantine: hedgerow mode set {ref} {Mode.ENFORCE} --reason …")
            case Reason.PLAINTEXT_REFUSED:
                advice.append(f"Give {key.source} a sidecar, or set inbound TLS of {ref} to permissive.")
            case _:
                pass
    return list(dict.fromkeys(advice))


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
