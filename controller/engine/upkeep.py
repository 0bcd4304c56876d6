"""What time itself changes: overrides end, edges ripen, fade and go, old things are cleared away."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from controller.declarations import key_of
from controller.engine import declared
from controller.engine.ingest import destination_meshed
from controller.engine.state import State
from controller.engine.timers import Due
from controller.learner import EdgeState, step
from controller.overrides import share_of_namespace
from controller.view import Override
from graph.flow import EdgeKey


def advance(state: State, now: float) -> None:
    """Do everything that is due by ``now``. Policies that are still stale are compiled when this is settled."""
    if state.stale:
        state.changed()
    for kind, subject in state.timers.take(now):
        if isinstance(subject, EdgeKey):
            _ripen(state, now, subject)
        elif kind is Due.OVERRIDE:
            _end_override(state, now, subject)
        elif kind is Due.REFUSALS:
            _report_refusals(state, now, subject)
        elif kind is Due.GATHERED:
            state.tell_gathered(now, subject)
        elif kind is Due.INVENTORY:
            state.store_inventory(now)
        elif kind is Due.HOUSEKEEPING:
            _clear_away(state, now)


def behind(state: State, now: float) -> bool:
    """Whether policies are left to compile; asked for in a message, so that it is answered in its turn."""
    return bool(state.stale)


def _end_override(state: State, now: float, override_id: str) -> None:
    override = state.overrides.get(override_id)
    if override is None or override.ended or override.expires_at is None:
        return
    if override.expires_at > now:  # its end was put off
        state.schedule_override(override)
        return
    state.put_override(replace(override, ended=True))
    state.drop_rule(override_id)
    state.hurry((override.source, override.destination))
    log = declared.logger(state, key_of(override_id).split("/")[1])
    log(now, "controller", "override.expire", override_id, expires_at=override.expires_at)
    declared.ended(state, now, override_id)


def _ripen(state: State, now: float, key: EdgeKey) -> None:
    before = state.edges.get(key)
    if before is None:
        return
    gate = state.gate_of_edge(key)
    if before.state is EdgeState.RETIRED and now - before.last_seen >= 2 * gate.retire_after:
        state.forget_edge(key)
        state.log(now, "learner", "edge.forget", str(key), last_seen=before.last_seen)
        return
    after = step(before, gate, now, destination_meshed=destination_meshed(state, key.destination))
    if after is before:
        state.schedule_edge(before, now)
        return
    state.put_edge(after, now)
    state.log(now, "learner", f"edge.{after.state}", str(key), was=str(before.state), evidence=list(after.evidence()))


def _report_refusals(state: State, now: float, key: str) -> None:
    """One audit entry for all that a sidecar reported and may not; then none of it for a while."""
    held = state.refusals.pop(key, {})
    if not held:
        state.quiet_until.pop(key, None)
        return
    pause = state.quiet_until.get(key, 0.0)
    if now < pause:
        state.refusals[key] = held
        state.timers.at(pause, Due.REFUSALS, key)
        return
    state.quiet_until[key] = now + state.settings.refusal_pause
    state.timers.at(now + state.settings.refusal_pause, Due.REFUSALS, key)
    refused = sum(held.values())
    namespace = key.partition("/")[0]
    state.log_of(namespace, now, "controller", "flows.refuse", f"sidecar:{key}", refused=refused, reasons=held)


def _ended_at(override: Override) -> float:
    return override.revoked_at or override.expires_at or 0.0


def _clear_away(state: State, now: float) -> None:
    settings = state.settings
    state.shares.forget(now)
    present = declared.present(state)
    # those whose resources are still there show that they ended
    gone = [override for override in state.overrides.values() if override.ended and override.id not in present]
    kept: Counter[str] = Counter()
    for override in sorted(gone, key=_ended_at, reverse=True):
        # who makes and deletes resources without end must not have all of them remembered
        namespace = key_of(override.id).split("/")[1] if state.declared else ""
        most = share_of_namespace(settings.max_overrides) if state.declared else settings.max_overrides
        kept[namespace] += 1
        if kept[namespace] > most or now - (_ended_at(override) or now) > settings.override_kept:
            state.remove_override(override.id)
    for token in list(state.tokens.values()):
        if now - max(token.expires_at, token.used_at or 0.0) > settings.token_kept:
            state.remove_token(token.id)
    for key, sidecar in list(state.sidecars.items()):
        if not sidecar.connected and key not in state.inventory.instances:
            state.remove_sidecar(key)
    for key in [key for key in state.positions if key not in state.inventory.instances]:
        for boot_id, position in list(state.positions[key].items()):
            if now - position.at > settings.token_kept:
                state.put_position(key, boot_id, None)
    state.timers.at(now + settings.housekeeping, Due.HOUSEKEEPING, "")
