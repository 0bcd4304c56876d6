"""Keeps which NetworkPolicies were applied to which namespace, and which of these sets a person went back to.

All of it ends with the namespace, by its uid and not by its name: another one that is called the same later is somebody
else's, and the sets of the one before know nothing of what was denied since.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from controller import overrides
from controller.engine.state import FENCE, State
from controller.errors import NotFound
from controller.fences import NAMESPACE_UID, Fence, Manifest

PREVIOUS = "previous"
NEWEST = "newest"


def applied(
    state: State, now: float, namespace: str, manifests: Sequence[Manifest], detail: Mapping[str, object]
) -> Fence:
    """See :meth:`controller.engine.Engine.network_policies_applied`.

    :param manifests: none when the namespace in which something was applied is not there any more
    :param detail: :data:`~controller.fences.NAMESPACE_UID` in it says which namespace of that name it is
    """
    before = state.fences.get(namespace, Fence())
    uid = str(detail.get(NAMESPACE_UID, before.uid))
    if not manifests or (before.uid and uid != before.uid):
        _forget(state, now, namespace, before)
        before = Fence()
    if not manifests:
        return before
    after = before.applied(manifests, now)
    if after.uid != uid:
        after = replace(after, uid=uid)
    if after is not before:
        _put(state, namespace, after)
    newest = after.newest
    if newest is not None and newest != before.newest:
        state.log_of(
            namespace,
            now,
            "controller",
            "network-policies.apply",
            namespace,
            revision=newest.revision,
            digest=newest.digest,
            policies=len(newest.policies),
            **detail,
        )
    return after


def pin(state: State, now: float, namespace: str, to: int | str, owner: str, reason: str) -> Fence:
    """See :meth:`controller.engine.Engine.pin_network_policies`."""
    owner, reason = overrides.checked_owner(owner), overrides.checked_reason(reason)
    before = state.fences.get(namespace, Fence())
    if to == NEWEST:
        after = replace(before, pinned=None, pinned_by="", reason="")
    else:
        revision = _previous(before, namespace) if to == PREVIOUS else to
        if not isinstance(revision, int) or before.found(revision) is None:
            known = ", ".join(str(each.revision) for each in before.sets)
            raise NotFound(
                f"no revision {to} of the NetworkPolicies of {namespace} is kept",
                field="to",
                remedy=f"use one of {known}" if known else "nothing was applied there",
            )
        after = replace(before, pinned=revision, pinned_by=owner, reason=reason)
    if after != before:
        _put(state, namespace, after)
    state.log(now, owner, "network-policies.pin", namespace, to=after.pinned or NEWEST, reason=reason)
    return after


def _previous(fence: Fence, namespace: str) -> int:
    """The set before the one that is in force."""
    now = fence.pinned if fence.pinned is not None else (fence.newest.revision if fence.newest else 0)
    held = fence.found(now)
    earlier = [each for each in fence.sets if each.revision < now and (held is None or each.digest != held.digest)]
    if not earlier:
        raise NotFound(
            f"nothing was applied to {namespace} before what is there now",
            field="to",
            remedy=f"`hedgerow mode set {namespace} --network-policy report` takes ours out",
        )
    return earlier[-1].revision


def _forget(state: State, now: float, namespace: str, fence: Fence) -> None:
    if not fence.sets:
        return
    state.fences.drop(namespace)
    state.put_document(FENCE, namespace, None)
    revisions = [each.revision for each in fence.sets]
    state.log_of(
        namespace,
        now,
        "controller",
        "network-policies.forget",
        namespace,
        revisions=revisions,
        pinned=fence.pinned,
        pinned_by=fence.pinned_by,
    )


def _put(state: State, namespace: str, fence: Fence) -> None:
    state.changed()
    state.fences.put(namespace, fence)
    state.put_document(FENCE, namespace, fence.to_dict())
