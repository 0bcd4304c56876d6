"""What people ask of the engine: inventory, modes, approvals, overrides, join tokens.

Each function checks everything first and changes the state after that, so that a refused request leaves nothing behind.
``now`` is seconds since the epoch.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice

from controller import join_tokens, overrides
from controller.engine import declared
from controller.engine.policy import concerns_everybody
from controller.engine.sidecars import forget_gone
from controller.engine.state import State
from controller.engine.timers import Due
from controller.errors import Conflict, InvalidRequest, InventoryError, JoinTokenError, NotFound
from controller.inventory import Inventory
from controller.learner import EdgeState, LearnedEdge, approve
from controller.overrides import OverrideRequest
from controller.view import Override, OverrideState, WorkloadMode
from graph.errors import InvalidValue
from graph.flow import EdgeKey
from graph.model import Direction, InboundTls, Instance, Mode, Verdict, WorkloadRef
from graph.outside import is_wide

_SHOWN = 50
_COMPARED = 2_000


def set_inventory(state: State, now: float, inventory: Inventory, actor: str, *, followed: bool = False) -> None:
    """Replace the inventory; see :meth:`controller.engine.Engine.set_inventory`.

    :param followed: see :meth:`controller.engine.Engine.follow_inventory`
    """
    if inventory.trust_domain != state.trust_domain:
        raise InventoryError(
            f"it was read for the trust domain {inventory.trust_domain!r}", field="trust_domain", remedy="read it anew"
        )
    before = state.inventory
    if inventory == before:
        return
    actor = overrides.checked_owner(actor)
    state.changed()
    state.inventory = replace(inventory, revision=before.revision + 1)
    state.inventory_changed = True
    due = state.inventory_stored_at + state.settings.inventory_pause
    if followed and now < due:
        state.timers.at(due, Due.INVENTORY, "")
    else:
        state.store_inventory(now)
    changed = _changed_workloads(before, inventory)
    redefined = {ref for ref in changed if before.workloads.get(ref) != inventory.workloads.get(ref)}
    _follow_in_graph(state, before, changed, now)
    _follow_in_policy(state, before, redefined)
    _follow_addresses(state, before, changed - redefined)
    moved = changed if before.networks == inventory.networks else set(inventory.workloads)
    declared.follow_inventory(state, now, moved)
    if not state.declared:
        _withdraw_overrides(state, now, moved)
    for ref in changed:
        for gone in set(before.instances_of(ref)) - set(inventory.instances_of(ref)):
            forget_gone(state, gone)
    over = _over_their_share(state, now, before, redefined) if followed else frozenset()
    if followed and before.networks == inventory.networks and all(ref.namespace in over for ref in redefined):
        return
    told = {ref for ref in changed if ref.namespace not in over}
    refs, known = before.workloads.keys() & told, inventory.workloads.keys() & told
    state.log(
        now,
        actor,
        "inventory.replace",
        "inventory",
        revision=state.inventory.revision,
        workloads=len(inventory.workloads),
        instances=len(inventory.instances),
        services=len(inventory.services),
        added=sorted(map(str, known - refs))[:_SHOWN],
        removed=sorted(map(str, refs - known))[:_SHOWN],
        changed=sorted(map(str, refs & known))[:_SHOWN],
    )


def _over_their_share(state: State, now: float, before: Inventory, redefined: set[WorkloadRef]) -> frozenset[str]:
    """The namespaces whose workloads have come, gone or changed so often that the audit log tells of it later."""
    over = set()
    for namespace in sorted({ref.namespace for ref in redefined}):
        if state.shares.take(namespace, now):
            continue
        over.add(namespace)
        for ref in sorted(ref for ref in redefined if ref.namespace == namespace):
            there = ref in state.inventory.workloads
            action = (
                "workload.remove" if not there else "workload.change" if ref in before.workloads else "workload.add"
            )
            state.gather(namespace, now, "kubernetes", action, str(ref))
    return frozenset(over)


def _changed_workloads(before: Inventory, after: Inventory) -> set[WorkloadRef]:
    """The workloads that came, went or changed, themselves or in their instances."""
    return {
        ref
        for ref in before.workloads.keys() | after.workloads.keys()
        if before.workloads.get(ref) != after.workloads.get(ref) or before.instances_of(ref) != after.instances_of(ref)
    }


def _follow_in_graph(state: State, before: Inventory, changed: set[WorkloadRef], now: float) -> None:
    after = state.inventory
    for ref in changed:
        workload = after.workloads.get(ref)
        if workload is None:
            state.graph.remove_workload(ref, now)
            continue
        state.graph.put_workload(workload, after.identity_of(ref))
        present = set(after.instances_of(ref))
        for gone in set(before.instances_of(ref)) - present:
            if f"{ref.namespace}/{gone.name}" not in after.instances:
                state.graph.remove_instance(ref.namespace, gone.name)
        for instance in present:
            state.graph.put_instance(instance)


def _follow_in_policy(state: State, before: Inventory, changed: set[WorkloadRef]) -> None:
    after = state.inventory
    touched = set(changed)
    for ref in changed:
        touched |= state.index.neighbours(ref, state.rules)  # by the rules as they were
        if ref in after.workloads:
            state.modes.put(ref, state.mode_of(ref))
        else:
            state.modes.drop(ref)
        for key in state.edges_of.get(ref, frozenset()):
            state.refresh_rule(key)
        touched |= state.index.neighbours(ref, state.rules)  # and as they are
        for instance in (*before.instances_of(ref), *after.instances_of(ref)):
            for address in instance.addresses:
                touched |= state.index.neighbours(WorkloadRef.external(address), state.rules)
    if before.networks != after.networks or any(
        concerns_everybody(before.workloads.get(ref), after.workloads.get(ref)) for ref in changed
    ):
        touched |= set(after.workloads)
    state.stale |= touched


def _follow_addresses(state: State, before: Inventory, changed: set[WorkloadRef]) -> None:
    """For workloads that are what they were, with other instances: addresses matter to a policy only where a rule names
    them, or where they stand for a workload that proves nothing, or for the source of a deny."""
    after = state.inventory
    for ref in changed:
        if not after.workloads[ref].has_sidecar or state.index.denies(ref, state.rules):
            state.stale |= state.index.neighbours(ref, state.rules) | {ref}
        old, new = ({at for each in one.instances_of(ref) for at in each.addresses} for one in (before, after))
        for address in old ^ new:
            named = WorkloadRef.external(address)
            if state.index.names(named):
                state.stale |= state.index.neighbours(named, state.rules) | {ref}


def _withdraw_overrides(state: State, now: float, changed: set[WorkloadRef]) -> None:
    """End what lets a whole network in where one of these workloads has an address now: it could come by that alone."""
    came = [instance for ref in changed for instance in state.inventory.instances_of(ref)]
    for override in list(state.overrides.values()):
        if override.effect is Verdict.DENY or not is_wide(override.source):
            continue
        if override.state(now) is not OverrideState.ACTIVE:
            continue
        found = next(overrides.inhabitants(override.source, came, state.inventory), None)
        if found is None:
            continue
        why = f"{found.workload} has the address {found.address} now: list clusterNetworks, then allow it again"
        state.put_override(
            replace(
                override, revoked_at=now, revoked_by="controller", revoke_reason=why[: overrides.MAX_REASON], ended=True
            )
        )
        state.drop_rule(override.id)
        state.hurry((override.source, override.destination))
        state.log(now, "controller", "override.withdraw", override.id, problem=why)


def set_mode(
    state: State,
    now: float,
    target: WorkloadRef | str,
    direction: Direction | None,
    mode: Mode | None,
    inbound_tls: InboundTls | None,
    owner: str,
    reason: str,
) -> tuple[WorkloadRef, ...]:
    """Set a mode; see :meth:`controller.engine.Engine.set_mode`."""
    declared.check_ours(state)
    if isinstance(target, WorkloadRef):
        refs: tuple[WorkloadRef, ...] = (overrides.checked_workload(target, state.inventory, "workload"),)
    else:
        refs = tuple(sorted(ref for ref in state.inventory.workloads if ref.namespace == target))
        if not refs:
            known = sorted({ref.namespace for ref in state.inventory.workloads})
            near = difflib.get_close_matches(target, known, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"use one of {', '.join(known[:10]) or 'none yet'}"
            raise InvalidRequest(f"no workload is in the namespace {target!r:.80}", field="namespace", remedy=remedy)
    if mode is None and inbound_tls is None:
        raise InvalidRequest("missing", field="mode", remedy="give a mode, or inbound_tls, or both")
    owner, reason = overrides.checked_owner(owner), overrides.checked_reason(reason)
    changed = []
    for ref in refs:
        before = state.mode_of(ref)
        after = WorkloadMode(
            mode if mode is not None and direction is not Direction.OUTBOUND else before.inbound,
            mode if mode is not None and direction is not Direction.INBOUND else before.outbound,
            inbound_tls if inbound_tls is not None else before.inbound_tls,
        )
        if after != before or ref not in state.set_modes:
            state.put_mode(ref, after)
            changed.append(str(ref))
    state.hurry(refs)
    state.log(
        now,
        owner,
        "mode.set",
        str(target),
        reason=reason,
        direction=str(direction or "both"),
        mode=str(mode or ""),
        inbound_tls=str(inbound_tls or ""),
        changed=changed,
    )
    return refs


def approve_edges(
    state: State, now: float, edges: Iterable[EdgeKey] | None, owner: str, reason: str
) -> tuple[EdgeKey, ...]:
    """Vouch for edges; see :meth:`controller.engine.Engine.approve`."""
    owner, reason = overrides.checked_owner(owner), overrides.checked_reason(reason)
    wanted = (
        [edge for edge in state.edges.values() if _waits(edge)]
        if edges is None
        else [_seen(state, key) for key in dict.fromkeys(edges)]
    )
    made = []
    for edge in sorted(wanted, key=lambda edge: edge.key):
        try:
            made.append((edge, approve(edge, owner, now)))
        except InvalidValue as error:
            raise Conflict(error.problem, field="edges", remedy=error.remedy) from None
    for before, after in made:
        if after is not before:
            state.put_edge(after, now)
            state.log(now, owner, "edge.approve", str(after.key), reason=reason, was=str(before.state))
    return tuple(after.key for before, after in made if after is not before)


def _waits(edge: LearnedEdge) -> bool:
    return edge.state is EdgeState.PROPOSED or (edge.state is EdgeState.CANDIDATE and edge.reached > 0)


def _seen(state: State, key: EdgeKey) -> LearnedEdge:
    edge = state.edges.get(key)
    if edge is None:
        known = state.edges_of.get(key.source, frozenset()) | state.edges_of.get(key.destination, frozenset())
        near = difflib.get_close_matches(str(key), [str(each) for each in islice(known, _COMPARED)], n=1)
        remedy = f"did you mean {near[0]}?" if near else "open it with an allow override instead"
        raise NotFound(f"{key} was never observed to be allowed", field="edges", remedy=remedy)
    return edge


def create_override(state: State, now: float, asked: OverrideRequest) -> Override:
    """Create an override; see :meth:`controller.engine.Engine.create_override`."""
    declared.check_ours(state)
    override = overrides.make(state.inventory, asked, now=now, longest=state.settings.override_max)
    overrides.check_room(state.overrides, now, state.settings.max_overrides)
    state.put_override(override)
    state.put_rule(overrides.rule_of(override))
    state.schedule_override(override)
    state.hurry((override.source, override.destination))
    state.log(now, override.owner, "override.create", override.id, **overrides.audited(override))
    return override


def revoke_override(state: State, now: float, override_id: str, owner: str, reason: str) -> Override:
    """End an override; see :meth:`controller.engine.Engine.revoke_override`."""
    declared.check_ours(state)
    override = overrides.revocable(state.overrides, override_id, now)
    owner, reason = overrides.checked_owner(owner), overrides.checked_reason(reason)
    ended = replace(override, revoked_at=now, revoked_by=owner, revoke_reason=reason, ended=True)
    state.put_override(ended)
    state.drop_rule(override_id)
    state.hurry((override.source, override.destination))
    state.log(now, owner, "override.revoke", override_id, reason=reason)
    return ended


def note(
    state: State, now: float, owner: str, action: str, subject: str, reason: str, detail: Mapping[str, object]
) -> None:
    """Write an audit entry; see :meth:`controller.engine.Engine.note`."""
    owner, reason = overrides.checked_owner(owner), overrides.checked_reason(reason)
    state.log(now, owner, action, subject, reason=reason, **detail)


def create_join_token(
    state: State, now: float, workload: WorkloadRef, instance: str, expires_in: float, owner: str
) -> str:
    """Make a join token; see :meth:`controller.engine.Engine.create_join_token`."""
    overrides.checked_workload(workload, state.inventory, "workload")
    known = state.inventory.workloads[workload]
    if not known.has_sidecar:
        problem = "has another mesh's proxy, not a sidecar" if known.meshed else "is not meshed"
        remedy = "set `meshed: true` in the inventory first, without `transport`"
        raise InvalidRequest(f"{workload} {problem}", field="workload", remedy=remedy)
    name = instance.removeprefix(f"{workload.namespace}/")
    found = state.inventory.instances.get(f"{workload.namespace}/{name}")
    if found is None or found.workload != workload:
        names = [each.name for each in state.inventory.instances_of(workload)]
        near = difflib.get_close_matches(name, names, n=1) or names[:1]
        remedy = f"did you mean {near[0]}?" if near else "add it to `instances` in the inventory"
        raise InvalidRequest(f"{workload} has no instance {name!r:.80}", field="instance", remedy=remedy)
    owner = overrides.checked_owner(owner)
    text, token = join_tokens.make(found, expires_in, owner, now)
    state.put_token(token)
    state.log(
        now,
        owner,
        "join-token.create",
        token.id,
        instance=token.instance_key,
        workload=str(workload),
        expires_in=expires_in,
    )
    return text


def redeem_join_token(state: State, now: float, text: str) -> Instance:
    """Use a join token up; see :meth:`controller.engine.Engine.redeem_join_token`."""
    token = join_tokens.check(text, state.tokens, now)
    instance = state.inventory.instances.get(token.instance_key)
    if instance is None or instance.workload != token.workload:
        raise JoinTokenError(
            f"{token.instance_key} is no longer an instance of {token.workload}",
            field="join_token",
            remedy="add it to the inventory and create another token",
            code="join-token-orphaned",
        )
    state.put_token(replace(token, used_at=now))
    state.log(now, f"sidecar:{token.instance_key}", "join-token.redeem", token.id, workload=str(token.workload))
    return instance
