"""Lets what a cluster's resources declare be the overrides and modes in force.

:func:`declare` is given *all* resources every time, and does what is different: however watches are cut and begun
again, what is in force follows from the resources that are there. Until it is first called after a start, what the
store kept stays in force. From then on :func:`follow_inventory` keeps up with workloads that come and go, in the same
transaction, so that no rule is missing for a moment.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from controller import overrides
from controller.declarations import (
    Declaration,
    Judgement,
    ModeDeclaration,
    Modes,
    OverrideDeclaration,
    check_mode,
    document_of,
    key_of,
    override_of,
    refused,
)
from controller.engine.room import TOO_MANY, Room, namespace_of_key
from controller.engine.state import DECLARATION, TRUTH, State
from controller.engine.timers import Due
from controller.errors import Conflict, InvalidRequest
from controller.view import Override, OverrideState
from graph.model import Verdict, WorkloadRef

#: In the audit log: a change of a resource that did not go through us. The API server's own log knows who it was.
CLUSTER = "kubernetes"
_SHOWN = 50


@dataclass(frozen=True, slots=True)
class Acting:
    """Who changes a resource through us, and why."""

    owner: str
    reason: str


def declare(
    state: State,
    now: float,
    declarations: Iterable[Declaration],
    acting: Mapping[str, Acting],
) -> None:
    """Let these, and no others, be the overrides and modes.

    :param acting: who changed what, by the resource's key, where it went through us
    """
    wanted = {each.key: each for each in declarations}
    if not state.declared:
        _adopt(state, now)
    again = not state.judged_anew
    state.judged_anew = True
    gone = [key for key in state.declarations if key not in wanted]
    changed = [key for key, each in wanted.items() if each is not state.declarations.get(key)]
    changed = [key for key in changed if wanted[key] != state.declarations.get(key)]
    before = state.declared_modes
    for key in gone:
        _remove(state, now, key, acting.get(key))
    for key in changed:
        held = state.declarations.get(key)
        if held is not None and held.source.uid != wanted[key].source.uid:
            _remove(state, now, key, acting.get(key))
        state.declarations.put(key, wanted[key])
        state.put_document(DECLARATION, key, document_of(wanted[key]))
    judged = list(wanted) if again else changed
    _judge_overrides(state, now, judged, acting)
    if again or any(_is_mode(state, key) for key in changed) or any(key in _keys(before) for key in gone):
        _judge_modes(state, now, acting, set(changed), anew=state.inventory.workloads if again else ())
    _fill_room(state, now, acting)


def follow_inventory(state: State, now: float, changed: set[WorkloadRef]) -> None:
    """The inventory was replaced: what speaks of these workloads, or of an address or a name, is judged again."""
    if not state.declared:
        return
    concerned = [
        each.key
        for each in state.declarations.values()
        if isinstance(each, OverrideDeclaration) and _concerned(state, each, changed)
    ]
    _judge_overrides(state, now, concerned, {})
    if any(isinstance(each, ModeDeclaration) for each in state.declarations.values()):
        _judge_modes(state, now, {}, set(), anew=changed)
    _fill_room(state, now, {})


def ended(state: State, now: float, override_id: str) -> None:
    """An override has come to its end."""
    key = key_of(override_id)
    judgement = state.judgements.get(key)
    if judgement is not None and judgement.override_id == override_id:
        _put_judgement(state, state.declarations[key], replace(judgement, ended=True))
    _fill_room(state, now, {})


def present(state: State) -> set[str]:
    """The ids of overrides whose resources are there."""
    return {each.id for each in state.declarations.values() if isinstance(each, OverrideDeclaration)}


def check_ours(state: State) -> None:
    """:raises Conflict: when overrides and modes are what a cluster's resources say, and not ours to change"""
    if state.declared:
        raise Conflict(
            "overrides and modes are what the cluster's AccessOverrides and SegmentationModes say",
            remedy="start the controller with `kubernetes:` in controller.yaml, or give it another state_dir",
        )


# --- inside


def _adopt(state: State, now: float) -> None:
    """From now on the resources are the truth. What was set before in the store alone is no longer."""
    state.declared = True
    state.put_document(*TRUTH, {})
    state.log(now, CLUSTER, "declarations.adopt", "overrides and modes", modes=len(state.set_modes))
    for ref in list(state.set_modes):
        del state.set_modes[ref]
        state.writes.modes[ref] = None
    for override in list(state.overrides.values()):
        if not override.ended:
            _end(state, now, override, Acting(CLUSTER, "no AccessOverride declares it"), state.log)


def _keys(modes: Modes) -> set[str]:
    """The resources that modes were made of."""
    return {each.key for members in modes.by_target.values() for each in members}


def _concerned(state: State, declaration: OverrideDeclaration, changed: set[WorkloadRef]) -> bool:
    """Whether another inventory may make something else of it."""
    ends = (declaration.asked.source, declaration.asked.destination)
    if any(end in changed for end in ends):
        return True
    if not any(end.is_external for end in ends):
        return False
    came = (instance for ref in changed for instance in state.inventory.instances_of(ref))
    if next(overrides.inhabitants(declaration.asked.source, came, state.inventory), None) is not None:
        return True
    judgement = state.judgements.get(declaration.key)
    if judgement is None or not judgement.accepted:
        return True
    return any(end.is_external and overrides.owner_of(end, state.inventory) is not None for end in ends)


def _is_mode(state: State, key: str) -> bool:
    return isinstance(state.declarations.get(key), ModeDeclaration)


def _remove(state: State, now: float, key: str, by: Acting | None) -> None:
    declaration = state.declarations[key]
    state.declarations.drop(key)
    state.put_document(DECLARATION, key, None)
    state.judgements.drop(key)
    state.no_room.discard(key)
    log = logger(state, declaration.source.namespace, by)
    by = by or Acting(CLUSTER, f"the {key.partition('/')[0]} was deleted")
    if isinstance(declaration, ModeDeclaration):
        log(now, by.owner, "mode.unset", declaration.target, resource=key, reason=by.reason)
        return
    override = state.overrides.get(declaration.id)
    if override is not None and override.state(now) is OverrideState.ACTIVE:
        _end(state, now, override, by, log)


def logger(state: State, namespace: str, by: Acting | None = None) -> Callable[..., None]:
    """What writes an audit entry about a resource of a namespace: who acts through us is always told of, and others as
    far as the namespace's share of the log goes.

    :param by: who acts through us
    """
    return partial(state.log_of, namespace) if by is None and state.declared else state.log


def _end(state: State, now: float, override: Override, by: Acting, log: Callable[..., None]) -> None:
    state.put_override(replace(override, revoked_at=now, revoked_by=by.owner, revoke_reason=by.reason, ended=True))
    state.drop_rule(override.id)
    state.hurry((override.source, override.destination))
    log(now, by.owner, "override.revoke", override.id, reason=by.reason)


def _judge_overrides(state: State, now: float, keys: Iterable[str], acting: Mapping[str, Acting]) -> None:
    found = [state.declarations[key] for key in keys]
    room = Room(state, now)
    for declaration in sorted(found, key=lambda each: each.source.age):
        if isinstance(declaration, OverrideDeclaration):
            _judge_override(state, now, declaration, acting.get(declaration.key), room)


def _judge_override(state: State, now: float, declaration: OverrideDeclaration, by: Acting | None, room: Room) -> None:
    held = state.overrides.get(declaration.id)
    try:
        made, note = _made(state, now, declaration, held)
        over = made.expires_at is not None and made.expires_at <= now
        if not over and (held is None or held.ended):
            room.take(declaration.source.namespace)
    except InvalidRequest as error:
        _refuse(state, now, declaration, error, held)
        return
    made = replace(made, ended=over)
    source = declaration.source
    _put_judgement(
        state,
        declaration,
        Judgement(
            source.uid,
            source.generation,
            accepted=True,
            override_id=made.id,
            expires_at=made.expires_at,
            ended=over,
            note=note,
        ),
    )
    if held == made:
        return
    state.put_override(made)
    if over:
        state.drop_rule(made.id)
    else:
        state.put_rule(overrides.rule_of(made))
        state.schedule_override(made)
    state.hurry((made.source, made.destination))
    action = "override.create" if held is None else "override.change"
    logger(state, declaration.source.namespace, by)(
        now,
        by.owner if by is not None else CLUSTER,
        action,
        made.id,
        resource=declaration.key,
        uid=source.uid,
        author=source.author,
        owner=made.owner,
        ended=over,
        **overrides.audited(made),
    )


def _made(state: State, now: float, declaration: OverrideDeclaration, held: Override | None) -> tuple[Override, str]:
    """The override that comes of one, and what its author should know.

    A denial that holds goes on when it can not be judged any more (an end that has left the inventory, operations that
    nobody reads now): nobody has decided that it ends.

    :raises InvalidRequest: when none comes of it
    """
    try:
        made = override_of(declaration, state.inventory, longest=state.settings.override_max)
    except InvalidRequest as error:
        if held is None or held.effect is not Verdict.DENY or held.state(now) is not OverrideState.ACTIVE:
            raise
        goes_on = f"it goes on to deny, if need be all of the connection, though {error}"
        return replace(held, expires_at=declaration.expires_at), goes_on
    return made, overrides.note_of(made, state.inventory)


def _refuse(
    state: State, now: float, declaration: OverrideDeclaration, error: InvalidRequest, held: Override | None
) -> None:
    judgement = refused(declaration, error)
    if state.judgements.get(declaration.key) == judgement and held is None:
        return
    _put_judgement(state, declaration, judgement)
    if held is not None:
        state.drop_rule(held.id)
        state.remove_override(held.id)
        state.hurry((held.source, held.destination))
    logger(state, declaration.source.namespace)(
        now,
        "controller",
        "override.refuse" if held is None else "override.withdraw",
        declaration.id,
        resource=declaration.key,
        problem=str(error),
    )


def _put_judgement(state: State, declaration: Declaration, judgement: Judgement) -> None:
    if judgement.code == TOO_MANY:
        state.no_room.add(declaration.key)
    else:
        state.no_room.discard(declaration.key)
    if state.judgements.get(declaration.key) != judgement:
        state.changed()
        state.judgements.put(declaration.key, judgement)


def _fill_room(state: State, now: float, acting: Mapping[str, Acting]) -> None:
    """Let those come into force for which there was no room, the oldest first."""
    if not state.no_room:
        return
    room = Room(state, now)
    left = {namespace: room.left(namespace) for namespace in {namespace_of_key(key) for key in state.no_room}}
    waiting = [key for key in state.no_room if left[namespace_of_key(key)] > 0]
    found = []
    for key in sorted(waiting, key=lambda key: state.declarations[key].source.age):
        with contextlib.suppress(InvalidRequest):
            room.take(namespace_of_key(key))
            found.append(key)
    _judge_overrides(state, now, found, acting)


def _judge_modes(
    state: State,
    now: float,
    acting: Mapping[str, Acting],
    changed: set[str],
    anew: Iterable[WorkloadRef] = (),
) -> None:
    """Judge every mode that is declared, and let every workload's follow.

    :param anew: workloads whose mode was looked up already, by what was declared before
    """
    before = state.declared_modes
    declared = [each for each in state.declarations.values() if isinstance(each, ModeDeclaration)]
    verdicts: dict[str, InvalidRequest | None] = {}
    for each in declared:
        try:
            check_mode(each, state.inventory, state.settings.gate)
            verdicts[each.key] = None
        except InvalidRequest as error:
            verdicts[each.key] = error
    after = Modes.of(each for each in declared if verdicts[each.key] is None)
    state.declared_modes = after
    for each in declared:
        wrong = verdicts[each.key]
        judgement = (
            refused(each, wrong)
            if wrong is not None
            else Judgement(each.source.uid, each.source.generation, accepted=True, shadowed=after.shadowed(each))
        )
        if state.judgements.get(each.key) != judgement or each.key in changed:
            _put_judgement(state, each, judgement)
            by = acting.get(each.key)
            logger(state, each.source.namespace, by)(
                now,
                by.owner if by is not None else CLUSTER,
                "mode.set" if wrong is None else "mode.refuse",
                each.target,
                resource=each.key,
                author=each.source.author,
                owner=each.owner,
                reason=each.reason,
                problem=str(wrong or ""),
                shadowed=list(judgement.shadowed),
                **{name: value if isinstance(value, float) else str(value) for name, value in each.says().items()},
            )
    if after == before:
        anew = set(anew)
        concerned: Iterable[WorkloadRef] = (ref for ref in anew if ref in state.inventory.workloads)
    else:
        concerned = state.inventory.workloads
    _follow(state, now, concerned)


def _follow(state: State, now: float, concerned: Iterable[WorkloadRef]) -> None:
    """Let modes, gates and what is said about NetworkPolicies be what is declared."""
    for ref in concerned:
        held, mode = state.modes.get(ref), state.mode_of(ref)
        if held != mode:
            state.follow_mode(ref, held or state.settings.default_mode, mode)
            state.hurry((ref,))
        if state.follow_gate(ref):
            state.changed()
            for key in state.edges_of.get(ref, frozenset()):
                state.timers.at(now, Due.EDGE, key)  # it may have passed the new gate already
    for ref in [ref for ref in state.gates if ref not in state.inventory.workloads]:
        state.gates.drop(ref)
    state.follow_namespaces()
    if state.network_policies.touched or state.namespace_modes.touched:
        state.changed()
