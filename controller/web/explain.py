"""Why a connection is allowed or not: the verdict of both ends' snapshots, and sentences that a person can act on.

The verdicts come from :func:`graph.policy.decide` and :func:`graph.policy.admit`, the functions that the sidecars call:
both ends judge the opening, and the destination what is asked. Nothing here decides anything.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime

from controller.inventory.service_ports import advice, meant_ports
from controller.learner import Gate, waiting_for
from controller.view import View
from controller.web.picture import peer
from graph.flow import EdgeKey
from graph.model import Connection, Direction, Mode, Origin, Rule, Verdict, WorkloadRef
from graph.policy import Decision, Reason, admit, decide, matches
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


@dataclass(frozen=True, slots=True)
class _Judged:
    """What one end decides. ``by_operation``: what is asked may come out differently from the opening."""

    decision: Decision
    connection: Connection
    by_operation: bool


def explain(view: View, key: EdgeKey, gate: Gate, now: float, operation: str = "") -> Explanation:
    """Ask both ends about a connection, as it would be made now.

    :param key: whose ends are in the inventory, or addresses and hosts outside
    :param gate: what learning waits for
    :param now: seconds since the epoch
    :param operation: also about this request on it; empty asks about the opening alone
    """
    going, coming = (
        _judged(view, key, direction, now, operation) for direction in (Direction.OUTBOUND, Direction.INBOUND)
    )
    outbound = going.decision if going is not None else None
    inbound = coming.decision if coming is not None else None
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
        (
            *_sentences(view, key, gate, outbound, inbound, edge, now),
            *_of_operations(view, key, going if _reads(view, key) else coming, operation, now),
            *_advice(view, key, outbound, inbound, operation),
        ),
    )


def _judged(view: View, key: EdgeKey, direction: Direction, now: float, operation: str) -> _Judged | None:
    mine = key.source if direction is Direction.OUTBOUND else key.destination
    snapshot = view.snapshots.get(mine)
    if snapshot is None:
        return None
    source = view.inventory.workloads.get(key.source)
    known = peer(view, key.source, verified=source is not None and source.meshed)
    if source is not None and source.account_identity and direction is Direction.INBOUND:
        known = replace(known, workload=None)
    # whose address it is, the source's sidecar hears of the directory
    called = peer(
        view, view.inventory.attributed(key.destination) if direction is Direction.OUTBOUND else key.destination
    )
    connection = Connection(direction, known, called, key.port, key.protocol)
    opened, by_operation = admit(snapshot, connection, now)
    if operation and (direction is Direction.INBOUND or _reads(view, key)):
        asked = replace(connection, operation=operation)
        return _Judged(decide(snapshot, asked, now), asked, by_operation)
    return _Judged(opened, connection, by_operation)


def _reads(view: View, key: EdgeKey) -> bool:
    """Whether the source's sidecar judges what is asked, because it is asked outside the mesh and inspected."""
    snapshot, host = view.snapshots.get(key.source), key.destination.host
    return snapshot is not None and any((one.host, one.port) == (host, key.port) for one in snapshot.inspects)


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
    owner = view.inventory.attributed(key.destination)
    if owner != key.destination:
        said.append(
            f"{key.destination.name} is an address of {owner}: rules go by identity there, so ask about {owner}."
        )
    if meant := advice(view.inventory, key.destination, key.port, key.protocol):
        said.append(f"{meant}.")
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
    return said


def _of_operations(view: View, key: EdgeKey, judge: _Judged | None, operation: str, now: float) -> list[str]:
    """What the end that judges single operations makes of them, where that is not what it makes of the connection."""
    if operation:
        if judge is not None:
            return []
        what = "is outside the inventory" if key.destination.is_external else "has no sidecar"
        return [f"{key.destination} {what}: nothing here sees or stops single operations."]
    if judge is None or not judge.by_operation:
        return []
    said = []
    mine = key.source if _reads(view, key) else key.destination
    for rule in view.snapshots[mine].rules:
        if rule.operations and matches(rule, replace(judge.connection, operation=rule.operations[0]), now):
            named = ", ".join(rule.operations)
            said.append(f"{mine} judges what is asked one by one: {_of_rule(rule)}, for {named} only.")
    return said


def _end(view: View, ref: WorkloadRef, direction: Direction, decision: Decision | None) -> str:
    doing = "lets it out" if direction is Direction.OUTBOUND else "takes it"
    refusing = "does not let it out" if direction is Direction.OUTBOUND else "refuses it"
    if decision is None:
        why = "is outside the inventory" if ref.is_external else "has no sidecar"
        if not ref.is_external and (workload := view.inventory.workloads.get(ref)) is not None and workload.meshed:
            why = "has no policy yet" if workload.has_sidecar else "has another mesh's proxy"
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


def _advice(view: View, key: EdgeKey, outbound: Decision | None, inbound: Decision | None, operation: str) -> list[str]:
    advice = []
    only = f" --operation '{operation}'" if operation else ""
    to = key.destination.name if key.destination.is_external else str(key.destination)
    to = f"[{to}]" if ":" in to else to
    source = key.source.name if key.source.is_external else str(key.source)
    port = next(iter(meant_ports(view.inventory, key.destination, key.port, key.protocol)), key.port)
    for ref, decision in ((key.source, outbound), (key.destination, inbound)):
        if decision is None or decision.allowed:
            continue
        match decision.reason:
            case Reason.NO_RULE:
                advice.append(f"To open it: hedgerow allow {source} {to}:{port}{only} --for 1h --reason …")
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
