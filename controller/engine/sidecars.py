"""What sidecars say of themselves: connected, holding which version, refusing which and why. None of it is stored.

A sidecar that restarts has a new boot id. Its old stream may end after the new one began, so what is said under another
boot id than the newest is passed over.

A sidecar may hold a newer version than any that we know: our database was restored from a backup. It rightly refuses to
go back, so its workload's policy is numbered above all that was given out before we were started. A version that can
not have been given out is believed of nobody: one sidecar that makes them up could use the numbers up for the others.
"""

from __future__ import annotations

from dataclasses import replace

from controller.engine.ingest import key_of
from controller.engine.state import State
from controller.view import SidecarState
from graph.model import Instance

MAX_TEXT = 500
#: A version is the second of its change, or one above the last: so far ahead of the clock may bursts have taken them.
AHEAD = 3600


def connected(state: State, now: float, instance: Instance, boot_id: str, held_version: int, software: str) -> None:
    """It has opened a stream, and says what it holds and is."""
    key = key_of(instance)
    held_version = _ours(state, now, instance, held_version)
    before = state.sidecars.get(key) or SidecarState(instance.name, instance.workload)
    state.put_sidecar(
        key,
        replace(
            before,
            workload=instance.workload,
            connected=True,
            held_version=held_version,
            pushed_version=0,
            nack="",
            last_seen=now,
            software=shown(software),
            boot_id=boot_id,
        ),
    )


def pushed(state: State, now: float, instance: Instance, boot_id: str, version: int) -> None:
    """A version was sent to it."""
    present = _present(state, instance, boot_id)
    if present is not None:
        state.put_sidecar(key_of(instance), replace(present, pushed_version=version, nack=""))


def acked(state: State, now: float, instance: Instance, boot_id: str, version: int) -> None:
    """It has taken a version."""
    present = _present(state, instance, boot_id)
    if present is not None:
        state.put_sidecar(key_of(instance), replace(present, held_version=version, nack="", last_seen=now))


def nacked(state: State, now: float, instance: Instance, boot_id: str, version: int, error: str) -> None:
    """It has refused a version, and keeps the one before.

    :param error: its own words
    """
    present = _present(state, instance, boot_id)
    if present is not None:
        text = f"version {version}: {shown(error) or 'no reason given'}"
        state.put_sidecar(key_of(instance), replace(present, nack=text, last_seen=now))


def disconnected(state: State, now: float, instance: Instance, boot_id: str) -> None:
    """Its stream has ended; one of an earlier boot changes nothing."""
    present = _present(state, instance, boot_id)
    if present is not None:
        state.put_sidecar(key_of(instance), replace(present, connected=False, last_seen=now))
        forget_gone(state, instance)


def forget_gone(state: State, instance: Instance) -> None:
    """Nobody misses the sidecar of an instance that the inventory does not know any more."""
    key = key_of(instance)
    present = state.sidecars.get(key)
    if present is not None and not present.connected and key not in state.inventory.instances:
        state.remove_sidecar(key)


def _ours(state: State, now: float, instance: Instance, version: int) -> int:
    """What it says it holds, if that can be a version of ours; otherwise 0, so that it is not taken for a sidecar that
    has what was pushed last.

    When it is one that we do not know, the policy of its workload is numbered above all that could be believed. So
    whatever its instances make up, that happens to a workload once in a run.
    """
    ref = instance.workload
    mark = state.marks.get(ref)
    if mark is None or version <= mark.version:
        return version
    newest = int(state.loaded_at) + AHEAD  # all that were given out and we do not know are from before that
    if version > newest:
        return 0
    state.number_above(ref, newest, now)
    detail = {"instance": instance.name, "held": version, "known": mark.version, "version": state.marks[ref].version}
    state.log_of(ref.namespace, now, "controller", "policy.renumber", str(ref), **detail)
    return version


def _present(state: State, instance: Instance, boot_id: str) -> SidecarState | None:
    present = state.sidecars.get(key_of(instance))
    return present if present is not None and present.connected and present.boot_id == boot_id else None


def shown(text: str) -> str:
    """Somebody else's words, fit for a terminal and a log."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:MAX_TEXT]).strip()
